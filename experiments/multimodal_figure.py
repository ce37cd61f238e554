"""The pictures of `multimodal`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(folder: Path, cells: Sequence[Mapping[str, Any]], data: Path) -> tuple[Path, Path]:
    """Clusters with sample pictures, and a page of questions."""
    return folder / "multimodal.png", folder / "questions.png"
