"""The options of `equality`, its presets, and the checks of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dfm_jax.checks import check_count, check_interval


@dataclass(frozen=True, kw_only=True)
class Config:
    """Dense = gated experts on byte n-grams: counted, then learned."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: n up to 3 in a minute, or up to 4."""
    out: Path = Path("runs/equality")
    """The folder for result.json, metrics.jsonl and equality.png."""
    orders: tuple[int, ...] = (1, 2, 3)
    """The orders n of the n-grams that are counted."""
    alpha: float = 0.01
    """The pseudo-count of each byte at each state for the dense model; an expert has
    alpha / K.
    """
    random_parts: int = 4
    """The number K of parts of the random partition."""
    seed: int = 0
    """The seed of the random partition and of the starts of the descent."""
    descent_order: int = 2
    """The order n of the descent, whose parts are the domains."""
    learning_rate: float = 0.3
    """Adam's first learning rate, for both variants; a half cosine brings it to 0."""
    num_steps: int = 4000
    """The number of full-batch steps of both variants."""
    num_records: int = 60
    """The number of times that the descent is recorded."""
    num_seeds: int = 3
    """The number of starts of the descent, mapped over one axis."""


PRESETS = {
    "quick": Config(),
    "standard": Config(preset="standard", orders=(1, 2, 3, 4), num_steps=8000, num_seeds=5),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
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
        rule = "`orders` must hold an n of at least 2"
        raise ValueError(f"{rule}; got orders = {config.orders}.")
