"""The workloads that `benchmarks` measures: their sizes, peers, aims and data.

The aims are those of the plan and were stated before anything was measured; they are not bounds of
the mathematics. Data are NumPy arrays on disk, so that both sides of a workload read the same ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Size = dict[str, int]
Check = Literal["values", "probs", "objective", "none"]
"""Of a pair's results: numbers that must be equal, draws from one distribution, an objective,
nothing.
"""
FULL = "the full mixture (ours)"
FULL_FAST = "the full mixture, fast (ours)"
TRAINING = "AR training step"


@dataclass(frozen=True)
class Goal:
    """The ratio that the peer's time over ours should reach."""

    peer: str
    ratio: float
    where: Mapping[str, int] = field(default_factory=dict)  # sizes it is stated for; {}: all

    def applies(self, peer: str, size: Mapping[str, int]) -> bool:
        """Whether the aim is for this peer at this size."""
        return peer == self.peer and all(size[axis] == value for axis, value in self.where.items())


@dataclass(frozen=True)
class Workload:
    """One piece of work that we and a peer do."""

    name: str
    axis: str  # of a size: what grows
    sizes: tuple[Size, ...]  # of the standard preset
    quick: tuple[Size, ...]
    peers: tuple[str, ...]
    check: Check
    goals: tuple[Goal, ...] = ()
    forms: tuple[str, ...] = ("clear", "fast")
    slow: bool = False  # seconds a repetition: not every setting is measured

    def goal(self, peer: str, size: Mapping[str, int]) -> float | None:
        """The aim for a peer at a size, if there is one."""
        return next((goal.ratio for goal in self.goals if goal.applies(peer, size)), None)


def size_name(size: Mapping[str, int]) -> str:
    """A name such as `batch 8, V 512`, for tables, which `size_of` can read."""
    return ", ".join(f"{axis} {value}" for axis, value in size.items())


def size_of(name: str) -> Size:
    """The size from a name that `size_name` wrote."""
    pairs = (part.rsplit(" ", 1) for part in name.split(", "))
    return {axis: int(value) for axis, value in pairs}


def _grown(axis: str, values: Sequence[int], **fixed: int) -> tuple[Size, ...]:
    return tuple({**fixed, axis: value} for value in values)


_FLOW, _TORCH, _COMPILED = "flow_matching", "torch", "torch.compile"
_GPT, _CONSTRAINED, _FAISS = "transformers GPT-2", "k-means-constrained", "faiss"
_WIDE = _grown("V", (512, 2048, 8192, 32768), batch=8, N=128)
_EULER = _grown("V", (128, 512, 2048, 8192), batch=2, N=128, T=100)
_MODEL = _grown("V", (256, 1024, 8192), batch=4, N=64, T=16)
_CACHE = _grown("batch", (1, 4, 32), V=8192, new=128)
_BALANCED = _grown("K", (2, 4, 8, 32), R=10_000)
_FINE = _grown("K", (16, 64, 256, 1024), R=50_000)
_MIXTURE = _grown("K", (2, 4, 8, 16), B=32, V=32768)
_ONE = _grown("K", (2, 4, 8, 16), V=32768)
_DRAW = _grown("V", (512, 2048, 8192, 50257), R=512)

