"""Networks made from modules of flax nnx, flax linen and equinox; parameters are an argument."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from dfm_jax.checks import check_count, require
from dfm_jax.interfaces import Network, Params
from dfm_jax.types import Array, Key


def network_from_nnx(make_module: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """The network of `make_module(rngs)`, called as `module(x_t)`, or `module(x_t, t)` with a time.

    With a key the module is in training mode, and its streams of random numbers start from the key.
    Without a key it is in evaluation mode.

    Raises:
        ValueError: if the module has state besides parameters and random streams, because a pure
            function cannot keep such a state.
    """
    abstract = nnx.eval_shape(lambda: make_module(nnx.Rngs(0)))
    graph, shapes, streams, rest = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(rest)]
    rule = "The module must carry no state besides its parameters"
    require(not names, rule, names, name="state")

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


def network_from_linen(module: linen.Module, num_positions: int) -> Network:
    """The network of a linen module, called as `module(x_t)`, or `module(x_t, t)` with a time.

    With a key the module has the random stream `dropout`, so `self.has_rng("dropout")` tells it
    that it is in training.

    Args:
        module: A module that takes one sequence.
        num_positions: The length of the sequence of zeros that initializes the module.

    Raises:
        ValueError: if the module has state besides parameters, such as batch statistics.
    """
    check_count("num_positions", num_positions)
    tokens = jnp.zeros(num_positions, jnp.int32)
    kinds = sorted(jax.eval_shape(module.init, jax.random.key(0), tokens))
    names = [kind for kind in kinds if kind != "params"]
    rule = "The module must carry no state besides its parameters"
    require(not names, rule, names, name="state")

    def init(key: Key) -> Params:
        return module.init(key, tokens)["params"]

    def apply(params: Params, x_t: Array, t: Any = None, *, key: Key | None = None) -> Array:
        given = (x_t,) if t is None else (x_t, t)
        streams = {} if key is None else {"dropout": key}
        logits = module.apply({"params": params}, *given, rngs=streams)
        assert isinstance(logits, jax.Array)  # nothing is mutable
        return logits

    return Network(init, apply)


def network_from_equinox(make_module: Callable[[Key], Any]) -> Network:
    """The network of `make_module(key)`, called as `module(x_t)`, or `module(x_t, t)` with a time.

    Its parameters are the module's arrays of floats, by name. With a key the module is also called
    with `key=`. Without a key it is in equinox's inference mode.

    Raises:
        ValueError: if equinox is not installed.
    """
    try:
        import equinox as eqx
    except ImportError as error:
        raise ValueError(
            "This function needs the package `equinox`, which is not installed: "
            "`pip install equinox`."
        ) from error
    arrays, static = eqx.partition(make_module(jax.random.key(0)), eqx.is_inexact_array)
    paths, tree = jax.tree_util.tree_flatten_with_path(arrays)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]

    def init(key: Key) -> Params:
        drawn = eqx.filter(make_module(key), eqx.is_inexact_array)
        return dict(zip(names, jax.tree.leaves(drawn), strict=True))

    def apply(params: Params, x_t: Array, t: Any = None, *, key: Key | None = None) -> Array:
        module = eqx.combine(jax.tree.unflatten(tree, [params[name] for name in names]), static)
        given = (x_t,) if t is None else (x_t, t)
        if key is None:
            return eqx.nn.inference_mode(module)(*given)
        return module(*given, key=key)

    return Network(init, apply)


def _start(stream: Any, key: Key | None, index: int) -> Array:
    """The start of a stream: its own key, or 0 for its count of draws."""
    if not jnp.issubdtype(stream.dtype, jax.dtypes.prng_key):
        return jnp.zeros(stream.shape, stream.dtype)
    return jax.random.fold_in(jax.random.key(0) if key is None else key, index)
