"""Features to logits: a multi-layer perceptron, or without a hidden layer the linear map."""

import itertools

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_count, require
from dfm_jax.interfaces import Network, Params, check_time
from dfm_jax.types import Array, Key


def mlp(*sizes: int) -> Network:
    """D features to logits through layers of the given sizes: `mlp(D, hidden, …, K)`.

    h ← silu(h W + b), the last layer without the silu; `mlp(D, K)` is the linear map. `apply` takes
    one vector of features [D] in the place of a sequence. Kernels start at variance 1/fan-in,
    biases at 0.

    Raises:
        ValueError: on fewer than two sizes, a size below 1, features of another length.
    """
    require(len(sizes) >= 2, "`sizes` must name features and outputs, two at least", len(sizes))
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
        require(shape == sizes[:1], f"`features` must have shape ({sizes[0]},)", str(shape))
        h = jnp.asarray(features)
        for i in range(len(sizes) - 1):
            layer = params[f"layers_{i}"]
            h = (jax.nn.silu(h) if i else h) @ layer["kernel"] + layer["bias"]
        return h

    return Network(init, apply)
