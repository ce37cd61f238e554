"""What a user waits for: the first commands after installation, of an earlier build and of this."""
