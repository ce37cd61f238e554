"""A1–A3, A5: autoregression is a flow whose schedule is a table; a prompt is never moved."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, paths, schedules, steps
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases, kappa
from dfm_jax.theory.runs import Run
from dfm_jax.theory.setups import chain
from dfm_jax.theory.statement import gap, statement, unbroken, worst
from dfm_jax.theory.statements.cost import block_numbers
from dfm_jax.theory.statements.steps import probs_of, velocities_of
from dfm_jax.types import Array


def _revealed_probs(case: Case, known: np.ndarray) -> np.ndarray:
    """q on the known positions, masks elsewhere, counted sequence by sequence: [Z]."""
    masked = np.where(known, case.tokens, case.shape.num_tokens)
    probs = np.zeros(len(case.states))
    radix = case.shape.num_states ** np.arange(case.shape.num_positions)[::-1]
    np.add.at(probs, masked @ radix, case.data)
    return probs


def _tables(case: Case) -> dict[str, np.ndarray]:
    """The library's tables for this case: any order, blocks, left to right."""
    made_by = (schedules.any_order, schedules.blocks, schedules.left_to_right)
    block_of = block_numbers_from_0(case).tolist()
    return _tables_of(tuple(case.order.tolist()), tuple(block_of), made_by)


@cache  # there are few orders, and each table is a call of the library
def _tables_of(
    order: tuple[int, ...], block_of: tuple[int, ...], made_by: tuple[Callable, ...]
) -> dict[str, np.ndarray]:
    any_order, blocks, left_to_right = made_by  # part of the key: a test may write one wrongly
    return {
        "order": np.asarray(any_order(np.array(order)), np.float64),
        "blocks": np.asarray(blocks(np.array(block_of)), np.float64),
        "left_to_right": np.asarray(left_to_right(len(order)), np.float64),
    }


def block_numbers_from_0(case: Case) -> np.ndarray:
    """`block_numbers`, its context put in the first block, numbered without gaps."""
    return np.unique(np.maximum(block_numbers(case), 1), return_inverse=True)[1]


def _on_time(table: np.ndarray) -> np.ndarray:
    return table


def _one_late(table: np.ndarray) -> np.ndarray:
    """An off-by-one: every row a step late."""
    return np.concatenate([table[:1], table[:-1]])


@statement(
    "A1",
    "κ_t^i = 1[i ≤ t] is left to right; any order σ, blocks, masked diffusion κ_t^i = κ_t",
    source="OeMDM",
    kind="definition",
    falsifier="every row one step late",
    shift=_one_late,
)
def tables(cases: Cases, run: Run, *, shift=_on_time) -> np.ndarray:
    """The path's distribution at every row reveals just the tokens that the order has reached."""

    def truth(case: Case) -> np.ndarray:
        n = case.shape.num_positions
        reached = {
            "order": [np.isin(np.arange(n), case.order[:t]) for t in range(n + 1)],
            "blocks": [
                block_numbers_from_0(case) < t for t in range(block_numbers_from_0(case).max() + 2)
            ],
            "left_to_right": [np.arange(n) < t for t in range(n + 1)],
        }
        free = case.masked._replace(context=np.zeros(n, bool))
        apart = []
        for name, table in _tables(case).items():
            for row, known in zip(shift(table), reached[name], strict=True):
                probs = exact.marginal_path(free, case.token_path(row))
                apart.append(np.abs(probs - _revealed_probs(case, known)).max())
        return np.max(apart)

    return worst(cases.each(truth), _masked_gap(cases, run), _schedule_gap(cases, run))


def _schedule_table(family: Array, exponent: Array, *, num_steps: int) -> Array:
    """`masked` of the case's schedule, a κ for each position: [T + 1, N]."""
    schedule = fields.schedule_of(family, exponent)
    return schedules.masked(schedule, num_steps, exponent.shape[0])


@unbroken
def _schedule_gap(cases: Cases, run: Run) -> np.ndarray:
    """Every family, κ_{t/T} by hand."""
    got = run(_schedule_table, *fields.time_and_schedule(cases, "inside")[1:], num_steps=5)
    return gap(
        got,
        cases.each(lambda c: np.stack([kappa(c.family, c.exponent, t / 5) for t in range(6)])),
    )


