"""The options of `training_speed`, its presets, and the checks of both."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_count, require
from experiments.lib.builds import commit_of
from experiments.systems.training_speed.sides import (
    SIZES,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The time of a training step beside PyTorch's, float32 on this CPU."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: one size in two minutes, or three sizes and
    torch.compile."""
    out: Path = Path("runs/training_speed")
    """The folder for result.json, metrics.jsonl and training_speed.png."""
    torch_python: str = ""
    """The Python of an environment with PyTorch and NumPy."""
    peers: tuple[str, ...] = ("torch",)
    """The peers: some of "torch", which is PyTorch as it is, and "torch.compile"."""
    before: str = ""
    """A commit of this checkout whose build is a further side; empty for none."""
    sizes: int = 1
    """The number of sizes, up to three."""
    num_threads: int = 2
    """The number of threads of either side; each side is held to as many processors."""
    num_blocks: int = 8
    """The number of rounds over the sides."""
    seed: int = 0
    """The seed of weights, tokens and resampling."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard", peers=("torch", "torch.compile"), sizes=len(SIZES), num_blocks=9
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    require(bool(config.torch_python), "`torch_python` must be given", config.torch_python)
    if config.before:
        commit_of(config.before)
    known = {"torch", "torch.compile"}
    rule = "`peers` must hold torch, torch.compile or both"
    require(bool(config.peers) and set(config.peers) <= known, rule, config.peers)
    check_count("sizes", config.sizes, at_most=len(SIZES))
    check_count("num_threads", config.num_threads, at_most=len(os.sched_getaffinity(0)))
    check_count("num_blocks", config.num_blocks, at_least=4)
