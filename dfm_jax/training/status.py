"""The state of each member of a run, read from its files by somebody who takes no part in it.

What a member's folder holds is one plain value, `MemberFiles`. `files_of_members` reads it from a
disk or an object store. The state of the member is a pure function of that value and the time,
`member_status`.

Nothing is written and no lock is taken. Of a log only the end is read. This module does not import
jax, so that a command that only looks starts at once.
"""

import json
import os
import re
import socket
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dfm_jax.json_text import parse_json
from dfm_jax.storage.folders import Folder, StorePath
from dfm_jax.storage.lease import read_head

State = Literal["running", "finished", "stopped", "failed", "silent", "not begun"]
SHORT_END, LONG_END = 2**16, 2**20  # the bytes of a log that are read; more only for a validation
SILENT_AFTER = 600.0  # seconds without a sign of a process on another host
VALIDATIONS = ("validation", "validation_bound", "validation_loss")
_CONFIG, _RECORD, _LOG, _LOCK = "config.json", "checkpoint.json", "metrics.jsonl", ".lock"
_SUMMARY, _LOGS, _WAITING = "launch.json", "logs", "not begun"
_MEMBER = re.compile(r"expert_\d{3,}|dense|group_\d{3,}")
_DAMAGED = re.compile(r"\d+\.damaged(\.\d+)?")
_ATTEMPT = "──────── "  # how `launch` begins the log of an attempt
_PROG = "python -m dfm_jax"
_SPEEDS = 20  # the number of the last lines from which the speed is taken


class MemberFiles(NamedTuple):
    """What the folder of a member holds that tells its state. Times are seconds since 1970."""

    name: str  # expert_003, dense or group_000
    names: tuple[str, ...]  # of what is in the folder; empty if there is no folder
    config: bytes | None = None  # config.json
    record: bytes | None = None  # checkpoint.json of the last checkpoint
    saved_at: float | None = None  # when the last checkpoint was complete
    log: bytes = b""  # the end of metrics.jsonl
    log_at: float | None = None  # when a line was last written
    holder: bytes = b""  # the line of who holds the folder, or held it when it was killed
    held: bool | None = False  # whether somebody holds it; None if this cannot be known from here
    silent_after: float = SILENT_AFTER  # seconds without a sign, if it cannot be known
    attempt: bytes = b""  # the end of what its last attempt printed
    launch: bytes | None = None  # launch.json of the run
    launch_at: float | None = None  # when launch.json was written


class MemberStatus(NamedTuple):
    """How far a member of a run is. Times are seconds since 1970."""

    name: str
    state: State
    step: int  # the last one that is known: logged, or saved
    num_steps: int | None
    num_runs: int  # 1, or the number of runs of a group of a sweep
    loss: float | None  # nats per token; of a group, the mean over the runs that go on
    validation: float | None  # nats per token; of a group, the lowest of its runs
    measure: str | None  # which of `VALIDATIONS` that is
    tokens_per_second: float | None
    seconds_left: float | None  # for the updates alone; None unless it is running
    saved_step: int | None  # of the last checkpoint
    saved_at: float | None
    written_at: float | None  # when it last wrote a line or a checkpoint
    host: str | None  # of the process that holds it, or held it when it was killed
    pid: int | None
    held: bool | None  # None: by a process of another host, or by nobody since that was killed
    damaged: tuple[str, ...]  # the checkpoints that were set aside
    error: str | None  # the last one, unless it has gone on since


