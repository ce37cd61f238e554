"""Clusters of rows by their likelihood under a model of each cluster: classification EM.

    max_{a, θ} Σ_i [ log p_{θ_{a(i)}}(x_i) + log w_{a(i)} ]

Two steps alternate: θ_k are fitted to the rows of cluster k, and then rows go to the cluster with
the best score; if the sizes are fixed, all rows are assigned together. If `fit` maximizes the
likelihood, no step lowers the objective. SmallTalk partitions its data in this way, with models of
a prefix for the scores. There are R rows and K clusters. Source: Celeux & Govaert (1992);
SmallTalk, arXiv 2410.03529.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import check_count, require
from dfm_jax.clustering.assignment import assignment, capacities, check_balance
from dfm_jax.types import Array, ArrayLike, Float, Int, Key, typed


class LikelihoodClustering(NamedTuple):
    """Labels, the models fitted to them, and the course of the iterations."""

    labels: Int[Array, " R"]
    params: Any  # `fit(labels)`
    objectives: Float[Array, " passes"]  # after each assignment, nats per row
    converged: bool  # the last assignment moved no row


@typed
def likelihood_clustering(
    key: Key,
    fit: Callable[[np.ndarray], Any],
    score: Callable[[Any], Any],
    num_rows: int,
    num_clusters: int,
    *,
    balance: str = "rows",
    weights: Float[ArrayLike, " R"] | None = None,
    max_passes: int = 50,
) -> LikelihoodClustering:
    """Alternate fits and assignments from a random balanced start, until no row moves.

    The function also stops if an assignment occurs a second time: the steps would then repeat for
    ever, and the clusters have not converged. If a model was fitted on a row that it scores, rows
    tend to stay where they are; so leave that row out, or fit on other rows of its cluster.

    Args:
        key: The key of the first labels.
        fit: A pure function from labels [R] to the models θ of all clusters.
        score: A pure function from θ to log p_θk(x_i) for all rows and clusters, [R, K], finite, in
            nats.
        num_rows: R.
        num_clusters: K.
        balance: "rows" makes sizes of exactly ⌊R/K⌋ or ⌈R/K⌉; "weights" makes loads that exceed the
            mean by at most one row; in both cases w_k is not used. With "none", w_k is the share of
            cluster k in the last assignment.
        weights: The weights of the rows, only for "weights": for example their numbers of tokens.
        max_passes: The largest number of assignments.

    Raises:
        ValueError: if there are fewer rows than clusters; if an option is not known; if the scores
            have another shape or are not finite; if a weight is negative or not finite, or all
            weights are 0; if a cluster loses its last row.
    """
    check_count("num_clusters", num_clusters, at_most=num_rows)
    check_count("max_passes", max_passes)
    check_balance(balance, weights)
    sizes = np.array(capacities(num_rows, num_clusters))
    assigned = np.repeat(np.arange(num_clusters), sizes)
    labels = np.asarray(jax.random.permutation(key, assigned), int)
    params, objectives, converged, seen = fit(labels), [], False, set()
    while not converged and len(objectives) < max_passes and labels.tobytes() not in seen:
        seen.add(labels.tobytes())
        shares = np.bincount(labels, minlength=num_clusters) / num_rows
        scores = np.asarray(score(params))
        expected = (num_rows, num_clusters)
        rule = f"`score` must return an array of shape {expected}"
        require(scores.shape == expected, rule, scores.shape, name="score(params).shape")
        rule = "`score` must return finite numbers"
        require(np.isfinite(scores), rule, scores, name="score(params)")
        if balance == "none":
            scores = scores + np.log(shares)
            found = scores.argmax(axis=1)
        else:
            found = assignment(jnp.asarray(scores), balance, jnp.asarray(sizes), weights).labels
            found = np.asarray(found, int)
        present = np.bincount(found, minlength=num_clusters)
        rule, then = "Every cluster must keep a row", "Ask for fewer clusters, or for balance."
        require(present > 0, rule, present, name="sizes", then=then)
        objectives.append(float(scores[np.arange(num_rows), found].mean()))
        converged = bool((found == labels).all())
        if not converged:
            labels, params = found, fit(found)
    return LikelihoodClustering(jnp.asarray(labels), params, jnp.asarray(objectives), converged)
