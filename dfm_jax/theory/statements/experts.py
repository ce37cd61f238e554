"""D4, D5, D13: a flow on all the data is the posterior-weighted mixture of flows on its parts."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import mixture
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import gap, statement, worst
from dfm_jax.theory.statements.rates import (
    convex_jumps,
    convex_truth,
    marginalized,
    metric_jumps,
    metric_truth,
)
from dfm_jax.theory.statements.steps import step_probs
from dfm_jax.theory.statements.velocities import (
    backward_field,
    continuity,
    token_probs,
    true_velocity,
)
from dfm_jax.types import Array


def bayes(case: Case, when: str) -> np.ndarray:
    """D3's posterior over parts: [Z, K]; any distribution off the support."""
    gate = case.expert_posterior(when)
    return np.where(gate.sum(axis=-1, keepdims=True) > 0, gate, case.weights)


def static(case: Case, when: str) -> np.ndarray:
    """The masses w_k at every state: the gate that does not look."""
    del when
    return np.broadcast_to(case.weights, (len(case.states), len(case.weights)))


def undefined_off_support(case: Case, when: str, values: np.ndarray) -> np.ndarray:
    """NaN where expert k is undefined, to show that a zero weight drops it: [K, Z, …]."""
    positive = case.part_paths(when) > 0
    return np.where(positive.reshape(positive.shape + (1,) * (values.ndim - 2)), values, np.nan)


def _mix(gate: Array, velocity: Array) -> Array:
    """`mix` at every state: gate [Z, K], velocity [K, Z, N, S]."""
    return jax.vmap(mixture.mix, in_axes=(0, 1))(gate, velocity)


def _part_fields(cases: Cases, run: Run, when: str) -> np.ndarray:
    """Every expert's V5 velocity, undefined off its support: [I, K, Z, N, S]."""
    posteriors = cases.each(lambda c: undefined_off_support(c, when, c.part_posteriors(when)))
    return run(
        _forward_parts, posteriors, fields.states(cases), *fields.time_and_schedule(cases, when)
    )


def _part_sources(cases: Cases, run: Run, when: str) -> np.ndarray:
    """Every expert's V6 velocity, undefined off its support: [I, K, Z, N, S]."""
    sources = cases.each(lambda c: undefined_off_support(c, when, c.part_source_posteriors(when)))
    return run(
        _backward_parts, sources, fields.states(cases), *fields.time_and_schedule(cases, when)
    )


def _forward_parts(posteriors, states, t, family, exponent) -> Array:
    each = jax.vmap(fields.forward, in_axes=(0, None, None, None, None))
    return each(posteriors, states, t, family, exponent)


def _discrete_parts(posteriors: Array, states: Array, table: Array) -> Array:
    """Every expert's exact finite step at row 1 of a table: [K, Z, N, S]."""
    rows = jnp.stack([posteriors, posteriors], axis=1)  # the same posteriors at both steps
    token_probs = jax.vmap(step_probs, in_axes=(0, None, None))(rows, states, table)
    return token_probs[:, 1]


@statement(
    "D4",
    "u_t(x, z) = Σ_k r_k(z, t) u_t^k(x, z)",
    source="DAG, DDM",
    kind="identity",
    falsifier="a static gate",
    gate=static,
)
def velocities_mix(cases: Cases, run: Run, *, gate=bayes) -> np.ndarray:
    """V5, V6; V2, V8, V9 on other paths; the parallel finite step; and C1 holds."""
    probs, slope = token_probs(cases, "early")
    mixed = run(_mix, cases.each(lambda c: gate(c, "early")), _part_fields(cases, run, "early"))
    truth = cases.each(lambda c: true_velocity(c, "early"))
    late = cases.each(lambda c: gate(c, "late"))
    back = run(_mix, late, _part_sources(cases, run, "late"))
    whole_back = backward_field(cases, run, "late")
    return worst(
        gap(mixed, truth, probs > 0),
        continuity(probs, slope, mixed),
        gap(back, whole_back, cases.each(lambda c: c.path("late")) > 0),
        _mixed_jumps_gap(cases, run, gate),
        _mixed_step_gap(cases, run, cases.each(lambda c: gate(c, "inside"))),
    )


def _mixed_jumps_gap(cases: Cases, run: Run, gate) -> np.ndarray:
    """Other velocities, on the paths where they differ from V3: parts against the whole."""
    convex = cases.each(lambda c: _parts_and_whole(c, gate, convex_truth, c.couplings, c.coupling))
    metric = cases.each(lambda c: _parts_and_whole(c, gate, metric_truth, c.parts, c.data))
    residuals = []
    for jumps, form, truth in (
        (convex_jumps, "convex", convex),
        (convex_jumps, "campbell", convex),
        (metric_jumps, "optimal", metric),
    ):
        part_pairs, whole_pairs, weights, support = truth
        conditional = jumps(cases, run, "inside", form)
        parts = np.stack(
            [marginalized(part_pairs[:, k], conditional) for k in range(part_pairs.shape[1])], 1
        )
        mixed = run(_mix, weights, parts)
        residuals.append(gap(mixed, marginalized(whole_pairs, conditional), support))
    return worst(*residuals)


def _parts_and_whole(case: Case, gate, truth, parts, whole) -> tuple[np.ndarray, ...]:
    """Pair posteriors of parts and whole on another path, its gate, its support."""
    own = [truth(case, "inside", part) for part in parts]
    probs, _, pairs = truth(case, "inside", whole)
    joint = case.weights[:, None] * np.stack([part[0] for part in own])
    posterior = np.divide(joint, probs, out=np.zeros_like(joint), where=probs > 0).T
    weights = np.where((probs > 0)[:, None], posterior, case.weights)
    if gate is static:
        weights = np.broadcast_to(case.weights, weights.shape)
    return np.stack([part[2] for part in own]), pairs, weights, probs > 0


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


def _mix_posteriors(gate: Array, posteriors: Array) -> tuple[Array, Array, Array]:
    """In probability, in log space and from logits: gate [Z, K], posteriors [K, Z, N, V]."""
    plain = jax.vmap(mixture.mix_probs, in_axes=(0, 1))(gate, posteriors)
    logs = jax.vmap(mixture.mix_log_probs, in_axes=(0, 1))(jnp.log(gate), jnp.log(posteriors))
    logits = jax.vmap(mixture.mix_logits, in_axes=(0, 1))(jnp.log(gate), 3 + jnp.log(posteriors))
    return plain, jnp.exp(logs), jnp.exp(logits)


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
        every = run(_mix_posteriors, cases.each(lambda c, when=when: gate(c, when)), parts)
        truth = cases.each(lambda c, when=when: c.posterior(when))
        support = cases.each(lambda c, when=when: c.path(when)) > 0
        residuals += [gap(mixed, truth, support) for mixed in every]
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
    back = _part_sources(cases, run, "inside")
    beta = cases.each(lambda c: c.model_weights)[:, :, None, None, None]
    corrected = (1 + beta) * ahead - beta * back
    mixed = run(_mix, cases.each(lambda c: gate(c, "inside")), corrected)
    return continuity(*token_probs(cases, "inside"), mixed)


def _backward_parts(sources, states, t, family, exponent) -> Array:
    each = jax.vmap(fields.backward, in_axes=(0, None, None, None, None))
    return each(sources, states, t, family, exponent)
