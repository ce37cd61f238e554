"""The options of `launching`, its presets, and the checks of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_count, require


@dataclass(frozen=True, kw_only=True)
class Config:
    """One expert is killed: its bits, and the others' bits and times, stay as they were."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: 3 kills, or 10."""
    out: Path = Path("runs/launching")
    """The folder for result.json, metrics.jsonl and the two runs."""
    kills: int = 3
    """The number of times that the expert is killed."""
    num_steps: int = 1200
    """The number of updates of each expert."""
    save_every: int = 20
    """The number of steps between two checkpoints."""
    width: int = 16
    """The width of the transformer."""
    seed: int = 0
    """The seed of the moments of the kills."""


PRESETS = {
    "quick": Config(),
    "standard": Config(preset="standard", kills=10, num_steps=3000),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    for name in ("kills", "num_steps", "save_every", "width"):
        check_count(name, getattr(config, name))
    rule = "`num_steps` must leave four checkpoints for each of the `kills`"
    require(config.num_steps >= 4 * config.kills * config.save_every, rule, config.num_steps)
