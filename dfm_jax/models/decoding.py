"""The transformer as a decoder: keys and values of the prefix are kept, not computed again."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from dfm_jax.checks import check_count, check_tokens, require
from dfm_jax.interfaces import Decoder, Params, check_room
from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.layers import Memory
from dfm_jax.models.trunk import Transformer
from dfm_jax.types import Array, as_ids


class Cache(NamedTuple):
    """What every layer remembers, and of how many tokens."""

    memory: Any  # scanned: one `Memory` with a leading axis of layers; else a tuple of them
    count: Array


@functools.cache  # the same decoder for the same config: what was compiled for it is found again
def transformer_decoder(config: TransformerConfig) -> Decoder:
    """A causal transformer with a key-value cache, in the type it computes in.

    Raises:
        ValueError: if the network is bidirectional or conditioned on time: its keys and values
            change with every token or step. A cache longer than `max_positions`, and tokens beyond
            the cache, are refused too.
    """
    require(config.causal, "`causal` must be True: a bidirectional network has no cache", False)
    timeless = not config.time_conditioned
    require(timeless, "`time_conditioned` must be False: t has no place in a cache", True)
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
        first = cache.memory if config.scan_layers else cache.memory[0]
        check_room(cache.count, num_new, first.keys.shape[-3])
        variables = {"params": params}
        logits, memory = module.apply(variables, tokens, None, cache.memory, cache.count)
        return logits, Cache(memory, cache.count + num_new)

    return Decoder(init_cache, extend, config.states)
