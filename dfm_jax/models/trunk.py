"""The transformer: causal or bidirectional, with or without time, layers unrolled or scanned.

It comes as a network, as a decoder that keeps keys and values, and as a denoiser in two halves.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfm_jax.checks import check_count, check_tokens, require
from dfm_jax.interfaces import Decoder, HeadedDenoiser, Network, Params, check_room, check_time
from dfm_jax.models.batched_decoder import batched_decoder
from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.layers import (
    Block,
    Frame,
    Memory,
    RMSNorm,
    TimeCondition,
    real_dtype,
    rotary_angles,
)
from dfm_jax.models.products import rows_times
from dfm_jax.parallel import gathered_layer, gathers_layers
from dfm_jax.types import Array, Key, as_ids

Memories = Any  # None; a `Memory` per layer; scanned, one with a leading axis of layers


class Inserted(NamedTuple):
    """Rows that take the places of tokens: of each token, its row, or −1 if it stays itself."""

    rows: Array  # [M, width]
    places: Array  # [N]


class Transformer(nn.Module):
    """Embedding, layers, norm and head: from tokens [N] to logits [N, V], for one sequence.

    With `num_outputs` the head is a separate map to that many columns, for example a router's
    experts. With `headed` False the output is the input of the head, [N, width].
    """

    config: TransformerConfig
    deterministic: bool = True
    num_outputs: int | None = None
    headed: bool = True

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        t: Array | None,
        memory: Memories,
        start: Array,
        prefix: Array | None = None,
        inserted: Inserted | None = None,
        segments: Array | None = None,
    ) -> tuple[Array, Memories]:
        """Read tokens at positions start, start + 1, …, after those in `memory` (None: no memory).

        A `prefix` [P, width] of vectors stands before the tokens and takes the first P of these
        positions; it has no logits. Vectors that are `inserted` replace the embeddings of tokens.

        With `segments` [N], the tokens of equal and neighbouring numbers are a sequence of their
        own: nothing outside of it is seen, and its positions begin at 0. There is no memory then.
        """
        config = self.config
        init = nn.initializers.normal(config.width**-0.5)
        dtypes = {"dtype": config.compute_dtype, "param_dtype": real_dtype(config)}
        embedding = nn.Embed(
            config.states, config.width, embedding_init=init, name="embed_tokens", **dtypes
        )
        h, skipped = embedding(tokens), 0
        if inserted is not None and inserted.rows.shape[0] > 0:
            rows = inserted.rows[jnp.maximum(inserted.places, 0)].astype(h.dtype)
            h = jnp.where(inserted.places[:, None] >= 0, rows, h)
        if prefix is not None:
            h, skipped = jnp.concatenate([prefix.astype(h.dtype), h]), prefix.shape[0]
        count = skipped + tokens.shape[0]
        if config.learned_positions:
            assert config.max_positions is not None  # so the config says
            places = nn.Embed(
                config.max_positions,
                config.width,
                embedding_init=init,
                name="embed_positions",
                **dtypes,
            )
            h = h + places(start + jnp.arange(count))
        frame = self._frame(count, t, memory, start, segments)
        h, memory = self._layers(h, memory, frame)
        h = RMSNorm(config, name="norm")(h, frame.condition)
        if not self.headed:
            return h[skipped:], memory
        return self._logits(h[skipped:], embedding.embedding), memory

    def _frame(
        self,
        num_positions: int,
        t: Array | None,
        memory: Memories,
        start: Array,
        segments: Array | None,
    ) -> Frame:
        config = self.config
        positions = start + jnp.arange(num_positions)
        seen = positions
        if memory is not None:  # stacked or one of many, its third axis from the end is time
            seen = jnp.arange(jax.tree.leaves(memory)[0].shape[-3])
        visible = seen[None] <= positions[:, None] if config.causal else None
        condition = None if t is None else TimeCondition(config, name="time")(t)
        turned = positions
        if segments is not None:
            assert memory is None
            turned = positions_in_segments(segments)
            own = segments[None] == segments[:, None]
            visible = own if visible is None else visible & own
        return Frame(positions, *rotary_angles(turned, config), visible, condition, segments)

    def _layers(self, h: Array, memory: Memories, frame: Frame) -> tuple[Array, Memories]:
        config = self.config
        if not config.scan_layers:
            layer = nn.remat(Block) if config.remat else Block
            memories = []
            for i in range(config.num_layers):
                own = None if memory is None else memory[i]
                h, own = layer(config, self.deterministic, name=f"layers_{i}")(h, own, frame)
                memories.append(own)
            return h, None if memory is None else tuple(memories)
        axes: Any = (0, nn.broadcast)  # flax's annotation knows one axis only
        block: Any = Block
        if gathers_layers():
            block = nn.map_variables(block, "params", trans_in_fn=gathered_layer, mutable=False)
        scanned = nn.scan(
            # The loop already keeps the forward and the backward pass apart.
            nn.remat(block, prevent_cse=False) if config.remat else block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=axes,
            length=config.num_layers,
        )
        return scanned(config, self.deterministic, name="layers")(h, memory, frame)

    def _logits(self, h: Array, embedding: Array) -> Array:
        """Compute the logits in full precision, for any type of the layers."""
        config, dtype = self.config, real_dtype(self.config)
        if self.num_outputs is None and config.tied:
            kernel = embedding[: config.num_tokens].T
        else:
            columns = config.num_tokens if self.num_outputs is None else self.num_outputs
            kernel = _Kernel(columns, dtype, name="lm_head")(config.width)
        return rows_times(h, kernel.astype(h.dtype), dtype=dtype)


def positions_in_segments(segments: Array) -> Array:
    """The position of each token in its segment, from 0: [N] numbers, equal ones neighbours."""
    index = jnp.arange(segments.shape[0])
    begins = jnp.concatenate([jnp.ones(1, bool), segments[1:] != segments[:-1]])
    return index - jax.lax.cummax(jnp.where(begins, index, 0))


class _Kernel(nn.Module):
    """The matrix of a linear map; the caller chooses the type of the product."""

    columns: int
    dtype: Any

    @nn.compact
    def __call__(self, rows: int) -> Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        return self.param("kernel", init, (rows, self.columns), self.dtype)


def transformer(config: TransformerConfig) -> Network:
    """A transformer over V tokens as a network.

    If it is conditioned on time, the output of every RMSNorm is multiplied by 1 + W c(t), where c
    is a small network of cosines and sines of t. W starts at 0, so at first the time has no effect.
    """
    return network_of(config, num_outputs=None)


def router(config: TransformerConfig, num_experts: int, *, last: bool = False) -> Network:
    """A router: the transformer of `config` with a head for K experts, [N, K], or [K] with `last`.

    Row i of a causal router is ρ̂(x^{≤i}), the weights of the experts for the token after x^i. With
    `last` there is only the row of the last position, which has seen all tokens. The loss of a
    router is the cross-entropy `objectives.router_loss`, minimal at r_k(x_t, t).   [D11]

    Raises:
        ValueError: if K < 1.
    """
    check_count("num_experts", num_experts)
    network = network_of(config, num_outputs=num_experts)

    def apply(params: Params, x_t: Array, t: Any = None, *, key: Key | None = None) -> Array:
        return network.apply(params, x_t, t, key=key)[-1]

    return network._replace(apply=apply) if last else network


def network_of(config: TransformerConfig, *, num_outputs: int | None) -> Network:
    """The transformer of `config` with the head of the V tokens, or of `num_outputs` columns."""
    start = jnp.array(0)

    # Eager initialization takes seconds: every operation is compiled for itself.
    @jax.jit
    def init(key: Key) -> Params:
        t = jnp.zeros((), real_dtype(config)) if config.time_conditioned else None
        module = Transformer(config, num_outputs=num_outputs)
        return module.init(key, jnp.zeros(1, int), t, None, start)["params"]

    def apply(params: Params, x_t: Array, t: Any = None, *, key: Key | None = None) -> Array:
        check_sequence(x_t, config)
        check_time(t, conditioned=config.time_conditioned)
        key = key if config.dropout > 0 else None  # one that draws nothing is not split
        module = Transformer(config, deterministic=key is None, num_outputs=num_outputs)
        rngs = None if key is None else {"dropout": key}
        x_t = jnp.asarray(as_ids(x_t, "x_t"))
        logits, _ = module.apply({"params": params}, x_t, t, None, start, rngs=rngs)
        return logits

    return Network(init, apply)


def check_sequence(x_t: Array, config: TransformerConfig, *, before: int = 0) -> None:
    """Check that ids are in [0, S) on one axis and, with those `before`, fit in `max_positions`."""
    shape = jnp.shape(x_t)
    require(len(shape) == 1, "`x_t` must be one sequence [N]", shape, name="x_t.shape")
    if config.max_positions is not None:
        most = config.max_positions - before
        rule = (
            f"`x_t` must have at most {most} tokens, because `max_positions` is "
            f"{config.max_positions}"
        )
        rule += f" and {before} stand before them" if before else ""
        require(shape[0] <= most, rule, shape[0], name="len(x_t)")
    check_tokens("x_t", x_t, config.states)


# ── Layers side by side, or stacked along a leading axis as a scan takes them ─────────────────────


def stack_layers(params: Params) -> Params:
    """Stack `layers_0`, `layers_1`, … into one `layers`: parameters for `scan_layers=True`.

    Raises:
        ValueError: if there is no such layer, or one in between is missing.
    """
    own = [name for name in params if re.fullmatch(r"layers_\d+", name)]
    names = [f"layers_{i}" for i in range(len(own))]
    rule = "`params` must have layers of the names `layers_0`, `layers_1`, …"
    require(bool(names) and set(names) == set(own), rule, list(params), name="names")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names))
    return {name: value for name, value in params.items() if name not in own} | {"layers": stacked}


def unstack_layers(params: Params) -> Params:
    """The inverse of `stack_layers`: parameters for `scan_layers=False`.

    Raises:
        ValueError: if there are no stacked layers.
    """
    rule = "`params` must have stacked layers of the name `layers`"
    require("layers" in params, rule, list(params), name="names")
    stacked = params["layers"]
    count = jax.tree.leaves(stacked)[0].shape[0]
    layers = {f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(count)}
    return {name: value for name, value in params.items() if name != "layers"} | layers


# ── The transformer as a decoder: keys and values of the prefix are kept, not computed again ──────


class Cache(NamedTuple):
    """What every layer remembers, and the number of tokens that it remembers."""

    memory: Any  # scanned: one `Memory` with a leading axis of layers; else a tuple of them
    count: Array


@functools.cache  # the same decoder for the same config: what was compiled for it is found again
def transformer_decoder(config: TransformerConfig) -> Decoder:
    """A causal transformer with a key-value cache, which has the type of the layers.

    Raises:
        ValueError: if the network is bidirectional or conditioned on time, because its keys and
            values then change with every token or step; in a call, if the cache is longer than
            `max_positions`, or the tokens do not fit in it.
    """
    rule = "`causal` must be True, because a bidirectional network has no cache"
    require(config.causal, rule, config.causal)
    rule = "`time_conditioned` must be False, because a cache holds no time"
    require(not config.time_conditioned, rule, config.time_conditioned)
    module = Transformer(config)

    def init_cache(length: int) -> Cache:
        check_count("length", length, at_most=config.max_positions)
        shape = (length, config.kv_heads, config.head_size)
        layers = config.num_layers
        if config.scan_layers:
            shape = (layers, *shape)

        def empty() -> Memory:
            zeros = jnp.zeros(shape, config.compute_dtype)
            return Memory(zeros, zeros)

        memory = empty() if config.scan_layers else tuple(empty() for _ in range(layers))
        return Cache(memory, jnp.array(0))

    def extend(
        params: Params, cache: Cache, tokens: Array, num_new: Any = None
    ) -> tuple[Array, Cache]:
        check_tokens("tokens", tokens, config.states)
        tokens = jnp.asarray(as_ids(tokens, "tokens"))
        num_new = tokens.shape[0] if num_new is None else num_new
        check_fits(cache, num_new, config)
        variables = {"params": params}
        logits, memory = module.apply(variables, tokens, None, cache.memory, cache.count)
        return logits, Cache(memory, cache.count + num_new)

    batched = batched_decoder(config, init_cache, prompt_reader(config))
    return Decoder(init_cache, extend, config.states, batched=batched)


def check_fits(cache: Cache, num_new: Any, config: TransformerConfig) -> None:
    """Check that the cache has room for `num_new` more tokens."""
    first = cache.memory if config.scan_layers else cache.memory[0]
    check_room(cache.count, num_new, first.keys.shape[-3])


def prompt_reader(config: TransformerConfig) -> Callable[..., tuple[Array, Memories]]:
    """(params, cache, tokens [M]) → the input of the head [M, width], and the memory."""
    trunk = Transformer(config, headed=False)

    def hidden(params: Params, cache: Cache, tokens: Array) -> tuple[Array, Memories]:
        return trunk.apply({"params": params}, tokens, None, cache.memory, cache.count)

    return hidden


# ── The bidirectional transformer as a denoiser in two halves: few rows need the V-wide one ───────


@functools.cache  # the same denoiser for the same config: what was compiled for it is found again
def transformer_denoiser(config: TransformerConfig) -> HeadedDenoiser:
    """`transformer(config)` as a denoiser for `dfm_jax.sampling`: layers, then head.   [P5]

    Both halves together give the network's logits. With `method="sparse"` a sampler runs the head
    only at tokens that jump.

    Raises:
        ValueError: if the network is causal, because its row i is the distribution of the next
            token.
    """
    rule = (
        "`causal` must be False, because row i of a causal network is the distribution of x^{i+1}"
    )
    require(not config.causal, rule, config.causal)
    trunk = Transformer(config, headed=False)
    start = jnp.array(0)

    def hidden(params: Params, x_t: Array, t: Any) -> Array:
        check_sequence(x_t, config)
        t = jnp.asarray(t, real_dtype(config)) if config.time_conditioned else None
        x_t = jnp.asarray(as_ids(x_t, "x_t"))
        return trunk.apply({"params": params}, x_t, t, None, start)[0]

    def head(params: Params, rows: Array) -> Array:
        kernel = (
            params["embed_tokens"]["embedding"][: config.num_tokens].T
            if config.tied
            else params["lm_head"]["kernel"]
        )
        return rows_times(rows, kernel.astype(rows.dtype), dtype=real_dtype(config))

    return HeadedDenoiser(hidden, head)
