"""The peers of `benchmarks`, by their public interfaces: flow_matching, PyTorch and others.

    PYTHON -P experiments/systems/benchmarks/torch_side.py THREADS

`benchmarks` runs it in an environment that has these packages; it imports nothing of `dfm_jax`.
"""

import sys
from pathlib import Path

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

# -P: its own folder is not searched for modules, and the checkout is.
sys.path.append(str(Path(__file__).parents[3]))
from experiments.systems.benchmarks import torch_clusters, torch_samplers
from experiments.systems.benchmarks.serving import Case, serve
from experiments.systems.benchmarks.torch_samplers import mixture_path


def prepare(workload, size, arrays):
    """All peers of a workload at a size."""
    data = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return WORKLOADS[workload](size, data)


# ── paths, losses ───────────────────────────────────────────────────────────────────────────────


def path_sampling(size, data):
    """Draw x_t for each row at its own time."""
    path = mixture_path()

    def shown(x_t):
        moved = x_t.numpy().reshape(-1, 8, size["N"]) >= 500
        return [*moved.sum((0, 2)).tolist(), *(~moved).sum((0, 2)).tolist()]

    def run():
        return path.sample(x_0=data["x_0"], x_1=data["x_1"], t=data["kappa"]).x_t

    return {"flow_matching": Case(run, shown)}


def differentiated(logits, loss, x_1):
    """A loss of the logits and its gradient."""
    logits = logits.requires_grad_()
    rows = torch.arange(0, x_1.numel(), 37)

    def run():
        logits.grad = None
        value = loss(logits)
        value.backward()
        return value.item()

    def shown(value):
        flat = logits.grad.reshape(x_1.numel(), -1)
        return [[value], flat[rows, x_1.reshape(-1)[rows]].tolist()]

    return Case(run, shown)


def generalized_kl(size, data):
    """Forward and backward."""
    from flow_matching.loss import (  # pyright: ignore[reportMissingImports]
        MixturePathGeneralizedKL,
    )

    loss = MixturePathGeneralizedKL(path=mixture_path())

    def value(logits):
        return loss(logits=logits, x_1=data["x_1"], x_t=data["x_t"], t=data["t"])

    return {"flow_matching": differentiated(data["logits"], value, data["x_1"])}


def cross_entropy(size, data):
    """Forward and backward."""
    targets = data["x_1"].reshape(-1)

    def value(logits):
        return F.cross_entropy(logits.reshape(-1, size["V"]), targets)

    return {"torch": differentiated(data["logits"], value, data["x_1"])}


WORKLOADS = {
    "path sampling": path_sampling,
    "generalized KL": generalized_kl,
    "cross-entropy": cross_entropy,
    **torch_samplers.WORKLOADS,
    **torch_clusters.WORKLOADS,
}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    serve(prepare)
