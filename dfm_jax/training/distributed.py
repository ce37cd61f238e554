"""One run over many devices of one or several processes, with one process for each host.

Each process puts its rows on its devices; nothing else depends on the other processes. A batch is a
pure function of (key, step), so each process makes the whole batch and keeps its rows. Processes
that train one member together are joined by `jax.distributed`.

All processes run the same program on their own devices. Only the first one writes. Checkpoints lie
where all processes can read them. If one process gets a signal or finds a damaged checkpoint, all
of them agree on what to do.

If one process fails, all end. For a bad config, a loss that is not finite or a full disk, all end
with the same status. If one process dies, by SIGKILL or a crash, the others cannot go on and end
with SIGABRT. They end at once if the dead process was the first, which coordinates. Otherwise they
end after `HEARTBEAT_SECONDS` without heartbeats, or after the first process has waited
`SHUTDOWN_SECONDS` for the others to end. The same command, given again on all hosts, goes on.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dfm_jax.checks import require
from dfm_jax.durable import TemporaryError
from dfm_jax.parallel import Placement, make_mesh, sharded_step
from dfm_jax.parallel.independent import wait_on_cpu
from dfm_jax.training.digests import host_leaves
from dfm_jax.training.stopping import ExitStatus, StopRequest
from dfm_jax.training.trouble import status_of

HEARTBEAT_SECONDS, SHUTDOWN_SECONDS = 100, 60
Result = TypeVar("Result")


def join_processes() -> None:
    """Make this process one of those that train a member; call it before jax uses a device.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID describe the processes; in a SLURM
    step or on a Cloud TPU, jax finds them by itself. A process has all devices of its host, or
    those that JAX_LOCAL_DEVICE_IDS names.

    Raises:
        ValueError: if neither the variables nor jax describe the processes.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    # Not None: jax would then give a task of SLURM one device, whatever its host has.
    devices = None if "JAX_LOCAL_DEVICE_IDS" in os.environ else []
    try:
        jax.distributed.initialize(
            num_processes=_number("JAX_NUM_PROCESSES"),
            process_id=_number("JAX_PROCESS_ID"),
            local_device_ids=devices,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise ValueError(
            "`distributed` needs JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, "
            f"or a step of SLURM, or a Cloud TPU: {error}"
        ) from error


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def gathered(number: int) -> np.ndarray:
    """The numbers, each below 2³¹, of all processes in their order: [P]. All must call it."""
    if jax.process_count() == 1:
        return np.array([number], np.int32)
    return np.asarray(multihost_utils.process_allgather(np.int32(number)))


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """If one process fails here, all fail, because the others would wait for it for ever.

    Raises:
        ValueError: if another process got bad input.
        TemporaryError: if another process met trouble that may pass.
        RuntimeError: if another process failed for another reason.
    """
    try:
        yield
    except Exception as error:
        gathered(int(status_of(error) or 1))
        raise
    codes = gathered(0)
    kinds = {ExitStatus.BAD_INPUT: ValueError, ExitStatus.TROUBLE: TemporaryError}
    for process in np.flatnonzero(codes):
        kind = kinds.get(codes[process], RuntimeError)
        raise kind(f"Process {process} of {len(codes)} cannot go on, and it says why.")


def in_turn(first: Callable[[], Result], others: Callable[[], Result]) -> Result:
    """Call `first` in the first process, then `others` in the others; each returns its result."""
    found: Any = None
    for turn in (True, False):
        with all_or_none():
            if is_first() == turn:
                found = (first if turn else others)()
    return found


def check_same(name: str, digest: str) -> None:
    """Check that a thing with this hexadecimal digest is the same in all processes.

    Raises:
        ValueError: if it is not; the message names the processes that differ from the first.
    """
    scalars = gathered(int(digest[:7], 16))
    others = np.flatnonzero(scalars != scalars[0])
    rule = f"{name} must be the same in every process as in the first one"
    require(len(others) == 0, rule, others, name="processes that differ")


def agree_to_stop(stop: StopRequest) -> bool:
    """Whether a signal has come to any of the processes; if so, all of them stop."""
    if jax.process_count() == 1:
        return stop.signal is not None
    agreed = int(gathered(stop.signal or 0).max())
    if agreed:  # else one may have come while they asked: it is for the next time
        stop.signal = agreed
    return agreed > 0


class NullLogger:
    """A log and a saver for a process that writes nothing."""

    def write(self, step: int, **values: float) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def save(self, step: int, state: Any, metrics: dict[str, float]) -> None:
        """Take part when the leaves are gathered, and write nothing."""
        host_leaves(state)

    def wait(self) -> None:
        """Do nothing."""


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    require(text is None or text.isdecimal(), f"`{name}` must be a number", text)
    return None if text is None else int(text)


class Layout(NamedTuple):
    """The devices, along an axis `data`, and the placement of the state: see `state_shardings`."""

    mesh: Mesh
    placement: Placement = "replicated"


def over_all_devices(placement: Placement) -> Layout:
    """A layout over all devices of all processes."""
    return Layout(make_mesh({"data": len(jax.devices())}), placement)


def sharded_init(init: Callable[..., Any], shardings: Any) -> Callable[[np.ndarray, Any], Any]:
    """A function (data of a key, values) → state, which makes each part where it will lie.

    Its state is `init(key, values)`.
    """
    return jax.jit(
        lambda data, values: init(jax.random.wrap_key_data(data), values), out_shardings=shardings
    )


def sharded_update(
    step: Callable[..., tuple[Any, Any]], template: Any, layout: Layout
) -> Callable[..., tuple[Any, Any]]:
    """`step(state, batch, key)` over the devices; every process has the whole batch and the key."""
    mesh, placement = layout

    def unwrapped(state: Any, batch: Any, data: Any) -> tuple[Any, Any]:
        return step(state, batch, jax.random.wrap_key_data(data))

    compiled = sharded_step(unwrapped, mesh, template, placement=placement)
    return lambda state, batch, key: compiled(state, *_put(mesh, batch, key))


def sharded_evaluation(evaluation: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`evaluation(params, batch, key)` over the devices; rows are split, and all get all losses.

    As in a training step, the parameters are gathered for a batch and dropped after it. So
    evaluation needs no more memory than training, and uses all devices.
    """
    whole = NamedSharding(mesh, PartitionSpec())

    @partial(jax.jit, out_shardings=whole)
    def over_rows(params: Any, batch: Any, *data: Any) -> Any:
        params = jax.lax.with_sharding_constraint(params, whole)
        return evaluation(params, batch, *map(jax.random.wrap_key_data, data))

    def evaluated(params: Any, batch: Any, *keys: Any) -> Any:
        return wait_on_cpu(over_rows(params, *_put(mesh, batch, *keys)), mesh)

    return evaluated


def _put(mesh: Mesh, batch: Any, *keys: Any) -> tuple[Any, ...]:
    """Put rows on their devices, and the data of keys on all; nothing waits for the host."""

    def put(spec: PartitionSpec, leaf: Any) -> Any:
        lies = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(np.shape(leaf), lies, lambda index: leaf[index])

    rows = jax.tree.map(partial(put, PartitionSpec(*mesh.axis_names)), batch)
    return rows, *(put(PartitionSpec(), jax.random.key_data(key)) for key in keys)
