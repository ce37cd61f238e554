"""The options of `compile_tpu`, its presets, and the checks of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_count, require
from experiments.systems.compile_tpu.topologies import LANGUAGE, TOPOLOGIES
from experiments.systems.compile_tpu.whole_systems import ARMS

MULTIMODAL = ("tpu", "tpu-encoder")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All programs at a small size, for TPU topologies; some at a billion parameters."""

    preset: Literal["quick", "standard", "systems"] = "quick"
    """The preset from which the other values start: small programs, a billion parameters too, or
    the paper's systems at their sizes."""
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
    systems: tuple[str, ...] = ()
    """The updates of the paper's systems, each 5 to 10 minutes: "llava-1.5-7b, expert" and so
    on."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        large=("expert step, shard_map", "expert × data step", "dense step, data-parallel"),
        language=tuple(LANGUAGE),
        multimodal=MULTIMODAL,
    ),
    "systems": Config(preset="systems", topologies=0, systems=tuple(ARMS)),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    check_count("topologies", config.topologies, at_least=0, at_most=len(TOPOLOGIES))
    known = set(config.language) <= set(LANGUAGE)
    require(known, f"Each of `language` must be one of {', '.join(LANGUAGE)}", config.language)
    known = set(config.multimodal) <= set(MULTIMODAL)
    rule = f"Each of `multimodal` must be one of {', '.join(MULTIMODAL)}"
    require(known, rule, config.multimodal)
    known = set(config.systems) <= set(ARMS)
    require(known, f"Each of `systems` must be one of {'; '.join(ARMS)}", config.systems)
