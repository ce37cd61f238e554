"""A SLURM array for sbatch: one task per job, saved and queued again before its time is up.

A cluster limits the tasks of an array, so many jobs become several arrays.
"""

import dataclasses
import itertools
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfm_jax.checks import check_count, require
from dfm_jax.launch.jobs import Job, check_job_lines, check_line, check_word, logs_folder
from dfm_jax.storage.folders import Folder, StorePath

_MAX_ARRAY_SIZE = 1001  # SLURM's default
_TIME = r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|infinite|unlimited"
# The short names of what the script sets; they stand before their value: -a0-3.
_SHORT = {"-a": "array", "-D": "chdir", "-J": "job-name", "-N": "nodes", "-o": "output"}
_SHORT |= {"-c": "cpus-per-task", "-p": "partition", "-t": "time"}
_MEMORY = r"\d+([kmgt]b?)?"


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What a task requests from SLURM; None leaves the choice to the cluster."""

    name: str = "dfm_jax"  # of the array
    at_once: int | None = None  # tasks that run at one time, at most
    partition: str | None = None
    time: str | None = None  # of an attempt: 04:00:00
    gpus: int | None = None  # of each host
    cpus: int | None = None
    memory: str | None = None  # of each host: 64G
    hosts: int = 1  # of each task
    grace: int = 120  # seconds before the time is up at which a task is asked to save
    lines: tuple[str, ...] = ()  # more for sbatch: "--account=a"
    setup: tuple[str, ...] = ()  # commands that come first: "source .venv/bin/activate"
    python: str = "python"

    def __post_init__(self) -> None:
        """Refuse values that sbatch would not understand."""
        for name in ("at_once", "gpus", "cpus", "hosts", "grace"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("name", "partition", "time", "memory"):
            value = getattr(self, name)
            plain = value is None or re.fullmatch(r"[\w.,:+-]+", value) is not None
            require(plain, f"`{name}` must be one word", value)
        for name, form, example in (("time", _TIME, "04:00:00"), ("memory", _MEMORY, "64G")):
            value = getattr(self, name)
            fits = value is None or re.fullmatch(form, value, flags=re.ASCII | re.IGNORECASE)
            require(bool(fits), f"`{name}` must be as SLURM writes it, such as {example}", value)
        for line in self.lines:
            check_line("lines", line)
            rule = "Each of `lines` must be an option of sbatch, such as --account=a"
            require(re.match(r"--?[A-Za-z]", line) is not None, rule, line)
        check_word("python", self.python)
        for command in self.setup:  # shell of the user's own: several lines if they like
            for line in command.replace("\t", " ").split("\n"):
                check_line("setup", line)


def max_array_size() -> int:
    """The tasks that an array may hold: MaxArraySize of the cluster, if `scontrol` tells it here.

    If there is no `scontrol`, or if no cluster answers it, this is SLURM's own default, 1001. The
    largest index of a task is one less.
    """
    command = ["scontrol", "show", "config"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return _MAX_ARRAY_SIZE
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)\s*$", done.stdout, flags=re.MULTILINE)
    return _MAX_ARRAY_SIZE if found is None else int(found.group(1))


def slurm_texts(
    jobs: Sequence[Job],
    run: Folder,
    allocation: Allocation,
    *,
    folder: Path,
    logs: Path | None = None,
    max_array_size: int = _MAX_ARRAY_SIZE,
) -> dict[int, str]:
    """The scripts of as few arrays as hold all jobs, by the number of the first job of each.

    The arrays are of equal size, or differ by one task. They share `allocation.at_once`, so that no
    more tasks run at the same time in all.

    Args:
        jobs: The jobs, numbered from 0.
        run: As in `slurm_text`.
        allocation: What each task requests.
        folder: As in `slurm_text`.
        logs: As in `slurm_text`.
        max_array_size: The tasks that one array may hold.

    Raises:
        ValueError: as `slurm_text`; if there are more arrays than tasks may run at the same time.
    """
    require(bool(jobs), "`jobs` must hold a job", list(jobs))
    check_count("max_array_size", max_array_size)
    parts = -(-len(jobs) // max_array_size)
    at_once = allocation.at_once
    rule = f"`at_once` must be at least {parts}, the number of arrays, of which each runs a task"
    then = f"An array holds at most {max_array_size} of the {len(jobs)} tasks: launch fewer."
    require(at_once is None or at_once >= parts, rule, at_once, then=then)
    sizes = _shares(len(jobs), parts)
    firsts = [0, *itertools.accumulate(sizes)]
    limits = [None] * parts if at_once is None else _shares(at_once, parts)
    return {
        first: slurm_text(
            jobs[first : first + size],
            run,
            dataclasses.replace(allocation, at_once=limit),
            folder=folder,
            logs=logs,
            first=first,
        )
        for first, size, limit in zip(firsts, sizes, limits, strict=False)
    }


def _shares(total: int, parts: int) -> list[int]:
    """`total` as the sum of `parts` whole numbers that differ by one at most."""
    share, left = divmod(total, parts)
    return [share + (place < left) for place in range(parts)]


def slurm_text(
    jobs: Sequence[Job],
    run: Folder,
    allocation: Allocation,
    *,
    folder: Path,
    logs: Path | None = None,
    first: int = 0,
) -> str:
    """The script of an array of the jobs; the folder `logs` must exist before it is submitted.

    A task goes back to the queue if it was stopped with everything saved (130, 143), or died in
    another way after a newer checkpoint. A task that met trouble that may pass (75) goes back too,
    until it was in the queue ten times for any reasons. A task that ends with 2 or 3 does not go
    back. If SLURM itself ends or moves a task, by scancel or a preemption, the script does not
    queue it a second time.

    For a job that spans hosts, each host runs the command in a step of srun. According to its
    manual, srun sends SIGTERM to all tasks of its step; this was not tried on more than one node. A
    failure in one task ends the others.

    Args:
        jobs: The jobs; task i is the i-th.
        run: The folder of the run.
        allocation: What each task requests.
        folder: The folder in which the commands run, and to which paths are relative.
        logs: The folder of the logs, `slurm_0.log` and so on; by default RUN/logs. It must be given
            if the run is on an object store.
        first: How many jobs other arrays hold before these. If it is 1001, the logs go to
            `slurm_1001+0.log` and so on.

    Raises:
        ValueError: if there is no job; if a name would not be read as it is written; if one of
            `allocation.lines` sets what the script sets.
    """
    require(bool(jobs), "`jobs` must hold a job", list(jobs))
    check_job_lines(jobs)
    logs = logs_folder(run, logs)
    for name, path in (("run", str(run)), ("logs", str(logs)), ("folder", str(folder))):
        check_line(name, path)
        # %j and its like stand for something in the path of a log; a backslash switches %a off.
        rule = f"`{name}` must not hold % or \\, which SLURM replaces in the paths of logs"
        require(not set(path) & set("%\\"), rule, path)
    check_count("first", first, at_least=0)
    limit = "" if allocation.at_once is None else f"%{allocation.at_once}"
    log = f"slurm_{first}+%a.log" if first else "slurm_%a.log"
    options = {
        "job-name": allocation.name,
        "array": f"0-{len(jobs) - 1}{limit}",
        "chdir": shlex.quote(str(folder)),
        "output": shlex.quote(str(logs / log)),
        "open-mode": "append",
        "requeue": None,
        "signal": f"B:TERM@{allocation.grace}",
        "nodes": allocation.hosts,
        "ntasks-per-node": 1,
    }
    asked = {
        "partition": allocation.partition,
        "time": allocation.time,
        "gpus-per-node": allocation.gpus,
        "cpus-per-task": allocation.cpus,
        "mem": allocation.memory,
    }
    options |= {name: value for name, value in asked.items() if value is not None}
    for line in allocation.lines:
        name = re.split(r"[= ]", line.lstrip("-"), maxsplit=1)[0]
        name = _SHORT.get(line[:2], name).removeprefix("no-")
        rule = "`lines` must not set again what the script sets itself, such as --array"
        require(name not in options, rule, line)
    header = [f"--{name}" + ("" if v is None else f"={v}") for name, v in options.items()]
    step = "srun --kill-on-bad-exit=1 " if allocation.hosts > 1 else ""
    if step and allocation.cpus is not None:  # which srun has not taken from sbatch since 22.05
        step += f"--cpus-per-task={allocation.cpus} "
    store = any(isinstance(job.folder, StorePath) for job in jobs)
    python = shlex.quote(allocation.python)
    return _SCRIPT.format(
        last_step=_LAST_ON_STORE.format(python=python) if store else _LAST_ON_DISK,
        header="\n".join(f"#SBATCH {line}" for line in [*header, *allocation.lines]),
        cases="\n".join(_case(number, job) for number, job in enumerate(jobs)),
        setup="".join(f"\n{line}" for line in allocation.setup),
        command=f"{step}{python} -m dfm_jax",
    )


def _case(number: int, job: Job) -> str:
    words = shlex.join(job.arguments)
    return (
        f"  {number}) name={shlex.quote(job.name)} folder={shlex.quote(str(job.folder))}"
        f"\n    job=({words}) ;;"
    )


_LAST_ON_DISK = """  ls -- "$folder" 2>/dev/null | grep -E '^[0-9]+$' | sort -n | tail -n 1"""
# Nothing of it may be printed but the number; if the store does not answer, there is none.
_LAST_ON_STORE = """\
  {python} - "$folder" 2>/dev/null <<'END' || true
