"""How a command ends by an error or a signal: with one line and an exit status.

Bad input fails in the same way each time. Trouble may pass by itself, or belongs to the machine: a
full disk, no more memory or files, a lock that another process holds. A scheduler should try again
after trouble, and not after bad input.
"""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator

from dfm_jax.training.stopping import ExitStatus, NonFiniteError, Stopped, raising_signals

_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "EINTR", "EBUSY", "EIO"),
        *("ETIMEDOUT", "ESTALE", "ENOLCK", "ETXTBSY", "EDEADLK", "ENOBUFS", "EREMOTEIO"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "ECONNABORTED", "ECONNRESET", "ECONNREFUSED"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENOTCONN"),
    )
    if hasattr(errno, name)
)
# XLA and tensorstore raise what the system said as text.
_OUT_OF = re.compile(
    r"RESOURCE_EXHAUSTED\b|Out of memory allocating|can't start new thread|std::bad_alloc"
)
_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")


def passes(error: BaseException) -> bool:
    """Whether an error, or the error from which it was raised, is trouble that may pass."""
    if isinstance(error, (MemoryError, TimeoutError, BlockingIOError, InterruptedError)):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING:
        return True
    if isinstance(error, (RuntimeError, ValueError)):
        said = str(error)
        codes = {int(code) for code in _SYSTEM_ERROR.findall(said)}
        if codes & _PASSING or _OUT_OF.search(said):
            return True
    return error.__cause__ is not None and passes(error.__cause__)


def status_of(error: BaseException) -> ExitStatus | None:
    """The exit status for an error; None if the error is a mistake in the program."""
    if isinstance(error, KeyboardInterrupt):
        return error.status if isinstance(error, Stopped) else ExitStatus.SIGINT
    if isinstance(error, NonFiniteError):
        return ExitStatus.NON_FINITE
    if isinstance(error, BrokenPipeError):
        return ExitStatus.SIGPIPE
    if passes(error):
        return ExitStatus.TROUBLE
    bad = isinstance(error, (ValueError, OSError)) or _is_missing_data(error)
    return ExitStatus.BAD_INPUT if bad else None


def _is_missing_data(error: BaseException) -> bool:
    if not isinstance(error, ImportError):
        return False
    from dfm_jax.data.packages import MissingDataError  # imports jax, which most commands await

    return isinstance(error, MissingDataError)


def ended(prog: Callable[[], str], run: Callable[[], int], *, stopped: str = "") -> int:
    """Run a command; return its exit status, or print its error as a line and return that status.

    A mistake in the program is raised again. Nothing is printed if the reader of the output has
    closed it. After a signal, which printed a line when it came, only `stopped` is printed.
    """
    with raising_signals():
        try:
            with _flushed():
                return int(run())
        except (Exception, KeyboardInterrupt) as error:
            status = status_of(error)
            if status is None:
                raise
            if isinstance(error, KeyboardInterrupt):
                told = stopped if isinstance(error, Stopped) or stopped else "stopped."
            else:
                told = _told(error, status)
            if told and status != ExitStatus.SIGPIPE:
                with contextlib.suppress(OSError, ValueError):
                    print(f"{prog()}: {told}", file=sys.stderr, flush=True)
            return int(status)


def _told(error: BaseException, status: ExitStatus) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError):
        text = f"no memory is left: {text}"
    if status != ExitStatus.TROUBLE:
        return text
    return f"{text.removesuffix('.')}. This may pass: give the same command again."


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """A context that flushes stdout at its end; an error inside comes before one of the flush."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            _flush()
        raise
    _flush()


def _flush() -> None:
    if sys.stdout is None or sys.stdout.closed:
        return
    try:
        sys.stdout.flush()
    except OSError:  # the interpreter would try again at its end, and complain
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
        raise