@unbroken
def _masked_gap(cases: Cases, run: Run) -> np.ndarray:
    """`masked` of one κ gives every position the same schedule; it is the same for all cases."""
    table = schedules.masked(schedules.polynomial(2.0), 4, cases.shape.num_positions)
    time_and_schedule = (np.arange(5)[:, None] / 4) ** 2
    # the table is made in jax's default precision; quarters squared are exact in any
    apart = np.abs(np.asarray(table, np.float64) - time_and_schedule).max()
    return np.full(len(cases), apart)


@cache  # there are few contexts, as there are few orders
def _given_by(context: tuple[bool, ...], made_by: tuple[Callable, ...]) -> np.ndarray:
    left_to_right, with_context = made_by
    return np.asarray(with_context(left_to_right(len(context)), np.array(context)), np.float64)


def _given(case: Case) -> np.ndarray:
    """`left_to_right` with the case's context: [N + 1, N]."""
    made_by = (schedules.left_to_right, schedules.with_context)
    return _given_by(tuple(case.context.tolist()), made_by)


def _product_source(case: Case) -> np.ndarray:
    """Any distribution of the source tokens, the same at every position: [S]."""
    return case.denoiser[1, 0] @ np.eye(
        case.shape.num_tokens, case.shape.num_states
    ) * 0.7 + 0.3 / (case.shape.num_states)


def _on_states(case: Case, positions: tuple[int, ...]) -> np.ndarray:
    """The data's distribution of some tokens, as a distribution over states."""
    v, n, _ = case.shape
    probs = exact.marginal(case.data, positions, v, n)
    return exact.embed(probs, v, case.shape.num_states, len(positions)) if positions else probs


def _start_free(case: Case) -> np.ndarray:
    probs = np.prod(_product_source(case)[case.states], axis=1)
    return probs[:, None] * case.data


def _start_tied(case: Case) -> np.ndarray:
    return case.coupling


@statement(
    "A2",
    "p_t(x) = q(x^{≤t} | c) 1[x^{>t} = m]; any source independent of the data: q(x^{≤t}) p(x^{>t})",
    source="own",
    kind="identity",
    falsifier="a source that depends on the data",
    coupling_of=_start_tied,
)
def prefix_and_source(cases: Cases, run: Run, *, coupling_of=_start_free) -> np.ndarray:
    """`marginal_log_prob` on left-to-right tables; prefix masses counted by `exact.marginal`."""
    n, s = cases.shape.num_positions, cases.shape.num_states

    def pairs(case: Case, coupling: np.ndarray) -> tuple[np.ndarray, ...]:
        return (*fields.pair_lists(case)[:2], fields.log(coupling).reshape(-1))

    def truth(case: Case) -> np.ndarray:
        coupling, rows = coupling_of(case), []
        source = exact.source_probs(coupling)
        for t in range(n + 1):
            seen = _on_states(case, tuple(range(t)))
            rest = exact.marginal(source, tuple(range(t, n)), s, n)
            rows.append(np.outer(seen, rest).reshape(-1))
        return np.stack(rows)

    free = np.stack([np.asarray(schedules.left_to_right(n), np.float64)] * len(cases))
    lists = cases.each(lambda c: pairs(c, coupling_of(c)))
    probs = run(probs_on_table, *lists, free, fields.states(cases), num_states=s)
    return worst(gap(probs, cases.each(truth)), _masks_gap(cases, run))


@unbroken
def _masks_gap(cases: Cases, run: Run) -> np.ndarray:
    """Masks outside the context."""

    def truth(case: Case) -> np.ndarray:
        return np.stack([_revealed_probs(case, row == 1) for row in _given(case)])

    prompted = run(
        prompted_probs,
        *_arguments(cases, _given),
        cases.each(lambda c: c.context),
        num_states=cases.shape.num_states,
    )
    return gap(prompted, cases.each(truth))


def probs_on_table(
    x_0: Array, x_1: Array, log_pi: Array, table: Array, states: Array, *, num_states: int
) -> Array:
    """p_t along a table by `marginal_log_prob`: [T + 1, Z]."""

    def at_row(kappa: Array) -> Array:
        token_paths = fields.mixture_paths(x_0, x_1, kappa, num_states=num_states)
        return fields.over_states(lambda z: paths.marginal_log_prob(z, token_paths, log_pi), states)

    return jnp.exp(jax.lax.map(at_row, table))


