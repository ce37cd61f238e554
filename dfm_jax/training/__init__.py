"""Training: state, step and fit as pure pieces; verified checkpoints; the members of a run."""
