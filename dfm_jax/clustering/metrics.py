"""Measures of labels: sizes, loads, margins, and agreement with other labels."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.special import entr

from dfm_jax.boundary import widened
from dfm_jax.checks import check_tokens, require
from dfm_jax.clustering.directions import Clusters, cosine_scores
from dfm_jax.types import Array, ArrayLike, Float, Int, Scalar, typed


@typed
def normalized_mutual_information(
    first: Int[ArrayLike, " R"], second: Int[ArrayLike, " R"]
) -> Scalar:
    """NMI = 2 I(A; B) / (H(A) + H(B)), in [0, 1]; it is 1 if both have a single cluster.

    Labels count from 0; the order of the clusters does not matter.

    Raises:
        ValueError: if there is no row, or a label is negative.
    """
    first, second = jnp.asarray(first), jnp.asarray(second)
    require(first.size > 0, "`first` must hold a label", first.size, name="first.size")
    for name, labels in (("first", first), ("second", second)):
        require(labels >= 0, f"`{name}` must hold labels that are not negative", labels)
    width = int(second.max()) + 1
    size = (int(first.max()) + 1) * width
    joint = jnp.bincount(first * width + second, length=size).reshape(-1, width) / first.size
    entropies = entr(joint.sum(0)).sum() + entr(joint.sum(1)).sum()
    information = entropies - entr(joint).sum()
    return jnp.where(entropies > 0, 2 * information / jnp.where(entropies > 0, entropies, 1), 1.0)


class Fit(NamedTuple):
    """How well rows fit in their clusters."""

    sizes: Int[Array, " K"]
    loads: Float[Array, " K"]  # Σ w_i
    cosines: Float[Array, " R"]  # the cosine of each row with the centroid of its cluster
    margins: Float[Array, " R"]  # that cosine minus the largest one with another centroid


@typed
def cluster_fit(
    features: Float[ArrayLike, "R D"],
    labels: Int[ArrayLike, " R"],
    clusters: Clusters,
    weights: Float[ArrayLike, " R"] | None = None,
) -> Fit:
    """Sizes, loads, cosines and margins; a row with a margin below 0 was moved by balance.

    With one cluster the margin is the cosine plus 1.

    Raises:
        ValueError: if a label lies outside [0, K), as the −1 of an unassigned row does.
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
