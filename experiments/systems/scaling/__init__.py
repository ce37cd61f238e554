"""Scale on paper: what a step costs a centre, and K experts that share nothing, on n chips."""
