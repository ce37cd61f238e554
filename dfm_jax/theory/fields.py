"""The mathematics of one case at all its states, as the statements test it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import paths, schedules, velocities
from dfm_jax.schedules import Schedule
from dfm_jax.theory.cases import FAMILIES, Case, Cases
from dfm_jax.types import Array


def schedule_of(family: Array, exponent: Array) -> Schedule:
    """The schedule of a case; its family is a number, so one compilation serves all families."""
    members = (schedules.linear(), schedules.polynomial(exponent), schedules.cosine())

    def choose(part: str) -> Callable[[Array], Array]:
        def value(t: Array) -> Array:
            values = [jnp.broadcast_to(getattr(m, part)(t), exponent.shape) for m in members]
            return jnp.select([family == i for i in range(len(members))], values)

        return value

    return Schedule(choose("kappa"), choose("log_complement"))


def time_and_schedule(cases: Cases, when: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(t, family, exponent) of every case, the arguments of `schedule_of` after the time."""
    return cases.each(lambda c: (c.times[when], FAMILIES.index(c.family), c.exponent))


def states(cases: Cases) -> np.ndarray:
    """Every case's sequences of states: [I, Z, N]."""
    return cases.each(lambda c: c.states)


def tokens(cases: Cases) -> np.ndarray:
    """Every case's sequences of tokens: [I, V^N, N]."""
    return cases.each(lambda c: c.tokens)


def forward(posterior: Array, states: Array, t: Array, family: Array, exponent: Array) -> Array:
    """`posterior_to_velocity` at every state: [Z, N, S]."""
    schedule, num_states = schedule_of(family, exponent), posterior.shape[-1] + 1

    def at(p: Array, z: Array) -> Array:
        return velocities.posterior_to_velocity(p, z, t, schedule, num_states=num_states)

    return jax.vmap(at)(posterior, states)


def backward(source: Array, states: Array, t: Array, family: Array, exponent: Array) -> Array:
    """`backward_velocity` at every state: [Z, N, S]."""
    schedule = schedule_of(family, exponent)
    return jax.vmap(lambda p, z: velocities.backward_velocity(p, z, t, schedule))(source, states)


def pair_lists(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pair (x_0, x_1) of a case and log π: [P, N], [P, N], [P]."""
    num_sources, num_data = case.coupling.shape
    x_0 = np.repeat(case.states, num_data, axis=0)
    x_1 = np.tile(case.tokens, (num_sources, 1))
    return x_0, x_1, log(case.coupling).reshape(-1)


def mixture_paths(x_0: Array, x_1: Array, kappa: Array, *, num_states: int) -> Array:
    """`mixture_path` of every pair: [P, N, S]."""
    return jax.vmap(lambda a, b: paths.mixture_path(a, b, kappa, num_states=num_states))(x_0, x_1)


def over_states(at_state: Callable[[Array], Any], states: Array) -> Any:
    """`at_state` for one state after another, because its sums over pairs need much memory."""
    return jax.lax.map(at_state, states)


def log(probs: np.ndarray) -> np.ndarray:
    """log p, and −∞ where p = 0 without a warning."""
    return np.log(probs, out=np.full(probs.shape, -np.inf), where=probs > 0)
