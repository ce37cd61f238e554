"""Scale on paper: what a step costs a dense model, and K experts that share nothing, on n chips."""
