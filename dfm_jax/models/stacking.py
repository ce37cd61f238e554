"""Layers side by side, or stacked along a leading axis as a scan takes them."""

import re

import jax
import jax.numpy as jnp

from dfm_jax.checks import require
from dfm_jax.interfaces import Params


def stack_layers(params: Params) -> Params:
    """`layers_0`, `layers_1`, … into one `layers`: parameters for `scan_layers=True`.

    Raises:
        ValueError: if there is no such layer, or one is missing in between.
    """
    own = [name for name in params if re.fullmatch(r"layers_\d+", name)]
    names = [f"layers_{i}" for i in range(len(own))]
    require(
        bool(names),
        "`params` must have layers `layers_0`, `layers_1`, …; its names",
        str(list(params)),
    )
    require(set(names) == set(own), f"`params` must have {', '.join(names)}; it has", str(own))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names))
    return {name: value for name, value in params.items() if name not in own} | {"layers": stacked}


def unstack_layers(params: Params) -> Params:
    """The inverse: parameters for `scan_layers=False`.

    Raises:
        ValueError: if there are no stacked layers.
    """
    require("layers" in params, "`params` must have stacked `layers`; its names", str(list(params)))
    stacked = params["layers"]
    count = jax.tree.leaves(stacked)[0].shape[0]
    layers = {f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(count)}
    return {name: value for name, value in params.items() if name != "layers"} | layers
