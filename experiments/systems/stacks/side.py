"""One side of `stacks`: draws of a fixed key, and the training step as it is compiled.

    python -m experiments.stacks.side

`stacks` runs it under either set of versions. It reads commands as lines of JSON, and answers each
with one line.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from dfm_jax import fast, paths
from dfm_jax.clustering import spherical_k_means
from dfm_jax.models import TransformerConfig, transformer, transformer_decoder
from dfm_jax.sampling import sample_autoregressive
from dfm_jax.training.batches import Batch
from experiments.lib.programs import TINY, train_step
from experiments.systems.training_speed.sides import SIZES

COUNT = 1000
PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint")


# ── draws of a fixed key ────────────────────────────────────────────────────────────────────────


def draws() -> dict[str, Callable[[jax.Array], Any]]:
    """By name, what is drawn from the key that is given."""
    shape, random = (COUNT,), jax.random
    logits = jnp.full(COUNT, -8.0).at[0].set(0.0)  # a quarter of the mass is tail
    half = logits.astype(jnp.bfloat16)
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(COUNT, 16)), jnp.float32)

    def categorical(logits: jax.Array, mode: str | None) -> Callable[[jax.Array], jax.Array]:
        return lambda key: random.categorical(key, logits, shape=shape, mode=mode)

    return {
        "bits": lambda key: random.bits(key, shape),
        "split": lambda key: random.key_data(random.split(key, COUNT)),
        "fold_in": lambda key: random.key_data(
            jax.vmap(random.fold_in, (None, 0))(key, jnp.arange(COUNT))
        ),
        "uniform": lambda key: random.uniform(key, shape),
        "uniform, bfloat16": lambda key: random.uniform(key, shape, jnp.bfloat16),
        "normal": lambda key: random.normal(key, shape),
        "normal, bfloat16": lambda key: random.normal(key, shape, jnp.bfloat16),
        "truncated normal": lambda key: random.truncated_normal(key, -2.0, 2.0, shape),
        "exponential": lambda key: random.exponential(key, shape),
        "gamma": lambda key: random.gamma(key, 0.7, shape),
        "gumbel": lambda key: random.gumbel(key, shape),
        'gumbel, mode="high"': lambda key: random.gumbel(key, shape, mode="high"),
        'gumbel, mode="high", bfloat16': lambda key: random.gumbel(
            key, shape, jnp.bfloat16, mode="high"
        ),
        "categorical": categorical(logits, None),
        'categorical, mode="high"': categorical(logits, "high"),
        'categorical, mode="high", bfloat16': categorical(half, "high"),
        "bernoulli": lambda key: random.bernoulli(key, 0.3, shape),
        "bernoulli, bfloat16": lambda key: random.bernoulli(key, jnp.bfloat16(0.3), shape),
        "randint": lambda key: random.randint(key, shape, 0, 1000),
        "permutation": lambda key: random.permutation(key, COUNT),
        "choice without replacement": lambda key: random.choice(
            key, 2 * COUNT, shape, replace=False
        ),
        "flax: lecun_normal": lambda key: linen.initializers.lecun_normal()(key, (40, 25)),
        "flax: Dropout": lambda key: linen.Dropout(0.3, deterministic=False).apply(
            {}, jnp.ones(COUNT), rngs={"dropout": key}
        ),
        "ours: parameters of a transformer": lambda key: jnp.concatenate(
            [leaf.reshape(-1) for leaf in jax.tree.leaves(transformer(TINY).init(key))]
        ),
        "ours: sample_path": lambda key: paths.sample_path(key, jax.nn.softmax(rows)),
        "ours: sample_mixture": lambda key: paths.sample_mixture(
            key, jnp.zeros(COUNT, int), jnp.ones(COUNT, int), 0.3
        ),
        "ours: fast.sample_categorical": lambda key: fast.sample_categorical(key, rows),
        "ours: spherical_k_means": lambda key: spherical_k_means(key, rows, 8).labels,
        "ours: sample_autoregressive": _tokens,
    }


def _tokens(key: jax.Array) -> jax.Array:
    params = transformer(TINY).init(jax.random.key(1))
    prompts = jnp.arange(32, dtype=jnp.int32).reshape(8, 4)
    decoder, lengths = transformer_decoder(TINY), jnp.full(8, 4)
    return sample_autoregressive(key, params, decoder, prompts, lengths, max_new=28).tokens


def in_float64() -> dict[str, Callable[[jax.Array], Any]]:
    """What is drawn where float64 is on."""
    return {
        "uniform, float64": lambda key: jax.random.uniform(key, (COUNT,)),
        "normal, float64": lambda key: jax.random.normal(key, (COUNT,)),
    }


def drawn() -> dict[str, dict[str, str]]:
    """The bits of every draw of `jax.random.key(0)`, as hexadecimal digits, and their type."""
    found = {name: draw(jax.random.key(0)) for name, draw in draws().items()}
    with jax.enable_x64(True):
        found |= {name: draw(jax.random.key(0)) for name, draw in in_float64().items()}
        return {name: _written(np.asarray(values)) for name, values in found.items()}


def _written(values: np.ndarray) -> dict[str, str]:
    return {"dtype": values.dtype.name, "bits": np.ascontiguousarray(values).tobytes().hex()}


# ── the training step ───────────────────────────────────────────────────────────────────────────


def compiled_step() -> dict[str, float]:
    """The seconds of tracing and of compiling it once more, and the bytes that it needs."""
    size = SIZES[0]
    step, state = train_step(TransformerConfig(**size.model))
    shape = (size.batch_size, size.num_positions)
    batch = Batch(jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_))
    key = jax.eval_shape(jax.random.key, 0)
    jax.clear_caches()
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch, key)
    traced = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    memory: Any = compiled.memory_analysis()
    return {
        "trace_s": traced - start,
        "compile_s": end - traced,
        "state_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def serve() -> None:
    """Answer commands until the input ends: {"do"} → a line of JSON."""
    # What libraries print is no answer: it goes where errors go.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known = {"versions": versions, "draw": drawn, "compile": compiled_step}
    for line in sys.stdin:
        answers.write(json.dumps(known[json.loads(line)["do"]]()) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
