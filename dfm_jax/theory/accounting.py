"""B1–B6, B11: where an ensemble's loss comes from, for any experts and any router."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import accounting, exact, experts, gates
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.types import Array


def model_law(case: Case) -> np.ndarray:
    """q̂ = Σ_k ŵ_k q̂_k."""
    return case.model_weights @ case.model_parts


def masses(case: Case) -> np.ndarray:
    """log ŵ."""
    return np.log(case.model_weights)


def no_masses(case: Case) -> np.ndarray:
    """The prior dropped."""
    return np.zeros(len(case.weights))


def own_laws(case: Case) -> np.ndarray:
    """log q̂_k, with zeros where the case is a hard one: [K, V^N]."""
    return fields.log(case.model_parts if case.generic else case.parts)


def _routing_costs(log_prior: Array, log_laws: Array) -> Array:
    """Every sequence sent to every expert: [K, V^N]."""
    each = jax.vmap(accounting.routing_cost, in_axes=(None, 1, None))
    ids = jnp.arange(log_prior.shape[0])
    return jax.vmap(lambda k: each(log_prior, log_laws, k))(ids)


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
    got = run(_routing_costs, cases.each(log_prior), cases.each(own_laws))

    def truth(case: Case) -> tuple[np.ndarray, np.ndarray]:
        laws = np.exp(own_laws(case))
        mixture = case.model_weights @ laws
        return fields.log(mixture)[None] - fields.log(np.where(mixture > 0, laws, 1)), mixture > 0

    cost, possible = cases.each(truth)
    return gap(np.moveaxis(got, 1, 2), np.moveaxis(cost, 1, 2), possible)


def _split(log_w: Array, log_q: Array, log_w_hat: Array, log_q_hat: Array) -> tuple:
    return tuple(accounting.ensemble_split(log_w, log_q, log_w_hat, log_q_hat))


def _split_arguments(cases: Cases, log_prior) -> tuple[np.ndarray, ...]:
    return (
        cases.each(lambda c: np.log(c.weights)),
        cases.each(lambda c: fields.log(c.parts)),
        cases.each(log_prior),
        cases.each(lambda c: np.log(c.model_parts)),
    )


def _split_truth(case: Case) -> tuple[np.ndarray, ...]:
    """KL(q ‖ q̂), E_q KL(r ‖ r̂), Σ w_k KL(q_k ‖ q̂_k), KL(w ‖ ŵ), by enumeration."""
    joint = case.weights[:, None] * case.parts
    joint_hat = case.model_weights[:, None] * case.model_parts
    data, data_hat = joint.sum(axis=0), joint_hat.sum(axis=0)
    gate = np.divide(joint, data, out=np.zeros_like(joint), where=data > 0).T
    return (
        exact.kl(data, data_hat),
        data @ exact.kl(gate, (joint_hat / data_hat).T),
        case.weights @ exact.kl(case.parts, case.model_parts),
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
    """The four terms by enumeration, and their balance."""
    terms = run(_split, *_split_arguments(cases, masses))
    truth = cases.each(_split_truth)
    ensemble, gate, own, prior = terms
    balance = gap(ensemble + gate, own + (prior if whole else 0.0))
    return worst(balance, *(gap(a, b) for a, b in zip(terms, truth, strict=True)))


def _token_wise_law(case: Case, router: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """q̂(x) = Π_t Σ_k ρ̂_k(x^{<t}) q̂_k(x^t | x^{<t}), by enumeration: [V^N]."""
    laws = np.stack([case.conditionals(law) for law in parts], axis=2)
    mixed = np.einsum("xtk,xtkv->xtv", router, laws)
    return np.prod(np.take_along_axis(mixed, case.tokens[:, :, None], axis=2)[..., 0], axis=1)


@statement(
    "B3",
    "with the Bayes gate KL(q ‖ q̂) ≤ Σ_k w_k KL(q_k ‖ q̂_k) + KL(w ‖ ŵ)",
    source="own",
    kind="inequality",
    falsifier="a static gate with exact experts and masses",
    bayes=False,
)
def one_router_term(cases: Cases, run: Run, *, bayes: bool = True) -> np.ndarray:
    """The left side by enumeration of the token-wise mixture."""
    if bayes:
        _, _, own, prior = run(_split, *_split_arguments(cases, masses))
        return excess(cases.each(lambda c: exact.kl(c.data, model_law(c))), own + prior)
    log_w = cases.each(lambda c: np.log(c.weights))
    log_q = cases.each(lambda c: np.log(_full_parts(c)))
    _, _, own, prior = run(_split, log_w, log_q, log_w, log_q)

    def distance(case: Case) -> np.ndarray:
        router, parts = np.broadcast_to(case.weights, case.router.shape), _full_parts(case)
        return exact.kl(case.weights @ parts, _token_wise_law(case, router, parts))

    return excess(cases.each(distance), own + prior)


def _full_parts(case: Case) -> np.ndarray:
    """Parts of full support, so that every prefix is defined for every expert."""
    return 0.9 * case.parts + 0.1 * case.model_parts


def _router_setup(case: Case) -> tuple[np.ndarray, ...]:
    """q, r, ρ̂ along every sequence of a full-support case, for exact experts and for wrong ones."""
    parts = _full_parts(case)
    joint = np.stack(
        [w * case.prefix_law(law) for w, law in zip(case.weights, parts, strict=True)], axis=-1
    )
    gate = (joint / joint.sum(axis=-1, keepdims=True))[:, :-1]
    return case.weights @ parts, gate, case.router, parts, case.model_parts


def _bounds_setup(cases: Cases) -> list[tuple[np.ndarray, ...]]:
    data, gate, router, parts, wrong = cases.each(_router_setup)
    return [(data, gate, router, parts, parts), (data, gate, router, parts, wrong)]


@statement(
    "B4",
    "KL(q ‖ q̂) ≤ Σ_t E_q KL(r ‖ ρ̂)(x^{≤t}) + Σ_k w_k KL(q_k ‖ q̂_k) for a router at every step",
    source="own",
    kind="inequality",
    falsifier="the router's term left out, experts exact",
    routed=False,
)
def router_term_at_every_step(cases: Cases, run: Run, *, routed: bool = True) -> np.ndarray:
    """Any router that reads prefixes, exact experts and wrong ones."""
    residuals = []
    weights = cases.each(lambda c: c.weights)
    for data, gate, router, parts, model in _bounds_setup(cases):
        cost = run(accounting.router_cost, np.log(data), np.log(gate), np.log(router))
        own = np.einsum("ik,ik->i", weights, exact.kl(parts, model))
        distance = cases.each_numbered(
            lambda i, c, d=data, r=router, m=model: exact.kl(d[i], _token_wise_law(c, r[i], m[i]))
        )
        residuals.append(excess(distance, own + (cost if routed else 0.0)))
    return worst(*residuals)


@statement(
    "B5",
    "TV(q, q̂) ≤ Σ_t E_q[ TV(r, ρ̂) + Σ_k r_k TV(q_k, q̂_k) ] for next-token laws",
    source="own",
    kind="inequality",
    falsifier="the router's term left out, experts exact",
    routed=False,
)
def router_variation(cases: Cases, run: Run, *, routed: bool = True) -> np.ndarray:
    """The same routers and experts as B4's."""
    residuals = []
    for data, gate, router, parts, model in _bounds_setup(cases):

        def next_probs(laws: np.ndarray) -> np.ndarray:
            return cases.each_numbered(
                lambda i, c: np.stack([c.conditionals(law) for law in laws[i]], axis=2)
            )

        bound = run(
            accounting.variation_bound,
            data,
            gate,
            router if routed else gate,
            next_probs(parts),
            next_probs(model),
        )
        distance = cases.each_numbered(
            lambda i, c, d=data, r=router, m=model: exact.total_variation(
                d[i], _token_wise_law(c, r[i], m[i])
            )
        )
        residuals.append(excess(distance, bound))
    return worst(*residuals)


