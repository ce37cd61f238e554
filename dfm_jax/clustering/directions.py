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
_START_ROWS_EACH = 16  # or so many for each cluster, if that is more
_FEW = 64  # clusters up to which a pass keeps all its scores
_BLOCK = 2**13  # rows at a time beyond


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
    if num_clusters <= _FEW:
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
    if len(centroids) <= _FEW:
        every = row_scores(rows, centroids)
        return jnp.argmax(every, axis=1), every.max(axis=1)

    def one(row: tuple[Array, Array]) -> tuple[Array, Array]:
        features, inverse = row
        found = jnp.matmul(centroids, features - rows.mean, precision=HIGHEST) * inverse
        return jnp.argmax(found), found.max()

    return jax.lax.map(one, (rows.features, rows.inverse), batch_size=_BLOCK)


def num_start_rows(num_clusters: int) -> int:
    """The number of rows from which that many first centroids are drawn."""
    return max(_START_ROWS, _START_ROWS_EACH * num_clusters)


@partial(jax.jit, static_argnames="num_clusters")
@typed
def k_means_plus_plus(key: Key, rows: Rows, num_clusters: int) -> Float[Array, "K D"]:
    """Draw rows one by one, with probability ∝ 1 − the largest cosine with the rows before: [K, D].

    They are drawn from the `num_start_rows` rows with the smallest hashes. The random number of a
    row depends only on the row and the key; a race of exponentials decides the draw.
    """
    hashes = row_hashes(rows.features)
    chosen = jnp.argsort(hashes)[: num_start_rows(num_clusters)]
    hashes, features = hashes[chosen], rows.features[chosen]
    units = (features - rows.mean[None]) * rows.inverse[chosen][:, None]

    def noise(step: Array) -> Array:
        keys = jax.vmap(lambda h: jax.random.fold_in(jax.random.fold_in(key, step), h))(hashes)
        return jax.vmap(lambda k: jax.random.gumbel(k, dtype=units.dtype))(keys)

    def draw(nearest: Array, step: Array) -> tuple[Array, Array]:
        # Rounding can leave a chosen row a little below cosine 1.
        chance = jnp.where(nearest < 1 - 1e-6, 1 - nearest, 0.0)
        drawn = units[jnp.argmax(jnp.log(chance) + noise(step))]
        cosines = jnp.matmul(units, drawn, precision=HIGHEST)
        return jnp.maximum(nearest, cosines), drawn

    start = jnp.full(hashes.shape, -1.0, units.dtype)
    return jax.lax.scan(draw, start, jnp.arange(num_clusters))[1]


@jax.jit
@typed
def row_hashes(features: Float[Array, "R D"]) -> UInt32[Array, " R"]:
    """32 bits of each row's content, which do not depend on its place. [R]"""
    bits = jax.lax.bitcast_convert_type(features.astype(jnp.float32), jnp.uint32)
    places = jnp.arange(1, features.shape[1] + 1, dtype=jnp.uint32)
    mixed = (bits ^ (bits >> 15)) * (places * jnp.uint32(0x9E3779B1) | jnp.uint32(1))[None]
    total = jnp.sum(mixed ^ (mixed >> 13), axis=1, dtype=jnp.uint32)
    total = (total ^ (total >> 16)) * jnp.uint32(0x85EBCA6B)
    return total ^ (total >> 13)
