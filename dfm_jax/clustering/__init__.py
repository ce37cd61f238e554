"""Spherical k-means and balanced assignment: how data are parted among experts."""

from dfm_jax.clustering.assignment import (
    Assignment,
    balanced_assignment,
    capacities,
    priced_labels,
    weighted_assignment,
)
from dfm_jax.clustering.directions import Clusters, cosine_scores
from dfm_jax.clustering.k_means import (
    Clustering,
    mini_batch_k_means,
    nearest_cluster,
    spherical_k_means,
)
from dfm_jax.clustering.likelihood import LikelihoodClustering, likelihood_clustering
from dfm_jax.clustering.metrics import Fit, cluster_fit, normalized_mutual_information
from dfm_jax.clustering.two_stage import TwoStage, two_stage_k_means, two_stage_labels

__all__ = [
    "Assignment",
    "Clustering",
    "Clusters",
    "Fit",
    "LikelihoodClustering",
    "TwoStage",
    "balanced_assignment",
    "capacities",
    "cluster_fit",
    "cosine_scores",
    "likelihood_clustering",
    "mini_batch_k_means",
    "nearest_cluster",
    "normalized_mutual_information",
    "priced_labels",
    "spherical_k_means",
    "two_stage_k_means",
    "two_stage_labels",
    "weighted_assignment",
]
