"""What `training_speed` can be asked: its options, its presets, and what is refused."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_count, require
from experiments.systems.training_speed.sides import (
    SIZES,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The time of a training step beside PyTorch's, float32 on this CPU."""

    preset: Literal["quick", "standard"] = "quick"
    """Where the other values start from: one size in two minutes, or three and torch.compile."""
    out: Path = Path("runs/training_speed")
    """Folder for result.json, metrics.jsonl and training_speed.png."""
    torch_python: str = ""
    """The Python of an environment with PyTorch and NumPy."""
    peers: tuple[str, ...] = ("torch",)
    """Of "torch", as it runs, and "torch.compile"."""
    sizes: int = 1
    """How many of the three sizes."""
    num_threads: int = 2
    """Of either side; each is held to as many processors."""
    num_blocks: int = 8
    """Rounds over the sides."""
    seed: int = 0
    """Of weights, tokens and resampling."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard", peers=("torch", "torch.compile"), sizes=len(SIZES), num_blocks=20
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: naming the first option that is, its rule and its value.
    """
    require(bool(config.torch_python), "`torch_python` must be given", repr(config.torch_python))
    known = {"torch", "torch.compile"}
    rule = "`peers` must be torch, torch.compile or both"
    require(bool(config.peers) and set(config.peers) <= known, rule, ", ".join(config.peers))
    check_count("sizes", config.sizes, at_most=len(SIZES))
    check_count("num_threads", config.num_threads, at_most=len(os.sched_getaffinity(0)))
    check_count("num_blocks", config.num_blocks, at_least=4)
