"""Checkpoints: each is a folder that is complete or absent, and is verified whenever it is read.

    STEP/state/            the arrays, as orbax writes them
    STEP/checkpoint.json   step, config, data, metrics; type, shape and SHA-256 of every leaf
    STEP/SHA256SUMS        SHA-256 of every file

orbax itself does not notice a flipped bit, turns NamedTuples into lists, and may hang on a leaf
without elements. Only this module uses it. Leaves are given to it on the host, by their paths, so a
checkpoint from any arrangement of devices can be read into any other.

A thread writes the checkpoints of a member of a run; the last ones and the best one are kept:

    RUN/expert_003/200   RUN/expert_003/400 …   and, while it is written, 600.writing

A lock makes sure that only one process writes; the system frees it when the process dies. On an
object store a lease takes its place, see `storage.lease`. A damaged checkpoint is never used and
never deleted: it is renamed to `STEP.damaged`.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import check_count
from dfm_jax.durable import NewFolder, TemporaryError, lock
from dfm_jax.json_text import read_json
from dfm_jax.json_types import from_json
from dfm_jax.storage.folders import Folder, StorePath, held, on_disk
from dfm_jax.storage.lease import whole_lines
from dfm_jax.training.config import differences_until, lengthening_hint
from dfm_jax.training.digests import (
    CheckpointError,
    DamagedError,
    array_spec,
    check_folder,
    check_listed,
    host_leaves,
    is_key,
    named_leaves,
    seal_folder,
)
from dfm_jax.training.distributed import all_or_none, gathered, is_first
from dfm_jax.training.metrics import METRICS
from dfm_jax.training.trouble import passes

RECORD, STATE, LOCK = "checkpoint.json", "state", ".lock"
WRITING, DELETING = ".writing", ".deleting"


class Record(NamedTuple):
    """The record that a checkpoint holds about itself."""

    step: int
    config: dict[str, Any]
    metrics: dict[str, float]
    leaves: dict[str, dict[str, Any]]  # dtype, shape, sha256, and of a key `impl`
    sha256: str  # of its SHA256SUMS, hence of all of it


class _Written(NamedTuple):
    """The content of checkpoint.json."""

    step: int
    config: dict[str, Any]
    metrics: dict[str, float]
    leaves: dict[str, dict[str, Any]]


class _Leaf(NamedTuple):
    """An entry of the list of leaves."""

    dtype: str
    shape: list[int]
    sha256: str
    impl: str | None = None  # of a key


def write_checkpoint(
    folder: Path,
    state: Any,
    *,
    step: int,
    config: dict[str, Any],
    metrics: dict[str, float] | None = None,
) -> str:
    """Write `folder`, which gets its name last; return the SHA-256 of its SHA256SUMS.

    Raises:
        ValueError: if the folder exists already; if a leaf is not an array, or has no element.
    """
    return write_leaves(
        folder, host_leaves(state), leaf_records(state), step=step, config=config, metrics=metrics
    )


def leaf_records(state: Any) -> dict[str, dict[str, Any]]:
    """What the arrays alone do not tell: which leaves are keys, and of which generator."""
    leaves = [(name, leaf) for name, leaf in named_leaves(state) if is_key(leaf)]
    return {name: {"impl": _generator(leaf)} for name, leaf in leaves}


def write_leaves(
    folder: Path,
    leaves: dict[str, np.ndarray],
    kinds: dict[str, dict[str, Any]],
    *,
    step: int,
    config: dict[str, Any],
    metrics: dict[str, float] | None = None,
) -> str:
    """`write_checkpoint` for leaves that are on the host already; it is safe in another thread."""
    folder = folder.absolute()
    if folder.exists():
        rule = "`folder` must not exist yet, because a checkpoint is never overwritten"
        raise ValueError(f"{rule}; got folder = {str(folder)!r}.")
    record = {
        "step": step,
        "config": config,
        "metrics": metrics or {},
        "leaves": {name: array_spec(leaf) | kinds.get(name, {}) for name, leaf in leaves.items()},
    }
    with NewFolder(folder, suffix=WRITING) as new:
        with _orbax() as orbax:
            orbax.save(new.path / STATE, args=_save_args(leaves))
        new.write(RECORD, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
        digest = seal_folder(new.path)
        new.finish()
    return digest


def read_record(folder: Folder) -> Record:
    """Read the record of a checkpoint, after all its files were verified.

    Raises:
        CheckpointError: if it is missing, or is not a record of this version.
        DamagedError: if a file is not as it was written; the message names it.
        OSError, MemoryError: if it cannot be read now, which does not mean that it is damaged.
    """
    with on_disk(folder) as files:
        digest = check_folder(files)
        return Record(**_own_record(files)._asdict(), sha256=digest)


def read_evaluated(folder: Folder) -> dict[str, float]:
    """Read the metrics in a checkpoint, verified, without reading its arrays.

    Raises:
        DamagedError: if the record is not as it was written.
        CheckpointError, OSError: as `read_record`.
    """
    check_listed(folder, RECORD)
    return _own_record(folder).metrics


def _own_record(folder: Folder) -> _Written:
    """The record of a checkpoint whose digest is good; anything odd in it was written so."""
    try:
        record = from_json(_Written, read_json(folder / RECORD), where="record")
        check_count("record.step", record.step, at_least=0)
        for name, leaf in record.leaves.items():
            from_json(_Leaf, leaf, where=f"record.leaves.{name}")
        return record
    except ValueError as error:
        raise CheckpointError(
            f"{folder}: {RECORD} must be as this version writes it; got another content: {error}"
        ) from error


def read_checkpoint(folder: Folder, template: Any, *, config: dict[str, Any] | None = None) -> Any:
    """Read a state in the structure of `template`, whose leaves have `shape`, `dtype`, `sharding`.

    A template is a state, or `jax.eval_shape` of a function that makes one. A leaf goes to the
    devices of its template, or to the default device if the template has none.

    Args:
        folder: `RUN/MEMBER/STEP`.
        template: A template of all leaves, or of some: `{"params": …}` reads only the parameters.
        config: The config with which the checkpoint must have been made, see `differences_until`;
            with None, any config is accepted.

    Raises:
        CheckpointError: if the checkpoint is missing or was made with another config, or if its
            leaves are not those of the template.
        DamagedError: if its files or arrays are not as they were written.
        OSError, MemoryError: if it cannot be read now, which does not mean that it is damaged.
    """
    with on_disk(folder) as files:
        return _read(files, template, config)


def _read(folder: Path, template: Any, config: dict[str, Any] | None) -> Any:
    record = read_record(folder)
    if config is not None:
        for field, expected, found in differences_until(record.step, config, record.config):
            raise CheckpointError(
                f"{folder}: `{field}` of the checkpoint must be {expected!r}, as in the config of "
                f"this run; got {field} = {found!r}.{lengthening_hint(field, expected, found)}"
            )
    for name, leaf in named_leaves(template):
        _check_leaf(folder, name, leaf, record.leaves.get(name))
    leaves = _restored(folder, record)
    for name, _ in named_leaves(template):
        expected, found = record.leaves[name]["sha256"], array_spec(leaves[name])["sha256"]
        if expected != found:
            raise DamagedError(
                f"{folder}: the SHA-256 of the leaf `{name}` must be {expected[:16]}…; got SHA-256 "
                f"= {found[:16]}…. The leaf is damaged."
            )
    placed = [_placed(leaves[name], leaf) for name, leaf in named_leaves(template)]
    return jax.tree.unflatten(jax.tree.structure(template), placed)


def _restored(folder: Path, record: Record) -> dict[str, np.ndarray]:
    """The arrays of verified files; if orbax fails on them, they are not damaged.

    They may have changed since then, so they are verified again. If the system refuses something,
    tensorstore says so in the text of a ValueError, which `passes` reads.
    """
    try:
        with _orbax() as orbax:
            leaves = orbax.restore((folder / STATE).absolute(), args=_restore_args(record.leaves))
    except Exception as error:
        if isinstance(error, OSError) or passes(error):
            raise
        check_folder(folder)
        raise CheckpointError(
            f"{folder}: orbax cannot read the files, although they are as they were written: "
            f"{error}"
        ) from error
    for name in record.leaves:
        if name not in leaves:
            raise CheckpointError(f"{folder}: orbax finds no leaf `{name}` in its files.")
    return leaves


def _check_leaf(folder: Path, name: str, leaf: Any, found: dict[str, Any] | None) -> None:
    if found is None:
        raise CheckpointError(
            f"{folder}: the checkpoint does not hold the leaf `{name}`, which the template has."
        )
    if is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        expected = {"impl": _generator(leaf), "shape": list(data.shape)}
    else:
        expected = {"dtype": str(jnp.dtype(leaf.dtype)), "shape": list(leaf.shape)}
    for what, value in expected.items():
        if found.get(what) != value:
            raise CheckpointError(
                f"{folder}: the {what} of the leaf `{name}` must be {value}; got {what} = "
                f"{found.get(what)}."
            )


def _generator(leaf: Any) -> str:
    """The generator of a key, or of a key's shape; `key_impl` takes arrays only, traced or not."""
    names = []
    shape = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    jax.eval_shape(lambda key: names.append(str(jax.random.key_impl(key))), shape)
    return names[0]


