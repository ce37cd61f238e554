"""Chains in discrete time: a coupling, a table, and the distribution at every row of the table."""

from collections.abc import Callable

import numpy as np

from dfm_jax import exact
from dfm_jax.theory.cases import Case, Cases

Setup = tuple[exact.Coupling, np.ndarray]  # a coupling and a table


def two_step_table(case: Case) -> np.ndarray:
    """A table with one free row between source and data, and its own κ per position: [3, N]."""
    inner = case.kappa("late")
    return np.stack([0 * inner, inner, 0 * inner + 1])


def order_table(case: Case) -> np.ndarray:
    """One position per step in the case's order, each first halfway; made by hand, [2N + 1, N]."""
    n = case.shape.num_positions
    table = np.zeros((2 * n + 1, n))
    for turn, position in enumerate(case.order):
        table[2 * turn + 1, position] = case.numbers[6]
        table[2 * turn + 2 :, position] = 1.0
    return table


def paired_table(case: Case) -> np.ndarray:
    """`order_table` whose first two positions wait, then move at once."""
    table = order_table(case)
    table[1 : min(4, len(table) - 1)] = 0.0
    return table


def one_by_one(case: Case) -> Setup:
    """Any coupling, with one position per step."""
    return case.coupling, order_table(case)


def masks_one_by_one(case: Case) -> Setup:
    """All masks outside the context, with one position per step."""
    return case.masked, np.where(case.context, 1.0, order_table(case))


def two_at_once(case: Case) -> Setup:
    """Any coupling, with two positions at once."""
    return case.coupling, paired_table(case)


def two_steps(case: Case) -> Setup:
    """Any coupling; every position moves in both steps, with its own schedule."""
    return case.coupling, two_step_table(case)


def _same_schedule(case: Case) -> np.ndarray:
    """All positions on one schedule, with as many rows as `order_table`."""
    n = case.shape.num_positions
    time_and_schedule = np.concatenate([[0.0], np.linspace(case.numbers[6], 1.0, 2 * n)])
    return np.repeat(time_and_schedule[:, None], n, axis=1)


def one_mask_each(case: Case) -> Setup:
    """One token of each sequence is masked, and all positions run; only the mask moves."""
    n, v, s = case.shape.num_positions, case.shape.num_tokens, case.shape.num_states
    radix = s ** np.arange(n)[::-1]
    coupling = np.zeros((s**n, v**n))
    for i in range(n):
        x_0 = np.where(np.arange(n) == i, v, case.tokens)
        coupling[x_0 @ radix, np.arange(v**n)] += case.data / n
    return coupling, _same_schedule(case)


def crossed(case: Case) -> Setup:
    """One source; half of the data move its first position, half its second; both run at once.

    At most one position of each pair moves, so Q4 holds. At the source both positions have a
    velocity, and the product kernel moves both: the mass λ² a (1 − a), 1/16 for halves, goes where
    no pair goes.
    """
    n, v, s = case.shape.num_positions, case.shape.num_tokens, case.shape.num_states
    first, second = (v - 1) * v ** (n - 1), (v - 1) * v ** max(n - 2, 0)
    coupling = np.zeros((s**n, v**n))
    coupling[0, first] += 0.5
    coupling[0, second] += 0.5
    return coupling, _same_schedule(case)


def chain(case: Case, coupling: exact.Coupling, table: np.ndarray) -> tuple[np.ndarray, ...]:
    """p_t and p_{1|t} along a table, by enumeration: [T + 1, Z], [T, Z, N, V]."""
    at = [case.token_path(row) for row in table]
    token_probs = np.stack([exact.marginal_path(coupling, w) for w in at])
    return token_probs, np.stack([exact.posteriors(coupling, w)[0] for w in at[:-1]])


def chain_of(cases: Cases, setup: Callable[[Case], Setup]) -> tuple[np.ndarray, ...]:
    """(p_t, posteriors, table) of every case; undefined posteriors become a point mass."""

    def truth(case: Case) -> tuple[np.ndarray, ...]:
        coupling, table = setup(case)
        token_probs, posteriors = chain(case, coupling, table)
        undefined = (token_probs[:-1] == 0)[:, :, None, None]
        return token_probs, np.where(undefined, np.eye(case.shape.num_tokens)[0], posteriors), table

    return cases.each(lambda case: case.remembered((chain_of, setup), lambda: truth(case)))
