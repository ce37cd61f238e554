"""The works that `stacks` times, its options and presets, and the checks of both."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from dfm_jax.checks import check_count, require


class Work(NamedTuple):
    """One piece of work, in the form in which it is fastest."""

    name: str
    workload: str  # of `benchmarks`; "" for a training step
    size: dict[str, int]
    form: str


TRAINING = "training step"
WORKS = (  # four of `benchmarks`, and the step of `training_speed`
    Work(TRAINING, "", {}, ""),
    Work("balanced k-means", "balanced k-means", {"K": 8, "R": 10_000}, "clear"),
    Work("cached decoding", "AR sampling with cache", {"batch": 4, "V": 8192, "new": 128}, "fast"),
    Work("path sampling", "path sampling", {"N": 1024, "batch": 256}, "clear"),
    Work(
        "generalized KL with gradient", "generalized KL", {"V": 2048, "batch": 8, "N": 128}, "fast"
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Draws, collectives, memory, compilation and speed under two sets of versions."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: one work in two minutes, or five works."""
    out: Path = Path("runs/stacks")
    """The folder for result.json and metrics.jsonl."""
    lowest_python: str = ".venv/bin/python"
    """The Python of an environment with the lowest versions (`make install` on Python 3.11)."""
    newest_python: str = ".venv-newest/bin/python"
    """The Python of one with the newest (`make VENV=.venv-newest PYTHON=… install`)."""
    works: int = 1
    """The number of works that are timed."""
    num_threads: int = 2
    """The number of threads of either side; each side is held to as many processors."""
    num_rounds: int = 7
    """The number of rounds over the two sides."""
    seed: int = 0
    """The seed of the data of the works, and of resampling."""


PRESETS = {"quick": Config(), "standard": Config(preset="standard", works=len(WORKS))}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    for name in ("lowest_python", "newest_python"):
        path = getattr(config, name)
        rule = f"`{name}` must be the Python of an environment with the package"
        then = "CONTRIBUTING.md, section Versions, says how to make both environments."
        require(os.access(path, os.X_OK), rule, path, then=then)
    check_count("works", config.works, at_most=len(WORKS))
    check_count("num_threads", config.num_threads, at_most=len(os.sched_getaffinity(0)))
    check_count("num_rounds", config.num_rounds, at_least=3)
