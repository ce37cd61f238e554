"""A folder of small texts, for studies of how a run behaves and not of what it learns."""

from pathlib import Path

import numpy as np

_WORDS = ("in", "the", "beginning", "was", "word", "and", "light", "upon", "face", "of", "waters")


def write_texts(folder: Path) -> None:
    """Forty short documents, the same on every machine."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(40):
        words = random.choice(_WORDS, size=random.integers(20, 60))
        (folder / f"{number:02d}.txt").write_text(" ".join(words) + ".\n", encoding="utf-8")
