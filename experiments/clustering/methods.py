"""Ways to cluster unit rows that `clustering` compares, each in a process of its own.

    python -m experiments.clustering.methods METHOD rows.npy labels.npy --num-clusters 8

prints one line of JSON: the seconds of a first and a second run, and the memory that the runs added
to that of the rows. The methods are ours, faiss's spherical k-means (not balanced),
k-means-constrained, and the published one (auction on −cosine), written here from its description.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

Method = Literal[
    "ours", "ours by tokens", "ours not balanced", "faiss", "auction", "k-means-constrained"
]
_FAISS_PASSES = 25  # its default


@dataclass(frozen=True, kw_only=True)
class Job:
    """One method on one file of rows."""

    method: tyro.conf.Positional[Method]
    rows: tyro.conf.Positional[Path]
    """.npy [R, D], of unit length."""
    labels: tyro.conf.Positional[Path]
    """Where the labels are written."""
    num_clusters: int
    tokens: Path | None = None
    """.npy [R], of ours by tokens."""
    num_starts: int = 1
    """Of which the best is kept; not faiss, not the auction."""
    num_runs: int = 2
    """The first may compile."""
    max_passes: int = 100
    """Of what is balanced; what is not has faiss's 25."""


def objective(rows: np.ndarray, labels: np.ndarray) -> float:
    """(1/R) Σ_k ‖Σ_{i∈k} f_i‖: the mean cosine of rows with the best centroids for the labels."""
    sums = np.zeros((labels.max() + 1, rows.shape[1]))
    for start in range(0, len(rows), 2**15):
        own, block = labels[start : start + 2**15], rows[start : start + 2**15]
        chosen = own[None] == np.arange(len(sums))[:, None]
        sums += chosen.astype(np.float32) @ block
    return float(np.linalg.norm(sums, axis=1).sum() / len(rows))


def _ours(job: Job, rows: np.ndarray) -> Callable[[], np.ndarray]:
    import jax
    import jax.numpy as jnp

    from dfm_jax.clustering import spherical_k_means

    tokens = None if job.tokens is None else jnp.asarray(np.load(job.tokens))
    balance = {"ours": "rows", "ours by tokens": "weights", "ours not balanced": "none"}[job.method]

    def run() -> np.ndarray:
        found = spherical_k_means(
            jax.random.key(0),
            rows,
            job.num_clusters,
            balance=balance,
            weights=tokens,
            subtract_mean=False,
            num_restarts=job.num_starts,
            max_passes=_FAISS_PASSES if balance == "none" else job.max_passes,
        )
        return np.asarray(found.labels)

    return run


def _faiss(job: Job, rows: np.ndarray) -> Callable[[], np.ndarray]:
    import faiss  # pyright: ignore[reportMissingImports]

    def run() -> np.ndarray:
        means = faiss.Kmeans(
            rows.shape[1],
            job.num_clusters,
            niter=_FAISS_PASSES,
            spherical=True,
            seed=0,
            max_points_per_centroid=10**9,  # all rows, as ours
        )
        means.train(rows)
        return means.index.search(rows, 1)[1][:, 0]

    return run


def _constrained(job: Job, rows: np.ndarray) -> Callable[[], np.ndarray]:
    """It rounds a squared distance to a thousandth, which costs rows of length 1 nothing."""
    from k_means_constrained import KMeansConstrained  # pyright: ignore[reportMissingImports]

    small, more = divmod(len(rows), job.num_clusters)

    def run() -> np.ndarray:
        means = KMeansConstrained(
            job.num_clusters,
            size_min=small,
            size_max=small + (more > 0),
            n_init=job.num_starts,
            max_iter=job.max_passes,
            random_state=0,
        )
        return means.fit_predict(rows)

    return run


def _auction(job: Job, rows: np.ndarray) -> Callable[[], np.ndarray]:
    """Balanced k-means as published: cosines by an N × K × D tensor, an auction, centroids.

    In the auction clusters bid for ⌊N/K⌋ rows each. A row goes to the highest bidder, and its price
    rises by the difference between the bid and the cluster's next best row. K must divide N, or
    rows are left over.
    """
    import torch  # pyright: ignore[reportMissingImports]

    x = torch.from_numpy(rows)
    count, clusters = len(rows), job.num_clusters

    def cosines(means: torch.Tensor) -> torch.Tensor:
        units = means / means.norm(dim=1, keepdim=True)
        return (x[:, None, :] * units[None, :, :]).sum(-1)

    def auction(scores: torch.Tensor) -> torch.Tensor:
        values = scores.T.contiguous()  # [K, N]
        own, share = values.clone(), count // clusters
        epsilon = ((scores.max() - scores.min()) / 50).clamp_min(1e-4)
        price = torch.zeros(count)
        holder = torch.full((count,), -1)
        for _ in range(100):
            top, at = torch.topk(own, min(share + 1, count), dim=1)
            raise_by = top[:, :-1] - top[:, -1:] + epsilon
            bids = torch.zeros_like(values).scatter_(1, at[:, :-1], raise_by)
            best, bidder = bids.max(dim=0)
            wanted = best > 0
            price[wanted] += best[wanted]
            holder[wanted] = bidder[wanted]
            if bool((holder >= 0).all()) and bool(wanted.all()):
                break
            own = values - price
            held = torch.nonzero(wanted)[:, 0]
            own[bidder[held], held] = values[bidder[held], held]
        return holder

    def run() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        means = x[torch.randperm(count, generator=generator)[:clusters]]
        labels = torch.zeros(count, dtype=torch.long)
        for _ in range(job.max_passes):
            labels = auction(cosines(means))
            new = torch.stack([x[labels == k].mean(0) for k in range(clusters)])
            moved = (new - means).norm(dim=1).sum()
            means = new
            if float(moved) ** 2 < 1e-4:
                break
        return labels.numpy()

    return run


_METHODS = {"faiss": _faiss, "auction": _auction, "k-means-constrained": _constrained}


def _resident() -> int:
    """The memory of this process now, in bytes; its peak is counted from here on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith(name))


def main(args: list[str] | None = None) -> int:
    """Run the job, write the labels, print what it took."""
    job = tyro.cli(Job, args=args)
    rows = np.load(job.rows, mmap_mode="r")  # at a place from which jax reads without a copy
    rows.max()  # now in memory
    run = _METHODS.get(job.method, _ours)(job, rows)
    before, seconds = _resident(), []
    for _ in range(job.num_runs):
        start = time.perf_counter()
        labels = run()
        seconds.append(time.perf_counter() - start)
    np.save(job.labels, labels.astype(np.int32))
    print(json.dumps({"seconds": seconds, "added_bytes": _status("VmHWM") - before}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
