"""Q1–Q5: discrete time: its finite step, valid, exact and continuous."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, steps, velocities
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.setups import (
    chain,
    chain_of,
    crossed,
    masks_one_by_one,
    one_by_one,
    one_mask_each,
    two_at_once,
    two_step_table,
    two_steps,
)
from dfm_jax.theory.statement import excess, gap, statement, unbroken, worst
from dfm_jax.theory.statements.paths import one_pair
from dfm_jax.theory.statements.velocities import any_field
from dfm_jax.types import Array


def velocities_of(posteriors: Array, states: Array, table: Array) -> Array:
    """`exact_step_velocity` of every step at every state: [T, Z, N, S]."""
    num_states = posteriors.shape[-1] + 1

    def at(t: Array, posterior: Array) -> Array:
        size = steps.step_size(table, t)
        return jax.vmap(lambda p, z: steps.exact_step_velocity(p, z, size, num_states=num_states))(
            posterior, states
        )

    return jax.vmap(at)(jnp.arange(posteriors.shape[0]), posteriors)


def probs_of(velocity: Array, states: Array) -> Array:
    """`step_probs` of every step at every state: [T, Z, N, S]."""
    return jax.vmap(lambda u: jax.vmap(steps.step_probs)(u, states))(velocity)


def step_probs(posteriors: Array, states: Array, table: Array) -> Array:
    """Q3 then Q1 along a table: [T, Z, N, S]."""
    return probs_of(velocities_of(posteriors, states, table), states)


def _euler_probs(posteriors: Array, states: Array, table: Array) -> Array:
    """Q1 with λ = κ_{t+1} − κ_t, the division by 1 − κ_t forgotten."""
    num_states = posteriors.shape[-1] + 1

    def at(size: Array, posterior: Array) -> Array:
        moved = jax.vmap(lambda p, z: steps.exact_step_velocity(p, z, size, num_states=num_states))(
            posterior, states
        )
        return jax.vmap(steps.step_probs)(moved, states)

    return jax.vmap(at)(jnp.diff(table, axis=0), posteriors)


def _pair_posteriors(case: Case) -> np.ndarray:
    """δ_{x_1} at every state and both steps of `two_step_table`: [2, Z, N, V]."""
    x_1 = np.eye(case.shape.num_tokens)[one_pair(case)[1]]
    return np.broadcast_to(x_1, (2, len(case.states), *x_1.shape))


def _flip_probs(case: Case) -> np.ndarray:
    """X_{t+1} given X_t for one pair, counted from a schedule per position: [2, Z, N, S].

    U^i is uniform and X_t^i = x_1^i once U^i < κ_t^i. Rows whose X_t^i is on neither end are NaN.
    """
    x_0, x_1 = one_pair(case)
    table, eye = two_step_table(case), np.eye(case.shape.num_states)
    probs = np.full((2, *case.states.shape, case.shape.num_states), np.nan)
    for t in range(2):
        for i in range(case.shape.num_positions):
            jump, wait = table[t + 1, i] - table[t, i], 1 - table[t + 1, i]
            probs[t, case.states[:, i] == x_1[i], i] = eye[x_1[i]]
            if x_0[i] != x_1[i] and jump + wait > 0:
                moved = (jump * eye[x_1[i]] + wait * eye[x_0[i]]) / (jump + wait)
                probs[t, case.states[:, i] == x_0[i], i] = moved
    return probs


@statement(
    "Q1",
    "X_{t+1}^i ~ δ_{X_t^i}(·) + u_t^i(·, X_t), independently over i given X_t",
    source="DAG",
    kind="definition",
    falsifier="λ = κ_{t+1} − κ_t, without 1/(1 − κ_t)",
    token_probs=_euler_probs,
)
def one_step(cases: Cases, run: Run, *, token_probs=step_probs) -> np.ndarray:
    """The distribution of X_{t+1}^i given X_t^i, counted from the raw joint of both."""
    got = run(
        token_probs, cases.each(_pair_posteriors), fields.states(cases), cases.each(two_step_table)
    )
    truth = cases.each(_flip_probs)
    known = ~np.isnan(truth)
    return worst(
        gap(np.where(known, got, 0.0), np.where(known, truth, 0.0)),
        gap(got.sum(axis=-1), np.ones(got.shape[:-1])),
    )


def _violations(velocity: Array, states: Array) -> Array:
    each_state = jax.vmap(steps.step_violation)
    return jnp.max(jax.vmap(lambda u: each_state(u, states))(velocity))


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
    _probs, posteriors, table = chain_of(cases, two_steps)
    velocity = stretch * run(velocities_of, posteriors, fields.states(cases), table)
    stay = np.eye(cases.shape.num_states)[fields.states(cases)][:, None]
    probs = stay + velocity
    return worst(
        run(_violations, velocity, fields.states(cases)),
        gap(probs.sum(axis=-1), np.ones(probs.shape[:-1])),
        excess(-probs, np.zeros_like(probs)),
        _arbitrary_steps(cases, run),
    )


def _step_violations(velocity: Array, states: Array) -> Array:
    return jax.vmap(steps.step_violation)(velocity, states)


@unbroken
def _arbitrary_steps(cases: Cases, run: Run) -> np.ndarray:
    velocity = cases.each(any_field)
    probs = velocity + np.eye(cases.shape.num_states)[fields.states(cases)]
    unbalanced = np.abs(velocity.sum(axis=-1)).max(axis=-1)
    outside = np.maximum(-probs, probs - 1).max(axis=(-2, -1))
    got = run(_step_violations, velocity, fields.states(cases))
    return gap(got, np.maximum(unbalanced, outside))


@statement(
    "Q3",
    "u_t^i = λ_t^i [δ_{x_1^i} − δ_{z^i}], λ_t^i = (κ_{t+1}^i − κ_t^i)/(1 − κ_t^i)",
    source="MD4, own",
    kind="identity",
    falsifier="λ = κ_{t+1} − κ_t, without 1/(1 − κ_t)",
    token_probs=_euler_probs,
)
def exact_finite_step(cases: Cases, run: Run, *, token_probs=step_probs) -> np.ndarray:
    """One pair: its whole distribution after the step. All pairs: that of each token."""
    s, n = cases.shape.num_states, cases.shape.num_positions
    table = cases.each(two_step_table)
    own = run(token_probs, cases.each(_pair_posteriors), fields.states(cases), table)
    probs_of_all, posteriors, _ = chain_of(cases, two_steps)
    marginal = run(token_probs, posteriors, fields.states(cases), table)

    def truth(case: Case) -> np.ndarray:
        x_0, x_1 = one_pair(case)
        pair = (case.states == x_0).all(-1)[:, None] & (case.tokens == x_1).all(-1)[None]
        return chain(case, pair.astype(float), two_step_table(case))[0]

    def tokens(probs: np.ndarray) -> np.ndarray:
        return np.stack([exact.marginal(probs, (i,), s, n) for i in range(n)])

    whole = cases.each(truth)
    after, tokens_after, tokens_then = [], [], []
    for probs, kernel in zip(whole, own, strict=True):
        after.append([exact.push_forward(probs[t], kernel[t]) for t in (0, 1)])
    for probs, kernel in zip(probs_of_all, marginal, strict=True):
        tokens_after.append([tokens(exact.push_forward(probs[t], kernel[t])) for t in (0, 1)])
        tokens_then.append([tokens(probs[t + 1]) for t in (0, 1)])
    return worst(
        gap(np.array(after), whole[:, 1:]), gap(np.array(tokens_after), np.array(tokens_then))
    )


@statement(
    "Q4",
    "p_{t+1}(x) − p_t(x) + div_x(p_t u_t) = 0 if for π-almost every pair at most one position has "
    "κ_{t+1}^i ≠ κ_t^i and x_0^i ≠ x_1^i",
    source="DAG",
    kind="identity",
    falsifier="two positions of a pair at once",
    setup=two_at_once,
)
def discrete_continuity(cases: Cases, run: Run, *, setup=one_by_one) -> np.ndarray:
    """One-position tables in any order, any source and coupling, all masks among them.

    And tables that run all positions at once, where each pair has one to move: another for each.
    """
    setups = (setup, masks_one_by_one, one_mask_each, crossed)
    return worst(*(_continuity_gap(cases, run, each) for each in setups))


@unbroken
def _continuity_gap(cases: Cases, run: Run, setup) -> np.ndarray:
    token_probs, posteriors, table = chain_of(cases, setup)
    velocity = run(velocities_of, posteriors, fields.states(cases), table)
    outflow = run(_divergences, token_probs[:, :-1], velocity, fields.states(cases))
    flow = np.stack(
        [
            [exact.divergence(p, u) for p, u in zip(probs[:-1], rows, strict=True)]
            for probs, rows in zip(token_probs, velocity, strict=True)
        ]
    )
    return worst(gap(np.diff(token_probs, axis=1), -outflow), gap(outflow, flow))


def _divergences(probs: Array, velocity: Array, states: Array) -> Array:
    return jax.vmap(lambda p, u: velocities.divergence(p, u, states))(probs, velocity)


def _push(probs: Array, kernels: Array, states: Array) -> Array:
    return jax.vmap(lambda p, k: steps.push_forward(p, k, states))(probs, kernels)


@statement(
    "Q5",
    "p_{t+1} = P_t p_t, P_t(x, z) = Π_i (δ_{z^i} + u_t^i(·, z))(x^i), if at every z of p_t(z) > 0 "
    "at most one position has u_t^i(·, z) ≠ 0",
    source="DAG",
    kind="identity",
    falsifier="one position a pair, as Q4 asks, yet another for each: (0, 0) to (1, 0) or (0, 1)",
    setup=crossed,
)
def push_forward(cases: Cases, run: Run, *, setup=one_by_one) -> np.ndarray:
    """The next distribution, by enumeration; and the kernel itself, entry by entry.

    One position for all states, on one-position tables; or one that the state says: its only mask.
    """
    residuals = []
    for each in (setup, one_mask_each):
        token_probs, posteriors, table = chain_of(cases, each)
        kernels = run(step_probs, posteriors, fields.states(cases), table)
        # What a step does off the support is not read.
        read = np.where((token_probs[:, :-1] > 0)[..., None, None], kernels, np.nan)
        pushed = run(_push, token_probs[:, :-1], read, fields.states(cases))
        residuals.append(gap(pushed, token_probs[:, 1:]))
    matrix = run(steps.transition_matrix, kernels[:, 0], fields.states(cases))
    truth = np.stack([exact.kernel(k[0]) for k in kernels])
    return worst(*residuals, gap(matrix, truth))
