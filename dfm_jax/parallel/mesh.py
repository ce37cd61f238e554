"""The mesh: an axis `expert` along which nothing is shared, `data` along which batches are cut."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from dfm_jax.checks import require


def make_mesh(
    shape: int | Mapping[str, int] | None = None,
    *,
    devices: Sequence[Any] | None = None,
    platform: str | None = None,
) -> Mesh:
    """A mesh over the first devices: `{"expert": 4, "data": 2}`; a number is of experts alone.

    By default all devices, one axis `expert`. Every axis is `Auto`: under jax's own default,
    `Explicit`, arrays that are not yet on the mesh are refused. Where the chips come in slices that
    a slower network joins, the first axis runs over the slices, so that an expert stays inside one.

    Args:
        shape: devices along each axis, the outermost first.
        devices: to choose from; by default those that jax finds,
        platform: or of them "cpu", "gpu" or "tpu" alone.

    Raises:
        ValueError: if an axis is empty, or fewer devices are there than asked for.
    """
    found = list(jax.devices(platform) if devices is None else devices)
    if not isinstance(shape, Mapping):
        count = len(found) if shape is None else shape
        rule = f"the number of devices must lie in [1, {len(found)}], those that are there"
        if found[0].platform == "cpu":
            rule += " (JAX_NUM_CPU_DEVICES=N in front of a command makes N of a CPU)"
        whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
        require(whole and 1 <= count <= len(found), rule, count)
        shape = {"expert": int(count)}
    require(len(shape) > 0, "`shape` must name an axis", dict(shape))
    rule = f"`shape` must ask for 1 to {len(found)} devices, those that are there; along its axes"
    sizes = tuple(shape.values())
    asked = math.prod(sizes)
    require(min(sizes) >= 1 and asked <= len(found), rule, dict(shape))
    grid = _grid(sizes, found[:asked])
    return Mesh(grid, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def _grid(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """Devices that talk to each other near each other: inner axes inside a slice, then a torus."""
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) > 1 and sizes[0] % len(slices) == 0:
        within = (sizes[0] // len(slices), *sizes[1:])
        across = (len(slices), *(1 for _ in sizes[1:]))
        return mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