def member_status(files: MemberFiles, now: float) -> MemberStatus:
    """The state of a member at the time `now`."""
    lines = _lines(files.log)
    steps = sorted(int(name) for name in files.names if name.isdecimal())
    saved = steps[-1] if steps else None
    holder = _object(files.holder) or {}
    num_steps = _num_steps(holder, files)
    logged = max((_count(line, "step") or 0 for line in lines), default=0)
    times = [time for time in (files.log_at, files.saved_at) if time is not None]
    written = max(times, default=None)
    running = files.held is True
    silent = False
    if files.held is None:
        began = holder.get("began")
        signs = [*times, *([float(began)] if isinstance(began, int | float) else [])]
        running = bool(signs) and now - max(signs) < files.silent_after
        silent = not running
    finished = saved is not None and num_steps is not None and saved >= num_steps
    failed, reason = _launched(files, written)
    state: State
    if running:
        state = "running"
    elif finished:
        state = "finished"
    elif failed:
        state = "failed"
    elif silent:
        state = "silent"
    else:
        state = "stopped" if files.names else "not begun"
    step = max(logged, saved or 0)
    losses = [line for line in lines if "loss" in line]
    speeds = [line for line in losses if line.get("tokens_per_second", 0) > 0][-_SPEEDS:]
    validation, measure, num_judged = _validation(lines)
    seconds_left = None
    paces = [line["tokens_per_second"] / line["num_tokens"] for line in speeds if _has_tokens(line)]
    if running and paces and num_steps is not None:
        seconds_left = max(num_steps - step, 0) / statistics.median(paces)
    num_losses = sum(name.startswith("loss/") for name in (losses[-1] if losses else ()))
    return MemberStatus(
        name=files.name,
        state=state,
        step=step,
        num_steps=num_steps,
        num_runs=max(1, num_judged, num_losses, _num_runs(files)),
        loss=losses[-1]["loss"] if losses else None,
        validation=validation,
        measure=measure,
        tokens_per_second=speeds[-1]["tokens_per_second"] if speeds else None,
        seconds_left=seconds_left,
        saved_step=saved,
        saved_at=files.saved_at,
        written_at=written,
        host=_word(holder, "host"),
        pid=_count(holder, "pid"),
        held=files.held,
        damaged=tuple(sorted(name for name in files.names if _DAMAGED.fullmatch(name))),
        error=None if state in ("running", "finished") else reason or _printed_error(files.attempt),
    )


def all_ended(rows: Sequence[MemberStatus]) -> bool:
    """Whether every member is finished, or has failed for good."""
    return bool(rows) and all(row.state in ("finished", "failed") for row in rows)


# ── what the files say ────────────────────────────────────────────────────────────────────────────


