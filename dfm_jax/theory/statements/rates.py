"""V2, V8, V9: velocities of other token paths, pair by pair, then marginalized.

Two token paths that are not the mixture path: "convex", three base distributions δ_{x_0}, a
distribution of all tokens, δ_{x_1}, so that the mask has no mass unless x_0 is one; and "metric".
On the mixture path V2, V8 and V9 all give V3 where they are read.
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
from dfm_jax.theory.statements.paths import distance_table, one_pair
from dfm_jax.theory.statements.velocities import continuity
from dfm_jax.types import Array, ArrayLike

Form = str  # "convex", "optimal", "campbell", "closed"
Truth = tuple[np.ndarray, np.ndarray, np.ndarray]  # p_t, ∂_t p_t, P(x_0^i, x_1^i | z)


# ── the convex path ─────────────────────────────────────────────────────────────────────────────


def _middle_probs(case: Case) -> np.ndarray:
    """Any distribution of the tokens, none of it on the mask: [N, S]."""
    return case.denoiser[0] @ np.eye(case.shape.num_tokens, case.shape.num_states)


def _bernstein(share: Array) -> Array:
    """κ^j of three base distributions: from the first to the last."""
    return jnp.stack([(1 - share) ** 2, 2 * share * (1 - share), share**2])


def _convex_jumps(
    probs: Array, t: Array, family: Array, exponent: Array, pace: Array, *, form: Form
) -> Array:
    num_states = probs.shape[-1]
    schedule = fields.schedule_of(family, exponent)

    def masses(time: Array) -> Array:
        return _bernstein(schedule.kappa(t + pace * (time - t)))

    def at(a: Array, b: Array, z: Array) -> Array:
        start, end, here = (jnp.full(exponent.shape, token) for token in (a, b, z))
        ends = (paths.point_mass(x, num_states) for x in (start, end))
        base = jnp.stack([next(ends), probs, next(ends)])
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
        cases.each(_middle_probs),
        *fields.time_and_schedule(cases, when),
        np.full(len(cases), pace),
        form=form,
    )


def _convex_parts(case: Case, when: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Base distributions h^j(· | a, b) [3, N, S, V, S], their masses and slopes [3, N]."""
    v, s = case.shape.num_tokens, case.shape.num_states
    eye, ones = np.eye(s), np.ones((case.shape.num_positions, s, v, s))
    middle = _middle_probs(case)[:, None, None]
    base = np.stack([ones * eye[:, None], ones * middle, ones * eye[:v]])
    share, slope = case.kappa(when), case.slope(when)
    masses = np.stack([(1 - share) ** 2, 2 * share * (1 - share), share**2])
    return base, masses, np.stack([-2 * (1 - share), 2 - 4 * share, 2 * share]) * slope


def _convex_path(case: Case, when: str) -> tuple[np.ndarray, np.ndarray]:
    base, masses, change = _convex_parts(case, when)
    return exact.convex_token_path(base, masses), np.einsum("jn,jnabv->nabv", change, base)


def convex_truth(case: Case, when: str, coupling: np.ndarray) -> Truth:
    """The convex path of a coupling, by enumeration."""
    key = (convex_truth, when, coupling.tobytes())  # V2, V8, V9 and D4 ask for the same
    return case.remembered(key, lambda: _truth(coupling, *_convex_path(case, when)))


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


def _metric_path(case: Case, when: str) -> tuple[np.ndarray, np.ndarray]:
    v, n, _ = case.shape
    t, table, h = case.times[when], distance_table(case), 1e-30
    at = exact.metric_token_path(_strength(t), table, n, v)
    stepped = exact.metric_token_path(_strength(t) + 1j * h / (1 - t) ** 2, table, n, v)
    return at, np.imag(stepped) / h


def metric_truth(case: Case, when: str, data: np.ndarray) -> Truth:
    """The metric path of a data distribution, by enumeration."""
    v, n, _ = case.shape
    coupling = exact.FactoredCoupling(
        data=data, source_tokens=np.full((n, v), 1 / v), context=np.zeros(n, bool)
    )
    key = (metric_truth, when, data.tobytes())
    return case.remembered(key, lambda: _truth(coupling, *_metric_path(case, when)))


# ── statements ──────────────────────────────────────────────────────────────────────────────────


def _truth(coupling: exact.Coupling, at: np.ndarray, moved: np.ndarray) -> Truth:
    return (
        exact.marginal_path(coupling, at),
        exact.path_derivative(coupling, at, moved),
        exact.pair_posterior(coupling, at)[0],
    )


def marginalized(pairs: np.ndarray, conditional: np.ndarray) -> np.ndarray:
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
    probs, slope, pairs = truth
    return worst(
        continuity(probs, slope, marginalized(pairs, conditional)),
        run(_rows_violation, conditional),
    )


# C1 and V1 hold for many rates of one path: what each of V2, V8, V9 says is read off in NumPy too.


