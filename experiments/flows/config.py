"""The options of `flows`, its presets, and the checks of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dfm_jax.checks import check_count, check_interval, require
from experiments.flows.images import Kind
from experiments.flows.sources import Name


@dataclass(frozen=True, kw_only=True)
class Config:
    """Flows trained apart on small pictures, and one flow trained on all of them."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: a minute, or ten."""
    out: Path = Path("runs/flows")
    """The folder for result.json, metrics.jsonl, pictures, checkpoints and unfinished cells."""
    sources: tuple[Name, ...] = ("masked", "uniform")
    """The sources of the flows: all masks, or uniform tokens."""
    partitions: tuple[Kind, ...] = ("cluster", "random")
    """The partitions of the images: balanced clusters of pixels, or random."""
    num_experts: int = 5
    """The number K of experts."""
    num_train: int = 1347
    """The number of images to train on."""
    num_test: int = 64
    """The number of images to evaluate on."""
    width: int = 32
    """The width of every flow."""
    num_layers: int = 1
    """The number of layers of every flow."""
    num_heads: int = 2
    """The number of attention heads of every flow."""
    batch_size: int = 8
    """The number of images of a step."""
    training_steps: int = 100
    """The number S of steps of the dense model; the experts share as many."""
    rate: float = 3e-3
    """The peak learning rate of every member."""
    warmup: float = 0.05
    """The share of a member's steps that is its warm-up; it is 10 steps at least."""
    router_width: int = 16
    """The width of the router."""
    router_share: float = 0.5
    """The number of steps of the router, as a share of the dense model's."""
    num_steps: int = 64
    """The number T of steps, of the masked source's grid and of Euler's method."""
    epsilon: float = 0.02
    """The process of a uniform source ends at the time 1 − ε."""
    times_per_image: int = 4
    """The number of strata of time; each held-out image has one draw in each."""
    sequential_images: int = 1
    """The number of these images for which L5 is taken position by position."""
    smoothing: float = 0.1
    """The pseudo-count of each state, of the experts of the example with 81 states."""
    num_samples: int = 6
    """The number of images that each sampler draws."""
    num_seeds: int = 1
    """The number of seeds; each draws new starts, batches and states for the same images."""
    num_draws: int = 2_000
    """The number of bootstrap samples over images."""
    margin: float = 0.02
    """The margin in nats per pixel; a smaller proven difference is called equivalent."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        num_test=450,
        width=48,
        num_layers=2,
        training_steps=1500,
        times_per_image=8,
        sequential_images=4,
        num_samples=10,
        num_seeds=3,
        num_draws=10_000,
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    for name in ("sources", "partitions"):
        values = getattr(config, name)
        unique = len(values) > 0 and len(set(values)) == len(values)
        require(unique, f"`{name}` must hold at least one name, and each name once", values)
    check_count("num_experts", config.num_experts, at_least=2)
    for name in (
        *("width", "num_layers", "num_heads", "batch_size", "training_steps", "router_width"),
        *("num_steps", "times_per_image", "sequential_images", "num_samples", "num_seeds"),
        "num_draws",
    ):
        check_count(name, getattr(config, name))
    least = config.num_experts
    rule = f"`training_steps` must be at least `num_experts`, which is {least}"
    require(config.training_steps >= least, rule, config.training_steps)
    for name in ("rate", "router_share", "smoothing", "margin"):
        check_interval(name, getattr(config, name), 0.0, np.inf, ends="()")
    check_interval("warmup", config.warmup, 0.0, 1.0)
    check_interval("epsilon", config.epsilon, 0.0, 1.0, ends="()")
    rule = f"`times_per_image` must divide `num_steps`, which is {config.num_steps}"
    require(config.num_steps % config.times_per_image == 0, rule, config.times_per_image)
