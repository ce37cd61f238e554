"""B4–B7: a router at every step, the experts it mixes, and a gate cut to its largest weights."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import accounting, exact, mixture
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.theory.statements.routing import context_parts, filled, prefix_bayes
from dfm_jax.types import Array


def token_wise_probs(case: Case, router: np.ndarray, next_probs: np.ndarray) -> np.ndarray:
    """q̂(x) = Π_t Σ_k ρ̂_k(x^{<t}) q̂_k(x^t | x^{<t}), by enumeration: [V^N]."""
    mixed = np.einsum("xtk,xtkv->xtv", router, next_probs)
    return np.prod(np.take_along_axis(mixed, case.tokens[:, :, None], axis=2)[..., 0], axis=1)


Setup = tuple[np.ndarray, ...]  # q, r, ρ̂, q_k(v | x^{<t}), q̂_k(v | x^{<t}), Σ_k w_k KL(q_k ‖ q̂_k)


def _exact_experts(case: Case) -> Setup:
    own = filled(case, case.parts)
    return case.data, prefix_bayes(case), case.router, own, own, np.zeros(())


def _any_experts(case: Case) -> Setup:
    distance = case.weights @ exact.kl(case.parts, case.model_parts)
    token_probs = filled(case, case.parts), filled(case, case.model_parts)
    return case.data, prefix_bayes(case), case.router, *token_probs, np.asarray(distance)


def first_token_tells(case: Case) -> Setup:
    """Parts cut by the first token, a router wrong before it and right after: the bounds are tight.

    As many parts as there can be; the other experts have mass 0.
    """
    joint = context_parts(case)
    spare = len(case.weights) - len(joint)
    masses = np.pad(joint.sum(axis=1), (0, spare))
    parts = np.concatenate([joint / joint.sum(axis=1, keepdims=True), case.model_parts[:spare]])
    part = np.argmax(joint > 0, axis=0)
    n = case.shape.num_positions
    gate = np.repeat(np.eye(len(masses))[part][:, None], n, axis=1)
    gate[:, 0] = masses
    router = gate.copy()
    # A router that wastes nothing on the spare experts, or the bound would not be tight.
    router[:, 0] = np.where(masses > 0, case.model_weights, 0.0)
    router[:, 0] /= router[:, 0].sum(axis=-1, keepdims=True)
    own = filled(case, parts)
    return joint.sum(axis=0), gate, router, own, own, np.zeros(())


def _last_token_wrong(case: Case) -> Setup:
    """Parts cut by the first token, a router that is right, experts wrong about the last token.

    Each errs in a part of its own, so that the experts' terms are all that is lost: tight again.
    """
    data, gate, _, own, _, _ = first_token_tells(case)
    tilt = case.model_parts[-1].reshape(-1, 1, case.shape.num_tokens)  # by the tokens so far
    model = own.copy()
    model[:, -1] *= np.repeat(tilt, case.shape.num_tokens, axis=0)
    model[:, -1] /= model[:, -1].sum(axis=-1, keepdims=True)
    distance = np.sum(data[:, None] * gate[:, -1] * exact.kl(own[:, -1], model[:, -1]))
    return data, gate, gate, own, model, np.asarray(distance)


@statement(
    "B4",
    "KL(q ‖ q̂) ≤ Σ_t E_q KL(r ‖ ρ̂)(x^{≤t}) + Σ_k w_k KL(q_k ‖ q̂_k) for a router at every step",
    source="own",
    kind="inequality",
    falsifier="the router's term left out, experts exact",
    routed=False,
)
def router_term_at_every_step(cases: Cases, run: Run, *, routed: bool = True) -> np.ndarray:
    """Any router, exact experts and wrong ones; equality for the router's terms and for theirs."""

    def sides(setup) -> tuple[np.ndarray, np.ndarray]:
        data, gate, router, _, model, own = cases.each(setup)
        cost = run(accounting.router_cost, *(fields.log(probs) for probs in (data, gate, router)))
        distance = cases.each_numbered(
            lambda i, c: exact.kl(data[i], token_wise_probs(c, router[i], model[i]))
        )
        return distance, own + (cost if routed else 0.0)

    return worst(
        excess(*sides(_exact_experts)),
        excess(*sides(_any_experts)),
        gap(*sides(first_token_tells)),
        gap(*sides(_last_token_wrong)),
    )


