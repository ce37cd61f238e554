"""Networks of a few lines of jax: tables of logits, and a multilayer perceptron of features."""

import itertools

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_count, check_num_states, check_tokens, require
from dfm_jax.interfaces import Network, Params, check_time
from dfm_jax.types import Array, Key, as_ids

MAX_ENTRIES = 2**27  # half a gigabyte of float32


def tabular(num_tokens: int, *, order: int, num_states: int | None = None) -> Network:
    """A causal table of (S + 1)^{order − 1} rows: the next token given the last `order` − 1 tokens.

    Row i of the logits reads x^{i − order + 2} … x^i. The extra state stands for places before the
    beginning. The network starts at the uniform distribution for every key.

    Raises:
        ValueError: if the order is below 1, or the table would have more than 2^27 entries.
    """
    states = _states(num_tokens, num_states)
    check_count("order", order)
    shape = ((states + 1) ** (order - 1), num_tokens)
    strides = [(states + 1) ** j for j in range(order - 1)]

    def rows(x_t: Array) -> Array:
        padded = jnp.pad(x_t, (order - 1, 0), constant_values=states)
        last = [padded[order - 1 - j : padded.shape[0] - j] for j in range(order - 1)]
        return sum((s * x for s, x in zip(strides, last, strict=True)), jnp.zeros_like(x_t))

    def read(table: Array, x_t: Array) -> Array:
        return table[rows(x_t)]

    return _table(shape, states, read)


def _table(shape: tuple[int, ...], states: int, read) -> Network:
    entries = 1
    for axis in shape:
        entries *= axis
    rule = f"A table must have at most {MAX_ENTRIES:,} entries"
    require(entries <= MAX_ENTRIES, rule, entries, name="entries")

    def init(key: Key) -> Params:
        return {"logits": jnp.zeros(shape)}

    def apply(params: Params, x_t: Array, t=None, *, key: Key | None = None) -> Array:
        check_time(t, conditioned=False)
        check_tokens("x_t", x_t, states)
        return read(jnp.asarray(params["logits"]), jnp.asarray(as_ids(x_t, "x_t")))

    return Network(init, apply)


def _states(num_tokens: int, num_states: int | None) -> int:
    check_count("num_tokens", num_tokens)
    states = num_tokens if num_states is None else num_states
    check_num_states(states, num_tokens)
    return states


def mlp(*sizes: int) -> Network:
    """A network from D features to K logits, with the given layer sizes: `mlp(D, hidden, …, K)`.

    h ← silu(h W + b); the last layer has no silu, so `mlp(D, K)` is a linear map. `apply` takes one
    vector of features [D] instead of a sequence. Kernels start with variance 1/fan-in, biases at 0.

    Raises:
        ValueError: if there are fewer than two sizes, or a size is below 1; in a call, if the
            features have another length.
    """
    rule = "`sizes` must hold at least two numbers, those of features and of outputs"
    require(len(sizes) >= 2, rule, sizes)
    for size in sizes:
        check_count("sizes", size)

    def init(key: Key) -> Params:
        keys = jax.random.split(key, len(sizes) - 1)
        return {
            f"layers_{i}": {
                "kernel": jax.random.normal(keys[i], shape) * shape[0] ** -0.5,
                "bias": jnp.zeros(shape[1]),
            }
            for i, shape in enumerate(itertools.pairwise(sizes))
        }

    def apply(params: Params, features: Array, t=None, *, key: Key | None = None) -> Array:
        check_time(t, conditioned=False)
        shape = jnp.shape(features)
        rule = f"`features` must have shape ({sizes[0]},)"
        require(shape == sizes[:1], rule, shape, name="features.shape")
        h = jnp.asarray(features)
        for i in range(len(sizes) - 1):
            layer = params[f"layers_{i}"]
            h = (jax.nn.silu(h) if i else h) @ layer["kernel"] + layer["bias"]
        return h

    return Network(init, apply)
