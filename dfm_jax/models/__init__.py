"""Networks as pairs of pure functions, and pretrained weights read from files."""
