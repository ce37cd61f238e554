"""Spherical k-means: clusters of directions, with or without balance.

    max_{a, c} Σ_i ⟨c_{a(i)}, f_i⟩,   f_i = (x_i − μ)/‖x_i − μ‖,  ‖c_k‖ = 1

μ is the mean of the features. Without it, features that share a large component would all point in
the same direction. Rows are never copied: 1/‖x_i − μ‖ multiplies the scores instead. Random draws
depend on a hash of each row, so the order of rows changes only rounding. R rows, K clusters, D
features. Source: Dhillon & Modha (2001); Arthur & Vassilvitskii (2007) for the start.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.boundary import widened
from dfm_jax.checks import check_count, require
from dfm_jax.clustering.assignment import (
    assignment,
    check_balance,
    near_sizes,
    priced_labels,
)
from dfm_jax.clustering.directions import (
    Clusters,
    Rows,
    centroid_sums,
    cosine_scores,
    directions,
    k_means_plus_plus,
    mean_best_score,
    mean_score,
    nearest,
    num_start_rows,
    row_hashes,
    row_scores,
    unit_centroids,
)
from dfm_jax.clustering.lloyd import SETTLED, lloyd, moved_sums
from dfm_jax.clustering.metrics import normalized_mutual_information
from dfm_jax.types import Array, ArrayLike, Float, Int, Key, typed


class Clustering(NamedTuple):
    """Clusters, and the balanced labels of the rows from which they were made."""

    clusters: Clusters
    labels: Int[Array, " R"]
    mean_cosine: Float[Array, ""]  # (1/R) Σ_i ⟨c_{a(i)}, f_i⟩
    num_passes: Int[Array, ""]  # over the rows, until the centroids stayed
    unbalanced_cosine: Float[Array, ""]  # the largest met without balance
    agreement: Float[Array, ""]  # mean NMI of the labels with those of the other starts; NaN if one


@typed
def nearest_cluster(
    features: Float[ArrayLike, "R D"],
    clusters: Clusters,
    weights: Float[ArrayLike, " R"] | None = None,
) -> Int[Array, " R"]:
    """argmax_k ⟨c_k, f_i⟩ − λ_k w_i: the rule that labeled the clustered rows, for any rows.

    For the clustered rows it gives their labels back, except for the few that balance moved at a
    tie.
    """
    return priced_labels(cosine_scores(features, clusters), clusters.prices, weights)


@typed
def spherical_k_means(
    key: Key,
    features: Float[ArrayLike, "R D"],
    num_clusters: int,
    *,
    balance: str = "none",
    weights: Float[ArrayLike, " R"] | None = None,
    subtract_mean: bool = True,
    num_restarts: int = 1,
    max_passes: int = 100,
) -> Clustering:
    """Spherical k-means: the best of several starts, each run until its centroids stop changing.

    Args:
        key: The key of the starts.
        features: The features, one row each. A float32 array of NumPy at a multiple of 64 bytes is
            not copied, for example `np.load(path, mmap_mode="r")`; it must not change meanwhile.
        num_clusters: K.
        balance: "rows" makes sizes of exactly ⌊R/K⌋ or ⌈R/K⌉; "weights" makes loads Σ w_i that
            exceed their mean by at most one row; "none" does not balance.
        weights: w_i, only for "weights": for example the number of tokens of each row.
        subtract_mean: If True, μ is the mean of the features; if False, μ is 0.
        num_restarts: The number of starts.
        max_passes: The largest number of passes of one start.

    Raises:
        ValueError: if there are fewer rows than clusters; if an option is not known; if a row is
            not finite or has no direction.
    """
    # Unlike `asarray`, this reads NumPy's memory in place where it lies at a multiple of 64 bytes.
    features = widened(jax.device_put(features) if isinstance(features, np.ndarray) else features)
    check_count("num_clusters", num_clusters, at_most=features.shape[0])
    check_count("num_restarts", num_restarts)
    check_count("max_passes", max_passes)
    check_balance(balance, weights)
    zero = jnp.zeros(features.shape[1], features.dtype)
    rows = directions(features, None if subtract_mean else zero)
    found = []
    for start in jax.random.split(key, num_restarts):
        centroids = k_means_plus_plus(start, rows, num_clusters)
        found.append(_descend(rows, centroids, balance, weights, max_passes))
    best = max(range(num_restarts), key=lambda one: float(found[one].mean_cosine))
    others = [
        normalized_mutual_information(found[best].labels, other.labels)
        for number, other in enumerate(found)
        if number != best
    ]
    return found[best]._replace(
        unbalanced_cosine=jnp.stack([one.unbalanced_cosine for one in found]).max(),
        agreement=jnp.mean(jnp.array(others)) if others else jnp.array(jnp.nan),
    )


def _descend(
    rows: Rows, centroids: Array, balance: str, weights: Array | None, max_passes: int
) -> Clustering:
    """Assign and average until the centroids stop changing; balance begins once they settled."""
    centroids, labels, sums, cosine, num_passes = lloyd(rows, centroids, max_passes)
    free = cosine
    if balance == "none":
        prices = jnp.zeros(len(centroids))
        return _clustering(rows, centroids, prices, labels, cosine, num_passes, free)
    sizes = near_sizes(labels, len(centroids))
    best, previous, before = None, jnp.array(-1.0), labels
    for _ in range(max_passes):
        scores = row_scores(rows, centroids)
        labels, prices, _ = assignment(scores, balance, sizes, weights)
        num_passes, cosine = num_passes + 1, mean_score(scores, labels)
        free = jnp.maximum(free, mean_best_score(scores))
        if best is None or cosine > best.mean_cosine:
            best = _clustering(rows, centroids, prices, labels, cosine, num_passes, free)
        if cosine <= previous + SETTLED * abs(previous):
            break
        sums, before, previous = moved_sums(rows, sums, before, labels), labels, cosine
        centroids = unit_centroids(sums, centroids)
    assert best is not None
    return best._replace(unbalanced_cosine=free)


def _clustering(
    rows: Rows,
    centroids: Array,
    prices: Array,
    labels: Array,
    cosine: Array,
    num_passes: Array,
    free: Array,
) -> Clustering:
    clusters = Clusters(centroids, prices, rows.mean)
    return Clustering(clusters, labels, cosine, num_passes, free, jnp.array(jnp.nan))


@typed
def mini_batch_k_means(
    key: Key,
    features: Float[np.ndarray, "R D"],
    num_clusters: int,
    *,
    balance: str = "none",
    weights: Float[ArrayLike, " R"] | None = None,
    subtract_mean: bool = True,
    batch_size: int = 2**14,
    num_epochs: int = 4,
    num_passes: int = 4,
) -> Clustering:
    """Spherical k-means from random batches, followed by a few balanced passes over all rows.

        S_k ← S_k + Σ_{i∈batch, a(i)=k} f_i,   c_k = S_k/‖S_k‖

    It is for data that do not fit in memory: it reads one batch at a time from an array, which may
    be a memory map. A hash of a row's features and the key decide its place in the batches, so the
    order of rows in the file changes only rounding. Source: Sculley (2010), with a step of 1/n_k
    for the n_k-th row of a cluster; here with directions.

    It holds one batch in memory, and K scores and a few numbers per row. It reads the features 2 +
    E + 2P times. The objective is a little below that of `spherical_k_means`, which runs until
    nothing changes; the balance is equally exact.

    Args:
        key: The key of the start and of the batches.
        features: The features, one row each; `np.load(path, mmap_mode="r")` leaves them on the
            disk.
        num_clusters: K.
        balance: "rows", "weights" or "none", as in `spherical_k_means`.
        weights: w_i, only for "weights".
        subtract_mean: If True, μ is the mean of the features; if False, μ is 0.
        batch_size: The number of rows in a batch.
        num_epochs: E; each epoch draws every row once. With 0 the passes follow the start directly.
        num_passes: P ≥ 1, the number of passes over all rows; each assigns, then averages.

    Raises:
        ValueError: as `spherical_k_means`; the message gives the number of the row.
    """
    num_rows = len(features)
    check_count("num_clusters", num_clusters, at_most=num_rows)
    check_count("batch_size", batch_size)
    check_count("num_epochs", num_epochs, at_least=0)
    check_count("num_passes", num_passes)
    check_balance(balance, weights)
    mean, order = _survey(features, subtract_mean, batch_size)
    start_key, key = jax.random.split(key)
    first = _batch(features, np.sort(order[: num_start_rows(num_clusters)]), mean)
    centroids = k_means_plus_plus(start_key, first, num_clusters)
    sums = centroids
    for epoch in range(num_epochs):
        drawn = jax.random.permutation(jax.random.fold_in(key, epoch), num_rows)
        shuffled = order[np.asarray(drawn)]
        for begin in range(0, num_rows, batch_size):
            rows = _batch(features, np.sort(shuffled[begin : begin + batch_size]), mean)
            sums = sums + centroid_sums(rows, nearest(rows, centroids)[0], num_clusters)
            centroids = unit_centroids(sums, centroids)

    def scored() -> Array:
        return jnp.concatenate([row_scores(r, centroids) for r in _all(features, mean, batch_size)])

    scores = scored()
    sizes, free = near_sizes(scores.argmax(axis=1), num_clusters), mean_best_score(scores)
    labels, prices, _ = assignment(scores, balance, sizes, weights)
    for _ in range(num_passes - 1):
        sums, begin = jnp.zeros_like(centroids), 0
        for rows in _all(features, mean, batch_size):
            own = labels[begin : begin + len(rows.inverse)]
            sums, begin = sums + centroid_sums(rows, own, num_clusters), begin + own.size
        centroids = unit_centroids(sums, centroids)
        scores = scored()
        free = jnp.maximum(free, mean_best_score(scores))
        labels, prices, _ = assignment(scores, balance, sizes, weights)
    return Clustering(
        Clusters(centroids, prices, mean),
        labels,
        mean_score(scores, labels),
        jnp.array(num_epochs + num_passes),
        free,
        jnp.array(jnp.nan),
    )


def _survey(features: np.ndarray, subtract_mean: bool, batch_size: int) -> tuple[Array, np.ndarray]:
    """The mean of the rows, and the rows in the order of their hashes."""
    hashes, total = [], np.zeros(features.shape[1])
    for begin in range(0, len(features), batch_size):
        block = np.asarray(features[begin : begin + batch_size])
        bad = begin + np.flatnonzero(~np.isfinite(block).all(axis=1))
        rule = "`features` must be finite in every row"
        require(bad.size == 0, rule, bad[:8], name="rows that are not finite")
        total += block.sum(axis=0, dtype=np.float64)
        hashes.append(np.asarray(row_hashes(jnp.asarray(block))))
    mean = total / len(features) if subtract_mean else 0 * total
    return jnp.asarray(mean, widened(features[:0]).dtype), np.argsort(
        np.concatenate(hashes), kind="stable"
    )


def _batch(features: np.ndarray, rows: np.ndarray, mean: Array) -> Rows:
    return directions(widened(features[rows]), mean)


def _all(features: np.ndarray, mean: Array, batch_size: int) -> Iterator[Rows]:
    for begin in range(0, len(features), batch_size):
        yield directions(widened(features[begin : begin + batch_size]), mean)
