"""Bounds on held-out digits for the samplers of a trained model, by number of steps.   [L5, L3]

    −log p̂_T(x) ≤ Σ_t Σ_i λ_t^i E[1[X_t^i = m] (−log p̂^i(x^i | X_t))]                        [L5]

This is a bound for the sampler of T exact finite steps on a held-out image. Every order of single
positions has its own likelihood (L3), which takes N steps. One network without time serves all
samplers.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import schedules
from dfm_jax.likelihoods import any_order_bound, any_order_nll, grid_bound
from dfm_jax.models import TransformerConfig
from dfm_jax.sampling import denoiser_of
from dfm_jax.training.config import OptimizerConfig
from dfm_jax.types import Array, Key, Table
from experiments.flows.images import NUM_TOKENS, SIDE, Images
from experiments.flows.sources import Source
from experiments.flows.training import Member, Recipe, member_config, trained

POSITIONS = SIDE**2


def member(config: Any, images: Images) -> Member:
    """One bidirectional transformer, trained on all images from masks."""
    model = TransformerConfig(
        num_tokens=NUM_TOKENS,
        num_states=NUM_TOKENS + 1,
        width=config.width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        ffn_width=config.width * 8 // 3 // 8 * 8,
        causal=False,
        time_conditioned=False,
        learned_positions=True,
        max_positions=POSITIONS,
    )
    source = Source(
        name="masked",
        num_tokens=NUM_TOKENS,
        num_positions=POSITIONS,
        num_steps=64,
        epsilon=0.5,
        time_conditioned=False,
    )
    warmup = max(10, config.training_steps // 20)
    optimizer = OptimizerConfig(learning_rate=config.rate, warmup_steps=warmup)
    sizes = {"num_steps": config.training_steps, "batch_size": config.batch_size}
    recipe = Recipe(source=source, config=member_config(source, model, optimizer, **sizes))
    folder = config.out / "members" / "masked"
    return trained(folder, recipe, images.train, seeds=(config.seed,))


def orders() -> dict[str, Table]:
    """Tables of blocks, T from 1 to N: rows of the image, pixels far apart, all."""
    i = np.arange(POSITIONS)
    found: dict[str, Table] = {}
    for count in (1, 2, 4, 8, 16, 32, 64):
        found[f"blocks of neighbors:{count}"] = schedules.blocks(i * count // POSITIONS)
        found[f"blocks spread out:{count}"] = schedules.blocks(i % count)
    return found


def rows_of(config: Any, images: Images) -> Iterator[dict[str, Any]]:
    """Nats per pixel of every sampler after T steps, with standard errors over images."""
    found = member(config, images)
    network = found.recipe.network
    denoiser = denoiser_of(network.apply, time_conditioned=False)
    params, x = found.of_seed(0), jnp.asarray(images.test)
    keys = jax.random.split(jax.random.key(config.seed), len(images.test))
    tables = {
        f"exact step, {kind}:{count}": schedules.masked(schedule, count, POSITIONS)
        for kind, schedule in (("linear", schedules.linear()), ("cosine", schedules.cosine()))
        for count in config.steps
    } | orders()
    options = {"num_replicates": 2}

    @partial(jax.jit, static_argnums=0)  # once for every T
    def bound(whole: bool, table: Table, keys: Key, x: Array) -> Array:
        # Of a table of blocks all steps are taken: nothing is random then.
        every = whole or table.shape[0] - 1 <= config.strata
        strata = table.shape[0] - 1 if every else config.strata
        one = partial(grid_bound, num_strata=strata, antithetic=False, **options)
        return jax.vmap(lambda k, row: one(k, params, denoiser, row, table).mean)(keys, x)

    for name, table in tables.items():
        sampler, count = name.split(":")
        nats = _over(partial(bound, sampler.startswith("blocks"), table), keys, x)
        yield _row(sampler, int(count), nats)

    free = jnp.zeros(POSITIONS, bool)

    def average(keys: Key, x: Array) -> Array:
        one = partial(any_order_bound, num_strata=config.strata, **options)
        return jax.vmap(lambda k, row: one(k, params, denoiser, row, free).mean)(keys, x)

    yield _row("any order, mean", POSITIONS, _over(jax.jit(average), keys, x))

    def in_order(order: Array, _: Key, x: Array) -> Array:
        return jax.vmap(lambda row: jnp.sum(any_order_nll(params, denoiser, row, order, free)))(x)

    left = jax.jit(partial(in_order, jnp.arange(POSITIONS)))
    yield _row("left to right, exact", POSITIONS, _over(left, keys, x))


def _over(measure: Any, keys: Key, x: Array) -> np.ndarray:
    """The results for all images, some at a time, with the same draws for every sampler."""
    size = 32
    parts = [
        np.asarray(measure(jax.random.clone(keys)[at : at + size], x[at : at + size]), np.float64)
        for at in range(0, len(x), size)
    ]
    return np.concatenate(parts)


def _row(sampler: str, steps: int, nats: np.ndarray) -> dict[str, Any]:
    error = np.std(nats, ddof=1) / len(nats) ** 0.5 / POSITIONS
    return {
        "sampler": sampler,
        "steps": steps,
        "nats_per_pixel": float(np.mean(nats) / POSITIONS),
        "standard_error": float(error),
        "images": len(nats),
    }
