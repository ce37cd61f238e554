"""The options of `multimodal_speed`, its presets, and the checks of both."""

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_count, require
from experiments.systems.multimodal_speed.work import ANSWERS, SIZES, STEP, WORKLOADS, Size
from experiments.systems.training_speed.sides import ALLOCATORS, AS_COMMANDS_START, BUFFERS_KEPT

ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Training and answering of a LLaVA beside transformers, float32 on this CPU."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: a tiny network in less than a minute, or the
    one of 28 million parameters, for which the aims are stated."""
    out: Path = Path("runs/multimodal_speed")
    """The folder for result.json, metrics.jsonl and multimodal_speed.png."""
    peers_python: str = sys.executable if find_spec("torch") else ""
    """The Python of an environment with the peers; this one, if it has PyTorch."""
    size: Literal["tiny", "28M"] = "tiny"
    """The network and its rows."""
    workloads: tuple[str, ...] = (STEP, ANSWERS)
    """The names of the workloads to measure."""
    attention: tuple[str, ...] = ("sdpa",)
    """The forms of attention of transformers; the aims are for the faster one."""
    allocators: tuple[str, ...] = (AS_COMMANDS_START,)
    """The allocators: "as a command starts it" is ours with kept buffers and all others with
    glibc's default; "buffers kept" is the same for all."""
    memory: bool = False
    """Whether peaks of memory are measured, in processes of their own."""
    num_threads: int = 1
    """The number of threads of a side; each side is held to as many processors."""
    num_blocks: int = 5
    """The number of rounds over the sides."""
    seed: int = 0
    """The seed of weights, rows and resampling."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        size="28M",
        workloads=WORKLOADS,
        attention=ATTENTION,
        allocators=(AS_COMMANDS_START, BUFFERS_KEPT),
        memory=True,
        num_threads=2,
        num_blocks=8,
    ),
}


def size_of(config: Config) -> Size:
    """The size that a config names."""
    return SIZES[config.size]


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    rule = "`peers_python` must be the Python of an environment with PyTorch and transformers"
    then = "Make one with `make install-peers`."
    require(bool(config.peers_python), rule, config.peers_python, then=then)
    some = (("workloads", WORKLOADS), ("attention", ATTENTION), ("allocators", ALLOCATORS))
    for name, known in some:
        given = getattr(config, name)
        rule = f"`{name}` must hold at least one of {', '.join(known)}, and no other"
        require(bool(given) and set(given) <= set(known), rule, given)
    check_count("num_threads", config.num_threads, at_most=len(os.sched_getaffinity(0)))
    check_count("num_blocks", config.num_blocks, at_least=4)
