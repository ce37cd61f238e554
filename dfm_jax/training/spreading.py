"""One run over many devices, of one process or of several: its state, its batches, its programs.

What a process has is put where it belongs, row by row; nothing else is known of other processes. A
batch is a pure function of (key, step), so each makes all of it and keeps its rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dfm_jax.parallel import Placement, make_mesh, spread_step


class Spread(NamedTuple):
    """Over which devices, an axis `data`, and how the state lies on them: see `place_state`."""

    mesh: Mesh
    placement: Placement = "replicated"


def over_all_devices(placement: Placement) -> Spread:
    """Of all processes."""
    return Spread(make_mesh({"data": len(jax.devices())}), placement)


def spread_init(init: Callable[..., Any], placed: Any) -> Callable[[np.ndarray, Any], Any]:
    """(data of a key, values) → state, each part made where it lies, from `init(key, values)`."""
    return jax.jit(
        lambda data, values: init(jax.random.wrap_key_data(data), values), out_shardings=placed
    )


def spread_update(
    step: Callable[..., tuple[Any, Any]], template: Any, spread: Spread
) -> Callable[..., tuple[Any, Any]]:
    """`step(state, batch, key)` over the devices, of a batch and a key that every process has."""
    mesh, placement = spread

    def unwrapped(state: Any, batch: Any, data: Any) -> tuple[Any, Any]:
        return step(state, batch, jax.random.wrap_key_data(data))

    compiled = spread_step(unwrapped, mesh, template, placement=placement)
    return lambda state, batch, key: compiled(state, *_put(mesh, batch, key))


def spread_evaluation(evaluation: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`evaluation(params, batch, key)` over the devices: the rows cut, what they lose everywhere.

    The parameters are gathered for a batch and let go after it, as in a step: so evaluation needs
    no more memory than training, and takes every device.
    """
    whole = NamedSharding(mesh, PartitionSpec())

    @partial(jax.jit, out_shardings=whole)
    def over_rows(params: Any, batch: Any, *data: Any) -> Any:
        params = jax.lax.with_sharding_constraint(params, whole)
        return evaluation(params, batch, *map(jax.random.wrap_key_data, data))

    return lambda params, batch, *keys: over_rows(params, *_put(mesh, batch, *keys))


def _put(mesh: Mesh, batch: Any, *keys: Any) -> tuple[Any, ...]:
    """Rows to their devices, and the data of keys to all; nothing waits for the host."""

    def put(spec: PartitionSpec, leaf: Any) -> Any:
        lies = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(np.shape(leaf), lies, lambda index: leaf[index])

    rows = jax.tree.map(partial(put, PartitionSpec(*mesh.axis_names)), batch)
    return rows, *(put(PartitionSpec(), jax.random.key_data(key)) for key in keys)
