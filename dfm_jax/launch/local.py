"""Jobs on this machine, one process each; the end of one does not affect the others."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.durable import TemporaryError
from dfm_jax.json_text import read_json
from dfm_jax.json_types import as_type
from dfm_jax.launch.devices import DeviceSet, running_on
from dfm_jax.launch.jobs import Job, logs_folder
from dfm_jax.storage.folders import Folder, write_whole
from dfm_jax.training.stopping import ExitStatus, StopRequest
from dfm_jax.training.trouble import passes

SUMMARY = "launch.json"


class Row(NamedTuple):
    """The state of one job at the end of a launch."""

    job: str
    status: Literal["finished", "failed", "stopped"]  # stopped: by a signal to the launcher
    attempts: int  # of this launch
    seconds: float  # from its first beginning to its end, waits between attempts included
    step: int  # of the last checkpoint
    reason: str  # empty if it finished


def summary_text(rows: Sequence[Row]) -> str:
    """A table with one line per job."""
    width = max(12, *(len(row.job) + 2 for row in rows))
    heading = f"{'job':<{width}}{'status':<10}{'attempts':>9}{'seconds':>10}{'step':>9}  reason"
    lines = [
        f"{row.job:<{width}}{row.status:<10}{row.attempts:>9,}{row.seconds:>10,.1f}"
        f"{row.step:>9,}  {row.reason}".rstrip()
        for row in rows
    ]
    return "\n".join([heading, *lines])


def write_summary(run: Folder, rows: Sequence[Row]) -> Folder:
    """Write RUN/launch.json, completely or not at all."""
    path = run / SUMMARY
    write_whole(path, json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    return path


def planned_rows(jobs: Sequence[Job]) -> list[Row]:
    """A row for each job before it is begun, so that who watches the run knows them all."""
    return [Row(job.name, "stopped", 0, 0.0, job.step, "not begun") for job in jobs]


def read_summary(run: Folder) -> list[Row]:
    """Read the rows of RUN/launch.json.

    Raises:
        ValueError: if it does not have the form that `write_summary` writes; the message names the
            file and what is wrong.
    """
    path = run / SUMMARY
    return as_type(list[Row], read_json(path), str(path))


COMMAND = (sys.executable, "-m", "dfm_jax")
FINAL = (ExitStatus.BAD_INPUT, ExitStatus.NON_FINITE)  # the same again would end the same
_POLL = 0.05  # seconds
_PROG = "python -m dfm_jax"
_MARK = "──────── attempt "
_LONGEST_PAUSE = 60.0  # seconds


def run_jobs(
    jobs: Sequence[Job],
    run: Folder,
    *,
    logs: Path | None = None,
    at_once: int = 1,
    retries: int = 3,
    pause: float = 1.0,
    grace: float = 120.0,
    devices: Sequence[DeviceSet] = (),
    stop: StopRequest | None = None,
    command: Sequence[str] = COMMAND,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Run every job to its end, independently of the others; return the result of each.

    A job that ends with status 0 is finished; with 2 or 3 it has failed. After any other end (a
    signal, a crash, or trouble that may pass, 75) there is another attempt. Attempts that leave a
    newer checkpoint are not limited; at most `retries` attempts in a row may leave none.

    After a signal, each running job gets SIGTERM and has `grace` seconds to end. Then it gets
    SIGKILL, and a later launch continues it from its last checkpoint. Jobs run in sessions of their
    own, so they do not get the terminal's Ctrl-C. If the launcher is killed, they go on.

    Args:
        jobs: Jobs with distinct names.
        run: The folder of launch.json.
        logs: The folder of the logs `NAME.log`, to which output is appended; by default RUN/logs.
            It must be given if the run is on an object store.
        at_once: The number of jobs that run at the same time.
        retries: The number of attempts in a row, after the first, that may leave no newer
            checkpoint.
        pause: The seconds before an attempt after such a failure; they double each time, up to 60.
        grace: The seconds that a job has to save and end after SIGTERM.
        devices: The devices for each of the jobs that run at the same time, from `device_sets` or
            `gpu_sets`. A set that a job has left is given to the next one. By default all jobs see
            all devices.
        stop: The request to stop, checked while waiting.
        command: The command to which the arguments are given.
        say: A function that prints a message for the user.

    Raises:
        ValueError: if an argument is not allowed.
    """
    check_count("at_once", at_once)
    check_count("retries", retries, at_least=0)
    check_interval("pause", pause, 0, float("inf"), ends="[)")
    check_interval("grace", grace, 0, float("inf"), ends="[)")
    names = [job.name for job in jobs]
    rule = "`jobs` must hold a job, and their names must differ"
    require(bool(jobs) and len(set(names)) == len(names), rule, names, name="names")
    rule = f"`devices` must hold {at_once} sets, one for each job that runs at once"
    names = [one.name for one in devices]
    require(not devices or len(devices) == at_once, rule, names)
    logs = logs_folder(run, logs)
    logs.mkdir(parents=True, exist_ok=True)
    stop = StopRequest() if stop is None else stop
    waiting = [_Attempts(job, logs, retries, pause, grace, say) for job in jobs]
    everyone, running, free = tuple(waiting), list[_Attempts](), list(devices)
    _summarized(run, everyone, say)  # who watches the run knows from the beginning who is in it
    try:
        while waiting or running:
            if stop.signal is not None:
                waiting.clear()
                for one in running:
                    one.terminate()
            for one in [one for one in waiting if one.not_before <= time.monotonic()]:
                if len(running) < at_once:
                    waiting.remove(one)
                    if one.begin(command, free[0] if devices else None):
                        running.append(one)
                        del free[:1]
                    elif one.status != "failed":
                        waiting.append(one)
            for one in [one for one in running if one.has_ended()]:
                running.remove(one)
                if one.devices is not None:
                    free.append(one.devices)
                if one.judge(stopping=stop.signal is not None):
                    waiting.append(one)
            time.sleep(_POLL)
    finally:
        for one in running:  # only if we are on our way out with an error, or a second Ctrl-C
            one.kill()
        rows = _summarized(run, everyone, say)
    return rows


