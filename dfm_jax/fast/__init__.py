"""The same functions, arranged for speed: each equal to the clear form that defines it.

A clear form is one line of the mathematics; a fast one visits V-wide rows once, in blocks of about
2 MB that stay in the cache, or never at all. Which of them runs is the caller's explicit choice.
`experiments/benchmarks.py` measures what they are worth, and checks each pair in the same run.
"""

from dfm_jax.fast.draws import sample_categorical
from dfm_jax.fast.losses import cross_entropy, generalised_kl
from dfm_jax.fast.mixtures import mix_log_probs

__all__ = [
    "cross_entropy",
    "generalised_kl",
    "mix_log_probs",
    "sample_categorical",
]
