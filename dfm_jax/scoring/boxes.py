"""Boxes: how much two of them have in common, and the first one that a text names."""

import re
from typing import NamedTuple

from dfm_jax.checks import require

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_BOX = re.compile(r"\[\s*" + r"\s*,\s*".join([_NUMBER] * 4) + r"\s*\]")


class Box(NamedTuple):
    """Corners: x_1 ≤ x_2 from the left, y_1 ≤ y_2 from above, in any one unit."""

    x_1: float
    y_1: float
    x_2: float
    y_2: float

    @property
    def area(self) -> float:
        """(x_2 − x_1)(y_2 − y_1), and 0 if a side is negative."""
        return max(0.0, self.x_2 - self.x_1) * max(0.0, self.y_2 - self.y_1)


def read_box(text: str) -> Box | None:
    """The first `[x_1, y_1, x_2, y_2]` of a text; None if there is none."""
    found = _BOX.search(text)
    return Box(*map(float, found.groups())) if found else None


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, |a ∩ b| / |a ∪ b|; 0 for two boxes without area."""
    both = Box(max(a.x_1, b.x_1), max(a.y_1, b.y_1), min(a.x_2, b.x_2), min(a.y_2, b.y_2))
    whole = a.area + b.area - both.area
    return both.area / whole if whole > 0 else 0.0


def box_match(prediction: str, answer: str, *, threshold: float = 0.5) -> float:
    """1 if the box that is named overlaps the true one by the threshold or more; of RefCOCO.

    Raises:
        ValueError: if the answer names no box.

    Source: Yu et al. (2016); the threshold counts as a hit, as InternVL and Qwen-VL score.
    """
    told, own = read_box(answer), read_box(prediction)
    require(told is not None, "`answer` must name a box [x_1, y_1, x_2, y_2]", answer)
    assert told is not None
    return float(own is not None and overlap(own, told) >= threshold)
