"""A job: a name, and the arguments of one command that continues from its present state.

The name of a folder may contain any character except "/" and NUL. But a line break in the header of
a SLURM script would begin a new line, which bash executes. Characters that some readers of YAML
take as a line break (CR, U+0085, U+2028) would change a name or break the file. Such names are
mistakes, so `check_line` refuses them before anything is written.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dfm_jax.checks import check_count, require
from dfm_jax.json_text import read_json
from dfm_jax.json_types import as_type
from dfm_jax.storage.folders import Folder
from dfm_jax.training.checkpoint import checkpoint_steps
from dfm_jax.training.members import member_data_path, member_folder
from dfm_jax.training.plan import files_read

_LAST_EXPERT = 999_999  # more folders in one are of no use, and a longer number is a mistake
LONGEST_ARGUMENT = 131_072  # bytes, with the NUL at its end: Linux starts no process with more


class Job(NamedTuple):
    """One command, `python -m dfm_jax ARGUMENTS`, that can safely be repeated."""

    name: str
    arguments: tuple[str, ...]
    folder: Folder  # where its checkpoints come to lie: how far it has got

    @property
    def step(self) -> int:
        """The step of its last checkpoint; 0 if there is none."""
        return max(checkpoint_steps(self.folder), default=0)


def train_jobs(
    data: Path,
    run: Folder,
    options: Sequence[str],
    *,
    experts: Sequence[int],
    dense: bool = False,
    own: Mapping[int | None, Sequence[str]] | None = None,
) -> list[Job]:
    """One `train` command for each expert, and one for the dense model.

    Args:
        data: The folder that `partition` wrote.
        run: The folder of the run.
        options: The options of `train`, the same for all, such as `--config small --set seed=1`.
        experts: The numbers of the experts; each command itself checks that its expert has data.
        dense: Whether to train the dense model too.
        own: Options of single members, by the number of the expert, or None for the dense model.

    Raises:
        ValueError: if there is no job, or the same job twice; if a number is not one of an expert.
    """
    rule = "`experts` must name an expert unless `dense` is asked for"
    require(bool(experts) or dense, rule, list(experts))
    require(len(set(experts)) == len(experts), "`experts` must be distinct", list(experts))
    for number in experts:
        check_count("experts", number, at_least=0, at_most=_LAST_EXPERT)
    members = [*experts, *([None] if dense else [])]
    jobs = []
    for number in members:
        folder = member_folder(run, number)
        which = () if number is None else ("--expert", str(number))
        paths = ("--data", str(data), "--run", str(run))
        words = (*options, *(own or {}).get(number, ()))
        jobs.append(Job(folder.name, ("train", *paths, *which, *words), folder))
    return jobs


def sweep_jobs(data: Path, run: Folder, options: Sequence[str], num_groups: int) -> list[Job]:
    """One `sweep` command for each group; the runs of a group are trained together.

    Args:
        data: The documents, or the folder that `partition` wrote.
        run: The folder of the sweep.
        options: The options of `sweep`, including the grid.
        num_groups: The number of groups of the grid.
    """
    paths = ("--data", str(data), "--run", str(run))
    jobs = []
    for number in range(num_groups):
        folder = run / f"group_{number:03d}"
        arguments = ("sweep", *paths, "--group", str(number), *options)
        jobs.append(Job(folder.name, arguments, folder))
    return jobs


def logs_folder(run: Folder, logs: Path | None = None) -> Path:
    """The folder of the logs of a launch: `logs`, or RUN/logs.

    Raises:
        ValueError: if the run is on an object store and `logs` is not given, because logs grow.
    """
    rule = f"`logs` must be a folder of this machine if the run is on an object store ({run})"
    if logs is None:
        require(isinstance(run, Path), rule, logs)
        return Path(str(run)) / "logs"
    return logs


def experts_of(data: Path) -> list[int]:
    """The experts of a partition: as many as its manifest says, or as there are folders.

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


def data_loads(data: Path) -> list[float]:
    """How much each expert of a partition has to read: the loads of its manifest, or else bytes.

    Raises:
        ValueError: if there is no expert here, or one has nothing to read.
    """
    rule = "`data` must be a folder of this machine, because it says how much each expert reads"
    require(data.is_dir(), rule, data)
    numbers, manifest = experts_of(data), data / "manifest.json"
    if manifest.is_file():
        loads = as_type(list[float], read_json(manifest).get("token_loads"), "token_loads")
    else:
        folders = [member_data_path(data, number) for number in numbers]
        loads = [float(sum(size for _, size in files_read(folder))) for folder in folders]
    rule = "Every expert of `data` must have something to read"
    require(np.array(loads) > 0, rule, np.array(loads), name="loads")
    return loads


def check_line(name: str, text: str) -> None:
    """Check that `text` is one line of printable characters, as Python defines them."""
    require(text.isprintable(), f"`{name}` must be one line of printable characters", text)


def check_word(name: str, text: str) -> None:
    """`check_line`, and that something is there."""
    check_line(name, text)
    require(bool(text.strip()), f"`{name}` must not be empty", text)


def check_job_lines(jobs: Sequence[Job]) -> None:
    """`check_line` for every word, name and folder of every job; the words are not too long."""
    for job in jobs:
        check_line("name", job.name)
        check_line("run", str(job.folder))
    for word in {word: None for job in jobs for word in job.arguments}:  # each word once
        check_line("arguments", word)
        rule = f"Each of `arguments` must have less than {LONGEST_ARGUMENT} bytes"
        size = len(os.fsencode(word))
        require(size < LONGEST_ARGUMENT, rule, size, name="a word of so many bytes")
