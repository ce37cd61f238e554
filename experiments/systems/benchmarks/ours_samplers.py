"""The samplers of `benchmarks` on our side, and the functions that make a workload runnable."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.models import (
    TransformerConfig,
    transformer,
    transformer_decoder,
    transformer_denoiser,
)
from dfm_jax.sampling import (
    Denoiser,
    denoiser_of,
    sample_autoregressive,
    sample_euler,
)
from dfm_jax.schedules import linear
from experiments.systems.benchmarks.serving import Case

Cases = dict[str, Case]
METHODS = {"clear": "clear", "fast": "sparse"}
WIDTH = 256  # of networks and heads


def deterministic(program: Callable, *data: Any, shown: Callable | None = None) -> Case:
    """A case with the same result at every call."""
    compiled = jax.jit(program)
    return Case(lambda: jax.block_until_ready(compiled(*data)), shown)


def random_case(program: Callable, *data: Any, shown: Callable | None = None) -> Case:
    """A case whose program takes a key first."""
    return numbered(jax.jit(lambda seed, *rest: program(jax.random.key(seed), *rest)), data, shown)


def numbered(function: Callable, data: tuple, shown: Callable | None) -> Case:
    """A case whose function takes the number of the call first."""
    count = 0

    def run() -> Any:
        nonlocal count
        count += 1
        return jax.block_until_ready(function(np.uint32(count), *data))

    return Case(run, shown)


def counted(drawn: Any) -> list[int]:
    """The numbers of tokens by their remainder modulo 16."""
    return np.bincount(np.asarray(drawn).reshape(-1) % 16, minlength=16).tolist()


# ── samplers ────────────────────────────────────────────────────────────────────────────────────


def _euler_cases(
    size: dict[str, int], denoisers: Mapping[str, Denoiser], params: Any, axis: int | None, x_0: Any
) -> Cases:
    """Each form with its denoiser; `axis` is the batch's in the parameters."""
    times = jnp.linspace(0.0, 1.0, size["T"] + 1)

    def sampler(form: str) -> Callable:
        def one(key: jax.Array, params: Any, x_0: jax.Array, times: jax.Array) -> jax.Array:
            return sample_euler(
                key,
                params,
                denoisers[form],
                x_0,
                linear(),
                times,
                source="tokens",
                method=METHODS[form],  # pyright: ignore[reportArgumentType]
            )

        def batch(key: jax.Array, params: Any, x_0: jax.Array, times: jax.Array) -> jax.Array:
            keys = jax.random.split(key, size["batch"])
            return jax.vmap(one, (0, axis, 0, None))(keys, params, x_0, times)

        return batch

    return {form: random_case(sampler(form), params, x_0, times, shown=counted) for form in METHODS}


def given_posterior(params: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
    """A denoiser that reads nothing: its parameters are its logits."""
    return params


def euler(size: dict[str, int], data: dict[str, jax.Array]) -> Cases:
    """A run with a given posterior."""
    denoisers = dict.fromkeys(METHODS, given_posterior)
    return _euler_cases(size, denoisers, data["logits"], 0, data["x_0"])


def network_config(num_tokens: int, *, causal: bool) -> TransformerConfig:
    """Width 256, 4 layers, 8 heads; SwiGLU as large as GPT-2's two maps."""
    return TransformerConfig(
        num_tokens=num_tokens,
        causal=causal,
        width=WIDTH,
        num_layers=4,
        num_heads=8,
        ffn_width=704,
    )


def euler_model(size: dict[str, int], data: dict[str, jax.Array]) -> Cases:
    """A run with random weights; the fast form runs the head only for tokens that jump."""
    config = network_config(size["V"], causal=False)
    network = transformer(config)
    whole = denoiser_of(network.apply, time_conditioned=False)
    params = network.init(jax.random.key(0))
    denoisers = {"clear": whole, "fast": transformer_denoiser(config)}
    return _euler_cases(size, denoisers, params, None, data["x_0"])


def autoregressive(size: dict[str, int], data: dict[str, jax.Array]) -> Cases:
    """Draw the same number of new tokens per row, with a cache; the fast form uses two levels."""
    config = network_config(size["V"], causal=True)
    decoder = transformer_decoder(config)
    params = transformer(config).init(jax.random.key(0))
    lengths = jnp.ones(size["batch"], int)

    def sampler(draw: Literal["clear", "two_level"]) -> Callable:
        def rows(key: jax.Array, params: Any, prompts: jax.Array, lengths: jax.Array) -> Any:
            options = {"max_new": size["new"], "draw": draw}
            return sample_autoregressive(key, params, decoder, prompts, lengths, **options).tokens

        return rows

    arrays = params, data["prompts"], lengths
    return {
        "clear": random_case(sampler("clear"), *arrays),
        "fast": random_case(sampler("two_level"), *arrays),
    }
