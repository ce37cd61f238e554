"""The learned half of `equality`: both objectives, by gradient descent, to one optimum.  [D12]

Everything is an expectation over the counted distribution P(k, z, v), so there is no sampling
noise: a loss above the optimum is only what the optimizer has not yet removed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.nn import log_softmax
from tqdm import tqdm

from dfm_jax.mixture import mix
from dfm_jax.objectives import decentralized_loss
from dfm_jax.types import Array, Float, Key, Scalar, typed


class Dense(NamedTuple):
    """One tabular network: a row of logits per state."""

    tokens: Float[Array, "Z V"]


class Decentral(NamedTuple):
    """K tabular networks that share nothing, and a tabular router."""

    tokens: Float[Array, "K Z V"]
    router: Float[Array, "Z K"]


class Distances(NamedTuple):
    """The distances of both variants from the counted optimum, in nats per byte unless stated."""

    dense: Float[Array, ""]  # E KL(p ‖ p̂) of the dense model, which is its objective's excess too
    mixture: Float[Array, ""]  # the same for Σ_k ρ̂_k p̂_k
    static_mixture: Float[Array, ""]  # for Σ_k w_k p̂_k: the falsifier
    dense_tv: Float[Array, ""]  # E TV, a number in [0, 1]
    mixture_tv: Float[Array, ""]
    experts: Float[Array, ""]  # Σ_k w_k excess_k
    router: Float[Array, ""]  # E KL(r ‖ ρ̂)
    d14_slack: Float[Array, ""]  # experts + router − mixture ≥ 0


@typed
def cross_entropy(probs: Float[Array, "*shape V"], logits: Float[Array, "*shape V"]) -> Array:
    """−Σ_z Σ_v P(z, v) log p̂(v | z): the expectation of L1's loss, one position to predict."""
    return -jnp.sum(probs * log_softmax(logits))


@typed
def central_objective(params: Dense, probs: Float[Array, "K Z V"]) -> Float[Array, ""]:
    """E[−log p̂(v | z)] over all the text.   [L1, A4]"""
    return cross_entropy(probs.sum(0), params.tokens)


@typed
def decentral_objective(params: Decentral, probs: Float[Array, "K Z V"]) -> Scalar:
    """J(θ, φ) = Σ_k w_k L_k(θ_k) + E[−log ρ̂_k(z; φ)].   [D12]"""
    weights = probs.sum((1, 2))
    expert_losses = jax.vmap(cross_entropy)(probs / weights[:, None, None], params.tokens)
    router_loss = cross_entropy(probs.sum(2).T, params.router)
    return decentralized_loss(expert_losses, router_loss, weights)


@typed
def distances(dense: Dense, parts: Decentral, probs: Float[Array, "K Z V"]) -> Distances:
    """The distances of both variants from the counted optimum, split as D14 splits them."""
    weights = probs.sum((1, 2))
    p_states = probs.sum((0, 2))
    p = probs.sum(0) / p_states[:, None]
    posterior = probs.sum(2).T / p_states[:, None]
    p_experts = probs / probs.sum(2, keepdims=True)

    log_dense, log_experts = log_softmax(dense.tokens), log_softmax(parts.tokens)
    log_router = log_softmax(parts.router)
    mix_states = jax.vmap(mix, in_axes=(0, 1))
    mixture = mix_states(jnp.exp(log_router), jnp.exp(log_experts))
    static = mix_states(jnp.broadcast_to(weights, posterior.shape), jnp.exp(log_experts))

    def excess(mass: Array, truth: Array, log_model: Array) -> Array:
        # KL with p̂ − p added to each term, a sum of 0: no term is negative, rounding aside.
        terms = truth * (jnp.log(truth) - log_model) - truth + jnp.exp(log_model)
        return jnp.sum(mass * terms.sum(-1))

    def tv(model: Array) -> Array:
        return jnp.sum(p_states * jnp.abs(p - model).sum(-1)) / 2

    of_mixture = excess(p_states, p, jnp.log(mixture))
    of_experts = excess(probs.sum(2), p_experts, log_experts)
    of_router = excess(p_states, posterior, log_router)
    return Distances(
        dense=excess(p_states, p, log_dense),
        mixture=of_mixture,
        static_mixture=excess(p_states, p, jnp.log(static)),
        dense_tv=tv(jnp.exp(log_dense)),
        mixture_tv=tv(mixture),
        experts=of_experts,
        router=of_router,
        d14_slack=of_experts + of_router - of_mixture,
    )


