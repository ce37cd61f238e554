"""Rows as directions, without a copy of them: scores, centroids, and a random start.

f_i = (x_i − μ)/‖x_i − μ‖ is never computed for all rows at once: 1/‖x_i − μ‖ multiplies the
products with x instead.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.boundary import widened
from dfm_jax.checks import require
from dfm_jax.paths import HIGHEST
from dfm_jax.types import Array, ArrayLike, Float, Int, Key, UInt32, typed

_START_ROWS = 2**13  # among which the first centroids are drawn,
_START_ROWS_EACH = 8  # or so many for each cluster, if that is more
FEW = 64  # clusters up to which a pass keeps all its scores
_BLOCK = 2**13  # rows at a time beyond
_HASHED = 2**9  # rows at a time


class Clusters(NamedTuple):
    """Centroids and prices; a row goes to the cluster of the largest ⟨c_k, f⟩ − λ_k w."""

    centroids: Float[Array, "K D"]  # each of length 1
    prices: Float[Array, " K"]  # λ, 0 without balance
    mean: Float[Array, " D"]  # μ


class Rows(NamedTuple):
    """Features, and the values that turn them into directions."""

    features: Array  # [R, D]
    mean: Array  # [D]
    inverse: Array  # [R] 1/‖x_i − μ‖


@typed
def directions(features: Float[Array, "R D"], mean: Float[Array, " D"] | None) -> Rows:
    """The rows as directions from `mean`; None takes the mean of the rows.

    A row that is not finite, or that equals the mean, is refused.
    """
    mean = features.mean(0) if mean is None else mean
    squares = _squared_lengths(features, mean)
    bad = jnp.flatnonzero(~jnp.isfinite(squares))
    if bad.size:  # a row that is not finite makes the mean, and so every length, not finite
        bad = jnp.flatnonzero(~jnp.isfinite(features).all(axis=1))
        rule = "`features` must be finite in every row"
        require(bad.size == 0, rule, bad[:8], name="rows that are not finite")
        rule = "`features` must have squares that float32 can hold"
        require(False, rule, mean, name="features.mean(axis=0)")
    bad = jnp.flatnonzero(squares == 0)
    rule = "`features` must differ from their mean in every row, because a row needs a direction"
    require(bad.size == 0, rule, bad[:8], name="rows equal to the mean")
    return Rows(features, mean, 1 / jnp.sqrt(squares))


@typed
def some_rows(rows: Rows, at: Int[Array, " B"]) -> Rows:
    """The rows at some places."""
    return Rows(rows.features[at], rows.mean, rows.inverse[at])


@jax.jit  # with the root inside, the sum would be compiled to a loop six times as slow on a CPU
def _squared_lengths(features: Array, mean: Array) -> Array:
    return jnp.sum((features - mean[None]) ** 2, axis=1)


@jax.jit
@typed
def row_scores(rows: Rows, centroids: Float[Array, "K D"]) -> Float[Array, "R K"]:
    """⟨c_k, f_i⟩ = (⟨c_k, x_i⟩ − ⟨c_k, μ⟩)/‖x_i − μ‖ in one product over all rows. [R, K]"""
    product = jnp.matmul(rows.features, centroids.T, precision=HIGHEST)
    shift = jnp.matmul(centroids, rows.mean, precision=HIGHEST)
    return (product - shift[None]) * rows.inverse[:, None]


@typed
def cosine_scores(features: Float[ArrayLike, "R D"], clusters: Clusters) -> Float[Array, "R K"]:
    """⟨c_k, f_i⟩ for every row and cluster, in [−1, 1].

    Raises:
        ValueError: if the widths differ; if a row is not finite; if a row equals the mean and so
            has no direction.
    """
    features, width = widened(features), len(clusters.mean)
    rule = f"`features` must have {width} columns, as many as the features of `clusters`"
    require(features.shape[1] == width, rule, features.shape[1], name="features.shape[1]")
    rows = directions(features, jnp.asarray(clusters.mean))
    return row_scores(rows, jnp.asarray(clusters.centroids))


@jax.jit
@typed
def mean_score(scores: Float[Array, "R K"], labels: Int[Array, " R"]) -> Float[Array, ""]:
    """(1/R) Σ_i s_{i,a(i)}."""
    return jnp.take_along_axis(scores, labels[:, None], axis=1).mean()


@jax.jit
@typed
def mean_best_score(scores: Float[Array, "R K"]) -> Float[Array, ""]:
    """(1/R) Σ_i max_k s_ik, which the mean score of no labels exceeds."""
    return scores.max(axis=1).mean()


@partial(jax.jit, static_argnames="num_clusters")
@typed
def centroid_sums(rows: Rows, labels: Int[Array, " R"], num_clusters: int) -> Float[Array, "K D"]:
    """Σ_{i∈k} f_i."""
    if num_clusters <= FEW:
        chosen = labels[None] == jnp.arange(num_clusters)[:, None]
        lengths = jnp.where(chosen, rows.inverse[None], 0)
        sums = jnp.matmul(lengths, rows.features, precision=HIGHEST)
        shares = lengths.sum(1)
    else:
        scaled = rows.features * rows.inverse[:, None]
        sums = jax.ops.segment_sum(scaled, labels, num_clusters)
        shares = jax.ops.segment_sum(rows.inverse, labels, num_clusters)
    return sums - shares[:, None] * rows.mean[None]


@jax.jit
@typed
def unit_centroids(
    sums: Float[Array, "K D"], otherwise: Float[Array, "K D"]
) -> Float[Array, "K D"]:
    """The sums at length 1; an empty cluster, whose sum is 0, keeps its old centroid."""
    length = jnp.linalg.norm(sums, axis=1, keepdims=True)
    return jnp.where(length > 0, sums / jnp.where(length > 0, length, 1), otherwise)


@typed
def nearest(
    rows: Rows, centroids: Float[Array, "K D"]
) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
    """The nearest centroid of each row, and the cosine with it: [R], [R]."""
    if len(centroids) <= FEW:
        every = row_scores(rows, centroids)
        return jnp.argmax(every, axis=1), every.max(axis=1)

    def one(row: tuple[Array, Array]) -> tuple[Array, Array]:
        features, inverse = row
        found = jnp.matmul(centroids, features - rows.mean, precision=HIGHEST) * inverse
        best = found.max()
        return jnp.where(found == best, jnp.arange(found.size), found.size).min(), best

    return jax.lax.map(one, (rows.features, rows.inverse), batch_size=_BLOCK)


def num_start_rows(num_clusters: int) -> int:
    """The number of rows from which that many first centroids are drawn."""
    return max(_START_ROWS, _START_ROWS_EACH * num_clusters)


_CANDIDATES = 64  # of k-means++ at a time


@partial(jax.jit, static_argnames="num_clusters")
@typed
def k_means_plus_plus(key: Key, rows: Rows, num_clusters: int) -> Float[Array, "K D"]:
    """Draw rows one by one, with probability ∝ 1 − the largest cosine with the rows before: [K, D].

    They are drawn from the `num_start_rows` rows with the smallest hashes. The random numbers of a
    row depend only on the row and the key; a race of exponentials decides each draw. For many
    clusters one race decides all of them.
    """
    hashes = row_hashes(rows.features)
    chosen = jnp.argsort(hashes)[: num_start_rows(num_clusters)]
    units = (rows.features[chosen] - rows.mean[None]) * rows.inverse[chosen][:, None]
    race = _many_races if num_clusters <= FEW else _one_race
    return race(key, hashes[chosen], units, num_clusters)


def _distances(first: Array, second: Array) -> Array:
    """1 − cosine; rounding can leave a row a little below cosine 1 with itself."""
    cosines = jnp.matmul(first, second.T, precision=HIGHEST)
    return jnp.where(cosines < 1 - 1e-6, 1 - cosines, 0.0)


def _many_races(key: Key, hashes: Array, units: Array, num_clusters: int) -> Array:
    """A race for each draw."""

    def noise(step: Array) -> Array:
        keys = jax.vmap(lambda h: jax.random.fold_in(jax.random.fold_in(key, step), h))(hashes)
        return jax.vmap(lambda k: jax.random.gumbel(k, dtype=units.dtype))(keys)

    def draw(distance: Array, step: Array) -> tuple[Array, Array]:
        drawn = units[jnp.argmax(jnp.log(distance) + noise(step))]
        return jnp.minimum(distance, _distances(units, drawn[None])[:, 0]), drawn

    start = jnp.full(hashes.shape, 2.0, units.dtype)
    return jax.lax.scan(draw, start, jnp.arange(num_clusters))[1]


def _one_race(key: Key, hashes: Array, units: Array, num_clusters: int) -> Array:
    """One race for all draws, in which rows slow down.

    Row i has one random number E_i ~ Exp(1). With d_i = 1 − the largest cosine so far, it is drawn
    at the time at which ∫ d_i dt reaches E_i. Exponential times have no memory, so the next row is
    always drawn with probability ∝ d_i.

    d_i only falls. So no row is drawn before E_i/d_i (with what is left of E_i), and until the
    smallest such time of the other rows, the draws are among a few candidates. The distances of all
    rows from what these gave then take one product.
    """
    keys = jax.vmap(lambda h: jax.random.fold_in(key, h))(hashes)
    left = jax.vmap(lambda k: jax.random.exponential(k, dtype=units.dtype))(keys)
    num_rows = hashes.size
    num_tried = min(_CANDIDATES, num_clusters, num_rows)
    numbers = jnp.arange(num_tried)

    def times(left: Array, distance: Array) -> Array:
        return jnp.where(distance > 0, left / jnp.where(distance > 0, distance, 1), jnp.inf)

    def passed(left: Array, distance: Array, time: Array, other: Array) -> tuple[Array, Array]:
        return left - time * distance, jnp.minimum(distance, other)

    def round_of_draws(state: tuple[Array, ...]) -> tuple[Array, ...]:
        drawn, count, left, distance = state
        earliest, tried = jax.lax.top_k(-times(left, distance), min(num_tried + 1, num_rows))
        limit = -earliest[-1] if num_rows > num_tried else jnp.array(jnp.inf, units.dtype)
        tried = tried[:num_tried]
        candidates = units[tried]
        between = _distances(candidates, candidates)

        def draw(state: tuple[Array, ...]) -> tuple[Array, ...]:
            order, waits, number, elapsed, left, distance, _ = state
            wait = times(left, distance)
            first = jnp.argmin(wait)
            # Where all distances are 0, as of rows that are all equal, the first row is drawn.
            wait = jnp.where(wait[first] < jnp.inf, wait[first], 0)
            open_ = (number == 0) | (elapsed + wait < limit)
            order = jnp.where(open_ & (numbers == number), first, order)
            waits = jnp.where(open_ & (numbers == number), wait, waits)
            left, distance = passed(left, distance, wait, between[first])
            return order, waits, number + open_, elapsed + wait, left, distance, open_

        def undecided(state: tuple[Array, ...]) -> Array:
            return state[-1] & (state[2] < num_tried) & (count + state[2] < num_clusters)

        zero = jnp.zeros((), units.dtype)
        own = left[tried], distance[tried]
        begin = (0 * numbers, zero * numbers, jnp.array(0), zero, *own, jnp.array(True))
        order, waits, number, *_ = jax.lax.while_loop(undecided, draw, begin)
        accepted = candidates[order]
        others = _distances(accepted, units)

        def after(place: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            return passed(*state, waits[place], others[place])

        left, distance = jax.lax.fori_loop(0, number, after, (left, distance))
        # What lies beyond `number` is written over by the next round.
        drawn = jax.lax.dynamic_update_slice_in_dim(drawn, accepted, count, 0)
        return drawn, count + number, left, distance

    drawn = jnp.zeros((num_clusters + num_tried, units.shape[1]), units.dtype)
    start = (drawn, jnp.array(0), left, jnp.full(left.shape, 2.0, units.dtype))
    unfinished = lambda state: state[1] < num_clusters  # noqa: E731
    return jax.lax.while_loop(unfinished, round_of_draws, start)[0][:num_clusters]


@jax.jit
@typed
def row_hashes(features: Float[Array, "R D"]) -> UInt32[Array, " R"]:
    """32 bits of each row's content, which do not depend on its place. [R]"""
    places = jnp.arange(1, features.shape[1] + 1, dtype=jnp.uint32)
    factors = places * jnp.uint32(0x9E3779B1) | jnp.uint32(1)
    size = min(_HASHED, len(features))

    def block(number: Array, total: Array) -> Array:
        # Of a few rows, turned: a sum along the rows is a slow loop on a CPU.
        begin = jnp.minimum(number * size, len(features) - size)
        own = jax.lax.dynamic_slice_in_dim(features, begin, size).astype(jnp.float32).T
        bits = jax.lax.bitcast_convert_type(own, jnp.uint32)
        mixed = (bits ^ (bits >> 15)) * factors[:, None]
        sums = jnp.sum(mixed ^ (mixed >> 13), axis=0, dtype=jnp.uint32)
        return jax.lax.dynamic_update_slice_in_dim(total, sums, begin, 0)

    total = jnp.zeros(len(features), jnp.uint32)
    total = jax.lax.fori_loop(0, -(-len(features) // max(size, 1)), block, total)
    total = (total ^ (total >> 16)) * jnp.uint32(0x85EBCA6B)
    return total ^ (total >> 13)
