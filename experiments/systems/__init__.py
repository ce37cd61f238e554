"""Studies of speed, faults and scale."""
