"""The options of `interruptions`, its presets, and the checks of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_count, require


@dataclass(frozen=True, kw_only=True)
class Config:
    """Kills and flipped bits: the same end, or a refusal."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: 3 kills in a minute, or 20."""
    out: Path = Path("runs/interruptions")
    """The folder for result.json, metrics.jsonl and the two runs."""
    kills: int = 3
    """The number of times that the run is killed."""
    control: bool = False
    """Run twice undisturbed and compare; differences between these do not come from the kills."""
    flips: int = 20
    """The number of bits that are flipped, one at a time."""
    num_steps: int = 120
    """The number of updates of the run."""
    save_every: int = 3
    """The number of steps between two checkpoints."""
    width: int = 16
    """The width of the transformer."""
    seed: int = 0
    """The seed of the moments of the kills and of the places of the flips."""


PRESETS = {
    "quick": Config(),
    "standard": Config(preset="standard", kills=20, control=True, num_steps=900, width=32),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    for name in ("kills", "flips", "num_steps", "save_every", "width"):
        check_count(name, getattr(config, name))
    rule = "`num_steps` must leave two checkpoints for each of the `kills`"
    require(config.num_steps >= 2 * config.kills * config.save_every, rule, config.num_steps)
