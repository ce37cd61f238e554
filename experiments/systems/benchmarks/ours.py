"""Our side of `benchmarks`: every workload in the form that defines it, and in the fast form.

    python -m experiments.benchmarks.ours THREADS [keep]

`benchmarks` runs it; with "keep" it starts as a command of the package does. Data are arguments of
the compiled program, never constants, because a compiler may compute with constants beforehand.
Keys are made inside from a number that changes at every call.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import fast, objectives, paths
from dfm_jax.allocator import keep_buffers
from dfm_jax.schedules import linear, rate
from experiments.systems.benchmarks import ours_clusters, ours_samplers
from experiments.systems.benchmarks.ours_samplers import Cases, deterministic, random_case
from experiments.systems.benchmarks.serving import KEEP, serve

Arrays = Mapping[str, np.ndarray]


def prepare(workload: str, size: dict[str, int], arrays: Arrays) -> Cases:
    """All forms of a workload at a size, compiled, with their data."""
    return _WORKLOADS[workload](size, {name: jnp.asarray(array) for name, array in arrays.items()})


# ── paths, losses ───────────────────────────────────────────────────────────────────────────────


def _path(size: dict[str, int], data: dict[str, jax.Array]) -> Cases:
    arrays = data["x_0"], data["x_1"], data["kappa"]

    def clear(key: jax.Array, x_0: jax.Array, x_1: jax.Array, kappa: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(kappa))
        return jax.vmap(paths.sample_mixture)(keys, x_0, x_1, kappa)

    def shown(x_t: jax.Array) -> list[int]:
        """Of each kind of κ: moved, stayed."""
        moved = np.asarray(x_t).reshape(-1, 8, size["N"]) >= 500
        return [*moved.sum((0, 2)).tolist(), *(~moved).sum((0, 2)).tolist()]

    return {"clear": random_case(clear, *arrays, shown=shown)}


def _shown_loss(x_1: jax.Array) -> Callable:
    """The loss and, for every 37th row, the entry of the gradient at the data."""
    rows = np.arange(0, x_1.size, 37)
    columns = np.asarray(x_1).reshape(-1)[rows]

    def shown(result: tuple[jax.Array, jax.Array]) -> list[list[float]]:
        loss, gradient = result
        flat = gradient.reshape(x_1.size, -1)
        return [[float(loss)], np.asarray(flat[rows, columns]).tolist()]

    return shown


def _generalized_kl(size: dict[str, int], data: dict[str, jax.Array]) -> Cases:
    logits, x_1, x_t, t = (data[name] for name in ("logits", "x_1", "x_t", "t"))
    one = lambda row, x_1, x_t, t: objectives.generalized_kl_loss(  # noqa: E731
        row, x_1, x_t, t, linear()
    )

    def clear(logits: jax.Array, x_1: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.mean(jax.vmap(one)(logits, x_1, x_t, t))

    def blocked(logits: jax.Array, x_1: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        rates = jax.vmap(lambda t: rate(t, linear()))(t)
        weights = jnp.repeat(rates, size["N"]) / x_1.size
        flat = logits.reshape(-1, size["V"])
        return fast.generalized_kl(flat, x_1.reshape(-1), x_t.reshape(-1), weights)

    forms, shown = {"clear": clear, "fast": blocked}, _shown_loss(x_1)
    return {
        name: deterministic(jax.value_and_grad(form), logits, x_1, x_t, t, shown=shown)
        for name, form in forms.items()
    }


def _cross_entropy(size: dict[str, int], data: dict[str, jax.Array]) -> Cases:
    def clear(logits: jax.Array, x_1: jax.Array) -> jax.Array:
        return jnp.mean(jax.vmap(objectives.cross_entropy_loss)(logits, x_1))

    def blocked(logits: jax.Array, x_1: jax.Array) -> jax.Array:
        weights = jnp.full(x_1.size, 1 / x_1.size)
        return fast.cross_entropy(logits.reshape(-1, size["V"]), x_1.reshape(-1), weights)

    arrays, shown = (data["logits"], data["x_1"]), _shown_loss(data["x_1"])
    return {
        "clear": deterministic(jax.value_and_grad(clear), *arrays, shown=shown),
        "fast": deterministic(jax.value_and_grad(blocked), *arrays, shown=shown),
    }


_WORKLOADS: dict[str, Callable[[dict[str, int], Any], Cases]] = {
    "path sampling": _path,
    "generalized KL": _generalized_kl,
    "cross-entropy": _cross_entropy,
    **ours_samplers.WORKLOADS,
    **ours_clusters.WORKLOADS,
}


if __name__ == "__main__":
    if sys.argv[2:] == [KEEP]:
        keep_buffers()  # before jax allocates
    serve(prepare)
