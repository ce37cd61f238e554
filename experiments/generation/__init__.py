"""What fewer steps cost: exact distance on a toy, bounds on digits, sampler by sampler."""
