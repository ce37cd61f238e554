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
from dfm_jax.interfaces import BatchedDecoder, Decoder
from dfm_jax.types import Array, ArrayLike, Bool, Float, Int, Key, Number, typed

Draw = Literal["clear", "two_level"]
_MANY_TOKENS = 512  # from here on a draw in two levels is faster
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
    memory: Any


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
    draw: Draw | None = None,
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
        draw: "clear" draws from all tokens at once, "two_level" with `fast.sample_categorical`:
            other tokens, of the same distribution. None means "two_level" from V = 512 on.

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
    shape = jax.eval_shape(_logits_of_one, params, one, decoder=decoder)
    _check_truncation(temperature, top_k, top_p, shape.shape[-1])
    check_tokens("stop_tokens", jnp.array(stop_tokens, int), shape.shape[-1])
    return prompts, lengths


@partial(jax.jit, static_argnames="decoder")  # it never runs, but jit finds its trace again
def _logits_of_one(params: Any, token: Array, *, decoder: Decoder) -> Array:
    """The logits [1, V] after one token, of which only the shape is asked for."""
    return decoder.extend(params, decoder.init_cache(1), token)[0]


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
    draw: Draw | None = None,
) -> Sample:
    """The work of the samplers after all is checked, with one key for each row."""
    num_rows, width = prompts.shape
    rows = jnp.arange(num_rows)
    # The last token drawn is never read, so the cache holds one less.
    jax.eval_shape(lambda: decoder.init_cache(width + max_new - 1))  # what it refuses
    batched = _by_vmap(decoder) if decoder.batched is None else decoder.batched
    weights = batched.weights(params)

    def drawn(step: Array | int, sample: Sample, logits: Array) -> Sample:
        going = sample.valid & ~sample.stopped
        possible = _is_probs(logits)
        own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
        tokens = _next_tokens(own, logits, temperature, top_k, top_p, draw)
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

    def run(state: _State, past: tuple[Any, ...], first: int, until: int) -> _State:
        def step(state: _State) -> _State:
            sample = state.sample
            # A row that has stopped reads its last token again, and nobody draws from it.
            last = jnp.take_along_axis(sample.tokens, sample.lengths[:, None] - 1, axis=1)[:, 0]
            index = state.step - first
            logits, memory = batched.step(weights, past, state.memory, last, index)
            return _State(state.step + 1, drawn(state.step, sample, logits), memory)

        def goes_on(state: _State) -> Array:
            return (state.step < until) & jnp.any(state.sample.valid & ~state.sample.stopped)

        return jax.lax.while_loop(goes_on, step, state)

    inside = jnp.arange(width)[None] < lengths[:, None]
    tokens = jnp.pad(jnp.where(inside, prompts, -1), ((0, 0), (0, max_new)), constant_values=-1)
    start = Sample(tokens, lengths, jnp.zeros(num_rows, bool), jnp.ones(num_rows, bool))
    room, *rest = batched.rooms(width, max_new - 1)
    logits, memory = batched.read(params, prompts, lengths, prefixes, room)
    state = _State(jnp.array(1), drawn(0, start, logits), memory)
    if max_new == 1:
        return state.sample
    past, first = (), 1
    state = run(state, past, first, first + room)
    for more in rest:
        past, first = (*past, state.memory), first + room
        state = state._replace(memory=batched.grow(state.memory, room, more))
        room = more
        state = run(state, past, first, first + room)
    return state.sample


def _next_tokens(
    keys: Key,
    logits: Array,
    temperature: Number,
    top_k: int | None,
    top_p: Number | None,
    draw: Draw | None,
) -> Array:
    """One token for each row; behind its stop token a row need have no distribution."""
    two_level = logits.shape[1] >= _MANY_TOKENS if draw is None else draw == "two_level"

    def rows(logits: Array, temperature: Number) -> Array:
        if two_level and top_k is None and top_p is None:  # a constant in each row does not matter
            wide = widened(logits)
            return (wide - jnp.max(wide, axis=1, keepdims=True)) / temperature
        return jax.vmap(lambda row: truncated_probs(row, temperature, top_k, top_p))(logits)

    def random(logits: Array) -> Array:
        values = rows(logits, temperature)
        if two_level:
            return jax.vmap(sample_categorical)(keys, values)
        return jax.vmap(partial(jax.random.categorical, mode="high"))(keys, values)

    def largest(logits: Array) -> Array:
        """The first of the largest, as `argmax` finds it, which is slow on a CPU."""
        ids = jnp.arange(logits.shape[1])[None]
        top = jnp.max(logits, axis=1, keepdims=True)
        return jnp.min(jnp.where(logits == top, ids, logits.shape[1] - 1), axis=1)

    return jax.lax.cond(temperature == 0, largest, random, logits)


def _by_vmap(decoder: Decoder) -> BatchedDecoder:
    """Any decoder for a batch: a cache for each row, of the whole length."""

    def read(
        params: Any, prompts: Array, lengths: Array, prefixes: Any, room: int, every: bool = False
    ) -> tuple[Array, Any]:
        num_rows, width = prompts.shape
        empty = decoder.init_cache(width + room)
        cache = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_rows, *leaf.shape)), empty)
        if decoder.read_prefix is not None:
            cache = jax.vmap(partial(decoder.read_prefix, params))(cache, prefixes)
        logits, cache = jax.vmap(partial(decoder.extend, params))(cache, prompts, lengths)
        at_end = jnp.take_along_axis(logits, lengths[:, None, None] - 1, axis=1)[:, 0]
        return logits if every else at_end, cache

    def step(
        params: Any, past: tuple, cache: Any, tokens: Array, index: Array
    ) -> tuple[Array, Any]:
        logits, cache = jax.vmap(partial(decoder.extend, params))(cache, tokens[:, None])
        return logits[:, 0], cache

    def grow(cache: Any, before: int, room: int) -> Any:
        raise AssertionError  # there is one block

    return BatchedDecoder(lambda params: params, read, step, grow, lambda _, count: (count,))


def _check_truncation(
    temperature: Number, top_k: int | None, top_p: Number | None, num_tokens: int
) -> None:
    check_interval("temperature", temperature, 0, jnp.inf, ends="[)")
    if top_k is not None:
        check_count("top_k", top_k, at_most=num_tokens)
    if top_p is not None:
        check_interval("top_p", top_p, 0, 1, ends="(]")
