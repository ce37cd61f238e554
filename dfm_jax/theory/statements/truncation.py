"""B6, B7: a gate cut down to its largest weights."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import accounting, exact, mixture
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.theory.statements.routers import first_token_tells, token_wise_law
from dfm_jax.theory.statements.routing import filled, prefix_bayes
from dfm_jax.types import Array


def _truncated(weights: Array, log_laws: Array, mass: Array, *, count: int) -> tuple:
    """`top_k_gate` (count > 0) or `nucleus_gate`: the gate, its bounds, its costs."""
    kept = mixture.top_k_gate(weights, count) if count else mixture.nucleus_gate(weights, mass)
    bound = accounting.truncation_bound(weights, kept)
    log_full = mixture.mixture_log_prob(jnp.log(weights), log_laws)
    log_kept = mixture.mixture_log_prob(jnp.log(kept), log_laws)
    return (
        kept,
        bound,
        (
            accounting.total_variation(weights, kept),
            accounting.kl_divergence(jnp.log(kept), jnp.log(weights)),
            accounting.kl_divergence(jnp.log(weights), jnp.log(kept)),
        ),
        (
            accounting.total_variation(jnp.exp(log_full), jnp.exp(log_kept)),
            accounting.kl_divergence(log_kept, log_full),
        ),
    )


def _cut_by_hand(weights: np.ndarray, count: int, mass: float) -> np.ndarray:
    """Take the largest weights one by one, until there are `count` or they reach `mass`."""
    kept = np.zeros_like(weights)
    for k in np.argsort(-weights, kind="stable"):
        kept[k] = weights[k]
        if (np.count_nonzero(kept) == count) if count else kept.sum() >= mass:
            break
    return kept / kept.sum()


@statement(
    "B6",
    "the top experts of mass M, renormalised: TV(full, top) ≤ 1 − M, KL(top ‖ full) ≤ −log M",
    source="own",
    kind="inequality",
    falsifier="KL in the other direction",
    top_first=False,
)
def truncation(cases: Cases, run: Run, *, top_first: bool = True) -> np.ndarray:
    """Top-k for every k and a nucleus: gates (equality), the laws they mix, whole sequences."""
    weights = cases.each(lambda c: c.weights)
    log_laws = cases.each(lambda c: fields.log(c.parts))
    mass = cases.each(lambda c: c.numbers[3])
    residuals = []
    for count in range(cases.shape.num_experts + 1):
        kept, bound, (gate_tv, gate_kl, reversed_kl), (law_tv, law_kl) = run(
            _truncated, weights, log_laws, mass, count=count
        )
        by_hand = cases.each(lambda c, k=count: _cut_by_hand(c.weights, k, c.numbers[3]))
        cut = (by_hand == 0).any(axis=-1)
        # KL(full ‖ top) is infinite wherever an expert is cut; shown as a number.
        backwards = np.where(np.isinf(reversed_kl), 1e3, reversed_kl)
        residuals += [
            gap(kept, by_hand),
            gap(gate_tv, bound.total_variation),
            gap(gate_kl, bound.kl) if top_first else excess(backwards, bound.kl),
            gap(backwards, np.where(cut, 1e3, 0.0)),
            excess(law_tv, bound.total_variation),
            excess(law_kl, bound.kl),
            excess(*_sequences(cases, run, count)) if count else np.zeros(len(cases)),
        ]
    return worst(*residuals)


def prefix_gate(case: Case) -> np.ndarray:
    """r at every prefix, w where the prefix has mass 0: [V^N, N, K]."""
    gate = prefix_bayes(case)
    return np.where(gate.sum(axis=-1, keepdims=True) > 0, gate, case.weights)


def _top(gate: Array, *, count: int) -> tuple[Array, Array]:
    """Top-`count` at every prefix, and its variation bound 1 − M: [X, N, K], [X, N]."""

    def at(weights: Array) -> tuple[Array, Array]:
        top = mixture.hard_gate(weights) if count == 1 else mixture.top_k_gate(weights, count)
        return top, accounting.truncation_bound(weights, top).total_variation

    return jax.vmap(jax.vmap(at))(gate)


Setup = tuple[np.ndarray, np.ndarray, np.ndarray]  # q, r before each token, q_k(v | x^{<t})


def _any_parts(case: Case) -> Setup:
    return case.data, prefix_gate(case), filled(case, case.parts)


def _known_from_the_first(case: Case) -> Setup:
    """Parts that the first token tells: what is lost there, 1 − max_k w_k, is all that is lost."""
    data, gate, _, laws, _, _ = first_token_tells(case)
    return data, gate, laws


def _sequences(
    cases: Cases, run: Run, count: int, setup=_any_parts, renormalised_first: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """TV(q, top) and Σ_t E_q[1 − M_t] of token-wise routing to the top experts, which are exact."""
    data, gate, laws = cases.each(setup)
    top, missing = run(_top, gate, count=count)
    if renormalised_first:
        _, missing = run(_top, top, count=count)
    variation = cases.each_numbered(
        lambda i, c: exact.total_variation(data[i], token_wise_law(c, top[i], laws[i]))
    )
    return variation, np.einsum("ix,ixt->i", data, missing)


@statement(
    "B7",
    "exact experts, r = D7, per-token top-1: TV(q, top-1) ≤ Σ_t E_q[1 − max_k r_k]",
    source="own",
    kind="inequality",
    falsifier="M taken after renormalisation",
    renormalised_first=True,
)
def top_one(cases: Cases, run: Run, *, renormalised_first: bool = False) -> np.ndarray:
    """The law of top-1 routing by enumeration, M_t the largest posterior; equality if told."""
    _, missing = run(_top, cases.each(prefix_gate), count=1)
    return worst(
        excess(*_sequences(cases, run, 1, renormalised_first=renormalised_first)),
        gap(*_sequences(cases, run, 1, _known_from_the_first)),
        gap(missing, 1 - cases.each(prefix_gate).max(axis=-1)),
    )
