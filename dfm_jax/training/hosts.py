"""Processes that train one member together, a process a host, under `jax.distributed`.

All run the same program on their own devices. The first alone writes; checkpoints lie where all can
read them. What each could know for itself, a signal or a damaged checkpoint, they agree on.

They are one failure domain. Of a bad config, a loss that is not finite or a disk that is full, all
end with the same status. Where one dies by itself, of a SIGKILL or a crash, the others cannot go
on, and end with SIGABRT: at once if it was the first, which coordinates; else when its heartbeats
have been missed for `HEARTBEAT_SECONDS`, or the first has waited `SHUTDOWN_SECONDS` for the others
to end with it. The same command, given again to all, goes on.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dfm_jax.checks import require
from dfm_jax.durable import TemporaryError
from dfm_jax.training.digests import host_leaves
from dfm_jax.training.stopping import ExitStatus, StopRequest
from dfm_jax.training.trouble import status_of

HEARTBEAT_SECONDS, SHUTDOWN_SECONDS = 100, 60
Result = TypeVar("Result")


def join_processes() -> None:
    """Make this process one of those that train a member; before jax is asked for a device.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say which, or jax finds out, in a
    step of SLURM or on a Cloud TPU. A process has all devices of its host, or those that
    JAX_LOCAL_DEVICE_IDS names.

    Raises:
        ValueError: if neither says.
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
            "`distributed` needs JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, a "
            f"step of SLURM or a Cloud TPU: {error}"
        ) from error


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def gathered(number: int) -> np.ndarray:
    """The numbers of all processes, below 2³¹, in their order: [P]. All must call it."""
    if jax.process_count() == 1:
        return np.array([number], np.int32)
    return np.asarray(multihost_utils.process_allgather(np.int32(number)))


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """What fails in one process fails in all, who would wait for it for ever.

    Raises:
        ValueError: if it was bad input elsewhere; TemporaryError: if it was trouble that passes;
            RuntimeError: if it was anything else.
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
        raise kind(f"process {process} of {len(codes)} cannot go on, and says why.")


def in_turn(first: Callable[[], Result], others: Callable[[], Result]) -> Result:
    """What the first process makes of `first`; the others of `others`, when it has."""
    found: Any = None
    for turn in (True, False):
        with all_or_none():
            if is_first() == turn:
                found = (first if turn else others)()
    return found


def check_same(name: str, digest: str) -> None:
    """What has this hexadecimal digest is the same in all processes.

    Raises:
        ValueError: naming the processes in which it is not that of the first.
    """
    numbers = gathered(int(digest[:7], 16))
    others = np.flatnonzero(numbers != numbers[0])
    rule = f"{name} must be those of the first process in every one; the list of others"
    require(len(others) == 0, rule, others)


def agree_to_stop(stop: StopRequest) -> bool:
    """Whether a signal has come to any of the processes; then it has come to each."""
    if jax.process_count() == 1:
        return stop.signal is not None
    agreed = int(gathered(stop.signal or 0).max())
    if agreed:  # else one may have come while they asked: it is for the next time
        stop.signal = agreed
    return agreed > 0


class Onlooker:
    """The log and the saver of a process that writes nothing."""

    def write(self, step: int, **values: float) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def save(self, step: int, state: Any, metrics: dict[str, float]) -> None:
        """Take part in gathering the leaves."""
        host_leaves(state)

    def wait(self) -> None:
        """Nothing."""


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    require(text is None or text.isdecimal(), f"{name} must be a number", repr(text))
    return None if text is None else int(text)
