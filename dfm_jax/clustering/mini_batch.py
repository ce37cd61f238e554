"""Spherical k-means of data beyond memory: drawn batches, then whole passes, read where they lie.

    S_k ← S_k + Σ_{i∈batch, a(i)=k} f_i,   c_k = S_k/‖S_k‖

Rows are read from an array that may be a memory map, a batch at a time. A row's place in the
batches follows from a hash of its features and the key, so the order of rows in the file changes
rounding and nothing else. R rows, K clusters, D features.
Source: Sculley (2010): a step of 1/n_k for the n_k-th row of a cluster; here with directions.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import check_count, require
from dfm_jax.clustering.balance import assignment, check_balance, near_sizes
from dfm_jax.clustering.directions import (
    Rows,
    centroid_sums,
    directions,
    k_means_plus_plus,
    mean_best_score,
    mean_score,
    nearest,
    num_start_rows,
    row_hashes,
    row_scores,
    unit_centroids,
    widened,
)
from dfm_jax.clustering.k_means import Clustering, Clusters
from dfm_jax.types import Array, ArrayLike, Float, Key, typed


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
    """Centroids from batches, then a few passes over all rows, with balance.

    In memory are one batch, K scores and a few numbers a row. It reads the features 2 + E + 2P
    times. The objective is a little below that of `spherical_k_means`, which descends until nothing
    changes; balance is as exact.

    Args:
        key: of the start and of the batches.
        features: one row each; `np.load(path, mmap_mode="r")` leaves them on the disk.
        num_clusters: K.
        balance: "rows", "weights" or "none", as for `spherical_k_means`.
        weights: w_i, for "weights".
        subtract_mean: μ is the mean of the features; else 0.
        batch_size: rows of a batch.
        num_epochs: E, each draws every row once; 0 goes from the start to the passes.
        num_passes: P ≥ 1, over all rows: assign, then average.

    Raises:
        ValueError: as `spherical_k_means`; rows are named by their number.
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
    """The mean, and the rows in the order of their hashes."""
    hashes, total = [], np.zeros(features.shape[1])
    for begin in range(0, len(features), batch_size):
        block = np.asarray(features[begin : begin + batch_size])
        bad = begin + np.flatnonzero(~np.isfinite(block).all(axis=1))
        require(bad.size == 0, "`features` must be finite; the first rows that are not", bad[:8])
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
