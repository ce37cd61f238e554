"""Clusters of real features, compared with the truth, and balance at full size.

    python -m experiments.clustering --preset quick

Clusters of text, of articles and of scenes are compared with the known domain, topic or group of
each row. On synthetic rows of the size of LLaVA's instruction data, sizes, loads, memory, time and
objective are compared with those of faiss, k-means-constrained and the published auction, if these
are installed (`make install-peers`).
"""

import importlib.util
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from dfm_jax.clustering import (
    Clustering,
    cluster_fit,
    cosine_scores,
    normalized_mutual_information,
    spherical_k_means,
)
from dfm_jax.parallel import make_mesh
from experiments.clustering import data as clustering_data
from experiments.clustering import report as clustering_report
from experiments.clustering.comparisons import PEERS, comparisons, measured
from experiments.clustering.config import PRESETS, Config, check_config
from experiments.clustering.data import Labeled
from experiments.lib import reporting, study
from experiments.lib.builds import unpacked
from experiments.lib.domains import load_abc, load_bbc, load_kjv, load_shakespeare, load_stdlib

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "scikit-learn")
_PROG = "python -m experiments.clustering"
_WIDE = 1e-5  # a margin beyond which rounding may not change a label


# ── real features ───────────────────────────────────────────────────────────────────────────────


def real_features(config: Config) -> Iterator[tuple[Labeled, int]]:
    """The sets of features, each with its K."""
    domains = [load() for load in (load_kjv, load_shakespeare, load_stdlib, load_bbc, load_abc)]
    options = {"size": 512, "per_domain": config.per_domain, "num_features": 64}
    yield clustering_data.pieces_of_domains(domains, **options), 5
    yield clustering_data.articles_by_topic(domains[3], num_features=100), 5
    if config.num_scenes:
        for found in clustering_data.scenes_by_group(config.num_scenes, config.out / "features"):
            yield found, 10


def against_the_truth(data: Labeled, num_clusters: int, num_restarts: int) -> dict[str, Any]:
    """NMI of clusters and true classes, with and without balance, and the cost of balance."""
    found: dict[str, Clustering] = {
        balance: spherical_k_means(
            jax.random.key(0),
            data.features,
            num_clusters,
            balance=balance,
            num_restarts=num_restarts,
        )
        for balance in ("none", "rows")
    }
    margins = {
        balance: np.asarray(cluster_fit(data.features, own.labels, own.clusters).margins)
        for balance, own in found.items()
    }
    return {
        "data": data.name,
        "rows": len(data.true),
        "num_clusters": num_clusters,
        **{
            f"{name}_{balance}": value
            for balance, own in found.items()
            for name, value in {
                "nmi": float(normalized_mutual_information(own.labels, data.true)),
                "mean_cosine": float(own.mean_cosine),
                "agreement": float(own.agreement),
                "median_margin": float(np.median(margins[balance])),
                "sizes": np.bincount(own.labels, minlength=num_clusters).tolist(),
            }.items()
        },
        "cost_of_balance": float(found["rows"].unbalanced_cosine - found["rows"].mean_cosine),
    }


# ── against exact answers ───────────────────────────────────────────────────────────────────────


def against_exact(config: Config) -> dict[str, Any]:
    """The assignment compared with scipy's, other orders of rows, and one device with eight."""
    rows = clustering_data.synthetic_rows(
        config.sub_sample, config.num_features, num_groups=40, noise=1.5, seed=1
    )

    def clustered(rows: np.ndarray | jax.Array) -> Clustering:
        return spherical_k_means(jax.random.key(0), rows, 7, balance="rows", subtract_mean=False)

    found = clustered(rows)
    sizes = np.bincount(found.labels, minlength=7)
    scores = np.asarray(cosine_scores(rows, found.clusters), np.float64)
    places = np.repeat(np.arange(7), sizes)
    at, place = linear_sum_assignment(-scores[:, places])
    best = scores[at, places[place]].sum()
    reached = scores[np.arange(len(rows)), np.asarray(found.labels)].sum()
    order = np.random.default_rng(0).permutation(len(rows))
    again = clustered(rows[order]).labels
    spread = jax.sharding.NamedSharding(make_mesh({"data": 8}), jax.sharding.PartitionSpec("data"))
    even = rows[: len(rows) // 8 * 8]
    one, eight = clustered(jnp.asarray(even)), clustered(jax.device_put(even, spread))
    scores = cosine_scores(even, one.clusters) - one.clusters.prices[None]
    priced = np.sort(np.asarray(scores), axis=1)
    differ = np.asarray(one.labels) != np.asarray(eight.labels)
    return {
        "rows": len(rows),
        "to_exact": float(reached / best),
        "other_order_nmi": float(normalized_mutual_information(found.labels[order], again)),
        "differ_on_8_devices": int(differ.sum()),
        "differ_beyond_rounding": int((differ & (priced[:, -1] - priced[:, -2] >= _WIDE)).sum()),
    }


# ── the study ───────────────────────────────────────────────────────────────────────────────────


def run(config: Config, console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    start = time.perf_counter()
    versions = reporting.installed(PACKAGES)
    values = {k: v for k, v in asdict(config).items() if k not in ("preset", "out")}
    peers = [name for name, module in PEERS.items() if importlib.util.find_spec(module)]
    depends_on = {"config": values, "versions": versions, "peers": peers}
    cells = study.Cells(
        folder=config.out / "cells",
        depends_on=depends_on,
        programs=("experiments.clustering", "experiments.clustering.methods"),
    )
    bar = tqdm(total=3, desc="real features, exact answers, full size", disable=None)
    real = cells.measured(
        "real",
        lambda: {
            "rows": [against_the_truth(*x, config.num_restarts) for x in real_features(config)]
        },
    )["rows"]
    bar.update()
    exact = cells.measured("exact", lambda: against_exact(config))
    bar.update()
    planned = comparisons(
        sub_sample=config.sub_sample,
        medium=config.medium,
        large=config.large,
        num_fine=config.num_fine,
    )
    with unpacked(config.before) as build:
        sizes = [
            cells.measured(
                f"{comparison.rows}-{comparison.num_clusters}",
                lambda comparison=comparison: measured(
                    comparison,
                    config.out / "rows",
                    num_features=config.num_features,
                    num_rounds=config.num_rounds,
                    build=build,
                ),
            )
            for comparison in tqdm(planned, desc="full size", disable=None, leave=False)
        ]
    bar.update()
    bar.close()
    verdicts = clustering_report.verdicts_of(real, exact, sizes)
    picture = clustering_report.draw(config.out / "clustering.png", real, sizes)
    return reporting.conclude(
        console,
        config,
        versions=versions,
        seeds=[0],
        rows=[*real, *sizes],
        summary={
            "exact": exact,
            "peers": peers,
            "seconds": round(time.perf_counter() - start, 1),
        },
        verdicts=verdicts,
        records=clustering_report.records(real, sizes),
        pictures=[picture],
        tables=lambda: clustering_report.print_tables(
            console, real, exact, sizes, missing=sorted({*PEERS} - {*peers})
        ),
    )


def whole(config: Config, console: Console) -> bool:
    """Run the study on its data."""
    study.have_cpu_devices(8)
    return run(config, console)


main = study.main_of(_PROG, PRESETS, whole, check_config)


if __name__ == "__main__":
    sys.exit(main())
