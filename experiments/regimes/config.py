"""The options of `regimes`, its presets, and the checks of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dfm_jax.checks import check_count, check_interval, require
from experiments.language.config import parsed_variant


@dataclass(frozen=True, kw_only=True)
class Config:
    """Experts against a dense model, from little text to much, from few experts to many."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: a corner of the grid in two minutes, or the
    whole grid."""
    out: Path = Path("runs/regimes")
    """The folder for result.json, metrics.jsonl, the picture, and the cells of an unfinished
    run."""
    folders: tuple[Path, ...] = ()
    """Folders of text that become more domains; every file is a document."""
    sizes: tuple[int, ...] = (62_500, 250_000, 1_000_000)
    """The numbers of bytes of training text, whole documents in a random order; each size contains
    the one before."""
    num_experts: tuple[int, ...] = (2, 8)
    """The numbers K of experts, for clusters and random parts; by domain it is the number of
    domains."""
    held_bytes: int = 250_000
    """The number of bytes of validation and of test each, whole documents in a random order."""
    max_order: int = 6
    """The largest n; each model takes the best one on validation."""
    discounts: tuple[float, ...] = (0.5, 0.7, 0.9)
    """The discounts; each model takes the best one on validation, an expert on its part."""
    window: int = 512
    """The number of bytes of a sequence; gates start again with each."""
    num_features: int = 64
    """The number of features of a document, TF-IDF of its words and SVD, from which clusters are
    made."""
    transformer_variants: tuple[str, ...] = ("domain",)
    """The variants of transformers, as in `language`: `domain`, or KIND:K."""
    training_tokens: tuple[int, ...] = (100_000, 400_000)
    """The numbers of training tokens of a variant of transformers; without any, no transformer is
    trained."""
    transformer_seeds: int = 1
    """The number of seeds of each transformer."""
    transformer_domain_bytes: int = 1_000_000
    """The largest number of bytes of each domain, for transformers."""
    num_tokens: int = 512
    """The number V of byte-pair tokens."""
    width: int = 32
    """The width of every transformer."""
    num_layers: int = 2
    """The number of layers of every transformer."""
    num_heads: int = 2
    """The number of attention heads of every transformer."""
    num_positions: int = 64
    """The number of tokens in a window."""
    batch_size: int = 8
    """The number of windows of a step."""
    rates: tuple[float, ...] = (1e-2,)
    """The learning rates; each member takes the best one on validation, at the first seed."""
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
        sizes=(62_500, 250_000, 1_000_000, 4_000_000),
        num_experts=(2, 4, 8, 16, 32),
        held_bytes=500_000,
        max_order=7,
        discounts=(0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
        training_tokens=(250_000, 1_000_000, 4_000_000),
        transformer_seeds=3,
        transformer_domain_bytes=3_000_000,
        num_seeds=6,
        num_draws=10_000,
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    for name in ("sizes", "num_experts", "discounts"):
        require(len(getattr(config, name)) > 0, f"`{name}` must not be empty", ())
    ascending = list(config.sizes) == sorted(set(config.sizes))
    require(ascending, "`sizes` must increase", config.sizes)
    for size in config.sizes:
        check_count("sizes", size)
    for number in config.num_experts:
        check_count("num_experts", number, at_least=2)
    check_count("max_order", config.max_order, at_most=7)
    check_interval("discounts", np.array(config.discounts), 0.0, 1.0, ends="(]")
    check_count("window", config.window, at_least=2)
    for name in ("held_bytes", "num_features", "num_seeds", "num_draws"):
        check_count(name, getattr(config, name))
    budgets = config.training_tokens
    rule = "`training_tokens` must increase"
    require(list(budgets) == sorted(set(budgets)), rule, budgets)
    for number in budgets:
        check_count("training_tokens", number)
    for variant in config.transformer_variants:
        parsed_variant(variant)
    check_count("transformer_seeds", config.transformer_seeds)
    check_interval("margin", config.margin, 0.0, np.inf, ends="()")
