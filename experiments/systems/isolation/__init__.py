"""Which devices communicate: the collectives of every compiled program of `programs`."""
