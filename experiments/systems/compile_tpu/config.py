"""The options of `compile_tpu`, its presets, and the checks of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_count, require
from experiments.systems.compile_tpu.topologies import LANGUAGE, TOPOLOGIES

MULTIMODAL = ("tpu", "tpu-encoder")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All programs at a small size, for TPU topologies; some at a billion parameters."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: small programs, or a billion parameters too."""
    out: Path = Path("runs/compile_tpu")
    """The folder for result.json and metrics.jsonl."""
    topologies: int = len(TOPOLOGIES)
    """The number of topologies to compile for."""
    large: tuple[str, ...] = ()
    """The programs that are compiled at a billion parameters too, for v5p."""
    language: tuple[str, ...] = ()
    """The presets of `experiments.language` whose update is compiled, one run on each chip."""
    multimodal: tuple[str, ...] = ()
    """The presets of `experiments.multimodal`, likewise."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        large=("expert step, shard_map", "expert × data step", "dense step, data-parallel"),
        language=tuple(LANGUAGE),
        multimodal=MULTIMODAL,
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    check_count("topologies", config.topologies, at_most=len(TOPOLOGIES))
    known = set(config.language) <= set(LANGUAGE)
    require(known, f"Each of `language` must be one of {', '.join(LANGUAGE)}", config.language)
    known = set(config.multimodal) <= set(MULTIMODAL)
    rule = f"Each of `multimodal` must be one of {', '.join(MULTIMODAL)}"
    require(known, rule, config.multimodal)
