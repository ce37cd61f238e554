"""The options of `waiting`, its presets, and the checks of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_count
from experiments.lib.builds import commit_of


@dataclass(frozen=True, kw_only=True)
class Config:
    """The commands that a newcomer waits for, of an earlier build and of this one, in turns."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: the short commands alone, or all."""
    out: Path = Path("runs/waiting")
    """The folder for result.json, metrics.jsonl and the picture."""
    before: str = "1b2cef9"
    """The commit of the earlier build, which is taken from this repository; "" leaves it out."""
    short_rounds: int = 3
    """The number of rounds of the commands that take seconds."""
    long_rounds: int = 0
    """The number of rounds of `verify` and of the studies of `make compare`, each with an empty
    compilation cache; 0 leaves them out."""


PRESETS = {
    "quick": Config(),
    "standard": Config(preset="standard", short_rounds=7, long_rounds=3),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    check_count("short_rounds", config.short_rounds)
    check_count("long_rounds", config.long_rounds, at_least=0)
    if config.before:
        commit_of(config.before)
