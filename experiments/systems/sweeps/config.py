"""The options of `sweeps`, its presets, and the checks of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_count, require


@dataclass(frozen=True, kw_only=True)
class Config:
    """One program for many runs, compared with many runs of one program."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: 4 × 2 runs in a minute, or 16 × 3."""
    out: Path = Path("runs/sweeps")
    """The folder for result.json and metrics.jsonl."""
    width: int = 32
    """The width of the model, which has two layers; a multiple of 4."""
    num_seeds: int = 4
    """The number of seeds."""
    learning_rates: tuple[float, ...] = (1e-3, 1e-2)
    """The learning rates; each is run with each seed."""
    num_steps: int = 20
    """The number of updates of a run."""
    num_devices: int = 2
    """The number of devices of one more side, virtual ones on a CPU; 1 leaves that side out."""
    num_rounds: int = 3
    """The number of rounds over all sides, besides the first round, which compiles."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        num_seeds=16,
        learning_rates=(1e-3, 3e-3, 1e-2),
        num_steps=50,
        num_rounds=5,
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    check_count("width", config.width)
    require(config.width % 4 == 0, "`width` must be a multiple of 4", config.width)
    for name in ("num_seeds", "num_steps", "num_devices", "num_rounds"):
        check_count(name, getattr(config, name))
    check_count("the number of `learning_rates`", len(config.learning_rates))
