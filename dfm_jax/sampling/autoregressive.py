"""Drawing from a left-to-right model, token by token, from the rows that it states.   [S1]

Ancestral sampling is exact for the left-to-right table. A decoder remembers the prefix. The network
decides what a cache costs; the tokens that are drawn are the same with and without a cache.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.boundary import widened
from dfm_jax.checks import (
    check_count,
    check_interval,
    check_log_distribution,
    check_tokens,
    require,
)
from dfm_jax.fast import sample_categorical
from dfm_jax.interfaces import Decoder
from dfm_jax.types import Array, ArrayLike, Bool, Float, Int, Key, Number, typed

Draw = Literal["clear", "two_level"]
NO_DISTRIBUTION = "The logits of a decoder must hold a finite number and no NaN for every row"


class Sample(NamedTuple):
    """The rows that were drawn. After the length of a row come −1, which are not tokens."""

    tokens: Int[Array, "B L"]  # the prompt, then the drawn tokens; a stop token is the last
    lengths: Int[Array, " B"]  # prompt and drawn tokens
    stopped: Bool[Array, " B"]  # by a stop token, not by the limit
    valid: Bool[
        Array, " B"
    ]  # False: the network's logits were no distribution (all −∞, NaN), and it froze


class _State(NamedTuple):
    step: Array
    sample: Sample
    cache: Any


@typed
def next_token_log_probs(
    logits: Float[ArrayLike, " V"],
    *,
    temperature: Number = 1.0,
    top_k: int | None = None,
    top_p: Number | None = None,
) -> Float[Array, " V"]:
    """The distribution to draw from, in nats, after temperature, then top-k, then top-p.

        q(v) ∝ exp(logit_v / τ) on the tokens that are kept   [S1, B6]

    τ = 0 is defined as the limit τ → 0, the point mass on the largest logit; ties go to the lower
    id. Top-k keeps the k largest probabilities. Top-p keeps the largest ones, as few as have mass p
    or more. With any of the three, the distribution is no longer the model's own.

    Raises:
        ValueError: if τ ≥ 0, 1 ≤ k ≤ V or 0 < p ≤ 1 does not hold; if the logits are not a
            distribution, because they hold NaN or +∞, or only −∞.
    """
    logits = jnp.asarray(logits)
    _check_truncation(temperature, top_k, top_p, logits.shape[0])
    rule = "`logits` must hold a finite number and no NaN, nor positive infinity"
    require(_is_probs(logits), rule, logits)
    return truncated_probs(logits, temperature, top_k, top_p)


def _is_probs(logits: Array) -> Array:
    return jnp.isfinite(jnp.max(logits, axis=-1))  # NaN spreads through a maximum


def truncated_probs(
    logits: Array, temperature: Number, top_k: int | None, top_p: Number | None
) -> Array:
    """`next_token_log_probs` without checks, for logits and options that were checked before."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    frozen = temperature == 0
    # Shifted first: a small τ must send the others to −∞, not the largest to +∞.
    shifted = (logits - jnp.max(logits)) / jnp.where(frozen, 1.0, temperature)
    log_probs = jax.nn.log_softmax(shifted)
    if top_k is not None:
        _, largest = jax.lax.top_k(log_probs, top_k)
        log_probs = _kept(log_probs, jnp.zeros(logits.shape, bool).at[largest].set(True))
    if top_p is not None:
        log_probs = _kept(log_probs, _nucleus(log_probs, top_p))
    # The first of the largest, as `argmax` finds it, which is slow on a CPU.
    ids = jnp.arange(logits.shape[0])
    largest = ids == jnp.min(jnp.where(logits == jnp.max(logits), ids, logits.shape[0]))
    return jnp.where(frozen, jnp.where(largest, 0.0, -jnp.inf), log_probs)


def _nucleus(log_probs: Array, mass: Number) -> Array:
    order = jnp.argsort(-log_probs, stable=True)
    reached = jax.lax.cumlogsumexp(log_probs[order])
    before = jnp.concatenate([jnp.full(1, -jnp.inf, log_probs.dtype), reached[:-1]])
    # Rounding may reach 1 before the last token: then p = 1 would cut a tail that belongs to it.
    keep = (before < jnp.log(jnp.asarray(mass, log_probs.dtype))) | (mass >= 1)
    return jnp.zeros(log_probs.shape, bool).at[order].set(keep)


