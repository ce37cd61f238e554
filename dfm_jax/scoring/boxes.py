"""Boxes: the overlap of two boxes, and the first box in a text."""

import re
from math import inf
from typing import Literal, NamedTuple, get_args

from dfm_jax.checks import require

Scale = Literal["pixels", "0-1", "0-1000"]
"""What the corners of a box are counted in: pixels, or shares of the picture's two sides."""

THRESHOLD = 0.5
"""Intersection over union from which on a box is found."""

SCALES: tuple[Scale, ...] = get_args(Scale)
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_BOX = re.compile(r"\[\s*" + r"\s*,\s*".join([_NUMBER] * 4) + r"\s*\]")


class Box(NamedTuple):
    """The corners of a box, x_1 ≤ x_2 from the left and y_1 ≤ y_2 from the top, in any unit."""

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


def fits_scale(box: Box, scale: Scale, size: tuple[int, int] | None = None) -> bool:
    """Whether a box can have this scale, in a picture of this width and height in pixels.

    Corners lie in [0, 1], in [0, 1000], or in the picture, to within a pixel. If a box of pixels or
    thousandths ends within 1 of the upper left corner, it is taken for a box of shares.
    """
    width, height = {"0-1": (1, 1), "0-1000": (1000, 1000)}.get(scale, size or (inf, inf))
    slack = 1 if scale == "pixels" else 0  # published boxes end a fraction behind the last pixel
    inside = min(box) >= 0 and box.x_2 <= width + slack and box.y_2 <= height + slack
    return inside and (scale == "0-1" or max(box.x_2, box.y_2) > 1)


def in_shares(box: Box, scale: Scale, size: tuple[int, int] | None = None) -> Box:
    """The box in shares of the picture's width and height.

    Raises:
        ValueError: if the box is in pixels and the size of the picture is not given.
    """
    if scale == "pixels":
        rule = "`width` and `height` of the picture must be given if only one box is in pixels"
        require(size is not None, rule, size, name="(width, height)")
    width, height = {"0-1": (1, 1), "0-1000": (1000, 1000)}.get(scale, size or (1, 1))
    return Box(box.x_1 / width, box.y_1 / height, box.x_2 / width, box.y_2 / height)
