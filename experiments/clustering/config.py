"""The options of `clustering`, its presets, and the checks of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_count, require


@dataclass(frozen=True, kw_only=True)
class Config:
    """Clusters of real features, and balance at full size."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: some minutes, or the size of LLaVA's
    instruction data."""
    out: Path = Path("runs/clustering")
    """The folder for result.json, metrics.jsonl, the picture, encoded scenes, and cells."""
    per_domain: int = 600
    """The number of pieces of 512 characters from each of five domains."""
    num_scenes: int = 0
    """The number of emoji scenes to encode, at 30 ms each; 0 leaves them out."""
    num_restarts: int = 4
    """The number of restarts of k-means on real features."""
    sub_sample: int = 2_000
    """The number of synthetic rows on which the assignment is compared with the exact one."""
    medium: int = 10_000
    """The number of synthetic rows for all methods, with K = 2 and 8."""
    large: int = 30_000
    """The number of synthetic rows for ours and faiss, with K = 8 and 7, by rows and by tokens."""
    num_fine: int = 128
    """The number K of fine, unbalanced clusters of the medium rows."""
    num_features: int = 768
    """The number of features of a synthetic row."""
    num_rounds: int = 1
    """The number of rounds in which the methods take turns; the median counts."""
    before: str = ""
    """A commit, whose build takes turns with ours where we run until nothing changes."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        num_scenes=4_000,
        medium=100_000,
        large=665_000,
        num_fine=1_024,
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    check_count("per_domain", config.per_domain, at_least=20)
    check_count("num_scenes", config.num_scenes, at_least=0)
    check_count("num_restarts", config.num_restarts)
    check_count("sub_sample", config.sub_sample, at_least=16, at_most=2_000)
    even = config.medium >= 16 and config.medium % 8 == 0
    rule = "`medium` must be a multiple of 8 and at least 16, so that the auction leaves no row"
    require(even, rule, config.medium)
    check_count("large", config.large, at_least=16)
    check_count("num_fine", config.num_fine, at_most=config.medium)
    check_count("num_features", config.num_features, at_least=2)
    check_count("num_rounds", config.num_rounds)
