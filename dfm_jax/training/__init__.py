"""Training: state, step and loop as pure pieces; verified checkpoints; members of a run."""
