"""The peers of clustering in `benchmarks`.

k-means-constrained and faiss start from their own random draws, as our side does, and draw again at
every call. The auction of the paper's code is not a package and is not measured.
"""

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from experiments.systems.benchmarks.serving import Case


def mean_cosine(features, labels):
    """The mean cosine of each row with the mean direction of its cluster."""
    sums = np.zeros((labels.max() + 1, features.shape[1]))
    np.add.at(sums, labels, features)
    return float(np.linalg.norm(sums, axis=1).sum() / len(features))


def balanced(size, data):
    """Sizes ⌊R/K⌋ or ⌈R/K⌉; rows have length 1, so that distances are cosines."""
    from k_means_constrained import (  # pyright: ignore[reportMissingImports]
        KMeansConstrained,
    )

    features = data["features"].numpy()
    least = size["R"] // size["K"]

    def run():
        model = KMeansConstrained(
            n_clusters=size["K"],
            size_min=least,
            size_max=-(-size["R"] // size["K"]),
            n_init=1,
            max_iter=100,
        )
        return model.fit_predict(features)

    return {"k-means-constrained": Case(run, lambda labels: mean_cosine(features, labels))}


def fine(size, data):
    """Ten passes and a last assignment."""
    import faiss  # pyright: ignore[reportMissingImports]

    faiss.omp_set_num_threads(torch.get_num_threads())
    features = data["features"].numpy()
    count = 0

    def run():
        nonlocal count
        count += 1
        model = faiss.Kmeans(
            features.shape[1],
            size["K"],
            niter=10,
            spherical=True,
            seed=count,
            max_points_per_centroid=size["R"],
        )
        model.train(features)
        return model.index.search(features, 1)[1][:, 0]

    return {"faiss": Case(run, lambda labels: mean_cosine(features, labels))}


WORKLOADS = {"balanced k-means": balanced, "fine k-means": fine}
