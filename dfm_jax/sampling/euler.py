"""Euler's steps in continuous time.   [S3, S4]

κ̇/(1 − κ) is unbounded at t = 1. So a run that ends there draws its last step from p̂_{1|t} (S4). A
run that ends before returns X_t, a draw of the path at that time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_count, check_interval, check_tokens, require
from dfm_jax.interfaces import Denoiser
from dfm_jax.paths import point_mass, sample_path
from dfm_jax.sampling.jumps import VALID, Method, Source, State, checked_run, run_steps, start
from dfm_jax.schedules import Schedule, rate
from dfm_jax.steps import step_probs
from dfm_jax.types import Array, ArrayLike, Context, Float, Key, Tokens, typed


@typed
def sample_euler(
    key: Key,
    params: Any,
    denoiser: Denoiser,
    x_0: Tokens,
    schedule: Schedule,
    times: Float[ArrayLike, " times"],
    *,
    source: Source,
    context: Context | None = None,
    carry_over: bool | None = None,
    method: Method = "clear",
    rows_at_once: int | None = None,
) -> Tokens:
    """Euler's steps of the x_1-prediction on a grid of times.   [S3, S4, V5]

        X_{t+h}^i ~ δ + h κ̇_t/(1 − κ_t) [p̂_{1|t}^i(· | X_t) − δ],  the step to t = 1 from p̂_{1|t}

    The global error is O(h). For a linear schedule it is the exact finite step of the same grid.
    `sample_on_table` of `schedules.masked` uses the exact (κ_{t+h} − κ_t)/(1 − κ_t) instead of h
    κ̇_t/(1 − κ_t); there is seldom a reason to prefer this function.

    Args:
        key: The key of this sequence; `jax.vmap` over keys makes the batch.
        params: The parameters of the denoiser.
        denoiser: A static function; keep one and do not make one per call.
        x_0: The state at `times[0]`.
        schedule: κ_t, one number or one per position.
        times: Times that increase in [0, 1], from that of `x_0` to that of the result.
        source: See `sample_on_table`.
        context: True where a token is given and stays.
        carry_over: See `sample_on_table`.
        method: See `sample_on_table`.
        rows_at_once: See `sample_on_table`.

    Raises:
        ValueError: if the times do not increase in [0, 1]; if h κ̇/(1 − κ) > 1, so that a step is
            not a distribution; if an id lies outside [0, S), or logits are not a distribution.
    """
    run = checked_run(
        params,
        denoiser,
        x_0,
        source=source,
        carry_over=carry_over,
        method=method,
        rows_at_once=rows_at_once,
    )
    fixed = fixed_positions(x_0, context)
    jump_probs = euler_jump_probs(schedule, times, fixed)
    times = jnp.asarray(times)
    if run.carry_over:  # a mask that is left at the last step is pending, whatever κ is
        last = jnp.where((times[-1] == 1) & ~fixed, 1.0, jump_probs[-1])
        jump_probs = jump_probs.at[-1].set(last.astype(jump_probs.dtype))
    found = run_steps(key, params, x_0, jump_probs, times[:-1], run=run)
    require(found.valid, VALID, found.valid, name="valid")
    return found.x_t


@typed
def sample_velocity(
    key: Key,
    params: Any,
    velocity: Callable[..., Array],
    x_0: Tokens,
    times: Float[ArrayLike, " times"],
    *,
    context: Context | None = None,
) -> Tokens:
    """Euler's steps of any velocity on a grid of times.   [S3, Q1]

        X_{t+h}^i ~ δ_{x_t^i} + h u_t^i(·, X_t)

    The global error is O(h). For a mixture path, with u from `velocities.posterior_to_velocity`,
    the distribution is that of `sample_euler`, except for the step to t = 1, which `sample_euler`
    draws from p̂_{1|t}. This function also works for paths whose velocity uses no posterior over
    x_1, such as metric paths.

    Args:
        key: The key of this sequence; `jax.vmap` over keys makes the batch.
        params: The parameters of the velocity.
        velocity: `velocity(params, x_t, t)` returns u_t [N, S]; it is static: keep one.
        x_0: The state at `times[0]`.
        times: Times that increase in [0, 1], from that of `x_0` to that of the result.
        context: True where a token is given and stays; its velocity is not read.

    Raises:
        ValueError: if the times do not increase in [0, 1]; if an id lies outside [0, S); if a step
            is not a distribution, because a rate to leave is above 1/h, a rate is below 0, a row
            does not sum to 0, or there is a NaN (under an outer jit only with checkify).
    """
    x_0, times = jnp.asarray(x_0), jnp.asarray(times)
    shape = jax.eval_shape(velocity, params, x_0, times[0]).shape
    rule = f"`velocity` must return [N, S] with N = {x_0.shape[0]}, the number of positions"
    require(shape[:-1] == x_0.shape, rule, tuple(shape), name="velocity(params, x_t, t).shape")
    check_tokens("x_0", x_0, shape[-1])
    sizes, _ = grid(times)
    fixed = fixed_positions(x_0, context)
    found = _by_velocity(key, params, x_0, fixed, sizes, times[:-1], velocity=velocity)
    rule = "`velocity` must make δ + h u a distribution: its rate to leave must be at most 1 / h"
    require(found.valid, rule, found.valid, name="valid", then="Take smaller steps.")
    return found.x_t


@partial(jax.jit, static_argnames="velocity")
def _by_velocity(
    key: Key,
    params: Any,
    x_0: Array,
    fixed: Array,
    sizes: Array,
    times: Array,
    *,
    velocity: Callable[..., Array],
) -> State:
    def step(state: State, row: tuple[Array, Array, Array]) -> tuple[State, None]:
        index, size, t = row
        probs = step_probs(size * velocity(params, state.x_t, t), state.x_t)
        stay = point_mass(state.x_t, probs.shape[-1], dtype=probs.dtype)
        probs = jnp.where(fixed[:, None], stay, probs)
        slack = 64 * float(jnp.finfo(probs.dtype).eps)  # of 1 − h|u| and of a row's sum
        is_distribution = jnp.all(probs >= -slack) & jnp.all(
            jnp.abs(jnp.sum(probs, axis=-1) - 1) <= slack
        )
        valid = state.valid & is_distribution
        probs = jnp.where(valid, jnp.maximum(probs, 0.0), stay)  # what is frozen stays
        drawn = sample_path(jax.random.fold_in(key, index), probs).astype(state.x_t.dtype)
        return State(drawn, valid), None

    return jax.lax.scan(step, start(x_0), (jnp.arange(sizes.shape[0]), sizes, times))[0]


def euler_jump_probs(
    schedule: Schedule, times: Float[ArrayLike, " times"], fixed: Array
) -> Float[Array, "steps N"]:
    """The probability that a position is drawn anew in a step: h κ̇/(1 − κ), then 1.   [S3, S4]"""
    times = jnp.asarray(times)
    sizes, ends = grid(times)
    shape = (sizes.shape[0], *fixed.shape)

    def rows(at: Callable[[Array], Array]) -> Array:
        values = jax.vmap(at)(times[:-1])
        return jnp.broadcast_to(values.reshape(shape[0], -1), shape)

    jump_probs = sizes[:, None] * rows(lambda t: rate(t, schedule))
    left = rows(schedule.kappa) < 1
    jump_probs = jnp.where(ends[:, None], left.astype(jump_probs.dtype), jump_probs)
    jump_probs = jnp.where(fixed[None], 0.0, jump_probs)
    rule, then = "`times` must have steps h ≤ (1 − κ)/κ̇", "Take smaller steps."
    require(jump_probs <= 1, rule, jnp.max(jump_probs), name="max h κ̇/(1 − κ)", then=then)
    return jump_probs


def grid(times: Array) -> tuple[Array, Array]:
    """The size of every step, and whether the last ends at t = 1; times must increase."""
    check_count("the number of times", times.shape[0], at_least=2)
    check_interval("times", times, 0.0, 1.0)
    sizes = jnp.diff(times)
    require(sizes > 0, "`times` must increase", sizes, name="diff(times)")
    return sizes, times[1:] == 1


def fixed_positions(x_0: ArrayLike, context: Context | None) -> Array:
    """The positions that are given; a context of None means none."""
    return jnp.zeros(jnp.shape(x_0), bool) if context is None else jnp.asarray(context)
