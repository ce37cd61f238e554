"""Trackers: functions that are told the lines of metrics.jsonl, one by one and in order.

A tracker is any function of a step and its scalars. Each line of the log is one call, with the same
numbers under the same names. Within a process steps never decrease; a step that is logged and also
evaluated has two lines, hence two calls, with different names. A run that goes on from a checkpoint
removes the lines after it from the log and makes them again, so the tracker is told these steps
again, with the same numbers. What a known tracker does then:

    tensorboard   hides the events that come again, in the files of the process before
    wandb         goes on in the same run; steps that the server has already are skipped
    trackio       goes on in the same run; a step that comes again is a second row of equal numbers

What a tracker raises does not end a run: see `metrics.MetricsLog`.
"""

import contextlib
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from os import environ
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dfm_jax.storage.folders import Folder, write_whole

Tracker = Callable[[int, Mapping[str, float]], None]
TrackerName = Literal["tensorboard", "trackio", "wandb"]
TRACKER_ID = "tracker_id"  # the file of a member by which trackers know its run again


class _Open(NamedTuple):
    """A tracker that has begun: what it is told with, and how it ends."""

    track: Tracker
    finish: Callable[[bool], None]  # whether the run ended without an error


@contextlib.contextmanager
def open_tracker(
    name: TrackerName | None,
    folder: Folder,
    *,
    config: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[Tracker | None]:
    """The tracker of that name for the member or group in `folder`; None if there is no name.

    It begins when it is told its first line. So a run that was finished before makes no new one,
    and of several processes only the first has a tracker. If it cannot begin, each call raises why.
    An error at its end is told by `say`, which prints to stderr by default, and is not raised.

    A run of wandb is in the project WANDB_PROJECT, one of trackio in TRACKIO_PROJECT. Without this
    variable, the name of the folder that `folder` lies in is the name of the project.

    Raises:
        ValueError: if there is no tracker of that name, or its package is not installed; if
            tensorboard, whose files grow, is asked for and the folder is on an object store.
    """
    if name is None:
        yield None
        return
    if name not in _KNOWN:
        rule = f"`tracker` must be one of {', '.join(_KNOWN)}"
        raise ValueError(f"{rule}; got tracker = {name!r}.")
    if name == "tensorboard" and not isinstance(folder, Path):
        rule = "`tracker` must not be tensorboard if the run is on an object store"
        raise ValueError(f"{rule}; got run = {folder}. Its files grow, and objects do not.")
    known = _KNOWN[name]
    if find_spec(known.package) is None:
        raise ValueError(
            f"The tracker {name} needs the package `{known.package}`, which is not installed: "
            f"`pip install 'dfm_jax[{known.extra}]'`."
        )
    tracker, good = _Tracker(known.begin, folder, config or {}), False
    try:
        yield tracker
        good = True
    finally:
        try:
            tracker.finish(good)
        except Exception as error:
            print_to = (lambda text: print(text, file=sys.stderr)) if say is None else say
            print_to(f"{folder}: the tracker {name} did not end well: {described(error)}")


def described(error: Exception) -> str:
    """The kind of an error, and what it says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")


def tracker_name(tracker: TrackerName | None, tensorboard: bool) -> TrackerName | None:
    """The tracker that two options ask for; the second one is old, and is warned of.

    Raises:
        ValueError: if both are given.
    """
    if not tensorboard:
        return tracker
    if tracker is not None:
        rule = "At most one of `tracker` and `tensorboard` must be given"
        raise ValueError(f"{rule}; got tracker = {tracker!r} too.")
    warn_of_tensorboard("--tensorboard", "--tracker tensorboard")
    return "tensorboard"


def warn_of_tensorboard(old: str, new: str) -> None:
    """Warn that TensorBoard is one tracker of several since version 0.2."""
    warnings.warn_explicit(
        f"`{old}` is `{new}` since version 0.2; got `{old}`, which version 0.3 no longer has.",
        DeprecationWarning,
        filename="dfm_jax",
        lineno=1,
        module="__main__",  # where Python shows such a warning unless it is told not to
    )


class _Tracker:
    """A known tracker, which begins with its first line."""

    def __init__(
        self,
        begin: Callable[[Folder, Mapping[str, Any], int], _Open],
        folder: Folder,
        config: Mapping[str, Any],
    ) -> None:
        self._begin, self._folder, self._config = begin, folder, config
        self._open: _Open | None = None
        self._error: Exception | None = None

    def __call__(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._error is not None:  # not again: it may have waited for a network for minutes
            raise self._error
        if self._open is None:
            try:
                self._open = self._begin(self._folder, self._config, step)
            except Exception as error:
                self._error = error
                raise
        self._open.track(step, scalars)

    def finish(self, good: bool) -> None:
        """End it, if it has begun."""
        if self._open is not None:
            self._open.finish(good)


# ── the trackers that are known by name ───────────────────────────────────────────────────────────


def _begin_tensorboard(folder: Folder, config: Mapping[str, Any], step: int) -> _Open:
    from tensorboardX import SummaryWriter

    # A second session within the second would have the name of the first, and empty its file. A
    # process that is killed flushes nothing, so its thread does it each second.
    writer = SummaryWriter(
        str(folder / "tensorboard"),
        purge_step=step,
        flush_secs=1,
        filename_suffix=f".{step:09d}",
    )

    def track(step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)

    return _Open(track, lambda good: writer.close())


def _begin_trackio(folder: Folder, config: Mapping[str, Any], step: int) -> _Open:
    import trackio  # type: ignore[import-not-found]

    number = _run_id(folder)
    run = trackio.init(
        project=_project("TRACKIO_PROJECT", folder),
        name=f"{folder.name}-{number[:8]}",
        config=dict(config),
        resume="allow",
    )
    return _Open(lambda step, scalars: run.log(dict(scalars), step=step), lambda good: run.finish())


def _begin_wandb(folder: Folder, config: Mapping[str, Any], step: int) -> _Open:
    import wandb  # type: ignore[import-not-found]

    run = wandb.init(
        project=_project("WANDB_PROJECT", folder),
        id=_run_id(folder),
        name=folder.name,
        dir=str(folder) if isinstance(folder, Path) else None,
        config=dict(config),
        resume="allow",
    )
    known = run.step  # the first that it does not have; it would warn of each one before

    def track(step: int, scalars: Mapping[str, float]) -> None:
        if step >= known:
            run.log(dict(scalars), step=step)

    return _Open(track, lambda good: run.finish(exit_code=0 if good else 1))


def _project(variable: str, folder: Folder) -> str:
    return environ.get(variable) or folder.absolute().parent.name


def _run_id(folder: Folder) -> str:
    """A random name, the same whenever the run in this folder goes on."""
    path = folder / TRACKER_ID
    if not path.is_file():
        write_whole(path, uuid.uuid4().hex[:16] + "\n")
    return path.read_text(encoding="utf-8").strip()


class _Known(NamedTuple):
    package: str
    extra: str
    begin: Callable[[Folder, Mapping[str, Any], int], _Open]


_KNOWN: dict[str, _Known] = {
    "tensorboard": _Known("tensorboardX", "tb", _begin_tensorboard),
    "trackio": _Known("trackio", "trackio", _begin_trackio),
    "wandb": _Known("wandb", "wandb", _begin_wandb),
}
