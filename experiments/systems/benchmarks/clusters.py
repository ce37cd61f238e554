"""The workloads of clustering: balanced k-means, and fine k-means beside faiss."""

import numpy as np

from experiments.systems.benchmarks.kinds import Goal, Size, Workload, grown

_CONSTRAINED, _FAISS = "k-means-constrained", "faiss"
_BALANCED = grown("K", (2, 4, 8, 32), R=10_000)
_FINE = (
    *grown("K", (64, 256, 1024), R=50_000, D=768),
    {"R": 100_000, "D": 768, "K": 1024},
)

WORKLOADS = (
    Workload(
        "balanced k-means",
        "K",
        _BALANCED,
        grown("K", (2, 8), R=2000),
        (_CONSTRAINED,),
        "objective",
        (),  # those of the plan are for the published auction: see the study `clustering`
        ("clear",),
        slow=True,
    ),
    Workload(
        "fine k-means",
        "K",
        _FINE,
        grown("K", (64,), R=5_000, D=64),
        (_FAISS,),
        "objective",
        (Goal(_FAISS, 1.0, {"R": 50_000, "K": 1024}), Goal(_FAISS, 1.0, {"R": 100_000})),
        ("clear",),
        slow=True,
    ),
)


def _features(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows of length 1 around 64 directions of unequal weight, in D or 64 dimensions."""
    share, width = rng.dirichlet(np.full(64, 2.0)), size.get("D", 64)
    directions = rng.standard_normal((64, width), np.float32)
    rows = directions[rng.choice(64, size["R"], p=share)]
    rows += rng.standard_normal((size["R"], width), np.float32)
    return {"features": rows / np.linalg.norm(rows, axis=1, keepdims=True)}


INPUTS = {"balanced k-means": _features, "fine k-means": _features}
