"""V2, V8, V9: velocities of other token paths, pair by pair, then marginalised.

Two token paths that are not the mixture path: "convex", three base laws δ_{x_0}, a law of full
support, δ_{x_1}; and "metric". On the mixture path V2, V8 and V9 all give V3 where they are read.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, paths, velocities
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import gap, statement, worst
from dfm_jax.theory.statements.paths import distance_table, one_pair, token_law
from dfm_jax.theory.statements.velocities import continuity
from dfm_jax.types import Array, ArrayLike

Form = str  # "convex", "optimal", "campbell", "closed"
Truth = tuple[np.ndarray, np.ndarray, np.ndarray]  # p_t, ∂_t p_t, P(x_0^i, x_1^i | z)


# ── the convex path ─────────────────────────────────────────────────────────────────────────────


def _bernstein(share: Array) -> Array:
    """κ^j of three base laws: from the first to the last."""
    return jnp.stack([(1 - share) ** 2, 2 * share * (1 - share), share**2])


def _convex_jumps(
    law: Array, t: Array, family: Array, exponent: Array, pace: Array, *, form: Form
) -> Array:
    num_states = law.shape[-1]
    schedule = fields.schedule_of(family, exponent)

    def masses(time: Array) -> Array:
        return _bernstein(schedule.kappa(t + pace * (time - t)))

    def at(a: Array, b: Array, z: Array) -> Array:
        start, end, here = (jnp.full(exponent.shape, token) for token in (a, b, z))
        ends = (paths.point_mass(x, num_states) for x in (start, end))
        base = jnp.stack([next(ends), law, next(ends)])
        if form == "convex":
            return velocities.convex_velocity(base, here, t, masses)
        velocity = {
            "optimal": velocities.kinetic_optimal_velocity,
            "campbell": velocities.campbell_velocity,
        }[form]
        return velocity(lambda time: paths.convex_path(base, masses(time)), here, t)

    a, b, z = jnp.meshgrid(
        jnp.arange(num_states), jnp.arange(num_states - 1), jnp.arange(num_states), indexing="ij"
    )
    rows = jax.vmap(at)(a.reshape(-1), b.reshape(-1), z.reshape(-1))
    return jnp.moveaxis(rows.reshape(*a.shape, *rows.shape[1:]), 3, 0)


def convex_jumps(cases: Cases, run: Run, when: str, form: Form, pace: float = 1.0) -> np.ndarray:
    """Conditional velocities u^i(v, z | a, b) of the convex path: [I, N, S, V, S, S]."""
    return run(
        _convex_jumps,
        cases.each(token_law),
        *fields.clock(cases, when),
        np.full(len(cases), pace),
        form=form,
    )


def convex_truth(case: Case, when: str, coupling: np.ndarray) -> Truth:
    """The convex path of a coupling, by enumeration."""
    v, s = case.shape.num_tokens, case.shape.num_states
    eye, ones = np.eye(s), np.ones((case.shape.num_positions, s, v, s))
    base = np.stack([ones * eye[:, None], ones * token_law(case)[:, None, None], ones * eye[:v]])
    share, slope = case.kappa(when), case.slope(when)
    masses = np.stack([(1 - share) ** 2, 2 * share * (1 - share), share**2])
    change = np.stack([-2 * (1 - share), 2 - 4 * share, 2 * share]) * slope
    at, moved = exact.convex_token_path(base, masses), np.einsum("jn,jnabv->nabv", change, base)
    return _truth(coupling, at, moved)


# ── the metric path ─────────────────────────────────────────────────────────────────────────────


def _strength(t: ArrayLike) -> Any:
    """β_t = t/(1 − t): from 0 to ∞."""
    return t / (1 - t)


def _metric_jumps(x_1: Array, table: Array, t: Array, pace: Array, *, form: Form) -> Array:
    num_tokens = table.shape[0]

    def at(b: Array, z: Array) -> Array:
        target, here = (jnp.full(x_1.shape, token) for token in (b, z))

        def strength(time: Array) -> Array:
            return _strength(t + pace * (time - t))

        if form == "closed":
            return velocities.metric_velocity(target, here, t, table, strength)
        velocity = {
            "optimal": velocities.kinetic_optimal_velocity,
            "campbell": velocities.campbell_velocity,
        }[form]
        return velocity(lambda time: paths.metric_path(target, table, strength(time)), here, t)

    b, z = jnp.meshgrid(jnp.arange(num_tokens), jnp.arange(num_tokens), indexing="ij")
    over_targets = jnp.moveaxis(jax.vmap(jax.vmap(at))(b, z), 2, 0)  # [N, V, V, V]
    return jnp.repeat(over_targets[:, None], num_tokens, axis=1)


def metric_jumps(cases: Cases, run: Run, when: str, form: Form, pace: float = 1.0) -> np.ndarray:
    """Conditional velocities u^i(v, z | a, b) of the metric path: [I, N, V, V, V, V]."""
    return run(
        _metric_jumps,
        cases.each(lambda c: one_pair(c)[1]),
        cases.each(distance_table),
        cases.each(lambda c: c.times[when]),
        np.full(len(cases), pace),
        form=form,
    )


def metric_truth(case: Case, when: str, data: np.ndarray) -> Truth:
    """The metric path of a data law, by enumeration."""
    v, n, _ = case.shape
    t, table, h = case.times[when], distance_table(case), 1e-30
    coupling = exact.FactoredCoupling(
        data=data, source_tokens=np.full((n, v), 1 / v), context=np.zeros(n, bool)
    )
    at = exact.metric_token_path(_strength(t), table, n, v)
    stepped = exact.metric_token_path(_strength(t) + 1j * h / (1 - t) ** 2, table, n, v)
    return _truth(coupling, at, np.imag(stepped) / h)


# ── statements ──────────────────────────────────────────────────────────────────────────────────


def _truth(coupling: exact.Coupling, at: np.ndarray, moved: np.ndarray) -> Truth:
    return (
        exact.marginal_path(coupling, at),
        exact.path_derivative(coupling, at, moved),
        exact.pair_posterior(coupling, at)[0],
    )


def marginalised(pairs: np.ndarray, conditional: np.ndarray) -> np.ndarray:
    """V4 by enumeration, case by case: [I, Z, N, S]."""
    return np.stack(
        [exact.marginal_velocity(p, u) for p, u in zip(pairs, conditional, strict=True)]
    )


def _rows_violation(velocity: Array) -> Array:
    """`rate_violation` of every conditional row, z its second last axis."""
    rows = velocity.reshape(-1, velocity.shape[-1])
    here = jnp.tile(jnp.arange(velocity.shape[-1]), rows.shape[0] // velocity.shape[-1])
    return velocities.rate_violation(rows, here)


def _generates(run: Run, truth: Truth, conditional: np.ndarray) -> np.ndarray:
    """C1 of the marginal velocity, V1 of the conditional one."""
    law, slope, pairs = truth
    return worst(
        continuity(law, slope, marginalised(pairs, conditional)),
        run(_rows_violation, conditional),
    )


@statement(
    "V2",
    "u_t^i(v, z | x_0, x_1) = Σ_j a_t^j h^j(v) + b_t δ_{z^i}(v), ℓ = argmin κ̇^j/κ^j",
    source="DFM",
    kind="identity",
    falsifier="κ̇ of a clock that runs at half speed",
    pace=0.5,
)
def convex_velocity(cases: Cases, run: Run, *, pace: float = 1.0) -> np.ndarray:
    """A rate for every pair (V1), and its marginal generates the marginal path (C1)."""
    truth = cases.each(lambda c: convex_truth(c, "early", c.coupling))
    return _generates(run, truth, convex_jumps(cases, run, "early", "convex", pace))


@statement(
    "V8",
    "u(v, z) = [p(z) ṗ(v) − ṗ(z) p(v)]_+ / p(z) for any differentiable token path",
    source="KO",
    kind="identity",
    falsifier="ṗ of a clock that runs at half speed",
    pace=0.5,
)
def kinetic_optimal(cases: Cases, run: Run, *, pace: float = 1.0) -> np.ndarray:
    """Generates the metric and the convex path; for P6 it is p(v) β̇ [d(z) − d(v)]_+."""
    general = metric_jumps(cases, run, "early", "optimal", pace)
    convex = cases.each(lambda c: convex_truth(c, "early", c.coupling))
    return worst(
        _generates(run, cases.each(lambda c: metric_truth(c, "early", c.data)), general),
        gap(general, metric_jumps(cases, run, "early", "closed", pace)),
        _generates(run, convex, convex_jumps(cases, run, "early", "optimal", pace)),
    )


@statement(
    "V9",
    "R*(v, z) = [ṗ(v) − ṗ(z)]_+ / (Z p(z)) where p(v) > 0 and p(z) > 0",
    source="DFM-C",
    kind="identity",
    falsifier="ṗ of a clock that runs at half speed",
    pace=0.5,
)
def campbell_rate(cases: Cases, run: Run, *, pace: float = 1.0) -> np.ndarray:
    """Generates the metric and the convex path, on the open interval."""
    metric = cases.each(lambda c: metric_truth(c, "inside", c.data))
    convex = cases.each(lambda c: convex_truth(c, "inside", c.coupling))
    return worst(
        _generates(run, metric, metric_jumps(cases, run, "inside", "campbell", pace)),
        _generates(run, convex, convex_jumps(cases, run, "inside", "campbell", pace)),
    )
