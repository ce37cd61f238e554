"""B9, B10: what gates cost: leakage, biased gates."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import accounting, exact, mixture
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.theory.statements.routing import token_log_probs
from dfm_jax.types import Array


def _hard_joint(case: Case) -> np.ndarray:
    """P(x, k) for clusters computed from the whole sequence: k = index mod K. [V^N, K]."""
    part = np.arange(len(case.tokens)) % case.shape.num_experts
    return case.data[:, None] * (part[:, None] == np.arange(case.shape.num_experts))


def _soft_joint(case: Case) -> np.ndarray:
    """P(x, k) of the parts themselves."""
    return (case.weights[:, None] * case.parts).T


def _leakages(weights: Array, log_parts: Array) -> tuple[Array, Array]:
    leak = accounting.oracle_leakage(weights)
    return leak, accounting.part_information(jnp.log(weights), log_parts)


@statement(
    "B9",
    "hard clusters of whole sequences: oracle-routed NLL lies H(K) below H(X) (soft: I(X; K)); "
    "a gate that sees the prefix only has NLL ≥ H(X), equality for D7",
    source="own",
    kind="identity",
    falsifier="H(K) claimed for soft clusters",
    joint=_soft_joint,
)
def leakage(cases: Cases, run: Run, *, joint=_hard_joint) -> np.ndarray:
    """Oracle NLL, prefix NLL of the Bayes and of any gate, by enumeration."""

    def parts(case: Case, table: np.ndarray) -> tuple[np.ndarray, ...]:
        weights = table.sum(axis=0)
        token_probs = np.divide(table, weights, out=np.zeros_like(table), where=weights > 0).T
        oracle = weights @ exact.entropy(token_probs)
        return weights, fields.log(token_probs), exact.entropy(table.sum(axis=1)) - oracle

    weights, log_probs, gain = cases.each(lambda c: parts(c, joint(c)))
    leak, _ = run(_leakages, weights, log_probs)
    soft_weights, soft_probs, soft_gain = cases.each(lambda c: parts(c, _soft_joint(c)))
    _, information = run(_leakages, soft_weights, soft_probs)
    gate, _ = run(
        _bayes_weights, cases.each(lambda c: np.log(c.weights)), cases.each(token_log_probs)
    )
    nll = cases.each_numbered(lambda i, c: _prefix_nll(c, gate[i][:, :-1]))
    any_nll = cases.each(lambda c: _prefix_nll(c, c.router))
    entropy = cases.each(lambda c: exact.entropy(c.data))
    masses, given, given_gain = cases.each(lambda c: _given_first_token(c, joint(c)))
    given_leak = np.sum(masses * run(_entropies, given), axis=-1)
    return worst(
        gap(gain, leak),
        gap(given_gain, given_leak),
        gap(soft_gain, information),
        gap(nll, entropy),
        excess(entropy, any_nll),
    )


def _given_first_token(case: Case, joint: np.ndarray) -> tuple[np.ndarray, ...]:
    """The first token as context c: q(c), P(k | c), and H(X | c) − H(X | K, c) by enumeration."""
    v, k = case.shape.num_tokens, joint.shape[1]
    by_context = joint.reshape(v, -1, k)  # the first token is the slowest digit
    masses, parts = by_context.sum(axis=(1, 2)), by_context.sum(axis=1)
    given = np.divide(
        parts, masses[:, None], out=np.full_like(parts, 1 / k), where=masses[:, None] > 0
    )

    def spread(p: np.ndarray) -> float:
        return float(-(p * fields.log(np.where(p > 0, p, 1.0))).sum())

    unrouted = spread(joint.sum(axis=1)) - spread(masses)
    return masses, given, np.asarray(unrouted - (spread(joint) - spread(parts)))


def _entropies(given: Array) -> Array:
    return jax.vmap(accounting.oracle_leakage)(given)


def _prefix_nll(case: Case, gate: np.ndarray) -> np.ndarray:
    """−E_q Σ_t log Σ_k ρ_k(x^{<t}) q_k(x^t | x^{<t})."""
    mixed = np.sum(gate * np.exp(token_log_probs(case)), axis=-1)
    seen = case.data > 0
    return np.asarray(-(case.data[seen] @ fields.log(mixed[seen]).sum(axis=1)))


def _bayes_weights(log_masses: Array, token_log_probs: Array) -> tuple[Array, Array]:
    state = jax.vmap(mixture.bayes_gate, in_axes=(None, 0))(log_masses, token_log_probs)
    return jnp.exp(state.log_weights), state.valid


def _all_gates(log_masses: Array, token_log_probs: Array, alpha: Array) -> Array:
    """Bayes, static, last-token and fixed-share gates before each token: [4, X, N, K]."""
    num_positions = token_log_probs.shape[1]

    def rows(probs: Array) -> Array:
        states = (
            mixture.bayes_gate(log_masses, probs),
            mixture.static_gate(log_masses, num_positions),
            mixture.last_token_gate(log_masses, probs),
            mixture.fixed_share_gate(log_masses, probs, alpha),
        )
        return jnp.stack([state.log_weights[:-1] for state in states])

    return jnp.moveaxis(jax.vmap(rows)(token_log_probs), 1, 0)


def _gates_by_hand(case: Case) -> np.ndarray:
    """The four gates, token by token in probabilities: [4, X, N, K]."""
    probs, alpha = np.exp(token_log_probs(case)), case.numbers[4] / 3
    rows = []
    for kind in range(4):
        gate = np.broadcast_to(case.weights, probs[:, 0].shape)
        columns = []
        for t in range(probs.shape[1]):
            columns.append(gate)
            prior = {0: gate, 1: gate, 2: case.weights, 3: gate}[kind]
            joint = prior * (1.0 if kind == 1 else probs[:, t])
            total = joint.sum(axis=-1, keepdims=True)
            moved = np.divide(joint, total, out=np.array(gate, float), where=total > 0)
            gate = (1 - alpha) * moved + alpha * case.weights if kind == 3 else moved
        rows.append(np.stack(columns, axis=1))
    return np.stack(rows)


def _gate_costs(log_next: Array, log_gate: Array, log_next_probs: Array) -> Array:
    at = jax.vmap(jax.vmap(accounting.gate_cost))
    return jax.vmap(at, in_axes=(None, 0, None))(log_next, log_gate, log_next_probs)


@statement(
    "B10",
    "biased gates, exact experts: D7 costs 0; static and last-token gates cost E KL of next tokens",
    source="own",
    kind="identity",
    falsifier="the static gate claimed free",
    free_gate=1,
)
def biased_gates(cases: Cases, run: Run, *, free_gate: int = 0) -> np.ndarray:
    """The sum of `gate_cost` along sequences is the divergence of the gate's distribution."""
    log_gates = run(
        _all_gates,
        cases.each(lambda c: np.log(c.weights)),
        cases.each(token_log_probs),
        cases.each(lambda c: c.numbers[4] / 3),
    )
    log_next = cases.each(lambda c: fields.log(c.conditionals(c.data)))
    log_parts = cases.each(lambda c: fields.log(c.next_probs()))
    cost = run(_gate_costs, log_next, log_gates, log_parts)  # [I, 4, X, N]
    data = cases.each(lambda c: c.data)
    # A prefix of mass 0 has no next token, and a gate none to pay for.
    live = cases.each(lambda c: c.prefix_probs(c.data)[:, :-1] > 0)
    expected = np.einsum("ix,igxt->ig", data, np.where(live[:, None], cost, 0.0))

    def distance(index: int, case: Case) -> np.ndarray:
        gate = np.exp(log_gates[index])
        mixed = np.sum(gate * np.exp(token_log_probs(case)), axis=-1)  # [4, X, N]
        seen = case.data > 0
        apart = fields.log(case.data[seen]) - fields.log(mixed[:, seen]).sum(axis=-1)
        return apart @ case.data[seen]

    distances = cases.each_numbered(distance)
    by_hand = cases.each(_gates_by_hand)
    possible = cases.each(
        lambda c: np.minimum.accumulate(c.prefix_probs(c.data) > 0, axis=1)[:, :-1]
    )
    return worst(
        gap(np.exp(np.moveaxis(log_gates, 1, 3)), np.moveaxis(by_hand, 1, 3), possible),
        gap(expected, distances),
        gap(expected[:, free_gate], np.zeros(len(cases))),
        excess(np.zeros_like(expected), expected),
    )
