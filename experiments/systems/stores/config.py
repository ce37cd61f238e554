"""The options of `stores`, its presets, and the checks of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_count, require


@dataclass(frozen=True, kw_only=True)
class Config:
    """Training loops that save to a disk and to a server of objects on loopback, in turns."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: checkpoints of 10 MB, or of 100 MB."""
    out: Path = Path("runs/stores")
    """The folder for result.json, metrics.jsonl and the runs on the disk."""
    rounds: int = 3
    """The number of rounds; in each one every variant runs once."""
    num_steps: int = 200
    """The number of updates of each loop."""
    save_every: int = 50
    """The number of steps between two checkpoints."""
    width: int = 128
    """The width of the transformer."""
    num_layers: int = 4
    """The number of its layers."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard", rounds=7, num_steps=160, save_every=40, width=320, num_layers=7
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    for name in ("rounds", "num_steps", "save_every", "width", "num_layers"):
        check_count(name, getattr(config, name))
    rule = "`num_steps` must be a multiple of `save_every`, at least twice as large"
    good = config.num_steps % config.save_every == 0 and config.num_steps >= 2 * config.save_every
    require(good, rule, config.num_steps)
    require(config.width % 32 == 0, "`width` must be a multiple of 32", config.width)
