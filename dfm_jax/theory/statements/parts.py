"""D1–D3: parts of the data, parts of the path, and which part a state comes from."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, mixture
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import gap, statement, worst
from dfm_jax.types import Array


def _log_mixture(log_weights: Array, log_laws: Array) -> Array:
    return jnp.exp(mixture.mixture_log_prob(log_weights, log_laws))


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
    return jax.vmap(mixture.expert_posterior, in_axes=(1, None))(log_paths, log_masses)


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
    """The conditional law of the part in the raw joint law of (k, x_t); at t = 0, of (k, x_0)."""
    residuals = [_at_the_source(cases, run, log_masses)]
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


def _at_the_source(cases: Cases, run: Run, log_masses) -> np.ndarray:
    """P(k | x_0) from Σ_{x_1} w_k π_k(x_0, x_1), no path involved."""
    joint = cases.each(lambda c: c.weights[:, None] * c.couplings.sum(axis=2))
    start = cases.each(_start_paths)
    got = run(_posteriors, fields.log(start), cases.each(log_masses))
    total = joint.sum(axis=1, keepdims=True)
    truth = np.divide(joint, total, out=np.zeros_like(joint), where=total > 0)
    return gap(got, np.moveaxis(truth, 1, 2), total[:, 0] > 0)


def _start_paths(case: Case) -> np.ndarray:
    """p_0^k, as the path at κ = 0: [K, Z]."""
    at = case.token_path(0 * case.exponent)
    return np.stack([exact.marginal_path(c, at) for c in case.couplings])