def _kept(log_probs: Array, keep: Array) -> Array:
    return jax.nn.log_softmax(jnp.where(keep, log_probs, -jnp.inf))


@typed
def sample_next_token(key: Key, log_probs: Float[ArrayLike, " V"]) -> Int[Array, ""]:
    """Draw one token from a distribution in nats, also from its tail.  [S1]

    The usual float32 draw never gives a token of probability under 1e-7; this one does.

    Raises:
        ValueError: if it is not a distribution; a row with NaN, or with only −∞, would give id 0.
    """
    check_log_distribution("log_probs", log_probs)
    return _drawn(key, jnp.asarray(log_probs))


def _drawn(key: Key, log_probs: Array) -> Array:
    return jax.random.categorical(key, widened(log_probs), mode="high")


@typed
def sample_autoregressive(
    key: Key,
    params: Any,
    decoder: Decoder,
    prompts: Int[ArrayLike, "B P"],
    lengths: Int[ArrayLike, " B"],
    *,
    max_new: int,
    temperature: Number = 1.0,
    top_k: int | None = None,
    top_p: Number | None = None,
    stop_tokens: tuple[int, ...] = (),
    prefixes: Any = None,
    draw: Draw = "clear",
) -> Sample:
    """Continue every prompt by up to `max_new` tokens, each from its next-token distribution.  [S1]

    A row stops after its first stop token and does not change from then on. Draw s of row b uses
    the key folded with b and then with s, so it does not depend on the other rows.

    Args:
        key: One key for all rows.
        params: The parameters of the decoder's network.
        decoder: Keep one decoder and do not make one per call: the function is compiled once per
            decoder, shape and `top_k`.
        prompts: The prompt of each row, at its front; tokens after its length are not read.
        lengths: The length of each prompt, at least 1.
        max_new: The largest number of tokens to draw for a row, at least 1.
        temperature: See `next_token_log_probs`; 0 takes the most probable token.
        top_k: The number of tokens to keep at each draw.
        top_p: The mass to keep at each draw.
        stop_tokens: Ids in [0, V) after which a row ends.
        prefixes: What stands before the prompts, [B, …], for a decoder that reads it.
        draw: "two_level" draws with `fast.sample_categorical`: other tokens, of the same
            distribution.

    Raises:
        ValueError: if a length lies outside [1, P], or an id outside [0, S); if an option is
            outside its domain; if the number of prefixes is wrong; if the logits of a row are not a
            distribution (under an outer jit, `valid` is False instead).
    """
    cut = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    stops = {"max_new": max_new, "stop_tokens": stop_tokens}
    prompts, lengths = checked_prompts(
        params, decoder, prompts, lengths, **cut, **stops, prefixes=prefixes
    )
    keys = row_keys(key, prompts.shape[0])
    rows = (prompts, lengths, temperature, top_p, prefixes)
    sample = sample_rows(keys, params, *rows, decoder=decoder, top_k=top_k, draw=draw, **stops)
    require(sample.valid, NO_DISTRIBUTION, sample.valid, name="valid")
    return sample


def checked_prompts(
    params: Any,
    decoder: Decoder,
    prompts: Array,
    lengths: Array,
    *,
    max_new: int,
    temperature: Number,
    top_k: int | None,
    top_p: Number | None,
    stop_tokens: tuple[int, ...],
    prefixes: Any,
) -> tuple[Array, Array]:
    """The prompts, 0 after their lengths, and the lengths, if all arguments can be used."""
    prompts, lengths = jnp.asarray(prompts), jnp.asarray(lengths)
    width = prompts.shape[1]
    if decoder.read_prefix is None:
        rule = "`prefixes` must be None if `decoder` reads no prefix"
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(prefixes)]
        require(prefixes is None, rule, shapes, name="shapes of prefixes")
    else:
        require(
            prefixes is not None, "`prefixes` must be given if `decoder` reads a prefix", prefixes
        )
    for leaf in jax.tree.leaves(prefixes):
        rule = f"`prefixes` must have {prompts.shape[0]} rows, one for each prompt"
        good = jnp.shape(leaf)[:1] == prompts.shape[:1]
        require(good, rule, jnp.shape(leaf), name="prefixes.shape")
    check_count("max_new", max_new)
    check_interval("lengths", lengths, 1, width)
    inside = jnp.arange(width)[None] < lengths[:, None]
    prompts = jnp.where(inside, prompts, 0)
    check_tokens("prompts", prompts, decoder.num_states)
    one = jax.ShapeDtypeStruct((1,), prompts.dtype)
    shape, _ = jax.eval_shape(lambda p, x: decoder.extend(p, decoder.init_cache(1), x), params, one)
    _check_truncation(temperature, top_k, top_p, shape.shape[-1])
    check_tokens("stop_tokens", jnp.array(stop_tokens, int), shape.shape[-1])
    return prompts, lengths


