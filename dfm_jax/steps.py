"""Discrete time: the exact finite step, its validity, its push-forward, autoregression. [Q1–Q6, A3]

Time is a row number t = 0 … T of a schedule table κ[t, i] (see `schedules`); autoregression is the
table `left_to_right`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from dfm_jax.boundary import at_tokens, finite_at_zero_mass, log_sum_exp, rise, x_log_ratio
from dfm_jax.checks import (
    check_distribution,
    check_interval,
    check_log_distribution,
    check_tokens,
    require,
)
from dfm_jax.paths import (
    HIGHEST,
    pad_to_states,
    point_mass,
    token_posterior,
)
from dfm_jax.types import (
    Array,
    ArrayLike,
    Float,
    Int,
    Probs,
    Scalar,
    StateProbs,
    Step,
    Table,
    Tokens,
    Velocity,
    typed,
)


@typed
def step_size(table: Table, t: Step) -> Float[Array, " N"]:
    """The share of the remaining way that a position goes in step t → t + 1.

        λ_t^i = (κ_{t+1}^i − κ_t^i) / (1 − κ_t^i),  0 where κ_t^i = 1   [Q3]

    It jumps where κ_t^i becomes 1; the derivative there is 0.

    Raises:
        ValueError: if t is not a step 0 … T − 1 of the table; if κ lies outside [0, 1] in this
            step, or decreases. `schedules.check_table` checks a whole table.
    """
    table = jnp.asarray(table)
    check_interval("t", t, 0, table.shape[0] - 2)
    now, then = table[t], table[jnp.asarray(t) + 1]
    check_interval("table", jnp.stack([now, then]), 0.0, 1.0)
    rule = "`table` must not decrease, nor move a finished token, in step t"
    require(then >= now, rule, then, name="table[t + 1]")
    left = 1 - now
    return jnp.where(left > 0, (then - now) / jnp.where(left > 0, left, 1.0), 0.0)


@typed
def exact_step_velocity(
    posterior: Probs, x_t: Tokens, step_size: Float[ArrayLike, " N"], *, num_states: int
) -> Velocity:
    """The finite-step velocity of the mixture path. It is not an Euler step.

        u_t^i(v, z) = λ_t^i [p_{1|t}^i(v | z) − δ_{z^i}(v)]   [Q3, S2]

    With the posterior δ_{x_1} it is the exact step of the conditional distribution, for any source
    and grid. With the marginal posterior it is exact if at most one position moves at each state
    (Q5). Otherwise the distribution of each token is right after the step, but the joint
    distribution is not (Q6).

    Raises:
        ValueError: if a step size lies outside [0, 1], or a row of the posterior is not a
            distribution.
    """
    check_interval("step_size", step_size, 0.0, 1.0)
    check_distribution("posterior", posterior)
    stay = point_mass(x_t, num_states, dtype=jnp.result_type(posterior))
    move = pad_to_states(posterior, num_states) - stay
    return step_size[:, None] * move


@typed
def step_probs(velocity: Velocity, x_t: Tokens) -> StateProbs:
    """The distribution of one step, in which positions are independent given x_t.

    X_{t+1}^i ~ δ_{x_t^i}(·) + u_t^i(·, x_t)   [Q1]

    Rows are distributions if the velocity is valid; `step_violation` says how far they are from it.
    """
    stay = point_mass(x_t, jnp.shape(velocity)[-1], dtype=jnp.result_type(velocity))
    return stay + velocity


@typed
def step_violation(velocity: Velocity, x_t: Tokens) -> Scalar:
    """How far δ + u is from being a distribution; 0 for a valid finite-step velocity.

        Σ_v u^i(v, z) = 0,  −1 ≤ u^i(z^i, z) ≤ 0,  0 ≤ u^i(v, z) ≤ 1 for v ≠ z^i   [Q2]

    It has a kink at 0, and where two violations are equally large; the derivative is then a mean.
    """
    velocity = jnp.asarray(velocity)
    probs = step_probs(velocity, x_t)
    unbalanced = jnp.max(jnp.abs(jnp.sum(velocity, axis=-1)))
    return jnp.max(jnp.stack([unbalanced, jnp.max(-probs), jnp.max(probs - 1)]))


@typed
def transition_matrix(
    step_probs: Float[ArrayLike, "Z N S"], states: Int[ArrayLike, "Z N"]
) -> Float[Array, "Z Z"]:
    """The kernel of one step over an enumerated space; its columns sum to 1.

    P_t(x, z) = Π_i (δ_{z^i} + u_t^i(·, z))(x^i)   [Q5]

    Raises:
        ValueError: if a row of `step_probs` is not a distribution, or an id lies outside [0, S).
    """
    check_distribution("step_probs", step_probs)
    check_tokens("states", states, step_probs.shape[-1])
    return _kernel(step_probs, states)


def _kernel(step_probs: Array, states: Array) -> Array:
    from_z = jax.vmap(at_tokens, in_axes=(0, None))
    return jnp.prod(jax.vmap(from_z, in_axes=(None, 0))(step_probs, states), axis=-1)


@typed
def push_forward(
    probs: Float[ArrayLike, " Z"],
    step_probs: Float[ArrayLike, "Z N S"],
    states: Int[ArrayLike, "Z N"],
) -> Float[Array, " Z"]:
    """The distribution after one step, P_t p_t; where p_t(z) = 0 the step may hold anything.  [Q5]

    With `exact_step_velocity` of the marginal posterior it is p_{t+1}, if at every z that p_t
    reaches at most one position has a velocity. It is not enough that one position moves for each
    pair (x_0, x_1), if different pairs move different positions; this is enough only for continuity
    (Q4).

    Raises:
        ValueError: if p_t is not a distribution; if a row of `step_probs` is not one where p_t > 0.
    """
    check_distribution("probs", probs)
    check_distribution("step_probs", step_probs, read=probs > 0)
    check_tokens("states", states, step_probs.shape[-1])
    kernel = _kernel(finite_at_zero_mass(probs[:, None, None], step_probs), states)
    return jnp.einsum("xz,z->x", kernel, probs, precision=HIGHEST)


@typed
def next_token_velocity(
    next_token_probs: Float[ArrayLike, " V"], x_t: Tokens, t: Step, *, num_states: int
) -> Velocity:
    """The velocity of autoregression, from its next-token conditional; positions count from 0.

        u_t^i(v, z) = 1[i = t] ( q(v | z^{<t}) − δ_{z^i}(v) )   [A3]

    Source: DAG.

    Raises:
        ValueError: if t is not a position, or the conditional is not a distribution.
    """
    check_distribution("next_token_probs", next_token_probs)
    num_positions = jnp.shape(x_t)[0]
    check_interval("t", t, 0, num_positions - 1)
    row = pad_to_states(next_token_probs[None], num_states)
    turn = (jnp.arange(num_positions) == t)[:, None]
    return jnp.where(turn, row - point_mass(x_t, num_states, dtype=row.dtype), 0.0)


@typed
def parallel_log_prob(
    x: Tokens,
    block_of: Int[ArrayLike, " N"],
    states: Int[ArrayLike, "Z N"],
    log_probs: Float[ArrayLike, " Z"],
) -> Scalar:
    """The log-probability of x, in nats, if the tokens of a block are drawn independently.

        log q_parallel(x) = Σ_i log q(x^i | x^{blocks before that of i})   [Q6]

    KL(q ‖ q_parallel) is the cost of parallelism: the expected total correlation inside the blocks,
    which is 0 for blocks of one token. `states` and their log-masses list the distribution q. The
    result is −∞ where q gives the earlier blocks probability 0: a sampler in such a state has no
    posterior.

    Raises:
        ValueError: if q is not a distribution, or an id or a block is below 0.
    """
    check_log_distribution("log_probs", log_probs)
    for name, ids in (("x", x), ("states", states), ("block_of", block_of)):
        check_tokens(name, ids)
    same = states == jnp.asarray(x)[None, :]  # [Z, N]
    known = block_of[None, :] < block_of[:, None]  # [i, j]
    given = jnp.all(same[None] | ~known[:, None, :], axis=-1)  # [i, Z]
    log_given = log_sum_exp(jnp.where(given, log_probs[None], -jnp.inf))
    log_joint = log_sum_exp(jnp.where(given & same.T, log_probs[None], -jnp.inf))
    dead = log_joint == -jnp.inf  # never form ∞ − ∞
    return jnp.sum(jnp.where(dead, -jnp.inf, log_joint - jnp.where(dead, 0.0, log_given)))


@typed
def total_correlation(
    probs: Float[ArrayLike, " Z"], states: Int[ArrayLike, "Z N"], *, num_tokens: int
) -> Scalar:
    """How far the tokens are from independent, in nats.

        TC(X) = Σ_i H(X^i) − H(X)   [Q6]

    Its derivative in the mass of x is log p(x) − Σ_i log p^i(x^i) + 1 − N. Where p(x) = 0 it is
    infinite: −∞ if all tokens of x have a mass, +∞ if two or more tokens have none. If exactly one
    token has no mass, it is the limit for x alone, which is finite; for two such states that share
    this token, the derivatives do not add up.
    """
    check_distribution("probs", probs)
    check_tokens("states", states, num_tokens)
    return _total_correlation(jnp.asarray(probs), jnp.asarray(states), num_tokens)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _total_correlation(probs: Array, states: Array, num_tokens: int) -> Array:
    marginals = token_posterior(probs, states, num_tokens=num_tokens)
    return _entropy(marginals) - _entropy(probs)


@_total_correlation.defjvp
def _total_correlation_jvp(
    num_tokens: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    probs, states = primals
    marginals = token_posterior(probs, states, num_tokens=num_tokens)
    own = jax.vmap(at_tokens, in_axes=(None, 0))(marginals, states)  # [Z, N]
    never, unseen = probs == 0, own == 0
    slope = jnp.log(jnp.where(never, 1.0, probs)) + 1 - states.shape[1]
    slope = slope - jnp.sum(jnp.log(jnp.where(unseen, 1.0, own)), axis=-1)
    # log p(x) and each logarithm of an unseen token go to −∞ alike: one against one cancels.
    order = jnp.sum(unseen, axis=-1) - never.astype(int)
    slope = jnp.where(order == 0, slope, jnp.where(order > 0, jnp.inf, -jnp.inf))
    return _total_correlation(probs, states, num_tokens), jnp.sum(rise(slope, tangents[0]))


def _entropy(probs: Array) -> Array:
    return -jnp.sum(x_log_ratio(probs, jnp.ones_like(probs)))
