"""What `isolation` can be asked: its options, its presets, and what is refused."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Config:
    """Count the collectives of compiled programs."""

    json: Path | None = None
    """A file for the list of programs, platform, devices and collectives by kind."""
    devices: int = 8
    """The number of devices, virtual ones on a CPU; it must be even."""
