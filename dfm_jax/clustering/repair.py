"""Sizes made exact: the rows that are too many move along shortest paths over the clusters.

At prices that are optimal for the sizes they give, a row of k that goes to l loses some d_kl ≥ 0. A
shortest path from a cluster with too many rows to one with too few, one row moved along each edge,
and prices moved by the distances, keep the assignment optimal for the sizes it then has.

Only rows that lose little by moving take part; the others are looked at once more at the end, and
if one of them would gain at the new prices, more rows take part. R rows, K clusters.
"""

import jax
import jax.numpy as jnp

from dfm_jax.types import Array, Float, Int, typed

_PARTAKING = 2**13  # rows, at first
_MORE = 8  # times as many, if they were too few


@typed
def with_sizes(
    scores: Float[Array, "R K"],
    labels: Int[Array, " R"],
    prices: Float[Array, " K"],
    sizes: Int[Array, " K"],
    tie: Float[Array, ""],
) -> tuple[Int[Array, " R"], Float[Array, " K"]]:
    """Optimal labels of these sizes, and their prices; gains that differ by `tie` are tied."""
    excess = _counts(labels, sizes.size) - sizes
    if not jnp.any(excess):
        return labels, prices
    least_loss = -_largest_gains(scores, labels, prices)
    num_rows, count = labels.size, _PARTAKING
    while True:
        rows = jnp.argsort(least_loss)[:count] if count < num_rows else jnp.arange(num_rows)
        moved, found_prices, remaining = _augmented(scores[rows], labels[rows], prices, excess, tie)
        found = labels.at[rows].set(moved)
        if count >= num_rows:
            return found, found_prices
        gains = _largest_gains(scores, found, found_prices).at[rows].set(0)
        if not jnp.any(remaining) and gains.max() <= tie:
            return found, found_prices
        count *= _MORE


def _counts(labels: Array, num_clusters: int) -> Array:
    return jnp.sum(labels[:, None] == jnp.arange(num_clusters)[None], axis=0)


def _gains(priced: Array, labels: Array) -> Array:
    """What each row gains by going to each cluster, at these prices: ≤ 0 up to rounding. [R, K]"""
    own = jnp.take_along_axis(priced, labels[:, None], axis=1)
    return priced - own


@jax.jit
def _largest_gains(scores: Array, labels: Array, prices: Array) -> Array:
    """The most that each row gains by leaving its cluster. [R]"""
    mine = labels[:, None] == jnp.arange(prices.size)[None]
    gains = _gains(scores - prices[None], labels)
    return jnp.where(mine, -jnp.inf, gains).max(axis=1)


@jax.jit
def _augmented(
    scores: Array, labels: Array, prices: Array, excess: Array, tie: Array
) -> tuple[Array, Array, Array]:
    """Labels and prices after the augmentations that these rows allow; the excess left."""
    before_any = _counts(labels, excess.size) - excess

    def left(labels: Array) -> Array:
        return _counts(labels, excess.size) - before_any

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        labels, _, stuck = state
        return jnp.any(left(labels) != 0) & ~stuck

    def augment(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        labels, prices, _ = state
        excess = left(labels)
        gains = _gains(scores - prices[None], labels)
        best = _best_gains(gains, labels, excess.size)
        distance, before = _shortest_paths(jnp.maximum(-best, 0), excess > 0)
        reachable = jnp.where(excess < 0, distance, jnp.inf)
        target = jnp.argmin(reachable)
        stuck = reachable[target] == jnp.inf
        moved = _move_along(labels, gains, best, before, excess, target, tie)
        cheaper = prices - jnp.minimum(distance, reachable[target])
        return jnp.where(stuck, labels, moved), jnp.where(stuck, prices, cheaper), stuck

    labels, prices, _ = jax.lax.while_loop(unfinished, augment, (labels, prices, jnp.array(False)))
    return labels, prices, left(labels)


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
