"""D1–D5, D13: a flow on all the data is the posterior-weighted mixture of flows on its parts."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, experts
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.rates import mixture_jumps
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import gap, statement, worst
from dfm_jax.theory.steps import step_laws
from dfm_jax.theory.velocities import continuity, laws, true_velocity
from dfm_jax.types import Array


def bayes(case: Case, when: str) -> np.ndarray:
    """D3's posterior over parts: [Z, K]; any law off the support."""
    gate = case.expert_posterior(when)
    return np.where(gate.sum(axis=-1, keepdims=True) > 0, gate, case.weights)


def static(case: Case, when: str) -> np.ndarray:
    """The masses w_k at every state: the gate that does not look."""
    del when
    return np.broadcast_to(case.weights, (len(case.states), len(case.weights)))


def undefined_off_support(case: Case, when: str, values: np.ndarray) -> np.ndarray:
    """NaN where expert k is undefined, to show that a zero weight drops it: [K, Z, …]."""
    alive = case.part_paths(when) > 0
    return np.where(alive.reshape(alive.shape + (1,) * (values.ndim - 2)), values, np.nan)


def _log_mixture(log_weights: Array, log_laws: Array) -> Array:
    return jnp.exp(experts.mixture_log_prob(log_weights, log_laws))


def log_masses_of(case: Case) -> np.ndarray:
    """log w_k."""
    return np.log(case.weights)


def _equal_masses(case: Case) -> np.ndarray:
    return np.full(len(case.weights), -np.log(len(case.weights)))


@statement(
    "D1",
    "π = Σ_k w_k π_k, so q = Σ_k w_k q_k",
    source="DAG",
    kind="identity",
    falsifier="equal masses",
    log_masses=_equal_masses,
)
def data_is_a_mixture(cases: Cases, run: Run, *, log_masses=log_masses_of) -> np.ndarray:
    """The data marginal of the mixed coupling, and its source's."""
    data = run(_log_mixture, cases.each(log_masses), cases.each(lambda c: fields.log(c.parts)))
    sources = cases.each(lambda c: fields.log(c.couplings.sum(axis=2)))
    source = run(_log_mixture, cases.each(log_masses), sources)
    return worst(
        gap(data, cases.each(lambda c: exact.data_law(c.coupling))),
        gap(source, cases.each(lambda c: exact.source_law(c.coupling))),
    )


def _same_path(case: Case, when: str) -> np.ndarray:
    return case.part_paths(when)


def _another_path(case: Case, when: str) -> np.ndarray:
    """The first part on another κ than the rest."""
    paths = case.part_paths(when).copy()
    late = case.token_path(case.kappa(when) ** 3)
    paths[0] = exact.marginal_path(case.couplings[0], late)
    return paths


@statement(
    "D2",
    "p_t = Σ_k w_k p_t^k, the same conditional path for all parts",
    source="DAG, DDM",
    kind="identity",
    falsifier="one part on another κ",
    paths=_another_path,
)
def path_is_a_mixture(cases: Cases, run: Run, *, paths=_same_path) -> np.ndarray:
    """The path of the mixed coupling, at both ends of time too."""
    residuals = []
    for when in ("early", "late"):
        log_paths = cases.each(lambda c, when=when: fields.log(paths(c, when)))
        got = run(_log_mixture, cases.each(log_masses_of), log_paths)
        residuals.append(gap(got, cases.each(lambda c, when=when: c.path(when))))
    return worst(*residuals)


def _posteriors(log_paths: Array, log_masses: Array) -> Array:
    return jax.vmap(experts.expert_posterior, in_axes=(1, None))(log_paths, log_masses)


def _no_masses(case: Case) -> np.ndarray:
    return np.zeros(len(case.weights))


@statement(
    "D3",
    "r_k(z, t) = w_k p_t^k(z) / p_t(z); at t = 0 it is P(k | x_0)",
    source="DAG, DDM",
    kind="definition",
    falsifier="the prior w dropped",
    log_masses=_no_masses,
)
def expert_posterior(cases: Cases, run: Run, *, log_masses=log_masses_of) -> np.ndarray:
    """The conditional law of the part in the raw joint law of (k, x_t)."""
    residuals = []
    for when in ("early", "late"):
        log_paths = cases.each(lambda c, when=when: fields.log(c.part_paths(when)))
        got = run(_posteriors, log_paths, cases.each(log_masses))

        def truth(case: Case, when: str = when) -> np.ndarray:
            joint = case.weights[:, None] * case.part_paths(when)  # P(k, z)
            total = joint.sum(axis=0)
            return np.divide(joint, total, out=np.zeros_like(joint), where=total > 0).T

        support = cases.each(lambda c, when=when: c.path(when)) > 0
        residuals.append(gap(got, cases.each(truth), support))
    return worst(*residuals)


def _mix(gate: Array, velocity: Array) -> Array:
    """`mix_velocities` at every state: gate [Z, K], velocity [K, Z, N, S]."""
    return jax.vmap(experts.mix_velocities, in_axes=(0, 1))(gate, velocity)


def _part_fields(cases: Cases, run: Run, when: str) -> np.ndarray:
    """Every expert's V5 velocity, undefined off its support: [I, K, Z, N, S]."""
    posteriors = cases.each(lambda c: undefined_off_support(c, when, c.part_posteriors(when)))
    return run(_forward_parts, posteriors, fields.states(cases), *fields.clock(cases, when))


def _forward_parts(posteriors, states, t, family, exponent) -> Array:
    each = jax.vmap(fields.forward, in_axes=(0, None, None, None, None))
    return each(posteriors, states, t, family, exponent)


