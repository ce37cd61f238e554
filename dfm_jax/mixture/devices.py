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

    Both sums are one all-reduce, of one state and one number. The number m is the largest ℓ_k,
    found by one more all-reduce of a number, unless `bound` gives a value that no ℓ_k exceeds. If
    the steps are tokens, log p_t of the step before is such a bound, since no token has a
    probability above 1; then each step has one all-reduce. If the bound lies 700 nats above all ℓ_k
    (87 in float32), the result is 0 / 0.

    Call it inside `jax.shard_map` over the axis `axis_name`; each device gives its own experts. All
    devices give the same number of experts: fill up with experts of log-prior −∞, whose values may
    be anything.

    Args:
        log_prior: log w_k of the experts on this device; over all devices it is a distribution.
        log_p_t: log p_t^k(z) of the experts on this device.
        values: u^k(·, z), or posteriors, of the experts on this device.
        bound: m, equal on all devices.
        axis_name: The axis of the mesh over which the experts lie.

    Raises:
        ValueError: under checkify, if an expert with a mass above 0 gives a logarithm above 0.
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
