"""Both ends of the connection between `benchmarks` and a side, which waits for commands.

It uses only the standard library and NumPy, because a peer's environment may have no more.
"""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """One form of one workload, with its data."""

    run: Callable[[], Any]  # the work, once and to its end; what comes back is its result
    shown: Callable[[Any], Any] | None = None  # of a result, what JSON holds and a check compares


KEEP = "keep"
"""The last word of the command of our side, if it keeps its buffers as commands of the package do.
"""

Prepare = Callable[[str, dict[str, int], Mapping[str, np.ndarray]], dict[str, Case]]


# ── the end that obeys ──────────────────────────────────────────────────────────────────────────


def serve(prepare: Prepare) -> None:
    """Answer commands until the input ends: a line of JSON in, a line of JSON out.

    {"do", "workload", "size", "data", "form", "reps"}: The answer to "time" is the seconds of each
    repetition, to "memory" the peak of one, and to "check" a summary of each repetition's result.
    """
    # What libraries print is no answer: it goes where errors go.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    loaded, cases = None, {}
    for line in sys.stdin:
        order = json.loads(line)
        if order["data"] != loaded:
            cases.clear()  # before the next is read: one size is in memory
            with np.load(order["data"]) as arrays:
                cases = prepare(order["workload"], order["size"], dict(arrays))
            loaded = order["data"]
        answers.write(json.dumps(obeyed(cases[order["form"]], order)) + "\n")
        answers.flush()


def obeyed(case: Case, order: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to one command."""
    if order["do"] == "memory":
        return {"peak_mb": peak_mb(case.run)}
    if order["do"] == "check":
        shown = case.shown
        results = None if shown is None else [shown(case.run()) for _ in range(order["reps"])]
        return {"shown": results}
    seconds = []
    for _ in range(order["reps"]):
        start = time.perf_counter()
        case.run()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds}


def peak_mb(run: Callable[[], Any]) -> float | None:
    """How much the resident memory rises, in MB; None if Linux does not tell.

    Free buffers are returned to the system first, because an allocator that keeps them would hide
    the memory in use. The result is good to about a megabyte.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before) / 2**10


def _status(name: str) -> int:
    """An entry of the process status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1])


# ── the end that orders ─────────────────────────────────────────────────────────────────────────


class Side:
    """A process that waits for commands, with as many processors as it has threads."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        num_threads: int,
        environment: Mapping[str, str],
        folder: Path | None = None,
    ) -> None:
        self.name = name
        threads = {"OMP_NUM_THREADS": str(num_threads), "JAX_PLATFORMS": "cpu"}
        threads |= {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        whole = os.sched_getaffinity(0)
        # Inherited, so that it holds before anything over there counts the processors.
        os.sched_setaffinity(0, sorted(whole)[:num_threads])
        try:
            self.process = subprocess.Popen(
                command,
                cwd=folder or Path(__file__).parents[3],
                env={**os.environ, **threads, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        finally:
            os.sched_setaffinity(0, whole)

    def told(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one command.

        Raises:
            ValueError: if the process has ended.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(order) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self.process.wait()
            self.end()
            raise ValueError(f"The side `{self.name}` has ended with status {status}.")
        return json.loads(line)

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # an order that nobody took
                pipe.close()
