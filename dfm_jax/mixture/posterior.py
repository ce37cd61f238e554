"""Experts: a flow on all the data is the posterior-weighted mixture of flows on its parts. [D1–D8]

Split the data into K parts of mass w_k and let u^k generate the path p^k of part k. The path of the
whole is p_t = Σ_k w_k p_t^k, and since continuity is linear in the flux p u,

    ∂_t p_t = −div(Σ_k w_k p_t^k u_t^k) = −div(p_t Σ_k r_k u_t^k),  r_k(z, t) = w_k p_t^k(z)/p_t(z),

so Σ_k r_k u^k generates p_t. Nothing here depends on networks. Weights and gates may be zero; an
expert with weight zero may return anything, NaN included.
"""

import math

import jax
import jax.numpy as jnp

from dfm_jax.boundary import (
    at_tokens,
    finite_at_zero_mass,
    log_sum_exp,
    log_sum_of_products,
    softmax,
    widened,
)
from dfm_jax.checks import (
    check_count,
    check_distribution,
    check_interval,
    check_log_distribution,
    check_log_probs,
    check_tokens,
)
from dfm_jax.paths import HIGHEST
from dfm_jax.types import (
    Array,
    ArrayLike,
    Float,
    PerExpert,
    Scalar,
    Token,
    Tokens,
    Weights,
    typed,
)


@typed
def expert_posterior(log_prior: PerExpert, log_p_t: PerExpert) -> Weights:
    """The posterior of the part that a state comes from.

        r_k(z, t) = w_k p_t^k(z) / p_t(z)   [D3]

    At t = 0 it is P(k | c). It is undefined, and NaN, where p_t(z) = 0. A part with prior 0 may
    give any value.

    Args:
        log_prior: log w_k, or log P(k | c) where there is a context.
        log_p_t: log p_t^k(z) for each expert.

    Raises:
        ValueError: if the prior is not a distribution, or a part with mass gives a logarithm above
            0.
    """
    check_log_distribution("log_prior", log_prior)
    check_log_probs("log_p_t", log_p_t, read=log_prior > -jnp.inf)
    joint = jnp.asarray(log_prior) + log_p_t
    return softmax(jnp.where(jnp.asarray(log_prior) == -jnp.inf, -jnp.inf, joint))


@typed
def mix(weights: Weights, values: Float[ArrayLike, " K *values"]) -> Float[Array, " *values"]:
    """The posterior mean of velocities, or of any values, at the same (z, t).

        u_t(·, z) = Σ_k r_k(z, t) u_t^k(·, z)   [V4, D4, D13]

    With the weights of `expert_posterior` it is exact, in continuous and discrete time: if each u^k
    generates p_t^k, the sum generates p_t. Conditional velocities, weighted by the posterior over
    pairs, give the marginal velocity.

    Values are not checked; `mix_probs` checks that they are distributions, and `mix_logits` mixes
    logits of networks. Values with weight 0 may be anything, NaN included. A value that is not
    finite is then dropped before the product, and the derivative in its weight is 0; for a finite
    value this derivative is the value. Source: DFM, DAG, DDM.

    Raises:
        ValueError: if the weights are not a distribution.
    """
    check_distribution("weights", weights)
    column = jnp.reshape(weights, (-1, *(1 for _ in values.shape[1:])))
    kept = finite_at_zero_mass(column, values)
    return jnp.tensordot(weights, kept, axes=1, precision=HIGHEST)


@typed
def mix_probs(weights: Weights, probs: Float[ArrayLike, " K *rows V"]) -> Float[Array, "*rows V"]:
    """The posterior mean of distributions; posteriors and steps mix like velocities.

        p_{1|t}^i(v | z) = Σ_k r_k(z, t) p_{1|t}^{k,i}(v | z)   [D5, D6]
        X^i ~ Σ_k r_k (δ_{z^i} + u^{k,i}(·, z))   [S6, S7a]

    For left-to-right tables the first line is q(v | x^{≤t}) = Σ_k r_k(x^{≤t}) q_k(v | x^{≤t}). The
    second line draws one expert per position, k^i ~ r(z, t), and then its step. One k for all
    positions that move together gives another distribution, `shared_expert_log_prob`. As in `mix`,
    a row with weight 0 may be anything.

    Raises:
        ValueError: if the weights are not a distribution, or a row with a weight above 0 is not
            one.
    """
    check_distribution("weights", weights)
    check_distribution("probs", probs, read=jnp.asarray(weights) != 0)
    return mix(weights, probs)


