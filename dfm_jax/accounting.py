"""Where an ensemble's loss comes from: experts, gate, truncation.   [B1–B11, D10, D14]

All in nats. Distributions are given by their logarithms; sums over sequences run over an enumerated
space (axis Z) or are left to the caller's average over data. What is no distribution, or holds a
logarithm above 0, is refused by name (`ValueError`); behind a mass of 0 anything may stand.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.boundary import finite_at_zero_mass, log, log_sum_exp, x_log_ratio
from dfm_jax.checks import (
    check_count,
    check_distribution,
    check_interval,
    check_log_distribution,
    check_log_probs,
    check_tokens,
    require,
)
from dfm_jax.mixture.posterior import mix_log_probs
from dfm_jax.paths import HIGHEST
from dfm_jax.types import Array, ArrayLike, Float, PerExpert, Scalar, Token, Weights, typed


@typed
def kl_divergence(log_p: Float[ArrayLike, " Z"], log_q: Float[ArrayLike, " Z"]) -> Scalar:
    """KL(p ‖ q) = Σ p log(p/q) in nats; 0 log 0 = 0, +∞ where p > 0 = q."""
    check_log_distribution("log_p", log_p)
    check_log_distribution("log_q", log_q)
    return _kl(log_p, log_q)


def _kl(log_p: Array, log_q: Array) -> Array:
    """Also of rows off the support, which are −∞ throughout: 0."""
    possible = log_p != -jnp.inf  # not `>`: a NaN must show
    missed = possible & (log_q == -jnp.inf)  # exp(log_p) may underflow: 0 · ∞ is not what is meant
    both = possible & ~missed
    difference = jnp.where(both, log_p, 0.0) - jnp.where(both, log_q, 0.0)
    terms = jnp.where(both, jnp.exp(log_p) * difference, 0.0)
    return jnp.sum(jnp.where(missed, jnp.inf, terms))


@typed
def total_variation(p: Float[ArrayLike, " Z"], q: Float[ArrayLike, " Z"]) -> Scalar:
    """TV(p, q) = ½ Σ |p − q|. Where p = q it has a kink, and the derivative is 0."""
    check_distribution("p", p)
    check_distribution("q", q)
    return 0.5 * jnp.sum(jnp.abs(p - q))


@typed
def routing_cost(log_prior: PerExpert, log_probs: PerExpert, expert: Token) -> Scalar:
    """What sending x to one expert costs over the mixture, in nats; +∞ where p̂_k(x) = 0.

        −log p̂_k(x) + log Σ_j ŵ_j p̂_j(x) = log ŵ_k − log r̂_k(x)   [B1]

    A gain (negative) where r̂_k > ŵ_k.

    Raises:
        ValueError: if the expert is none, or has mass 0.
    """
    check_log_distribution("log_prior", log_prior)
    check_log_probs("log_probs", log_probs, read=log_prior > -jnp.inf)
    log_prior = jnp.asarray(log_prior)
    check_tokens("expert", expert, log_prior.shape[0])
    mass = log_prior[expert]
    rule = "`expert` must have a mass above 0"
    require(mass > -jnp.inf, rule, mass, name="log_prior[expert]")
    joint = jnp.where(log_prior == -jnp.inf, -jnp.inf, log_prior + log_probs)
    total = log_sum_exp(joint)
    never = total == -jnp.inf  # ∞ − ∞: no expert can make x, and no cost is defined
    return jnp.where(never, jnp.nan, mass - (joint[expert] - jnp.where(never, 0.0, total)))


@typed
def best_expert_bound(log_prior: PerExpert, log_probs: PerExpert) -> Scalar:
    """The mixture never loses more than −log ŵ_k to any one expert, in nats.

    −log Σ_j ŵ_j p̂_j(x) ≤ min_k [−log ŵ_k − log p̂_k(x)]   [B11]
    """
    check_log_distribution("log_prior", log_prior)
    check_log_probs("log_probs", log_probs, read=log_prior > -jnp.inf)
    log_prior = jnp.asarray(log_prior)
    return jnp.min(jnp.where(log_prior == -jnp.inf, jnp.inf, -log_prior - log_probs))


class EnsembleSplit(NamedTuple):
    """The two sides of B2: ensemble + gate = experts + prior. Each in [0, ∞], in nats."""

    ensemble: Scalar  # KL(q ‖ q̂)
    gate: Scalar  # E_q KL(r ‖ r̂)
    experts: Scalar  # Σ_k w_k KL(q_k ‖ q̂_k)
    prior: Scalar  # KL(w ‖ ŵ)


@typed
def ensemble_split(
    log_weights: PerExpert,
    log_probs: Float[ArrayLike, "K Z"],
    log_model_weights: PerExpert,
    log_model_probs: Float[ArrayLike, "K Z"],
) -> EnsembleSplit:
    """Split an ensemble's distance to the truth, exactly, for any experts.

        KL(q ‖ q̂) + E_q KL(r ‖ r̂) = Σ_k w_k KL(q_k ‖ q̂_k) + KL(w ‖ ŵ)   [B2]

    hence KL(q ‖ q̂) ≤ the right side [B3]. Subtract only where finite.
    """
    check_log_distribution("log_weights", log_weights)
    check_log_distribution("log_probs", log_probs, read=log_weights > -jnp.inf)
    check_log_distribution("log_model_weights", log_model_weights)
    check_log_distribution("log_model_probs", log_model_probs, read=log_model_weights > -jnp.inf)
    log_probs = _behind(log_weights, log_probs)
    log_model_probs = _behind(log_model_weights, log_model_probs)
    log_q = mix_log_probs(log_weights, log_probs)
    log_q_hat = mix_log_probs(log_model_weights, log_model_probs)
    posteriors = _log_posteriors(log_weights, log_probs)
    gate_terms = jax.vmap(_kl)(posteriors, _log_posteriors(log_model_weights, log_model_probs))
    expert_terms = jax.vmap(_kl)(log_probs, log_model_probs)
    return EnsembleSplit(
        ensemble=_kl(log_q, log_q_hat),
        gate=_mean(log_q, gate_terms),
        experts=_mean(jnp.asarray(log_weights), expert_terms),
        prior=_kl(jnp.asarray(log_weights), jnp.asarray(log_model_weights)),
    )


@typed
def router_cost(
    log_probs: Float[ArrayLike, " Z"],
    log_posterior: Float[ArrayLike, "Z N K"],
    log_router: Float[ArrayLike, "Z N K"],
) -> Scalar:
    """The router's share of the loss: it is paid once per predicted token, in nats.

        Σ_{t=0}^{N−1} E_q KL(r(x^{≤t}) ‖ ρ̂(x^{≤t}))   [B4, D14]

    Row t of sequence x is the gate after its first t tokens. Plus Σ_k w_k KL(q_k ‖ q̂_k), it bounds
    KL(q ‖ q̂) of token-wise mixing.
    """
    check_log_distribution("log_probs", log_probs)
    check_log_distribution("log_posterior", log_posterior, read=log_probs > -jnp.inf)
    check_log_distribution("log_router", log_router, read=log_probs > -jnp.inf)
    terms = jax.vmap(jax.vmap(_kl))(log_posterior, log_router)
    return _mean(log_probs, jnp.sum(terms, axis=-1))


@typed
def mixture_excess_bound(
    expert_excess: PerExpert, router_excess: Scalar, weights: Weights, num_positions: int
) -> Scalar:
    """A bound on the excess loss of Σ_k ρ̂_k p̂_k, in nats.

    excess(Σ_k ρ̂_k p̂_k) ≤ Σ_k w_k excess_k + N · (router excess)   [D14]
    """
    check_count("num_positions", num_positions)
    check_distribution("weights", weights)
    own = jnp.dot(jnp.asarray(weights), expert_excess, precision=HIGHEST)
    return own + num_positions * router_excess


@typed
def variation_bound(
    probs: Float[ArrayLike, " Z"],
    posterior: Float[ArrayLike, "Z N K"],
    router: Float[ArrayLike, "Z N K"],
    next_probs: Float[ArrayLike, "Z N K V"],
    model_next_probs: Float[ArrayLike, "Z N K V"],
) -> Scalar:
    """A bound in total variation on token-wise mixing, by next-token distributions of sequences.

        TV(q, q̂) ≤ Σ_t E_q[ TV(r, ρ̂) + Σ_k r_k TV(q_k, q̂_k) ]   [B5]

    Off the support of the distribution, and of the posterior for the distributions of an expert,
    anything may stand. Where two probabilities are equal |·| has a kink, and the derivative is 0.
    """
    check_distribution("probs", probs)
    check_distribution("posterior", posterior, read=probs > 0)
    check_distribution("router", router, read=probs > 0)
    read = (probs > 0)[:, None, None] & (posterior > 0)
    check_distribution("next_probs", next_probs, read=read)
    check_distribution("model_next_probs", model_next_probs, read=read)
    posterior, router = (
        finite_at_zero_mass(probs[:, None, None], rows) for rows in (posterior, router)
    )
    r = (probs[:, None, None] * posterior)[..., None]
    next_probs, model_next_probs = (
        finite_at_zero_mass(r, rows) for rows in (next_probs, model_next_probs)
    )
    gate = 0.5 * jnp.sum(jnp.abs(posterior - router), axis=-1)
    apart = 0.5 * jnp.sum(jnp.abs(next_probs - model_next_probs), axis=-1)
    own = jnp.sum(posterior * apart, axis=-1)
    return jnp.dot(probs, jnp.sum(gate + own, axis=-1), precision=HIGHEST)


class TruncationBound(NamedTuple):
    """What keeping mass M of a gate can cost: TV ≤ 1 − M, KL(top ‖ full) ≤ −log M."""

    total_variation: Scalar
    kl: Scalar


@typed
def truncation_bound(weights: Weights, kept: Weights) -> TruncationBound:
    """Bounds for a gate cut down to the experts of `kept` > 0 and renormalized.

    TV(full, top) ≤ 1 − M,   KL(top ‖ full) ≤ −log M;   KL(full ‖ top) can be infinite   [B6]

    For sequences: TV ≤ Σ_t E_q[1 − M_t]; for top-1 of the Bayes gate M = max_k r_k [B7]. At M = 0
    the bound in nats is +∞, and its derivative infinite.
    """
    check_distribution("weights", weights)
    check_interval("kept", kept, 0.0, 1.0)
    mass = jnp.sum(jnp.where(jnp.asarray(kept) > 0, weights, 0.0))
    return TruncationBound(1 - mass, -log(mass))


@typed
def gate_cost(
    log_target_probs: Float[ArrayLike, " V"],
    log_gate: PerExpert,
    log_next_probs: Float[ArrayLike, "K V"],
) -> Scalar:
    """What a gate costs at one prefix when the experts are exact, in nats per token.

        KL(q(· | x^{≤t}) ‖ Σ_k ρ_k q_k(· | x^{≤t}))   [B10]

    0 for the Bayes gate; static and last-token gates pay, in no fixed order.
    """
    check_log_distribution("log_target_probs", log_target_probs)
    check_log_distribution("log_gate", log_gate)
    check_log_distribution("log_next_probs", log_next_probs, read=log_gate > -jnp.inf)
    return _kl(log_target_probs, mix_log_probs(log_gate, log_next_probs))


@typed
def part_information(log_weights: PerExpert, log_probs: Float[ArrayLike, "K Z"]) -> Scalar:
    """What the state tells about the part, in nats.

        I(X; K) = Σ_k w_k KL(q_k ‖ q),   H(X) = Σ_k w_k H(X | k) + I(X; K)   [D10, B9]

    The experts' summed optimum lies I(X; K) below the central optimum, and the gate pays exactly
    that back. It is also what oracle routing by the sequence itself flatters a loss by.
    """
    check_log_distribution("log_weights", log_weights)
    check_log_distribution("log_probs", log_probs, read=log_weights > -jnp.inf)
    log_probs = _behind(log_weights, log_probs)
    log_q = mix_log_probs(log_weights, log_probs)
    return _mean(jnp.asarray(log_weights), jax.vmap(_kl, in_axes=(0, None))(log_probs, log_q))


@typed
def oracle_leakage(weights: Weights) -> Scalar:
    """How far oracle-routed NLL lies below the truth when hard clusters read the whole sequence.

        H(K | c) = −Σ_k r_k(c) log r_k(c), in nats   [B9]

    At no real gain: a gate that sees context and prefix only gives a distribution. Its derivative
    in a weight of 0 is infinite: +∞.
    """
    check_distribution("weights", weights)
    weights = jnp.asarray(weights)
    return -jnp.sum(x_log_ratio(weights, jnp.ones_like(weights)))


def _behind(log_weights: PerExpert, log_probs: Array) -> Array:
    """The distributions, −∞ for an expert of mass 0: it may say anything, NaN included."""
    return jnp.where(jnp.asarray(log_weights)[:, None] == -jnp.inf, -jnp.inf, log_probs)


def _log_posteriors(log_weights: PerExpert, log_probs: Array) -> Array:
    """log r_k(x) at every state, [Z, K]; −∞ for all k off the support."""
    weights = jnp.asarray(log_weights)[None]
    joint = jnp.where(weights == -jnp.inf, -jnp.inf, log_probs.T + weights)
    total = log_sum_exp(joint)[:, None]
    dead = total == -jnp.inf
    return jnp.where(dead, -jnp.inf, joint - jnp.where(dead, 0.0, total))


def _mean(log_p: Array, values: Array) -> Array:
    """E_p[values], where p = 0 dropped before the product: the value there may be infinite."""
    possible = log_p != -jnp.inf
    infinite = possible & (values == jnp.inf)  # whatever its mass, though exp may underflow
    kept = jnp.where(possible & ~infinite, values, 0.0)
    return jnp.sum(jnp.where(infinite, jnp.inf, jnp.where(possible, jnp.exp(log_p) * kept, 0.0)))
