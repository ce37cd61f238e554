"""Drawing from networks and exact posteriors: each step from the law it states.   [S1–S7]

Left to right with a cache; by a schedule table (any order, blocks, masks); in continuous time. A
sampler takes its network as a static pair of pure functions, its parameters as an argument, and
one key for each sequence.
"""

from dfm_jax.sampling.autoregressive import (
    Sample,
    next_token_log_probs,
    sample_autoregressive,
    sample_next_token,
)

__all__ = [
    "Sample",
    "next_token_log_probs",
    "sample_autoregressive",
    "sample_next_token",
]
