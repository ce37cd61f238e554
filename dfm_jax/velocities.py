"""Velocities: posterior ↔ velocity, forward, backward, corrected, kinetic-optimal.   [V1–V9, C1]

A velocity u_t^i(v, z) moves position i of state z toward value v; its rows sum to 0. The sign of
the continuity equation is ∂_t p_t + div(p_t u_t) = 0, divergence = outflow − inflow. A `ValueError`
names an argument that is not a distribution or not an id; `rate_violation` tells whether a velocity
is a rate.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dfm_jax.boundary import finite_at_zero_mass
from dfm_jax.checks import check_distribution, check_interval, check_tokens, require
from dfm_jax.paths import HIGHEST, metric_path, pad_to_states, point_mass
from dfm_jax.schedules import Schedule, backward_rate, rate
from dfm_jax.types import (
    Array,
    ArrayLike,
    Float,
    Int,
    Number,
    Probs,
    Scalar,
    StateProbs,
    Time,
    Tokens,
    Velocity,
    as_time,
    typed,
)


@typed
def rate_violation(velocity: Velocity, x_t: Tokens) -> Scalar:
    """How far a velocity is from being a rate; 0 for a rate. It has a kink at 0 and at ties.

    Σ_v u_t^i(v, z) = 0  and  u_t^i(v, z) ≥ 0 for v ≠ z^i   [V1]
    """
    off_diagonal = jnp.where(point_mass(x_t, jnp.shape(velocity)[-1]) == 1, 0.0, velocity)
    unbalanced = jnp.max(jnp.abs(jnp.sum(jnp.asarray(velocity), axis=-1)))
    return jnp.maximum(unbalanced, -jnp.min(off_diagonal))


@typed
def mixture_velocity(
    x_1: Tokens, x_t: Tokens, t: Time, schedule: Schedule, *, num_states: int
) -> Velocity:
    """The conditional velocity of the mixture path: a position jumps to its data token.

        u_t^i(v, z | x_0, x_1) = κ̇_t/(1 − κ_t) [δ_{x_1^i}(v) − δ_{z^i}(v)],  t ∈ [0, 1)   [V3]

    Source: DFM.
    """
    speed = _per_position(rate(t, schedule), x_t)
    data = point_mass(x_1, num_states, name="x_1", dtype=speed.dtype)
    return speed * (data - point_mass(x_t, num_states, dtype=speed.dtype))


@typed
def posterior_to_velocity(
    posterior: Probs, x_t: Tokens, t: Time, schedule: Schedule, *, num_states: int
) -> Velocity:
    """The marginal velocity of the mixture path, from its denoising posterior.

        u_t^i(v, z) = κ̇_t/(1 − κ_t) [p_{1|t}^i(v | z) − δ_{z^i}(v)],  t ∈ [0, 1)   [V5]

    With `num_states` = V + 1 a column for the mask is added, so that the row of a masked position
    sums to 0 too. Source: DFM.

    Raises:
        ValueError: if a row of the posterior is not a distribution; if κ_t reaches 1.
    """
    check_distribution("posterior", posterior)
    stay = point_mass(x_t, num_states, dtype=jnp.result_type(posterior))
    return _per_position(rate(t, schedule), x_t) * (pad_to_states(posterior, num_states) - stay)


@typed
def velocity_to_posterior(
    velocity: Velocity, x_t: Tokens, t: Time, schedule: Schedule, *, num_tokens: int
) -> Probs:
    """The inverse of `posterior_to_velocity`, where κ̇_t > 0.

        p_{1|t}^i(v | z) = δ_{z^i}(v) + u_t^i(v, z) (1 − κ_t)/κ̇_t   [V5]

    It is NaN where κ̇_t = 0, as at a prompt.

    Raises:
        ValueError: if `num_tokens` is neither S nor, with a mask, S − 1; if t lies outside [0, 1).
    """
    num_states = jnp.shape(velocity)[-1]
    rule = f"`num_tokens` must be S = {num_states}, or {num_states - 1} with a mask"
    require(num_tokens in (num_states, num_states - 1), rule, num_tokens)
    stay = point_mass(x_t, num_states, dtype=jnp.result_type(velocity))
    return (stay + velocity / _per_position(rate(t, schedule), x_t))[:, :num_tokens]


@typed
def backward_velocity(
    posterior_0: StateProbs, x_t: Tokens, t: Time, schedule: Schedule
) -> Velocity:
    """The velocity of the same flow, from the posterior of the source token (x_0-prediction).

        ǔ_t^i(v, z) = κ̇_t/κ_t [δ_{z^i}(v) − p_{0|t}^i(v | z)],  t ∈ (0, 1]   [V6]

    It solves the continuity equation with the same sign, but −ǔ is the rate: use −ǔ while t
    decreases. Source: DFM.
    """
    check_distribution("posterior_0", posterior_0)
    stay = point_mass(x_t, jnp.shape(posterior_0)[-1], dtype=jnp.result_type(posterior_0))
    return _per_position(backward_rate(t, schedule), x_t) * (stay - posterior_0)


@typed
def corrected_velocity(
    forward: Velocity, backward: Velocity, alpha: Number, beta: Number
) -> Velocity:
    """The velocity of steps forward with some steps back.

        ū = α u − β ǔ,  β ≥ 0   [V7]

    α − β = 1 generates the same path; α = β > 0 leaves p_t unchanged at a fixed t. Source: DFM.

    Raises:
        ValueError: if β < 0.
    """
    check_interval("beta", beta, 0.0, jnp.inf, ends="[)")
    return alpha * jnp.asarray(forward) - beta * jnp.asarray(backward)


@typed
def convex_velocity(
    base_probs: Float[ArrayLike, "J N S"],
    x_t: Tokens,
    t: Time,
    kappa: Callable[[ArrayLike], Float[Array, "J N"]],
) -> Velocity:
    """The conditional velocity of a convex sum of base distributions.

        u_t^i(v, z) = Σ_j a_t^j h^j(v) + b_t δ_{z^i}(v),  a^j = κ̇^j − κ^j b,  b = κ̇^ℓ/κ^ℓ,
        ℓ = argmin of κ̇^j/κ^j over the j with κ^j > 0   [V2]

    It needs κ̇^j ≥ 0 where κ^j = 0. This choice of ℓ makes u a rate; any b generates the path.
    Source: DFM.

    Raises:
        ValueError: if t lies outside [0, 1); if a row of `base_probs` is not a distribution, or κ_t
            is not one over j; if κ^j decreases where it is 0.
    """
    check_interval("t", t, 0.0, 1.0, ends="[)")
    check_distribution("base_probs", base_probs)
    t = as_time(t)
    kappa_t, slope = jax.jvp(kappa, (t,), (jnp.ones_like(t),))
    check_distribution("kappa", kappa_t, axis=0)
    positive = kappa_t > 0
    require(positive | (slope >= 0), "`kappa` must not decrease where it is 0", slope, name="dκ/dt")
    b = jnp.min(jnp.where(positive, slope / jnp.where(positive, kappa_t, 1.0), jnp.inf), axis=0)
    a = slope - kappa_t * b[None, :]
    stay = point_mass(x_t, base_probs.shape[-1], dtype=base_probs.dtype)
    return jnp.einsum("jn,jnv->nv", a, base_probs, precision=HIGHEST) + b[:, None] * stay


@typed
def kinetic_optimal_velocity(
    token_path: Callable[[ArrayLike], StateProbs], x_t: Tokens, t: Time
) -> Velocity:
    """A conditional velocity for any differentiable token path t ↦ p_t^i(·).

        u(v, z) = [p(z) ṗ(v) − ṗ(z) p(v)]_+ / p(z)  for v ≠ z,  0 where p(z) = 0   [V8]

    It needs ṗ(z) ≥ 0 where p(z) = 0. Marginalize it with `mixture.mix`. Applied to a marginal path,
    it gives another velocity, for which D4 fails. [·]_+ has a kink: at 0 its derivative is ½.
    Source: KO.

    Raises:
        ValueError: if t lies outside [0, 1); if the path is not a distribution at t, or decreases
            where it is 0.
    """
    check_interval("t", t, 0.0, 1.0, ends="[)")
    p, slope = _value_and_slope(token_path, t)
    rule = "`token_path` must not decrease where it is 0, as it does at its end"
    require((p > 0) | (slope >= 0), rule, slope, name="dp/dt")
    p_z, slope_z = _at(p, x_t), _at(slope, x_t)
    positive = p_z > 0
    flux = jnp.maximum(p_z * slope - slope_z * p, 0.0)
    return _complete(jnp.where(positive, flux / jnp.where(positive, p_z, 1.0), 0.0), x_t)


@typed
def metric_velocity(
    x_1: Tokens,
    x_t: Tokens,
    t: Time,
    distances: Float[ArrayLike, "V V"],
    beta: Callable[[ArrayLike], Array],
) -> Velocity:
    """`kinetic_optimal_velocity` of `metric_path`, in closed form: tokens only move nearer to x_1.

        u(v, z) = p_t(v | x_1) β̇_t [d(z, x_1) − d(v, x_1)]_+  for v ≠ z   [V8]

    Source: KO.

    Raises:
        ValueError: if t lies outside [0, 1]; if β_t is infinite, because the flow has then arrived;
            if β_t decreases; and as `metric_path` does.
    """
    check_interval("t", t, 0.0, 1.0)
    check_tokens("x_t", x_t, distances.shape[0])
    t = as_time(t)
    beta_t, slope = jax.jvp(beta, (t,), (jnp.ones_like(t),))
    require(jnp.isfinite(slope), "`t` must lie where β_t is finite", t)
    require(slope >= 0, "`beta` must not decrease at t", slope, name="dβ/dt")
    to_target = distances[:, x_1].T
    nearer = jnp.maximum(_at(to_target, x_t) - to_target, 0.0)
    return _complete(metric_path(x_1, distances, beta_t) * slope * nearer, x_t)


@typed
def campbell_velocity(
    token_path: Callable[[ArrayLike], StateProbs], x_t: Tokens, t: Time
) -> Velocity:
    """The rate R* of Campbell et al. for a token path, for t in the open interval (0, 1).

        R*(v, z) = [ṗ(v) − ṗ(z)]_+ / (Z p(z))  if p(v) > 0 and p(z) > 0, v ≠ z;  Z = #{p > 0}   [V9]

    It needs ṗ = 0 where p = 0. [·]_+ has a kink: at 0 its derivative is ½. Source: DFM-C.

    Raises:
        ValueError: if t lies outside (0, 1); if the path is not a distribution at t, or moves where
            it is 0.
    """
    check_interval("t", t, 0.0, 1.0, ends="()")
    p, slope = _value_and_slope(token_path, t)
    p_z, positive = _at(p, x_t), p > 0
    rule = "`token_path` must not change where it is 0"
    require(positive | (slope == 0), rule, slope, name="dp/dt")
    num_positive = jnp.sum(positive, axis=-1, keepdims=True, dtype=p.dtype)
    both = positive & (p_z > 0)
    flux = jnp.maximum(slope - _at(slope, x_t), 0.0)
    return _complete(jnp.where(both, flux / jnp.where(both, num_positive * p_z, 1.0), 0.0), x_t)


@typed
def divergence(
    probs: Float[ArrayLike, " Z"],
    velocity: Float[ArrayLike, "Z N S"],
    states: Int[ArrayLike, "Z N"],
) -> Float[Array, " Z"]:
    """The flow out of each state minus the flow into it, over an enumerated space.

        div_x(p u) = Σ_{z≠x} [p(x) u(z, x) − p(z) u(x, z)]   [C1, Q4]

    with u(x, z) = Σ_i 1[x^{≠i} = z^{≠i}] u^i(x^i, z). It computes Z² N numbers, so the space must
    be small. Where p(z) = 0 the velocity may hold any value.
    """
    check_distribution("probs", probs)
    check_tokens("states", states, velocity.shape[-1])
    column = probs[:, None, None]
    flow = finite_at_zero_mass(column, velocity) * column
    same = states[:, None, :] == states[None, :, :]  # [x, z, i]
    differs = 1 - same.astype(int)
    others_agree = jnp.sum(differs, axis=-1, keepdims=True) == differs
    into = jnp.take_along_axis(flow[None], states[:, None, :, None], axis=-1)[..., 0]  # [x, z, i]
    return -jnp.sum(jnp.where(others_agree, into, 0.0), axis=(1, 2))


def _value_and_slope(token_path: Callable, t: Time) -> tuple[Array, Array]:
    t = as_time(t)
    value, slope = jax.jvp(token_path, (t,), (jnp.ones_like(t),))
    check_distribution("token_path", value)
    return value, slope


def _at(rows: Array, x_t: Tokens) -> Array:
    """The entry of each row at its position's current token, kept as a column."""
    check_tokens("x_t", x_t, rows.shape[-1])
    return jnp.take_along_axis(rows, jnp.asarray(x_t)[:, None], axis=-1)


def _complete(off_diagonal: Array, x_t: Tokens) -> Array:
    """Fill the diagonal, u(z, z) = −Σ_{v≠z} u(v, z)."""
    stay = point_mass(x_t, off_diagonal.shape[-1], dtype=off_diagonal.dtype)
    off_diagonal = jnp.where(stay == 1, 0.0, off_diagonal)
    return off_diagonal - stay * jnp.sum(off_diagonal, axis=-1, keepdims=True)


def _per_position(value: Array, x_t: Tokens) -> Array:
    return jnp.broadcast_to(value, jnp.shape(x_t))[:, None]
