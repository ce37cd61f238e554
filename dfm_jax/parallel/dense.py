"""The dense model: one run over all devices, which communicate at every step.

The step function is written for one device. The shardings of its state and batch decide which
communication the compiler adds. "replicated": every device holds the whole state, and gradients are
summed over devices. "sharded": every device holds a part of each leaf, so the memory of the state
falls with the number of devices. Parameters are gathered for a step and dropped after it. Those of
stacked layers, the leaves under a name `layers`, are gathered layer by layer: `gathered_layer`.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dfm_jax.checks import require
from dfm_jax.parallel.independent import wait_on_cpu

Placement = Literal["replicated", "sharded"]


def state_shardings(state: Any, mesh: Mesh, placement: Placement = "replicated") -> Any:
    """The shardings of a state's leaves, as a pytree; the state may be arrays or their shapes.

    "sharded" splits each leaf along its longest axis that the devices of the mesh's last axis
    divide. A leaf without such an axis, for example a norm's scale or a counter, lies whole on
    every device.

    Raises:
        ValueError: if `placement` is neither "replicated" nor "sharded".
    """
    known = ("replicated", "sharded")
    require(placement in known, f"`placement` must be one of {', '.join(known)}", placement)
    if placement == "replicated":
        return jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec()), state)
    return jax.tree.map(partial(_lies, mesh), state)


def _lies(mesh: Mesh, leaf: Any) -> NamedSharding:
    """The sharding of a leaf that is split along its longest axis which the devices divide."""
    axis = mesh.axis_names[-1]
    spec: list[str | None] = [None] * jnp.ndim(leaf)
    divided = [n for n, size in enumerate(jnp.shape(leaf)) if size % mesh.shape[axis] == 0]
    if divided:
        spec[max(divided, key=lambda n: jnp.shape(leaf)[n])] = axis
    return NamedSharding(mesh, PartitionSpec(*spec))


# ── One layer of a stack at a time ────────────────────────────────────────────────────────────────

_MESH: ContextVar[Mesh | None] = ContextVar("mesh", default=None)  # of the sharded step, if any
_STACKED = "layers"


def gathers_layers() -> bool:
    """Whether what is traced is a step whose layers are to be gathered one by one."""
    return _MESH.get() is not None


def gathered_layer(params: Any) -> Any:
    """The parameters of one layer of a stack, whole on each device for as long as it is computed.

    Models call this inside the loop over their layers. Their gradients are scattered again as soon
    as they are there. Outside a step of the placement "sharded" nothing is done.
    """
    mesh = _MESH.get()
    return params if mesh is None else jax.tree.map(partial(_gathered, mesh), params)


def _gathered(mesh: Mesh, leaf: Any) -> Any:
    put = jax.lax.with_sharding_constraint

    @jax.custom_vjp
    def whole(leaf: Any) -> Any:
        return put(leaf, NamedSharding(mesh, PartitionSpec()))

    whole.defvjp(lambda leaf: (whole(leaf), None), lambda _, g: (put(g, _lies(mesh, g)),))
    return whole(leaf)


@contextlib.contextmanager
def _gathering(mesh: Mesh | None) -> Iterator[None]:
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def _is_stacked(path: Any) -> bool:
    return any(getattr(key, "key", None) == _STACKED for key in path)


def _whole(params: Any, mesh: Mesh) -> Any:
    """The parameters, gathered; a stack of layers stays as it lies."""
    put, everywhere = jax.lax.with_sharding_constraint, NamedSharding(mesh, PartitionSpec())

    def one(path: Any, leaf: Any) -> Any:
        return leaf if _is_stacked(path) else put(leaf, everywhere)

    return jax.tree_util.tree_map_with_path(one, params)


def sharded_step(
    step: Callable[..., tuple[Any, Any]],
    mesh: Mesh,
    state: Any,
    *,
    placement: Placement = "replicated",
    donate: bool = True,
) -> Callable[..., tuple[Any, Any]]:
    """Run `step`, (state, batch, …) → (state, metrics), over all devices.

    The batch is split over the devices, and the state lies as `placement` says. The result equals
    that of one device up to the order of sums. Arguments after the batch, such as keys and numbers,
    lie whole on every device. On CPU devices a call returns after its step is done, because steps
    that run at the same time can block each other there. If you compile the function yourself, wait
    for each step with `jax.block_until_ready`.

    Args:
        step: The step function of one device. Its metrics must be sums or means over the batch.
        mesh: A mesh with one axis, `data`.
        state: The state that the step takes, or its shapes. For "sharded" it must be a NamedTuple
            with the field `params`.
        placement: See `state_shardings`.
        donate: If True, the new state takes the memory of the old one.

    Raises:
        ValueError: if the placement is not known, or the mesh has two axes; in a call, if the
            number of devices does not divide the batch size.
    """
    rule = "`mesh` must have one axis, because the run lies over all devices"
    require(len(mesh.axis_names) == 1, rule, dict(mesh.shape), name="mesh.shape")
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    shardings = state_shardings(state, mesh, placement)
    put = jax.lax.with_sharding_constraint

    def constrained(state: Any, batch: Any, *more: Any) -> tuple[Any, Any]:
        state, sharded = put(state, shardings), placement == "sharded"
        if sharded:  # or the compiler may gather whole batches in their place
            state = state._replace(params=_whole(state.params, mesh))
        with _gathering(mesh if sharded else None):
            state, metrics = step(state, put(batch, rows), *more)
        return put(state, shardings), put(metrics, whole)

    compiled = jax.jit(constrained, donate_argnums=0 if donate else ())

    def sharded(state: Any, batch: Any, *more: Any) -> tuple[Any, Any]:
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            name, shape = f"batch{jax.tree_util.keystr(path)}", jnp.shape(leaf)
            rule = f"The number of rows of `{name}` must be a multiple of {mesh.size}, the devices"
            require(bool(shape) and shape[0] % mesh.size == 0, rule, shape, name=f"{name}.shape")
        return wait_on_cpu(compiled(state, batch, *more), mesh)

    return sharded
