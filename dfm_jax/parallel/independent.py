"""The mesh, and independent runs along a leading axis, whose devices never communicate."""

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dfm_jax.checks import require

Fn = Callable[..., Any]


def make_mesh(
    shape: int | Mapping[str, int] | None = None,
    *,
    devices: Sequence[Any] | None = None,
    platform: str | None = None,
) -> Mesh:
    """A mesh over the first devices: `{"expert": 4, "data": 2}`; a number n means `{"expert": n}`.

    The default is all devices on one axis `expert`. Every axis is `Auto`; jax's own default,
    `Explicit`, refuses arrays that are not yet on the mesh. If a slower network joins the chips in
    slices, the first axis runs over the slices, so that each expert stays inside one slice.

    Args:
        shape: The number of devices along each axis, the outermost axis first.
        devices: The devices to choose from; by default all that jax finds.
        platform: "cpu", "gpu" or "tpu", to choose only from devices of this kind.

    Raises:
        ValueError: if an axis is empty, or there are fewer devices than the mesh needs.
    """
    found = list(jax.devices(platform) if devices is None else devices)
    if not isinstance(shape, Mapping):
        count = len(found) if shape is None else shape
        rule = f"The number of devices must lie in [1, {len(found)}], because so many are there"
        on_cpu = found[0].platform == "cpu"
        then = "Set JAX_NUM_CPU_DEVICES=N to make N devices of a CPU." if on_cpu else ""
        whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
        good = whole and 1 <= count <= len(found)
        require(good, rule, count, name="number of devices", then=then)
        shape = {"expert": int(count)}
    require(len(shape) > 0, "`shape` must name an axis", dict(shape))
    rule = f"`shape` must ask for 1 to {len(found)} devices, because so many are there"
    sizes = tuple(shape.values())
    asked = math.prod(sizes)
    require(min(sizes) >= 1 and asked <= len(found), rule, dict(shape))
    grid = _grid(sizes, found[:asked])
    return Mesh(grid, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def _grid(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """Devices arranged so that those that communicate are near: inside a slice, then on a torus."""
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) > 1 and sizes[0] % len(slices) == 0:
        within = (sizes[0] // len(slices), *sizes[1:])
        across = (len(slices), *(1 for _ in sizes[1:]))
        return mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def wait_on_cpu(out: Any, mesh: Mesh) -> Any:
    """`out` of a program whose devices exchange data; on a CPU it is returned after it is computed.

    CPU devices share threads. If two such programs run at the same time, all threads can wait for
    devices that got no thread; XLA then ends the process after 40 seconds.
    """
    return jax.block_until_ready(out) if mesh.devices.flat[0].platform == "cpu" else out


def independent(
    fn: Fn,
    mesh: Mesh,
    *,
    backend: str = "shard_map",
    pad: bool = False,
    in_turn: bool = False,
    shared_args: tuple[int, ...] = (),
    data_args: tuple[int, ...] = (),
    donate_args: tuple[int, ...] = (),
) -> Fn:
    """Map `fn`, written for one run, over the leading axis of its arguments.

    The new function is jit(shard_map(vmap(fn))). It takes and returns pytrees whose leaves all have
    a leading axis of length K. Each of the D devices along the mesh's first axis holds K / D runs
    and computes `vmap(fn)` on them. So `fn` must not use a collective or name an axis of the mesh.

    On a mesh with one axis the compiled program has no collective. On a mesh ("expert", "data")
    each run has its own row of devices. The arguments in `data_args` are then also split along
    their second axis, and the compiler sums only over the devices of a row.

    Args:
        fn: The function of one run.
        mesh: See `make_mesh`.
        backend: "shard_map", or "pmap", which gives the same bits with a slower dispatch.
        pad: If True and D does not divide K, the devices that are left over compute the last run
            again, and their results are dropped. If False, such a K is refused.
        in_turn: If True, a device computes its runs one after the other, by `jax.lax.map` in place
            of `vmap`: see `faster_in_turn`. A run then has the sums of its own program, so its last
            bits may differ from those of `vmap`.
        shared_args: The numbers of the arguments that all runs share. They have no axis of runs,
            and each device has a copy. Only with the backend "shard_map".
        data_args: The numbers of the arguments that hold batches, [K, B, …], for a mesh with two
            axes.
        donate_args: The numbers of the arguments whose memory the result may use.

    Raises:
        ValueError: if the backend is not known, or cannot split batches or share arguments; in a
            call, if the leaves differ in K, or D does not divide K, or the number of devices in a
            row does not divide B.
    """
    if backend not in _BACKENDS:
        near = get_close_matches(str(backend), _BACKENDS, n=1, cutoff=0.0)[0]
        known = " or ".join(f'"{name}"' for name in _BACKENDS)
        then = f'Did you mean "{near}"?'
        raise ValueError(f"`backend` must be {known}; got backend = {backend!r}. {then}")
    rule = '`mesh` must have one axis, or two if `backend` is "shard_map"'
    wide, shape = len(mesh.axis_names) > 1, dict(mesh.shape)
    good = len(shape) == 1 + (wide and backend == "shard_map")
    require(good, rule, shape, name="mesh.shape")
    rule = '`shared_args` must be empty unless `backend` is "shard_map"'
    require(not shared_args or backend == "shard_map", rule, shared_args)
    batched = _of_runs(fn, in_turn, shared_args)
    if backend == "pmap":
        sharded = _by_pmap(batched, mesh, donate_args)
    else:
        sharded = _by_shard_map(batched, mesh, shared_args, data_args, donate_args)
    across, within = mesh.devices.shape[0], mesh.size // mesh.devices.shape[0]

    def mapped(*args: Any) -> Any:
        length = _leading_axis(
            {f"args[{n}]": arg for n, arg in enumerate(args) if n not in shared_args}
        )
        for number in data_args:
            _check_second_axis(f"args[{number}]", args[number], within)
        missing = -length % across
        if missing and pad:
            own = tuple(None if n in shared_args else arg for n, arg in enumerate(args))
            padded = _with_last_again(own, missing)
            args = tuple(args[n] if n in shared_args else arg for n, arg in enumerate(padded))
        else:
            rule = (
                f"The leading axis must be a multiple of {across}, the devices, unless `pad` is set"
            )
            require(not missing, rule, length, name="length")
        out = sharded(*args)
        if wide:
            out = wait_on_cpu(out, mesh)
        return _first(out, length) if missing else out

    return mapped


def faster_in_turn(mesh: Mesh) -> bool:
    """Whether the runs of a device are faster one after the other: on a CPU they are.

    A CPU computes a product with a batch axis matrix by matrix, and a wider array leaves its caches
    sooner. What one program saves is the dispatch of many. Accelerators fill up by `vmap`.
    """
    return mesh.devices.flat[0].platform == "cpu"


def _of_runs(fn: Fn, in_turn: bool, shared_args: tuple[int, ...]) -> Fn:
    """`fn` for all runs of a device, at once or in turn."""

    def batched(*args: Any) -> Any:
        own = tuple(arg for n, arg in enumerate(args) if n not in shared_args)

        def one(*values: Any) -> Any:
            rest = iter(values)
            return fn(*(arg if n in shared_args else next(rest) for n, arg in enumerate(args)))

        return jax.lax.map(lambda values: one(*values), own) if in_turn else jax.vmap(one)(*own)

    return batched


def _by_shard_map(
    batched: Fn,
    mesh: Mesh,
    shared_args: tuple[int, ...],
    data_args: tuple[int, ...],
    donate_args: tuple[int, ...],
) -> Fn:
    first = mesh.axis_names[0]
    runs = PartitionSpec(first)
    # The variance check serves collectives written by hand, of which there are none; it would
    # refuse a scan whose carry starts from a constant. Other axes are left to the compiler.
    of_runs, of_rows, of_all = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((first,), mesh.axis_names, ())
    )

    def placed(*args: Any) -> Any:
        numbers = range(len(args))
        sharded = jax.shard_map(
            batched,
            mesh=mesh,
            in_specs=tuple(PartitionSpec() if n in shared_args else runs for n in numbers),
            out_specs=runs,
            axis_names={first},
            check_vma=False,
        )
        shardings = (
            of_all if n in shared_args else of_rows if n in data_args else of_runs for n in numbers
        )
        put = jax.lax.with_sharding_constraint
        out = sharded(*(put(arg, where) for arg, where in zip(args, shardings, strict=True)))
        return put(out, of_runs)

    return jax.jit(placed, donate_argnums=donate_args)


def _by_pmap(batched: Fn, mesh: Mesh, donate_args: tuple[int, ...]) -> Fn:
    sharded = jax.pmap(batched, devices=list(mesh.devices.flat), donate_argnums=donate_args)

    def cut(leaf: Any) -> Any:
        return jnp.reshape(leaf, (mesh.size, leaf.shape[0] // mesh.size, *leaf.shape[1:]))

    def join(leaf: Any) -> Any:
        return jnp.reshape(leaf, (leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]))

    return lambda *args: jax.tree.map(join, sharded(*jax.tree.map(cut, args)))


_BACKENDS = ("shard_map", "pmap")


# One program each for all leaves, which would cost a dispatch or more per leaf otherwise.
@partial(jax.jit, static_argnames="times")
def _with_last_again(runs: Any, times: int) -> Any:
    def padded(leaf: Any) -> Any:
        last = leaf.shape[0] - 1
        return leaf[jnp.minimum(jnp.arange(last + 1 + times), last)]

    return jax.tree.map(padded, runs)


@partial(jax.jit, static_argnames="length")
def _first(runs: Any, length: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[:length], runs)


def _leading_axis(args: dict[str, Any]) -> int:
    """The length of the first axis, which all leaves share."""
    leaves = [
        (f"{name}{jax.tree_util.keystr(path)}", leaf)
        for name, arg in args.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(arg)
    ]
    require(bool(leaves), "`args` must hold at least one array", tuple(args.values()))
    for name, leaf in leaves:
        rule, shape = f"`{name}` must have a leading axis to map over", jnp.shape(leaf)
        require(bool(shape), rule, shape, name=f"{name}.shape")
    (first, leaf), *others = leaves
    length = jnp.shape(leaf)[0]
    for name, leaf in others:
        rule = f"`{name}` must have a leading axis of {length}, as `{first}` has"
        require(jnp.shape(leaf)[0] == length, rule, jnp.shape(leaf), name=f"{name}.shape")
    require(length > 0, "The leading axis must hold a run", length, name="length")
    return length


def _check_second_axis(name: str, batch: Any, num_devices: int) -> None:
    """Check that the number of devices in a row divides the batch of a run."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        where, shape = f"{name}{jax.tree_util.keystr(path)}", jnp.shape(leaf)
        rule = f"`{where}` must have a second axis, which is the batch"
        require(len(shape) >= 2, rule, shape, name=f"{where}.shape")
        rule = f"The batch of `{where}` must be a multiple of {num_devices}, the devices of a run"
        require(shape[1] % num_devices == 0, rule, shape[1], name=f"{where}.shape[1]")
