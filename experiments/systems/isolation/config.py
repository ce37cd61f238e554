"""What `isolation` can be asked: its options, its presets, and what is refused."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Config:
    """Count the collectives of compiled programs."""

    json: Path | None = None
    """File for the list of programs, platform, devices, collectives by kind."""
    devices: int = 8
    """How many, virtual ones on a CPU; an even number."""
