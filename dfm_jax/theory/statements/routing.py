"""D1–D3, D6–D8: parts of the data and of the path, and the gate that tells which part."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, mixture
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import gap, statement, worst
from dfm_jax.types import Array

# ── D1–D3: parts of the data, parts of the path, and which part a state comes from ────────────────


def _log_mixture(log_weights: Array, log_probs: Array) -> Array:
    return jnp.exp(mixture.mix_log_probs(log_weights, log_probs))


def log_masses_of(case: Case) -> np.ndarray:
    """log w_k."""
    return np.log(case.weights)


def _equal_masses(case: Case) -> np.ndarray:
    return np.full(len(case.weights), -np.log(len(case.weights)))


@statement(
    "D1",
    "π = Σ_k w_k π_k, so q = Σ_k w_k q_k",
    source="DAG",
    kind="identity",
    falsifier="equal masses",
    log_masses=_equal_masses,
)
def data_is_a_mixture(cases: Cases, run: Run, *, log_masses=log_masses_of) -> np.ndarray:
    """The data marginal of the mixed coupling, and its source's."""
    data = run(_log_mixture, cases.each(log_masses), cases.each(lambda c: fields.log(c.parts)))
    sources = cases.each(lambda c: fields.log(c.couplings.sum(axis=2)))
    source = run(_log_mixture, cases.each(log_masses), sources)
    return worst(
        gap(data, cases.each(lambda c: exact.data_probs(c.coupling))),
        gap(source, cases.each(lambda c: exact.source_probs(c.coupling))),
    )


def _same_path(case: Case, when: str) -> np.ndarray:
    return case.part_paths(when)


def _another_path(case: Case, when: str) -> np.ndarray:
    """The first part on another κ than the rest."""
    paths = case.part_paths(when).copy()
    late = case.token_path(case.kappa(when) ** 3)
    paths[0] = exact.marginal_path(case.couplings[0], late)
    return paths


@statement(
    "D2",
    "p_t = Σ_k w_k p_t^k, the same conditional path for all parts",
    source="DAG, DDM",
    kind="identity",
    falsifier="one part on another κ",
    paths=_another_path,
)
def path_is_a_mixture(cases: Cases, run: Run, *, paths=_same_path) -> np.ndarray:
    """The path of the mixed coupling, at both ends of time too."""
    residuals = []
    for when in ("early", "late"):
        log_paths = cases.each(lambda c, when=when: fields.log(paths(c, when)))
        got = run(_log_mixture, cases.each(log_masses_of), log_paths)
        residuals.append(gap(got, cases.each(lambda c, when=when: c.path(when))))
    return worst(*residuals)


def _posteriors(log_paths: Array, log_masses: Array) -> Array:
    return jax.vmap(mixture.expert_posterior, in_axes=(None, 1))(log_masses, log_paths)


def _no_masses(case: Case) -> np.ndarray:
    return np.zeros(len(case.weights))


@statement(
    "D3",
    "r_k(z, t) = w_k p_t^k(z) / p_t(z); at t = 0 it is P(k | x_0)",
    source="DAG, DDM",
    kind="definition",
    falsifier="the prior w dropped",
    log_masses=_no_masses,
)
def expert_posterior(cases: Cases, run: Run, *, log_masses=log_masses_of) -> np.ndarray:
    """The posterior of the part in the raw joint of (k, x_t) and, at t = 0, of (k, x_0)."""
    residuals = [_at_the_source(cases, run, log_masses)]
    for when in ("early", "late"):
        log_paths = cases.each(lambda c, when=when: fields.log(c.part_paths(when)))
        got = run(_posteriors, log_paths, cases.each(log_masses))

        def truth(case: Case, when: str = when) -> np.ndarray:
            joint = case.weights[:, None] * case.part_paths(when)  # P(k, z)
            total = joint.sum(axis=0)
            return np.divide(joint, total, out=np.zeros_like(joint), where=total > 0).T

        support = cases.each(lambda c, when=when: c.path(when)) > 0
        residuals.append(gap(got, cases.each(truth), support))
    return worst(*residuals)


def _at_the_source(cases: Cases, run: Run, log_masses) -> np.ndarray:
    """P(k | x_0) from Σ_{x_1} w_k π_k(x_0, x_1), no path involved."""
    joint = cases.each(lambda c: c.weights[:, None] * c.couplings.sum(axis=2))
    start = cases.each(_start_paths)
    got = run(_posteriors, fields.log(start), cases.each(log_masses))
    total = joint.sum(axis=1, keepdims=True)
    truth = np.divide(joint, total, out=np.zeros_like(joint), where=total > 0)
    return gap(got, np.moveaxis(truth, 1, 2), total[:, 0] > 0)


