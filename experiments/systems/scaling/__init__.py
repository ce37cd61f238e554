"""The cost of a step, by formula, for a dense model and K experts that share nothing."""
