"""Two stages: many fine clusters, then whole fine clusters assigned to few, with balanced loads.

The balance is of rows or of weights, not of the number of fine centroids. A fine cluster counts
with all its rows, and its rows stay together. R rows, F fine clusters, K clusters, D features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.boundary import widened
from dfm_jax.checks import check_count
from dfm_jax.clustering.assignment import weighted_assignment
from dfm_jax.clustering.k_means import Clusters, nearest_cluster, spherical_k_means
from dfm_jax.paths import HIGHEST
from dfm_jax.types import Array, ArrayLike, Float, Int, Key, typed


class TwoStage(NamedTuple):
    """Fine clusters, the cluster of each, and the labels of the rows from which they were made."""

    fine: Clusters
    cluster_of: Int[Array, " F"]
    labels: Int[Array, " R"]
    loads: Float[Array, " K"]  # rows, or their weights


@typed
def two_stage_k_means(
    key: Key,
    features: Float[ArrayLike, "R D"],
    num_clusters: int,
    *,
    num_fine: int = 1024,
    weights: Float[ArrayLike, " R"] | None = None,
    max_passes: int = 100,
) -> TwoStage:
    """Fine spherical k-means, then k-means of the fine centroids, weighted by their loads.

    No cluster's load exceeds the mean by more than the heaviest fine cluster.

    Args:
        key: The key of the start.
        features: The features, one row each; their mean is subtracted.
        num_clusters: K.
        num_fine: F, at least K.
        weights: w_i, whose sums are the loads; without them each row counts 1.
        max_passes: The largest number of passes of each stage.

    Raises:
        ValueError: as `spherical_k_means`; if K ≤ F ≤ R does not hold.
    """
    check_count("num_clusters", num_clusters, at_most=num_fine)
    fine_key, key = jax.random.split(key)
    fine = spherical_k_means(fine_key, features, num_fine, max_passes=max_passes)
    held = jnp.ones(fine.labels.size) if weights is None else widened(weights)
    loads = jax.ops.segment_sum(held, fine.labels, num_fine)
    centroids = fine.clusters.centroids
    first = spherical_k_means(key, centroids, num_clusters, subtract_mean=False)
    means, previous = first.clusters.centroids, jnp.array(-1.0)
    cluster_of = first.labels
    for _ in range(max_passes):
        scores = jnp.matmul(centroids, means.T, precision=HIGHEST)
        tried = weighted_assignment(scores, loads).labels
        chosen = jnp.take_along_axis(scores, tried[:, None], axis=1)[:, 0]
        cosine = jnp.sum(loads * chosen) / loads.sum()
        if cosine <= previous:
            break
        cluster_of, previous = tried, cosine
        sums = jax.ops.segment_sum(loads[:, None] * centroids, tried, num_clusters)
        length = jnp.linalg.norm(sums, axis=1, keepdims=True)
        means = jnp.where(length > 0, sums / jnp.where(length > 0, length, 1), means)
    by_cluster = jax.ops.segment_sum(loads, cluster_of, num_clusters)
    return TwoStage(fine.clusters, cluster_of, cluster_of[fine.labels], by_cluster)


@typed
def two_stage_labels(features: Float[ArrayLike, "R D"], found: TwoStage) -> Int[Array, " R"]:
    """The cluster of the nearest fine centroid: the rule that labeled the clustered rows."""
    return found.cluster_of[nearest_cluster(features, found.fine)]
