"""Checkpoints to an object store cost a training loop about what those to a disk cost it."""
