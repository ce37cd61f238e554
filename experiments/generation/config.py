"""The options of `generation`, its presets, and the checks of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dfm_jax.checks import check_count, check_interval, require


@dataclass(frozen=True, kw_only=True)
class Config:
    """Quality against the number of steps."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: a minute, or six."""
    out: Path = Path("runs/generation")
    """The folder for result.json, metrics.jsonl, the picture, checkpoints and unfinished cells."""
    steps: tuple[int, ...] = (1, 4, 16, 64)
    """The numbers T of steps of every sampler that can choose it."""
    num_train: int = 1347
    """The number of images to train on."""
    num_test: int = 32
    """The number of images to evaluate on."""
    width: int = 32
    """The width of the network."""
    num_layers: int = 1
    """The number of layers of the network."""
    num_heads: int = 2
    """The number of attention heads of the network."""
    batch_size: int = 8
    """The number of images of a step."""
    training_steps: int = 200
    """The number of training steps of the network."""
    rate: float = 3e-3
    """The peak learning rate."""
    strata: int = 4
    """The number of strata of the steps; each image and replicate has one draw in each."""
    seed: int = 0
    """The seed of the toy, the network and all draws."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        steps=(1, 2, 4, 8, 16, 32, 64, 128),
        num_test=256,
        width=48,
        num_layers=2,
        training_steps=3000,
        strata=16,
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    rising = len(config.steps) >= 3 and list(config.steps) == sorted(set(config.steps))
    require(
        rising and min(config.steps) >= 1,
        "`steps` must hold at least 3 numbers that increase, the first at least 1",
        config.steps,
    )
    for name in ("width", "num_layers", "num_heads", "batch_size", "training_steps", "strata"):
        check_count(name, getattr(config, name))
    check_interval("rate", config.rate, 0.0, np.inf, ends="()")
    for count in config.steps:
        divides = count <= config.strata or count % config.strata == 0
        rule = f"`strata` must divide every number of steps above it, such as {count}"
        require(divides, rule, config.strata)