def prompted_sources(x_1: Array, context: Array, *, mask_id: int) -> Array:
    """`mask_source` of every sequence."""
    return jax.vmap(lambda x: paths.mask_source(x, context, mask_id=mask_id))(x_1)


def prompted_probs(x_1, log_data, table, states, context, *, num_states: int) -> Array:
    """p_t along a table of pairs whose source is `mask_source`: [T + 1, Z]."""
    x_0 = prompted_sources(x_1, context, mask_id=num_states - 1)
    return probs_on_table(x_0, x_1, log_data, table, states, num_states=num_states)


def _next_token(next_probs: Array, states: Array, *, num_states: int) -> Array:
    """`next_token_velocity` at every step and state: [T, Z, N, S]; next_probs [Z, N, V]."""

    def at(t: Array) -> Array:
        return jax.vmap(
            lambda probs, z: steps.next_token_velocity(probs[t], z, t, num_states=num_states)
        )(next_probs, states)

    return jax.vmap(at)(jnp.arange(states.shape[-1]))


def _by_prefix(case: Case) -> np.ndarray:
    """q(v | z^{<t}) for every state whose first t tokens are data, 0 else: [Z, N, V]."""
    embedded = case.conditionals(case.data)
    v, n, _ = case.shape
    rows = np.zeros((len(case.states), n, v))
    for t in range(n):
        prefix_is_data = (case.states[:, :t] < v).all(axis=1)
        tail = np.where(np.arange(n) < t, case.states, 0)
        index = np.where(tail < v, tail, 0) @ v ** np.arange(n)[::-1]
        rows[prefix_is_data, t] = embedded[index[prefix_is_data], t]
    return rows


def _without_prefix(case: Case) -> np.ndarray:
    """The token marginals q(X^t = v), the prefix forgotten."""
    v, n, _ = case.shape
    rows = [exact.marginal(case.data, (t,), v, n) for t in range(n)]
    return np.broadcast_to(np.stack(rows), (len(case.states), n, v))


@statement(
    "A3",
    "u_t^i(v, z) = 1[i = t+1] ( q(v | z^{≤t}) − δ_{z^i}(v) )",
    source="DAG",
    kind="identity",
    falsifier="the token's marginal, its prefix forgotten",
    next_probs=_without_prefix,
)
def next_token_is_the_velocity(cases: Cases, run: Run, *, next_probs=_by_prefix) -> np.ndarray:
    """Equal to Q3's marginal step on a left-to-right table; Q4 and Q5 hold exactly."""
    n, s = cases.shape.num_positions, cases.shape.num_states
    table = np.asarray(schedules.left_to_right(n), np.float64)

    def truth(case: Case) -> tuple[np.ndarray, ...]:
        free = case.masked._replace(context=np.zeros(n, bool))
        token_probs, posteriors = chain(case, free, table)
        defined = (token_probs[:-1] > 0)[:, :, None, None]
        return token_probs, np.where(defined, posteriors, np.eye(case.shape.num_tokens)[0])

    token_probs, posteriors = cases.each(lambda c: c.remembered(_next_token, lambda: truth(c)))
    tables = np.broadcast_to(table, (len(cases), *table.shape))
    expected = run(velocities_of, posteriors, fields.states(cases), tables)
    velocity = run(_next_token, cases.each(next_probs), fields.states(cases), num_states=s)
    kernels = run(probs_of, velocity, fields.states(cases))
    apart = []
    for probs, u, kernel in zip(token_probs, velocity, kernels, strict=True):
        for t in range(n):
            apart.append(np.abs(probs[t + 1] - probs[t] + exact.divergence(probs[t], u[t])).max())
            apart.append(np.abs(exact.push_forward(probs[t], kernel[t]) - probs[t + 1]).max())
    return worst(
        gap(velocity, expected, token_probs[:, :-1] > 0),
        np.array(apart).reshape(len(cases), -1).max(axis=1),
    )


# ── A5: prompts: a context is given, never masked, never moved ────────────────────────────────────


@cache  # there are few orders and prompts
def _prompted_table(
    order: tuple[int, ...], prompt: tuple[bool, ...], made_by: tuple[Callable, ...]
) -> np.ndarray:
    any_order, with_context = made_by
    return np.asarray(with_context(any_order(np.array(order)), np.array(prompt)), np.float64)