def _object(text: bytes | None) -> dict[str, Any] | None:
    """The JSON object in a text; None if the text is something else, or is cut."""
    try:
        value = None if not text else parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _lines(log: bytes) -> list[dict[str, Any]]:
    """The last lines of numbers, and the last one that holds a validation; a cut line is left out.

    All lines are not read, because of a group of a sweep each is long.
    """
    whole = log[: log.rfind(b"\n") + 1].splitlines()
    chosen = set(range(max(0, len(whole) - 2 * _SPEEDS), len(whole)))
    judged = (n for n in range(len(whole) - 1, -1, -1) if b'"validation' in whole[n])
    chosen |= {number for number in [next(judged, None)] if number is not None}
    found = []
    for number in sorted(chosen):
        line = _object(whole[number])
        if line is not None and all(_is_number(value) for value in line.values()):
            found.append(line)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _word(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    return value if isinstance(value, str) else None


def _has_tokens(line: Mapping[str, Any]) -> bool:
    return line.get("num_tokens", 0) > 0


def _num_steps(holder: Mapping[str, Any], files: MemberFiles) -> int | None:
    """The length of the run: of who holds it, because it may be longer now than it was."""
    lengths = [_count(one, "num_steps") for one in _configs(files)]
    return _count(holder, "num_steps") or max((n for n in lengths if n is not None), default=None)


def _num_runs(files: MemberFiles) -> int:
    return len(_configs(files))


def _configs(files: MemberFiles) -> list[dict[str, Any]]:
    """The config of a member, or those of the runs of a group."""
    for text in (files.config, files.record):
        found = _object(text) or {}
        inner = found.get("config")
        if isinstance(inner, dict) and isinstance(inner.get("configs"), list):  # of a sweep
            return [one for one in inner["configs"] if isinstance(one, dict)]
        if isinstance(inner, dict) and isinstance(inner.get("config"), dict):
            return [inner["config"]]
        if isinstance(inner, dict):
            return [inner]
    return []


def _validation(lines: Sequence[Mapping[str, Any]]) -> tuple[float | None, str | None, int]:
    """The last validation loss, which one it is, and of how many runs; of several, the lowest."""
    for line in reversed(lines):
        for measure in VALIDATIONS:
            if measure in line:
                return line[measure], measure, 1
            of_runs = [line[name] for name in line if name.startswith(f"{measure}/")]
            if of_runs:
                return min(of_runs), measure, len(of_runs)
    return None, None, 0


def _launched(files: MemberFiles, written: float | None) -> tuple[bool, str]:
    """Whether the last launch gave the member up, and why; nothing if it has gone on since."""
    try:
        rows = parse_json(files.launch) if files.launch else []
    except ValueError:
        return False, ""
    if files.launch_at is not None and written is not None and written > files.launch_at:
        return False, ""
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("job") == files.name:
            reason = _word(row, "reason") or ""
            return row.get("status") == "failed", "" if reason == _WAITING else reason
    return False, ""


def _printed_error(attempt: bytes) -> str | None:
    """What the command said of its end, or the last line of a traceback; None without either."""
    text = attempt.decode("utf-8", errors="replace")
    _, _, text = text.rpartition(_ATTEMPT)
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    own = [line for line in lines if line.startswith(_PROG)]
    if own:
        return re.sub(rf"^{re.escape(_PROG)}( \S+)?: ", "", own[-1])
    return lines[-1] if any(line.startswith("Traceback (most recent") for line in lines) else None


# ── of a local disk ───────────────────────────────────────────────────────────────────────────────


def run_status(run: Folder, now: float) -> list[MemberStatus]:
    """The state of each member of a run, in the order of their numbers.

    Raises:
        ValueError: if there is no such folder, or it is not that of a run.
    """
    return [member_status(files, now) for files in files_of_members(run)]


def files_of_members(run: Folder) -> list[MemberFiles]:
    """What there is of each member of a run; an empty list if the folder is empty.

    Members are the folders inside, and what `launch` names that has no folder yet.

    Raises:
        ValueError: if there is no such folder, or it is not that of a run.
    """
    if not run.is_dir():
        raise ValueError(f"`run` must be a folder that exists; got run = {str(run)!r}.")
    inside = sorted(path.name for path in run.iterdir())
    if isinstance(run, Path):
        launch, launch_at = _read(run / _SUMMARY), _changed(run / _SUMMARY)
        attempts = _attempts(run / _LOGS)
    else:
        summary = run.objects.read((run / _SUMMARY).key)
        launch, launch_at = (None, None) if summary is None else (summary.content, summary.written)
        attempts = {}  # their logs lie on the machine of the launch
    members = {name for name in inside if _MEMBER.fullmatch(name) and (run / name).is_dir()}
    members |= attempts.keys() | _jobs(launch)
    if inside and not members and _LOGS not in inside:
        if _LOG in inside or _CONFIG in inside or _LOCK in inside:
            rule = "`run` must be the folder of a run and not of one of its members"
            raise ValueError(f"{rule}; got run = {str(run)!r}. Give the folder that it lies in.")
        rule = "`run` must be the folder of a run, which holds expert_000, dense or group_000"
        names = ", ".join(inside[:4]) + (", …" if len(inside) > 4 else "")
        raise ValueError(f"{rule}; got run = {str(run)!r}, which holds {names}.")
    found = []
    for name in sorted(members, key=_place):
        folder = run / name
        files = _files_of(folder) if isinstance(folder, Path) else _files_on_store(folder)
        attempt = attempts.get(name, b"")
        found.append(files._replace(attempt=attempt, launch=launch, launch_at=launch_at))
    return found


def _place(name: str) -> tuple[bool, int, str]:
    """Experts by their numbers, however many digits; then the dense model."""
    digits = re.sub(r"\D", "", name)
    return not digits, int(digits or 0), name


def _jobs(launch: bytes | None) -> set[str]:
    try:
        rows = parse_json(launch) if launch else []
    except ValueError:
        return set()
    names = (_word(row, "job") for row in rows if isinstance(row, dict)) if rows else ()
    return {name for name in names if name is not None and _MEMBER.fullmatch(name)}


def _files_of(folder: Path) -> MemberFiles:
    try:
        names = tuple(sorted(os.listdir(folder)))
    except OSError:
        return MemberFiles(folder.name, ())
    steps = sorted(int(name) for name in names if name.isdecimal())
    last = folder / str(steps[-1]) if steps else None
    config = _read(folder / _CONFIG)
    log, holder = read_end(folder / _LOG, SHORT_END), _read(folder / _LOCK) or b""
    if b'"validation' not in log or log.count(b"\n") < 2:  # of a large group a line is long
        log = read_end(folder / _LOG, LONG_END)
    return MemberFiles(
        name=folder.name,
        names=names,
        config=config,
        # The config of a member is short; the record of a checkpoint has a line for each leaf.
        record=None if last is None or config is not None else _read(last / _RECORD),
        saved_at=None if last is None else _changed(last),
        log=log,
        log_at=_changed(folder / _LOG),
        holder=holder,
        held=_held(folder / _LOCK, _object(holder) or {}),
    )


def _files_on_store(folder: StorePath) -> MemberFiles:
    """The same of a folder on an object store, of which `head.json` tells most.

    An owner that has not renewed its lease in time is not known to be there.
    """
    objects, found = folder.objects, read_head(folder.objects, folder.key)
    if found is None:
        return MemberFiles(folder.name, ())
    entries, owner = found.head.entries, found.head.owner
    steps = sorted(int(name) for name in entries if name.isdecimal())
    last = entries[str(steps[-1])] if steps else None
    config = objects.read(entries[_CONFIG].key) if _CONFIG in entries else None
    log, log_at = b"", None
    if (entry := entries.get(_LOG)) is not None:
        log, log_at = objects.read_end(entry.key, entry.size, LONG_END), found.written
        log = log if entry.size <= LONG_END else log[log.find(b"\n") + 1 :]
    record = None
    if last is not None:  # when it was written, and in a sweep the configs
        record = objects.read(f"{last.key}{_RECORD}")
    held: bool | None = False
    if owner is not None:
        held = True if time.time() - found.written < found.head.silence else None
    return MemberFiles(
        name=folder.name,
        names=tuple(sorted(entries)),
        config=None if config is None else config.content,
        record=None if record is None else record.content,
        saved_at=None if record is None else record.written,
        log=log,
        log_at=log_at,
        holder=b"" if owner is None else json.dumps(owner._asdict() | owner.told).encode(),
        held=held,
        silent_after=found.head.silence,
    )


def read_end(path: Path, limit: int) -> bytes:
    """The whole lines at the end of a file, of `limit` bytes at most; b"" if there is no file."""
    try:
        with path.open("rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            content = file.read(limit) or b""
    except OSError:
        return b""
    return content if size <= limit else content[content.find(b"\n") + 1 :]


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # not there, or taken away while we look
        return None


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _held(path: Path, holder: Mapping[str, Any]) -> bool | None:
    """Whether a process holds a lock; we must not try it, because its owner might come just then.

    Linux lists the locks of this machine. Elsewhere a process that lives is taken at its word.
    """
    try:
        status = path.stat()
    except OSError:
        return False
    place = (os.major(status.st_dev), os.minor(status.st_dev))
    locks = _read(Path("/proc/locks"))
    for pid, major, minor, inode in _LISTED.findall((locks or b"").decode()):
        same = (int(major, 16), int(minor, 16)) == place or int(pid) == holder.get("pid")
        if same and int(inode) == status.st_ino:
            return True
    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return None
    return locks is None and _lives(_count(holder, "pid"))


_LISTED = re.compile(r"(\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) \d+ \S+$", re.MULTILINE)


def _lives(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return pid is not None


def _attempts(logs: Path) -> dict[str, bytes]:
    """The end of the newest log of each member: NAME.log, or one of SLURM that names it."""
    try:
        paths = sorted(logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
    except OSError:
        return {}
    found = {}
    for path in paths:
        end = read_end(path, SHORT_END)
        for name in _names_in(path.stem, end):
            found[name] = end
    return found


def _names_in(stem: str, end: bytes) -> Iterable[str]:
    if _MEMBER.fullmatch(stem):
        return [stem]
    last = end.decode("utf-8", errors="replace").rpartition(_ATTEMPT)[2].partition(",")[0]
    return [last] if _MEMBER.fullmatch(last) else []
