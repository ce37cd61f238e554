"""The same functions, arranged for speed: each equal to the clear form that defines it.

A clear form is one line of the mathematics. A fast form reads rows of V numbers only once, in
blocks of about 2 MB that stay in the cache, or never. The caller chooses which form runs.
`experiments.systems.benchmarks` measures the speed of each pair and checks it in the same run.

The gradient of a loss is made in the forward pass, a block of rows at a time. Before any
log-softmax only the logits at x_1 and x_t are gathered, and the gradient is the only V-wide array
that is written. The clear forms are `objectives.cross_entropy_loss` and
`objectives.generalized_kl_loss`.   [L1, L2]
"""

from functools import partial

import jax
import jax.numpy as jnp

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
    check_tokens("x_1", x_1, jnp.shape(logits)[-1])
    return _summed(jnp.asarray(logits), jnp.asarray(x_1), jnp.asarray(x_1), weights, False)


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
    return _summed(jnp.asarray(logits), jnp.asarray(x_1), jnp.asarray(x_t), weights, True)


def _summed(logits: Array, x_1: Array, x_t: Array, weights: Array, stays: bool) -> Array:
    weights = jnp.asarray(weights, jnp.promote_types(logits.dtype, jnp.float32))
    # Where nobody could check them, an id such as −100 must not have a finite gradient.
    num_tokens = logits.shape[-1]
    known = (x_1 >= 0) & (x_1 < num_tokens) & (x_t >= 0) & (x_t <= num_tokens)
    weights = jnp.where(known | (weights == 0), weights, jnp.nan)
    return jnp.sum(_terms(logits, x_1, x_t, weights, stays))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _terms(logits: Array, x_1: Array, x_t: Array, weights: Array, stays: bool) -> Array:
    wide = logits.astype(weights.dtype)
    log_total = jax.nn.logsumexp(wide, axis=-1)
    return _weighted(weights, _inside(wide, x_1, x_t, log_total, stays)[0])


def _weighted(weights: Array, inside: Array) -> Array:
    return jnp.where(weights == 0, 0.0, -weights * inside)  # never 0 · ∞


def _inside(
    rows: Array, x_1: Array, x_t: Array, log_total: Array, stays: bool
) -> tuple[Array, Array, Array]:
    """The bracket of each row, p̂(z), and 1 − δ_{x_1}(z); for a cross-entropy p̂(z) = δ = 0."""
    log_data = _at(rows, x_1) - log_total
    if not stays:
        return log_data, jnp.zeros_like(log_data), jnp.ones_like(log_data)
    masked = x_t == rows.shape[-1]
    own = jnp.where(masked, 0.0, jnp.exp(_at(rows, jnp.where(masked, 0, x_t)) - log_total))
    moves = (x_t != x_1).astype(rows.dtype)
    # Never 0 · ∞: a token that is there already does not pay for its logarithm.
    jump = jnp.where(moves == 1, log_data, -1.0)
    return own + jump, own, moves


def _at(rows: Array, tokens: Array) -> Array:
    return jnp.take_along_axis(rows, tokens[:, None], axis=-1)[:, 0]


def _forward(
    logits: Array, x_1: Array, x_t: Array, weights: Array, stays: bool
) -> tuple[Array, tuple[Array, Array]]:
    num_rows, num_tokens = logits.shape
    size = _rows_in_block(num_rows, num_tokens)
    columns = jnp.arange(num_tokens)[None]

    def block(index: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        gradient, inside = found
        first = jnp.minimum(index * size, num_rows - size)  # the last one may overlap: the same

        def here(array: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(array, first, size)

        rows = here(logits).astype(weights.dtype)
        data, now, weight = map(here, (x_1, x_t, weights))
        top = jnp.max(rows, axis=-1)
        powers = jnp.exp(rows - top[:, None])
        total = jnp.sum(powers, axis=-1)
        bracket, own, moves = _inside(rows, data, now, top + jnp.log(total), stays)
        slope = powers * (weight * (own + moves) / total)[:, None]
        slope = slope - jnp.where(columns == data[:, None], (weight * moves)[:, None], 0.0)
        if stays:
            slope = slope - jnp.where(columns == now[:, None], (weight * own)[:, None], 0.0)

        def put(array: Array, part: Array) -> Array:
            part = part.astype(array.dtype)
            return jax.lax.dynamic_update_slice_in_dim(array, part, first, axis=0)

        return put(gradient, slope), put(inside, bracket)

    nothing = jnp.zeros_like(logits), jnp.zeros_like(weights)
    gradient, inside = jax.lax.fori_loop(0, -(-num_rows // size), block, nothing)
    return _weighted(weights, inside), (gradient, -inside)


def _backward(stays: bool, kept: tuple[Array, Array], cotangent: Array) -> tuple:
    gradient, terms = kept
    # Of a plain sum the cotangent is 1, and the compiler drops this product.
    return (gradient * cotangent[:, None].astype(gradient.dtype), None, None, terms * cotangent)


_terms.defvjp(_forward, _backward)


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
    block_key, token_key = jax.random.split(key)
    rows = jnp.pad(rows, ((0, 0), (0, -num_tokens % width)), constant_values=-jnp.inf)
    powers = jnp.exp(rows - jnp.max(rows, axis=-1, keepdims=True))
    masses = jnp.sum(powers.reshape(num_rows, -1, width), axis=-1)
    block = jax.random.categorical(block_key, jnp.log(masses), mode="high")
    inside = jnp.take_along_axis(rows.reshape(num_rows, -1, width), block[:, None, None], axis=1)
    return block * width + jax.random.categorical(token_key, inside[:, 0], mode="high")
