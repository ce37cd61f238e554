"""How a run ends: the exit statuses of the commands, and signals that ask it to stop.

0    finished, or found finished
1    a claim was judged and failed
2    input that cannot be used: a config, a data set, a checkpoint
3    a loss, a gradient or an update was not finite
4    `launch`: a job failed, and the others went on
130  stopped by SIGINT (Ctrl-C), everything saved: the same command goes on
143  stopped by SIGTERM, everything saved: the same command goes on
"""

import contextlib
import enum
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class ExitStatus(enum.IntEnum):
    """What the commands return to the system; a scheduler restarts on 130 and 143."""

    FINISHED = 0
    FAILED_CLAIM = 1
    BAD_INPUT = 2
    NON_FINITE = 3
    MEMBER_FAILED = 4
    SIGINT = 130
    SIGTERM = 143


class NonFiniteError(ArithmeticError):
    """A loss, a gradient or an update that is infinite or no number; the run has stopped."""


class StopRequest:
    """Whether a signal has come; a loop asks between its steps."""

    signal: int | None = None

    @property
    def status(self) -> ExitStatus:
        """128 + the number of the signal."""
        return ExitStatus(128 + self.signal) if self.signal else ExitStatus.FINISHED


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """While it lasts, the first SIGTERM or SIGINT is only noted; a second acts as usual.

    Signals reach the main thread only: in another one, nothing is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        request.signal = number
        restore()

    for number in numbers:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
