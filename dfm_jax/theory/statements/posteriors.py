"""P5, P7: what a state tells about its pair and its part."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, mixture, paths
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import gap, statement, unbroken, worst
from dfm_jax.theory.statements.paths import coupled, token_probs
from dfm_jax.types import Array


def _posteriors(x_0, x_1, log_pi, kappa, states, *, num_tokens: int) -> tuple[Array, Array, Array]:
    token_paths = fields.mixture_paths(x_0, x_1, kappa, num_states=num_tokens + 1)

    def at(z: Array) -> tuple[Array, Array, Array]:
        pairs = paths.pair_posterior(z, token_paths, log_pi)
        return (
            pairs,
            paths.token_posterior(pairs, x_1, num_tokens=num_tokens),
            paths.token_posterior(pairs, x_0, num_tokens=num_tokens + 1),
        )

    return fields.over_states(at, states)


def _pair_probs(case: Case, when: str) -> np.ndarray:
    """P(x_0, x_1 | z) from the raw joint distribution, for one pair and state at a time: [Z, P]."""
    x_0, x_1, _ = fields.pair_lists(case)
    at, n = case.token_path(case.kappa(when)), case.shape.num_positions
    joint = np.tile(case.coupling.reshape(-1), (len(case.states), 1))
    for i in range(n):
        joint = joint * at[i, x_0[None, :, i], x_1[None, :, i], case.states[:, None, i]]
    total = joint.sum(axis=1, keepdims=True)
    return np.divide(joint, total, out=np.zeros_like(joint), where=total > 0)


def _equally_likely(case: Case) -> np.ndarray:
    return np.zeros(case.coupling.size)


def _free_source(case: Case) -> exact.FactoredCoupling:
    """The data and a source that knows nothing of them: of all states; masks alone; no mask."""
    source = token_probs(case)
    if not case.generic and case.numbers[5] > 0.4:
        masks = np.arange(case.shape.num_states) == case.shape.num_tokens
        source = np.where(masks == (case.numbers[5] > 0.65), source, 0.0)
    return exact.FactoredCoupling(
        data=case.data,
        source_tokens=source / source.sum(axis=-1, keepdims=True),
        context=np.zeros(case.shape.num_positions, bool),
    )


def _origins(posterior: Array, source: Array, states: Array, kappa: Array) -> Array:
    """`source_posterior` at every state: [Z, N, S]."""
    at = jax.vmap(paths.source_posterior, in_axes=(0, None, 0, None))
    return at(posterior, source, states, kappa)


@unbroken
def _origins_gap(cases: Cases, run: Run, when: str) -> np.ndarray:
    """p_{0|t} from p_{1|t} and the source's token distributions, against a raw distribution."""

    def truth(case: Case) -> tuple[np.ndarray, ...]:
        coupling = _free_source(case)
        found = exact.posteriors(coupling, case.token_path(case.kappa(when)))
        return *found, coupling.source_tokens

    p_1, p_0, support, source = cases.each(truth)
    p_1 = np.where(support[:, :, None, None], p_1, np.eye(cases.shape.num_tokens)[0])
    kappa = cases.each(lambda c: c.kappa(when))
    return gap(run(_origins, p_1, source, fields.states(cases), kappa), p_0, support)


@statement(
    "P5",
    "p_t(x_0, x_1 | z) = p_t(z | x_0, x_1) π(x_0, x_1) / p_t(z), and its token marginals",
    source="DFM",
    kind="definition",
    falsifier="the coupling's masses forgotten",
    log_coupling=_equally_likely,
)
def posterior(cases: Cases, run: Run, *, log_coupling=coupled) -> np.ndarray:
    """Conditional distributions of the raw joint distribution of (x_0, x_1, x_t), where p_t(z) > 0.

    And `source_posterior`, where the source is independent of the data and its own positions.
    """
    x_0, x_1, _log_pi = cases.each(fields.pair_lists)
    residuals = []
    for when in ("early", "late"):
        share = cases.each(lambda c, when=when: c.kappa(when))
        pairs, p_1, p_0 = run(
            _posteriors,
            x_0,
            x_1,
            cases.each(log_coupling),
            share,
            fields.states(cases),
            num_tokens=cases.shape.num_tokens,
        )
        support = cases.each(lambda c, when=when: c.path(when)) > 0
        residuals += [
            gap(pairs, cases.each(lambda c, when=when: _pair_probs(c, when)), support),
            gap(p_1, cases.each(lambda c, when=when: c.posterior(when)), support),
            gap(p_0, cases.each(lambda c, when=when: c.source_posterior(when)), support),
            _origins_gap(cases, run, when),
        ]
    return worst(*residuals)


def _revealed(
    states: Array, tokens: Array, log_parts: Array, log_weights: Array, *, mask_id: int
) -> tuple[Array, Array, Array]:
    log_data = mixture.mix_log_probs(log_weights, log_parts)

    def at(z: Array) -> tuple[Array, Array, Array]:
        log_p = jax.vmap(lambda q: paths.revealed_log_prob(z, tokens, q, mask_id=mask_id))(
            log_parts
        )
        return (
            paths.revealed_posterior(z, tokens, log_data, mask_id=mask_id),
            mixture.expert_posterior(log_weights, log_p),
            jnp.exp(log_p),
        )

    return jax.vmap(at)(states)


def _all_masks(case: Case) -> list[exact.FactoredCoupling]:
    return case.masked_parts


def _uniform_source(case: Case) -> list[exact.FactoredCoupling]:
    v, n, _ = case.shape
    source = np.tile(np.append(np.full(v, 1 / v), 0.0), (n, 1))
    return [
        exact.FactoredCoupling(data=probs, source_tokens=source, context=case.context)
        for probs in case.parts
    ]


@statement(
    "P7",
    "all-mask source: p_{1|t}^i(v | z) = q(v | revealed tokens of z), r_k(z, t) = P(k | revealed)",
    source="own use",
    kind="identity",
    falsifier="a uniform source",
    source_of=_uniform_source,
)
def revealed_tokens_are_enough(cases: Cases, run: Run, *, source_of=_all_masks) -> np.ndarray:
    """The posteriors of a path at some t and κ against functions that know neither."""

    def truth(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = case.token_path(np.clip(case.kappa("inside"), 0.05, 0.95))
        couplings = source_of(case)
        token_probs = np.stack([exact.marginal_path(c, at) for c in couplings])
        gate, support = exact.expert_posterior(case.weights, token_probs)
        own = np.stack([exact.posteriors(c, at)[0] for c in couplings])
        return np.einsum("zk,kznv->znv", gate, own), gate, support

    def masses(case: Case) -> np.ndarray:
        """q_k of all sequences that agree with the revealed tokens: [Z, K]."""
        z, x = case.states[:, None], case.tokens[None]
        return ((z == x) | (z == case.shape.num_tokens)).all(axis=-1) @ case.parts.T

    posterior, gate, support = cases.each(truth)
    got_posterior, got_gate, got_masses = run(
        _revealed,
        fields.states(cases),
        fields.tokens(cases),
        cases.each(lambda c: fields.log(c.parts)),
        cases.each(lambda c: np.log(c.weights)),
        mask_id=cases.shape.num_tokens,
    )
    return worst(
        gap(got_posterior, posterior, support),
        gap(got_gate, gate, support),
        gap(got_masses, cases.each(masses)),
    )
