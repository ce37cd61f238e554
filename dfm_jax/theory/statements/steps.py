"""Q1–Q5: discrete time: its finite step, valid, exact and continuous."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, steps, velocities
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.theory.statements.paths import one_pair
from dfm_jax.theory.statements.velocities import any_field
from dfm_jax.types import Array


def two_step_table(case: Case) -> np.ndarray:
    """A table with a free row between source and data, another κ for each position: [3, N]."""
    inner = case.kappa("late")
    return np.stack([0 * inner, inner, 0 * inner + 1])


def order_table(case: Case) -> np.ndarray:
    """One position at a step in the case's order, each halfway first: by hand, [2N + 1, N]."""
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


def chain(case: Case, coupling: exact.Coupling, table: np.ndarray) -> tuple[np.ndarray, ...]:
    """p_t and p_{1|t} along a table, by enumeration: [T + 1, Z], [T, Z, N, V]."""
    at = [case.token_path(row) for row in table]
    laws = np.stack([exact.marginal_path(coupling, w) for w in at])
    return laws, np.stack([exact.posteriors(coupling, w)[0] for w in at[:-1]])


def velocities_of(posteriors: Array, states: Array, table: Array) -> Array:
    """`exact_step_velocity` of every step at every state: [T, Z, N, S]."""
    num_states = posteriors.shape[-1] + 1

    def at(t: Array, posterior: Array) -> Array:
        size = steps.step_size(table, t)
        return jax.vmap(lambda p, z: steps.exact_step_velocity(p, z, size, num_states=num_states))(
            posterior, states
        )

    return jax.vmap(at)(jnp.arange(posteriors.shape[0]), posteriors)


def laws_of(velocity: Array, states: Array) -> Array:
    """`step_law` of every step at every state: [T, Z, N, S]."""
    return jax.vmap(lambda u: jax.vmap(steps.step_law)(u, states))(velocity)


def step_laws(posteriors: Array, states: Array, table: Array) -> Array:
    """Q3 then Q1 along a table: [T, Z, N, S]."""
    return laws_of(velocities_of(posteriors, states, table), states)


def _euler_laws(posteriors: Array, states: Array, table: Array) -> Array:
    """Q1 with λ = κ_{t+1} − κ_t, the division by 1 − κ_t forgotten."""
    num_states = posteriors.shape[-1] + 1

    def at(size: Array, posterior: Array) -> Array:
        moved = jax.vmap(lambda p, z: steps.exact_step_velocity(p, z, size, num_states=num_states))(
            posterior, states
        )
        return jax.vmap(steps.step_law)(moved, states)

    return jax.vmap(at)(jnp.diff(table, axis=0), posteriors)


def _pair_posteriors(case: Case) -> np.ndarray:
    """δ_{x_1} at every state and both steps of `two_step_table`: [2, Z, N, V]."""
    x_1 = np.eye(case.shape.num_tokens)[one_pair(case)[1]]
    return np.broadcast_to(x_1, (2, len(case.states), *x_1.shape))


def _flip_law(case: Case) -> np.ndarray:
    """X_{t+1} given X_t for one pair, counted from a clock per position: [2, Z, N, S].

    U^i is uniform and X_t^i = x_1^i once U^i < κ_t^i. Rows whose X_t^i is on neither end are NaN.
    """
    x_0, x_1 = one_pair(case)
    table, eye = two_step_table(case), np.eye(case.shape.num_states)
    law = np.full((2, *case.states.shape, case.shape.num_states), np.nan)
    for t in range(2):
        for i in range(case.shape.num_positions):
            jump, wait = table[t + 1, i] - table[t, i], 1 - table[t + 1, i]
            law[t, case.states[:, i] == x_1[i], i] = eye[x_1[i]]
            if x_0[i] != x_1[i] and jump + wait > 0:
                moved = (jump * eye[x_1[i]] + wait * eye[x_0[i]]) / (jump + wait)
                law[t, case.states[:, i] == x_0[i], i] = moved
    return law


@statement(
    "Q1",
    "X_{t+1}^i ~ δ_{X_t^i}(·) + u_t^i(·, X_t), independently over i given X_t",
    source="DAG",
    kind="definition",
    falsifier="λ = κ_{t+1} − κ_t, without 1/(1 − κ_t)",
    laws=_euler_laws,
)
def one_step(cases: Cases, run: Run, *, laws=step_laws) -> np.ndarray:
    """The conditional law of X_{t+1}^i given X_t^i, counted from the raw law of both."""
    got = run(laws, cases.each(_pair_posteriors), fields.states(cases), cases.each(two_step_table))
    truth = cases.each(_flip_law)
    known = ~np.isnan(truth)
    return worst(
        gap(np.where(known, got, 0.0), np.where(known, truth, 0.0)),
        gap(got.sum(axis=-1), np.ones(got.shape[:-1])),
    )


def _violations(velocity: Array, states: Array) -> Array:
    each_state = jax.vmap(steps.step_violation)
    return jnp.max(jax.vmap(lambda u: each_state(u, states))(velocity))


def chain_on_table(cases: Cases, table_of, masked: bool = False) -> tuple[np.ndarray, ...]:
    """(p_t, posteriors, table) of every case; rows of undefined posteriors are a point mass."""

    def truth(case: Case) -> tuple[np.ndarray, ...]:
        table = table_of(case)
        if masked:
            table = np.where(case.context, 1.0, table)
        laws, posteriors = chain(case, case.masked if masked else case.coupling, table)
        undefined = (laws[:-1] == 0)[:, :, None, None]
        return laws, np.where(undefined, np.eye(case.shape.num_tokens)[0], posteriors), table

    return cases.each(truth)


