"""Fixed share at several α at once, without the other gates, for the choice of α.   [D7]"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.comparison.gates import Sequences, chunks
from dfm_jax.mixture import GateState, fixed_share_update, gate_init, mix_log_probs
from dfm_jax.types import Array


def fixed_share_losses(
    token_log_probs: np.ndarray,
    sequences: Sequences,
    log_prior: np.ndarray,
    alphas: Sequence[float],
) -> np.ndarray:
    """−Σ log p over the whole text under each α, [A], in nats, in float64 on the host's CPU.

    Args:
        token_log_probs: log p_k(byte | the bytes before it) for every byte of the text, [N, K].
        sequences: The sequences, at which the gate starts again.
        log_prior: log w_k, [K].
        alphas: The values of α, [A].
    """
    first = np.zeros(sequences.num_bytes, bool)
    first[sequences.starts] = True
    total = np.zeros(len(alphas))
    cpu = jax.local_devices(backend="cpu")[0]
    places = chunks(sequences)
    with jax.enable_x64(True), jax.default_device(cpu):
        prior, chances = jnp.asarray(log_prior), jnp.asarray(alphas)
        shape = (places.shape[-1], len(alphas))
        states = jax.tree.map(
            lambda x: jnp.broadcast_to(x[None, None], (*shape, *x.shape)), gate_init(prior)
        )
        for here in places:
            states, found = _chunk(
                states, token_log_probs[here], first[here], here >= 0, prior, chances
            )
            total += np.asarray(found)
    return total


@jax.jit
def _chunk(
    states: GateState, log_probs: Array, first: Array, real: Array, log_prior: Array, alphas: Array
) -> tuple[GateState, Array]:
    """States [L, A] after these bytes, [T, L], and their losses by α."""
    start = gate_init(log_prior)

    def at_byte(state: GateState, log_probs: Array, first: Array, alpha: Array) -> tuple:
        state = jax.tree.map(partial(jnp.where, first), start, state)
        loss = -mix_log_probs(state.log_weights, log_probs)
        return fixed_share_update(state, log_probs, log_prior, alpha), loss

    over_lanes = jax.vmap(jax.vmap(at_byte, (0, None, None, 0)), (0, 0, 0, None))

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        states, total = carry
        log_probs, first, real = inputs
        states, losses = over_lanes(states, log_probs, first, alphas)
        return (states, total + jnp.sum(jnp.where(real[:, None], losses, 0), axis=0)), None

    inputs = (log_probs, first, real)
    return jax.lax.scan(step, (states, jnp.zeros(alphas.size)), inputs)[0]
