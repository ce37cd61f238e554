"""D14: the router's excess is paid once for every predicted token."""

import numpy as np

from dfm_jax import accounting, exact
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.theory.statements.decentral import any_experts
from dfm_jax.theory.statements.experts import bayes
from dfm_jax.types import Array

Excesses = tuple[np.ndarray, np.ndarray, np.ndarray]  # the experts' [K], the router's, the total


def _bound(own: Array, router: Array, weights: Array, *, num_positions: int) -> Array:
    return accounting.mixture_excess_bound(own, router, weights, num_positions)


def _excesses(case: Case, experts: np.ndarray) -> Excesses:
    """L1 excesses at "inside", by enumeration, of experts [K, Z, N, V] and a random router."""
    law, own = case.path("inside"), case.part_posteriors("inside")
    own_excess = np.einsum("kz,kzn->k", case.part_paths("inside"), exact.kl(own, experts))
    router = law @ exact.kl(bayes(case, "inside"), case.state_router)
    mixed = np.einsum("zk,kznv->znv", case.state_router, experts)
    total = law @ exact.kl(case.posterior("inside"), mixed).sum(axis=-1)
    return own_excess, np.asarray(router), np.asarray(total)


def exact_experts(case: Case) -> np.ndarray:
    """p_{1|t}^k where expert k is defined, any law elsewhere: [K, Z, N, V]."""
    alive = (case.part_paths("inside") > 0)[:, :, None, None]
    return np.where(alive, case.part_posteriors("inside"), case.denoiser[None])


def _constant_parts(case: Case) -> Excesses:
    """Part k repeats token k (the last takes the rest), all is masked: the router pays N times."""
    num_parts, n = min(case.shape.num_experts, case.shape.num_tokens), case.shape.num_positions
    masses = np.append(case.weights[: num_parts - 1], case.weights[num_parts - 1 :].sum())
    router = np.append(
        case.model_weights[: num_parts - 1], case.model_weights[num_parts - 1 :].sum()
    )
    once = exact.kl(masses, router)
    return np.zeros(len(case.weights)), np.asarray(once), np.asarray(n * once)


def _known_parts(case: Case) -> Excesses:
    """The state tells the part, one state each: the router pays nothing, the experts their own."""
    truth, model = case.part_posteriors("inside")[:, 0], any_experts(case)[:, 0]
    truth = np.where(truth.sum(axis=-1, keepdims=True) > 0, truth, model)
    own = exact.kl(truth, model).sum(axis=-1)
    return own, np.zeros(()), np.asarray(case.weights @ own)


@statement(
    "D14",
    "L1 excess of Σ_k ρ̂_k p̂_k ≤ Σ_k w_k excess_k + N · (router excess)",
    source="own",
    kind="inequality",
    falsifier="the router's term left out, experts exact",
    routed=False,
)
def router_is_paid_per_token(cases: Cases, run: Run, *, routed: bool = True) -> np.ndarray:
    """Any router with exact and with any experts; equality where parts are constant, or known."""
    weights = cases.each(lambda c: c.weights)

    def bound(own: np.ndarray, router: np.ndarray) -> np.ndarray:
        paid = router if routed else 0 * router
        return run(_bound, own, paid, weights, num_positions=cases.shape.num_positions)

    def posterior(case: Case) -> tuple[np.ndarray, ...]:
        """log p_t, log r and log ρ̂ at every state, as a gate that is asked once: N = 1."""
        laws = case.path("inside"), bayes(case, "inside")[:, None], case.state_router[:, None]
        return tuple(fields.log(law) for law in laws)

    cost = run(accounting.router_cost, *cases.each(posterior))
    residuals = []
    for experts in (exact_experts, any_experts):
        own, router, total = cases.each(lambda c, e=experts: _excesses(c, e(c)))
        residuals += [gap(cost, router), excess(total, bound(own, router))]
    for tight in (_constant_parts, _known_parts):
        own, router, total = cases.each(tight)
        residuals.append(gap(total, bound(own, router)))
    return worst(*residuals)
