"""The distribution of whole runs of a sampler that chooses what it reveals, by enumeration."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact
from dfm_jax.sampling.choices import Choice, StepView
from dfm_jax.types import Array


def selected(
    posterior: Array, states: Array, draws: Array, ranks: Array, step: Array, *, choice: Choice
) -> Array:
    """What a choice selects: bool [R, Z, Y, N], for every ranking, state and draw.

    Args:
        posterior: p_{1|t} at every state, [Z, N, V].
        states: [Z, N], masks with the id V.
        draws: What is drawn at all positions, [Y, N]; a blind choice needs one.
        ranks: Orders of the positions, [R, N], which break ties.
        step: The number of the step.
        choice: See `sampling.choices`.
    """
    # Copies: a NumPy table that a program of float64 has read stays int64 for jax.
    given = (posterior, states, draws, ranks, step)
    copies = (x if isinstance(x, jax.Array) else np.array(x) for x in given)
    posterior, states, draws, ranks, step = map(jnp.asarray, copies)
    mask_id = posterior.shape[-1]

    def at(p: Array, z: Array, y: Array, rank: Array) -> Array:
        pending = z == mask_id
        return choice.select(StepView(jnp.log(p), y, pending, rank, step)) & pending

    over_draws = jax.vmap(at, (None, None, 0, None))
    over_states = jax.vmap(over_draws, (0, 0, None, None))
    return jax.vmap(over_states, (None, None, None, 0))(posterior, states, draws, ranks)


def whole_run(probs: np.ndarray, posterior: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The distribution after N steps of `exact.choice_step`, each with a random ranking: [Z].

    `kept` is what `selected` gives, the same in every step.
    """
    for _ in range(posterior.shape[1]):
        probs = np.mean([exact.choice_step(probs, posterior, one) for one in kept], axis=0)
    return probs
