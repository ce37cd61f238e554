"""Steps forward with some steps back, in continuous time.   [V7, S3–S5]"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_distribution, check_interval, require
from dfm_jax.interfaces import Denoiser
from dfm_jax.paths import point_mass, sample_path, source_posterior
from dfm_jax.samplers import final_step_probs
from dfm_jax.sampling.euler import fixed_positions, grid
from dfm_jax.sampling.jumps import (
    VALID,
    Run,
    State,
    checked_run,
    posterior_rows,
    revealed,
    start,
)
from dfm_jax.schedules import Schedule, backward_rate, rate
from dfm_jax.steps import step_probs
from dfm_jax.types import Array, ArrayLike, Context, Float, Key, StateProbs, Tokens, typed
from dfm_jax.velocities import backward_velocity, corrected_velocity, posterior_to_velocity


@typed
def sample_corrected(
    key: Key,
    params: Any,
    denoiser: Denoiser,
    x_0: Tokens,
    schedule: Schedule,
    times: Float[ArrayLike, " times"],
    source: StateProbs,
    beta: Float[ArrayLike, " steps"],
    *,
    context: Context | None = None,
    carry_over: bool | None = None,
) -> Tokens:
    """Euler's steps forward with some steps back, which can undo a token.   [V7, S3, S4]

        X_{t+h}^i ~ δ + h [(1 + β_t) u_t^i − β_t ǔ_t^i],  ǔ by the source's p^i (P5, V6)

    β = 0 is `sample_euler`; any β ≥ 0 has the same path in the limit h → 0. A step back may turn a
    revealed token into a mask again, which is later drawn anew. The step to t = 1 is drawn from
    p̂_{1|t}, without steps back.

    Args:
        key: The key of this sequence.
        params: The parameters of the denoiser.
        denoiser: A static function.
        x_0: The state at `times[0]`.
        schedule: κ_t.
        times: Times that increase in [0, 1].
        source: The distribution of X_0 at each position [N, S], independent of X_1.
        beta: β of each step, 0 where κ_t = 0; the last one is not read if `times` end at 1.
        context: True where a token is given and stays.
        carry_over: As in `sample_on_table`, but p̂ is fixed at the token, not the token itself.

    Raises:
        ValueError: as `sample_euler`; if β is negative, or a step is not a distribution.
    """
    run = checked_run(params, denoiser, x_0, source=jnp.asarray(source), carry_over=carry_over)
    check_distribution("source", source)
    fixed = fixed_positions(x_0, context)
    masks = jnp.all((jnp.asarray(source)[:, :-1] == 0) | fixed[:, None])
    rule = "`carry_over` must be False if the source holds tokens"
    require(masks | (not run.carry_over), rule, run.carry_over)
    check_interval("beta", beta, 0.0, jnp.inf, ends="[)")
    times, beta = jnp.asarray(times), jnp.asarray(beta)
    sizes, ends = grid(times)
    rule = f"`beta` must have {sizes.shape[0]} entries, one for each step"
    require(beta.shape == sizes.shape, rule, beta.shape, name="beta.shape")
    beta = jnp.where(ends, 0.0, beta)
    back = beta > 0
    # Where nothing goes back, the backward rate is not asked for: at t = 0 there is none.
    inner = jnp.where(back, times[:-1], 0.5)
    started = jax.vmap(lambda t: jnp.min(schedule.kappa(t)))(times[:-1]) > 0
    rule = "`beta` must be 0 where κ_t = 0, because there is nothing to go back to"
    require(started | ~back, rule, beta)
    forward = jax.vmap(lambda t: jnp.max(rate(t, schedule)))(times[:-1])
    backward = jax.vmap(lambda t: jnp.max(backward_rate(t, schedule)))(inner)
    largest = sizes * ((1 + beta) * forward + jnp.where(back, beta * backward, 0.0))
    rule = "`times` must have steps h with h [(1 + β) κ̇/(1 − κ) + β κ̇/κ] ≤ 1"
    name, then = "that product, by step,", "Take smaller steps."
    require((largest <= 1) | ends, rule, largest, name=name, then=then)
    rows = (jnp.arange(sizes.shape[0]), sizes, times[:-1], inner, beta, ends)
    found = _corrected(key, params, x_0, source, fixed, rows, schedule=schedule, run=run)
    require(found.valid, VALID, found.valid, name="valid")
    return found.x_t


@partial(jax.jit, static_argnames=("schedule", "run"))
def _corrected(
    key: Key,
    params: Any,
    x_0: Array,
    source: Array,
    fixed: Array,
    rows: Any,
    *,
    schedule: Schedule,
    run: Run,
) -> State:
    def step(state: State, row: tuple[Array, ...]) -> tuple[State, None]:
        index, *rest = row
        probs, valid = corrected_rows(
            params, state, source, fixed, rest, schedule=schedule, run=run
        )
        drawn = sample_path(jax.random.fold_in(key, index), probs).astype(state.x_t.dtype)
        return State(jnp.where(valid, drawn, state.x_t), valid), None

    return jax.lax.scan(step, start(x_0), rows)[0]


def corrected_rows(
    params: Any,
    state: State,
    source: Array,
    fixed: Array,
    row: Sequence[Array],
    *,
    schedule: Schedule,
    run: Run,
) -> tuple[Array, Array]:
    """The distribution of every position after a step [N, S], and whether the sequence is valid."""
    size, t, inner, beta, ends = row
    num_states = run.num_states
    posterior, valid = posterior_rows(params, state, ~fixed & ~revealed(state.x_t, run), t, run)
    source = jnp.asarray(source, posterior.dtype)
    forward = posterior_to_velocity(posterior, state.x_t, t, schedule, num_states=num_states)
    origin = source_posterior(posterior, source, state.x_t, schedule.kappa(inner))
    backward = backward_velocity(origin, state.x_t, inner, schedule)
    backward = jnp.where(beta > 0, backward, 0.0)
    moved = step_probs(size * corrected_velocity(forward, backward, 1 + beta, beta), state.x_t)
    left = jnp.broadcast_to(schedule.kappa(t), fixed.shape) < 1
    left = left | (run.carry_over & ~revealed(state.x_t, run))  # a mask is pending whatever κ is
    last = final_step_probs(posterior, state.x_t, left, num_states=num_states)
    # 1 − h|u| may round to just below 0.
    probs = jnp.maximum(jnp.where(ends, last, moved), 0.0)
    stay = point_mass(state.x_t, num_states, dtype=probs.dtype)
    return jnp.where(fixed[:, None], stay, probs), valid
