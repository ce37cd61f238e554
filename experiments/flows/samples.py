"""Drawing images: the exact finite step for the masked source, Euler for the uniform one. [S2–S4]

Each state has one gate: ρ̂(x_t, t) mixes the experts' posteriors, and so their velocities (D4, D5).
Every position is drawn from the distribution of the mixed step.
"""

from functools import partial

import jax
import jax.numpy as jnp

from dfm_jax.mixture import mix_probs
from dfm_jax.models import Network, Params
from dfm_jax.paths import sample_path
from dfm_jax.samplers import final_step_probs
from dfm_jax.schedules import linear
from dfm_jax.steps import exact_step_velocity, step_probs
from dfm_jax.types import Array, Key
from dfm_jax.velocities import posterior_to_velocity
from experiments.flows.sources import Source


def sample(source: Source, key: Key, posterior_of, num_positions: int) -> Array:
    """Draw one image in T steps from (x_t, t) ↦ p̂_{1|t}: [N].

        masked     X_{t+1} ~ δ + λ_t (p̂ − δ)                                              [S2]
        uniform    X_{t+h} ~ δ + h û on [0, 1 − ε], then every position from p̂_{1|1−ε}   [S3, S4]

    A step of Euler is a distribution, because h/(1 − t) ≤ h/(h + ε) < 1.
    """
    start_key, step_key, last_key = jax.random.split(key, 3)
    steps, ends, num_states = source.num_steps, 1 - source.epsilon, source.num_states

    def step(x_t: Array, index: Array) -> tuple[Array, None]:
        if source.name == "masked":
            size = jnp.full(num_positions, 1.0) / (steps - index)
            posterior = posterior_of(x_t, index / steps)
            move = exact_step_velocity(posterior, x_t, size, num_states=num_states)
        else:
            t = ends * index / steps
            velocity = posterior_to_velocity(
                posterior_of(x_t, t), x_t, t, linear(), num_states=num_states
            )
            move = ends / steps * velocity
        probs = jnp.maximum(
            step_probs(move, x_t), 0.0
        )  # 1 − h/(1 − t) + h p̂/(1 − t) may round below
        return sample_path(jax.random.fold_in(step_key, index), probs), None

    x, _ = jax.lax.scan(step, source.start(start_key), jnp.arange(steps))
    if source.name == "masked":
        return x
    everywhere = jnp.ones(num_positions, bool)
    probs = final_step_probs(
        posterior_of(x, jnp.asarray(ends)), x, everywhere, num_states=num_states
    )
    return sample_path(last_key, probs)


@partial(jax.jit, static_argnums=(0, 1, 2))
def sampled(
    source: Source, network: Network, router: Network, experts: Params, gate: Params,
    fixed: Array, keys: Key,
) -> Array:  # fmt: skip
    """Images of K experts [K, …] under ρ̂, or under one-hot rows of `fixed`: [M, N].

    Args:
        source: The source, which gives the start and the steps.
        network: The network of an expert.
        router: The network of ρ̂.
        experts: The parameters of the experts, stacked.
        gate: The parameters of the router.
        fixed: A distribution that replaces ρ̂, or a row of zeros, [M, K].
        keys: The keys, [M].
    """

    def one(key: Key, weights: Array) -> Array:
        def posterior_of(x_t: Array, t: Array) -> Array:
            token_probs = jax.nn.softmax(jax.vmap(network.apply, (0, None, None))(experts, x_t, t))
            learned = jax.nn.softmax(router.apply(gate, x_t, t))
            return mix_probs(jnp.where(jnp.sum(weights) > 0, weights, learned), token_probs)

        return sample(source, key, posterior_of, source.num_positions)

    return jax.vmap(one)(keys, fixed)
