"""Laws over experts cut down: top-k, nucleus, hard. All renormalise.   [B6, B7]"""

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_count, check_interval, check_law
from dfm_jax.types import Array, Number, Weights, typed

__all__ = ["hard_gate", "nucleus_gate", "top_k_gate"]


@typed
def top_k_gate(weights: Weights, count: int) -> Weights:
    """Keep the `count` largest weights and renormalise; ties go to the lower index.   [B6, B7]

    An approximation when count < K: it costs at most 1 − M in total variation, M the mass kept.

    Raises:
        ValueError: unless 1 ≤ count ≤ K, or if the weights are no law.
    """
    weights = jnp.asarray(weights)
    check_count("count", count, at_most=weights.shape[0])
    check_law("weights", weights)
    _, kept = jax.lax.top_k(weights, count)
    return _renormalise(jnp.zeros_like(weights).at[kept].set(weights[kept]))


@typed
def nucleus_gate(weights: Weights, mass: Number) -> Weights:
    """Keep the fewest largest weights whose sum reaches `mass` and renormalise.   [B6]

    It jumps where a sum is `mass`; between the jumps its derivative in `mass` is 0.

    Raises:
        ValueError: unless 0 < mass ≤ 1, or if the weights are no law.
    """
    weights = jnp.asarray(weights)
    check_interval("mass", mass, 0.0, 1.0, ends="(]")
    check_law("weights", weights)
    order = jnp.argsort(-weights, stable=True)
    # Sums of whole prefixes: `cumsum − weights` rounds below a mass that was reached exactly.
    before = jnp.pad(jnp.cumsum(weights[order])[:-1], (1, 0))
    kept = jnp.zeros_like(weights, bool).at[order].set(before < mass)
    return _renormalise(jnp.where(kept, weights, 0.0))


@typed
def hard_gate(weights: Weights) -> Weights:
    """All the weight on the largest; ties go to the lower index. Top-1 routing.   [B7, D8]"""
    return top_k_gate(weights, 1)


def _renormalise(weights: Array) -> Array:
    return weights / jnp.sum(weights)
