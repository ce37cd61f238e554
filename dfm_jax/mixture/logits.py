"""Mixtures of what networks give: rows of logits, each expert's normalised inside.  [D5, D6]"""

import math

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_log_law
from dfm_jax.types import Array, ArrayLike, Float, typed


@typed
def mix_logits(
    log_weights: Float[ArrayLike, " K"] | Float[ArrayLike, " K *rows"],
    logits: Float[ArrayLike, "K *rows V"],
) -> Float[Array, "*rows V"]:
    """The mixture of what networks give: each expert's rows are normalised inside, in nats.

        log p(v | z) = log Σ_k r_k softmax(logits_k)_v   [D5, D6]

    The weights are those of all rows [K], or of each [K, …]. In float32 at least. An expert behind
    a weight of 0 may return anything. A row that an expert with a weight leaves at −∞ throughout is
    no law: the mixture's is −∞ there, never NaN, and has no derivative. Fused for large V: one flat
    pass over K rows, then a sum written out over experts.

    Raises:
        ValueError: if the weights are no law over experts.
    """
    check_log_law("log_weights", log_weights, axis=0)
    logits = jnp.asarray(logits)
    num_experts, *shape, num_tokens = logits.shape
    dtype = logits.dtype if jnp.finfo(logits.dtype).bits >= 32 else jnp.float32
    weights = jnp.asarray(log_weights, dtype)
    if weights.ndim == 1:
        weights = weights[:, None]
    weights = jnp.broadcast_to(weights.reshape(num_experts, -1), (num_experts, math.prod(shape)))
    rows = logits.reshape(num_experts, -1, num_tokens).astype(dtype)
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
    # No expert can make the token, or one has no law: the logarithm has no gradient.
    never = (total == 0) | jnp.any(empty & ~dead, axis=0)[:, None]
    mixed = jnp.where(never, -jnp.inf, top + jnp.log(jnp.where(never, 1.0, total)))
    return mixed.reshape(*shape, num_tokens)
