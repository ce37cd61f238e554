"""The options of `counting`, its presets, and the checks of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dfm_jax.checks import check_count, check_interval, require

PARTITIONS = ("domain", "file", "cluster", "likelihood", "random")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The comparison of gates on real text, with counted experts."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: a sample in a minute, or all of the text."""
    out: Path = Path("runs/counting")
    """The folder for result.json, metrics.jsonl, the pictures, and the cells of an unfinished
    run."""
    folders: tuple[Path, ...] = ()
    """Folders of text that become more domains; every file is a document."""
    domain_bytes: int = 200_000
    """The largest number of bytes of each domain, in whole documents; 0 takes all."""
    partitions: tuple[str, ...] = ("domain", "likelihood", "random")
    """The ways in which the documents are divided among the experts."""
    num_parts: int = 5
    """The number K of parts, for every partition except by domain."""
    max_order: int = 6
    """The largest n; each model takes the best one on validation."""
    discounts: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    """The discounts; each model takes the best one on validation, an expert on its part."""
    window: int = 512
    """The number of bytes of a sequence, in the main table."""
    prefixes: tuple[int, ...] = (16, 64)
    """The numbers of bytes after which a gate is kept."""
    num_features: int = 64
    """The number of features of a context, TF-IDF of its words and SVD, for gates that read it."""
    decays: tuple[float, ...] = (1e-5, 1e-4, 1e-3)
    """The weight decays of the router; the best one on validation is taken."""
    router_order: int = 2
    """The largest n of the models that give the likelihood of a context."""
    alphas: tuple[float, ...] = (0.01, 0.1, 0.4)
    """The switching probabilities of fixed-share; each table takes the best one on validation."""
    num_generated: int = 100
    """The number of sequences that the experts generate."""
    num_seeds: int = 3
    """The number of seeds; each makes a new split and new parts."""
    num_draws: int = 2_000
    """The number of bootstrap samples over documents."""
    margin: float = 0.01
    """The margin in nats per byte; a smaller proven difference is called equivalent."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        domain_bytes=0,
        partitions=PARTITIONS,
        num_parts=8,
        max_order=7,
        prefixes=(16, 64, 256),
        alphas=(0.001, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7),
        num_generated=2_000,
        num_seeds=5,
        num_draws=10_000,
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    require(config.domain_bytes >= 0, "`domain_bytes` must not be negative", config.domain_bytes)
    known = set(config.partitions) <= set(PARTITIONS)
    require(
        known and len(config.partitions) > 0,
        f"`partitions` must hold at least one of {', '.join(PARTITIONS)}, and no other",
        config.partitions,
    )
    check_count("num_parts", config.num_parts, at_least=2)
    check_count("max_order", config.max_order, at_most=7)
    require(len(config.discounts) > 0, "`discounts` must not be empty", config.discounts)
    check_interval("discounts", np.array(config.discounts), 0.0, 1.0, ends="(]")
    check_count("window", config.window, at_least=2)
    for length in config.prefixes:
        check_count("prefixes", length)
    check_count("num_features", config.num_features)
    require(len(config.decays) > 0, "`decays` must not be empty", config.decays)
    check_interval("decays", np.array(config.decays), 0.0, np.inf, ends="[)")
    check_count("router_order", config.router_order, at_most=config.max_order)
    require(len(config.alphas) > 0, "`alphas` must not be empty", config.alphas)
    check_interval("alphas", np.array(config.alphas), 0.0, 1.0)
    check_count("num_generated", config.num_generated, at_least=2)
    check_count("num_seeds", config.num_seeds)
    check_count("num_draws", config.num_draws)
    check_interval("margin", config.margin, 0.0, np.inf, ends="()")