@typed
def mix_log_probs(
    log_weights: PerExpert, log_probs: Float[ArrayLike, " K *event"]
) -> Float[Array, " *event"]:
    """The distribution of the whole from those of the parts, in nats so that nothing underflows.

        log q(x) = log Σ_k w_k q_k(x),   log p_t(x) = log Σ_k w_k p_t^k(x)   [D1, D2]
        log p(v | z) = log Σ_k exp(log r_k + log p_k(v | z))   [D5, D6]
        log q̂(x | c) = log Σ_k r_k(c) q̂_k(x | c)   [S7b]

    It is −∞, with derivatives 0, where no expert can make x. The third line draws one expert after
    the prompt, k ~ r(c), and keeps it. This gives the same distribution as mixing token by token
    with the Bayes gate, at the cost of one expert. It holds for one-position steps, untruncated
    gates and temperature 1.

    Raises:
        ValueError: if the weights are not a distribution, or a part with a weight above 0 gives a
            logarithm above 0.
    """
    check_log_distribution("log_weights", log_weights)
    check_log_probs("log_probs", log_probs, read=log_weights > -jnp.inf)
    column = jnp.reshape(log_weights, (-1, *(1 for _ in log_probs.shape[1:])))
    return log_sum_exp(jnp.where(column == -jnp.inf, -jnp.inf, column + log_probs), axis=0)


@typed
def mix_logits(
    log_weights: Float[ArrayLike, " K"] | Float[ArrayLike, " K *rows"],
    logits: Float[ArrayLike, "K *rows V"],
) -> Float[Array, "*rows V"]:
    """The mixture of networks' logits, in nats; each expert's rows are normalized first.

        log p(v | z) = log Σ_k r_k softmax(logits_k)_v   [D5, D6]

    The weights are those of all rows [K], or of each row [K, …]. The result is in float32 or wider.
    An expert with weight 0 may return anything. If an expert with a weight above 0 gives −∞ in a
    whole row, that row is not a distribution: the mixture's row is −∞ too, never NaN, and has no
    derivative. The code is fused for large V: one flat pass over K rows, then a sum written out
    over experts.

    Raises:
        ValueError: if the weights are not a distribution over experts.
    """
    check_log_distribution("log_weights", log_weights, axis=0)
    logits = widened(logits)
    num_experts, *shape, num_tokens = logits.shape
    weights = jnp.asarray(log_weights, logits.dtype)
    if weights.ndim == 1:
        weights = weights[:, None]
    weights = jnp.broadcast_to(weights.reshape(num_experts, -1), (num_experts, math.prod(shape)))
    rows = logits.reshape(num_experts, -1, num_tokens)
    largest = jax.lax.stop_gradient(jnp.max(rows, axis=-1))  # [K, rows]
    dead, empty = weights == -jnp.inf, largest == -jnp.inf
    unread = (dead | empty)[..., None]  # before anything is formed of it
    rows = jnp.where(unread, 0.0, rows - jnp.where(unread, 0.0, largest[..., None]))
    shift = jnp.where(dead, -jnp.inf, weights - jnp.log(jnp.sum(jnp.exp(rows), axis=-1)))
    terms = [
        jnp.where(dead[k][:, None], -jnp.inf, rows[k] + shift[k][:, None])
        for k in range(num_experts)
    ]
    top = terms[0]
    for term in terms[1:]:
        top = jnp.maximum(top, term)
    top = jnp.where(top == -jnp.inf, 0.0, jax.lax.stop_gradient(top))
    total = jnp.exp(terms[0] - top)
    for term in terms[1:]:
        total = total + jnp.exp(term - top)
    # No expert can make the token, or one has no distribution: the logarithm has no gradient.
    never = (total == 0) | jnp.any(empty & ~dead, axis=0)[:, None]
    mixed = jnp.where(never, -jnp.inf, top + jnp.log(jnp.where(never, 1.0, total)))
    return mixed.reshape(*shape, num_tokens)


@typed
def context_posterior(part: Token, num_experts: int) -> Weights:
    """If the part is a function of the context, hard top-1 routing is exact at every t.

        r_k(·, t) = 1[k = f(c)]   [D8]

    Raises:
        ValueError: if `part` lies outside [0, K), as the label −1 of an unassigned row does.
    """
    check_count("num_experts", num_experts)
    check_interval("part", part, 0, num_experts - 1)
    return jax.nn.one_hot(part, num_experts, dtype=float)


@typed
def shared_expert_log_prob(
    log_weights: PerExpert, x_next: Tokens, step_probs: Float[ArrayLike, "K N S"]
) -> Scalar:
    """The step of one expert for all positions, in nats: log Σ_k r_k Π_i probs_k^i(x^i).  [S6]

    It equals `mix_probs` of the distributions if at most one position moves; otherwise it differs.
    Where it is −∞, its derivative in a probability is infinite if all other factors are above 0.

    Raises:
        ValueError: if the weights are not a distribution, or a step with a weight above 0 is not
            one; if an id lies outside [0, S).
    """
    check_log_distribution("log_weights", log_weights)
    check_distribution("step_probs", step_probs, read=log_weights > -jnp.inf)
    check_tokens("x_next", x_next, step_probs.shape[-1])
    here = jax.vmap(at_tokens, in_axes=(0, None))(step_probs, x_next)
    return log_sum_of_products(log_weights, here)
