"""What decentralisation costs with counted experts: the ladder of gates."""
