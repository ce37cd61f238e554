"""The same functions, arranged for speed: each equal to the clear form that defines it.

A clear form is one line of the mathematics. `experiments.systems.benchmarks` measures the speed of
each pair and checks it in the same run.

Losses are weighted sums over rows. The clear forms, `objectives.cross_entropy_loss` and
`objectives.generalized_kl_loss`, have the same inner form: before any log-softmax only the logits
at x_1 and x_t are gathered, and the gradient is the only V-wide array that is written
(`boundary.log_softmax_at`).   [L1, L2]

Draws read rows in blocks of about 2 MB, which stay in the cache.
"""

import jax
import jax.numpy as jnp

from dfm_jax.boundary import log_softmax_at, times
from dfm_jax.checks import check_tokens, require
from dfm_jax.types import Array, ArrayLike, Float, Int, Key, Scalar, typed

__all__ = ["cross_entropy", "generalized_kl", "sample_categorical"]

BLOCK_BYTES = 2**21  # of float32, what a core's second-level cache holds a good part of


def _rows_in_block(num_rows: int, num_columns: int) -> int:
    """The number of rows that make about 2 MB, at least one."""
    return max(1, min(num_rows, BLOCK_BYTES // (4 * num_columns)))


# ── losses ──────────────────────────────────────────────────────────────────────────────────────


@typed
def cross_entropy(
    logits: Float[ArrayLike, "N V"], x_1: Int[ArrayLike, " N"], weights: Float[ArrayLike, " N"]
) -> Scalar:
    """Σ_i w_i (−log p̂^i(x_1^i)), p̂ = softmax(logits), in nats.   [L1]

    The weights also hold the reduction, 1/N for a mean, because a factor after the sum would be one
    more pass over the gradient. The sum is in float32 or wider; the gradient has the logits' type.

    Raises:
        ValueError: if a token lies outside [0, V), the mask included.
    """
    num_tokens = jnp.shape(logits)[-1]
    check_tokens("x_1", x_1, num_tokens)
    (log_data,) = log_softmax_at(logits, x_1)
    return _weighted(weights, _known(x_1, num_tokens), log_data)


@typed
def generalized_kl(
    logits: Float[ArrayLike, "N V"],
    x_1: Int[ArrayLike, " N"],
    x_t: Int[ArrayLike, " N"],
    weights: Float[ArrayLike, " N"],
) -> Scalar:
    """The sum over i of w_i times the integrand of the evidence bound, in nats.   [L2]

        −[p̂^i(z^i) − δ_{x_1^i}(z^i) + (1 − δ_{x_1^i}(z^i)) log p̂^i(x_1^i)],  p̂ = softmax(logits)

    w_i is κ̇/(1−κ), from `schedules.rate`, times the weight of the reduction, such as 1/N. Where
    w_i = 0 the summand is 0. x_t may hold the mask id, V.

    Raises:
        ValueError: if an id of `x_1` lies outside [0, V), or one of `x_t` outside [0, V].
    """
    num_tokens = jnp.shape(logits)[-1]
    check_tokens("x_1", x_1, num_tokens)
    check_tokens("x_t", x_t, num_tokens + 1)
    masked, done = jnp.asarray(x_t) == num_tokens, jnp.asarray(x_t) == x_1
    log_now, log_data = log_softmax_at(logits, jnp.where(masked, 0, x_t), x_1)
    own = jnp.where(masked, 0.0, jnp.exp(log_now))
    inside = own + jnp.where(done, -1.0, log_data)
    return _weighted(weights, _known(x_1, num_tokens) & _known(x_t, num_tokens + 1), inside)


def _weighted(weights: Float[ArrayLike, " N"], known: Array, inside: Array) -> Scalar:
    """−Σ_i w_i · inside_i; NaN, the gradient too, where an id that nobody could check is none."""
    weights = jnp.asarray(weights, inside.dtype)
    weights = jnp.where(known | (weights == 0), weights, jnp.nan)
    return -jnp.sum(times(weights, inside))  # never 0 · ∞


def _known(tokens: Int[ArrayLike, " N"], num_states: int) -> Array:
    tokens = jnp.asarray(tokens)
    return (tokens >= 0) & (tokens < num_states)


# ── draws ───────────────────────────────────────────────────────────────────────────────────────


@typed
def sample_categorical(key: Key, logits: Float[ArrayLike, " *rows V"]) -> Int[Array, " *rows"]:
    """Draw v ~ softmax(logits) for each row: first a block of tokens, then a token of it.

        P(b) ∝ Σ_{v ∈ b} exp(logit_v),  P(v | b) ∝ exp(logit_v)

    A block has about √V tokens, so a row takes 2√V Gumbel variables instead of V. Each level is
    drawn as `jax.random.categorical(mode="high")` draws, with its tail, in float32 or wider.

    Raises:
        ValueError: if a row is not a distribution: if it holds NaN or +∞, or only −∞.
    """
    logits = jnp.asarray(logits)
    is_distribution = jnp.isfinite(jnp.max(logits, axis=-1))  # NaN spreads through a maximum
    rule = "Each row of `logits` must hold a finite number and no NaN, nor positive infinity"
    require(is_distribution, rule, logits)
    *shape, num_tokens = logits.shape
    rows = logits.reshape(-1, num_tokens)
    num_rows = rows.shape[0]
    size = _rows_in_block(num_rows, num_tokens)
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
    rows = jnp.pad(rows, ((0, 0), (0, -num_tokens % width)), constant_values=-jnp.inf)
    powers = jnp.exp(rows - jnp.max(rows, axis=-1, keepdims=True))
    masses = jnp.sum(powers.reshape(num_rows, -1, width), axis=-1)
    num_blocks = masses.shape[1]
    # One call for both levels: for few rows, calls of the generator are most of the time.
    noise = jax.random.gumbel(key, (num_rows, num_blocks + width), rows.dtype, mode="high")
    block = jnp.argmax(jnp.log(masses) + noise[:, :num_blocks], axis=1)
    inside = jnp.take_along_axis(rows.reshape(num_rows, -1, width), block[:, None, None], axis=1)
    return block * width + jnp.argmax(inside[:, 0] + noise[:, num_blocks:], axis=1)
