"""Mixtures of V-wide laws without a reduction over the experts' short axis.   [D5, D6]"""

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_log_law
from dfm_jax.types import Array, ArrayLike, Float, typed


@typed
def mix_log_probs(
    log_weights: Float[ArrayLike, " K"] | Float[ArrayLike, "K N"],
    logits: Float[ArrayLike, "K N V"],
) -> Float[Array, "N V"]:
    """log Σ_k r_k softmax_k(v) of every row, from the experts' logits, in nats.   [D5, D6]

    `mixture.mix_log_probs` of `jax.nn.log_softmax(logits)`; the weights are those of all rows [K],
    or of each [K, N]. One flat log-sum-exp over K·N rows, then a sum written
    out over experts. In float32 at least. The expert behind a weight of 0 may return anything.

    Raises:
        ValueError: if the weights are no law over experts.
    """
    check_log_law("log_weights", log_weights, axis=0)
    logits = jnp.asarray(logits)
    num_experts, num_rows, num_tokens = logits.shape
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    log_weights = jnp.asarray(log_weights, dtype)
    if log_weights.ndim == 1:
        log_weights = jnp.broadcast_to(log_weights[:, None], (num_experts, num_rows))
    dead = log_weights == -jnp.inf
    logits = jnp.where(dead[..., None], 0.0, logits)  # before anything is formed of it
    flat = logits.reshape(-1, num_tokens).astype(dtype)
    totals = jax.nn.logsumexp(flat, axis=-1).reshape(num_experts, num_rows)
    shift = jnp.where(dead, -jnp.inf, log_weights - totals)
    terms = [
        jnp.where(dead[k][:, None], -jnp.inf, logits[k].astype(dtype) + shift[k][:, None])
        for k in range(num_experts)
    ]
    top = terms[0]
    for term in terms[1:]:
        top = jnp.maximum(top, term)
    top = jnp.where(top == -jnp.inf, 0.0, jax.lax.stop_gradient(top))
    total = jnp.exp(terms[0] - top)
    for term in terms[1:]:
        total = total + jnp.exp(term - top)
    never = total == 0  # no expert can make the token; its logarithm has no gradient
    return jnp.where(never, -jnp.inf, top + jnp.log(jnp.where(never, 1.0, total)))
