"""Assign rows to clusters of given sizes with the largest total score: a transport problem.

    max_a Σ_i s_{i,a(i)}   subject to   |{i : a(i) = k}| = c_k

Its dual has one price λ_k per cluster, and a(i) = argmax_k (s_ik − λ_k) is optimal for the sizes
that it gives. So Newton's method on the smoothed dual first brings these sizes close to c. The few
rows that are still too many in a cluster then move along shortest paths over the clusters, and the
labels stay optimal after every move. With weights (tokens per row) the loads are balanced instead
of the sizes. R is the number of rows, K the number of clusters.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.boundary import widened
from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.paths import HIGHEST
from dfm_jax.types import Array, ArrayLike, Float, Int, typed

_STAGES = 8  # of the smoothing, each a quarter of the one before
_LAST_STAGES = 5  # of them, from prices that are near
_SAMPLED = 2**13  # rows of the sample,
_SAMPLE = 4  # if there are at least so many times as many
_NEWTON_STEPS = 15  # at most, in each stage
_CLOSE = 1e-3  # of the mean load: a difference from the targets at which a stage ends


@typed
def score_scale(scores: Float[Array, "R K"]) -> Float[Array, ""]:
    """The standard deviation of all scores; 1 if they are all equal."""
    scale = scores.std()
    return jnp.where(scale > 0, scale, 1)


@typed
def dual_prices(
    scores: Float[Array, "R K"],
    weights: Float[Array, " R"],
    targets: Float[Array, " K"],
) -> Float[Array, " K"]:
    """The prices λ at the smallest τ, [K], by Newton's method on the smoothed transport dual.

        min_λ  τ Σ_i log Σ_k exp((s_ik − λ_k w_i)/τ) + Σ_k c_k λ_k,   τ falling

    As τ → 0 this is the dual, and a(i) = argmax_k (s_ik − λ_k w_i) has loads near c.

    Of many rows, a sample leads near the prices, from which only the last values of τ follow. If
    these do not bring the loads close to c, all of them follow, from λ = 0.
    """
    taus = score_scale(scores) * 4.0 ** -jnp.arange(_STAGES, dtype=scores.dtype)

    def descend(rows: slice, prices: Array, taus: Array) -> tuple[Array, Array]:
        # Rows lie along the last axis: sums over a few clusters are slow if they do.
        own, by_cluster = weights[rows], scores[rows].T
        share = targets * (own.sum() / targets.sum())
        prices, slopes = jax.lax.scan(partial(_stage, by_cluster, own, share), prices, taus)
        return prices, slopes[-1] / share.mean()

    nowhere = jnp.zeros(targets.shape, scores.dtype)
    anew = lambda: descend(slice(None), nowhere, taus)[0]  # noqa: E731
    if len(scores) < _SAMPLE * _SAMPLED:
        return anew()
    near, _ = descend(slice(None, None, len(scores) // _SAMPLED), nowhere, taus)
    # Near prices, but not near enough for the smallest τ, can lead Newton astray.
    prices, slope = descend(slice(None), near, taus[-_LAST_STAGES:])
    return jax.lax.cond(slope <= _CLOSE, lambda: prices, anew)


def _stage(
    scores: Array, weights: Array, targets: Array, prices: Array, tau: Array
) -> tuple[Array, Array]:
    """Newton's steps at one τ; the scores are [K, R]. Prices, and the largest |slope| there."""
    close = _CLOSE * targets.mean()

    def slope_and_curvature(prices: Array) -> tuple[Array, Array]:
        probs = jax.nn.softmax((scores - prices[:, None] * weights[None]) / tau, axis=0)
        weighted = probs * weights[None]
        moment = jnp.diag((weighted * weights[None]).sum(1))
        curvature = (moment - jnp.matmul(weighted, weighted.T, precision=HIGHEST)) / tau
        return targets - weighted.sum(1), curvature

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
    prices, _, (slope, _), _ = jax.lax.while_loop(go_on, step, first)
    return prices, jnp.abs(slope).max()


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
    """Optimal labels of these sizes, and their prices; gains that differ by `tie` or less are tied.

    If the prices are optimal for the sizes that they give, a row that moves from cluster k to l
    loses some d_kl ≥ 0. One row moves along each edge of a shortest path, from a cluster with too
    many rows to one with too few, and the prices change by the distances. The assignment then stays
    optimal for its new sizes.

    Only rows that would lose little take part. The others are checked once at the end; if one of
    them would gain at the new prices, more rows take part.
    """
    excess = _counts(labels, sizes.size) - sizes
    if not jnp.any(excess):
        return labels, prices
    least_loss = -_largest_gains(scores, labels, prices)
    num_rows, count = labels.size, _PARTAKING
    while True:
        rows = jax.lax.top_k(-least_loss, min(count, num_rows))[1]
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
    """Each row's gain from moving to each cluster at these prices, ≤ 0 up to rounding. [R, K]"""
    own = jnp.take_along_axis(priced, labels[:, None], axis=1)
    return priced - own


