"""Arithmetic that is right where a probability is exactly 0, its derivatives too.   [section 0]

Automatic differentiation multiplies slopes. At the boundary of a distribution some slopes are
infinite, for example those of log p and of p log p, and 0 · ∞ is not a number. So one impossible
token can make the whole gradient NaN, even if no loss reads that token. A product over positions is
worse: its derivative at 0 is the product of the other factors, which cannot be found as out / x.
The mathematics forms such expressions with the functions below:

    0 · ∞ = 0,   0 log 0 = 0,   an empty sum has the logarithm −∞ and moves with nothing.

Nothing is clipped and no epsilon is added. Inside the domain each function is the plain formula. An
infinite slope comes out as ±∞ if somebody reads it. First derivatives are right; second derivatives
at the boundary mean nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_tokens
from dfm_jax.types import Array, ArrayLike, Float, StateProbs, Tokens, typed

__all__ = [
    "at_tokens",
    "finite_at_zero_mass",
    "log",
    "log_softmax",
    "log_softmax_at",
    "log_sum_exp",
    "log_sum_of_products",
    "products_posterior",
    "rise",
    "softmax",
    "times",
    "widened",
    "x_log_ratio",
]


@typed
def widened(values: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """The values as float32 if their type is narrower: float16 sums overflow, bfloat16's are rough.

    So what is computed or drawn from them is what their copy in float32 gives.
    """
    values = jnp.asarray(values)
    return values.astype(jnp.float32) if jnp.finfo(values.dtype).bits < 32 else values


def rise(slope: Array, run: Array) -> Array:
    """slope · run, linear in `run`, and 0 where `run` is 0, even if the slope is infinite.

    Derivatives need this. An infinite slope is a product of two finite numbers, and the first of
    them times 0 is 0. So the rule holds forward and, transposed, backward.
    """
    infinite = jnp.isinf(slope)
    largest = jnp.asarray(jnp.finfo(slope.dtype).max, slope.dtype)
    once = jnp.where(infinite, jnp.sign(slope) * largest, slope)
    return (run * once) * jnp.where(infinite, largest, 1)


@jax.custom_jvp
def log(x: ArrayLike) -> Array:
    """log x; it is −∞ at 0, where its derivative is infinite: +∞."""
    return jnp.log(x)


@log.defjvp
def _log_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    x = jnp.asarray(primals[0])
    slope = jnp.where(x == 0, jnp.inf, 1 / jnp.where(x == 0, 1.0, x))
    return log(x), rise(slope, tangents[0])


@jax.custom_jvp
def times(x: ArrayLike, y: ArrayLike) -> Array:
    """x y, of equal shapes or with a number; 0 where x or y is 0, even if the other is infinite."""
    return jnp.where((x == 0) | (y == 0), 0.0, x * y)


@times.defjvp
def _times_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (x, y), (dx, dy) = map(jnp.asarray, primals), tangents
    by_x = jnp.where((x == 0) & jnp.isnan(y), 0.0, y)
    by_y = jnp.where((y == 0) & jnp.isnan(x), 0.0, x)
    return times(x, y), rise(by_x, dx) + rise(by_y, dy)


@jax.custom_jvp
def x_log_ratio(x: Array, y: Array) -> Array:
    """x log(x/y) of equal shapes; it is 0 where x = 0, and +∞ where x > 0 = y.

    Its derivative in x is log(x/y) + 1. That is infinite in two cases: −∞ where x = 0 < y, and +∞
    where y = 0. Its derivative in y is −x/y, and 0 where x = 0.
    """
    none, never = x <= 0, y <= 0  # a NaN is neither: it must show
    return jnp.where(none, 0.0, x * jnp.where(never, jnp.inf, _log_ratio(x, y)))


def _log_ratio(x: Array, y: Array) -> Array:
    return jnp.log(jnp.where(x <= 0, 1.0, x)) - jnp.log(jnp.where(y <= 0, 1.0, y))


@x_log_ratio.defjvp
def _x_log_ratio_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    none, never = x <= 0, y <= 0
    by_x = jnp.where(never, jnp.inf, jnp.where(none, -jnp.inf, _log_ratio(x, y) + 1))
    by_y = jnp.where(none, 0.0, jnp.where(never, -jnp.inf, -x / jnp.where(never, 1.0, y)))
    return x_log_ratio(x, y), rise(by_x, dx) + rise(by_y, dy)


def finite_at_zero_mass(weights: Array, values: Array) -> Array:
    """The values, but 0 in place of a value that is not finite and has the weight 0.

    A finite value stays, because it is the derivative of the sum Σ w v in its weight. Where a value
    was replaced, that derivative is 0.
    """
    return jnp.where((weights == 0) & ~jnp.isfinite(values), 0.0, values)


# ── sums in log space ───────────────────────────────────────────────────────────────────────────


def log_sum_exp(log_terms: Array, axis: int = -1) -> Array:
    """log Σ exp of the entries; −∞ where all are −∞, and then there is no derivative."""
    log_terms = jnp.asarray(log_terms)
    never = jnp.all(log_terms == -jnp.inf, axis=axis, keepdims=True)
    total = jax.nn.logsumexp(widened(jnp.where(never, 0.0, log_terms)), axis=axis, keepdims=True)
    return jnp.squeeze(jnp.where(never, -jnp.inf, total.astype(log_terms.dtype)), axis)


def softmax(log_terms: Array) -> Array:
    """exp of the entries over their sum; NaN where all are −∞, and then there is no derivative."""
    log_terms = jnp.asarray(log_terms)
    never = jnp.all(log_terms == -jnp.inf, axis=-1, keepdims=True)
    shares = jax.nn.softmax(widened(jnp.where(never, 0.0, log_terms)), axis=-1)
    return jnp.where(never, jnp.nan, shares.astype(log_terms.dtype))


@jax.jit
def log_softmax(logits: ArrayLike) -> Array:
    """logits − log Σ exp(logits) over the last axis, in float32 or wider; −∞ where all are −∞.

    A row of −∞ has no derivative. Logarithms of a distribution stay the same, up to rounding.
    """
    logits = widened(logits)
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    never = largest == -jnp.inf
    shifted = jnp.where(never, -jnp.inf, logits - jnp.where(never, 0.0, largest))
    total = jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True)
    return shifted - jnp.log(jnp.where(never, 1.0, total))


@jax.jit
def log_softmax_at(logits: ArrayLike, *tokens: ArrayLike) -> tuple[Array, ...]:
    """The entries of `log_softmax` at some tokens of each row, [N] for each [N], and no row of V.

        ∂ log p̂(x) / ∂ logit_v = 1[v = x] − p̂(v)

    The derivative is formed in float32 or wider and rounded once, to the type of the logits. On a
    CPU the exponentials of float32 rows lie where the gradient will; those of narrower rows are
    the one other array of V columns. Where nobody could check a token, an id outside the row has
    NaN, and no derivative; a cotangent of NaN passes.
    """
    return _log_softmax_at(jnp.asarray(logits), tuple(map(jnp.asarray, tokens)))


@jax.custom_jvp
def _log_softmax_at(logits: Array, tokens: tuple[Array, ...]) -> tuple[Array, ...]:
    return _read_at(logits, tokens, *_normalizer(logits))


@_log_softmax_at.defjvp
def _log_softmax_at_jvp(
    primals: tuple[Array, tuple[Array, ...]], tangents: tuple[Array, Any]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    (logits, tokens), change = primals, widened(tangents[0])
    never, largest, total = _normalizer(logits)
    # Σ_v e_v dlogits_v / Σ_v e_v: a factor after the sum is no pass over the rows.
    mean = jnp.sum(jnp.exp(widened(logits) - largest[:, None]) * change, axis=-1) / total
    ids = jnp.arange(logits.shape[-1])

    def rise_at(one: Array) -> Array:
        # A sum with one entry: transposed, it is part of the pass that writes the gradient.
        own = jnp.sum(jnp.where(ids[None] == one[:, None], change, 0.0), axis=-1)
        own = jnp.where(never, 0.0, own - mean)
        return jnp.where(_is_token(one, logits), own, 0.0 * own)

    return _read_at(logits, tokens, never, largest, total), tuple(map(rise_at, tokens))


def _normalizer(logits: Array) -> tuple[Array, Array, Array]:
    """Whether a row is −∞ throughout, its largest entry, and Σ exp of the entries less that."""
    largest = widened(jax.lax.stop_gradient(jnp.max(logits, axis=-1)))
    never = largest == -jnp.inf
    largest = jnp.where(never, 0.0, largest)
    total = jnp.sum(jnp.exp(widened(logits) - largest[:, None]), axis=-1)
    return never, largest, jnp.where(never, 1.0, total)


def _read_at(
    logits: Array, tokens: tuple[Array, ...], never: Array, largest: Array, total: Array
) -> tuple[Array, ...]:
    rest = jnp.log(total)

    def at(one: Array) -> Array:
        own = jnp.take_along_axis(logits, one[:, None], axis=-1, mode="clip")[:, 0]
        # One after the other: the sum of both would be rounded to the size of the logits.
        own = jnp.where(never, -jnp.inf, widened(own) - largest - rest)
        return jnp.where(_is_token(one, logits), own, jnp.nan)

    return tuple(map(at, tokens))


def _is_token(tokens: Array, logits: Array) -> Array:
    return (tokens >= 0) & (tokens < logits.shape[-1])


# ── sums of products ────────────────────────────────────────────────────────────────────────────


@typed
def at_tokens(token_path: StateProbs, x_t: Tokens) -> Float[Array, " N"]:
    """p^i(x^i): the probability of the token at each position, which is a factor of the product."""
    check_tokens("x_t", x_t, jnp.shape(token_path)[-1])
    return jnp.take_along_axis(jnp.asarray(token_path), jnp.asarray(x_t)[:, None], axis=-1)[:, 0]


@typed
def log_sum_of_products(
    log_weights: Float[ArrayLike, " P"], factors: Float[ArrayLike, "P N"]
) -> Float[Array, ""]:
    """log Σ_p w_p Π_i f_{p,i}, in nats, because products of token probabilities underflow.

    Its derivative in a factor is the weighted product of the others over the sum, also where the
    factor is 0. It is infinite, +∞, where the sum is 0 and the other factors are not. If the weight
    is 0, the factors may be anything.
    """
    terms, log_others, zeros = _products(log_weights, factors)
    total = log_sum_exp(terms)
    return total + jnp.sum(times(_share(log_others, total), zeros))


@typed
def products_posterior(
    log_weights: Float[ArrayLike, " P"], factors: Float[ArrayLike, "P N"]
) -> Float[Array, " P"]:
    """r_p = w_p Π_i f_{p,i} / Σ_q w_q Π_i f_{q,i}; where the sum is 0, NaN without a derivative."""
    terms, log_others, zeros = _products(log_weights, factors)
    total = log_sum_of_products(log_weights, factors)
    never = total == -jnp.inf
    total = jnp.where(never, 0.0, total)
    shares = jnp.exp(terms - total) + times(_share(log_others, total), zeros)
    return jnp.where(never, jnp.nan, shares)


def _products(log_weights: ArrayLike, factors: ArrayLike) -> tuple[Array, Array, Array]:
    """log w_p Π_i f_{p,i}; where just one factor is 0, the logarithm of the others and that zero.

    The zero is kept as it is: its value is 0, and it changes with the factor.
    """
    log_weights, factors = jnp.asarray(log_weights), jnp.asarray(factors)
    dead = log_weights == -jnp.inf
    factors = jnp.where(dead[:, None], 1.0, factors)
    is_zero = factors == 0
    count = jnp.sum(is_zero, axis=-1)
    log_product = log_weights + jnp.sum(jnp.log(jnp.where(is_zero, 1.0, factors)), axis=-1)
    one = (count == 1) & ~dead
    zero = jnp.sum(jnp.where(is_zero & one[:, None], factors, 0.0), axis=-1)
    return (
        jnp.where((count == 0) & ~dead, log_product, -jnp.inf),
        jnp.where(one, log_product, -jnp.inf),
        zero,
    )


def _share(log_others: Array, total: Array) -> Array:
    """By how much the logarithm of the sum grows when the zero factor of a product grows."""
    grows = jnp.exp(jnp.where(log_others == -jnp.inf, 0.0, log_others) - total)
    return jax.lax.stop_gradient(jnp.where(log_others == -jnp.inf, 0.0, grows))
