"""The options of `benchmarks`, its presets, and the checks of both."""

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_count, require
from experiments.lib.builds import commit_of
from experiments.systems.benchmarks.workloads import BY_NAME
from experiments.systems.training_speed.sides import ALLOCATORS, DEFAULT

FEWEST = 3
GROWTH = "growth"
NAMES = (*BY_NAME, GROWTH)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Seconds and memory of every workload, compared with its peers."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: small sizes on one processor, or everything."""
    out: Path = Path("runs/benchmarks")
    """The folder for result.json, metrics.jsonl, benchmarks.png and what has been measured so
    far."""
    peers_python: str = sys.executable if find_spec("torch") else ""
    """The Python of an environment with the peers; this one, if it has PyTorch."""
    workloads: tuple[str, ...] = NAMES
    """The names of the workloads to measure; "growth" stands for our forms alone along several
    axes."""
    num_blocks: int = 7
    """The number of rounds over the forms and peers of a workload; fewer where no aim is stated and
    a round is long."""
    threads: tuple[int, ...] = (1, 2)
    """The numbers of threads of either side; each side is held to as many processors."""
    allocators: tuple[str, ...] = tuple(ALLOCATORS)
    """The allocators: some of "glibc's default", "buffers kept", and "as a command starts it":
    ours keeps its buffers by itself, all others have the default."""
    before: str = ""
    """A commit whose build is a further side, such as 1b2cef9; empty for none."""
    seed: int = 0
    """The seed of the data and of the resampling."""


PRESETS = {
    "quick": Config(num_blocks=4, threads=(1,), allocators=(DEFAULT,)),
    "standard": Config(preset="standard"),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    rule = "`peers_python` must be the Python of an environment with PyTorch"
    then = "Make one with `make install-peers`."
    require(bool(config.peers_python), rule, config.peers_python, then=then)
    for name, known in (("workloads", NAMES), ("allocators", ALLOCATORS)):
        given = getattr(config, name)
        rule = f"`{name}` must hold at least one of {', '.join(known)}, and no other"
        require(bool(given) and set(given) <= set(known), rule, given)
    if config.before:
        commit_of(config.before)
    check_count("num_blocks", config.num_blocks, at_least=FEWEST)
    require(bool(config.threads), "`threads` must not be empty", config.threads)
    for count in config.threads:
        check_count("threads", count, at_most=len(os.sched_getaffinity(0)))
