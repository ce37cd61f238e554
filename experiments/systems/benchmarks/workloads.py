"""The workloads that `benchmarks` measures: their sizes, peers, aims and data.

The aims are those of the plan and were stated before anything was measured; they are not bounds of
the mathematics. Data are NumPy arrays on disk, so that both sides of a workload read the same ones.
Here are paths, losses and training; `decoding` has samplers and mixtures, `clusters` clustering.
"""

from collections.abc import Mapping

import numpy as np

from experiments.systems.benchmarks import clusters, decoding
from experiments.systems.benchmarks.kinds import BEFORE, Goal, Size, Workload, grown
from experiments.systems.training_speed.sides import AS_COMMANDS_START, BUFFERS_KEPT

TRAINING = "AR training step"
_FLOW, _TORCH = "flow_matching", "torch"
_WIDE = grown("V", (512, 2048, 8192, 32768), batch=8, N=128)


def _of_losses(peer: str, ratio: float) -> tuple[Goal, ...]:
    """At both large V: the time, and a third of the peer's peak of memory."""
    large = ({"V": 8192}, {"V": 32768})
    return (
        *(Goal(peer, ratio, where) for where in large),
        *(Goal(peer, 3.0, where, of="memory") for where in large),
    )


WORKLOADS = (
    Workload(
        "path sampling",
        "N",
        grown("N", (256, 1024, 4096, 16384), batch=256),
        grown("N", (256, 1024), batch=256),
        (_FLOW,),
        "probs",
        (Goal(_FLOW, 2.0),),
        ("clear",),
    ),
    Workload(
        "generalized KL",
        "V",
        _WIDE,
        _WIDE[:2],
        (_FLOW,),
        "values",
        _of_losses(_FLOW, 5.0),
        before="generalised KL",
    ),
    Workload("cross-entropy", "V", _WIDE, _WIDE[:2], (_TORCH,), "values", _of_losses(_TORCH, 2.0)),
    *decoding.WORKLOADS,
    *clusters.WORKLOADS,
    Workload(
        TRAINING,
        "",
        (),
        (),
        (_TORCH,),
        "values",
        (
            Goal(_TORCH, 1.0, allocator=AS_COMMANDS_START, at="every"),
            Goal(BEFORE, 1.7, allocator=AS_COMMANDS_START, at="every"),
            Goal(_TORCH, 0.85, allocator=BUFFERS_KEPT, at="every"),
            Goal(_TORCH, 0.95, allocator=BUFFERS_KEPT),
        ),
        ("clear",),
    ),
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}


def inputs(workload: str, size: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """The data for both sides; they are reproducible, from a generator of the workload's own."""
    rng = np.random.default_rng([seed, list(BY_NAME).index(workload)])
    return _INPUTS[workload](dict(size), rng)


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
    return {
        "logits": rng.standard_normal((*shape, size["V"]), np.float32),
        "x_1": x_1,
        "x_t": x_t,
        "t": t,
    }


_INPUTS = {
    "path sampling": _path,
    "generalized KL": _losses,
    "cross-entropy": _losses,
    **decoding.INPUTS,
    **clusters.INPUTS,
}