@statement(
    "Q2",
    "Σ_v u_t^i(v, z) = 0; −1 ≤ u_t^i(z^i, z) ≤ 0; 0 ≤ u_t^i(v, z) ≤ 1 for v ≠ z^i",
    source="DAG",
    kind="definition",
    falsifier="a step half as long again",
    stretch=1.5,
)
def valid_step(cases: Cases, run: Run, *, stretch: float = 1.0) -> np.ndarray:
    """Q3's velocity on any table is valid; of any field `step_violation` is what NumPy reads."""
    _laws, posteriors, table = chain_on_table(cases, two_step_table)
    velocity = stretch * run(velocities_of, posteriors, fields.states(cases), table)
    stay = np.eye(cases.shape.num_states)[fields.states(cases)][:, None]
    law = stay + velocity
    return worst(
        run(_violations, velocity, fields.states(cases)),
        gap(law.sum(axis=-1), np.ones(law.shape[:-1])),
        excess(-law, np.zeros_like(law)),
        _arbitrary_steps(cases, run),
    )


def _step_violations(velocity: Array, states: Array) -> Array:
    return jax.vmap(steps.step_violation)(velocity, states)


def _arbitrary_steps(cases: Cases, run: Run) -> np.ndarray:
    velocity = cases.each(any_field)
    law = velocity + np.eye(cases.shape.num_states)[fields.states(cases)]
    unbalanced = np.abs(velocity.sum(axis=-1)).max(axis=-1)
    outside = np.maximum(-law, law - 1).max(axis=(-2, -1))
    got = run(_step_violations, velocity, fields.states(cases))
    return gap(got, np.maximum(unbalanced, outside))


@statement(
    "Q3",
    "u_t^i = λ_t^i [δ_{x_1^i} − δ_{z^i}], λ_t^i = (κ_{t+1}^i − κ_t^i)/(1 − κ_t^i)",
    source="own",
    kind="identity",
    falsifier="λ = κ_{t+1} − κ_t, without 1/(1 − κ_t)",
    laws=_euler_laws,
)
def exact_finite_step(cases: Cases, run: Run, *, laws=step_laws) -> np.ndarray:
    """One pair: its whole law after the step. All pairs: each token's law after the step."""
    s, n = cases.shape.num_states, cases.shape.num_positions
    table = cases.each(two_step_table)
    own = run(laws, cases.each(_pair_posteriors), fields.states(cases), table)
    laws_of_all, posteriors, _ = chain_on_table(cases, two_step_table)
    marginal = run(laws, posteriors, fields.states(cases), table)

    def truth(case: Case) -> np.ndarray:
        x_0, x_1 = one_pair(case)
        pair = (case.states == x_0).all(-1)[:, None] & (case.tokens == x_1).all(-1)[None]
        return chain(case, pair.astype(float), two_step_table(case))[0]

    def tokens(law: np.ndarray) -> np.ndarray:
        return np.stack([exact.marginal(law, (i,), s, n) for i in range(n)])

    whole = cases.each(truth)
    after, tokens_after, tokens_then = [], [], []
    for law, kernel in zip(whole, own, strict=True):
        after.append([exact.push_forward(law[t], kernel[t]) for t in (0, 1)])
    for law, kernel in zip(laws_of_all, marginal, strict=True):
        tokens_after.append([tokens(exact.push_forward(law[t], kernel[t])) for t in (0, 1)])
        tokens_then.append([tokens(law[t + 1]) for t in (0, 1)])
    return worst(
        gap(np.array(after), whole[:, 1:]), gap(np.array(tokens_after), np.array(tokens_then))
    )


@statement(
    "Q4",
    "p_{t+1}(x) − p_t(x) + div_x(p_t u_t) = 0 if at most one position moves",
    source="DAG",
    kind="identity",
    falsifier="two positions at once",
    table_of=paired_table,
)
def discrete_continuity(cases: Cases, run: Run, *, table_of=order_table) -> np.ndarray:
    """Along one-position tables in any order, any source and coupling, all masks among them."""
    residuals = []
    for masked in (False, True):
        laws, posteriors, table = chain_on_table(cases, table_of, masked)
        velocity = run(velocities_of, posteriors, fields.states(cases), table)
        outflow = run(_divergences, laws[:, :-1], velocity, fields.states(cases))
        flow = np.stack(
            [
                [exact.divergence(p, u) for p, u in zip(law[:-1], rows, strict=True)]
                for law, rows in zip(laws, velocity, strict=True)
            ]
        )
        residuals.append(worst(gap(np.diff(laws, axis=1), -outflow), gap(outflow, flow)))
    return worst(*residuals)


def _divergences(law: Array, velocity: Array, states: Array) -> Array:
    return jax.vmap(lambda p, u: velocities.divergence(p, u, states))(law, velocity)


def _push(law: Array, kernels: Array, states: Array) -> Array:
    return jax.vmap(lambda p, k: steps.push_forward(p, k, states))(law, kernels)


@statement(
    "Q5",
    "p_{t+1} = P_t p_t, P_t(x, z) = Π_i (δ_{z^i} + u_t^i(·, z))(x^i), if at most one moves",
    source="DAG",
    kind="identity",
    falsifier="two positions at once",
    table_of=paired_table,
)
def push_forward(cases: Cases, run: Run, *, table_of=order_table) -> np.ndarray:
    """The next law, by enumeration; and the kernel itself, entry by entry."""
    laws, posteriors, table = chain_on_table(cases, table_of)
    kernels = run(step_laws, posteriors, fields.states(cases), table)
    pushed = run(_push, laws[:, :-1], kernels, fields.states(cases))
    matrix = run(steps.transition_matrix, kernels[:, 0], fields.states(cases))
    truth = np.stack([exact.kernel(k[0]) for k in kernels])
    return worst(gap(pushed, laws[:, 1:]), gap(matrix, truth))
