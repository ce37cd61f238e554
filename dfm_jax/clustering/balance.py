"""Rows dealt to clusters of given sizes at the largest total score: a transport problem.

    max_a Σ_i s_{i,a(i)}   subject to   |{i : a(i) = k}| = c_k

Its dual has one price per cluster, and a(i) = argmax_k (s_ik − λ_k) is optimal for whatever sizes
it gives. So Newton's method on the smoothed dual first brings the sizes close; then the few rows
that are too many in one cluster move along shortest paths over the clusters, and every step stays
optimal. With weights (tokens per row) the loads are balanced, not the sizes. R rows, K clusters.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_interval, require
from dfm_jax.paths import HIGHEST
from dfm_jax.types import Array, ArrayLike, Float, Int, typed

_STAGES = 8  # of the smoothing, each a quarter of the one before
_NEWTON_STEPS = 15  # at most, in each stage
_TIE = 1e-6  # of the spread of the scores: gains this close are equal


class Assignment(NamedTuple):
    """Labels, and the prices λ that give them by `priced_labels`, but for ties and `num_moved`."""

    labels: Int[Array, " R"]
    prices: Float[Array, " K"]
    num_moved: Int[Array, ""]  # rows that Newton's prices alone would put elsewhere


def capacities(num_rows: int, num_clusters: int) -> tuple[int, ...]:
    """Sizes that sum to R: ⌈R/K⌉ for the first R mod K clusters, ⌊R/K⌋ for the others."""
    small, larger = divmod(num_rows, num_clusters)
    return tuple(small + (k < larger) for k in range(num_clusters))


@typed
def priced_labels(
    scores: Float[ArrayLike, "R K"],
    prices: Float[ArrayLike, " K"],
    weights: Float[ArrayLike, " R"] | None = None,
) -> Int[Array, " R"]:
    """argmax_k (s_ik − λ_k w_i), w = 1 unless given; ties go to the lower index."""
    prices = jnp.asarray(prices)
    charged = prices[None] if weights is None else jnp.asarray(weights)[:, None] * prices[None]
    return jnp.argmax(scores - charged, axis=-1)


@typed
def balanced_assignment(scores: Float[ArrayLike, "R K"], sizes: Int[ArrayLike, " K"]) -> Assignment:
    """The assignment of largest Σ_i s_{i,a(i)} in which cluster k has exactly c_k rows.

    Optimal up to the rounding of the scores: rows whose gains differ by less than 1e-6 of the
    scores' spread count as tied.

    Args:
        scores: s_ik, larger is nearer.
        sizes: c_k; they sum to R.

    Raises:
        ValueError: if the sizes are negative or do not sum to R, or a score is not finite.
    """
    scores, sizes = jnp.asarray(scores), jnp.asarray(sizes)
    check_interval("sizes", sizes, 0, scores.shape[0])
    rule = f"`sizes` must sum to the {scores.shape[0]} rows"
    require(sizes.sum() == scores.shape[0], rule, sizes.sum())
    require(jnp.isfinite(scores).all(), "`scores` must be finite; their sum", scores.sum())
    return _balanced(scores, sizes)


@typed
def weighted_assignment(
    scores: Float[ArrayLike, "R K"], weights: Float[ArrayLike, " R"]
) -> Assignment:
    """A large Σ_i s_{i,a(i)} in which no cluster's load exceeds the mean by more than one row.

        max_k Σ_{a(i)=k} w_i − Σ_i w_i / K ≤ max_i w_i

    The prices are those of the transport problem in which rows may be cut; what they leave
    unbalanced is moved row by row, the cheapest per unit of weight first.

    Raises:
        ValueError: if a weight is negative or not finite, all are 0, or a score is not finite.
    """
    scores, weights = jnp.asarray(scores), jnp.asarray(weights)
    check_interval("weights", weights, 0.0, jnp.inf, ends="[)")
    require(weights.sum() > 0, "`weights` must not all be 0; their sum", weights.sum())
    require(jnp.isfinite(scores).all(), "`scores` must be finite; their sum", scores.sum())
    return _weighted(scores, weights.astype(scores.dtype))


@jax.jit
def _balanced(scores: Array, sizes: Array) -> Assignment:
    ones = jnp.ones(scores.shape[0], scores.dtype)
    prices = _newton(scores, ones, sizes.astype(scores.dtype))
    first = jnp.argmax(scores - prices[None], axis=-1)
    tie = _TIE * _spread(scores)

    def unbalanced(state: tuple[Array, Array]) -> Array:
        return jnp.any(_counts(state[0], sizes.size) != sizes)

    def augment(state: tuple[Array, Array]) -> tuple[Array, Array]:
        labels, prices = state
        excess = _counts(labels, sizes.size) - sizes
        gains = _gains(scores - prices[None], labels)
        best = _best_gains(gains, labels, sizes.size)
        distance, before = _shortest_paths(jnp.maximum(-best, 0), excess > 0)
        reachable = jnp.where(excess < 0, distance, jnp.inf)
        target = jnp.argmin(reachable)
        labels = _move_along(labels, gains, best, before, excess, target, tie)
        return labels, prices - jnp.minimum(distance, reachable[target])

    labels, prices = jax.lax.while_loop(unbalanced, augment, (first, prices))
    return Assignment(labels, prices - prices.mean(), jnp.sum(labels != first))


@jax.jit
def _weighted(scores: Array, weights: Array) -> Assignment:
    num_clusters = scores.shape[1]
    mean, heaviest = weights.sum() / num_clusters, weights.max()
    # In units of the mean weight, prices are of the size of the scores.
    unit = weights.mean()
    scaled = weights / unit
    targets = jnp.full(num_clusters, mean / unit, scores.dtype)
    prices = _newton(scores, scaled, targets)
    first = jnp.argmax(scores - scaled[:, None] * prices[None], axis=-1)

    def unbalanced(labels: Array) -> Array:
        return _loads(labels, weights, num_clusters).max() > mean + heaviest

    def move(labels: Array) -> Array:
        loads = _loads(labels, weights, num_clusters)
        over, under = jnp.argmax(loads), jnp.argmin(loads)
        loss = (scores[:, over] - scores[:, under]) / jnp.where(weights > 0, weights, 1)
        movable = (labels == over) & (weights > 0)
        return labels.at[jnp.argmin(jnp.where(movable, loss, jnp.inf))].set(under)

    labels = jax.lax.while_loop(unbalanced, move, first)
    return Assignment(labels, (prices - prices.mean()) / unit, jnp.sum(labels != first))


# ── prices: Newton's method on the smoothed dual ────────────────────────────────────────────────


def _newton(scores: Array, weights: Array, targets: Array) -> Array:
    """λ that minimise τ Σ_i log Σ_k exp((s_ik − λ_k w_i)/τ) + Σ_k c_k λ_k, for falling τ."""

    def slope_and_curvature(prices: Array, tau: Array) -> tuple[Array, Array]:
        probs = jax.nn.softmax((scores - weights[:, None] * prices[None]) / tau, axis=-1)
        weighted = weights[:, None] * probs
        mass = weighted.sum(0)
        moment = jnp.diag((weights[:, None] * weighted).sum(0))
        curvature = (moment - jnp.matmul(weighted.T, weighted, precision=HIGHEST)) / tau
        return targets - mass, curvature

    def stage(prices: Array, tau: Array) -> tuple[Array, None]:
        close = 1e-3 * targets.mean()

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
            there = slope_and_curvature(tried, tau)
            better = jnp.abs(there[0]).sum() < jnp.abs(slope).sum()
            accepted = jax.tree.map(partial(jnp.where, better), (tried, there), (prices, at))
            damping = jnp.where(better, jnp.minimum(1, 2 * damping), damping / 4)
            return accepted[0], steps + 1, accepted[1], damping

        first = (prices, jnp.array(0), slope_and_curvature(prices, tau), jnp.ones((), prices.dtype))
        return jax.lax.while_loop(go_on, step, first)[0], None

    taus = _spread(scores) * 4.0 ** -jnp.arange(_STAGES, dtype=scores.dtype)
    return jax.lax.scan(stage, jnp.zeros(targets.shape, scores.dtype), taus)[0]


def _spread(scores: Array) -> Array:
    spread = scores.std()
    return jnp.where(spread > 0, spread, 1)


# ── repair: shortest paths over the clusters ────────────────────────────────────────────────────


def _counts(labels: Array, num_clusters: int) -> Array:
    return jnp.sum(labels[:, None] == jnp.arange(num_clusters)[None], axis=0)


def _loads(labels: Array, weights: Array, num_clusters: int) -> Array:
    mine = labels[:, None] == jnp.arange(num_clusters)[None]
    return jnp.sum(jnp.where(mine, weights[:, None], 0), axis=0)


def _gains(priced: Array, labels: Array) -> Array:
    """What each row gains by going to each cluster, at these prices: ≤ 0 up to rounding. [R, K]"""
    own = jnp.take_along_axis(priced, labels[:, None], axis=1)
    return priced - own


def _best_gains(gains: Array, labels: Array, num_clusters: int) -> Array:
    """The best that a row of cluster k gains by going to l, [K, K]; −∞ if k is empty, or is l."""

    def leaving(k: Array) -> Array:
        return jnp.where((labels == k)[:, None], gains, -jnp.inf).max(0).at[k].set(-jnp.inf)

    return jax.lax.map(leaving, jnp.arange(num_clusters))


def _shortest_paths(costs: Array, sources: Array) -> tuple[Array, Array]:
    """Distance of each cluster from the nearest source, and the cluster before it; Bellman–Ford."""

    def relax(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        distance, before = state
        through = distance[:, None] + costs
        nearest = through.min(0)
        closer = nearest < distance
        return jnp.where(closer, nearest, distance), jnp.where(closer, through.argmin(0), before)

    start = jnp.where(sources, 0.0, jnp.inf).astype(costs.dtype)
    return jax.lax.fori_loop(0, costs.shape[0], relax, (start, jnp.full(sources.shape, -1)))


def _move_along(
    labels: Array,
    gains: Array,
    best: Array,
    before: Array,
    excess: Array,
    target: Array,
    tie: Array,
) -> Array:
    """Move rows along the path to `target`: one along each edge, or as many as are tied there."""

    def tied(k: Array, to: Array) -> Array:
        return (labels == k) & (gains[:, to] >= best[k, to] - tie)

    def narrow(state: tuple[Array, Array]) -> tuple[Array, Array]:
        to, count = state
        return before[to], jnp.minimum(count, tied(before[to], to).sum())

    def inside(state: tuple[Array, Array]) -> Array:
        return before[state[0]] >= 0

    source, count = jax.lax.while_loop(inside, narrow, (target, -excess[target]))
    count = jnp.minimum(count, excess[source])

    def move(state: tuple[Array, Array]) -> tuple[Array, Array]:
        to, moved = state
        rows = tied(before[to], to)
        return before[to], jnp.where(rows & (jnp.cumsum(rows) <= count), to, moved)

    return jax.lax.while_loop(inside, move, (target, labels))[1]
