"""Losses to minimize: cross-entropy, generalized KL, any-order and grid bounds, routers.   [L1–L5]

Losses take logits, as a network gives them, and normalize each row: p̂ = softmax(logits), in
float32 or wider. Log-probabilities are logits too. A row of −∞ alone has loss +∞ and no derivative.

Losses return one number per position, in nats, and leave the reduction to the caller. A mean over
masked tokens is not a bound and cannot be compared with anything.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from dfm_jax.boundary import log_softmax, log_softmax_at, times, x_log_ratio
from dfm_jax.checks import check_distribution, check_interval, check_tokens
from dfm_jax.paths import HIGHEST, point_mass
from dfm_jax.schedules import Schedule, rate
from dfm_jax.types import (
    Array,
    ArrayLike,
    Context,
    Float,
    Logits,
    PerExpert,
    Scalar,
    Time,
    Token,
    Tokens,
    Velocity,
    Weights,
    typed,
)


@typed
def cross_entropy_loss(logits: Logits, x_1: Tokens) -> Float[Array, " N"]:
    """−log p̂_{1|t}^i(x_1^i | x_t), one loss per position.   [L1]

    With any weight ω(t, x_t, i) > 0 the minimizer over all functions of (x_t, t) is the same; the
    loss lies above its minimum by Σ ω E KL(p_{1|t} ‖ p̂). Source: DFM.

    Raises:
        ValueError: if an id lies outside [0, V).
    """
    check_tokens("x_1", x_1, jnp.shape(logits)[-1])
    (log_prob,) = log_softmax_at(logits, x_1)
    return -log_prob


@typed
def generalized_kl_loss(
    logits: Logits, x_1: Tokens, x_t: Tokens, t: Time, schedule: Schedule
) -> Float[Array, " N"]:
    """The integrand of the evidence bound per position, for t ∈ [0, 1), in nats per unit of time.

        −κ̇/(1−κ) [p̂_{1|t}(z^i | z) − δ_{x_1^i}(z^i)
                   + (1 − δ_{x_1^i}(z^i)) log p̂_{1|t}(x_1^i | z)]   [L2]

    It equals `generalized_kl` of the conditional velocity and the model's. If X_0 ⊥ X_1, the
    integral over t of its sum over positions is a bound on −log p̂_1(x_1). Bounds of different
    sources must not be compared. Source: FMG.

    Raises:
        ValueError: if an id is not a token or state; if t lies outside [0, 1), or κ_t reaches 1.
    """
    num_tokens = jnp.shape(logits)[-1]
    check_tokens("x_1", x_1, num_tokens)
    check_tokens("x_t", x_t, num_tokens + 1)
    masked = jnp.asarray(x_t) == num_tokens
    log_now, log_data = log_softmax_at(logits, jnp.where(masked, 0, x_t), x_1)
    stays = jnp.where(masked, 0.0, jnp.exp(log_now))
    done = jnp.asarray(x_t) == x_1
    inside = jnp.where(done, stays - 1, stays + log_data)
    return -times(rate(t, schedule), inside)  # never 0 · ∞


@typed
def generalized_kl(velocity: Velocity, model: Velocity, x_t: Tokens) -> Float[Array, " N"]:
    """The cost rate of jumping at the wrong rate, per position, in nats per unit of time.

        Σ_{v≠z^i} [u log(u/û) − u + û]   [L2, B8]

    It is +∞ where u > 0 = û. At u = 0 its derivative in u is infinite: −∞, or +∞ if û = 0 too.
    """
    stay = point_mass(x_t, jnp.shape(velocity)[-1]) == 1
    u, u_hat = jnp.where(stay, 0.0, velocity), jnp.where(stay, 0.0, model)
    return jnp.sum(x_log_ratio(u, u_hat) - u + u_hat, axis=-1)


@typed
def any_order_log_weight(num_revealed: ArrayLike, num_masked: ArrayLike) -> Array:
    """log ∫ κ^a (1−κ)^{M−1} dκ = log [a! (M−1)!/N!]: a revealed, M = N − a ≥ 1 masked.   [L3]

    Only free positions count: a context position counts neither as revealed nor toward N.

    Raises:
        ValueError: if a < 0 or M < 1.
    """
    check_interval("num_revealed", num_revealed, 0, jnp.inf, ends="[)")
    check_interval("num_masked", num_masked, 1, jnp.inf, ends="[)")
    a, m = _real(num_revealed), _real(num_masked)
    return gammaln(a + 1) + gammaln(m) - gammaln(a + m + 1)


@typed
def any_order_loss(
    logits: Logits, x_1: Tokens, x_t: Tokens, context: Context
) -> Float[Array, " N"]:
    """The share of one masked state in the any-order negative log-likelihood, per position.

        a! (M−1)!/N! · 1[x_t^i = m] (−log p̂^i(x_1^i | x_t))   [L3]

    N, a and M count free positions only. The sum over positions and over all 2^N ways to mask them
    is the autoregressive NLL given the context, averaged over uniformly random orders. This holds
    for every κ, without an integral over time.

    Raises:
        ValueError: if an id of `x_1` lies outside [0, V), or one of `x_t` outside [0, V].
    """
    masked, nats = _masked(logits, x_t), cross_entropy_loss(logits, x_1)
    num_masked = jnp.sum(masked, dtype=nats.dtype)
    num_free = jnp.sum(~jnp.asarray(context), dtype=num_masked.dtype)
    weight = any_order_log_weight(num_free - num_masked, jnp.maximum(num_masked, 1))
    return jnp.exp(weight) * jnp.where(masked, nats, 0.0)


@typed
def step_loss(
    logits: Logits, x_1: Tokens, x_t: Tokens, step_size: Float[ArrayLike, " N"]
) -> Float[Array, " N"]:
    """The loss of one step in the finite-grid bound, per position, for an all-mask source.

        λ_t^i 1[x_t^i = m] (−log p̂^i(x_1^i | x_t))   [L5, A4]

    Summed over steps and averaged over paths, it is a bound on −log p̂_T(x_1 | c). For a
    left-to-right table each loss is the negative log-likelihood of the next token. It is 0 where λ
    = 0, for any token; for a token of probability 0 the derivative in λ is infinite.

    Raises:
        ValueError: if an id of `x_1` lies outside [0, V), or one of `x_t` outside [0, V]; if λ lies
            outside [0, 1].
    """
    check_interval("step_size", step_size, 0.0, 1.0)
    nats = cross_entropy_loss(logits, x_1)
    return times(step_size, jnp.where(_masked(logits, x_t), nats, 0.0))


@typed
def bregman_divergence(
    phi: Callable[[Array], Array],
    target: Float[ArrayLike, " *event"],
    model: Float[ArrayLike, " *event"],
) -> Scalar:
    """D(a, b) = φ(a) − φ(b) − ⟨∇φ(b), a − b⟩; the target a comes first.

        Σ_k r_k D(u_k, v) = D(Σ_k r_k u_k, v) + Σ_k r_k D(u_k, Σ_j r_j u_j)  if Σ_k r_k = 1   [L4]

    So the losses of regression on the experts' velocities and on the global velocity differ by a
    number that does not depend on v.
    """
    value, slope = jax.value_and_grad(phi)(model)
    return phi(target) - value - jnp.sum(slope * (target - model))


@typed
def router_loss(logits: PerExpert, part: Token) -> Scalar:
    """−log ρ̂_k(x_t, t), in nats; its minimizer over all functions is r_k(x_t, t).   [D11]

    Raises:
        ValueError: if `part` is not the number of an expert; the label −1 is not.
    """
    check_tokens("part", part, jnp.shape(logits)[0])
    return -log_softmax(logits)[part]


@typed
def decentralized_loss(expert_losses: PerExpert, router_loss: Scalar, weights: Weights) -> Scalar:
    """The decentralized objective: the losses of the experts, and that of the router.

        J(θ, φ) = Σ_k w_k L_k(θ_k) + E[−log ρ̂_k(X_t, t; φ)]   [D9, D12]

    Experts share no parameters, so ∇_{θ_k} J = w_k ∇L_k(θ_k): training needs no communication.
    Source: DAG, DDM.

    Raises:
        ValueError: if the weights are not a distribution.
    """
    check_distribution("weights", weights)
    return jnp.dot(jnp.asarray(weights), expert_losses, precision=HIGHEST) + router_loss


def _masked(logits: Logits, x_t: Tokens) -> Array:
    num_tokens = jnp.shape(logits)[-1]
    check_tokens("x_t", x_t, num_tokens + 1)
    return jnp.asarray(x_t) == num_tokens


def _real(count: ArrayLike) -> Array:
    count = jnp.asarray(count)
    return count if jnp.issubdtype(count.dtype, jnp.inexact) else count.astype(float)
