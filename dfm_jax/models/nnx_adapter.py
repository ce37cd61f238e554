"""A network from an nnx module: its graph is kept, its parameters are passed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dfm_jax.checks import require
from dfm_jax.interfaces import Network, Params
from dfm_jax.types import Array, Key


def network_from_nnx(make_module: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """The network of `make_module(rngs)`, called as `module(x_t)`, or `module(x_t, t)` with a time.

    With a key the module is in training mode and its streams of random numbers start from the key;
    without one it is in evaluation mode.

    Raises:
        ValueError: if the module carries state besides parameters and random streams: a function
            of its parameters has nowhere to keep it.
    """
    abstract = nnx.eval_shape(lambda: make_module(nnx.Rngs(0)))
    graph, shapes, streams, rest = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
    names = ", ".join(jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(rest))
    require(not names, "the module must carry no state besides parameters", names)

    @jax.jit
    def init(key: Key) -> Params:
        return nnx.to_pure_dict(nnx.state(make_module(nnx.Rngs(key)), nnx.Param))

    def apply(params: Params, x_t: Array, t: Any = None, *, key: Key | None = None) -> Array:
        leaves, tree = jax.tree.flatten(streams)
        fresh = [_start(leaf, key, i) for i, leaf in enumerate(leaves)]
        state = jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(params))
        module = nnx.merge(graph, state, jax.tree.unflatten(tree, fresh))
        module.eval() if key is None else module.train()
        return module(x_t) if t is None else module(x_t, t)

    return Network(init, apply)


def _start(stream: Any, key: Key | None, index: int) -> Array:
    """A stream's key, its own, or its count of draws, 0."""
    if not jnp.issubdtype(stream.dtype, jax.dtypes.prng_key):
        return jnp.zeros(stream.shape, stream.dtype)
    return jax.random.fold_in(jax.random.key(0) if key is None else key, index)