WORKLOADS = (
    Workload(
        "path sampling",
        "N",
        _grown("N", (256, 1024, 4096, 16384), batch=256),
        _grown("N", (256, 1024), batch=256),
        (_FLOW,),
        "probs",
        (Goal(_FLOW, 3.5),),
        ("clear",),
    ),
    Workload("generalized KL", "V", _WIDE, _WIDE[:2], (_FLOW,), "values", (Goal(_FLOW, 8.0),)),
    Workload("cross-entropy", "V", _WIDE, _WIDE[:2], (_TORCH,), "values", (Goal(_TORCH, 4.0),)),
    Workload(
        "Euler without its model",
        "V",
        _EULER,
        _EULER[:2],
        (_FLOW,),
        "probs",
        (Goal(_FLOW, 30.0, {"V": 512}), Goal(_FLOW, 30.0, {"V": 8192})),
        slow=True,
    ),
    Workload(
        "Euler with a model",
        "V",
        _MODEL,
        _MODEL[:1],
        (_FLOW,),
        "probs",
        (Goal(_FLOW, 1.5, {"V": 256}), Goal(_FLOW, 7.0, {"V": 8192})),
        slow=True,
    ),
    Workload(
        "AR sampling with cache",
        "batch",
        _CACHE,
        _CACHE[:1],
        (_GPT,),
        "none",
        (Goal(_GPT, 10.0, {"batch": 1}), Goal(_GPT, 3.5, {"batch": 32})),
        ("clear", "fast"),
        slow=True,
    ),
    Workload(
        "balanced k-means",
        "K",
        _BALANCED,
        _grown("K", (2, 8), R=2000),
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
        _FINE[1:2],
        (_FAISS,),
        "objective",
        (Goal(_FAISS, 1.0, {"K": 1024}),),
        ("clear",),
        slow=True,
    ),
    Workload(
        "mixture of K experts",
        "K",
        _MIXTURE,
        _MIXTURE[:2],
        (_TORCH, _COMPILED),
        "values",
        (Goal(_TORCH, 4.0, {"K": 4}), Goal(_COMPILED, 1.5, {"K": 4})),
    ),
    Workload(
        "a sample from the mixture",
        "K",
        _ONE,
        _ONE[:2],
        (FULL, FULL_FAST),
        "probs",
        (Goal(FULL, 28.0),),
        ("fast",),
    ),
    Workload(TRAINING, "", (), (), (_TORCH,), "values", (Goal(_TORCH, 1.2),), ("clear",)),
    Workload("categorical draw", "V", _DRAW, _DRAW[:2], (_TORCH,), "probs"),
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}


def inputs(workload: str, size: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """The data for both sides; they are reproducible, from a generator of the workload's own."""
    rng = np.random.default_rng([seed, list(BY_NAME).index(workload)])
    return _INPUTS[workload](dict(size), rng)


def _normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return rng.standard_normal(shape, np.float32) * np.float32(scale)


def _path(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The source is below 500, the data from 500 on, so one sees who moved. Eight kinds of κ."""
    shape = (size["batch"], size["N"])
    kappa = (np.arange(size["batch"]) % 8 + 0.5) / 8
    x_0, x_1 = rng.integers(0, 500, shape), rng.integers(500, 1000, shape)
    return {"x_0": x_0, "x_1": x_1, "kappa": kappa.astype(np.float32)}


def _losses(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A state of the linear path from uniform noise, some way to the data."""
    shape = (size["batch"], size["N"])
    t = rng.uniform(0.05, 0.9, size["batch"]).astype(np.float32)
    x_0, x_1 = rng.integers(size["V"], size=(2, *shape))
    x_t = np.where(rng.random(shape) < t[:, None], x_1, x_0)
    return {"logits": _normal(rng, *shape, size["V"]), "x_1": x_1, "x_t": x_t, "t": t}


def _euler(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One uneven posterior at every position, so that draws of all of them can be counted."""
    row = _normal(rng, size["V"], scale=3.0)
    logits = np.tile(row, (size["batch"], size["N"], 1))
    return {"logits": logits} | _noise(size, rng)


def _noise(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x_0": rng.integers(size["V"], size=(size["batch"], size["N"]))}


def _prompts(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"prompts": rng.integers(size["V"], size=(size["batch"], 1))}


def _features(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows of length 1 around 64 directions of unequal weight, in 64 dimensions."""
    share = rng.dirichlet(np.full(64, 2.0))
    rows = _normal(rng, 64, 64)[rng.choice(64, size["R"], p=share)]
    rows = rows + _normal(rng, size["R"], 64)
    return {"features": rows / np.linalg.norm(rows, axis=1, keepdims=True)}


def _mixture(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    share = rng.dirichlet(np.full(size["K"], 2.0)).astype(np.float32)
    logits = _normal(rng, size["K"], size["B"], size["V"], scale=3.0)
    return {"log_weights": np.log(share), "logits": logits}


def _one(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Heads are made over there, of normal numbers: K of them are large."""
    share = rng.dirichlet(np.full(size["K"], 2.0)).astype(np.float32)
    return {"log_weights": np.log(share), "hidden": _normal(rng, 256, scale=0.2)}


def _draw(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"logits": np.tile(_normal(rng, size["V"], scale=3.0), (size["R"], 1))}


_INPUTS = {
    "path sampling": _path,
    "generalized KL": _losses,
    "cross-entropy": _losses,
    "Euler without its model": _euler,
    "Euler with a model": _noise,
    "AR sampling with cache": _prompts,
    "balanced k-means": _features,
    "fine k-means": _features,
    "mixture of K experts": _mixture,
    "a sample from the mixture": _one,
    "categorical draw": _draw,
}
