"""B8: jump processes: what a distribution loses to another's rates, and to those of the experts."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, objectives
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, unbroken, worst
from dfm_jax.types import Array


def _rates(case: Case) -> tuple[np.ndarray, ...]:
    """Rates u^k, û^k [K, Z, N, S] of any experts, and gates r, r̂ [Z, K] to mix them."""
    eye = np.eye(case.shape.num_states)[case.states]
    flat = np.concatenate([case.denoiser, case.denoiser[:, :, :1]], axis=-1)

    def rate(strengths: np.ndarray, target: np.ndarray) -> np.ndarray:
        row = target / target.sum(axis=-1, keepdims=True)
        return strengths[:, None, None, None] * (row - eye)[None]

    target = np.where(flat == flat.min(axis=-1, keepdims=True), 0.0, flat)  # rates of 0 too
    own = rate(0.5 + case.weights, target)
    model = rate(0.5 + case.model_weights, np.roll(flat, 1, axis=0) + 0.1)
    gate = case.state_router
    return own, model, gate, np.roll(gate, 1, axis=0)


def _jump_costs(u: Array, u_hat: Array, states: Array) -> Array:
    return jnp.sum(jax.vmap(objectives.generalized_kl)(u, u_hat, states), axis=-1)


def _expert_jump_costs(u: Array, u_hat: Array, states: Array) -> Array:
    return jnp.sum(jax.vmap(_jump_costs, in_axes=(0, 0, None))(u, u_hat, states), axis=0)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


def _any_start(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """p_0 and another p̂_0: [Z] each."""
    start = np.full(len(case.states), 1 / len(case.states))
    return start, 0.5 * start + 0.5 * case.path("inside")


def _unmasking(case: Case) -> tuple[np.ndarray, ...]:
    """r_k u^k, r̂_k û^k [K, Z, N, S], p_0 and p̂_0: masks that are drawn once, each at rate 1.

    When a mask is drawn says nothing of what is: the end knows all that the path does. Expert k
    draws the tokens v = k mod K only, so that each jump is of one expert. Both bounds are tight.
    """
    v, s, num_experts = case.shape.num_tokens, case.shape.num_states, case.shape.num_experts
    masked = case.states == v
    eye, pad = np.eye(s)[case.states], np.eye(v, s)
    owner = np.arange(v) % num_experts == np.arange(num_experts)[:, None]  # [K, V]

    def rates(token_probs: np.ndarray) -> np.ndarray:
        """Of token distributions [N, V]."""
        own = np.where(owner[:, None], token_probs, 0.0)  # [K, N, V]
        leave = own.sum(axis=-1)[:, None, :, None] * eye
        return np.where(masked[..., None], (own @ pad)[:, None] - leave, 0.0)

    start = masked.all(axis=1).astype(float)
    return rates(case.denoiser[0]), rates(case.denoiser[1]), start, start


def _mixed_rates(case: Case) -> tuple[np.ndarray, ...]:
    """r_k u^k and r̂_k û^k of any experts and gates, p_0 and p̂_0."""
    own, model, gate, model_gate = _rates(case)
    weighted = np.einsum("zk,kzns->kzns", gate, own)
    return weighted, np.einsum("zk,kzns->kzns", model_gate, model), *_any_start(case)


def _same_rates(case: Case) -> tuple[np.ndarray, ...]:
    """The model's rates are right, only its start is not."""
    weighted, _, start, model_start = _mixed_rates(case)
    return weighted, weighted, start, model_start


@statement(
    "B8",
    "û = Σ_k r̂_k û^k: KL(p_1 ‖ p̂_1) ≤ KL(p_0 ‖ p̂_0) + ∫ E Σ_{y≠X} [u log(u/û) − u + û] dt, "
    "≤ the same for r_k u^k against r̂_k û^k",
    source="own",
    kind="inequality",
    falsifier="KL(p_0 ‖ p̂_0) left out, all rates right",
    setup=_same_rates,
    start_paid=False,
)
def jump_processes(
    cases: Cases, run: Run, *, setup=_mixed_rates, start_paid: bool = True
) -> np.ndarray:
    """Constant mixed rates: both distributions by uniformization, the integral by Gauss nodes.

    Equality in both where the path tells no more than its end, and each jump is of one expert.
    """
    return worst(
        _bounds_gap(cases, run, excess, setup, start_paid),
        _bounds_gap(cases, run, gap, _unmasking, True),  # both start alike
    )


@unbroken
def _bounds_gap(cases: Cases, run: Run, judge, setup, start_paid: bool) -> np.ndarray:
    """Both bounds, judged by `gap` where they are tight; and the integrand of each position."""
    states = fields.states(cases)
    weighted, weighted_model, start, model_start = cases.each(setup)
    u, u_hat = weighted.sum(axis=1), weighted_model.sum(axis=1)
    cost = run(_jump_costs, u, u_hat, states)

    def both_sides(i: int, _: Case) -> tuple[np.ndarray, np.ndarray]:
        """KL(p_1 ‖ p̂_1) and its bound, an integral over nodes; `cost` is the integrand."""
        probs = exact.evolve(start[i], u[i], np.append(_NODES, 1.0))
        paid = exact.kl(start[i], model_start[i]) if start_paid else 0.0
        model_end = exact.evolve(model_start[i], u_hat[i], 1.0)
        return exact.kl(probs[-1], model_end), _WEIGHTS @ (probs[:-1] @ cost[i]) + paid

    return worst(
        judge(*cases.each_numbered(both_sides)),
        judge(cost, run(_expert_jump_costs, weighted, weighted_model, states)),
        _costs_gap(cases, run, u, u_hat),
    )


def _costs_gap(cases: Cases, run: Run, u: np.ndarray, u_hat: np.ndarray) -> np.ndarray:
    """`generalized_kl` per position against NumPy, +∞ where u > 0 = û: the roles exchanged too."""
    states = fields.states(cases)
    here = np.eye(cases.shape.num_states)[states] == 1
    residuals = []
    for a, b in ((u, u_hat), (u_hat, u)):
        got = run(_position_costs, a, b, states)
        a, b = np.where(here, 0.0, a), np.where(here, 0.0, b)
        log_ratio = fields.log(a) - fields.log(np.where(a > 0, b, 1.0))
        terms = np.where(a > 0, a * np.where(a > 0, log_ratio, 0.0), 0.0) - a + b
        residuals.append(gap(got, terms.sum(axis=-1)))
    return worst(*residuals)


def _position_costs(u: Array, u_hat: Array, states: Array) -> Array:
    return jax.vmap(objectives.generalized_kl)(u, u_hat, states)
