"""What `interruptions` can be asked: its options, its presets, and what is refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_count, require


@dataclass(frozen=True, kw_only=True)
class Config:
    """Kills and flipped bits: the same end, or a refusal."""

    preset: Literal["quick", "standard"] = "quick"
    """Where the other values start from: 3 kills in a minute, or 20."""
    out: Path = Path("runs/interruptions")
    """Folder for result.json, metrics.jsonl and the two runs."""
    kills: int = 3
    """How often the run is killed."""
    control: bool = False
    """Run twice undisturbed, and compare: what differs then was not the kills."""
    flips: int = 20
    """How many bits are flipped, one at a time."""
    num_steps: int = 120
    """Updates of the run."""
    save_every: int = 3
    """Steps between checkpoints."""
    width: int = 16
    """Of the transformer."""
    seed: int = 0
    """Of the moments of the kills and the places of the flips."""


PRESETS = {
    "quick": Config(),
    "standard": Config(preset="standard", kills=20, control=True, num_steps=900, width=32),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: naming the first option that is, its rule and its value.
    """
    for name in ("kills", "flips", "num_steps", "save_every", "width"):
        check_count(name, getattr(config, name))
    rule = "`num_steps` must leave two checkpoints for each of the `kills`"
    require(config.num_steps >= 2 * config.kills * config.save_every, rule, config.num_steps)
