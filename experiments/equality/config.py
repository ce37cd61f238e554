"""What `equality` can be asked: its options, its presets, and what is refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dfm_jax.checks import check_count, check_interval


@dataclass(frozen=True, kw_only=True)
class Config:
    """Centre = gated experts on byte n-grams: counted, then learned."""

    preset: Literal["quick", "standard"] = "quick"
    """Where the other values start from: n up to 3 in a minute, or up to 4."""
    out: Path = Path("runs/equality")
    """Folder for result.json, metrics.jsonl and equality.png."""
    orders: tuple[int, ...] = (1, 2, 3)
    """The n of the n-grams that are counted."""
    alpha: float = 0.01
    """Pseudo-count of each byte at each state for the centre; each expert has alpha / K."""
    random_parts: int = 4
    """K of the random partition."""
    seed: int = 0
    """Of the random partition and of the starts of the descent."""
    descent_order: int = 2
    """The n of the descent, on the domains as parts."""
    learning_rate: float = 0.3
    """Adam's at the start, for both arms; a half cosine brings it to 0."""
    num_steps: int = 4000
    """Full-batch steps of both arms."""
    num_records: int = 60
    """How often the descent is looked at."""
    num_seeds: int = 3
    """Starts of the descent, mapped over one axis."""


PRESETS = {
    "quick": Config(),
    "standard": Config(preset="standard", orders=(1, 2, 3, 4), num_steps=8000, num_seeds=5),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: naming the first option that is, its rule and its value.
    """
    for n in (*config.orders, config.descent_order):
        check_count("n", n, at_most=7)
    check_interval("alpha", config.alpha, 0.0, np.inf, ends="()")
    check_count("random_parts", config.random_parts, at_least=2)
    check_interval("learning_rate", config.learning_rate, 0.0, np.inf, ends="()")
    check_count("num_steps", config.num_steps)
    check_count("num_records", config.num_records, at_least=3)
    check_count("num_seeds", config.num_seeds)
    if max(config.orders, default=1) < 2:
        raise ValueError(f"`orders` must hold an n of at least 2; it is {config.orders}.")