def _summarized(
    run: Folder, everyone: "Sequence[_Attempts]", say: Callable[[str], None]
) -> list[Row]:
    rows = [one.row() for one in everyone]
    try:
        write_summary(run, rows)
    except (OSError, ValueError) as error:  # a disk that is full, which the rows say better
        say(f"the summary is not written: {error}")
    return rows


class _Attempts:
    """One job, its process, and the results of its attempts."""

    def __init__(
        self,
        job: Job,
        logs: Path,
        retries: int,
        pause: float,
        grace: float,
        say: Callable[[str], None],
    ) -> None:
        self.job, self.retries, self.pause, self.grace, self.say = job, retries, pause, grace, say
        self.log = logs / f"{job.name}.log"
        self.process: subprocess.Popen | None = None
        self.devices: DeviceSet | None = None
        self.status: Literal["finished", "failed", "stopped"] = "stopped"
        self.reason = "not begun"
        self.attempts = self.fruitless = self.offset = 0
        self.furthest = 0
        self.furthest = self._step()
        self.began: float | None = None
        self.ended: float | None = None
        self.not_before = 0.0
        self.terminated: float | None = None  # when it was asked to end

    def begin(self, command: Sequence[str], devices: DeviceSet | None) -> bool:
        """Start a process that appends its output to the log; return whether this was possible."""
        try:
            self._start(command, devices)
        except OSError as error:  # no room for the log, no more processes: this job's end alone
            self.ended, self.reason = time.monotonic(), f"it could not be begun: {error}"
            self.fruitless += 1
            if passes(error) and self.fruitless <= self.retries:
                self._wait()
                self.say(f"{self.job.name}: {self.reason}; starts again")
            else:
                self.status = "failed"
                self.say(f"{self.job.name}: FAILED: {self.reason}")
            return False
        again = f", attempt {self.attempts}" if self.attempts > 1 else ""
        place = "" if devices is None else f", on {devices.name}"
        self.say(f"{self.job.name}: begins at step {self.furthest}{again}{place}")
        return True

    def _start(self, command: Sequence[str], devices: DeviceSet | None) -> None:
        self.attempts += 1
        self.began = time.monotonic() if self.began is None else self.began
        before = self.log.read_text(errors="replace") if self.log.is_file() else ""
        number = 1 + sum(line.startswith(_MARK) for line in before.splitlines())
        self.devices = devices
        variables, cores = ({}, ()) if devices is None else (devices.variables, devices.cores)
        with self.log.open("a") as log, running_on(cores):
            if before and not before.endswith("\n"):  # it was killed in the middle of a line
                log.write("\n")
            log.write(
                f"{_MARK}{number}, {datetime.now():%Y-%m-%d %H:%M:%S}, step {self.furthest}\n"
            )
            log.flush()
            self.offset = log.tell()
            self.process = subprocess.Popen(
                [*command, *self.job.arguments],
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self.process is not None and self.process.poll() is not None

    def terminate(self) -> None:
        """Send SIGTERM once, because a second one would end it before it saved; at last, kill."""
        if self.process is None:
            return
        now = time.monotonic()
        if self.terminated is None:
            self.terminated = now
            self.process.terminate()
        elif now - self.terminated > self.grace and self.process.poll() is None:
            self.say(f"{self.job.name}: still there {self.grace:g} s after SIGTERM; it is killed")
            self.kill()

    def kill(self) -> None:
        """Kill the process; what it has not saved is lost."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def judge(self, *, stopping: bool) -> bool:
        """Record how the attempt ended; return whether there will be another one."""
        assert self.process is not None
        code, name, step = self.process.returncode, self.job.name, self._step()
        self.ended, progress = time.monotonic(), step > self.furthest
        self.furthest = max(step, self.furthest)
        self.fruitless = 0 if progress else self.fruitless + 1
        if code == ExitStatus.FINISHED:
            self.status, self.reason = "finished", ""
            self.say(f"{name}: finished at step {step}")
            return False
        self.reason = _reason(code, self._printed())
        if stopping and code not in FINAL:
            self.say(f"{name}: stopped at step {step}")
            return False
        if code in FINAL or self.fruitless > self.retries:
            self.status = "failed"
            self.say(f"{name}: FAILED at step {step}: {self.reason}")
            return False
        if self.fruitless:
            self._wait()
        self.say(f"{name}: {self.reason}, at step {step}; starts again")
        return True

    def _wait(self) -> None:
        """Allow no attempt before a pause, which doubles each time."""
        assert self.ended is not None
        wait = min(self.pause * 2.0 ** min(self.fruitless - 1, 30), _LONGEST_PAUSE)
        self.not_before = self.ended + wait

    def row(self) -> Row:
        """The result of the job."""
        ended = time.monotonic() if self.ended is None else self.ended
        seconds = 0.0 if self.began is None else ended - self.began
        return Row(
            self.job.name, self.status, self.attempts, round(seconds, 2), self._step(), self.reason
        )

    def _step(self) -> int:
        """The step of the last checkpoint; the last one known, if it cannot be read now."""
        try:
            return self.job.step
        except (TemporaryError, ValueError) as error:  # the job says it too, and ends alone
            self.say(f"{self.job.name}: {error}")
            return self.furthest

    def _printed(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self.offset)
            return log.read().decode(errors="replace")


def _reason(code: int, printed: str) -> str:
    """The signal's name, or the command's last message, or else the last line of output."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code in (ExitStatus.SIGINT, ExitStatus.SIGTERM):
        return f"stopped by {signal.Signals(code - 128).name}"
    lines = [line.strip() for line in printed.splitlines() if re.search(r"\w", line)]
    # What a command refuses it says by its name; libraries may still talk when it has gone.
    own = [line for line in lines if line.startswith(_PROG)] or lines
    last = re.sub(rf"^{_PROG} \S+: ", "", own[-1]) if own else "nothing was printed"
    return last if code in FINAL else f"status {code}: {last}"