def _discrete_parts(posteriors: Array, states: Array, table: Array) -> Array:
    """Every expert's exact finite step at row 1 of a table: [K, Z, N, S]."""
    rows = jnp.stack([posteriors, posteriors], axis=1)  # the same posteriors at both steps
    laws = jax.vmap(step_laws, in_axes=(0, None, None))(rows, states, table)
    return laws[:, 1]


@statement(
    "D4",
    "u_t(x, z) = Σ_k r_k(z, t) u_t^k(x, z)",
    source="DAG, DDM",
    kind="identity",
    falsifier="a static gate",
    gate=static,
)
def velocities_mix(cases: Cases, run: Run, *, gate=bayes) -> np.ndarray:
    """Continuous V5, V8's another velocity pair by pair, and the parallel finite step; C1 holds."""
    law, slope = laws(cases, "early")
    mixed = run(_mix, cases.each(lambda c: gate(c, "early")), _part_fields(cases, run, "early"))
    truth = cases.each(lambda c: true_velocity(c, "early"))
    inside = cases.each(lambda c: gate(c, "inside"))
    return worst(
        gap(mixed, truth, law > 0),
        continuity(law, slope, mixed),
        _mixed_jumps_gap(cases, run, inside),
        _mixed_step_gap(cases, run, inside),
    )


def _mixed_jumps_gap(cases: Cases, run: Run, gate: np.ndarray) -> np.ndarray:
    """Campbell's rate, marginalised for each part and for the whole."""
    conditional = mixture_jumps(cases, run, "campbell")

    def both(index: int, case: Case) -> tuple[np.ndarray, np.ndarray]:
        at = case.token_path(case.kappa("inside"))
        pairs = [exact.pair_posterior(c, at)[0] for c in case.couplings]
        own = [exact.marginal_velocity(p, conditional[index]) for p in pairs]
        whole = exact.marginal_velocity(case.pair_posterior("inside"), conditional[index])
        return np.stack(own), whole

    parts, whole = cases.each_numbered(both)
    support = cases.each(lambda c: c.path("inside")) > 0
    return gap(run(_mix, gate, parts), whole, support)


def _mixed_step_gap(cases: Cases, run: Run, gate: np.ndarray) -> np.ndarray:
    """Q3's parallel step from κ at "inside" to the data, experts against the whole."""
    table = cases.each(lambda c: np.stack([0 * c.exponent, c.kappa("inside"), 0 * c.exponent + 1]))
    parts = cases.each(lambda c: undefined_off_support(c, "inside", c.part_posteriors("inside")))
    whole = cases.each(lambda c: c.posterior("inside")[None])
    states = fields.states(cases)
    mixed = run(_mix, gate, run(_discrete_parts, parts, states, table))
    truth = run(_discrete_parts, whole, states, table)[:, 0]
    support = cases.each(lambda c: c.path("inside")) > 0
    return gap(mixed, truth, support)


def _mix_posteriors(gate: Array, posteriors: Array) -> tuple[Array, Array]:
    """In probability and in log space: gate [Z, K], posteriors [K, Z, N, V]."""
    plain = jax.vmap(experts.mix_posteriors, in_axes=(0, 1))(gate, posteriors)
    logs = jax.vmap(experts.mix_log_probs, in_axes=(0, 1))(jnp.log(gate), jnp.log(posteriors))
    return plain, jnp.exp(logs)


@statement(
    "D5",
    "p_{1|t}^i(v | z) = Σ_k r_k(z, t) p_{1|t}^{k,i}(v | z)",
    source="DAG, DDM",
    kind="identity",
    falsifier="a static gate",
    gate=static,
)
def posteriors_mix(cases: Cases, run: Run, *, gate=bayes) -> np.ndarray:
    """The token posterior of the whole, by enumeration; t = 0 and t = 1 included."""
    residuals = []
    for when in ("early", "late"):
        parts = cases.each(
            lambda c, when=when: undefined_off_support(c, when, c.part_posteriors(when))
        )
        plain, logs = run(_mix_posteriors, cases.each(lambda c, when=when: gate(c, when)), parts)
        truth = cases.each(lambda c, when=when: c.posterior(when))
        support = cases.each(lambda c, when=when: c.path(when)) > 0
        residuals += [gap(plain, truth, support), gap(logs, truth, support)]
    return worst(*residuals)


@statement(
    "D13",
    "Σ_k r_k u^k generates p_t for any u^k that generate p_t^k",
    source="own",
    kind="identity",
    falsifier="a static gate",
    gate=static,
)
def any_generating_velocities_mix(cases: Cases, run: Run, *, gate=bayes) -> np.ndarray:
    """C1 for experts that each mix in a corrector of their own strength (V7)."""
    ahead = _part_fields(cases, run, "inside")
    source = cases.each(lambda c: undefined_off_support(c, "inside", _part_sources(c)))
    back = run(_backward_parts, source, fields.states(cases), *fields.clock(cases, "inside"))
    beta = cases.each(lambda c: c.model_weights)[:, :, None, None, None]
    corrected = (1 + beta) * ahead - beta * back
    mixed = run(_mix, cases.each(lambda c: gate(c, "inside")), corrected)
    return continuity(*laws(cases, "inside"), mixed)


def _part_sources(case: Case) -> np.ndarray:
    at = case.token_path(case.kappa("inside"))
    return np.stack([exact.posteriors(c, at)[1] for c in case.couplings])


def _backward_parts(sources, states, t, family, exponent) -> Array:
    each = jax.vmap(fields.backward, in_axes=(0, None, None, None, None))
    return each(sources, states, t, family, exponent)
