"""Training: state, step and fit as pure pieces; verified checkpoints; members of a run."""
