"""B1–B3, B11: where an ensemble's loss comes from, for any experts."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import accounting, exact, mixture
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.theory.statements.routing import part_token_log_probs
from dfm_jax.types import Array


def masses(case: Case) -> np.ndarray:
    """log ŵ."""
    return np.log(case.model_weights)


def no_masses(case: Case) -> np.ndarray:
    """The prior dropped."""
    return np.zeros(len(case.weights))


def own_probs(case: Case) -> np.ndarray:
    """log q̂_k, with zeros where the case is a hard one: [K, V^N]."""
    return fields.log(case.model_parts if case.generic else case.parts)


def _routing_costs(log_prior: Array, log_probs: Array) -> Array:
    """Every sequence sent to every expert: [K, V^N]."""
    each = jax.vmap(accounting.routing_cost, in_axes=(None, 1, None))
    ids = jnp.arange(log_prior.shape[0])
    return jax.vmap(lambda k: each(log_prior, log_probs, k))(ids)


@statement(
    "B1",
    "−log Σ_j ŵ_j p̂_j(x) = −log ŵ_k − log p̂_k(x) + log r̂_k(x)",
    source="own",
    kind="identity",
    falsifier="the prior ŵ dropped",
    log_prior=no_masses,
)
def routing_cost(cases: Cases, run: Run, *, log_prior=masses) -> np.ndarray:
    """`routing_cost` is the difference of the two likelihoods, +∞ where p̂_k(x) = 0."""
    got = run(_routing_costs, cases.each(log_prior), cases.each(own_probs))

    def truth(case: Case) -> tuple[np.ndarray, np.ndarray]:
        token_probs = np.exp(own_probs(case))
        whole = case.model_weights @ token_probs
        return fields.log(whole)[None] - fields.log(np.where(whole > 0, token_probs, 1)), whole > 0

    cost, possible = cases.each(truth)
    return gap(np.moveaxis(got, 1, 2), np.moveaxis(cost, 1, 2), possible)


def _split(log_w: Array, log_q: Array, log_w_hat: Array, log_q_hat: Array) -> tuple:
    return tuple(accounting.ensemble_split(log_w, log_q, log_w_hat, log_q_hat))


def _split_truth(case: Case) -> tuple[np.ndarray, ...]:
    """KL(q ‖ q̂), E_q KL(r ‖ r̂), Σ w_k KL(q_k ‖ q̂_k), KL(w ‖ ŵ), by enumeration; maybe +∞."""
    joint = case.weights[:, None] * case.parts
    joint_hat = case.model_weights[:, None] * case.rough_parts
    data, data_hat = joint.sum(axis=0), joint_hat.sum(axis=0)
    gate = np.divide(joint, data, out=np.zeros_like(joint), where=data > 0).T
    gate_hat = np.divide(joint_hat, data_hat, out=np.zeros_like(joint), where=data_hat > 0).T
    seen = data > 0
    return (
        exact.kl(data, data_hat),
        data[seen] @ exact.kl(gate[seen], gate_hat[seen]),
        case.weights @ exact.kl(case.parts, case.rough_parts),
        exact.kl(case.weights, case.model_weights),
    )


@statement(
    "B2",
    "KL(q ‖ q̂) + E_q KL(r ‖ r̂) = Σ_k w_k KL(q_k ‖ q̂_k) + KL(w ‖ ŵ)",
    source="own",
    kind="identity",
    falsifier="KL(w ‖ ŵ) left out",
    whole=False,
)
def ensemble_split(cases: Cases, run: Run, *, whole: bool = True) -> np.ndarray:
    """The four terms by enumeration, infinite ones included, and their balance."""
    terms = run(
        _split,
        cases.each(lambda c: np.log(c.weights)),
        cases.each(lambda c: fields.log(c.parts)),
        cases.each(masses),
        cases.each(lambda c: fields.log(c.rough_parts)),
    )
    truth = cases.each(_split_truth)
    ensemble, gate, own, prior = terms
    balance = gap(ensemble + gate, own + (prior if whole else 0.0))
    return worst(balance, *(gap(a, b) for a, b in zip(terms, truth, strict=True)))


def _bayes(log_prior: Array, token_log_probs: Array) -> Array:
    return mixture.bayes_gate(log_prior, token_log_probs).log_weights


def _static(log_prior: Array, token_log_probs: Array) -> Array:
    return mixture.static_gate(log_prior, token_log_probs.shape[0]).log_weights


def _token_wise(log_prior: Array, token_log_probs: Array, *, gate) -> Array:
    """q̂(x) of every sequence, mixed token by token: [V^N]."""

    def at(rows: Array) -> Array:
        return jnp.sum(jax.nn.logsumexp(gate(log_prior, rows)[:-1] + rows, axis=-1))

    return jnp.exp(jax.vmap(at)(token_log_probs))


@statement(
    "B3",
    "with the Bayes gate KL(q ‖ q̂) ≤ Σ_k w_k KL(q_k ‖ q̂_k) + KL(w ‖ ŵ)",
    source="own",
    kind="inequality",
    falsifier="a static gate",
    gate=_static,
)
def one_router_term(cases: Cases, run: Run, *, gate=_bayes) -> np.ndarray:
    """Token-wise mixing of any experts with any masses, and of exact ones with exact masses.

    Equality where the sequence tells its part, and the model's too: then r̂ = r.
    """
    log_w = cases.each(lambda c: np.log(c.weights))
    log_q = cases.each(lambda c: np.log(full_parts(c)))
    data = cases.each(lambda c: c.weights @ full_parts(c))
    residuals = []
    for weights_of, parts_of in ((_model_weights, _model_parts), (_true_weights, full_parts)):
        log_w_hat = cases.each(lambda c, f=weights_of: np.log(f(c)))
        log_q_hat = cases.each(lambda c, f=parts_of: np.log(f(c)))
        tokens = cases.each(lambda c, f=parts_of: part_token_log_probs(c, f(c)))
        _, _, own, prior = run(_split, log_w, log_q, log_w_hat, log_q_hat)
        probs = run(_token_wise, log_w_hat, tokens, gate=gate)
        residuals.append(excess(exact.kl(data, probs), own + prior))
    w, q, w_hat, q_hat = cases.each(_apart)
    tokens = cases.each_numbered(lambda i, c: part_token_log_probs(c, q_hat[i]))
    _, _, own, prior = run(_split, *(fields.log(probs) for probs in (w, q, w_hat, q_hat)))
    probs = run(_token_wise, fields.log(w_hat), tokens, gate=_bayes)
    data = np.einsum("ik,ikx->ix", w, q)
    return worst(*residuals, gap(exact.kl(data, probs), own + prior))


def _apart(case: Case) -> tuple[np.ndarray, ...]:
    """w, q_k, ŵ, q̂_k of parts that share no sequence, neither in truth nor in the model.

    As many as there are sequences for; the rest are of mass 0, and a copy of the first.
    """
    number, (num_parts, size) = np.arange(len(case.tokens)), case.parts.shape
    live = np.arange(num_parts) < size
    mine = number % min(num_parts, size) == np.where(live, np.arange(num_parts), 0)[:, None]

    def split(masses: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        masses, token_probs = np.where(live, masses, 0.0), np.where(mine, probs, 0.0)
        return masses / masses.sum(), token_probs / token_probs.sum(axis=1, keepdims=True)

    model = np.roll(case.model_parts[0], 1)
    return *split(case.weights, case.model_parts[0]), *split(case.model_weights, model)


def full_parts(case: Case) -> np.ndarray:
    """Parts of full support, so that every prefix is defined for every expert."""
    return 0.9 * case.parts + 0.1 * case.model_parts


def _model_weights(case: Case) -> np.ndarray:
    return case.model_weights


def _true_weights(case: Case) -> np.ndarray:
    return case.weights


def _model_parts(case: Case) -> np.ndarray:
    return case.model_parts


def _best(log_prior: Array, log_probs: Array) -> tuple[Array, Array]:
    """The bound, and the mixture's −log p̂, at every sequence: [V^N] each."""
    bound = jax.vmap(accounting.best_expert_bound, in_axes=(None, 1))(log_prior, log_probs)
    return bound, -mixture.mix_log_probs(log_prior, log_probs)


