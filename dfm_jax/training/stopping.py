"""How a command ends: its exit statuses, and the signals that ask it to stop.

0    finished now or before
1    a claim was checked and failed
2    an input that cannot be used: a config, a data set, a checkpoint
3    a loss, a gradient or an update was not finite
4    `launch`: a job failed, and the others went on
75   trouble that may pass: a lock that another process holds, a full disk, no memory; try again
130  stopped by SIGINT (Ctrl-C); the current step is saved, and the same command goes on
141  the reader of the output has closed it
143  stopped by SIGTERM; the current step is saved, and the same command goes on

This module imports only the standard library, so that it can be used before jax is imported.
"""

import contextlib
import enum
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ExitStatus(enum.IntEnum):
    """The exit statuses of commands; a scheduler tries again after 75, 130 and 143."""

    FINISHED = 0
    FAILED_CLAIM = 1
    BAD_INPUT = 2
    NON_FINITE = 3
    MEMBER_FAILED = 4
    TROUBLE = 75  # EX_TEMPFAIL of sysexits.h
    SIGINT = 130
    SIGPIPE = 141
    SIGTERM = 143


class NonFiniteError(ArithmeticError):
    """A loss, a gradient or an update is infinite or NaN; the run has stopped."""


class Stopped(KeyboardInterrupt):
    """A signal asks to stop, and nothing must be saved first."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = ExitStatus(128 + number)


class StopRequest:
    """Whether a signal has come; a loop checks this between its steps."""

    signal: int | None = None
    asked: bool = True  # whether anybody asks; if not, a signal is raised where it comes

    @property
    def status(self) -> ExitStatus:
        """The exit status, which is 128 + the number of the signal."""
        return ExitStatus(128 + self.signal) if self.signal else ExitStatus.FINISHED

    @contextlib.contextmanager
    def between_steps(self) -> Iterator[None]:
        """In this context a loop checks for signals, so that its current state can be saved."""
        before, self.asked = self.asked, True
        try:
            yield
        finally:
            self.asked = before


@contextlib.contextmanager
def stop_on_signals(*, asked: bool = True, at_once: bool = True) -> Iterator[StopRequest]:
    """In this context the first SIGTERM or SIGINT prints a line and is noted.

    Only the main thread gets signals; in another thread nothing is noted.

    Args:
        asked: Whether the caller checks for signals from the beginning. If False, a signal outside
            `StopRequest.between_steps` is raised as `Stopped`.
        at_once: What a second signal does in a process that `listen` made a command. If True, it
            ends the process at once. If False, it is raised as `Stopped`, for a process that must
            end its children. In other processes, such as a notebook, a second signal acts as it did
            before.
    """
    request = StopRequest()
    request.asked = asked
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore(*, ends: bool = False) -> None:
        for number, handler in before.items():
            ours = handler in (_raise_stopped, _end)
            signal.signal(number, signal.SIG_DFL if ends and ours else handler)

    def note(number: int, _: FrameType | None) -> None:
        restore(ends=at_once or not request.asked)
        if not request.asked:
            tell(f"{_name(number)}: stopping; a second signal ends at once.")
            raise Stopped(number)
        request.signal = number
        tell(f"{_name(number)}: what is in hand is saved first; a second signal ends at once.")

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore(ends=at_once and request.signal is not None)


def listen(package: str | None = None) -> None:
    """Make this process a command, in which a signal gives one line and the status 130 or 143.

    Until `raising_signals`, a signal ends the process at once, because imports leave nothing
    unfinished. Closed descriptors 0, 1 and 2 become the null device. Otherwise libraries would
    print into the next file that is opened, which might be a checkpoint.

    Args:
        package: If given, do this only while the process imports for `python -m PACKAGE…`.
    """
    if package is not None and not _is_command(package):
        return
    _open_standard_streams()
    for number in _SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)


@contextlib.contextmanager
def raising_signals() -> Iterator[None]:
    """In this context, in a process that listens, the first signal is raised as `Stopped`."""
    ours = [number for number in _SIGNALS if signal.getsignal(number) is _end]
    for number in ours:
        signal.signal(number, _raise_stopped)
    try:
        yield
    finally:
        for number in ours:
            if signal.getsignal(number) is _raise_stopped:
                signal.signal(number, _end)


def tell(text: str) -> None:
    """Write a line to stderr from within a signal handler, which may have interrupted `print`."""
    line = f"{_command()}: {text}\n"
    try:
        os.write(sys.stderr.fileno(), line.encode())
    except (OSError, ValueError, AttributeError):  # not a file: a notebook, a test; or closed
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            print(line, end="", file=sys.stderr)


def _name(number: int) -> str:
    return signal.Signals(number).name


def _end(number: int, _: FrameType | None) -> None:
    tell(f"{_name(number)}: stopped.")
    os._exit(128 + number)


def _raise_stopped(number: int, _: FrameType | None) -> None:
    for each in _SIGNALS:  # by the system: it waits for no line of Python
        signal.signal(each, signal.SIG_DFL)
    tell(f"{_name(number)}: stopping; a second signal ends at once.")
    raise Stopped(number)


def _is_command(package: str) -> bool:
    """Whether this process imports for `python -m PACKAGE…`, or is a script of that name."""
    if os.path.basename(sys.argv[0]) == package:
        return True
    return sys.argv[0] == "-m" and _module().split(".")[0] == package


def _module() -> str:
    """The NAME of `python -m NAME`; "" in a process that was started in another way."""
    words = sys.orig_argv
    return words[words.index("-m") + 1] if "-m" in words[1:-1] else ""


def _command() -> str:
    return f"python -m {_module()}" if _module() else os.path.basename(sys.argv[0])


def _open_standard_streams() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the lowest that is free, hence this one
            os.open(os.devnull, os.O_RDWR)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", closefd=False))  # noqa: SIM115
