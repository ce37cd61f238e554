"""What `regimes` can be asked: its options, its presets, and what is refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dfm_jax.checks import check_count, check_interval, require
from experiments.language.config import parsed_arm


@dataclass(frozen=True, kw_only=True)
class Config:
    """Experts against a centre, from little text to much, from few experts to many."""

    preset: Literal["quick", "standard"] = "quick"
    """Where the other values start from: a corner in two minutes, or the whole grid."""
    out: Path = Path("runs/regimes")
    """Folder for result.json, metrics.jsonl, the picture, and cells of an unfinished run."""
    folders: tuple[Path, ...] = ()
    """More domains: folders of text, every file a document."""
    sizes: tuple[int, ...] = (62_500, 250_000, 1_000_000)
    """Bytes of training text, whole documents in a drawn order, each size held in the next."""
    num_experts: tuple[int, ...] = (2, 8)
    """K, of clusters and at random; by domain it is the number of domains."""
    held_bytes: int = 250_000
    """Of validation and of test, each, whole documents in a drawn order."""
    max_order: int = 6
    """The largest n; each model takes its best on validation,"""
    discounts: tuple[float, ...] = (0.5, 0.7, 0.9)
    """and likewise its discount: the centre on all of it, an expert on its part of it."""
    window: int = 512
    """Bytes of a sequence: gates start again with each."""
    num_features: int = 64
    """Of a document: TF-IDF of its words and SVD, which clusters are of."""
    transformer_arms: tuple[str, ...] = ("domain",)
    """Of transformers, as in `language`: `domain`, or KIND:K;"""
    training_tokens: tuple[int, ...] = (100_000, 400_000)
    """for each of these budgets, an arm's tokens: a line of cells, none for no transformers;"""
    transformer_seeds: int = 1
    """starts and batches of each,"""
    transformer_domain_bytes: int = 1_000_000
    """at most so many bytes of each domain,"""
    num_tokens: int = 512
    """V of the byte pairs,"""
    width: int = 32
    """and the size of each member:"""
    num_layers: int = 2
    """layers,"""
    num_heads: int = 2
    """heads,"""
    num_positions: int = 64
    """tokens of a window,"""
    batch_size: int = 8
    """windows of a step,"""
    rates: tuple[float, ...] = (1e-2,)
    """learning rates, of which a member takes its best on validation, at the first seed."""
    num_seeds: int = 3
    """Each splits the documents anew, and parts them anew."""
    num_draws: int = 2_000
    """Of the bootstrap over documents."""
    margin: float = 0.01
    """Nats per byte; a difference proven smaller is called equivalent."""


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
        ValueError: naming the first option that is, its rule and its value.
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
    for arm in config.transformer_arms:
        parsed_arm(arm)
    check_count("transformer_seeds", config.transformer_seeds)
    check_interval("margin", config.margin, 0.0, np.inf, ends="()")