def _placed(array: np.ndarray, leaf: Any) -> Any:
    value: Any = array
    if is_key(leaf):
        value = jax.random.wrap_key_data(jnp.asarray(array), impl=_generator(leaf))
    lies = getattr(leaf, "sharding", None)
    if lies is None or lies.is_fully_addressable:
        return jax.device_put(value, lies)
    return jax.make_array_from_callback(value.shape, lies, lambda index: value[index])


def _orbax() -> Any:
    import orbax.checkpoint as ocp

    here = jax.process_index()  # or orbax waits for all processes, and only one writes
    alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _save_args(leaves: dict[str, np.ndarray]) -> Any:
    import orbax.checkpoint as ocp

    return ocp.args.PyTreeSave(leaves)


def _restore_args(leaves: dict[str, Any]) -> Any:
    import orbax.checkpoint as ocp

    kind = ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.args.PyTreeRestore(restore_args=dict.fromkeys(leaves, kind))


# ── of a member ───────────────────────────────────────────────────────────────────────────────────


ASIDE = ".damaged"
# The metric that says which checkpoint is best, the lowest; a run has one of them.
BEST = tuple(METRICS.values())


class Resumed(NamedTuple):
    """A state to continue from, its step, and the damaged checkpoints that were found before it."""

    step: int
    state: Any
    damaged: tuple[str, ...]


