"""The dense model: one run over all devices, which talk at every step.

The step is written for one device and says nothing of others: where its state and its batch lie
decides what the compiler sends. Data-parallel: every device holds the state, and gradients are
summed. Sharded: every device holds a part of each leaf; parameters are gathered for the step and
let go after it, so the memory of the state falls with the number of devices.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dfm_jax.checks import require
from dfm_jax.parallel.independent import wait_on_cpu

Placement = Literal["replicated", "sharded"]


def state_shardings(state: Any, mesh: Mesh, placement: Placement = "replicated") -> Any:
    """Where the leaves of a state lie: a pytree of shardings, of arrays or of their shapes.

    "sharded" cuts each leaf along its longest axis that the devices of the last axis of the mesh
    divide; a leaf without one, a norm's scale or a counter, lies whole on every device.

    Raises:
        ValueError: on any other placement.
    """
    known = ("replicated", "sharded")
    require(placement in known, f"`placement` must be one of {', '.join(known)}", placement)
    axis = mesh.axis_names[-1]

    def lies(leaf: Any) -> NamedSharding:
        spec: list[str | None] = [None] * jnp.ndim(leaf)
        divided = [n for n, size in enumerate(jnp.shape(leaf)) if size % mesh.shape[axis] == 0]
        if placement == "sharded" and divided:
            spec[max(divided, key=lambda n: jnp.shape(leaf)[n])] = axis
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(lies, state)


def sharded_step(
    step: Callable[..., tuple[Any, Any]],
    mesh: Mesh,
    state: Any,
    *,
    placement: Placement = "replicated",
    donate: bool = True,
) -> Callable[..., tuple[Any, Any]]:
    """(state, batch, …) → (state, metrics) over all devices: the batch cut, the state as placed.

    The result equals that of one device up to the order of sums. What comes after the batch, keys
    and numbers, lies whole on every device. On the devices of a CPU a call returns when its step is
    done: steps that run at the same time can block each other there, so wait for each step
    (`jax.block_until_ready`) if you compile it yourself and call what was compiled.

    Args:
        step: of one device; metrics are sums or means over the batch.
        mesh: of one axis, `data`.
        state: as the step takes it, or its shapes; to be sharded, a NamedTuple with `params`.
        placement: see `state_shardings`.
        donate: let the new state take the place of the old.

    Raises:
        ValueError: on an unknown placement or a mesh of two axes; in a call, if the devices do not
            divide the batch.
    """
    rule = "`mesh` must have one axis, because the run lies over all devices"
    require(len(mesh.axis_names) == 1, rule, dict(mesh.shape), name="mesh.shape")
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    shardings = state_shardings(state, mesh, placement)
    put = jax.lax.with_sharding_constraint

    def constrained(state: Any, batch: Any, *more: Any) -> tuple[Any, Any]:
        state = put(state, shardings)
        if placement == "sharded":  # or the compiler may gather whole batches in their place
            state = state._replace(params=put(state.params, whole))
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
