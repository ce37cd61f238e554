"""One token for each of B rows: the transformer of `trunk`, written for the batch at once.

The tokens of step s stand in the same column of the memory for all rows, so a step writes one
slice, in place. A block of columns that is full is never written again: the next steps only read
it, and no step reads a block that has not begun. `transformer_decoder` defines what is computed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.interfaces import BatchedDecoder, Params
from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.layers import (
    FeedForward,
    Memory,
    RMSNorm,
    SelfAttention,
    real_dtype,
    rotary_angles,
)
from dfm_jax.types import Array

_SMALLEST = 32  # columns before a second block is worth its compilation


class Block(NamedTuple):
    """A block of T columns of the memory of B rows: those of the tokens to come stand first."""

    layers: tuple[Memory, ...]  # [B, kv heads, T, H]
    opens: Array  # [B, T], the step of this block that first sees a column; T if none does
    positions: Array  # [B], of the first token of this block


def batched_decoder(
    config: TransformerConfig,
    init_cache: Callable[[int], Any],
    hidden: Callable[..., tuple[Array, Any]],
    read_prefix: Callable[..., Any] | None = None,
    weights_of: Callable[[Params], Params] = lambda params: params,
) -> BatchedDecoder:
    """The transformer's decoder for B rows at once.

    Args:
        config: The config of the transformer.
        init_cache: That of the decoder.
        hidden: `hidden(params, cache, tokens) -> (input of the head [M, width], memory)`.
        read_prefix: That of the decoder, if it has one.
        weights_of: The transformer's own parameters, of those of the decoder.
    """

    def weights(params: Params) -> Params:
        return step_weights(config, weights_of(params))

    def read(
        params: Params,
        prompts: Array,
        lengths: Array,
        prefixes: Any,
        room: int,
        *,
        every: bool = False,
    ) -> tuple[Array, Block]:
        num_rows, width = prompts.shape
        empty = init_cache(width + room)
        cache = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_rows, *leaf.shape)), empty)
        if read_prefix is not None:
            cache = jax.vmap(read_prefix, (None, 0, 0))(params, cache, prefixes)
        own = weights_of(params)
        h, memory = jax.vmap(hidden, (None, 0, 0))(own, cache, prompts)
        if not every:
            h = jnp.take_along_axis(h, lengths[:, None, None] - 1, axis=1)[:, 0]
        logits = _logits(h, _head(config, own), config)
        return logits, _first_block(config, memory, cache.count + lengths, room)

    def step(
        weights: Params, past: tuple[Block, ...], now: Block, tokens: Array, index: Array
    ) -> tuple[Array, Block]:
        return read_tokens(config, weights, past, now, tokens, index)

    return BatchedDecoder(weights, read, step, next_block, block_sizes)


def block_sizes(num_read: int, count: int) -> tuple[int, ...]:
    """Blocks for `count` columns after `num_read`: each is as large as all that stand before it.

    So a step reads at most twice what it needs, and few blocks are compiled. A short rest joins the
    last block.
    """
    sizes, rest, before = [], count, num_read
    while rest > 0:
        size = max(_SMALLEST - before, before)
        size = rest if rest < size + size // 2 else size
        sizes.append(size)
        rest, before = rest - size, before + size
    return tuple(sizes) or (0,)


def _first_block(config: TransformerConfig, memory: Any, positions: Array, room: int) -> Block:
    """From the memories of `transformer_decoder`, [B, T, kv heads, H] in each layer."""
    if config.scan_layers:
        memory = tuple(
            jax.tree.map(lambda leaf, i=i: leaf[:, i], memory) for i in range(config.num_layers)
        )
    # What has been read moves behind the free columns, which stood at the end.
    layers = jax.tree.map(lambda leaf: jnp.roll(leaf, room, axis=1).swapaxes(1, 2), memory)
    columns = jnp.arange(memory[0].keys.shape[1])[None]
    read = jnp.where(columns - room < positions[:, None], 0, columns.shape[1])
    return Block(layers, jnp.where(columns < room, columns, read), positions)


def next_block(now: Block, before: int, room: int) -> Block:
    """The block that follows one with `before` tokens to come, which are read now."""

    def empty(leaf: Array) -> Array:
        return jnp.zeros((*leaf.shape[:2], room, leaf.shape[3]), leaf.dtype)

    opens = jnp.broadcast_to(jnp.arange(room)[None], (now.positions.shape[0], room))
    return Block(jax.tree.map(empty, now.layers), opens, now.positions + before)


def step_weights(config: TransformerConfig, params: Params) -> Params:
    """The parameters as a step reads them: layer by layer, and in the type of its products."""
    dtype, layers = config.compute_dtype, config.num_layers
    if config.scan_layers:
        own = [jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(layers)]
    else:
        own = [params[f"layers_{i}"] for i in range(layers)]

    def cast(path: Any, leaf: Array) -> Array:
        scale = path[-1].key == "scale"  # of a norm, which is never half precision
        return leaf if scale else leaf.astype(dtype)

    return {
        "embedding": params["embed_tokens"]["embedding"].astype(dtype),
        "layers": tuple(jax.tree_util.tree_map_with_path(cast, layer) for layer in own),
        "norm": params["norm"],
        "head": _head(config, params),
    }


def _head(config: TransformerConfig, params: Params) -> Array:
    """The matrix of the head as it lies: [V, width] if tied, because a transposed copy is slow."""
    if config.tied:
        return params["embed_tokens"]["embedding"][: config.num_tokens].astype(config.compute_dtype)
    return params["lm_head"]["kernel"].astype(config.compute_dtype)


def read_tokens(
    config: TransformerConfig,
    weights: Params,
    past: tuple[Block, ...],
    now: Block,
    tokens: Array,
    index: Array,
) -> tuple[Array, Block]:
    """Read token `index` of a block in each row: the logits of the next [B, V], and the block."""
    h = weights["embedding"][tokens]
    angles = rotary_angles(now.positions + index, config)  # [B, 1, H], one position a row
    full = [block.opens < block.opens.shape[1] for block in past]
    seen = jnp.concatenate([*full, now.opens <= index], axis=1)

    def normed(params: Params, h: Array) -> Any:
        return RMSNorm(config).apply({"params": params}, h, None)

    layers = []
    for i, layer in enumerate(weights["layers"]):
        x = normed(layer["input_layernorm"], h)
        memories = [*(block.layers[i] for block in past), now.layers[i]]
        mixed, memory = _attention(x, layer["self_attn"], memories, seen, index, angles, config)
        h = h + mixed
        layers.append(memory)
        x = normed(layer["post_attention_layernorm"], h)
        h = h + FeedForward(config).apply({"params": layer["mlp"]}, x)
    h = normed(weights["norm"], h)
    return _logits(h, weights["head"], config), now._replace(layers=tuple(layers))


def _logits(h: Array, head: Array, config: TransformerConfig) -> Array:
    form = "...w,vw->...v" if config.tied else "...w,wv->...v"
    return jnp.einsum(form, h, head, preferred_element_type=real_dtype(config))


def _attention(
    x: Array,
    weights: Params,
    memories: list[Memory],
    seen: Array,
    index: Array,
    angles: tuple[Array, Array],
    config: TransformerConfig,
) -> tuple[Array, Memory]:
    """Attention of one query a row over all blocks; the last block gets the new key and value."""
    dtype, size = real_dtype(config), config.head_size
    module, variables = SelfAttention(config), {"params": weights}
    heads: Any = module.apply(variables, x, *angles, method="heads")
    q, k, v = heads
    *past, now = memories
    now = Memory(
        jax.lax.dynamic_update_slice_in_dim(now.keys, k[:, :, None], index, axis=2),
        jax.lax.dynamic_update_slice_in_dim(now.values, v[:, :, None], index, axis=2),
    )
    q = q.reshape(x.shape[0], config.kv_heads, -1, size)
    blocks = [*past, now]
    scores = [
        jnp.einsum("bkgh,bkth->bkgt", q, block.keys, preferred_element_type=dtype)
        for block in blocks
    ]
    scores = jnp.concatenate(scores, axis=-1) * size**-0.5
    shares = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf)).astype(x.dtype)
    ends = np.cumsum([block.values.shape[2] for block in blocks])
    parts = [
        jnp.einsum("bkgt,bkth->bkgh", part, block.values)
        for part, block in zip(jnp.split(shares, ends[:-1], axis=-1), blocks, strict=True)
    ]
    mixed = sum(parts[1:], parts[0]).reshape(x.shape[0], config.num_heads, size)
    joined: Any = module.apply(variables, mixed, method="joined")
    return joined, now