def checkpoint_steps(folder: Folder) -> list[int]:
    """The steps of the checkpoints in a folder, ascending; unfinished ones are not included."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def best_step(folder: Folder) -> int | None:
    """The step of the lowest validation loss, the first if equal; None if none was evaluated.

    All records are verified first, because a damaged one may have been the best.

    Raises:
        DamagedError: if a record is not as it was written.
    """
    while True:
        steps = checkpoint_steps(folder)
        try:
            return _lowest({step: _validation(folder / str(step)) for step in steps})
        except (CheckpointError, TemporaryError):
            if checkpoint_steps(folder) == steps:  # else a process that trains has removed one
                raise


def resume(folder: Folder, template: Any, config: dict[str, Any]) -> Resumed | None:
    """The last good state of a run, or None if it has saved none.

    A damaged checkpoint is set aside, by another name, and reported; the one before it is taken. A
    run is a function of config, data and step, so the result is the same and only comes later. If
    checkpoints were set aside, now or earlier, and none is good, the run does not start again by
    itself.

    Raises:
        CheckpointError: if a checkpoint was made with another config, or none of them is good.
        OSError, MemoryError: if one cannot be read now; it is not changed.
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
            f"{folder}: no good checkpoint is left. To begin anew, take another run folder, or "
            f"remove what was set aside: {', '.join(aside)}. {' '.join(damaged)}".rstrip()
        )
    return None


def set_aside(folder: Folder) -> list[str]:
    """The names of the damaged checkpoints in a folder that were renamed."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in names if re.fullmatch(rf"\d+{re.escape(ASIDE)}(\.\d+)?", name))


def resume_together(folder: Folder, template: Any, config: dict[str, Any]) -> Resumed | None:
    """`resume` and the lock for the first process; the others read the step that it found.

    Raises:
        CheckpointError: as `resume`; all processes raise it if one does.
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
def sole_writer(folder: Folder, **told: int) -> Iterator[Path]:
    """Hold the folder for this process, and delete unfinished files of a process that was killed.

    While it is held, the file `.lock` says in a line of JSON which process holds it, on which host
    and since when (`began`, in seconds since 1970), and what is `told`. Only the lock itself says
    that it is held: the line of a process that was killed stays. On an object store `head.json`
    says so, see `storage.lease`.

    The context gives the folder of this disk in which the process writes files that grow: the
    folder itself, or one that lasts as long as the context if the folder is on an object store.

    Raises:
        TemporaryError: if another process holds the folder.
    """
    if isinstance(folder, StorePath):
        with held(folder, told) as scratch:
            yield scratch
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        lock(descriptor, f"{folder}: another process is training here.")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "began": time.time()} | told
        with contextlib.suppress(OSError):  # a full disk may have room for what matters
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)
        for path in folder.iterdir():
            if path.name.endswith((WRITING, DELETING)):
                shutil.rmtree(path)
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


