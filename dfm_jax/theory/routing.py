"""D6–D8: the gate of autoregression, and contexts that decide."""

import jax
import numpy as np

from dfm_jax import exact, experts, gates
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.experts import log_masses_of
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import gap, statement, worst
from dfm_jax.types import Array


def prefix_bayes(case: Case) -> np.ndarray:
    """r_k(x^{<t}) for t = 0 … N − 1, by counting masses: [V^N, N, K]."""
    return case.prefix_posterior()[:, :-1]


def prefix_static(case: Case) -> np.ndarray:
    """w_k at every prefix."""
    return np.broadcast_to(case.weights, case.prefix_posterior()[:, :-1].shape)


def _mix_next(gate: Array, next_probs: Array) -> Array:
    return jax.vmap(jax.vmap(experts.mix_posteriors))(gate, next_probs)


@statement(
    "D6",
    "A1: q(v | x^{≤t}) = Σ_k r_k(x^{≤t}) q_k(v | x^{≤t})",
    source="DAG",
    kind="identity",
    falsifier="a static gate",
    gate=prefix_static,
)
def next_tokens_mix(cases: Cases, run: Run, *, gate=prefix_bayes) -> np.ndarray:
    """Next-token laws of the whole at every prefix that it can make."""
    defined = cases.each(lambda c: c.prefix_law(c.data)[:, :-1]) > 0
    weights = np.where(defined[..., None], cases.each(gate), 1.0)
    mixed = run(_mix_next, weights, cases.each(lambda c: c.next_probs()))
    return gap(mixed, cases.each(lambda c: c.conditionals(c.data)), defined)


def token_log_probs(case: Case) -> np.ndarray:
    """log q_k(x^t | x^{<t}) of every sequence: [V^N, N, K]."""
    x = case.tokens[:, :, None, None]
    return fields.log(np.take_along_axis(case.next_probs(), x, axis=3)[..., 0])


def _bayes_rows(log_masses: Array, token_log_probs: Array) -> tuple[Array, Array]:
    state = jax.vmap(gates.bayes_gate, in_axes=(None, 0))(log_masses, token_log_probs)
    return state.log_weights, state.alive


def _last_token_rows(log_masses: Array, token_log_probs: Array) -> tuple[Array, Array]:
    state = jax.vmap(gates.last_token_gate, in_axes=(None, 0))(log_masses, token_log_probs)
    return state.log_weights, state.alive


@statement(
    "D7",
    "r_k(x^{≤t+1}) ∝ r_k(x^{≤t}) q_k(x^{t+1} | x^{≤t}); token-wise mixing is the sequence mixture",
    source="own as a running gate",
    kind="identity",
    falsifier="a gate that forgets all but the last token",
    gate=_last_token_rows,
)
def bayes_gate(cases: Cases, run: Run, *, gate=_bayes_rows) -> np.ndarray:
    """The gate against prefix masses, its flag, and the product of mixed tokens, model or not."""
    log_masses = cases.each(log_masses_of)
    log_gate, alive = run(gate, log_masses, cases.each(token_log_probs))
    prefix = cases.each(lambda c: c.prefix_law(c.data))
    support = prefix > 0

    model_masses = cases.each(lambda c: np.log(c.model_weights))
    model_tokens = cases.each(_model_token_log_probs)
    model_gate, _ = run(gate, model_masses, model_tokens)
    mixed = np.log(np.sum(np.exp(model_gate[:, :, :-1] + model_tokens), axis=-1)).sum(axis=-1)
    whole = cases.each(lambda c: np.log(c.model_weights @ c.model_parts))
    return worst(
        gap(np.exp(log_gate), cases.each(lambda c: c.prefix_posterior()), support),
        gap(alive.astype(float), support.astype(float)),
        gap(mixed, whole),
    )


def _model_token_log_probs(case: Case) -> np.ndarray:
    """log q̂_k(x^t | x^{<t}) of every sequence under any experts: [V^N, N, K]."""
    laws = np.stack([case.conditionals(law) for law in case.model_parts], axis=2)
    return np.log(np.take_along_axis(laws, case.tokens[:, :, None, None], axis=3)[..., 0])


def _context_parts(case: Case) -> np.ndarray:
    """Parts cut by the first token, k = x^0 mod K, and as many as there can be: [K', V^N]."""
    part = case.tokens[:, 0] % min(case.shape.num_experts, case.shape.num_tokens)
    law = case.model_parts[0]
    return np.stack([np.where(part == k, law, 0) for k in range(part.max() + 1)])


def _soft_parts(case: Case) -> np.ndarray:
    """Parts of the same masses that the context does not tell apart."""
    masses = _context_parts(case).sum(axis=1)
    return masses[:, None] * case.model_parts[: len(masses)]


def _context_gate(part: Array, *, num_experts: int) -> Array:
    return jax.vmap(lambda k: experts.context_posterior(k, num_experts))(part)


@statement(
    "D8",
    "if k = f(c) then r_k(·, t) = 1[k = f(c)] at every t: hard top-1 routing is exact",
    source="DAG",
    kind="identity",
    falsifier="parts that the context does not determine",
    parts=_soft_parts,
)
def context_decides(cases: Cases, run: Run, *, parts=_context_parts) -> np.ndarray:
    """All-mask source, the first token given: D3 by enumeration at some t."""

    def truth(case: Case) -> tuple[np.ndarray, np.ndarray]:
        joint, n = parts(case), case.shape.num_positions
        at = case.token_path(case.kappa("inside"))
        couplings = [
            case.masked._replace(data=law / law.sum(), context=np.arange(n) == 0) for law in joint
        ]
        laws = np.stack([exact.marginal_path(c, at) for c in couplings])
        return exact.expert_posterior(joint.sum(axis=1), laws)

    gate, support = cases.each(truth)
    num_parts = gate.shape[-1]
    context = np.where(support, fields.states(cases)[:, :, 0], 0)
    return gap(run(_context_gate, context % num_parts, num_experts=num_parts), gate, support)
