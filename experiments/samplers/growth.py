"""Seconds of message passing against N and the hidden states, and of its products alone."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, markov
from dfm_jax.checks import without_traced_checks
from experiments.samplers.config import Config
from experiments.samplers.sources import hidden_chain


def products_alone(x_t: jax.Array, initial: jax.Array, transition: jax.Array, emission: jax.Array):
    """The 2N products of a vector and a matrix, and the one with the emission: nothing else."""

    def step(carry: tuple, _: None) -> tuple[tuple, tuple]:
        forward, backward = carry
        forward = jnp.dot(forward, transition, precision="highest")
        backward = jnp.dot(transition, backward, precision="highest")
        return (forward, backward), (forward, backward)

    begin = initial, jnp.ones_like(initial)
    _, (forward, backward) = jax.lax.scan(step, begin, None, length=x_t.shape[0])
    return jnp.dot(forward, emission, precision="highest"), backward


def timed(config: Config) -> list[dict[str, Any]]:
    """Medians over rounds, in turns: ours in jax and NumPy, and the products alone."""
    rows = []
    for length in config.lengths:
        for size in config.hidden_sizes:
            rows.append(_one(length, size, config))
    return rows


def _one(length: int, size: int, config: Config) -> dict[str, Any]:
    source = hidden_chain(size, config.stay, config.shown, config.seed)
    x = exact.draw_sequences(source, np.random.default_rng(0), 1, length)[0]
    known = np.arange(length) % 2 == 0
    args = (
        jnp.asarray(np.where(known, x, size)),
        *(jnp.asarray(part, jnp.float32) for part in source),
    )
    ours = jax.jit(lambda *given: markov.hidden_markov_posterior(*given))
    alone = jax.jit(products_alone)
    with without_traced_checks():  # as in a sampler's loop: a traced check slows the call down
        ours(*args)
    sides: dict[str, Callable[[], Any]] = {
        "jax": lambda: jax.block_until_ready(ours(*args)),
        "products": lambda: jax.block_until_ready(alone(*args)),
    }
    seconds = {name: [] for name in [*sides, "numpy"]}
    for turn in range(10 * config.num_blocks + 1):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - began)
    # Not in turns with the others: NumPy's threads spin for a while after each product.
    for _ in range(config.num_blocks):
        began = time.perf_counter()
        exact.token_posteriors(source, x, known)
        seconds["numpy"].append(time.perf_counter() - began)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "length": length,
        "hidden": size,
        **{f"{name}_seconds": value for name, value in median.items()},
        "ratio": median["jax"] / median["products"],
        "message_bytes": 8 * length * size,
    }
