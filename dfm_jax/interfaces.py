"""What losses, samplers and the training loop need of a network: bundles of pure functions.

Only `dfm_jax.models` knows how a network is made. A `Network` predicts. A `Decoder` is causal and
remembers what it has read. A `Denoiser` gives the posterior of a noisy sequence. A `Task` is what
training needs of anything that it trains. All of them take their parameters as an argument, a
pytree of float arrays.
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

    Both are for one sequence of N tokens: `jax.vmap(network.apply, in_axes=(None, 0))` makes the
    batch. The network defines what row i predicts. A bidirectional network gives p_{1|t}^i(· |
    x_t). A causal network gives the next token, q(x^{i+1} | x^{≤i}); to predict the first token,
    its input must begin one token earlier (with a beginning-of-sequence token, or the mask, id V).

    `t`, a scalar time in [0, 1], is required by time-conditioned networks and refused by others.
    `key` draws the dropout; without it `apply` is deterministic.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Array]


class BatchedDecoder(NamedTuple):
    """A decoder for B sequences, written for the batch at once: what a loop of draws needs.

    `weights(params)` makes what a step reads of the parameters, once before the loop.

    `read(params, prompts [B, P], lengths [B], prefixes, room, *, every=False)` reads a prompt in
    each row. It returns the logits of the token after each prompt [B, V], or with `every` after
    each position [B, P, V], and a memory with room for `room` more tokens in each row.

    `step(weights, past, memory, tokens [B], index)` reads one more token in each row, the one of
    number `index` in this memory. It returns the logits of the next one [B, V], and the memory.
    `past` is a tuple of the memories that are full; they are only read.

    `grow(memory, before, room)` makes the memory that follows a full one, which has taken `before`
    tokens. `rooms(P, count)` says how many each of them should take, for `count` tokens after the
    prompt.
    """

    weights: Callable[[Params], Any]
    read: Callable[..., tuple[Array, Any]]
    step: Callable[..., tuple[Array, Any]]
    grow: Callable[[Any, int, int], Any]
    rooms: Callable[[int, int], tuple[int, ...]]


class Decoder(NamedTuple):
    """A causal network, for one sequence, that remembers what it has read.

    `init_cache(length)` makes an empty cache for `length` tokens. `jax.vmap` makes the batch.

    `extend(params, cache, tokens, num_new=None)` reads M tokens that follow those in the cache. It
    returns logits [M, V], whose row i is the distribution of the token after `tokens[i]`, and a
    cache that is longer by the first `num_new` tokens (None means all of them). The other tokens
    are padding: the next call overwrites them, and no earlier row sees them. A whole prompt takes
    one call, and so does each token that is drawn.

    `read_prefix(params, cache, prefix)`, which only some decoders have, reads something that stands
    before all tokens and is not a token, such as a picture; `init_cache` has extra room for it.

    `batched`, which only some decoders have, computes the same for B sequences, and faster than
    `jax.vmap` of `extend`; samplers use it where it is given.
    """

    init_cache: Callable[[int], Any]
    extend: Callable[..., tuple[Array, Any]]
    num_states: int  # S: ids in [0, S) are read, ids in [0, V) are drawn
    read_prefix: Callable[..., Any] | None = None
    batched: BatchedDecoder | None = None


class HeadedDenoiser(NamedTuple):
    """A denoiser in two halves, so that V columns are computed only for the rows that are needed.

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
    """A decoder made of any causal network; it reads the whole prefix again for every token.

    It is the plain definition, against which a cache is tested. The network must not be
    bidirectional, because it would see the padding after the prefix.
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
    """Check that `t` is given to networks that are conditioned on it, and only to those."""
    if conditioned:
        rule = "`t` must be given, because the network is conditioned on time"
        require(t is not None, rule, t)
    else:
        require(t is None, "`t` must be None, because the network is not conditioned on time", t)


def check_room(count: Any, num_new: Any, length: int) -> None:
    """Check that the cache has room for `num_new` more tokens."""
    rule = f"The number of tokens in the cache must be at most its `length`, {length}"
    require(count + num_new <= length, rule, count + num_new, name="the number of tokens")


class Losses(NamedTuple):
    """Nats of each position, and whether it counts; where a position does not count, they are 0.

    The loss is Σ nats / Σ counts over a whole batch: nats per token, never a mean of means.
    `weights` changes what training minimizes to Σ weights · nats / Σ weights, over what counts; an
    evaluation does not weigh.
    """

    nats: Float[ArrayLike, "*B N"]
    counts: Bool[ArrayLike, "*B N"]
    weights: Float[ArrayLike, "*B N"] | None = None


Measure = Literal["exact", "bound", "loss"]
"""What the losses of an example sum to: −log p̂(x); a draw of an upper bound on it; neither."""


class Task(NamedTuple):
    """What training needs of anything that it trains: pure functions of one example.

    `init(key) -> params`, a pytree of float arrays.

    `losses(params, example, key=None) -> Losses`: nats per position, and which positions count.
    Training minimizes Σ nats / Σ counts over a batch, see `Losses`. The key draws the dropout and,
    if `draws`, the noisy states; without a key nothing is dropped.

    An example is a row of a batch. For texts it is a `Batch`: tokens, and which of them are valid.
    With a `read_examples` of your own it may be any pytree.
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
