"""Samplers, mixtures and draws of `benchmarks` on our side, and what makes a workload runnable."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import fast, mixture
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
    sample_on_table,
)
from dfm_jax.sampling.jumps import State, checked_run, jumped, start
from dfm_jax.schedules import linear, masked
from dfm_jax.steps import step_size
from experiments.systems.benchmarks.kinds import EVERY_STEP, FULL, FULL_FAST
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


def mixture_with_cache(size: dict[str, int], data: dict[str, jax.Array]) -> Cases:
    """Draw from K experts of the same network under the Bayes gate.   [D6, D7]"""
    config, num_experts = network_config(size["V"], causal=True), size["K"]
    decoders = (transformer_decoder(config),) * num_experts
    decoder, init = mixture.mixture_decoder(decoders), transformer(config).init
    experts = [init(jax.random.key(k)) for k in range(num_experts)]
    prior = jnp.full(num_experts, -jnp.log(num_experts))
    params = mixture.mixture_params(decoders, prior, experts)

    def rows(key: jax.Array, params: Any, prompts: jax.Array, lengths: jax.Array) -> Any:
        new = size["new"]
        return sample_autoregressive(key, params, decoder, prompts, lengths, max_new=new).tokens

    lengths = jnp.ones(size["batch"], int)
    return {"fast": random_case(rows, params, data["prompts"], lengths)}


def masked_model(size: dict[str, int], data: dict[str, jax.Array]) -> Cases:
    """Masked diffusion with a network; steps that move nobody are skipped, or run as others."""
    config = dataclasses.replace(network_config(size["V"], causal=False), num_states=size["V"] + 1)
    params, denoiser = transformer(config).init(jax.random.key(0)), transformer_denoiser(config)
    table = masked(linear(), size["T"], size["N"])

    def skipping(key: jax.Array, params: Any, x_0: jax.Array) -> jax.Array:
        return sample_on_table(key, params, denoiser, x_0, table, source="mask", method="sparse")

    def every(row_key: jax.Array, params: Any, x_0: jax.Array) -> jax.Array:
        run = checked_run(params, denoiser, x_0, source="mask", carry_over=None, method="sparse")

        def step(state: State, number: jax.Array) -> tuple[State, None]:
            own, jump_prob = jax.random.fold_in(row_key, number), step_size(table, number)
            return jumped(own, params, state, jump_prob, number / size["T"], run), None

        return jax.lax.scan(step, start(x_0), jnp.arange(size["T"]))[0].x_t

    def batch(one: Callable) -> Callable:
        def rows(key: jax.Array, params: Any, x_0: jax.Array) -> jax.Array:
            return jax.vmap(one, (0, None, 0))(jax.random.split(key, len(x_0)), params, x_0)

        return rows

    forms = {"fast": skipping, EVERY_STEP: every}
    return {name: random_case(batch(one), params, data["x_0"]) for name, one in forms.items()}


# ── mixtures, draws ─────────────────────────────────────────────────────────────────────────────


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


def _draw(size: dict[str, int], data: dict[str, jax.Array]) -> Cases:
    clear = lambda key, logits: jax.random.categorical(key, logits, mode="high")  # noqa: E731
    return {
        "clear": random_case(clear, data["logits"], shown=counted),
        "fast": random_case(fast.sample_categorical, data["logits"], shown=counted),
    }


WORKLOADS = {
    "Euler without its model": euler,
    "Euler with a model": euler_model,
    "AR sampling with cache": autoregressive,
    "mixture of K with cache": mixture_with_cache,
    "masked diffusion with a model": masked_model,
    "mixture of K experts": _mixture,
    "a sample from the mixture": _one_expert,
    "categorical draw": _draw,
}