def _smallest_share(case: Case, when: str) -> np.ndarray:
    """V2's Σ_j a^j h^j(v) + b δ_z(v), pair by pair: [N, S, V, S, S]."""
    base, masses, change = _convex_parts(case, when)
    ratio = np.divide(change, masses, out=np.full_like(masses, np.inf), where=masses > 0)
    b = ratio.min(axis=0)
    pull = np.einsum("jn,jnabv->nabv", change - masses * b, base)
    stay = b[:, None, None, None, None] * np.eye(case.shape.num_states)
    return pull[:, :, :, None] + stay


def _flux_gap(cases: Cases, rates: np.ndarray, path_of, *, campbell: bool = False) -> np.ndarray:
    """p(z) u(v, z) of V8 or V9 against NumPy, pair by pair; 0 where p(z) = 0."""

    def by_hand(case: Case) -> tuple[np.ndarray, np.ndarray]:
        at, moved = path_of(case)  # [N, S, V, S]
        p_z, slope_z = at[..., None], moved[..., None]
        p_v, slope_v = at[..., None, :], moved[..., None, :]
        if campbell:
            num_positive = np.count_nonzero(at, axis=-1)[..., None, None]
            flux = np.maximum(slope_v - slope_z, 0.0) / num_positive * (p_v > 0)
        else:
            flux = np.maximum(p_z * slope_v - slope_z * p_v, 0.0)
        eye = np.eye(at.shape[-1])
        flux = np.where((p_z > 0) & (eye == 0), flux, 0.0)
        return p_z, flux - eye * flux.sum(axis=-1, keepdims=True)

    p_z, flux = cases.each(by_hand)
    return gap(rates * np.where(p_z > 0, p_z, 1.0), flux)


def _nearer_only(case: Case, when: str) -> np.ndarray:
    """V8 on the metric path: p(v) β̇ [d(z, x_1) − d(v, x_1)]_+: [N, V, V, V, V]."""
    at, _ = _metric_path(case, when)
    to_target = distance_table(case).T  # [x_1, v]
    nearer = np.maximum(to_target[:, :, None] - to_target[:, None, :], 0.0)  # [x_1, z, v]
    rates = at[..., None, :] * nearer / (1 - case.times[when]) ** 2
    return rates - np.eye(at.shape[-1]) * rates.sum(axis=-1, keepdims=True)


@statement(
    "V2",
    "u_t^i(v, z | x_0, x_1) = Σ_j a_t^j h^j(v) + b_t δ_{z^i}(v), ℓ = argmin κ̇^j/κ^j",
    source="DFM",
    kind="identity",
    falsifier="κ̇ of a schedule that runs at half speed",
    pace=0.5,
)
def convex_velocity(cases: Cases, run: Run, *, pace: float = 1.0) -> np.ndarray:
    """A rate for every pair (V1), its marginal generates the marginal path (C1); the formula."""
    truth = cases.each(lambda c: convex_truth(c, "early", c.coupling))
    jumps = convex_jumps(cases, run, "early", "convex", pace)
    by_hand = cases.each(lambda c: _smallest_share(c, "early"))
    return worst(_generates(run, truth, jumps), gap(jumps, by_hand))


@statement(
    "V8",
    "u(v, z) = [p(z) ṗ(v) − ṗ(z) p(v)]_+ / p(z) for any differentiable token path",
    source="KO",
    kind="identity",
    falsifier="ṗ of a schedule that runs at half speed",
    pace=0.5,
)
def kinetic_optimal(cases: Cases, run: Run, *, pace: float = 1.0) -> np.ndarray:
    """Generates the metric and the convex path; for P6 it is p(v) β̇ [d(z) − d(v)]_+."""
    general = metric_jumps(cases, run, "early", "optimal", pace)
    convex = cases.each(lambda c: convex_truth(c, "early", c.coupling))
    on_convex = convex_jumps(cases, run, "early", "optimal", pace)
    nearer = cases.each(lambda c: _nearer_only(c, "early"))
    return worst(
        _generates(run, cases.each(lambda c: metric_truth(c, "early", c.data)), general),
        gap(general, nearer),
        gap(metric_jumps(cases, run, "early", "closed", pace), nearer),
        _generates(run, convex, on_convex),
        _flux_gap(cases, on_convex, lambda c: _convex_path(c, "early")),
    )


@statement(
    "V9",
    "R*(v, z) = [ṗ(v) − ṗ(z)]_+ / (Z p(z)) where p(v) > 0 and p(z) > 0",
    source="DFM-C",
    kind="identity",
    falsifier="ṗ of a schedule that runs at half speed",
    pace=0.5,
)
def campbell_rate(cases: Cases, run: Run, *, pace: float = 1.0) -> np.ndarray:
    """Generates the metric and the convex path, on the open interval; with dead values, Z < S."""
    residuals = []
    for truth, jumps, path in (
        (lambda c: metric_truth(c, "inside", c.data), metric_jumps, _metric_path),
        (lambda c: convex_truth(c, "inside", c.coupling), convex_jumps, _convex_path),
    ):
        got = jumps(cases, run, "inside", "campbell", pace)
        flux_gap = _flux_gap(cases, got, lambda c, at=path: at(c, "inside"), campbell=True)
        residuals += [_generates(run, cases.each(truth), got), flux_gap]
    return worst(*residuals)
