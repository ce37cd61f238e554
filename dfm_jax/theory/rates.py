"""V2, V8, V9: velocities of other token paths, pair by pair, then marginalised."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, paths, velocities
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.paths import distance_table, one_pair, token_law
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import gap, statement, worst
from dfm_jax.theory.velocities import continuity, laws, rate_violation, violation
from dfm_jax.types import Array, ArrayLike

# ── one position at a time: token velocities for every (a, b, z) ─────────────────────────────────


def _tabulate(fn, num_states: int, num_tokens: int) -> Array:
    """fn(x_0, x_1, x_t) → [N, S] at constant sequences, for every (a, b, z): [N, S, V, S, S]."""
    a, b, z = jnp.meshgrid(
        jnp.arange(num_states), jnp.arange(num_tokens), jnp.arange(num_states), indexing="ij"
    )
    rows = jax.vmap(fn)(a.reshape(-1), b.reshape(-1), z.reshape(-1))  # [S·V·S, N, S]
    shape = (num_states, num_tokens, num_states, *rows.shape[1:])
    return jnp.moveaxis(rows.reshape(shape), 3, 0)


def _bernstein(share: Array) -> Array:
    return jnp.stack([(1 - share) ** 2, 2 * share * (1 - share), share**2])


def _convex(law: Array, t: Array, family: Array, exponent: Array, pace: Array) -> Array:
    num_states = law.shape[-1]
    schedule = fields.schedule_of(family, exponent)

    def masses(time: Array) -> Array:
        return _bernstein(schedule.kappa(t + pace * (time - t)))

    def at(a: Array, b: Array, z: Array) -> Array:
        whole = [jnp.full(exponent.shape, token) for token in (a, b, z)]
        start, end = (paths.point_mass(x, num_states) for x in whole[:2])
        return velocities.convex_velocity(jnp.stack([start, law, end]), whole[2], t, masses)

    return _tabulate(at, num_states, num_states - 1)


def _convex_truth(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """A P2 path with three base laws, by enumeration: its token path and that path's slope."""
    v, s = case.shape.num_tokens, case.shape.num_states
    eye, ones = np.eye(s), np.ones((case.shape.num_positions, s, v, s))
    base = np.stack([ones * eye[:, None], ones * token_law(case)[:, None, None], ones * eye[:v]])
    share, slope = case.kappa("inside"), case.slope("inside")
    masses = np.stack([(1 - share) ** 2, 2 * share * (1 - share), share**2])
    change = np.stack([-2 * (1 - share), 2 - 4 * share, 2 * share]) * slope
    return exact.convex_token_path(base, masses), np.einsum("jn,jnabv->nabv", change, base)


@statement(
    "V2",
    "u_t^i(v, z | x_0, x_1) = Σ_j a_t^j h^j(v) + b_t δ_{z^i}(v), ℓ = argmin κ̇^j/κ^j",
    source="DFM",
    kind="identity",
    falsifier="κ̇ of a clock that runs at half speed",
    pace=0.5,
)
def convex_velocity(cases: Cases, run: Run, *, pace: float = 1.0) -> np.ndarray:
    """A rate (V1), and its marginal generates the marginal path (C1)."""
    conditional = run(
        _convex, cases.each(token_law), *fields.clock(cases, "inside"), np.full(len(cases), pace)
    )

    def truth(case: Case) -> tuple[np.ndarray, ...]:
        at, slope = _convex_truth(case)
        return (
            exact.marginal_path(case.coupling, at),
            exact.path_derivative(case.coupling, at, slope),
            exact.pair_posterior(case.coupling, at)[0],
        )

    law, slope, pairs = cases.each(truth)
    velocity = np.stack(
        [exact.marginal_velocity(p, u) for p, u in zip(pairs, conditional, strict=True)]
    )
    return worst(continuity(law, slope, velocity), rate_violation(cases, run, velocity))


# ── any differentiable token path: the metric path, and the mixture path pair by pair ────────────


def _strength(t: ArrayLike) -> Any:
    """β_t = t/(1 − t): from 0 to ∞."""
    return t / (1 - t)


def _metric_jumps(x_1: Array, table: Array, t: Array, pace: Array, *, form: str) -> Array:
    """Velocities of a metric path for every target b and token z: [N, V, V, V]."""
    num_tokens = table.shape[0]

    def at(b: Array, z: Array) -> Array:
        target, here = (jnp.full(x_1.shape, token) for token in (b, z))

        def strength(time: Array) -> Array:
            return _strength(t + pace * (time - t))

        if form == "closed":
            return velocities.metric_velocity(here, target, t, table, strength)
        return _FORMS[form](lambda time: paths.metric_path(target, table, strength(time)), here, t)

    b, z = jnp.meshgrid(jnp.arange(num_tokens), jnp.arange(num_tokens), indexing="ij")
    return jnp.moveaxis(jax.vmap(jax.vmap(at))(b, z), 2, 0)


