"""κ_t and its rate; tables κ[t, i] for left-to-right, any order, blocks, masked diffusion. [P3, A1]

A schedule says how far a position has moved from the source (κ = 0) to the data (κ = 1). In
continuous time it is a pair of functions that must agree. In discrete time it is a table.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dfm_jax.checks import check_count, check_interval, check_tokens, require
from dfm_jax.types import Array, ArrayLike, Context, Float, Int, Table, Time, as_time, typed


class Schedule(NamedTuple):
    """κ_t and log(1 − κ_t), kept apart because 1 − κ_t loses every digit near t = 1.

    Both functions map a time to a number, or to one number per position [N]. They must agree:
    log_complement(t) = log(1 − kappa(t)). `tests/test_schedules.py` checks this for every factory.
    """

    kappa: Callable[[ArrayLike], Array]
    log_complement: Callable[[ArrayLike], Array]


def linear() -> Schedule:
    """κ_t = t."""
    return Schedule(kappa=lambda t: jnp.asarray(t), log_complement=lambda t: jnp.log1p(-t))


def polynomial(exponent: ArrayLike) -> Schedule:
    """κ_t = t^a, where the exponent a ≥ 1 is one number, or one per position [N].

    Raises:
        ValueError: if a < 1, because κ̇ is then infinite at t = 0.
    """
    check_interval("exponent", exponent, 1.0, np.inf, ends="[)")

    def log_complement(t: ArrayLike) -> Array:
        # log(1 − t^a) = log(−expm1(a log t)) keeps its digits near 1, log1p near 0.
        late = jnp.asarray(t) > 0.5
        t_late, t_early = jnp.where(late, t, 0.75), jnp.where(late, 0.25, t)
        return jnp.where(
            late,
            jnp.log(-jnp.expm1(exponent * jnp.log(t_late))),
            jnp.log1p(-(t_early**exponent)),
        )

    return Schedule(kappa=lambda t: jnp.asarray(t) ** exponent, log_complement=log_complement)


def cosine() -> Schedule:
    """κ_t = 1 − cos(πt/2): the share that is still at the source, 1 − κ_t, is a cosine.

    Source: MaskGIT (2202.04200). The code uses 2 sin²(πt/4) for early t and 1 − sin(π(1 − t)/2) for
    late t. So no digits are lost near t = 0, and κ ends at 1, not above.
    """

    def kappa(t: ArrayLike) -> Array:
        return jnp.where(
            jnp.asarray(t) > 0.5,
            1 - jnp.sin(jnp.pi / 2 * (1 - jnp.asarray(t))),
            2 * jnp.sin(jnp.pi / 4 * t) ** 2,
        )

    def log_complement(t: ArrayLike) -> Array:
        # The sine keeps its digits near 1, the cosine near 0: the rate starts at 0, not below.
        late = jnp.asarray(t) > 0.5
        t_late, t_early = jnp.where(late, t, 0.75), jnp.where(late, 0.25, t)
        return jnp.where(
            late,
            jnp.log(jnp.sin(jnp.pi / 2 * (1 - t_late))),
            jnp.log(jnp.cos(jnp.pi / 2 * t_early)),
        )

    return Schedule(kappa=kappa, log_complement=log_complement)


def from_function(kappa: Callable[[ArrayLike], Array], *, grid_size: int = 257) -> Schedule:
    """Any κ_t with κ_0 = 0, κ_1 = 1 and κ non-decreasing, checked on a grid of `grid_size` times.

    log(1 − κ_t) is computed as log1p(−κ_t), with a relative error of eps / (1 − κ_t). In float32,
    keep 1 − κ_t ≥ 1e-4; the rate is then good to about 1e-3. If κ_t rounds to 1 too early, the rate
    is infinite, and it is refused. If you know the complement exactly, build the `Schedule`
    yourself and check it with `check_schedule`.

    Raises:
        ValueError: if κ_0 is not 0, κ_1 is not 1, or κ decreases somewhere on the grid.
    """
    check_count("grid_size", grid_size, at_least=2)
    with jax.ensure_compile_time_eval():
        times = jnp.linspace(0.0, 1.0, grid_size)
        values = np.asarray(jax.vmap(kappa)(times))
    _check_ends("kappa", values)
    _check_monotone("kappa", values)
    return Schedule(
        kappa=lambda t: kappa(jnp.asarray(t)),
        log_complement=lambda t: jnp.log1p(-kappa(jnp.asarray(t))),
    )


def check_schedule(schedule: Schedule, *, grid_size: int = 257) -> None:
    """Check on a grid that κ_0 = 0, κ_1 = 1, κ never decreases, and log_complement = log(1 − κ).

    Raises:
        ValueError: if one of these rules is broken; the message names the first one.
    """
    check_count("grid_size", grid_size, at_least=2)
    with jax.ensure_compile_time_eval():
        times = jnp.linspace(0.0, 1.0, grid_size)
        values = np.asarray(jax.vmap(schedule.kappa)(times))
        complements = np.exp(np.asarray(jax.vmap(schedule.log_complement)(times)))
    _check_ends("kappa", values)
    _check_monotone("kappa", values)
    apart = float(np.max(np.abs(complements - (1 - values))))
    slack = 64 * np.finfo(values.dtype).eps
    require(
        apart <= slack,
        "`log_complement` must be log(1 − κ), up to rounding",
        apart,
        name="the largest difference",
    )


def schedule_with_context(schedule: Schedule, context: Context) -> Schedule:
    """κ_t^i = 1 at every t for a given position: a prompt never moves, and its rate is 0.   [A5]"""
    return Schedule(
        kappa=lambda t: jnp.where(context, 1.0, schedule.kappa(t)),
        log_complement=lambda t: jnp.where(context, -jnp.inf, schedule.log_complement(t)),
    )


@typed
def rate(t: Time, schedule: Schedule) -> Float[Array, "..."]:
    """The jump rate of a mixture path, in jumps per unit of time, where κ_t < 1.

        κ̇_t / (1 − κ_t) = −∂_t log(1 − κ_t)   [V3, V5]

    It is the derivative of `log_complement`, so the code never divides one vanishing number by
    another. The rate is 0 where κ has stopped at 1: a finished or given position does not move.

    Raises:
        ValueError: if t lies outside [0, 1], or if κ_t reaches 1 at t, where the rate is infinite.
    """
    check_interval("t", t, 0.0, 1.0)
    t = as_time(t)
    log_complement, slope = jax.jvp(schedule.log_complement, (t,), (jnp.ones_like(t),))
    _, motion = jax.jvp(schedule.kappa, (t,), (jnp.ones_like(t),))
    stopped = (log_complement == -jnp.inf) & (motion == 0)
    require((log_complement > -jnp.inf) | stopped, "`t` must lie where κ_t < 1", t)
    return jnp.where(stopped, 0.0, -slope)


@typed
def backward_rate(t: Time, schedule: Schedule) -> Float[Array, "..."]:
    """The jump rate of a mixture path run toward the source, in jumps per unit of time.

        κ̇_t / κ_t = ∂_t log κ_t   where κ_t > 0   [V6]

    Raises:
        ValueError: if t lies outside [0, 1], or if κ_t = 0, where the rate is infinite.
    """
    check_interval("t", t, 0.0, 1.0)
    t = as_time(t)
    log_kappa, slope = jax.jvp(lambda t: jnp.log(schedule.kappa(t)), (t,), (jnp.ones_like(t),))
    require(log_kappa > -jnp.inf, "`t` must lie where κ_t > 0", t)
    return slope


# ── tables κ[t, i], t = 0 … T, positions counted from 0 ─────────────────────────────────────────


def left_to_right(num_positions: int) -> Table:
    """κ[t, i] = 1[i < t], T = N: autoregression is this schedule.   [A1]"""
    check_count("num_positions", num_positions)
    return any_order(np.arange(num_positions))


def any_order(order: Int[ArrayLike, " N"]) -> Table:
    """κ[t, i] = 1[i was among the first t of the order]; `order[t]` is revealed at step t.  [A1]

    The order may be traced under `jit` or `vmap`; it is then checked only under checkify.

    Raises:
        ValueError: if `order` is not a permutation of 0 … N − 1.
    """
    xp = jnp if isinstance(order, Tracer) else np  # what can be read is checked now
    order = xp.asarray(order)
    require(order.ndim == 1, "`order` must have one axis, [N]", order.shape, name="order.shape")
    check_count("the number of positions", order.size)
    check_tokens("order", order, order.size)
    once = xp.sort(order) == xp.arange(order.size)
    require(once.all(), "`order` must hold each of 0 … N − 1 once", order)
    steps = xp.arange(order.size + 1)
    return jnp.asarray(steps[:, None] > xp.argsort(order)[None], dtype=float)


def blocks(block_of: Int[ArrayLike, " N"]) -> Table:
    """κ[t, i] = 1[block(i) < t]: position i is revealed at step `block_of[i]` ≥ 0. [A1]

    Raises:
        ValueError: if a block between 0 and the last one has no position.
    """
    block_of = np.asarray(block_of)
    rule = "`block_of` must have one axis, [N]"
    require(block_of.ndim == 1, rule, block_of.shape, name="block_of.shape")
    check_count("the number of positions", block_of.size)
    check_tokens("block_of", block_of)
    used = np.unique(block_of)
    rule = "`block_of` must use every block 0, 1, … at least once"
    require(np.array_equal(used, np.arange(used.size)), rule, used, name="unique(block_of)")
    steps = np.arange(used.size + 1)
    return jnp.asarray(steps[:, None] > block_of, dtype=float)


def masked(schedule: Schedule, num_steps: int, num_positions: int) -> Table:
    """κ[t, i] = κ_{t/T}: masked diffusion, every position on the same schedule.  [A1]"""
    check_count("num_steps", num_steps)
    check_count("num_positions", num_positions)
    kappas = jax.vmap(schedule.kappa)(jnp.linspace(0.0, 1.0, num_steps + 1))
    # κ_1 = 1 by definition; its rounding would leave a finished token a last tiny step.
    kappas = kappas.reshape(num_steps + 1, -1).at[-1].set(1.0)
    rule = f"`num_positions` must be {kappas.shape[1]}, the number of positions of the schedule"
    require(kappas.shape[1] in (1, num_positions), rule, num_positions)
    return jnp.broadcast_to(kappas, (num_steps + 1, num_positions))


@typed
def with_context(table: Table, context: Context) -> Table:
    """κ[t, i] = 1 at every t for a given position: a prompt never moves.   [A5]

    Raises:
        ValueError: if κ lies outside [0, 1] or decreases at a position that is not given.
    """
    filled = jnp.where(context, 1.0, table)
    check_interval("table", filled, 0.0, 1.0)
    require(filled[1:] >= filled[:-1], "`table` must not decrease from row to row", filled)
    return filled


def check_table(table: Table, context: Context | None = None) -> None:
    """Check that a table starts at 0 (1 for context), ends at 1, and never decreases.

    Raises:
        ValueError: if one of these rules is broken; the message names the first one and its entry.
    """
    table = np.asarray(table) * 1.0  # whole numbers may stand for κ
    rule = "`table` must have two axes, [T + 1, N], with T at least 1"
    require(table.ndim == 2 and table.shape[0] >= 2, rule, table.shape, name="table.shape")
    if context is not None:
        rule = f"`context` must have {table.shape[1]} entries, one for each position"
        require(np.shape(context) == table.shape[1:], rule, np.shape(context), name="context.shape")
        kind = np.asarray(context).dtype
        require(
            np.issubdtype(kind, np.bool_),  # ~1 is −2
            "`context` must hold truth values",
            kind.name,
            name="context.dtype",
        )
    finished = table[:-1] == 1
    moved = finished & (table[1:] != 1)
    t, i = np.argwhere(moved)[0] if moved.any() else (0, 0)
    rule = (
        f"`table` must not move a finished token: table[{t}, {i}] is 1, so the entry below must be "
        "1"
    )
    require(not moved.any(), rule, table[t + 1, i], name=f"table[{t + 1}, {i}]")
    free = np.ones(table.shape[1], bool) if context is None else ~np.asarray(context)
    _check_monotone("table", table)
    _check_ends("table", table[:, free])
    given = (table == 1) | free
    require(given, "`table` must be 1 at every position of the context", table)


def _check_ends(name: str, values: np.ndarray) -> None:
    slack = 8 * np.finfo(values.dtype).eps
    for entry, end, verb in ((0, 0.0, "start"), (-1, 1.0, "end")):
        rule, kappa = f"`{name}` must {verb} at κ = {end:g}", values[entry]
        require(abs(kappa - end) <= slack, rule, kappa, name=f"{name}[{entry}]")


def _check_monotone(name: str, values: np.ndarray) -> None:
    drops = np.argwhere(~(np.diff(values, axis=0) >= 0))  # a NaN counts as one
    first = int(drops[0][0]) if drops.size else 0
    rule, shown = f"`{name}` must not decrease", values[first : first + 2]
    require(drops.size == 0, rule, shown, name=f"{name}[{first}:{first + 2}]")
