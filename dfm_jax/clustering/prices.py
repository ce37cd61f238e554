"""Prices of clusters: Newton's method on the smoothed dual of the transport problem.

    min_λ  τ Σ_i log Σ_k exp((s_ik − λ_k w_i)/τ) + Σ_k c_k λ_k,   τ falling

As τ → 0 this is the dual, and a(i) = argmax_k (s_ik − λ_k w_i) has loads near c.
R rows, K clusters.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dfm_jax.paths import HIGHEST
from dfm_jax.types import Array, Float, typed

_STAGES = 8  # of the smoothing, each a quarter of the one before
_NEWTON_STEPS = 15  # at most, in each stage


@typed
def score_spread(scores: Float[Array, "R K"]) -> Float[Array, ""]:
    """The standard deviation of all scores; 1 where they are all equal."""
    spread = scores.std()
    return jnp.where(spread > 0, spread, 1)


@typed
def dual_prices(
    scores: Float[Array, "R K"], weights: Float[Array, " R"], targets: Float[Array, " K"]
) -> Float[Array, " K"]:
    """λ at the smallest τ, [K]."""
    # From nowhere, always: near prices, but not near enough for the smallest τ, lead Newton astray.
    taus = score_spread(scores) * 4.0 ** -jnp.arange(_STAGES, dtype=scores.dtype)
    start = jnp.zeros(targets.shape, scores.dtype)
    return jax.lax.scan(partial(_stage, scores, weights, targets), start, taus)[0]


def _stage(
    scores: Array, weights: Array, targets: Array, prices: Array, tau: Array
) -> tuple[Array, None]:
    close = 1e-3 * targets.mean()

    def slope_and_curvature(prices: Array) -> tuple[Array, Array]:
        probs = jax.nn.softmax((scores - weights[:, None] * prices[None]) / tau, axis=-1)
        weighted = weights[:, None] * probs
        moment = jnp.diag((weights[:, None] * weighted).sum(0))
        curvature = (moment - jnp.matmul(weighted.T, weighted, precision=HIGHEST)) / tau
        return targets - weighted.sum(0), curvature

    def go_on(state: Any) -> Array:
        _, steps, (slope, _), damping = state
        return (steps < _NEWTON_STEPS) & (jnp.abs(slope).max() > close) & (damping > 1e-4)

    def step(state: Any) -> Any:
        prices, steps, at, damping = state
        slope, curvature = at
        # A shift of all prices changes nothing: the curvature has that one null direction.
        ridge = 1e-5 * jnp.trace(curvature) / targets.size
        solid = curvature + ridge * jnp.eye(targets.size) + jnp.ones_like(curvature) * ridge
        direction = -jnp.linalg.solve(solid, slope)
        direction = direction - direction.mean()
        # Beyond a few τ the quadratic says nothing about the sum of softmaxes.
        direction = direction * jnp.minimum(1, 8 * tau / jnp.abs(direction).max())
        tried = prices + damping * direction
        there = slope_and_curvature(tried)
        better = jnp.abs(there[0]).sum() < jnp.abs(slope).sum()
        accepted = jax.tree.map(partial(jnp.where, better), (tried, there), (prices, at))
        damping = jnp.where(better, jnp.minimum(1, 2 * damping), damping / 4)
        return accepted[0], steps + 1, accepted[1], damping

    first = (prices, jnp.array(0), slope_and_curvature(prices), jnp.ones((), prices.dtype))
    return jax.lax.while_loop(go_on, step, first)[0], None
