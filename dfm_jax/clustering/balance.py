"""Rows dealt to clusters of given sizes at the largest total score: a transport problem.

    max_a Σ_i s_{i,a(i)}   subject to   |{i : a(i) = k}| = c_k

Its dual has one price per cluster, and a(i) = argmax_k (s_ik − λ_k) is optimal for whatever sizes
it gives. So Newton's method on the smoothed dual first brings the sizes close; then the few rows
that are too many in one cluster move along shortest paths over the clusters, and every step stays
optimal. With weights (tokens per row) the loads are balanced, not the sizes. R rows, K clusters.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.clustering.directions import widened
from dfm_jax.clustering.prices import dual_prices, score_spread
from dfm_jax.clustering.repair import with_sizes
from dfm_jax.types import Array, ArrayLike, Float, Int, typed

_TIE = 1e-6  # of the spread of the scores: gains this close are equal


class Assignment(NamedTuple):
    """Labels, and the prices λ that give them by `priced_labels`, but for ties and `num_moved`."""

    labels: Int[Array, " R"]
    prices: Float[Array, " K"]
    num_moved: Int[Array, ""]  # rows that Newton's prices alone would put elsewhere


def check_balance(balance: str, weights: Any) -> None:
    """One of the ways to balance; weights go with "weights", and only with it."""
    known = ("none", "rows", "weights")
    require(balance in known, f"`balance` must be one of {known}", balance)
    given = (weights is not None) == (balance == "weights")
    require(given, '`weights` go with `balance="weights"`, and only with it', balance)


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
    """⌊R/K⌋ or ⌈R/K⌉; where K does not divide R, the larger go to the clusters that are larger."""
    counts = jnp.bincount(labels, length=num_clusters)
    sizes = jnp.array(capacities(labels.size, num_clusters))
    return jnp.zeros_like(sizes).at[jnp.argsort(-counts, stable=True)].set(sizes)


@typed
def priced_labels(
    scores: Float[ArrayLike, "R K"],
    prices: Float[ArrayLike, " K"],
    weights: Float[ArrayLike, " R"] | None = None,
) -> Int[Array, " R"]:
    """argmax_k (s_ik − λ_k w_i), w = 1 unless given; ties go to the lower index.

    Raises:
        ValueError: if a score is NaN, or a price or a weight is not finite: it would win; if a
            weight is negative.
    """
    require(jnp.isfinite(prices), "`prices` must be finite", prices)
    if weights is not None:
        check_interval("weights", weights, 0.0, jnp.inf, ends="[)")
    nan = jnp.isnan(scores)
    require(~nan, "`scores` must hold no NaN; their number", nan.sum())
    prices = jnp.asarray(prices)
    charged = prices[None] if weights is None else jnp.asarray(weights)[:, None] * prices[None]
    return jnp.argmax(scores - charged, axis=-1)


@typed
def balanced_assignment(
    scores: Float[ArrayLike, "R K"],
    sizes: Int[ArrayLike, " K"],
) -> Assignment:
    """The assignment of largest Σ_i s_{i,a(i)} in which cluster k has exactly c_k rows.

    Optimal up to the rounding of the scores: rows whose gains differ by less than 1e-6 of the
    scores' spread count as tied.

    Args:
        scores: s_ik, larger is nearer.
        sizes: c_k; they sum to R.

    Raises:
        ValueError: if the sizes are negative or do not sum to R, or a score is not finite.
    """
    scores, sizes = widened(scores), jnp.asarray(sizes)
    check_interval("sizes", sizes, 0, scores.shape[0])
    rule = f"`sizes` must sum to the {scores.shape[0]} rows"
    require(sizes.sum() == scores.shape[0], rule, sizes.sum())
    require(jnp.isfinite(scores).all(), "`scores` must be finite; their sum", scores.sum())
    first, prices = _priced(scores, sizes)
    labels, prices = with_sizes(scores, first, prices, sizes, _TIE * score_spread(scores))
    return Assignment(labels, prices - prices.mean(), jnp.sum(labels != first))


@typed
def weighted_assignment(
    scores: Float[ArrayLike, "R K"],
    weights: Float[ArrayLike, " R"],
) -> Assignment:
    """A large Σ_i s_{i,a(i)} in which no cluster's load exceeds the mean by more than one row.

        max_k Σ_{a(i)=k} w_i − Σ_i w_i / K ≤ max_i w_i

    The prices are those of the transport problem in which rows may be cut; what they leave
    unbalanced is moved row by row, the cheapest per unit of weight first.

    Args:
        scores: s_ik, larger is nearer.
        weights: w_i; a cluster's load is the sum of its rows'.

    Raises:
        ValueError: if a weight is negative or not finite, all are 0, or a score is not finite.
    """
    scores, weights = widened(scores), widened(weights)
    check_interval("weights", weights, 0.0, jnp.inf, ends="[)")
    require(weights.sum() > 0, "`weights` must not all be 0; their sum", weights.sum())
    require(jnp.isfinite(scores).all(), "`scores` must be finite; their sum", scores.sum())
    return _weighted(scores, weights.astype(scores.dtype))


@typed
def assignment(
    scores: Float[Array, "R K"],
    balance: str,
    sizes: Int[Array, " K"],
    weights: Float[ArrayLike, " R"] | None = None,
) -> Assignment:
    """By `balance`: of these sizes, of loads near their mean, or each row to its largest score."""
    if balance == "rows":
        return balanced_assignment(scores, sizes)
    if balance == "weights":
        return weighted_assignment(scores, weights)
    prices = jnp.zeros(scores.shape[1], scores.dtype)
    return Assignment(priced_labels(scores, prices), prices, jnp.array(0))


@jax.jit
def _priced(scores: Array, sizes: Array) -> tuple[Array, Array]:
    """Labels by Newton's prices, and these: sizes come close."""
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