def row_keys(key: Key, num_rows: int) -> Key:
    """The key of each row b, which does not depend on the other rows."""
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_rows))


@partial(jax.jit, static_argnames=("decoder", "max_new", "top_k", "stop_tokens", "draw"))
def sample_rows(
    keys: Key,
    params: Any,
    prompts: Array,
    lengths: Array,
    temperature: Number,
    top_p: Number | None,
    prefixes: Any,
    *,
    decoder: Decoder,
    max_new: int,
    top_k: int | None,
    stop_tokens: tuple[int, ...],
    draw: Draw = "clear",
) -> Sample:
    """The work of the samplers after all is checked, with one key for each row."""
    num_rows, width = prompts.shape
    rows = jnp.arange(num_rows)
    extend = jax.vmap(partial(decoder.extend, params))
    # Without the check: behind its stop token a row need have no distribution.
    probs = jax.vmap(partial(truncated_probs, temperature=temperature, top_k=top_k, top_p=top_p))

    token = jax.random.categorical if draw == "clear" else sample_categorical
    mode = {"mode": "high"} if draw == "clear" else {}

    def drawn(step: Array | int, sample: Sample, logits: Array) -> Sample:
        going = sample.valid & ~sample.stopped
        possible = _is_probs(logits)
        own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
        tokens = jax.vmap(partial(token, **mode))(own, probs(logits))
        writes = going & possible
        at = jnp.where(writes, sample.lengths, sample.tokens.shape[1])  # beyond: dropped
        written = sample.tokens.at[rows, at].set(tokens.astype(prompts.dtype), mode="drop")
        stops = jnp.isin(tokens, jnp.array(stop_tokens, tokens.dtype))
        return Sample(
            written,
            sample.lengths + writes,
            sample.stopped | (writes & stops),
            sample.valid & (possible | ~going),
        )

    def step(state: _State) -> _State:
        sample = state.sample
        going = sample.valid & ~sample.stopped
        last = jnp.take_along_axis(sample.tokens, sample.lengths[:, None] - 1, axis=1)
        logits, cache = extend(state.cache, last, going.astype(int))
        return _State(state.step + 1, drawn(state.step, sample, logits[:, 0]), cache)

    def goes_on(state: _State) -> Array:
        return (state.step < max_new) & jnp.any(state.sample.valid & ~state.sample.stopped)

    inside = jnp.arange(width)[None] < lengths[:, None]
    tokens = jnp.pad(jnp.where(inside, prompts, -1), ((0, 0), (0, max_new)), constant_values=-1)
    start = Sample(tokens, lengths, jnp.zeros(num_rows, bool), jnp.ones(num_rows, bool))
    # The last token drawn is never read, so the cache holds one less.
    empty = decoder.init_cache(width + max_new - 1)
    cache = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_rows, *leaf.shape)), empty)
    if decoder.read_prefix is not None:
        cache = jax.vmap(partial(decoder.read_prefix, params))(cache, prefixes)
    logits, cache = extend(cache, prompts, lengths)
    first = jnp.take_along_axis(logits, lengths[:, None, None] - 1, axis=1)[:, 0]
    state = _State(jnp.array(1), drawn(0, start, first), cache)
    return jax.lax.while_loop(goes_on, step, state).sample


def _check_truncation(
    temperature: Number, top_k: int | None, top_p: Number | None, num_tokens: int
) -> None:
    check_interval("temperature", temperature, 0, jnp.inf, ends="[)")
    if top_k is not None:
        check_count("top_k", top_k, at_most=num_tokens)
    if top_p is not None:
        check_interval("top_p", top_p, 0, 1, ends="(]")