@statement(
    "B5",
    "TV(q, q̂) ≤ Σ_t E_q[ TV(r, ρ̂) + Σ_k r_k TV(q_k, q̂_k) ] for next-token token_probs",
    source="own",
    kind="inequality",
    falsifier="the router's term left out, experts exact",
    routed=False,
)
def router_variation(cases: Cases, run: Run, *, routed: bool = True) -> np.ndarray:
    """The same routers and experts as B4's."""

    def sides(setup) -> tuple[np.ndarray, np.ndarray]:
        data, gate, router, own, model, _ = cases.each(setup)
        claimed = router if routed else gate
        bound = run(accounting.variation_bound, data, gate, claimed, own, model)
        distance = cases.each_numbered(
            lambda i, c: exact.total_variation(data[i], token_wise_probs(c, router[i], model[i]))
        )
        return distance, bound

    return worst(
        excess(*sides(_exact_experts)),
        excess(*sides(_any_experts)),
        gap(*sides(first_token_tells)),
        gap(*sides(_last_token_wrong)),
    )


# ── B6, B7: a gate cut down to its largest weights ────────────────────────────────────────────────


def _truncated(weights: Array, log_probs: Array, mass: Array, *, count: int) -> tuple:
    """`top_experts_gate` (count > 0) or `nucleus_gate`: the gate, its bounds, its costs."""
    kept = (
        mixture.top_experts_gate(weights, count) if count else mixture.nucleus_gate(weights, mass)
    )
    bound = accounting.truncation_bound(weights, kept)
    log_full = mixture.mix_log_probs(jnp.log(weights), log_probs)
    log_kept = mixture.mix_log_probs(jnp.log(kept), log_probs)
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
    "the top experts of mass M, renormalized: TV(full, top) ≤ 1 − M, KL(top ‖ full) ≤ −log M",
    source="own",
    kind="inequality",
    falsifier="KL in the other direction",
    top_first=False,
)
def truncation(cases: Cases, run: Run, *, top_first: bool = True) -> np.ndarray:
    """Top-k for every k, and a nucleus: gates (equality), the distributions they mix, sequences."""
    weights = cases.each(lambda c: c.weights)
    log_probs = cases.each(lambda c: fields.log(c.parts))
    mass = cases.each(lambda c: c.numbers[3])
    residuals = []
    for count in range(cases.shape.num_experts + 1):
        kept, bound, (gate_tv, gate_kl, reversed_kl), (probs_tv, probs_kl) = run(
            _truncated, weights, log_probs, mass, count=count
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
            excess(probs_tv, bound.total_variation),
            excess(probs_kl, bound.kl),
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
        top = mixture.hard_gate(weights) if count == 1 else mixture.top_experts_gate(weights, count)
        return top, accounting.truncation_bound(weights, top).total_variation

    return jax.vmap(jax.vmap(at))(gate)


Parts = tuple[np.ndarray, np.ndarray, np.ndarray]  # q, r before each token, q_k(v | x^{<t})


def _any_parts(case: Case) -> Parts:
    return case.data, prefix_gate(case), filled(case, case.parts)


def _known_from_the_first(case: Case) -> Parts:
    """Parts that the first token tells: what is lost there, 1 − max_k w_k, is all that is lost."""
    data, gate, _, token_probs, _, _ = first_token_tells(case)
    return data, gate, token_probs


def _sequences(
    cases: Cases, run: Run, count: int, setup=_any_parts, renormalized_first: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """TV(q, top) and Σ_t E_q[1 − M_t] of token-wise routing to the top experts, which are exact."""
    data, gate, token_probs = cases.each(setup)
    top, missing = run(_top, gate, count=count)
    if renormalized_first:
        _, missing = run(_top, top, count=count)
    variation = cases.each_numbered(
        lambda i, c: exact.total_variation(data[i], token_wise_probs(c, top[i], token_probs[i]))
    )
    return variation, np.einsum("ix,ixt->i", data, missing)


@statement(
    "B7",
    "exact experts, r = D7, per-token top-1: TV(q, top-1) ≤ Σ_t E_q[1 − max_k r_k]",
    source="own",
    kind="inequality",
    falsifier="M taken after renormalization",
    renormalized_first=True,
)
def top_one(cases: Cases, run: Run, *, renormalized_first: bool = False) -> np.ndarray:
    """The distribution of top-1 routing by enumeration; M_t is the largest posterior.

    The bound holds with equality if the first token tells the part.
    """
    _, missing = run(_top, cases.each(prefix_gate), count=1)
    return worst(
        excess(*_sequences(cases, run, 1, renormalized_first=renormalized_first)),
        gap(*_sequences(cases, run, 1, _known_from_the_first)),
        gap(missing, 1 - cases.each(prefix_gate).max(axis=-1)),
    )
