"""The command status: it prints how far each member of a run is, once or again and again."""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dfm_jax.cli.arguments import RunFolder

if TYPE_CHECKING:
    from dfm_jax.training.status import MemberStatus


@dataclass(frozen=True, kw_only=True)
class Status:
    """Print how far each member of a run is: an expert, the dense model, or a group of a sweep.

    It only reads: it takes no lock, writes nothing, and reads only the ends of logs. A member is
    running, finished, stopped (the same command goes on), failed (`launch local` gave it up),
    silent (a process of another host held it, and wrote nothing for ten minutes) or not begun.
    Losses are in nats per token; that of a group is the mean of its runs, and its validation the
    lowest. A validation after ≤ is an upper bound. The time left does not count evaluations.

    The exit status is 0. With --watch, it is 4 if a member failed.

    For example:

        python -m dfm_jax status --run run

        python -m dfm_jax status --run run --watch --interval 10

        python -m dfm_jax status --run run --json
    """

    folder: RunFolder
    """The folder of the run or of the sweep, which may lie on an object store."""
    watch: bool = False
    """Print it again and again, until every member is finished or has failed."""
    interval: float = 2.0
    """The seconds between two looks, with --watch."""
    json: bool = False
    """Print JSON, in one line for each look: times are seconds since 1970."""

    def run(self) -> int:
        """Look once, or until all have ended."""
        from dfm_jax.training.status import all_ended, run_status
        from dfm_jax.training.stopping import ExitStatus

        if not 0 < self.interval < float("inf"):
            rule = "`interval` must be a number of seconds above 0"
            raise ValueError(f"{rule}; got interval = {self.interval}.")
        with _Screen(self.watch and not self.json) as screen:
            while True:
                now = time.time()
                rows = run_status(self.folder, now)
                if self.json:
                    print(_json_line(self.folder, rows, now), flush=True)
                else:
                    screen.show(status_lines(self.folder, rows, now))
                if not self.watch or all_ended(rows):
                    break
                time.sleep(self.interval)
        failed = self.watch and any(row.state == "failed" for row in rows)
        return ExitStatus.MEMBER_FAILED if failed else ExitStatus.FINISHED


def _json_line(run: RunFolder, rows: "Sequence[MemberStatus]", now: float) -> str:
    members = [row._asdict() for row in rows]
    return json.dumps({"run": str(run), "at": now, "members": members})


_COLUMNS = {  # the name of a column, and whether it is flush right
    "member": False,
    "state": False,
    "step": True,
    "loss": True,
    "validation": True,
    "tokens/s": True,
    "left": True,
    "saved": True,
    "host": False,
}


def status_lines(run: RunFolder, rows: "Sequence[MemberStatus]", now: float) -> list[str]:
    """A line that counts the states, and a table with one line for each member."""
    if not rows:
        return [f"{run}: nothing has begun here."]
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    kind = "member" if len(rows) == 1 else "members"
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    table = [list(_COLUMNS), *(_cells(row, now) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"{run} at {clock}: {len(rows)} {kind}: {counts}"]
    notes = ["", *(_note(row, now) for row in rows)]
    for cells, note in zip(table, notes, strict=True):
        placed = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, _COLUMNS.values(), strict=True)
        )
        lines.append("  ".join([*placed, note]).rstrip())
    return lines


def _cells(row: "MemberStatus", now: float) -> list[str]:
    length = "?" if row.num_steps is None else f"{row.num_steps:,}"
    bound = "≤ " if row.measure == "validation_bound" else ""
    speed = row.tokens_per_second if row.state == "running" else None
    name = row.name if row.num_runs == 1 else f"{row.name} ({row.num_runs} runs)"
    process = "" if row.host is None else f"{row.host}:{row.pid}"
    saved = "" if row.saved_step is None else f"{row.saved_step:,}"
    if row.saved_at is not None:
        saved += f", {_duration(now - row.saved_at)} ago"
    return [
        name,
        row.state,
        f"{row.step:,} of {length}",
        "" if row.loss is None else f"{row.loss:.4f}",
        "" if row.validation is None else f"{bound}{row.validation:.4f}",
        "" if speed is None else f"{speed:,.0f}",
        "" if row.seconds_left is None else _duration(row.seconds_left),
        saved,
        process if row.state in ("running", "silent") else "",
    ]


def _note(row: "MemberStatus", now: float) -> str:
    """What is unusual about a member, in words."""
    notes = []
    if row.state == "silent":
        quiet = "" if row.written_at is None else f" for {_duration(now - row.written_at)}"
        notes.append(f"nothing was written{quiet}")
    if row.damaged:
        notes.append(f"set aside: {', '.join(row.damaged)}")
    if row.error is not None:
        notes.append(row.error)
    return "; ".join(notes)


def _duration(seconds: float) -> str:
    """A time in the largest unit of which there are two or more."""
    seconds = max(0.0, seconds)
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


class _Screen:
    """A place for lines: on a terminal each look replaces the one before, elsewhere it follows."""

    def __init__(self, repeated: bool) -> None:
        self._live: Any = None
        self._repeated, self._looks = repeated, 0

    def __enter__(self) -> "_Screen":
        if self._repeated and sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False, transient=False)
            self._live.start()
        return self

    def show(self, lines: list[str]) -> None:
        """Show the lines of one look."""
        if self._live is None:
            print("\n" * (self._looks > 0) + "\n".join(lines), flush=True)
        else:
            from rich.text import Text

            size = os.get_terminal_size(sys.stdout.fileno())
            text = "\n".join(lines_that_fit(lines, size.lines - 1))
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
        self._looks += 1

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def lines_that_fit(lines: list[str], height: int) -> list[str]:
    """As many lines as a terminal has; those of members that change or failed are kept longest."""
    if len(lines) <= height:
        return lines
    room = max(height - 3, 1)  # two lines of heading, one that counts what is left out
    rows = lines[2:]
    quiet = [any(f"  {state}  " in row for state in ("finished", "not begun")) for row in rows]
    order = sorted(range(len(rows)), key=lambda number: (quiet[number], number))
    kept = sorted(order[:room])
    return [*lines[:2], *(rows[n] for n in kept), f"… and {len(rows) - room} members more"]
