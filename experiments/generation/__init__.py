"""The cost of fewer steps: exact distance on a toy, bounds on digits, for each sampler."""