import sys
from dfm_jax.storage import run_folder
from dfm_jax.training.checkpoint import checkpoint_steps
print(*checkpoint_steps(run_folder(sys.argv[1]))[-1:])
END"""
_SCRIPT = """\
#!/bin/bash
{header}

case "$SLURM_ARRAY_TASK_ID" in
{cases}
  *) echo "no job has the number $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;
esac
{setup}
last_step() {{
{last_step}
}}
task="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
# Not while SLURM ends or moves the task itself: then it signals the command too, and requeues.
running() {{ [ "$(squeue --noheader --jobs "$task" --format %T)" != COMPLETING ]; }}
before=$(last_step)
echo "──────── $name, attempt $((${{SLURM_RESTART_COUNT:-0}} + 1)), $(date), step ${{before:-0}}"
# In the background: bash takes no signal while it waits for a command in front.
{command} "${{job[@]}}" &
child=$!
trap 'running && kill -TERM "$child" 2>/dev/null' TERM INT
wait "$child"
while kill -0 "$child" 2>/dev/null; do wait "$child"; done
wait "$child"
status=$?

again=no
case "$status" in
  0 | 2 | 3) ;;
  130 | 143) again=yes ;;
  75) [ "$(last_step)" != "$before" ] || [ "${{SLURM_RESTART_COUNT:-0}}" -lt 10 ] && again=yes ;;
  *) [ "$(last_step)" != "$before" ] && again=yes ;;
esac
if [ "$again" = yes ] && running; then
  echo "$name: status $status, back to the queue"
  scontrol requeue "$task"
fi
exit "$status"
"""
