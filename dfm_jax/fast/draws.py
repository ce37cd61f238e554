"""Draws that need few random numbers, from the same laws.   [S1–S4]"""

import jax
import jax.numpy as jnp

from dfm_jax.checks import require
from dfm_jax.fast.blocks import rows_in_block
from dfm_jax.types import Array, ArrayLike, Float, Int, Key, typed


@typed
def sample_categorical(key: Key, logits: Float[ArrayLike, " *rows V"]) -> Int[Array, " *rows"]:
    """v ~ softmax(logits) of each row, drawn in two levels: a block of tokens, then one of it.

        P(b) ∝ Σ_{v ∈ b} exp(logit_v),  P(v | b) ∝ exp(logit_v)

    About √V to a block, so 2√V Gumbel variables a row in the place of V; each level is drawn as
    `jax.random.categorical(mode="high")` draws, its tail included. In float32 at least.

    Raises:
        ValueError: if a row is no law: NaN, +∞, or −∞ everywhere.
    """
    logits = jnp.asarray(logits)
    is_law = jnp.isfinite(jnp.max(logits, axis=-1))  # NaN spreads through a maximum
    require(is_law, "`logits` must be finite somewhere and nowhere NaN; by row", is_law)
    *shape, num_tokens = logits.shape
    rows = logits.reshape(-1, num_tokens)
    num_rows = rows.shape[0]
    size = rows_in_block(num_rows, num_tokens)
    if size >= num_rows:
        return _two_levels(key, rows).reshape(shape)
    count = num_rows // size
    keys = jax.random.split(key, count + 1)
    whole = rows[: count * size].reshape(count, size, num_tokens)
    drawn = jax.lax.map(lambda block: _two_levels(*block), (keys[:-1], whole)).reshape(-1)
    if count * size < num_rows:
        drawn = jnp.concatenate([drawn, _two_levels(keys[-1], rows[count * size :])])
    return drawn.reshape(shape)


def _two_levels(key: Key, rows: Array) -> Array:
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    num_rows, num_tokens = rows.shape
    width = 1
    while width * width < num_tokens:
        width *= 2
    block_key, token_key = jax.random.split(key)
    rows = jnp.pad(rows, ((0, 0), (0, -num_tokens % width)), constant_values=-jnp.inf)
    powers = jnp.exp(rows - jnp.max(rows, axis=-1, keepdims=True))
    masses = jnp.sum(powers.reshape(num_rows, -1, width), axis=-1)
    block = jax.random.categorical(block_key, jnp.log(masses), mode="high")
    inside = jnp.take_along_axis(rows.reshape(num_rows, -1, width), block[:, None, None], axis=1)
    return block * width + jax.random.categorical(token_key, inside[:, 0], mode="high")