def _truncated(weights: Array, laws: Array, *, count: int) -> tuple:
    top = gates.top_k_gate(weights, count)
    bound = accounting.truncation_bound(weights, top)
    log_full = experts.mixture_log_prob(jnp.log(weights), laws)
    log_top = experts.mixture_log_prob(jnp.log(top), laws)
    return (
        bound.total_variation,
        bound.kl,
        accounting.total_variation(weights, top),
        accounting.kl_divergence(jnp.log(top), jnp.log(weights)),
        accounting.kl_divergence(jnp.log(weights), jnp.log(top)),
        accounting.total_variation(jnp.exp(log_full), jnp.exp(log_top)),
        accounting.kl_divergence(log_top, log_full),
    )


@statement(
    "B6",
    "the top experts of mass M, renormalised: TV(full, top) ≤ 1 − M, KL(top ‖ full) ≤ −log M",
    source="own",
    kind="inequality",
    falsifier="KL in the other direction",
    top_first=False,
)
def truncation(cases: Cases, run: Run, *, top_first: bool = True) -> np.ndarray:
    """Gates and the laws they mix, every number of experts kept; for gates alone, equality."""
    weights, laws = cases.each(lambda c: c.weights), cases.each(own_laws)
    residuals = []
    for count in range(1, cases.shape.num_experts + 1):
        tv, kl, gate_tv, gate_kl, reversed_kl, law_tv, law_kl = run(
            _truncated, weights, laws, count=count
        )
        # An infinite divergence is a violation all the same; keep it a number that can be shown.
        backwards = np.minimum(reversed_kl, 1e3)
        residuals += [
            gap(gate_tv, tv),
            gap(gate_kl, kl) if top_first else excess(backwards, kl),
            excess(law_tv, tv),
            excess(law_kl, kl),
        ]
    return worst(*residuals)


def _best(log_prior: Array, log_laws: Array) -> tuple[Array, Array]:
    bound = jax.vmap(accounting.best_expert_bound, in_axes=(None, 1))(log_prior, log_laws)
    return bound, -experts.mixture_log_prob(log_prior, log_laws)


@statement(
    "B11",
    "−log Σ_j ŵ_j p̂_j(x) ≤ min_k [−log ŵ_k − log p̂_k(x)]",
    source="own use",
    kind="inequality",
    falsifier="−log ŵ_k left out",
    log_prior=no_masses,
)
def best_expert(cases: Cases, run: Run, *, log_prior=masses) -> np.ndarray:
    """Every sequence, the mixture's likelihood by enumeration."""
    laws = cases.each(own_laws)
    bound, _ = run(_best, cases.each(log_prior), laws)

    def truth(case: Case) -> np.ndarray:
        return -fields.log(case.model_weights @ np.exp(own_laws(case)))

    return excess(cases.each(truth), bound)
