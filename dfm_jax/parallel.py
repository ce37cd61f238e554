"""The mesh; independent work mapped over devices.

Experts, seeds and instances are one idea: runs that share nothing, along a leading axis. Here that
axis is cut over the devices of a mesh, and no device ever talks to another.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec

from dfm_jax.checks import require


def make_mesh(
    num_devices: int | None = None, axis_name: str = "expert", *, platform: str | None = None
) -> Mesh:
    """A mesh of one axis over the first `num_devices` devices, all of them by default.

    `platform` picks "cpu", "gpu" or "tpu" where there are several.

    The axis is `Auto`: under jax's own default, `Explicit`, arrays that are not yet on the mesh are
    refused.

    Raises:
        ValueError: if fewer devices are there than asked for, or none is asked for.
    """
    devices = jax.devices(platform)
    count = len(devices) if num_devices is None else num_devices
    rule = f"`num_devices` must lie in [1, {len(devices)}], the devices that jax finds"
    require(1 <= count <= len(devices), rule, count)
    return jax.make_mesh(
        (count,), (axis_name,), axis_types=(AxisType.Auto,), devices=devices[:count]
    )


def map_over_devices(
    fn: Callable[..., Any], mesh: Mesh, *, backend: str = "shard_map"
) -> Callable[..., Any]:
    """`fn`, written for one example, over the leading axis of its arguments, cut over the mesh.

    The result takes and returns pytrees whose leaves all have a leading axis of one length I, a
    multiple of the number of devices; each device runs `vmap(fn)` on its own I / D examples. It is
    compiled, without a collective, so `fn` may not use one: it names no axis of the mesh.
    `shard_map` is the backend to use; `pmap` gives the same values with a slower dispatch.

    Raises:
        ValueError: if the backend is unknown; in a call, if the leaves disagree on I or I is no
            multiple of the number of devices.
    """
    if backend not in _BACKENDS:
        near = get_close_matches(str(backend), _BACKENDS, n=1, cutoff=0.0)[0]
        known = " or ".join(f'"{name}"' for name in _BACKENDS)
        raise ValueError(f'`backend` must be {known}; it is {backend!r}: did you mean "{near}"?')
    spread = _BACKENDS[backend](jax.vmap(fn), mesh)

    def mapped(*args: Any) -> Any:
        _check_leading_axis(args, mesh.size)
        return spread(*args)

    return mapped


def _by_shard_map(batched: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    rows = PartitionSpec(mesh.axis_names)
    # The variance check serves collectives, of which there are none; it would refuse a scan whose
    # carry starts from a constant.
    return jax.jit(
        jax.shard_map(batched, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    )


def _by_pmap(batched: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    spread = jax.pmap(batched, devices=list(mesh.devices.flat))

    def cut(leaf: Any) -> Any:
        return jnp.reshape(leaf, (mesh.size, leaf.shape[0] // mesh.size, *leaf.shape[1:]))

    def join(leaf: Any) -> Any:
        return jnp.reshape(leaf, (leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]))

    return lambda *args: jax.tree.map(join, spread(*jax.tree.map(cut, args)))


_BACKENDS = {"shard_map": _by_shard_map, "pmap": _by_pmap}


def _check_leading_axis(args: tuple[Any, ...], num_devices: int) -> None:
    """Every leaf has the same leading axis, and the devices divide it."""
    leaves = [
        (f"args{jax.tree_util.keystr(path)}", leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(args)
    ]
    require(bool(leaves), "`args` must hold at least one array", args)
    for name, leaf in leaves:
        require(jnp.ndim(leaf) >= 1, f"`{name}` must have a leading axis to map over", leaf)
    (first, leaf), *others = leaves
    length = jnp.shape(leaf)[0]
    for name, leaf in others:
        rule = f"`{name}` must have the leading axis of `{first}`, {length}"
        require(jnp.shape(leaf)[0] == length, rule, jnp.shape(leaf)[0])
    rule = f"the leading axis must be a positive multiple of the {num_devices} devices"
    require(length > 0 and length % num_devices == 0, rule, length)
