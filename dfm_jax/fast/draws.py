"""Draws that need few random numbers, from the same laws.   [P3, S1–S4]"""

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_interval
from dfm_jax.fast.blocks import rows_in_block
from dfm_jax.types import Array, ArrayLike, Float, Int, Key, typed

_COINS = 2**13  # in a block
_HALF = 2**16


@typed
def sample_categorical(key: Key, logits: Float[ArrayLike, " *rows V"]) -> Int[Array, " *rows"]:
    """v ~ softmax(logits) of each row, drawn in two levels: a block of tokens, then one of it.

        P(b) ∝ Σ_{v ∈ b} exp(logit_v),  P(v | b) ∝ exp(logit_v)

    About √V to a block, so 2√V Gumbel variables a row in the place of V; each level is drawn as
    `jax.random.categorical(mode="high")` draws, its tail included. In float32 at least. A row of −∞
    alone, or with a NaN, is no law: what comes back of it means nothing.
    """
    logits = jnp.asarray(logits)
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


@typed
def sample_mixture(
    key: Key,
    x_0: Int[ArrayLike, " *rows N"],
    x_1: Int[ArrayLike, " *rows N"],
    kappa_t: Float[ArrayLike, " *rows"],
) -> Int[Array, " *rows N"]:
    """`paths.sample_mixture` of many rows at once, one κ a row.   [P3]

        X_t^i = x_1^i with probability κ_t, else x_0^i

    A coin is a 16-bit number U against ⌊2¹⁶ κ⌋; only if they are equal do 16 more bits decide. So
    its probability is κ to 2⁻³², and few coins cost more than half a word. Under `jax.vmap` every
    coin's second half would be thrown.

    Raises:
        ValueError: if κ lies outside [0, 1].
    """
    check_interval("kappa_t", kappa_t, 0.0, 1.0)
    x_0, x_1 = jnp.asarray(x_0), jnp.asarray(x_1)
    kappa = jnp.asarray(kappa_t).astype(jnp.float32)
    scaled = kappa * _HALF
    high = jnp.floor(scaled)
    low = jnp.floor((scaled - high) * _HALF)
    high, low = (jnp.broadcast_to(part[..., None], x_1.shape) for part in (high, low))
    high, low = high.astype(jnp.uint32), low.astype(jnp.uint32)
    count = -(-x_1.size // _COINS)

    def padded(array: Array) -> Array:
        return jnp.pad(array.reshape(-1), (0, count * _COINS - x_1.size)).reshape(count, _COINS)

    def block(row: tuple[Array, Array, Array]) -> Array:
        key, high, low = row
        first_key, second_key = jax.random.split(key)
        coins = _halves(first_key)
        undecided = coins == high

        def decided() -> Array:
            return (coins < high) | (undecided & (_halves(second_key) < low))

        return jax.lax.cond(jnp.any(undecided), decided, lambda: coins < high)

    arrived = jax.lax.map(block, (jax.random.split(key, count), padded(high), padded(low)))
    arrived = arrived.reshape(-1)[: x_1.size].reshape(x_1.shape)
    return jnp.where(arrived, x_1, x_0)


def _halves(key: Key) -> Array:
    """Numbers in [0, 2¹⁶), two from a word."""
    words = jax.random.bits(key, (_COINS // 2,), jnp.uint32)
    return jnp.concatenate([words & (_HALF - 1), words >> 16])
