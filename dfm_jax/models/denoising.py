"""The bidirectional transformer as a denoiser in two halves: few rows need the V-wide one."""

import functools
from typing import Any

import jax.numpy as jnp

from dfm_jax.checks import require
from dfm_jax.interfaces import HeadedDenoiser, Params
from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.layers import real_dtype
from dfm_jax.models.trunk import Transformer, check_sequence
from dfm_jax.types import Array, as_ids


@functools.cache  # the same denoiser for the same config: what was compiled for it is found again
def transformer_denoiser(config: TransformerConfig) -> HeadedDenoiser:
    """`transformer(config)` as what `dfm_jax.sampling` draws from: trunk, then head.   [P5]

    Both halves together give the network's logits. With `method="jump first"` a sampler runs the
    head only where a token jumps.

    Raises:
        ValueError: if the network is causal: its row i is the law of another token.
    """
    require(not config.causal, "`causal` must be False: row i is the law of x^{i+1}", True)
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
        return jnp.matmul(
            rows, kernel.astype(rows.dtype), preferred_element_type=real_dtype(config)
        )

    return HeadedDenoiser(hidden, head)