def _with_prompt(case: Case) -> np.ndarray:
    made_by = (schedules.any_order, schedules.with_context)
    return _prompted_table(tuple(case.order.tolist()), tuple(_prompt(case).tolist()), made_by)


def _without_prompt(case: Case) -> np.ndarray:
    return _tables(case)["order"]


def _prompt(case: Case) -> np.ndarray:
    """A context of one position at least, never all of them: none if N = 1."""
    first = np.arange(case.shape.num_positions) == case.order[0]
    return (case.context | first) & (case.shape.num_positions > 1)


@statement(
    "A5",
    "(X_0, X_1) = (I ⊙ X_1 + (1 − I) ⊙ m, X_1): the context is given, never masked, never moved",
    source="DAG, DFM",
    kind="identity",
    falsifier="a table that moves the context",
    table_of=_without_prompt,
)
def context_is_given(cases: Cases, run: Run, *, table_of=_with_prompt) -> np.ndarray:
    """λ is 0 on the context, and so is κ̇/(1 − κ); the path of `mask_source`'s pairs.

    The indicator is fixed, or random.
    """
    size = run(_sizes, cases.each(table_of))
    moved = np.where(cases.each(_prompt)[:, None], size, 0.0)
    return worst(
        gap(moved, np.zeros_like(moved)),
        _indicators_gap(cases, run),
        _prompt_schedule_gap(cases, run),
    )


@unbroken
def _indicators_gap(cases: Cases, run: Run) -> np.ndarray:
    """The path of `mask_source`'s pairs, of one indicator and of a random one."""
    s = cases.shape.num_states
    given = run(prompted_probs, *_arguments(cases, _with_prompt), cases.each(_prompt), num_states=s)
    mixed = run(
        _mixed_probs,
        *_arguments(cases, _without_prompt),
        cases.each(_prompt),
        cases.each(lambda c: c.context),
        num_states=s,
    )

    def path(case: Case, prompt: np.ndarray, table: np.ndarray) -> np.ndarray:
        coupling = case.masked._replace(context=prompt)
        return np.stack([exact.marginal_path(coupling, case.token_path(row)) for row in table])

    def truth(case: Case) -> tuple[np.ndarray, np.ndarray]:
        free = _without_prompt(case)
        both = path(case, _prompt(case), free) + path(case, case.context, free)
        return path(case, _prompt(case), _with_prompt(case)), both / 2

    one, random = cases.each(truth)
    return worst(gap(given, one), gap(mixed, random))


def _schedule(t: Array, family: Array, exponent: Array, context: Array) -> Array:
    """κ_t and its rate under `schedule_with_context`: [2, N]."""
    given = schedules.schedule_with_context(fields.schedule_of(family, exponent), context)
    return jnp.stack([given.kappa(t), schedules.rate(t, given)])


@unbroken
def _prompt_schedule_gap(cases: Cases, run: Run) -> np.ndarray:
    def truth(case: Case) -> np.ndarray:
        now, slope, given = case.kappa("early"), case.slope("early"), _prompt(case)
        return np.stack([np.where(given, 1.0, now), np.where(given, 0.0, slope / (1 - now))])

    got = run(_schedule, *fields.time_and_schedule(cases, "early"), cases.each(_prompt))
    return gap(got, cases.each(truth))


def _arguments(cases: Cases, table_of) -> tuple[np.ndarray, ...]:
    log_data = cases.each(lambda c: fields.log(c.data))
    return fields.tokens(cases), log_data, cases.each(table_of), fields.states(cases)


def _mixed_probs(x_1, log_data, table, states, context, other, *, num_states: int) -> Array:
    """Either indicator with probability ½, drawn apart from X_1."""
    x_0 = [prompted_sources(x_1, given, mask_id=num_states - 1) for given in (context, other)]
    pairs = jnp.concatenate(x_0), jnp.concatenate([x_1, x_1])
    log_pi = jnp.concatenate([log_data, log_data]) - jnp.log(2.0)
    return probs_on_table(*pairs, log_pi, table, states, num_states=num_states)


def _sizes(table: Array) -> Array:
    return jax.vmap(lambda t: steps.step_size(table, t))(jnp.arange(table.shape[0] - 1))
