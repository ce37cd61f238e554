"""What losses, samplers and the training loop see of a network: bundles of pure functions.

Nothing outside `dfm_jax.models` knows what makes a network. A `Network` predicts, a `Decoder` is
causal and remembers what it has read, a `Denoiser` gives the posterior of a noisy sequence; a
`Task` is what training asks of whatever is to be trained. All of them take their parameters as an
argument, a pytree of float arrays.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from dfm_jax.checks import check_count, require
from dfm_jax.types import Array, ArrayLike, Bool, Float, Key, as_ids

Params = Any  # a pytree of float arrays


class Network(NamedTuple):
    """`init(key) -> params` and `apply(params, x_t, t=None, *, key=None) -> logits [N, V]`.

    For one sequence of N tokens: `jax.vmap(network.apply, in_axes=(None, 0))` is the batch. What
    row i is the distribution of, the network says: a bidirectional one gives p_{1|t}^i(· | x_t), a
    causal one the next token, q(x^{i+1} | x^{≤i}), so it predicts the first token only from an
    input that begins one earlier (a beginning-of-sequence token, or the mask, id V).

    `t`, a scalar time in [0, 1], is required by time-conditioned networks and refused by others.
    `key` draws the dropout; without it `apply` is deterministic.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Array]


class Decoder(NamedTuple):
    """A causal network that remembers what it has read; for one sequence, `jax.vmap` is the batch.

    `init_cache(length)` is an empty cache for that many tokens.

    `extend(params, cache, tokens, num_new=None)` reads the M tokens behind those in the cache and
    returns logits [M, V], row i the distribution of the token after `tokens[i]`, and the cache,
    longer by the first `num_new` tokens (None: by all of them). What lies behind those is padding:
    it is read over by the next call, and rows before it never see it. A whole prompt is one call, a
    drawn token another.

    `read_prefix(params, cache, prefix)`, where a decoder has it, reads what stands before all
    tokens and is none, such as a picture; `init_cache` has room for it besides.
    """

    init_cache: Callable[[int], Any]
    extend: Callable[..., tuple[Array, Any]]
    num_states: int  # S: ids in [0, S) are read, ids in [0, V) are drawn
    read_prefix: Callable[..., Any] | None = None


class HeadedDenoiser(NamedTuple):
    """A denoiser in two halves: whoever needs few rows pays the V columns for these alone.

    `hidden(params, x_t, t) -> [N, D]` and `head(params, rows [M, D]) -> logits [M, V]`.
    """

    hidden: Callable[..., Array]
    head: Callable[..., Array]


# `denoiser(params, x_t, t) -> logits [N, V]` of p̂_{1|t}^i(· | x_t), for one sequence and one time
# in [0, 1]; or the same in two halves.
Denoiser = Callable[..., Array] | HeadedDenoiser


class _Buffer(NamedTuple):
    tokens: Array
    count: Array


def uncached_decoder(apply: Callable[..., Array], num_states: int) -> Decoder:
    """Any causal network as a decoder that reads the whole prefix again for every token.

    The plain definition, to judge a cache by. A bidirectional network would see what lies behind.
    """

    def init_cache(length: int) -> _Buffer:
        check_count("length", length)
        return _Buffer(jnp.zeros(length, int), jnp.array(0))

    def extend(
        params: Any, cache: _Buffer, tokens: Array, num_new: Any = None
    ) -> tuple[Array, _Buffer]:
        tokens = jnp.asarray(as_ids(tokens, "tokens"))
        num_new = tokens.shape[0] if num_new is None else num_new
        check_room(cache.count, num_new, cache.tokens.shape[0])
        at = cache.count + jnp.arange(tokens.shape[0])
        buffer = cache.tokens.at[at].set(tokens.astype(cache.tokens.dtype), mode="drop")
        logits = apply(params, buffer)
        return logits[at], _Buffer(buffer, cache.count + num_new)

    return Decoder(init_cache, extend, num_states)


def check_time(t: Any, *, conditioned: bool) -> None:
    """`t` is given exactly to the networks that are conditioned on it."""
    if conditioned:
        rule = "`t` must be given, because the network is conditioned on time"
        require(t is not None, rule, t)
    else:
        require(t is None, "`t` must be None, because the network is not conditioned on time", t)


def check_room(count: Any, num_new: Any, length: int) -> None:
    """The cache has room for `num_new` tokens more."""
    rule = f"The number of tokens in the cache must be at most its `length`, {length}"
    require(count + num_new <= length, rule, count + num_new, name="the number of tokens")


class Losses(NamedTuple):
    """Per position: nats, 0 where nothing counts, and whether it counts.

    The loss is Σ nats / Σ counts over a whole batch: nats per token, never a mean of means.
    """

    nats: Float[ArrayLike, "*B N"]
    counts: Bool[ArrayLike, "*B N"]


Measure = Literal["exact", "bound", "loss"]
"""What the losses of an example sum to: −log p̂(x); a draw of an upper bound on it; neither."""


class Task(NamedTuple):
    """What training asks of whatever is to be trained: pure functions, each of one example.

    `init(key) -> params`, a pytree of float arrays.

    `losses(params, example, key=None) -> Losses`: nats per position, and which positions count.
    Training minimizes Σ nats / Σ counts over a batch. The key draws dropout, and states where
    `draws`; without it nothing is dropped.

    An example is a row of a batch: `Batch`, tokens and which of them are valid, of texts; with a
    `read_examples` of your own, any pytree.
    """

    init: Callable[[Key], Params]
    losses: Callable[..., Losses]
    measure: Measure = "exact"
    draws: bool = False  # the losses draw states: they need a key, in evaluation too
    decoder: Decoder | None = None  # draws from left to right, and what experts are mixed by
    denoiser: Denoiser | None = None  # draws from masks
    start: tuple[int, ...] = ()  # ids that stand before every sequence
    read_examples: Callable[[Any, Path], Any] | None = None
    """(config, where the data lie) → Examples; None: texts, as windows of N tokens."""
