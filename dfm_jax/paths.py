"""Conditional and marginal probability paths: the distributions a sequence passes through.  [P1–P7]

A token path is p_t^i(· | x_0, x_1) at one time, one row per position: [N, S]. Given a finite list
of pairs (x_0, x_1) with log-masses log π, the functions of the second half give the marginal path
and its posteriors; they work for any token path. A `ValueError` names the argument if it is not a
distribution, not the logarithm of one, or not a token id. A pair of mass 0 may have any path.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.boundary import (
    at_tokens,
    log,
    log_sum_exp,
    log_sum_of_products,
    products_posterior,
    softmax,
    times,
    widened,
)
from dfm_jax.checks import (
    check_count,
    check_distribution,
    check_interval,
    check_log_distribution,
    check_num_states,
    check_tokens,
    require,
)
from dfm_jax.types import (
    Array,
    ArrayLike,
    Context,
    DType,
    Float,
    Int,
    Kappa,
    Key,
    Number,
    Probs,
    Scalar,
    StateProbs,
    Tokens,
    typed,
)

HIGHEST = jax.lax.Precision.HIGHEST


@typed
def point_mass(
    tokens: Tokens, num_states: int, *, name: str = "x_t", dtype: DType = float
) -> StateProbs:
    """δ_{x^i}(v), one row per position, in the `dtype` of the array that it will be added to.

    Raises:
        ValueError: if an id lies outside [0, num_states); the mask id −1 does.
    """
    check_tokens(name, tokens, num_states)
    return jax.nn.one_hot(tokens, num_states, dtype=dtype)


@typed
def pad_to_states(probs: Probs, num_states: int) -> StateProbs:
    """Extend a distribution over the V data tokens to the S states, with no mass on the mask."""
    num_tokens = jnp.shape(probs)[-1]
    check_num_states(num_states, num_tokens)
    check_distribution("probs", probs)
    return jnp.pad(probs, ((0, 0), (0, num_states - num_tokens)))


@typed
def mask_source(x_1: Tokens, context: Context, *, mask_id: int) -> Tokens:
    """x_0 = I ⊙ x_1 + (1 − I) ⊙ m: the context is given, the rest is masked.   [A2, A5]

    For any other source, draw x_0 with `sample_path` from its token distributions, and then put the
    tokens of x_1 at the context.

    Raises:
        ValueError: if `mask_id` is below 1, or if a token of `x_1` is the mask.
    """
    check_count("mask_id", mask_id)
    check_tokens("x_1", x_1, mask_id)
    return jnp.where(context, x_1, mask_id)


# ── conditional paths ───────────────────────────────────────────────────────────────────────────


@typed
def mixture_path(x_0: Tokens, x_1: Tokens, kappa_t: Kappa, *, num_states: int) -> StateProbs:
    """Each position is still at its source token, or already at its data token.

        p_t^i(v | x_0, x_1) = (1 − κ_t^i) δ_{x_0^i}(v) + κ_t^i δ_{x_1^i}(v)   [P3]

    With one κ per position, autoregression is a special case (A1). Source: DFM.

    Raises:
        ValueError: if κ lies outside [0, 1].
    """
    check_interval("kappa_t", kappa_t, 0.0, 1.0)
    kappa_t = jnp.broadcast_to(kappa_t, jnp.shape(x_0))[:, None]
    source = point_mass(x_0, num_states, name="x_0", dtype=kappa_t.dtype)
    data = point_mass(x_1, num_states, name="x_1", dtype=kappa_t.dtype)
    return (1 - kappa_t) * source + kappa_t * data


@typed
def convex_path(
    base_probs: Float[ArrayLike, "J N S"], kappa_t: Float[ArrayLike, "J N"]
) -> StateProbs:
    """A convex sum of base distributions h^j that do not depend on t.

        p_t^i(v | x_0, x_1) = Σ_j κ_t^{i,j} h^j(v | x_0, x_1),  κ ≥ 0,  Σ_j κ_t^{i,j} = 1   [P2]

    Raises:
        ValueError: if κ is not a distribution over j, or a row of `base_probs` is not one over
            states.
    """
    check_distribution("base_probs", base_probs)
    check_distribution("kappa_t", kappa_t, axis=0)
    return jnp.einsum("jn,jnv->nv", kappa_t, base_probs, precision=HIGHEST)


@typed
def metric_path(x_1: Tokens, distances: Float[ArrayLike, "V V"], beta_t: Number) -> Probs:
    """A path that reaches tokens near the target first, by a distance between tokens.

        p_t^i(v | x_1) ∝ exp(−β_t d(v, x_1^i))   [P6]

    β = 0 is uniform, β = ∞ is δ_{x_1}. The source is uniform, for every coupling. Source: KO.

    Raises:
        ValueError: if β < 0; if a distance is not finite, is not 0 from a token to itself, or is
            not above 0 between two tokens.
    """
    check_interval("beta_t", beta_t, 0.0, jnp.inf)
    check_interval("distances", distances, 0.0, jnp.inf, ends="[)")
    own = np.eye(distances.shape[0], dtype=bool)
    rule = "`distances` must be 0 from a token to itself and above 0 to every other token"
    require((distances == 0) == own, rule, distances)
    check_tokens("x_1", x_1, distances.shape[0])
    to_target = distances[:, x_1].T
    return jax.nn.softmax(-times(beta_t, to_target), axis=-1)  # ∞ · 0 is 0 at the target itself


@typed
def product_log_prob(x_t: Tokens, token_path: StateProbs) -> Scalar:
    """The log-probability, in nats, of a path that factorizes over positions.

        log p_t(x | x_0, x_1) = Σ_i log p_t^i(x^i | x_0, x_1)   [P1]

    Its derivative at p = 0 is infinite.
    """
    check_distribution("token_path", token_path)
    return jnp.sum(log(at_tokens(token_path, x_t)))


@typed
def sample_path(key: Key, token_path: StateProbs) -> Tokens:
    """Draw X_t ~ Π_i p_t^i(· | x_0, x_1), each position independently.   [P1]

    Raises:
        ValueError: if a row is not a distribution; a row of zeros would draw id 0, and a row with a
            NaN would draw the id of the NaN.
    """
    check_distribution("token_path", token_path)
    # float32 logits and mode="high": the default Gumbel draw loses the tail beyond 16 nats.
    logits = jnp.log(widened(token_path)).astype(jnp.float32)
    return jax.random.categorical(key, logits, axis=-1, mode="high")


@typed
def sample_mixture(key: Key, x_0: Tokens, x_1: Tokens, kappa_t: Kappa) -> Tokens:
    """`sample_path` of `mixture_path`, with one uniform number per position and no row of S states.

        X_t^i = x_1^i with probability κ_t^i, else x_0^i   [P3]

    Raises:
        ValueError: if κ lies outside [0, 1], or an id is below 0.
    """
    check_interval("kappa_t", kappa_t, 0.0, 1.0)
    check_tokens("x_0", x_0)
    check_tokens("x_1", x_1)
    kappa = widened(kappa_t)  # a bfloat16 uniform number is a multiple of 1/128
    return jnp.where(_uniforms(key, jnp.shape(x_1)[0], kappa.dtype) < kappa, x_1, x_0)


def _uniforms(key: Key, count: int, dtype: DType) -> Array:
    """`jax.random.uniform`, bit for bit: in [0, 1), so that κ = 1 arrives always.

    On a CPU jax runs the rounds of threefry as a loop over arrays. Here they are written out, so
    that they become one pass with the comparison.
    """
    apart = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    if jax.random.key_impl(key) != "threefry2x32" or dtype != jnp.float32 or not apart:
        return jax.random.uniform(key, (count,), dtype)
    jax.random.bits(key, (0,))  # so that a debugger of keys sees that this one is used
    places = jnp.arange(count, dtype=jnp.uint32)
    first, second = _threefry(jax.random.key_data(key), jnp.zeros_like(places), places)
    one = np.float32(1).view(np.uint32)  # 23 bits after it are a number in [1, 2)
    return jax.lax.bitcast_convert_type(((first ^ second) >> 9) | one, jnp.float32) - 1


def _threefry(key: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Threefry-2x32 of 20 rounds, which defines the numbers of `jax.random`."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    first, second = first + keys[0], second + keys[1]
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            first = first + second
            second = first ^ ((second << turn) | (second >> (32 - turn)))
        first = first + keys[(group + 1) % 3]
        second = second + keys[(group + 2) % 3] + np.uint32(group + 1)
    return first, second


# ── the marginal path of a finite list of pairs, and its posteriors ─────────────────────────────


@typed
def marginal_log_prob(
    x_t: Tokens, token_paths: Float[ArrayLike, "P N S"], log_coupling: Float[ArrayLike, " P"]
) -> Scalar:
    """The distribution of the state when pairs are drawn from π, in nats; −∞ off the support.

        p_t(x) = Σ_{x_0, x_1} p_t(x | x_0, x_1) π(x_0, x_1)   [P4]

    Off the support, its derivative in a probability is infinite if all other factors are above 0.
    """
    check_log_distribution("log_coupling", log_coupling)
    check_distribution("token_paths", token_paths, read=log_coupling > -jnp.inf)
    here = jax.vmap(at_tokens, in_axes=(0, None))(token_paths, x_t)
    return log_sum_of_products(log_coupling, here)


@typed
def pair_posterior(
    x_t: Tokens, token_paths: Float[ArrayLike, "P N S"], log_coupling: Float[ArrayLike, " P"]
) -> Float[Array, " P"]:
    """The distribution of the pair that x_t came from; undefined, and NaN, where p_t(x_t) = 0.

    p_t(x_0, x_1 | z) = p_t(z | x_0, x_1) π(x_0, x_1) / p_t(z)   [P5]
    """
    check_log_distribution("log_coupling", log_coupling)
    check_distribution("token_paths", token_paths, read=log_coupling > -jnp.inf)
    here = jax.vmap(at_tokens, in_axes=(0, None))(token_paths, x_t)
    return products_posterior(log_coupling, here)


@typed
def token_posterior(
    pair_probs: Float[ArrayLike, " P"], tokens: Int[ArrayLike, "P N"], *, num_tokens: int
) -> Probs:
    """The token marginals of a posterior over pairs; `tokens` are the pairs' x_1 (or their x_0).

    p_{1|t}^i(v | z) = Σ_p p_t(p | z) 1[x_1^i(p) = v]   [P5]
    """
    check_distribution("pair_probs", pair_probs)
    check_tokens("tokens", tokens, num_tokens)
    return _token_marginals(pair_probs, tokens, num_tokens)


def _token_marginals(pair_probs: Array, tokens: Array, num_tokens: int) -> Array:
    at = jax.vmap(lambda x: point_mass(x, num_tokens, dtype=pair_probs.dtype))(tokens)
    return jnp.einsum("p,pnv->nv", pair_probs, at, precision=HIGHEST)


@typed
def source_posterior(
    posterior: Probs, source: StateProbs, x_t: Tokens, kappa_t: Kappa
) -> StateProbs:
    """The posterior of the source token, if all positions of X_0 are independent, also of X_1.

        p_{0|t}^i(v | z) = (1 − a) δ_{z^i}(v)
            + a p^i(v) [(1 − κ) 1[v = z^i] + κ] / [(1 − κ) p^i(z^i) + κ],
        a = p_{1|t}^i(z^i | z)   [P5]

    It holds for the mixture path: a token that differs from x_1's has not moved. It is undefined
    where p_t(z) = 0.

    Raises:
        ValueError: if κ lies outside [0, 1], or a row is not a distribution.
    """
    check_interval("kappa_t", kappa_t, 0.0, 1.0)
    check_distribution("posterior", posterior)
    check_distribution("source", source)
    source = jnp.asarray(source)
    stay = point_mass(x_t, source.shape[-1], dtype=source.dtype)
    arrived = jnp.sum(stay * pad_to_states(posterior, source.shape[-1]), axis=-1, keepdims=True)
    kappa = jnp.broadcast_to(jnp.asarray(kappa_t, source.dtype), jnp.shape(x_t))[:, None]
    at_z = jnp.sum(stay * source, axis=-1, keepdims=True)
    mass = (1 - kappa) * at_z + kappa  # p_t^i(z^i | x_1^i = z^i): 0 only where a is 0
    came = source * ((1 - kappa) * stay + kappa) / jnp.where(mass == 0, 1.0, mass)
    return (1 - arrived) * stay + arrived * came


@typed
def revealed_log_prob(
    x_t: Tokens, x_1: Int[ArrayLike, "P N"], log_data: Float[ArrayLike, " P"], *, mask_id: int
) -> Scalar:
    """log q(revealed tokens of x_t) for an all-mask source, in nats; it does not use t or κ.   [P7]

    Raises:
        ValueError: if `x_1` holds a mask, or `x_t` an id above the mask; if `log_data` are not the
            logarithms of a distribution.
    """
    check_log_distribution("log_data", log_data)
    return log_sum_exp(jnp.where(_agrees(x_t, x_1, mask_id), log_data, -jnp.inf))


@typed
def revealed_posterior(
    x_t: Tokens, x_1: Int[ArrayLike, "P N"], log_data: Float[ArrayLike, " P"], *, mask_id: int
) -> Probs:
    """The denoising posterior of an all-mask source; it needs neither t nor κ.

        p_{1|t}^i(v | z) = q(X^i = v | the revealed tokens of z)   [P7]

    It is NaN where q gives the revealed tokens probability 0.
    """
    check_log_distribution("log_data", log_data)
    pair_probs = softmax(jnp.where(_agrees(x_t, x_1, mask_id), log_data, -jnp.inf))
    return _token_marginals(pair_probs, jnp.asarray(x_1), mask_id)


def _agrees(x_t: Tokens, x_1: Int[ArrayLike, "P N"], mask_id: int) -> Array:
    check_count("mask_id", mask_id)
    check_tokens("x_t", x_t, mask_id + 1)
    check_tokens("x_1", x_1, mask_id)
    z = jnp.asarray(x_t)[None, :]
    return jnp.all((x_1 == z) | (z == mask_id), axis=-1)
