"""A denoiser of masks as a decoder, so that it can be mixed with causal experts.   [D7]"""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_count
from dfm_jax.interfaces import Decoder, Denoiser, check_room
from dfm_jax.sampling.denoisers import whole
from dfm_jax.types import Array, as_ids


class _State(NamedTuple):
    x_t: Array  # [N], masks from the left on replaced by what was read
    count: Array  # the tokens that were read, the first of which stands before the sequence


@cache
def masked_decoder(denoiser: Denoiser, num_positions: int, num_tokens: int) -> Decoder:
    """A masked network that is read from left to right.   [D7]

        q̂(x) = Π_i p̂_{1|t}^i(x^i | x^{<i}, m … m)

    This is a distribution whatever the network is, so `mixture.mixture_decoder` may mix it with
    causal experts over the same ids, and the Bayes gate is exact for the mixture (D7). It is not
    the any-order model that the evidence bound speaks of: a network that is not exact gives each
    order a distribution of its own. Each token takes a pass over all N positions; there is no
    cache.

    The first token that is read stands before the sequence, as for every decoder, and says nothing:
    the mask, id V, is the usual one. Then at most N tokens follow.

    Args:
        denoiser: A denoiser of states with masks; static.
        num_positions: N, the length for which the denoiser is made.
        num_tokens: V.

    Raises:
        ValueError: if a number is below 1; if more than N tokens follow the first.
    """
    check_count("num_positions", num_positions)
    check_count("num_tokens", num_tokens)
    posterior = whole(denoiser)

    def init_cache(length: int) -> _State:
        check_count("length", length, at_most=num_positions + 1)
        return _State(jnp.full(num_positions, num_tokens), jnp.array(0))

    def extend(
        params: Any, state: _State, tokens: Array, num_new: Any = None
    ) -> tuple[Array, _State]:
        tokens = jnp.asarray(as_ids(tokens, "tokens"))
        num_new = tokens.shape[0] if num_new is None else num_new
        check_room(state.count, num_new, num_positions + 1)
        here = jnp.arange(num_positions)
        at = state.count - 1 + jnp.arange(tokens.shape[0])  # −1: before the sequence
        place = jnp.where(at < 0, num_positions, at)
        whole_x = state.x_t.at[place].set(tokens.astype(state.x_t.dtype), mode="drop")

        def row(last: Array) -> Array:
            x_t = jnp.where(here <= last, whole_x, num_tokens)
            logits = posterior(params, x_t, (last + 1) / num_positions)
            return logits[jnp.minimum(last + 1, num_positions - 1)]

        logits = jax.lax.map(row, at)
        count = state.count + num_new
        return logits, _State(jnp.where(here < count - 1, whole_x, num_tokens), count)

    return Decoder(init_cache, extend, num_tokens + 1)
