"""A5: prompts: a context is given, never masked, never moved."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, schedules, steps
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import gap, statement, worst
from dfm_jax.theory.statements.autoregression import (
    laws_on_table,
    prompted_laws,
    prompted_sources,
)
from dfm_jax.types import Array


def _with_prompt(case: Case) -> np.ndarray:
    table = schedules.with_context(schedules.any_order(case.order), _prompt(case))
    return np.asarray(table, np.float64)


def _without_prompt(case: Case) -> np.ndarray:
    return np.asarray(schedules.any_order(case.order), np.float64)


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
    s = cases.shape.num_states
    size = run(_sizes, cases.each(table_of))
    moved = np.where(cases.each(_prompt)[:, None], size, 0.0)
    given = run(prompted_laws, *_arguments(cases, _with_prompt), cases.each(_prompt), num_states=s)
    mixed = run(
        _mixed_laws,
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
    return worst(
        gap(moved, np.zeros_like(moved)),
        gap(given, one),
        gap(mixed, random),
        _clock_gap(cases, run),
    )


def _clock(t: Array, family: Array, exponent: Array, context: Array) -> Array:
    """κ_t and its rate under `schedule_with_context`: [2, N]."""
    given = schedules.schedule_with_context(fields.schedule_of(family, exponent), context)
    return jnp.stack([given.kappa(t), schedules.rate(t, given)])


def _clock_gap(cases: Cases, run: Run) -> np.ndarray:
    def truth(case: Case) -> np.ndarray:
        now, slope, given = case.kappa("early"), case.slope("early"), _prompt(case)
        return np.stack([np.where(given, 1.0, now), np.where(given, 0.0, slope / (1 - now))])

    got = run(_clock, *fields.clock(cases, "early"), cases.each(_prompt))
    return gap(got, cases.each(truth))


def _arguments(cases: Cases, table_of) -> tuple[np.ndarray, ...]:
    log_data = cases.each(lambda c: fields.log(c.data))
    return fields.tokens(cases), log_data, cases.each(table_of), fields.states(cases)


def _mixed_laws(x_1, log_data, table, states, context, other, *, num_states: int) -> Array:
    """Either indicator with probability ½, drawn apart from X_1."""
    x_0 = [prompted_sources(x_1, given, mask_id=num_states - 1) for given in (context, other)]
    pairs = jnp.concatenate(x_0), jnp.concatenate([x_1, x_1])
    log_pi = jnp.concatenate([log_data, log_data]) - jnp.log(2.0)
    return laws_on_table(*pairs, log_pi, table, states, num_states=num_states)


def _sizes(table: Array) -> Array:
    return jax.vmap(lambda t: steps.step_size(table, t))(jnp.arange(table.shape[0] - 1))
