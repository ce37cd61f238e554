"""Do the samplers of the field draw from the model? Exact denoisers, exact distributions."""
