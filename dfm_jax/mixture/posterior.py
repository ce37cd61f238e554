"""Experts: a flow on all the data is the posterior-weighted mixture of flows on its parts. [D1–D8]

Split the data into K parts of mass w_k and let u^k generate the path p^k of part k. The path of the
whole is p_t = Σ_k w_k p_t^k, and since continuity is linear in the flux p u,

    ∂_t p_t = −div(Σ_k w_k p_t^k u_t^k) = −div(p_t Σ_k r_k u_t^k),  r_k(z, t) = w_k p_t^k(z)/p_t(z),

so Σ_k r_k u^k generates p_t. Nothing here knows what a network is. Weights and gates may be zero;
the expert behind a zero may return anything, NaN included.
"""

import jax
import jax.numpy as jnp

from dfm_jax.boundary import at_tokens, log_sum_exp, log_sum_of_products, softmax
from dfm_jax.checks import (
    check_count,
    check_interval,
    check_law,
    check_log_law,
    check_log_probs,
    check_tokens,
)
from dfm_jax.types import (
    Array,
    ArrayLike,
    Float,
    PerExpert,
    Scalar,
    StateProbs,
    Token,
    Tokens,
    Weights,
    typed,
)
from dfm_jax.velocities import expectation


@typed
def mixture_log_prob(
    log_weights: PerExpert, log_probs: Float[ArrayLike, " K *event"]
) -> Float[Array, " *event"]:
    """The law of the whole, from the laws of the parts, in nats.

        log q(x) = log Σ_k w_k q_k(x),   log p_t(x) = log Σ_k w_k p_t^k(x)   [D1, D2]

    In log space: products of token probabilities underflow. −∞ where no expert can make x, and
    there its derivatives are 0.

    Raises:
        ValueError: if the weights are no law, or a part that has one says a logarithm above 0.
    """
    check_log_law("log_weights", log_weights)
    check_log_probs("log_probs", log_probs, read=log_weights > -jnp.inf)
    column = jnp.reshape(log_weights, (-1, *(1 for _ in log_probs.shape[1:])))
    return log_sum_exp(jnp.where(column == -jnp.inf, -jnp.inf, column + log_probs), axis=0)


@typed
def expert_posterior(log_p_t: PerExpert, log_prior: PerExpert) -> Weights:
    """Which part does the state come from?

        r_k(z, t) = w_k p_t^k(z) / p_t(z)   [D3]

    At t = 0 it is P(k | c). NaN where p_t(z) = 0: there it is undefined. Behind a prior of 0 the
    part may say anything.

    Args:
        log_p_t: log p_t^k(z) for each expert.
        log_prior: log w_k, or log P(k | c) where there is a context.

    Raises:
        ValueError: if the prior is no law, or a part that has mass says a logarithm above 0.
    """
    check_log_law("log_prior", log_prior)
    check_log_probs("log_p_t", log_p_t, read=log_prior > -jnp.inf)
    joint = jnp.asarray(log_prior) + log_p_t
    return softmax(jnp.where(jnp.asarray(log_prior) == -jnp.inf, -jnp.inf, joint))


@typed
def mix_velocities(
    weights: Weights, velocities: Float[ArrayLike, " K *state"]
) -> Float[Array, " *state"]:
    """The global velocity is the posterior-weighted sum of the experts' at the same (z, t).

        u_t(·, z) = Σ_k r_k(z, t) u_t^k(·, z)   [D4, D13]

    Exact for the weights of `expert_posterior`, continuous and discrete time. With any u^k that
    generate p_t^k the sum generates p_t. Source: DAG, DDM.

    Raises:
        ValueError: if the weights are no law.
    """
    check_law("weights", weights)
    return expectation(jnp.asarray(weights), velocities)


@typed
def mix_posteriors(
    weights: Weights, posteriors: Float[ArrayLike, " K *state"]
) -> Float[Array, " *state"]:
    """Token posteriors mix like velocities.

        p_{1|t}^i(v | z) = Σ_k r_k(z, t) p_{1|t}^{k,i}(v | z)   [D5, D6]

    For left-to-right tables this is q(v | x^{≤t}) = Σ_k r_k(x^{≤t}) q_k(v | x^{≤t}).

    Raises:
        ValueError: if the weights are no law, or a posterior that has one is none.
    """
    check_law("weights", weights)
    check_law("posteriors", posteriors, read=weights != 0)
    return expectation(jnp.asarray(weights), posteriors)


@typed
def mix_log_probs(
    log_weights: PerExpert, log_probs: Float[ArrayLike, " K *state"]
) -> Float[Array, " *state"]:
    """`mix_posteriors` in log space, in nats: large vocabularies and long sequences underflow.

    log p(v | z) = log Σ_k exp(log r_k + log p_k(v | z))   [D5, D6]
    """
    return mixture_log_prob(log_weights, log_probs)


@typed
def context_posterior(part: Token, num_experts: int) -> Weights:
    """Where the part is a function of the context, hard top-1 routing is exact at every t.

        r_k(·, t) = 1[k = f(c)]   [D8]

    Raises:
        ValueError: if `part` lies outside [0, K), the label −1 of an unserved row included.
    """
    check_count("num_experts", num_experts)
    check_interval("part", part, 0, num_experts - 1)
    return jax.nn.one_hot(part, num_experts, dtype=float)


@typed
def mixed_step_law(weights: Weights, step_laws: Float[ArrayLike, "K N S"]) -> StateProbs:
    """Draw one expert per position, k^i ~ r(z, t), then its step: the step of the mixed velocity.

    X^i ~ Σ_k r_k (δ_{z^i} + u^{k,i}(·, z))   [S6, S7a]

    The draws are independent, and any number of positions may move. Also for a learned router,
    drawn per position and step. One k shared by positions that move together is another law:
    `shared_expert_log_prob`.

    Raises:
        ValueError: if the weights are no law, or a step of an expert that has one is none.
    """
    check_law("weights", weights)
    check_law("step_laws", step_laws, read=weights != 0)
    return mix_posteriors(weights, step_laws)


@typed
def shared_expert_log_prob(
    x_next: Tokens, log_weights: PerExpert, step_laws: Float[ArrayLike, "K N S"]
) -> Scalar:
    """One expert for all positions of a step, in nats: log Σ_k r_k Π_i law_k^i(x^i).   [S6]

    Equal to `mixed_step_law` if at most one position moves; else another law. Where it is −∞ its
    derivative in a probability is infinite, if that one alone is missing.

    Raises:
        ValueError: as `mixed_step_law`; if an id lies outside [0, S).
    """
    check_log_law("log_weights", log_weights)
    check_law("step_laws", step_laws, read=log_weights > -jnp.inf)
    check_tokens("x_next", x_next, step_laws.shape[-1])
    here = jax.vmap(at_tokens, in_axes=(0, None))(step_laws, x_next)
    return log_sum_of_products(log_weights, here)


@typed
def one_expert_log_prob(log_prior: PerExpert, sequence_log_probs: PerExpert) -> Scalar:
    """Draw one expert after the prompt, k ~ r(c), and keep it: the law of the sequence, in nats.

        log Σ_k r_k(c) q̂_k(x | c)   [S7b]

    The same law as mixing token by token with the Bayes gate, at the cost of one expert. Only for
    one-position steps, untruncated gates and temperature 1.

    Raises:
        ValueError: if the prior is no law, or an expert that has mass says a logarithm above 0.
    """
    check_log_law("log_prior", log_prior)
    check_log_probs("sequence_log_probs", sequence_log_probs, read=log_prior > -jnp.inf)
    return mixture_log_prob(log_prior, jnp.asarray(sequence_log_probs))