@jax.jit
def _largest_gains(scores: Array, labels: Array, prices: Array) -> Array:
    """The largest gain of each row from leaving its cluster. [R]"""
    mine = labels[:, None] == jnp.arange(prices.size)[None]
    gains = _gains(scores - prices[None], labels)
    return jnp.where(mine, -jnp.inf, gains).max(axis=1)


@jax.jit
def _augmented(
    scores: Array, labels: Array, prices: Array, excess: Array, tie: Array
) -> tuple[Array, Array, Array]:
    """Labels and prices after the moves that these rows allow, and the excess that is left."""
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
    """The best gain of a row of cluster k that moves to l, [K, K]; −∞ if k is empty or k = l."""

    def leaving(k: Array) -> Array:
        return jnp.where((labels == k)[:, None], gains, -jnp.inf).max(0).at[k].set(-jnp.inf)

    return jax.lax.map(leaving, jnp.arange(num_clusters))


def _shortest_paths(costs: Array, sources: Array) -> tuple[Array, Array]:
    """Each cluster's distance from the nearest source, and the cluster before it; Bellman–Ford."""

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
    """Move rows along the path to `target`: one per edge, or as many as are tied there."""

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


_TIE = 1e-6  # of the spread of the scores: gains this close are equal


class Assignment(NamedTuple):
    """Labels, and prices λ that give them by `priced_labels`, except at ties and moved rows."""

    labels: Int[Array, " R"]
    prices: Float[Array, " K"]
    num_moved: Int[Array, ""]  # rows that Newton's prices alone would put elsewhere


def check_balance(balance: str, weights: Any) -> None:
    """Check that `balance` is known, and that weights are given if and only if it is "weights"."""
    known = ("none", "rows", "weights")
    require(balance in known, f"`balance` must be one of {known}", balance)
    given = (weights is not None) == (balance == "weights")
    rule = '`weights` must be given if `balance` is "weights", and only then'
    require(given, rule, balance, name="balance")


def capacities(num_rows: int, num_clusters: int) -> tuple[int, ...]:
    """Sizes that sum to R: ⌈R/K⌉ for the first R mod K clusters, ⌊R/K⌋ for the others.

    Raises:
        ValueError: if R < 0 or K < 1.
    """
    check_count("num_rows", num_rows, at_least=0)
    check_count("num_clusters", num_clusters)
    small, larger = divmod(num_rows, num_clusters)
    return tuple(small + (k < larger) for k in range(num_clusters))


@typed
def near_sizes(labels: Int[Array, " R"], num_clusters: int) -> Int[Array, " K"]:
    """Sizes ⌊R/K⌋ or ⌈R/K⌉; if K does not divide R, the largest clusters get the larger sizes."""
    counts = jnp.bincount(labels, length=num_clusters)
    sizes = jnp.array(capacities(labels.size, num_clusters))
    return jnp.zeros_like(sizes).at[jnp.argsort(-counts, stable=True)].set(sizes)


@typed
def priced_labels(
    scores: Float[ArrayLike, "R K"],
    prices: Float[ArrayLike, " K"],
    weights: Float[ArrayLike, " R"] | None = None,
) -> Int[Array, " R"]:
    """argmax_k (s_ik − λ_k w_i), with w = 1 unless it is given; ties go to the lower index.

    Raises:
        ValueError: if a score is NaN, or a price or weight is not finite, because it would always
            win; if a weight is negative.
    """
    require(jnp.isfinite(prices), "`prices` must be finite", prices)
    if weights is not None:
        check_interval("weights", weights, 0.0, jnp.inf, ends="[)")
    nan = jnp.isnan(scores)
    require(~nan, "`scores` must hold no NaN", scores)
    prices = jnp.asarray(prices)
    charged = prices[None] if weights is None else jnp.asarray(weights)[:, None] * prices[None]
    return jnp.argmax(scores - charged, axis=-1)


