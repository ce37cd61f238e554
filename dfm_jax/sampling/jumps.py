"""One loop for all samplers of mixture paths: c gives who jumps, p̂_{1|t} gives where to.

    X_{t+}^i ~ δ_{x_t^i} + c_t^i [p̂_{1|t}^i(· | x_t) − δ_{x_t^i}],  independently over i   [S2–S4]

A position jumps with probability c = λ in the exact step (Q3), h κ̇/(1 − κ) in Euler's step (S3),
and 1[κ < 1] in the last step (S4).
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.boundary import widened
from dfm_jax.checks import check_count, check_num_states, check_tokens, require
from dfm_jax.fast import sample_categorical
from dfm_jax.interfaces import Denoiser
from dfm_jax.paths import sample_path
from dfm_jax.sampling.denoisers import halves, log_probs, logits_shape, whole
from dfm_jax.steps import exact_step_velocity, step_probs
from dfm_jax.types import Array, ArrayLike, Key, StateProbs, Step

Method = Literal["clear", "sparse"]
Source = Literal["mask", "tokens"]
VALID = "The logits of a denoiser must hold a finite number and no NaN where a token moves"


class Run(NamedTuple):
    """The values that stay the same from step to step."""

    denoiser: Denoiser
    num_states: int  # S
    carry_over: bool  # a token that is no mask stays
    method: Method
    rows_at_once: int  # the number of rows that "sparse" computes together


def checked_run(
    params: Any,
    denoiser: Denoiser,
    x_0: ArrayLike,
    *,
    source: Source | StateProbs,
    carry_over: bool | None,
    method: Method = "clear",
    rows_at_once: int | None = None,
) -> Run:
    """Refuse arguments that cannot be used. S is V + 1 for a source of masks, V for one of tokens.

    Raises:
        ValueError: if the distributions of a source do not have V or V + 1 columns; if an id of
            `x_0` lies outside [0, S); if `carry_over` is True and no state is a mask.
    """
    x_0 = jnp.asarray(x_0)
    require(x_0.ndim == 1, "`x_0` must be one sequence [N]", x_0.shape, name="x_0.shape")
    shape = logits_shape(params, denoiser, x_0)
    rule = f"`denoiser` must return [N, V] with N = {x_0.shape[0]}, the number of positions"
    good = len(shape) == 2 and shape[0] == x_0.shape[0]
    require(good, rule, tuple(shape), name="denoiser(params, x_t, t).shape")
    has_mask = source == "mask" if isinstance(source, str) else source.shape[-1] == shape[1] + 1
    num_states = shape[1] + has_mask
    if not isinstance(source, str):
        check_num_states(source.shape[-1], shape[1])
    check_tokens("x_0", x_0, num_states)
    carried = has_mask if carry_over is None else carry_over
    rule = "`carry_over` must be False if no state is a mask"
    require(has_mask or not carried, rule, carried)
    rule = '`method` must be "clear" or "sparse"'
    require(method in ("clear", "sparse"), rule, method)
    rows_at_once = max(1, x_0.shape[0] // 16) if rows_at_once is None else rows_at_once
    check_count("rows_at_once", rows_at_once, at_most=x_0.shape[0])
    return Run(denoiser, num_states, carried, method, rows_at_once)


class State(NamedTuple):
    """A sequence during a run."""

    x_t: Array  # [N]
    # False: somewhere a token had to move by logits that are no distribution, and all froze
    valid: Array


def start(x_0: ArrayLike) -> State:
    """The state before the first step."""
    return State(jnp.asarray(x_0), jnp.array(True))


@partial(jax.jit, static_argnames="run")
def run_steps(
    key: Key,
    params: Any,
    x_0: ArrayLike,
    jump_probs: Array,
    times: Array,
    first: Step = 0,
    *,
    run: Run,
) -> State:
    """Run all steps of a grid.

    Jump probabilities are [T, N], and the denoiser's times [T]. `first` is the number of the first
    step. Step s uses the key folded with s.
    """

    def step(state: State, row: tuple[Array, Array, Array]) -> tuple[State, None]:
        index, jump_prob, t = row
        return jumped(jax.random.fold_in(key, index), params, state, jump_prob, t, run), None

    rows = (first + jnp.arange(jump_probs.shape[0]), jump_probs, times)
    if run.method == "clear":
        return jax.lax.scan(step, start(x_0), rows)[0]
    order, count = moving_steps(key, jnp.asarray(x_0), jump_probs, first, run=run)

    def next_step(carry: tuple[Array, State]) -> tuple[Array, State]:
        number, state = carry
        row = jax.tree.map(lambda leaf: leaf[order[number]], rows)
        return number + 1, step(state, row)[0]

    def goes_on(carry: tuple[Array, State]) -> Array:
        return (carry[0] < count) & carry[1].valid

    return jax.lax.while_loop(goes_on, next_step, (jnp.array(0), start(x_0)))[1]


def moving_steps(
    key: Key, x_0: Array, jump_probs: Array, first: Step = 0, *, run: Run
) -> tuple[Array, Array]:
    """The steps [T] in which "sparse" moves somebody, in order, and their number.

    Who jumps does not depend on values: so all jumps are known before the network is evaluated, and
    the steps in which nobody jumps need no network. T stands behind the last of them.
    """
    num_steps = jump_probs.shape[0]

    def step(free: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        index, jump_prob = row
        jumps = free & _jumps(jax.random.fold_in(key, index), jump_prob)[0]
        return free & ~(jumps & run.carry_over), jnp.any(jumps)

    rows = (first + jnp.arange(num_steps), jump_probs)
    _, moves = jax.lax.scan(step, ~revealed(x_0, run), rows)
    at = jnp.where(moves, jnp.cumsum(moves) - 1, num_steps)
    order = jnp.full(num_steps, num_steps).at[at].set(jnp.arange(num_steps), mode="drop")
    return order, jnp.sum(moves)


def jumped(key: Key, params: Any, state: State, jump_prob: Array, t: Array, run: Run) -> State:
    """The state after one step."""
    jump_prob = jnp.where(revealed(state.x_t, run) | ~state.valid, 0.0, jump_prob)
    if run.method == "clear":
        return _every_row(key, params, state, jump_prob, t, run)
    return _sparse(key, params, state, jump_prob, t, run)


def revealed(x_t: Array, run: Run) -> Array:
    """True where a token is carried over because it is not a mask."""
    return (x_t != run.num_states - 1) & run.carry_over


def posterior_rows(
    params: Any, state: State, needed: Array, t: Array, run: Run
) -> tuple[Array, Array]:
    """p̂_{1|t} [N, V], one-hot at revealed tokens, and whether each needed row is a distribution."""
    logits = whole(run.denoiser)(params, state.x_t, t)
    is_distribution = jnp.isfinite(jnp.max(logits, axis=-1))
    valid = state.valid & jnp.all(is_distribution | ~needed)
    posterior = jnp.exp(log_probs(jnp.where(is_distribution[:, None], logits, 0.0)))
    own = jnp.arange(posterior.shape[-1])[None] == state.x_t[:, None]
    carried = revealed(state.x_t, run)[:, None]
    return jnp.where(carried, own.astype(posterior.dtype), posterior), valid


def step_rows(
    params: Any, state: State, jump_prob: Array, t: Array, run: Run
) -> tuple[Array, Array]:
    """The distribution of every position after a step [N, S], and whether the sequence is valid."""
    posterior, valid = posterior_rows(params, state, jump_prob > 0, t, run)
    jump_prob = jump_prob.astype(posterior.dtype)
    move = exact_step_velocity(posterior, state.x_t, jump_prob, num_states=run.num_states)
    return step_probs(move, state.x_t), valid


def _every_row(key: Key, params: Any, state: State, jump_prob: Array, t: Array, run: Run) -> State:
    probs, valid = step_rows(params, state, jump_prob, t, run)
    drawn = sample_path(key, probs).astype(state.x_t.dtype)
    return State(jnp.where(valid, drawn, state.x_t), valid)


def _sparse(key: Key, params: Any, state: State, jump_prob: Array, t: Array, run: Run) -> State:
    """A step that computes logits only for rows that jump; the values do not decide who jumps."""
    x_t, size = state.x_t, run.rows_at_once
    num_positions = x_t.shape[0]
    jumps, value_key = _jumps(key, jump_prob)
    denoiser = halves(run.denoiser)
    hidden = denoiser.hidden(params, x_t, t)
    rank = jnp.cumsum(jumps) - 1
    rest = -num_positions % size  # so that every slice is inside
    # Who jumps, in order; N stands for nobody.
    order = jnp.full(num_positions + rest, num_positions)
    order = order.at[jnp.where(jumps, rank, order.shape[0])].set(
        jnp.arange(num_positions), mode="drop"
    )
    num_jumps = jnp.sum(jumps)

    def draw(carry: tuple[Array, State]) -> tuple[Array, State]:
        first, moved = carry
        here = jax.lax.dynamic_slice(order, (first,), (size,))
        rows = denoiser.head(params, hidden[jnp.minimum(here, num_positions - 1)])
        is_distribution = jnp.isfinite(jnp.max(rows, axis=-1)) | (here == num_positions)
        tokens = sample_categorical(jax.random.fold_in(value_key, first), rows)
        valid = moved.valid & jnp.all(is_distribution)
        at = jnp.where(valid, here, num_positions)
        return first + size, State(
            moved.x_t.at[at].set(tokens.astype(x_t.dtype), mode="drop"), valid
        )

    def goes_on(carry: tuple[Array, State]) -> Array:
        return carry[0] < num_jumps

    return jax.lax.while_loop(goes_on, draw, (jnp.array(0), state))[1]


def _jumps(key: Key, jump_prob: Array) -> tuple[Array, Key]:
    """Who jumps in a step of "sparse", and the key of the values."""
    jump_key, value_key = jax.random.split(key)
    jump_prob = widened(jump_prob)  # a bfloat16 uniform number is a multiple of 1/128
    u = jax.random.uniform(jump_key, jump_prob.shape, jump_prob.dtype)  # in [0, 1): 1 is certain
    return u < jump_prob, value_key