def _mixture_jumps(t, family, exponent, *, num_tokens: int, form: str) -> Array:
    """Velocities of the mixture path for every (a, b, z): [N, S, V, S, S]."""
    schedule, num_states = fields.schedule_of(family, exponent), num_tokens + 1

    def at(a: Array, b: Array, z: Array) -> Array:
        start, target, here = (jnp.full(exponent.shape, token) for token in (a, b, z))
        return _FORMS[form](
            lambda time: paths.mixture_path(
                start, target, schedule.kappa(time), num_states=num_states
            ),
            here,
            t,
        )

    return _tabulate(at, num_states, num_tokens)


_FORMS = {
    "optimal": velocities.kinetic_optimal_velocity,
    "campbell": velocities.campbell_velocity,
}


def _metric_truth(case: Case) -> tuple[np.ndarray, ...]:
    """Marginal law, its slope and pair posterior of a metric path, by enumeration."""
    v, n, _ = case.shape
    t, table, h = case.times["inside"], distance_table(case), 1e-30
    coupling = exact.FactoredCoupling(
        data=case.data, source_tokens=np.full((n, v), 1 / v), context=np.zeros(n, bool)
    )
    at = exact.metric_token_path(_strength(t), table, n, v)
    stepped = exact.metric_token_path(_strength(t) + 1j * h / (1 - t) ** 2, table, n, v)
    slope = exact.path_derivative(coupling, at, np.imag(stepped) / h)
    pairs = exact.pair_posterior(coupling, at)[0]
    return exact.marginal_path(coupling, at), slope, pairs


def _metric_residual(cases: Cases, run: Run, form: str, pace: float) -> tuple[np.ndarray, ...]:
    """C1 of the marginal of a metric path's velocity; and the velocities themselves."""
    v = cases.shape.num_tokens
    conditional = run(
        _metric_jumps,
        cases.each(lambda c: one_pair(c)[1]),
        cases.each(distance_table),
        cases.each(lambda c: c.times["inside"]),
        np.full(len(cases), pace),
        form=form,
    )
    law, slope, pairs = cases.each(_metric_truth)
    every_source = np.repeat(conditional[:, :, None], v, axis=2)
    velocity = np.stack(
        [exact.marginal_velocity(p, u) for p, u in zip(pairs, every_source, strict=True)]
    )
    broken = run(violation, velocity, fields.tokens(cases))
    return worst(continuity(law, slope, velocity), broken), conditional


def mixture_jumps(cases: Cases, run: Run, form: str) -> np.ndarray:
    """Another conditional velocity of the mixture path than V3: [I, N, S, V, S, S]."""
    return run(
        _mixture_jumps,
        *fields.clock(cases, "inside"),
        num_tokens=cases.shape.num_tokens,
        form=form,
    )


def _mixture_residual(cases: Cases, run: Run, form: str) -> np.ndarray:
    """C1 of the marginal of `mixture_jumps`."""
    pairs = cases.each(lambda c: c.pair_posterior("inside"))
    conditional = mixture_jumps(cases, run, form)
    velocity = np.stack(
        [exact.marginal_velocity(p, u) for p, u in zip(pairs, conditional, strict=True)]
    )
    return worst(continuity(*laws(cases, "inside"), velocity), rate_violation(cases, run, velocity))


@statement(
    "V8",
    "u(v, z) = [p(z) ṗ(v) − ṗ(z) p(v)]_+ / p(z) for any differentiable token path",
    source="KO",
    kind="identity",
    falsifier="ṗ of a clock that runs at half speed",
    pace=0.5,
)
def kinetic_optimal(cases: Cases, run: Run, *, pace: float = 1.0) -> np.ndarray:
    """Marginalised it generates metric and mixture paths; for P6 it is p(v) β̇ [d(z) − d(v)]_+."""
    metric, general = _metric_residual(cases, run, "optimal", pace)
    _, closed = _metric_residual(cases, run, "closed", pace)
    return worst(metric, gap(general, closed), _mixture_residual(cases, run, "optimal"))


@statement(
    "V9",
    "R*(v, z) = [ṗ(v) − ṗ(z)]_+ / (Z p(z)) where p(v) > 0 and p(z) > 0",
    source="DFM-C",
    kind="identity",
    falsifier="ṗ of a clock that runs at half speed",
    pace=0.5,
)
def campbell_rate(cases: Cases, run: Run, *, pace: float = 1.0) -> np.ndarray:
    """Marginalised it generates metric and mixture paths on the open interval."""
    metric, _ = _metric_residual(cases, run, "campbell", pace)
    return worst(metric, _mixture_residual(cases, run, "campbell"))
