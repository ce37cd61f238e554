"""Clustering on our side of `benchmarks`."""

from typing import Any

import jax
import numpy as np

from dfm_jax.clustering import spherical_k_means
from experiments.systems.benchmarks.ours_samplers import Cases, numbered


def mean_cosine(features: np.ndarray, labels: np.ndarray) -> float:
    """Of each row with the mean direction of its cluster: (1/R) Σ_k ‖Σ_{i in k} f_i‖."""
    sums = np.zeros((labels.max() + 1, features.shape[1]))
    np.add.at(sums, labels, features)
    return float(np.linalg.norm(sums, axis=1).sum() / len(features))


def _k_means(size: dict[str, int], data: dict[str, jax.Array], **options: Any) -> Cases:
    features = data["features"]

    def clear(seed: np.uint32, features: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        return spherical_k_means(key, features, size["K"], subtract_mean=False, **options).labels

    def shown(labels: jax.Array) -> float:
        return mean_cosine(np.asarray(features), np.asarray(labels))

    return {"clear": numbered(clear, (features,), shown)}


WORKLOADS = {
    "balanced k-means": lambda size, data: _k_means(size, data, balance="rows"),
    "fine k-means": lambda size, data: _k_means(size, data, max_passes=10),
}
