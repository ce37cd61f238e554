"""What differs between the lowest and the newest supported versions, in numbers."""
