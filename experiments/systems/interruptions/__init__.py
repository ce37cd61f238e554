"""A run that is killed again and again ends with the same bits; a flipped bit is never loaded."""
