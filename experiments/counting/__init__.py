"""What decentralization costs with counted experts: the comparison of gates."""
