"""A job: a name, and the arguments of one command that goes on from wherever it is.

A folder's name may hold anything but "/" and NUL. A line break in the header of a SLURM script
would begin a line of its own, which bash executes; what some readers of YAML take for a line break
(CR, U+0085, U+2028) would change a name or break the file. Nobody means such a name, so
`check_line` refuses it, once, before any writer sees it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dfm_jax.checks import check_count, require
from dfm_jax.json_text import read_json
from dfm_jax.json_types import as_type
from dfm_jax.training.checkpoint import checkpoint_steps
from dfm_jax.training.members import member_folder


class Job(NamedTuple):
    """One idempotent command, `python -m dfm_jax ARGUMENTS`; whoever runs it knows no more."""

    name: str
    arguments: tuple[str, ...]
    folder: Path  # where its checkpoints come to lie: how far it has got

    @property
    def step(self) -> int:
        """Of its last checkpoint; 0 without one."""
        return max(checkpoint_steps(self.folder), default=0)


def train_jobs(
    data: Path,
    run: Path,
    options: Sequence[str],
    *,
    experts: Sequence[int],
    dense: bool = False,
) -> list[Job]:
    """A `train` command for each of the experts, and for the dense model.

    Args:
        data: what `partition` wrote.
        run: the folder of the run.
        options: of `train`, the same for all: `--config small --set seed=1`.
        experts: their numbers; whether they have data is for each of them to find out.
        dense: train it too.

    Raises:
        ValueError: if there is no job, or one twice.
    """
    rule = "`experts` must name an expert unless `dense` is asked for"
    require(bool(experts) or dense, rule, list(experts))
    require(len(set(experts)) == len(experts), "`experts` must be distinct", list(experts))
    for number in experts:
        check_count("experts", number, at_least=0)
    members = [*experts, *([None] if dense else [])]
    jobs = []
    for number in members:
        folder = member_folder(run, number)
        which = () if number is None else ("--expert", str(number))
        paths = ("--data", str(data), "--run", str(run))
        jobs.append(Job(folder.name, ("train", *paths, *which, *options), folder))
    return jobs


def sweep_jobs(data: Path, run: Path, options: Sequence[str], num_groups: int) -> list[Job]:
    """A `sweep` command for each of its groups: what is no number fans out, the rest rides along.

    Args:
        data: documents, or what `partition` wrote.
        run: the folder of the sweep.
        options: of `sweep`, the grid among them.
        num_groups: of the grid.
    """
    paths = ("--data", str(data), "--run", str(run))
    jobs = []
    for number in range(num_groups):
        folder = run / f"group_{number:03d}"
        arguments = ("sweep", *paths, "--group", str(number), *options)
        jobs.append(Job(folder.name, arguments, folder))
    return jobs


def experts_of(data: Path) -> list[int]:
    """The experts of a partition: as many as its manifest says, or the folders that are there.

    Raises:
        ValueError: if there is none.
    """
    manifest = data / "manifest.json"
    if manifest.is_file():  # an expert whose folder is lost must fail, not be forgotten
        try:
            written = as_type(dict[str, Any], read_json(manifest), "manifest")
            return list(range(len(as_type(list[int], written.get("sizes"), "sizes"))))
        except ValueError as error:
            rule = f"{manifest} must be the manifest of a partition"
            raise ValueError(f"{rule}; got another content: {error}") from error
    names = (path.name for path in data.glob("expert_*") if path.is_dir())
    numbers = sorted(int(name[7:]) for name in names if re.fullmatch(r"expert_\d{3,}", name))
    rule = "`data` must hold the folders expert_000 and so on unless `experts` is given"
    require(bool(numbers), rule, data)
    return numbers


def check_line(name: str, text: str) -> None:
    """`text` is one line of printable characters, in Python's sense of the word."""
    require(text.isprintable(), f"`{name}` must be one line of printable characters", text)


def check_job_lines(jobs: Sequence[Job]) -> None:
    """So are every word, name and folder of every job."""
    for job in jobs:
        check_line("name", job.name)
        check_line("run", str(job.folder))
        for word in job.arguments:
            check_line("arguments", word)