def _start_paths(case: Case) -> np.ndarray:
    """p_0^k, as the path at κ = 0: [K, Z]."""
    at = case.token_path(0 * case.exponent)
    return np.stack([exact.marginal_path(c, at) for c in case.couplings])


def prefix_bayes(case: Case) -> np.ndarray:
    """r_k(x^{<t}) for t = 0 … N − 1, by counting masses: [V^N, N, K]."""
    return case.prefix_posterior()[:, :-1]


def prefix_static(case: Case) -> np.ndarray:
    """w_k at every prefix."""
    return np.broadcast_to(case.weights, case.prefix_posterior()[:, :-1].shape)


def _mix_next(gate: Array, next_probs: Array) -> tuple[Array, Array, Array]:
    """In probability, in log space and from logits, at every prefix: [X, N, V] each."""
    logs = jax.vmap(jax.vmap(mixture.mix_log_probs))(jnp.log(gate), jnp.log(next_probs))
    logits = jax.vmap(jax.vmap(mixture.mix_logits))(jnp.log(gate), 3 + jnp.log(next_probs))
    return jax.vmap(jax.vmap(mixture.mix_probs))(gate, next_probs), jnp.exp(logs), jnp.exp(logits)


@statement(
    "D6",
    "A1: q(v | x^{≤t}) = Σ_k r_k(x^{≤t}) q_k(v | x^{≤t})",
    source="DAG",
    kind="identity",
    falsifier="a static gate",
    gate=prefix_static,
)
def next_tokens_mix(cases: Cases, run: Run, *, gate=prefix_bayes) -> np.ndarray:
    """Next-token distributions of the whole at every prefix that it can make."""
    defined = cases.each(lambda c: c.prefix_probs(c.data)[:, :-1]) > 0
    weights = np.where(defined[..., None], cases.each(gate), 1.0)
    every = run(_mix_next, weights, cases.each(lambda c: c.next_probs()))
    truth = cases.each(lambda c: c.conditionals(c.data))
    return worst(*(gap(mixed, truth, defined) for mixed in every))


def token_log_probs(case: Case) -> np.ndarray:
    """log q_k(x^t | x^{<t}) of every sequence: [V^N, N, K]."""
    return part_token_log_probs(case, case.parts)


def part_token_log_probs(case: Case, parts: np.ndarray) -> np.ndarray:
    """The same of any distributions: [V^N, N, K]."""
    return _read_off(case, np.stack([case.conditionals(probs) for probs in parts], axis=2))


def _read_off(case: Case, next_probs: np.ndarray) -> np.ndarray:
    x = case.tokens[:, :, None, None]
    return fields.log(np.take_along_axis(next_probs, x, axis=3)[..., 0])


def filled(case: Case, parts: np.ndarray) -> np.ndarray:
    """Next-token distributions [V^N, N, K, V]; where an expert has none, another distribution."""
    token_probs = np.stack([case.conditionals(probs) for probs in parts], axis=2)
    other = np.stack([case.conditionals(probs) for probs in case.model_parts], axis=2)
    return np.where(
        token_probs.sum(axis=-1, keepdims=True) == 0, other[:, :, : len(parts)], token_probs
    )


def _bayes_rows(log_masses: Array, token_log_probs: Array) -> tuple[Array, Array]:
    state = jax.vmap(mixture.bayes_gate, in_axes=(None, 0))(log_masses, token_log_probs)
    return state.log_weights, state.valid


def _last_token_rows(log_masses: Array, token_log_probs: Array) -> tuple[Array, Array]:
    state = jax.vmap(mixture.last_token_gate, in_axes=(None, 0))(log_masses, token_log_probs)
    return state.log_weights, state.valid