def _no_masses_left(masses: np.ndarray) -> np.ndarray:
    return np.where(masses > 0, 1.0, 0.0)


def _all_masses(masses: np.ndarray) -> np.ndarray:
    return masses


@statement(
    "B11",
    "−log Σ_j ŵ_j p̂_j(x) ≤ min_k [−log ŵ_k − log p̂_k(x)]",
    source="own use",
    kind="inequality",
    falsifier="−log ŵ_k left out",
    charged=_no_masses_left,
)
def best_expert(cases: Cases, run: Run, *, charged=_all_masses) -> np.ndarray:
    """Every sequence, the mixture by enumeration; equality where one expert alone could make it."""
    residuals = []
    for judge, probs_of in ((excess, _own_mixture), (gap, lambda case: _apart(case)[2:])):
        w_hat, q_hat = cases.each(probs_of)
        bound, nll = run(_best, fields.log(charged(w_hat)), fields.log(q_hat))
        truth = -fields.log(np.einsum("ik,ikx->ix", w_hat, q_hat))
        best = -fields.log((w_hat[..., None] * q_hat).max(axis=1))
        residuals += [judge(truth, bound), gap(bound, best)]
        if charged is _all_masses:
            residuals.append(gap(nll, truth))
    return worst(*residuals)


def _own_mixture(case: Case) -> tuple[np.ndarray, np.ndarray]:
    return case.model_weights, np.exp(own_probs(case))
