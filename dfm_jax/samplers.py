"""The laws of samplers: one step's law from exact or learned posteriors.   [S1–S7]

A sampler step draws every position from its row, independently: `paths.sample_path` of the laws
below. S2, the exact finite step, is `steps.step_law` of `steps.exact_step_velocity`. Whole runs are
drawn by `dfm_jax.sampling`.
"""

import jax
import jax.numpy as jnp

from dfm_jax.boundary import at_tokens, log_sum_of_products
from dfm_jax.checks import (
    check_interval,
    check_law,
    check_log_law,
    check_log_probs,
    check_num_states,
    check_tokens,
)
from dfm_jax.experts import mix_posteriors, mixture_log_prob
from dfm_jax.paths import point_mass
from dfm_jax.schedules import Schedule, rate
from dfm_jax.steps import exact_step_velocity, step_law
from dfm_jax.types import (
    ArrayLike,
    Bool,
    Float,
    LogProbs,
    Number,
    PerExpert,
    Probs,
    Scalar,
    StateProbs,
    Time,
    Token,
    Tokens,
    Velocity,
    Weights,
    typed,
)


@typed
def autoregressive_log_prob(x: Tokens, next_log_probs: LogProbs) -> Scalar:
    """The law of ancestral sampling, in nats: exact for the left-to-right table.

    log q̂(x | c) = Σ_t log q̂(x^t | x^{<t}, c)   [S1]

    Raises:
        ValueError: if a row is no law, or an id lies outside [0, V).
    """
    check_log_law("next_log_probs", next_log_probs)
    check_tokens("x", x, jnp.shape(next_log_probs)[-1])
    rows = jnp.take_along_axis(jnp.asarray(next_log_probs), jnp.asarray(x)[:, None], axis=-1)
    return jnp.sum(rows)


@typed
def euler_step_law(
    posterior: Probs, x_t: Tokens, t: Time, size: Number, schedule: Schedule, *, num_states: int
) -> StateProbs:
    """A step of the x_1-prediction's velocity, frozen for the time h.

        X_{t+h}^i ~ δ_{x_t^i} + h κ̇_t/(1 − κ_t) [p_{1|t}^i(· | x_t) − δ_{x_t^i}]   [S3]

    Error O(h²) a step, O(h) a run. For κ_t = t it is the exact finite step of the grid t, t + h
    (S2): the conditional law has no error at all.

    Raises:
        ValueError: if h < 0, or it is no law, h κ̇/(1 − κ) > 1; if t is no time before κ's end.
    """
    check_interval("size", size, 0.0, jnp.inf, ends="[)")
    share = jnp.asarray(size * rate(t, schedule), jnp.result_type(posterior))
    check_interval("size · κ̇/(1 − κ)", share, 0.0, 1.0)
    share = jnp.broadcast_to(share, jnp.shape(x_t))
    return step_law(exact_step_velocity(posterior, x_t, share, num_states=num_states), x_t)


@typed
def final_step_law(
    posterior: Probs, x_t: Tokens, pending: Bool[ArrayLike, " N"], *, num_states: int
) -> StateProbs:
    """The last step draws every unfinished position from the posterior and leaves the others.

        X^i ~ p_{1|t}^i(· | x_t)  if pending,  δ_{x_t^i} else   [S4]

    The joint is exact if at most one position is pending. Pending is κ_t^i < 1; with a mask source
    that is x_t^i = m, so revealed tokens never change, and with other sources finished-looking
    tokens are redrawn.

    Raises:
        ValueError: if the posterior of a pending position is no law; others may be anything.
    """
    check_law("posterior", posterior, read=pending)
    num_tokens = jnp.shape(posterior)[-1]
    check_num_states(num_states, num_tokens)
    drawn = jnp.pad(posterior, ((0, 0), (0, num_states - num_tokens)))
    stay = point_mass(x_t, num_states, dtype=drawn.dtype)
    return jnp.where(pending[:, None], drawn, stay)


@typed
def one_position_step_law(
    velocity: Velocity, x_t: Tokens, position: Token, size: Number
) -> StateProbs:
    """A step of one position only; the others stay.

        X^j ~ δ_{x_t^j} + h 1[j = i] u^j(·, x_t)   [S5]

    With a corrector (`velocities.corrected_velocity`, α = β) at frozen t it keeps p_t exactly, as
    long as h |u| ≤ 1 (beyond, it is no law); all positions at once keep it to O(h²) only. A
    uniformly drawn position with h' = N h is the step I + h G.

    Raises:
        ValueError: if `position` is none, or h is negative or infinite.
    """
    check_interval("size", size, 0.0, jnp.inf, ends="[)")
    num_positions, num_states = jnp.shape(velocity)
    check_tokens("position", position, num_positions)
    turn = (jnp.arange(num_positions) == position)[:, None]
    velocity = jnp.asarray(velocity)
    stay = point_mass(x_t, num_states, dtype=velocity.dtype)
    return stay + jnp.where(turn, size * velocity, 0.0)


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