def initial(key: Key, probs: Float[Array, "K Z V"]) -> tuple[Dense, Decentral]:
    """Standard normal logits for both variants."""
    num_experts, num_states, num_bytes = probs.shape
    of_dense, of_experts, of_router = jax.random.split(key, 3)
    normal = jax.random.normal
    return (
        Dense(normal(of_dense, (num_states, num_bytes), probs.dtype)),
        Decentral(
            normal(of_experts, probs.shape, probs.dtype),
            normal(of_router, (num_states, num_experts), probs.dtype),
        ),
    )


def recorded_steps(num_steps: int, num_records: int) -> np.ndarray:
    """About `num_records` steps, 0 and the last included: half spread evenly, half denser early."""
    early = np.geomspace(1, num_steps, num_records // 2)
    evenly = np.linspace(0, num_steps, num_records - num_records // 2)
    return np.unique(np.concatenate([early, evenly]).round().astype(int))


def descend(
    counts: np.ndarray,
    *,
    alpha: float,
    learning_rate: float,
    num_steps: int,
    num_records: int,
    num_seeds: int,
    seed: int,
) -> tuple[np.ndarray, Distances]:
    """Full-batch Adam on both objectives, in float64, from several starts mapped over one axis.

    `counts` is n_k(z, v) [K, Z, V]; α/K is added to each, as in the counted half. Both variants
    take the same steps at the same learning rate, which a half cosine brings to 0. The decentral
    variant is one call for brevity: its objective is a sum over parameters that nothing shares and
    Adam goes coordinate by coordinate, so it is K + 1 separate runs [D9].

    Returns:
        The steps looked at [R] and the distances there, each [R, seeds].
    """
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        pseudo = counts + alpha / counts.shape[0]
        probs = jnp.asarray(pseudo / pseudo.sum())
        # With the usual b2 = 0.999 both variants are still 2e-5 nats away after 4,000 steps: its
        # memory of the first, large gradients slows the rare cells. The usual eps = 1e-8 is more
        # than their gradients at the end and leaves 1e-10.
        schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
        optimizer = optax.adam(schedule, b2=0.99, eps=1e-20)
        variants = (central_objective, decentral_objective)
        keys = jax.random.split(jax.random.key(seed), num_seeds)
        params = jax.vmap(lambda key: initial(key, probs))(keys)
        states = jax.vmap(lambda both: tuple(optimizer.init(variant) for variant in both))(params)

        def step(_: Array, carry: tuple) -> tuple:
            moved = [
                _step(optimizer, objective, variant, state, probs)
                for objective, variant, state in zip(variants, *carry, strict=True)
            ]
            return tuple(variant for variant, _ in moved), tuple(state for _, state in moved)

        def advance(carry: tuple, count: Array) -> tuple:
            return jax.lax.fori_loop(0, count, step, carry)

        run = jax.jit(jax.vmap(advance, in_axes=((0, 0), None)), donate_argnums=0)
        look = jax.jit(jax.vmap(lambda params: distances(params[0], params[1], probs)))
        at, carry, seen = recorded_steps(num_steps, num_records), (params, states), []
        with tqdm(total=num_steps, desc="descent", leave=False, disable=None) as progress:
            for count in np.diff(at, prepend=0):
                carry = run(carry, int(count))
                seen.append(jax.device_get(look(carry[0])))
                progress.update(int(count))
    return at, jax.tree.map(lambda *xs: np.stack(xs), *seen)


def _step(
    optimizer: optax.GradientTransformation,
    objective: Callable[..., Array],
    params: Any,
    state: optax.OptState,
    probs: Array,
) -> tuple[Any, optax.OptState]:
    updates, state = optimizer.update(jax.grad(objective)(params, probs), state, params)
    return optax.apply_updates(params, updates), state
