"""Our side of `benchmarks`: every workload in the form that defines it, and in the fast form.

    python -m experiments.benchmarks.ours THREADS

`benchmarks` runs it. Data are arguments of the compiled program, never constants, because a
compiler may compute with constants beforehand. Keys are made inside from a number that changes at
every call.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import fast, mixture, objectives, paths
from dfm_jax.clustering import spherical_k_means
from dfm_jax.schedules import linear, rate
from experiments.systems.benchmarks.ours_samplers import (
    WIDTH,
    Cases,
    autoregressive,
    counted,
    deterministic,
    euler,
    euler_model,
    numbered,
    random_case,
)
from experiments.systems.benchmarks.serving import serve
from experiments.systems.benchmarks.workloads import FULL, FULL_FAST

Arrays = Mapping[str, np.ndarray]


def prepare(workload: str, size: dict[str, int], arrays: Arrays) -> Cases:
    """All forms of a workload at a size, compiled, with their data."""
    return _WORKLOADS[workload](size, {name: jnp.asarray(array) for name, array in arrays.items()})


# ── paths, losses, draws ────────────────────────────────────────────────────────────────────────


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


def _draw(size: dict[str, int], data: dict[str, jax.Array]) -> Cases:
    clear = lambda key, logits: jax.random.categorical(key, logits, mode="high")  # noqa: E731
    return {
        "clear": random_case(clear, data["logits"], shown=counted),
        "fast": random_case(fast.sample_categorical, data["logits"], shown=counted),
    }


# ── clusters and mixtures ───────────────────────────────────────────────────────────────────────


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


def _mixture(size: dict[str, int], data: dict[str, jax.Array]) -> Cases:
    def clear(log_weights: jax.Array, logits: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(logits)
        return jax.vmap(mixture.mix_log_probs, (None, 1))(log_weights, log_probs)

    arrays = data["log_weights"], data["logits"]
    shown = lambda log_probs: [np.asarray(log_probs[:, ::509]).reshape(-1).tolist()]  # noqa: E731
    return {
        "clear": deterministic(clear, *arrays, shown=shown),
        "fast": deterministic(mixture.mix_logits, *arrays, shown=shown),
    }


def _one_expert(size: dict[str, int], data: dict[str, jax.Array]) -> Cases:
    """The next token: from one expert that is drawn, or from all of them mixed.   [S7]"""
    heads = jax.random.normal(jax.random.key(1), (size["K"], size["V"], WIDTH))
    arrays = data["log_weights"], data["hidden"][None], heads

    def every(hidden: jax.Array, heads: jax.Array) -> jax.Array:
        """One product: its operand is the heads as they lie."""
        return (hidden @ heads.reshape(-1, WIDTH).T).reshape(heads.shape[:2])

    def one(key: jax.Array, log_weights: jax.Array, hidden: jax.Array, heads: Any) -> jax.Array:
        first, second = jax.random.split(key)
        expert = jax.random.categorical(first, log_weights)
        return fast.sample_categorical(second, hidden @ heads[expert].T)

    def full(key: jax.Array, log_weights: jax.Array, hidden: jax.Array, heads: Any) -> jax.Array:
        log_probs = jax.nn.log_softmax(every(hidden, heads))
        mixed = mixture.mix_log_probs(log_weights, log_probs)
        return jax.random.categorical(key, mixed, mode="high")

    def quick(key: jax.Array, log_weights: jax.Array, hidden: jax.Array, heads: Any) -> jax.Array:
        mixed = mixture.mix_logits(log_weights, every(hidden, heads)[:, None])[0]
        return fast.sample_categorical(key, mixed)

    forms = {"fast": one, FULL: full, FULL_FAST: quick}
    return {name: random_case(form, *arrays, shown=counted) for name, form in forms.items()}


_WORKLOADS: dict[str, Callable[[dict[str, int], Any], Cases]] = {
    "path sampling": _path,
    "generalized KL": _generalized_kl,
    "cross-entropy": _cross_entropy,
    "Euler without its model": euler,
    "Euler with a model": euler_model,
    "AR sampling with cache": autoregressive,
    "balanced k-means": lambda size, data: _k_means(size, data, balance="rows"),
    "fine k-means": lambda size, data: _k_means(size, data, max_passes=10),
    "mixture of K experts": _mixture,
    "a sample from the mixture": _one_expert,
    "categorical draw": _draw,
}


if __name__ == "__main__":
    assert len(sys.argv) == 2
    serve(prepare)
