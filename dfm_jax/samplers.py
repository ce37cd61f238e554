"""The distributions of samplers: of a step, from exact or learned posteriors.  [S1–S11]

A step of a sampler draws every position independently from its row: `paths.sample_path` of the
distributions below. S2, the exact finite step, is `steps.step_probs` of
`steps.exact_step_velocity`. `dfm_jax.sampling` draws whole sequences. The distributions of the
steps of K experts are in `dfm_jax.mixture`.
"""

import jax
import jax.numpy as jnp

from dfm_jax.checks import (
    check_count,
    check_distribution,
    check_interval,
    check_log_distribution,
    check_num_states,
    check_tokens,
    require,
)
from dfm_jax.paths import point_mass
from dfm_jax.schedules import Schedule, rate
from dfm_jax.steps import exact_step_velocity, step_probs
from dfm_jax.types import (
    Array,
    ArrayLike,
    Bool,
    Float,
    LogProbs,
    Number,
    Probs,
    Scalar,
    StateProbs,
    Time,
    Token,
    Tokens,
    Velocity,
    typed,
)


@typed
def autoregressive_log_prob(x: Tokens, next_log_probs: LogProbs) -> Scalar:
    """The log-probability of ancestral sampling, in nats; it is exact for the left-to-right table.

    log q̂(x | c) = Σ_t log q̂(x^t | x^{<t}, c)   [S1]

    Raises:
        ValueError: if a row is not a distribution, or an id lies outside [0, V).
    """
    check_log_distribution("next_log_probs", next_log_probs)
    check_tokens("x", x, jnp.shape(next_log_probs)[-1])
    rows = jnp.take_along_axis(jnp.asarray(next_log_probs), jnp.asarray(x)[:, None], axis=-1)
    return jnp.sum(rows)


@typed
def euler_step_probs(
    posterior: Probs, x_t: Tokens, t: Time, size: Number, schedule: Schedule, *, num_states: int
) -> StateProbs:
    """The distribution of an Euler step, which keeps the velocity constant for a time h.

        X_{t+h}^i ~ δ_{x_t^i} + h κ̇_t/(1 − κ_t) [p_{1|t}^i(· | x_t) − δ_{x_t^i}]   [S3]

    The error is O(h²) in a step and O(h) in a run. For κ_t = t it is the exact finite step from t
    to t + h (S2): the conditional distribution has no error at all.

    Raises:
        ValueError: if h < 0; if h κ̇/(1 − κ) > 1, so that the result is not a distribution; if t
            lies outside [0, 1] or κ_t = 1.
    """
    check_interval("size", size, 0.0, jnp.inf, ends="[)")
    share = jnp.asarray(size * rate(t, schedule), jnp.result_type(posterior))
    check_interval("size · κ̇/(1 − κ)", share, 0.0, 1.0)
    share = jnp.broadcast_to(share, jnp.shape(x_t))
    return step_probs(exact_step_velocity(posterior, x_t, share, num_states=num_states), x_t)


@typed
def final_step_probs(
    posterior: Probs, x_t: Tokens, pending: Bool[ArrayLike, " N"], *, num_states: int
) -> StateProbs:
    """The last step: each unfinished position is drawn from the posterior, and the others stay.

        X^i ~ p_{1|t}^i(· | x_t)  if pending,  δ_{x_t^i} else   [S4, S8, S10]

    The joint distribution is exact if at most one position is pending. A position is pending if
    κ_t^i < 1. With a mask source this means x_t^i = m, so revealed tokens never change. With other
    sources, tokens that look finished are drawn again. With some of the masks as `pending`, those
    that a choice reveals, it is a step of S8 and S10.

    Raises:
        ValueError: if the posterior of a pending position is not a distribution; the other rows may
            hold anything.
    """
    check_distribution("posterior", posterior, read=pending)
    num_tokens = jnp.shape(posterior)[-1]
    check_num_states(num_states, num_tokens)
    drawn = jnp.pad(posterior, ((0, 0), (0, num_states - num_tokens)))
    stay = point_mass(x_t, num_states, dtype=drawn.dtype)
    return jnp.where(pending[:, None], drawn, stay)


