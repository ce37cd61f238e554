"""The checkpoints of one member of a run: written in a thread, the last and the best kept.

    RUN/expert_003/200   RUN/expert_003/400 …   and, while it is written, 600.writing

One writer: a lock that the system frees when a process dies. A damaged checkpoint is never used and
never deleted: it is set aside as `STEP.damaged`.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from dfm_jax.checks import check_count
from dfm_jax.durable import lock
from dfm_jax.training.checkpoint import (
    DELETING,
    WRITING,
    leaf_records,
    read_checkpoint,
    read_evaluated,
    write_leaves,
)
from dfm_jax.training.digests import CheckpointError, DamagedError, host_leaves
from dfm_jax.training.distributed import all_or_none, gathered, is_first
from dfm_jax.training.metrics import METRICS

ASIDE = ".damaged"
# The metric that says which checkpoint is best, the lowest; a run has one of them.
BEST = tuple(METRICS.values())


class Resumed(NamedTuple):
    """A state to go on from, its step, and what was found damaged on the way to it."""

    step: int
    state: Any
    damaged: tuple[str, ...]


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, ascending; what is unfinished has none."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def best_step(folder: Path) -> int | None:
    """The step of the lowest validation loss, the first of equals; None if none was evaluated.

    Every record is verified first: one that is damaged may have been the best.

    Raises:
        DamagedError: if a record is not as it was written.
    """
    losses = {step: _validation(folder / str(step)) for step in checkpoint_steps(folder)}
    return _lowest(losses)


def resume(folder: Path, template: Any, config: dict[str, Any]) -> Resumed | None:
    """The last good state of a run, or None if it has saved none.

    A damaged checkpoint is set aside and named, and the one before it is taken: a run is a function
    of config, data and step, so the result is the same, later. Where checkpoints were set aside,
    now or by an earlier start, and none is good, the run does not begin anew by itself.

    Raises:
        CheckpointError: if a checkpoint was made with another config, or none of them is good.
        OSError, MemoryError: if one cannot be read now; it stays as it is.
    """
    steps, damaged = checkpoint_steps(folder), []
    for step in reversed(steps):
        try:
            state = read_checkpoint(folder / str(step), template, config=config)
        except DamagedError as error:
            aside = _set_aside(folder / str(step))
            damaged.append(f"{error} It is set aside as {aside.name}.")
        else:
            return Resumed(step, state, tuple(damaged))
    if aside := set_aside(folder):
        raise CheckpointError(
            f"{folder}: no good checkpoint is left; to begin anew, take another run folder, or "
            f"remove what is set aside: {', '.join(aside)}. {' '.join(damaged)}".rstrip()
        )
    return None


def set_aside(folder: Path) -> list[str]:
    """The names of the damaged checkpoints that were set aside in a folder."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(name for name in names if re.fullmatch(rf"\d+{re.escape(ASIDE)}(\.\d+)?", name))


def resume_together(folder: Path, template: Any, config: dict[str, Any]) -> Resumed | None:
    """`resume`, and the lock of the first process; the others read the step that it found.

    Raises:
        CheckpointError: see `resume`; in every process, if in one.
    """
    found: Resumed | None = None
    with all_or_none():
        found = resume(folder, template, config) if is_first() else None
    step = int(gathered(found.step if found else 0)[0])
    with all_or_none():
        if not is_first() and step:
            state = read_checkpoint(folder / str(step), template, config=config)
            found = Resumed(step, state, ())
    return found


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; sweep out what a killed one left unfinished.

    Raises:
        TemporaryError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        lock(descriptor, f"{folder}: another process is training here.")
        for path in folder.iterdir():
            if path.name.endswith((WRITING, DELETING)):
                shutil.rmtree(path)
        yield
    finally:
        os.close(descriptor)


class Saver:
    """Writes one checkpoint at a time in a thread of its own; a context that waits at its end.

    What must not wait is `save`: it returns when the state is copied to the host, and so may be
    donated. An error in the thread is raised by the next call.
    """

    def __init__(self, folder: Path, *, config: dict[str, Any], keep_last: int = 2) -> None:
        """A saver into `folder`, for the holder of `sole_writer`."""
        check_count("keep_last", keep_last)
        self.folder, self.config, self.keep_last = folder, config, keep_last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None

    def __enter__(self) -> "Saver":
        """Nothing is done before the first `save`."""
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Wait for the last checkpoint; its error is raised unless another is on its way."""
        try:
            self.wait()
        except Exception:
            if kind is None:
                raise
        finally:
            self._thread.shutdown()

    def save(self, step: int, state: Any, metrics: dict[str, float]) -> None:
        """Begin to write the checkpoint of a step, after the one before is whole."""
        self.wait()
        leaves, kinds = host_leaves(state), leaf_records(state)
        self._pending = self._thread.submit(self._write, step, leaves, kinds, metrics)

    def wait(self) -> None:
        """Until the last checkpoint is whole."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, step: int, leaves: dict, kinds: dict, metrics: dict[str, float]) -> None:
        path = self.folder / str(step)
        write_leaves(path, leaves, kinds, step=step, config=self.config, metrics=metrics)
        steps = checkpoint_steps(self.folder)
        losses: dict[int, float | None] = {}
        for known in steps:
            with contextlib.suppress(DamagedError):  # whoever reads it will say so
                losses[known] = _validation(self.folder / str(known))
        # What is damaged cannot be judged, so it is kept.
        for old in (set(steps[: -self.keep_last]) & losses.keys()) - {_lowest(losses)}:
            # A name of its own first: a folder that is half deleted must not look like a whole one.
            doomed = (self.folder / str(old)).rename(self.folder / f"{old}{DELETING}")
            shutil.rmtree(doomed)


def _validation(folder: Path) -> float | None:
    metrics = read_evaluated(folder)
    return next((metrics[name] for name in BEST if name in metrics), None)


def _lowest(losses: dict[int, float | None]) -> int | None:
    known = {step: loss for step, loss in losses.items() if loss is not None}
    return min(known, key=lambda step: known[step]) if known else None


def _set_aside(path: Path) -> Path:
    number, aside = 0, path.with_name(f"{path.name}{ASIDE}")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}{ASIDE}.{number}")
    return path.rename(aside)
