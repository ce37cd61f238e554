"""L1–L5: what is minimised, and what the minimum means."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, objectives
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import gap, statement
from dfm_jax.types import Array


def _cross_entropies(log_probs: Array, tokens: Array) -> Array:
    """−log p̂^i(x_1^i | z) for every state and data sequence: [Z, V^N, N]."""
    at = jax.vmap(objectives.cross_entropy_loss, in_axes=(None, 0))
    return jax.vmap(at, in_axes=(0, None))(log_probs, tokens)


def _any_weight(case: Case) -> np.ndarray:
    """ω(t, z, i) > 0: [Z, 1, N]."""
    return 0.5 + case.denoiser[:, None, :, 0]


def _weight_of_data(case: Case) -> np.ndarray:
    """A weight that depends on x_1: [Z, V^N, N]."""
    return 0.5 + 2.0 * (case.tokens == 0)[None] + 0 * case.denoiser[:, :1, :1]


def state_data_law(case: Case, coupling: exact.Coupling, kappa: np.ndarray) -> np.ndarray:
    """P(X_t = z, X_1 = x_1) by enumeration: [Z, V^N]."""
    at, joint = case.token_path(kappa), exact.dense(coupling)
    columns = []
    for j, mass in enumerate(joint.sum(axis=0)):
        column = np.zeros_like(joint)
        column[:, j] = joint[:, j]
        columns.append(exact.marginal_path(column / mass, at) * mass if mass else joint[:, 0] * 0)
    return np.stack(columns, axis=1)


@statement(
    "L1",
    "−Σ_i E ω log p̂_{1|t}^i(X_1^i | X_t): excess = Σ ω E KL(p_{1|t} ‖ p̂) for any ω(t, z, i) > 0",
    source="DFM",
    kind="identity",
    falsifier="a weight that depends on x_1",
    weight=_weight_of_data,
)
def cross_entropy(cases: Cases, run: Run, *, weight=_any_weight) -> np.ndarray:
    """Model minus truth under the joint law of (X_t, X_1), against the expected KL."""
    log_model = cases.each(lambda c: np.log(c.denoiser))
    log_truth = cases.each(lambda c: fields.log(c.posterior("inside")))
    loss = run(_cross_entropies, log_model, fields.tokens(cases))
    best = run(_cross_entropies, log_truth, fields.tokens(cases))
    joint = cases.each(lambda c: state_data_law(c, c.coupling, c.kappa("inside")))
    seen = (joint > 0)[..., None]
    more = np.where(seen, loss, 0.0) - np.where(seen, best, 0.0)
    got = np.sum(joint[..., None] * cases.each(weight) * more, axis=(1, 2, 3))

    def truth(case: Case) -> np.ndarray:
        apart = exact.kl(case.posterior("inside"), case.denoiser)  # [Z, N]
        omega = _any_weight(case)[:, 0]
        return np.sum(case.path("inside")[:, None] * omega * apart)

    return gap(got, cases.each(truth))


def _entropy_bregman(a: Array, b: Array) -> Array:
    return objectives.bregman_divergence(lambda x: jnp.sum(x * jnp.log(x)), a, b)


def _bregman_sides(weights: Array, parts: Array, model: Array, *, target_first: bool) -> Array:
    mean = jnp.einsum("k,kv->v", weights, parts)

    def distance(a: Array, b: Array) -> Array:
        return _entropy_bregman(a, b) if target_first else _entropy_bregman(b, a)

    each = jax.vmap(distance, in_axes=(0, None))
    left = jnp.dot(weights, each(parts, model))
    return left - distance(mean, model) - jnp.dot(weights, each(parts, mean))


@statement(
    "L4",
    "Σ_k r_k D(u_k, v) = D(Σ_k r_k u_k, v) + Σ_k r_k D(u_k, Σ_j r_j u_j), targets first",
    source="own use",
    kind="identity",
    falsifier="targets in the second argument",
    target_first=False,
)
def bregman(cases: Cases, run: Run, *, target_first: bool = True) -> np.ndarray:
    """For the negative entropy, whose divergence is the generalised KL, at unnormalised points."""
    parts = cases.each(lambda c: 0.5 + 2 * c.router[0, 0][:, None] * c.denoiser[1, 0][None])
    return np.abs(
        run(
            _bregman_sides,
            cases.each(lambda c: c.weights),
            parts + cases.each(lambda c: np.arange(len(c.weights))[:, None] * c.numbers[3]),
            cases.each(lambda c: 0.3 + c.denoiser[0, 0]),
            target_first=target_first,
        )
    )