@typed
def balanced_assignment(
    scores: Float[ArrayLike, "R K"],
    sizes: Int[ArrayLike, " K"],
) -> Assignment:
    """The assignment of largest Σ_i s_{i,a(i)} in which cluster k has exactly c_k rows.

    It is optimal up to rounding of the scores: rows whose gains differ by less than 1e-6 standard
    deviations of the scores count as tied.

    Args:
        scores: s_ik; a larger score means nearer.
        sizes: c_k, which sum to R.

    Raises:
        ValueError: if the sizes are negative or do not sum to R, or a score is not finite.
    """
    scores, sizes = widened(scores), jnp.asarray(sizes)
    check_interval("sizes", sizes, 0, scores.shape[0])
    rule = f"`sizes` must sum to {scores.shape[0]}, the number of rows"
    require(sizes.sum() == scores.shape[0], rule, sizes.sum(), name="sizes.sum()")
    require(jnp.isfinite(scores), "`scores` must be finite", scores)
    first, prices = _priced(scores, sizes)
    labels, prices = with_sizes(scores, first, prices, sizes, _TIE * score_scale(scores))
    return Assignment(labels, prices - prices.mean(), jnp.sum(labels != first))


@typed
def weighted_assignment(
    scores: Float[ArrayLike, "R K"],
    weights: Float[ArrayLike, " R"],
) -> Assignment:
    """An assignment of large Σ_i s_{i,a(i)} with loads at most one row above their mean.

        max_k Σ_{a(i)=k} w_i − Σ_i w_i / K ≤ max_i w_i

    The prices are those of the transport problem in which a row may be split. Rows are then moved
    one by one until the loads are balanced, the cheapest per unit of weight first.

    Args:
        scores: s_ik; a larger score means nearer.
        weights: w_i; the load of a cluster is the sum of its rows' weights.

    Raises:
        ValueError: if a weight is negative or not finite, all are 0, or a score is not finite.
    """
    scores, weights = widened(scores), widened(weights)
    check_interval("weights", weights, 0.0, jnp.inf, ends="[)")
    require(weights.sum() > 0, "`weights` must not all be 0", weights.sum(), name="weights.sum()")
    require(jnp.isfinite(scores), "`scores` must be finite", scores)
    return _weighted(scores, weights.astype(scores.dtype))


@typed
def assignment(
    scores: Float[Array, "R K"],
    balance: str,
    sizes: Int[Array, " K"],
    weights: Float[ArrayLike, " R"] | None = None,
) -> Assignment:
    """Assign rows by `balance`: to given sizes, to loads near the mean, or to the best score."""
    if balance == "rows":
        return balanced_assignment(scores, sizes)
    if balance == "weights":
        return weighted_assignment(scores, weights)
    prices = jnp.zeros(scores.shape[1], scores.dtype)
    return Assignment(priced_labels(scores, prices), prices, jnp.array(0))


@jax.jit
def _priced(scores: Array, sizes: Array) -> tuple[Array, Array]:
    """Labels from Newton's prices, with sizes close to `sizes`, and these prices."""
    ones = jnp.ones(scores.shape[0], scores.dtype)
    prices = dual_prices(scores, ones, sizes.astype(scores.dtype))
    return jnp.argmax(scores - prices[None], axis=-1), prices


@jax.jit
def _weighted(scores: Array, weights: Array) -> Assignment:
    num_clusters = scores.shape[1]
    mean, heaviest = weights.sum() / num_clusters, weights.max()
    # In units of the mean weight, prices are of the size of the scores.
    unit = weights.mean()
    scaled = weights / unit
    targets = jnp.full(num_clusters, mean / unit, scores.dtype)
    prices = dual_prices(scores, scaled, targets)
    first = jnp.argmax(scores - scaled[:, None] * prices[None], axis=-1)
    mine = first[:, None] == jnp.arange(num_clusters)[None]
    loads = jnp.sum(jnp.where(mine, weights[:, None], 0), axis=0)

    def unbalanced(state: tuple[Array, Array]) -> Array:
        return state[1].max() > mean + heaviest

    def move(state: tuple[Array, Array]) -> tuple[Array, Array]:
        labels, loads = state
        over, under = jnp.argmax(loads), jnp.argmin(loads)
        loss = (scores[:, over] - scores[:, under]) / jnp.where(weights > 0, weights, 1)
        movable = (labels == over) & (weights > 0)
        row = jnp.argmin(jnp.where(movable, loss, jnp.inf))
        shifted = loads.at[over].add(-weights[row]).at[under].add(weights[row])
        return labels.at[row].set(under), shifted

    labels, _ = jax.lax.while_loop(unbalanced, move, (first, loads))
    return Assignment(labels, (prices - prices.mean()) / unit, jnp.sum(labels != first))
