"""Gates from features of the context: laws that stay as they are along the sequence.   [D8]

As the prior of `bayes_gate` such a law is r_0 = P(k | c).   [D7]
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.paths import HIGHEST
from dfm_jax.types import Array, ArrayLike, Bool, Float, Number, Scalar, Weights, typed

__all__ = ["FittedTemperature", "centroid_gate", "fit_temperature"]

_GOLDEN = (5**0.5 - 1) / 2


@typed
def centroid_gate(
    features: Float[ArrayLike, " D"], centroids: Float[ArrayLike, "K D"], temperature: Number
) -> Weights:
    """A gate by direction: softmax of the cosine between the features and each centroid.

        ρ_k ∝ exp(⟨f, c_k⟩ / (‖f‖ ‖c_k‖ τ))

    τ → 0 is the nearest centroid (`hard_gate` of this), the paper's rule. Source: DAG, DDM.

    Raises:
        ValueError: if τ ≤ 0, or a vector has no direction: its length is 0, or none that the type
            can hold.
    """
    check_interval("temperature", temperature, 0.0, jnp.inf, ends="()")
    lengths = jnp.linalg.norm(centroids, axis=-1)
    length = jnp.linalg.norm(features)
    _check_direction("features", length)
    _check_direction("centroids", lengths)
    cosines = jnp.matmul(centroids, features, precision=HIGHEST) / (lengths * length)
    return jax.nn.softmax(cosines / temperature)


def _check_direction(name: str, length: Array) -> None:
    """In float32 squares reach from 1e-45 to 3e38: beyond, all cosines would be 0, or none."""
    rule = f"`{name}` must have a length in (0, inf), to have a direction"
    require((length > 0) & (length < jnp.inf), rule, length)


class FittedTemperature(NamedTuple):
    """The best temperature found, its loss, and whether it is an end of the interval searched.

    At an end the loss would fall further beyond it: towards a hard gate, or a uniform one.
    """

    temperature: Float[Array, ""]
    loss: Float[Array, ""]
    at_bound: Bool[Array, ""]


@typed
def fit_temperature(
    loss: Callable[[Array], Scalar],
    low: Number,
    high: Number,
    *,
    num_starts: int = 16,
    num_steps: int = 32,
) -> FittedTemperature:
    """argmin_{a ≤ τ ≤ b} L(τ): what one parameter of a gate is worth to the model that it decodes.

    `loss` is the caller's, of a temperature alone. Two that differ: the gate mixing token by token
    as it stands, and the gate as the prior of a Bayes gate,

        L(τ) = −Σ_t log Σ_k ρ_k(c; τ) p_k(x^t | x^{<t})   or   L(τ) = −log Σ_k ρ_k(c; τ) p_k(x)

    averaged over held-out sequences. Neither need be convex, so log τ is first tried at
    `num_starts` + 1 places at equal distances; then golden sections between the neighbours of the
    best, each by a factor 0.618. The result is the minimum of a loss that is unimodal there.
    Source: Kiefer, Proc. Am. Math. Soc. 4 (1953).

    Raises:
        ValueError: unless 0 < a < b < ∞, or if a count is below 1.
    """
    check_interval("low", low, 0.0, jnp.inf, ends="()")
    check_interval("high", high, 0.0, jnp.inf, ends="()")
    require(high > low, "`high` must be above `low`", high)
    check_count("num_starts", num_starts)
    check_count("num_steps", num_steps)
    dtype = jnp.result_type(low) if jnp.issubdtype(jnp.result_type(low), jnp.inexact) else float
    bounds = jnp.stack([jnp.asarray(low, dtype), jnp.asarray(high, dtype)])

    def at(log_temperature: Array) -> Array:
        return jnp.asarray(loss(jnp.exp(log_temperature)))

    def narrow(state: tuple[Array, Array, Array, Array], _: None):
        left, right, places, losses = state
        lower = losses[0] <= losses[1]
        left, right = jnp.where(lower, left, places[0]), jnp.where(lower, places[1], right)
        inner = jnp.where(lower, right - _GOLDEN * (right - left), left + _GOLDEN * (right - left))
        found = at(inner)
        places = jnp.where(lower, jnp.stack([inner, places[0]]), jnp.stack([places[1], inner]))
        losses = jnp.where(lower, jnp.stack([found, losses[0]]), jnp.stack([losses[1], found]))
        return (left, right, places, losses), None

    starts = jnp.linspace(jnp.log(bounds[0]), jnp.log(bounds[1]), num_starts + 1)
    tried = jax.lax.map(at, starts)
    best = jnp.argmin(tried)
    left, right = starts[jnp.maximum(best - 1, 0)], starts[jnp.minimum(best + 1, num_starts)]
    places = jnp.stack([right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)])
    state = (left, right, places, jax.lax.map(at, places))
    _, _, places, losses = jax.lax.scan(narrow, state, None, length=num_steps)[0]
    # Golden sections come near an end and never reach it, so both are compared by name.
    losses = jnp.concatenate([losses, tried[:1], tried[-1:], tried[best, None]])
    temperatures = jnp.concatenate([jnp.exp(places), bounds, jnp.exp(starts[best, None])])
    chosen = jnp.argmin(losses)
    return FittedTemperature(temperatures[chosen], losses[chosen], (chosen == 2) | (chosen == 3))
