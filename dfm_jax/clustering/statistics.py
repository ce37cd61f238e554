"""What to know of a partition before trusting it: sizes, loads, margins."""

from typing import NamedTuple

import jax.numpy as jnp

from dfm_jax.checks import check_tokens
from dfm_jax.clustering.directions import widened
from dfm_jax.clustering.k_means import Clusters, cosine_scores
from dfm_jax.types import Array, ArrayLike, Float, Int, typed


class Fit(NamedTuple):
    """How rows lie in their clusters."""

    sizes: Int[Array, " K"]
    loads: Float[Array, " K"]  # Σ w_i
    cosines: Float[Array, " R"]  # of each row with the centroid of its cluster
    margins: Float[Array, " R"]  # that, less the largest cosine with another


@typed
def cluster_fit(
    features: Float[ArrayLike, "R D"],
    labels: Int[ArrayLike, " R"],
    clusters: Clusters,
    weights: Float[ArrayLike, " R"] | None = None,
) -> Fit:
    """Sizes, loads, cosines and margins; a margin below 0 is a row that balance moved.

    With one cluster the margin is the cosine less −1.

    Raises:
        ValueError: if a label lies outside [0, K), the −1 of an unserved row included.
    """
    scores = cosine_scores(features, clusters)
    check_tokens("labels", labels, scores.shape[1])
    labels = jnp.asarray(labels)
    num_clusters = scores.shape[1]
    own = jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    mine = labels[:, None] == jnp.arange(num_clusters)[None]
    others = jnp.where(mine, -1.0, scores).max(axis=1)
    held = jnp.ones(labels.size) if weights is None else widened(weights)
    return Fit(mine.sum(0), jnp.sum(jnp.where(mine, held[:, None], 0), 0), own, own - others)
