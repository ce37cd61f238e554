"""B4, B5: a router at every step, whatever it is, and the experts it mixes."""

import numpy as np

from dfm_jax import accounting, exact
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.theory.statements.routing import context_parts, filled, prefix_bayes


def token_wise_law(case: Case, router: np.ndarray, next_probs: np.ndarray) -> np.ndarray:
    """q̂(x) = Π_t Σ_k ρ̂_k(x^{<t}) q̂_k(x^t | x^{<t}), by enumeration: [V^N]."""
    mixed = np.einsum("xtk,xtkv->xtv", router, next_probs)
    return np.prod(np.take_along_axis(mixed, case.tokens[:, :, None], axis=2)[..., 0], axis=1)


Setup = tuple[np.ndarray, ...]  # q, r, ρ̂, q_k(v | x^{<t}), q̂_k(v | x^{<t}), Σ_k w_k KL(q_k ‖ q̂_k)


def _exact_experts(case: Case) -> Setup:
    own = filled(case, case.parts)
    return case.data, prefix_bayes(case), case.router, own, own, np.zeros(())


def _any_experts(case: Case) -> Setup:
    distance = case.weights @ exact.kl(case.parts, case.model_parts)
    laws = filled(case, case.parts), filled(case, case.model_parts)
    return case.data, prefix_bayes(case), case.router, *laws, np.asarray(distance)


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
        cost = run(accounting.router_cost, *(fields.log(law) for law in (data, gate, router)))
        distance = cases.each_numbered(
            lambda i, c: exact.kl(data[i], token_wise_law(c, router[i], model[i]))
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
    "TV(q, q̂) ≤ Σ_t E_q[ TV(r, ρ̂) + Σ_k r_k TV(q_k, q̂_k) ] for next-token laws",
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
            lambda i, c: exact.total_variation(data[i], token_wise_law(c, router[i], model[i]))
        )
        return distance, bound

    return worst(
        excess(*sides(_exact_experts)),
        excess(*sides(_any_experts)),
        gap(*sides(first_token_tells)),
        gap(*sides(_last_token_wrong)),
    )
