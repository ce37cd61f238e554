"""What became of each job: a table for the reader, RUN/launch.json for programs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from dfm_jax.durable import write_file
from dfm_jax.json_text import read_json
from dfm_jax.json_types import as_type

SUMMARY = "launch.json"


class Row(NamedTuple):
    """One job at the end of a launch."""

    job: str
    status: Literal["finished", "failed", "stopped"]  # stopped: by a signal to the launcher
    attempts: int  # of this launch
    seconds: float  # from its first beginning to its end, waits between attempts included
    step: int  # of the last checkpoint
    reason: str  # empty if it finished


def summary_text(rows: Sequence[Row]) -> str:
    """A line per job."""
    width = max(12, *(len(row.job) + 2 for row in rows))
    heading = f"{'job':<{width}}{'status':<10}{'attempts':>9}{'seconds':>10}{'step':>9}  reason"
    lines = [
        f"{row.job:<{width}}{row.status:<10}{row.attempts:>9,}{row.seconds:>10,.1f}"
        f"{row.step:>9,}  {row.reason}".rstrip()
        for row in rows
    ]
    return "\n".join([heading, *lines])


def write_summary(run: Path, rows: Sequence[Row]) -> Path:
    """Write RUN/launch.json, whole or not at all."""
    path = run / SUMMARY
    write_file(path, json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    return path


def read_summary(run: Path) -> list[Row]:
    """The rows of RUN/launch.json.

    Raises:
        ValueError: naming the file and what in it is not as `write_summary` writes it.
    """
    path = run / SUMMARY
    return as_type(list[Row], read_json(path), str(path))
