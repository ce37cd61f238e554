"""Euler's steps in continuous time, whose size adapts to the state.   [S3, S4]"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.interfaces import Denoiser
from dfm_jax.sampling.euler import fixed_positions
from dfm_jax.sampling.jumps import (
    VALID,
    Run,
    Source,
    State,
    checked_run,
    jumped,
    posterior_rows,
    revealed,
)
from dfm_jax.sampling.jumps import start as at_start
from dfm_jax.schedules import Schedule, rate
from dfm_jax.types import Array, Context, Int, Key, Number, Time, Tokens, typed


class AdaptiveSample(NamedTuple):
    """A sequence, and the number of steps that it took."""

    tokens: Int[Array, " N"]
    num_steps: Int[Array, ""]  # evaluations of the denoiser but for the last step


@typed
def sample_adaptive(
    key: Key,
    params: Any,
    denoiser: Denoiser,
    x_0: Tokens,
    schedule: Schedule,
    *,
    source: Source,
    jumps: Number,
    largest_step: Number,
    start: Time = 0,
    end: Time,
    finish: bool,
    max_steps: int,
    context: Context | None = None,
    carry_over: bool | None = None,
) -> AdaptiveSample:
    """Euler's steps, each of a size in which few jumps are expected.   [S3, S4]

        h = min( ε / Σ_i κ̇_t/(1 − κ_t) [1 − p̂_{1|t}^i(X_t^i | X_t)],  h_max,  t_end − t )

    The error of a step comes from two jumps in it, which have probability near ε²/2. Where few
    jumps are expected, steps are long. No step is longer than the rate allows: h κ̇/(1 − κ) ≤ 1.

    Args:
        key: The key of this sequence.
        params: The parameters of the denoiser.
        denoiser: A static function.
        x_0: The state at `start`.
        schedule: κ_t.
        source: See `sample_on_table`.
        jumps: ε, the expected number of jumps in a step, in (0, 1].
        largest_step: h_max, in units of time.
        start: The time of `x_0`.
        end: The time at which the process stops, in (start, 1).
        finish: If True, all pending positions are then drawn from p̂_{1|end} (S4). If False, the
            result is a draw of the path at `end`.
        max_steps: The largest number of steps; a run that needs more is refused.
        context: True where a token is given and stays.
        carry_over: See `sample_on_table`.

    Raises:
        ValueError: if an option lies outside its domain; if `max_steps` steps do not reach the end;
            if an id lies outside [0, S), or logits are not a distribution.
    """
    run = checked_run(params, denoiser, x_0, source=source, carry_over=carry_over)
    check_interval("jumps", jumps, 0, 1, ends="(]")
    check_interval("largest_step", largest_step, 0, 1, ends="(]")
    check_interval("start", start, 0, 1, ends="[)")
    check_interval("end", end, 0, 1, ends="()")
    rule = "`end` must be larger than `start`"
    require(jnp.asarray(end) > start, rule, end)
    check_count("max_steps", max_steps)
    options = tuple(jnp.asarray(value, float) for value in (jumps, largest_step, start, end))
    fixed = fixed_positions(x_0, context)
    found, t, num_steps = _adaptive(
        key, params, x_0, fixed, options, schedule=schedule, run=run, finish=finish, most=max_steps
    )
    require(found.valid, VALID, found.valid, name="valid")
    rule = f"The sampler must reach `end` within `max_steps` = {max_steps} steps"
    require(t >= options[3], rule, t, name="t", then="Allow more steps, or larger ones.")
    return AdaptiveSample(found.x_t, num_steps)


@partial(jax.jit, static_argnames=("schedule", "run", "finish", "most"))
def _adaptive(
    key: Key,
    params: Any,
    x_0: Array,
    fixed: Array,
    options: tuple[Array, ...],
    *,
    schedule: Schedule,
    run: Run,
    finish: bool,
    most: int,
) -> tuple[State, Array, Array]:
    jumps, largest_step, first, end = options

    def goes_on(carry: tuple[State, Array, Array]) -> Array:
        state, t, count = carry
        return (t < end) & (count < most) & state.valid

    def step(carry: tuple[State, Array, Array]) -> tuple[State, Array, Array]:
        state, t, count = carry
        free = ~fixed & ~revealed(state.x_t, run)
        rates = jnp.where(free, rate(t, schedule), 0.0)
        posterior, _ = posterior_rows(params, state, free, t, run)
        columns = jnp.arange(posterior.shape[-1])[None] == state.x_t[:, None]
        leaves = 1 - jnp.sum(jnp.where(columns, posterior, 0.0), axis=-1)
        total, fastest = jnp.sum(rates * leaves), jnp.max(rates)
        size = jnp.minimum(jumps / total, 1 / fastest)  # ∞ where nothing moves
        size = jnp.minimum(jnp.minimum(size, largest_step), end - t)
        own = jax.random.fold_in(key, count)
        jump_probs = jnp.minimum(size * rates, 1.0)
        state = jumped(own, params, state, jump_probs, t, run)
        # The last step arrives, whatever rounding says.
        return state, jnp.where(size >= end - t, end, t + size), count + 1

    state, t, count = jax.lax.while_loop(goes_on, step, (at_start(x_0), first, jnp.array(0)))
    if finish:
        left = jnp.broadcast_to(schedule.kappa(end), fixed.shape) < 1
        left = left | run.carry_over  # a mask is pending, whatever κ is
        jump_probs = (left & ~fixed).astype(jumps.dtype)
        state = jumped(jax.random.fold_in(key, most), params, state, jump_probs, end, run)
    return state, t, count