@typed
def one_position_step_probs(
    velocity: Velocity, x_t: Tokens, position: Token, size: Number
) -> StateProbs:
    """The distribution of a step in which one position moves and the others stay.

        X^j ~ δ_{x_t^j} + h 1[j = i] u^j(·, x_t)   [S5]

    With a corrector (`velocities.corrected_velocity`, α = β) at a fixed t it keeps p_t exactly, if
    h |u| ≤ 1; with a larger h it is not a distribution. A step of all positions at once keeps p_t
    only to O(h²). If the position is drawn uniformly and h' = N h, the step is I + h G.

    Raises:
        ValueError: if `position` is not a position of the sequence, or h is negative or infinite.
    """
    check_interval("size", size, 0.0, jnp.inf, ends="[)")
    num_positions, num_states = jnp.shape(velocity)
    check_tokens("position", position, num_positions)
    turn = (jnp.arange(num_positions) == position)[:, None]
    velocity = jnp.asarray(velocity)
    stay = point_mass(x_t, num_states, dtype=velocity.dtype)
    return stay + jnp.where(turn, size * velocity, 0.0)


@typed
def redraw_step_probs(
    posterior: Probs, x_t: Tokens, position: Token, probability: Number, *, num_states: int
) -> StateProbs:
    """A step that may draw one revealed token again from its posterior given all the others.

        X^i ~ (1 − g) δ_{x_t^i} + g p_{1|t}^i(· | x_t^{≠i}) at one position,  X^j = x_t^j  [S11]

    It keeps the distribution of x_t, for a flow from masks and for the data themselves, if g is a
    function of x_t^{≠i}. If g reads x_t^i, it does not.

    Args:
        posterior: p_{1|t}(· | x_t^{≠i}), the posterior of the state in which position i is a mask;
            only row i is read.
        x_t: The state; at `position` it has a token.
        position: i.
        probability: g, in [0, 1].
        num_states: S.

    Raises:
        ValueError: if g lies outside [0, 1]; if `position` is not a position of the sequence, or
            has a mask; if row i is not a distribution.
    """
    check_interval("probability", probability, 0.0, 1.0)
    num_positions, num_tokens = jnp.shape(posterior)
    check_tokens("position", position, num_positions)
    check_num_states(num_states, num_tokens)
    rule = f"`x_t` must have a token, an id below {num_tokens}, at `position`"
    require(jnp.asarray(x_t)[position] < num_tokens, rule, x_t)
    turn = jnp.arange(num_positions) == position
    check_distribution("posterior", posterior, read=turn)
    drawn = jnp.pad(jnp.asarray(posterior), ((0, 0), (0, num_states - num_tokens)))
    stay = point_mass(x_t, num_states, dtype=drawn.dtype)
    mixed = (1 - probability) * stay + probability * drawn
    return jnp.where(turn[:, None], mixed, stay)


@typed
def minority_count_probs(majority_prob: Number, *, num_positions: int) -> Float[Array, " M"]:
    """How many minority tokens a sampler draws that keeps the most confident draw of iid coins.

        M = Σ_n Y_n,  Y_n ~ Bernoulli((1 − p)^n),  n = 1 … N,  independent   [S9]

    Each step draws all pending coins and keeps one of the likeliest, so with n coins left it keeps
    a minority token only if all of them are. Ties are broken at random. Exact samples would have a
    binomial number.

    Args:
        majority_prob: p, the probability of the majority token, in (½, 1].
        num_positions: N.

    Returns:
        The distribution of 0, …, N minority tokens: [N + 1].

    Raises:
        ValueError: if p lies outside (½, 1], or N is below 1.
    """
    check_interval("majority_prob", majority_prob, 0.5, 1.0, ends="(]")
    check_count("num_positions", num_positions)
    majority_prob = jnp.asarray(majority_prob, float if isinstance(majority_prob, int) else None)

    def one_more_coin(counts: Array, minority: Array) -> tuple[Array, None]:
        one_more = jnp.concatenate([jnp.zeros_like(counts[:1]), counts[:-1]])
        return (1 - minority) * counts + minority * one_more, None

    none = jnp.zeros(num_positions + 1, majority_prob.dtype).at[0].set(1.0)
    shares = jnp.cumprod(jnp.full(num_positions, 1 - majority_prob))  # (1 − p)^n
    return jax.lax.scan(one_more_coin, none, shares)[0]