@statement(
    "D7",
    "r_k(x^{≤t+1}) ∝ r_k(x^{≤t}) q_k(x^{t+1} | x^{≤t}); token-wise mixing is the sequence mixture",
    source="own as a running gate",
    kind="identity",
    falsifier="a gate that forgets all but the last token",
    gate=_last_token_rows,
)
def bayes_gate(cases: Cases, run: Run, *, gate=_bayes_rows) -> np.ndarray:
    """The gate and its flag against prefix masses, dead ones kept; mixed tokens; a prompt."""
    log_masses = cases.each(log_masses_of)
    # Experts answer off their support too: a dead gate must not listen.
    tokens = cases.each(lambda c: _read_off(c, filled(c, c.parts)))
    log_gate, valid = run(gate, log_masses, tokens)
    possible = cases.each(lambda c: c.prefix_probs(c.data)) > 0
    truth = cases.each(lambda c: last_live(c.prefix_posterior(), c.prefix_probs(c.data) > 0))

    model_masses = cases.each(lambda c: np.log(c.model_weights))
    model_tokens = cases.each(lambda c: part_token_log_probs(c, c.model_parts))
    model_gate, _ = run(gate, model_masses, model_tokens)
    mixed = np.log(np.sum(np.exp(model_gate[:, :, :-1] + model_tokens), axis=-1)).sum(axis=-1)
    whole = cases.each(lambda c: np.log(c.model_weights @ c.model_parts))

    # Given the first token as a context c, the gate starts from P(k | c).
    prompted, _ = run(_after_prompt, fields.log(truth[:, :, 1]), tokens[:, :, 1:], gate=gate)
    return worst(
        gap(np.exp(log_gate), truth),
        gap(valid.astype(float), possible.astype(float)),
        gap(mixed, whole),
        gap(np.exp(prompted), truth[:, :, 1:], possible[:, :, 1]),
    )


def last_live(rows: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Each row of [X, N + 1, K], or the last one before it that is possible."""
    last = np.maximum.accumulate(np.where(valid, np.arange(rows.shape[1]), 0), axis=1)
    return np.take_along_axis(rows, last[:, :, None], axis=1)


def _after_prompt(log_prior: Array, token_log_probs: Array, *, gate) -> tuple[Array, Array]:
    """A gate with a prior of its own for every sequence."""

    def one(prior: Array, rows: Array) -> tuple[Array, Array]:
        log_weights, valid = gate(prior, rows[None])
        return log_weights[0], valid[0]

    return jax.vmap(one)(log_prior, token_log_probs)


def context_parts(case: Case) -> np.ndarray:
    """Parts cut by the first token, k = x^0 mod K, and as many as there can be: [K', V^N]."""
    part = case.tokens[:, 0] % min(case.shape.num_experts, case.shape.num_tokens)
    probs = case.model_parts[0]
    return np.stack([np.where(part == k, probs, 0) for k in range(part.max() + 1)])


def _soft_parts(case: Case) -> np.ndarray:
    """Parts of the same masses that the context does not tell apart."""
    masses = context_parts(case).sum(axis=1)
    return masses[:, None] * case.model_parts[: len(masses)]


@statement(
    "D8",
    "if k = f(c) then r_k(·, t) = 1[k = f(c)] at every t: hard top-1 routing is exact",
    source="DAG",
    kind="identity",
    falsifier="parts that the context does not determine",
    parts=_soft_parts,
)
def context_decides(cases: Cases, run: Run, *, parts=context_parts) -> np.ndarray:
    """All-mask source, the first token given: D3 by enumeration, and the expert chosen by f."""
    residuals = []
    for when in ("early", "inside", "late"):

        def truth(case: Case, when: str = when) -> tuple[np.ndarray, ...]:
            joint, n = parts(case), case.shape.num_positions
            at, first = case.token_path(case.kappa(when)), np.arange(n) == 0
            own = [case.masked._replace(data=probs / probs.sum(), context=first) for probs in joint]
            whole = case.masked._replace(data=joint.sum(axis=0), context=first)
            paths = np.stack([exact.marginal_path(c, at) for c in own])
            posteriors = np.stack([exact.posteriors(c, at)[0] for c in own])
            gate, support = exact.expert_posterior(joint.sum(axis=1), paths)
            return gate, support, posteriors, exact.posteriors(whole, at)[0]

        gate, support, posteriors, posterior = cases.each(
            lambda c, truth=truth, when=when: c.remembered(
                (context_decides, parts, c.times[when]), lambda: truth(c)
            )
        )
        num_parts = gate.shape[-1]
        part = np.where(support, fields.states(cases)[:, :, 0], 0) % num_parts
        hard, chosen = run(_hard_routing, part, posteriors, num_experts=num_parts)
        top = run(_top_expert, np.where(support[..., None], gate, hard))
        residuals += [
            gap(hard, gate, support),
            gap(top, hard, support),
            gap(chosen, posterior, support),
        ]
    return worst(*residuals)


def _top_expert(gate: Array) -> Array:
    """`hard_gate` at every state: what top-1 routing makes of the posterior."""
    return jax.vmap(mixture.hard_gate)(gate)


def _hard_routing(part: Array, posteriors: Array, *, num_experts: int) -> tuple[Array, Array]:
    """`context_posterior` at every state, and the posterior that it picks."""
    gate = jax.vmap(lambda k: mixture.context_posterior(k, num_experts))(part)
    return gate, jax.vmap(mixture.mix_probs, in_axes=(0, 1))(gate, posteriors)
