"""Spherical k-means and balanced assignment: how data are partitioned among experts."""

from dfm_jax.clustering.assignment import Assignment as Assignment
from dfm_jax.clustering.assignment import balanced_assignment as balanced_assignment
from dfm_jax.clustering.assignment import capacities as capacities
from dfm_jax.clustering.assignment import priced_labels as priced_labels
from dfm_jax.clustering.assignment import weighted_assignment as weighted_assignment
from dfm_jax.clustering.directions import Clusters as Clusters
from dfm_jax.clustering.directions import cosine_scores as cosine_scores
from dfm_jax.clustering.k_means import Clustering as Clustering
from dfm_jax.clustering.k_means import mini_batch_k_means as mini_batch_k_means
from dfm_jax.clustering.k_means import nearest_cluster as nearest_cluster
from dfm_jax.clustering.k_means import spherical_k_means as spherical_k_means
from dfm_jax.clustering.likelihood import LikelihoodClustering as LikelihoodClustering
from dfm_jax.clustering.likelihood import likelihood_clustering as likelihood_clustering
from dfm_jax.clustering.metrics import Fit as Fit
from dfm_jax.clustering.metrics import cluster_fit as cluster_fit
from dfm_jax.clustering.metrics import (
    normalized_mutual_information as normalized_mutual_information,
)
from dfm_jax.clustering.two_stage import TwoStage as TwoStage
from dfm_jax.clustering.two_stage import two_stage_k_means as two_stage_k_means
from dfm_jax.clustering.two_stage import two_stage_labels as two_stage_labels