class Saver:
    """Writes one checkpoint at a time in its own thread; as a context manager it waits at the end.

    `save` returns when the state is copied to the host, so the state may then be donated. The next
    call raises an error of the thread.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        config: dict[str, Any],
        keep_last: int = 2,
        log: Path | None = None,
    ) -> None:
        """Save into `folder`; the caller holds `sole_writer`.

        A folder on an object store gets the file `log` together with each checkpoint.
        """
        check_count("keep_last", keep_last)
        self.folder, self.config, self.keep_last, self.log = folder, config, keep_last, log
        self._losses: dict[int, float | None] = {}  # of checkpoints on a store, once verified
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None

    def __enter__(self) -> "Saver":
        """Nothing is done before the first `save`."""
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Wait for the last checkpoint; raise its error unless another one is already raised."""
        try:
            self.wait()
        except Exception:
            if kind is None:
                raise
        finally:
            self._thread.shutdown()

    def save(self, step: int, state: Any, metrics: dict[str, float]) -> None:
        """Begin to write the checkpoint of a step, after the previous one is complete."""
        self.wait()
        leaves, kinds = host_leaves(state), leaf_records(state)
        self._pending = self._thread.submit(self._write, step, leaves, kinds, metrics)

    def wait(self) -> None:
        """Wait until the last checkpoint is complete."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, step: int, leaves: dict, kinds: dict, metrics: dict[str, float]) -> None:
        content = {"step": step, "config": self.config, "metrics": metrics}
        if isinstance(self.folder, StorePath):
            with tempfile.TemporaryDirectory(prefix="dfm_jax_") as scratch:
                new = Path(scratch) / str(step)
                write_leaves(new, leaves, kinds, **content)
                added: dict[str, bytes | Path] = {new.name: new}
                added |= {} if self.log is None else {self.log.name: whole_lines(self.log)}
                self.folder.commit(added, removed=self._superseded(step, metrics))
            return
        write_leaves(self.folder / str(step), leaves, kinds, **content)
        for old in self._superseded(step, metrics):
            # A name of its own first: a folder that is half deleted must not look like a whole one.
            doomed = (self.folder / old).rename(self.folder / f"{old}{DELETING}")
            shutil.rmtree(doomed)

    def _superseded(self, step: int, metrics: dict[str, float]) -> list[str]:
        """The checkpoints that need not be kept beside that of a step, which is the last one."""
        losses = {**self._losses, step: _validation_of(metrics)}
        steps = sorted({*checkpoint_steps(self.folder), step})
        for known in steps:
            if known not in losses:
                with contextlib.suppress(DamagedError):  # whoever reads it will say so
                    losses[known] = _validation(self.folder / str(known))
        if isinstance(self.folder, StorePath):  # where each look costs requests
            self._losses = losses
        # What is damaged cannot be judged, so it is kept.
        superseded = (set(steps[: -self.keep_last]) & losses.keys()) - {_lowest(losses)}
        return [str(old) for old in sorted(superseded)]


def _validation(folder: Folder) -> float | None:
    return _validation_of(read_evaluated(folder))


def _validation_of(metrics: dict[str, float]) -> float | None:
    return next((metrics[name] for name in BEST if name in metrics), None)


def _lowest(losses: dict[int, float | None]) -> int | None:
    known = {step: loss for step, loss in losses.items() if loss is not None}
    return min(known, key=lambda step: (known[step], step)) if known else None


def _set_aside(path: Folder) -> Folder:
    number, aside = 0, path.with_name(f"{path.name}{ASIDE}")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}{ASIDE}.{number}")
    return path.rename(aside)  # type: ignore[arg-type]
