"""Experts on different devices, mixed where they are: posterior and velocity by one sum.  [D4]"""

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_log_probs
from dfm_jax.paths import HIGHEST
from dfm_jax.types import Array, ArrayLike, Float, PerExpert, typed


@typed
def mix_over_devices(
    log_prior: PerExpert,
    log_p_t: PerExpert,
    values: Float[ArrayLike, " K *state"],
    *,
    bound: Float[ArrayLike, ""] | None = None,
    axis_name: str = "expert",
) -> tuple[Float[Array, " *state"], Float[Array, ""]]:
    """Σ_k r_k u^k of experts that lie on different devices, and log p_t; the same on every device.

        Σ_k r_k u^k = Σ_k e^{ℓ_k − m} u^k / Σ_k e^{ℓ_k − m},   ℓ_k = log w_k + log p_t^k,
        log p_t = m + log Σ_k e^{ℓ_k − m}   [D3, D4, D5]

    Both sums are one all-reduce, of the size of a state and a number. For m the largest ℓ_k is
    found first, a reduction of one number, unless `bound` says what it does not exceed: where the
    steps are tokens, log p_t of the step before, since no token has a probability above 1. Then a
    step has one reduction. A bound that is 700 nats above them all, 87 in float32, leaves 0 / 0.

    Called inside `jax.shard_map` over that axis, each device with its own experts: as many as one
    likes; fill up with experts of log-prior −∞, whose values may be anything.

    Args:
        log_prior: log w_k of the experts here; over all devices a distribution.
        log_p_t: log p_t^k(z) of the experts here.
        values: u^k(·, z), or posteriors, of the experts here.
        bound: m, equal on all devices.
        axis_name: of the mesh.

    Raises:
        ValueError: under checkify, if a logarithm is above 0 and not behind a mass of 0.
    """
    check_log_probs("log_prior", log_prior)
    check_log_probs("log_p_t", log_p_t, read=log_prior > -jnp.inf)
    prior = jnp.asarray(log_prior)
    joint = jnp.where(prior == -jnp.inf, -jnp.inf, prior + log_p_t)
    if bound is None:
        largest = jax.lax.pmax(jax.lax.stop_gradient(jnp.max(joint)), axis_name)
        bound = jnp.where(jnp.isfinite(largest), largest, 0.0)  # all −∞: 0 / 0, which is NaN
    m: Array = jax.lax.stop_gradient(jnp.asarray(bound))  # nothing depends on it
    weights = jnp.exp(joint - m)
    column = jnp.reshape(weights, (-1, *(1 for _ in values.shape[1:])))
    mine = jnp.tensordot(weights, jnp.where(column == 0, 0.0, values), 1, precision=HIGHEST)
    mixed, total = jax.lax.psum((mine, weights.sum()), axis_name)
    return mixed / total, m + jnp.log(total)
