"""The items of `synthetic`: a picture of a word and a polygon, and a question of one of four tasks.

    OCR      read the word             HBE
    type     what type is it           quadrilateral
    names    name the shape            kite
    angles   how many angles           4

The prominence p of the word is drawn from Beta(0.197, 0.197): the word gets the share p of the
height that is free, the polygon the rest. The word is asked for with probability p, each of the
other tasks with (1 − p)/3. So OCR is half of all questions, and a guess of the task by what is more
prominent is right with probability E max(p, 1 − p) = 0.900.

An item is a function of (seed, index), whatever items are drawn beside it.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from dfm_jax.checks import check_count
from dfm_jax.data.packages import pillow
from dfm_jax.types import typed
from experiments.lib.lettered import word_mask

SIDE = 96  # px, what EfficientNet-Lite0 reads
PROMINENCE = 0.197  # both parameters of the Beta distribution
ALPHABET = "ABEHKS"  # letters that frozen features can tell apart, some of them barely
TASKS = ("OCR", "type", "names", "angles")
QUESTIONS = {
    "OCR": "read the word",
    "type": "what type is it",
    "names": "name the shape",
    "angles": "how many angles",
}
CORNERS = {
    "pyramid": ((0.5, 0.0), (0.9, 1.0), (0.1, 1.0)),
    "wedge": ((0.0, 0.0), (1.0, 1.0), (0.0, 1.0)),
    "square": ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),
    "kite": ((0.5, 0.0), (0.85, 0.35), (0.5, 1.0), (0.15, 0.35)),
    "honeycomb": ((0.25, 0.07), (0.75, 0.07), (1.0, 0.5), (0.75, 0.93), (0.25, 0.93), (0.0, 0.5)),
    "chevron": ((0.0, 0.1), (0.6, 0.1), (1.0, 0.5), (0.6, 0.9), (0.0, 0.9), (0.4, 0.5)),
}
"""The polygons by name, as corners in a square of side 1, its origin above on the left."""
TYPES = {3: "triangle", 4: "quadrilateral", 6: "hexagon"}
"""The type of a polygon by the number of its angles."""

_LEAST = 16  # px of height that the less prominent thing keeps
_FILL = 0.8  # of its band, at least
_TINTS = (215, 255)  # of each channel of the background, least and greatest
_INKS = (0, 110)  # likewise of word and polygon
_FINER = 4  # polygons are drawn so many times as large, and made smaller


class Item(NamedTuple):
    """What a picture shows, and what is asked about it."""

    word: str
    shape: str  # a name of `CORNERS`
    prominence: float  # p, of the word
    task: str

    @property
    def question(self) -> str:
        """The question, which tells its task."""
        return QUESTIONS[self.task]

    @property
    def answer(self) -> str:
        """The answer that is expected, letter by letter."""
        angles = len(CORNERS[self.shape])
        answers = {
            "OCR": self.word,
            "type": TYPES[angles],
            "names": self.shape,
            "angles": str(angles),
        }
        return answers[self.task]


def drawn_item(index: int, *, seed: int, num_letters: int) -> Item:
    """The item of that number; word, shape and task of the three are uniform.

    Raises:
        ValueError: if a number is negative, or there is no letter.
    """
    rng = _generator(index, seed, 0)
    check_count("num_letters", num_letters)
    prominence = float(rng.beta(PROMINENCE, PROMINENCE))
    word = "".join(ALPHABET[i] for i in rng.integers(len(ALPHABET), size=num_letters))
    shape = tuple(CORNERS)[rng.integers(len(CORNERS))]
    of_word = rng.random() < prominence
    task = TASKS[0] if of_word else TASKS[1 + rng.integers(len(TASKS) - 1)]
    return Item(word, shape, prominence, task)


@typed
def drawn_picture(item: Item, index: int, *, seed: int) -> UInt8[np.ndarray, "96 96 3"]:
    """The picture of an item; colors, places, the angle of the polygon and what is above are drawn.

    Raises:
        ValueError: if a number is negative.
        MissingDataError: if pillow is not installed.
    """
    rng = _generator(index, seed, 1)
    tint = tuple(rng.integers(_TINTS[0], _TINTS[1] + 1, size=3).tolist())
    inks = rng.integers(_INKS[0], _INKS[1] + 1, size=(2, 3)).tolist()
    canvas = pillow("Image").new("RGB", (SIDE, SIDE), tint)
    height = round(_LEAST + item.prominence * (SIDE - 2 * _LEAST))
    sizes = [max(1, round(band * rng.uniform(_FILL, 1))) for band in (height, SIDE - height)]
    word = word_mask(item.word, sizes[0], SIDE)
    polygon = _polygon(item.shape, sizes[1], rng.uniform(0, 2 * math.pi))
    above = bool(rng.integers(2))  # the word stands above the polygon
    tops = (0, height) if above else (SIDE - height, 0)
    for mask, top, band, ink in zip(
        (word, polygon), tops, (height, SIDE - height), inks, strict=True
    ):
        left, down = (
            int(rng.integers(max(0, room) + 1)) for room in (SIDE - mask.width, band - mask.height)
        )
        canvas.paste(tuple(ink), (left, top + down), mask=mask)
    return np.asarray(canvas)


def _generator(index: int, seed: int, purpose: int) -> np.random.Generator:
    check_count("index", index, at_least=0)
    check_count("seed", seed, at_least=0)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, purpose)))


def _polygon(name: str, size: int, angle: float) -> Any:
    """A mask of that side: the polygon turned about the middle, its farthest corner at size/2."""
    image_module, side = pillow("Image"), _FINER * size
    corners = np.array(CORNERS[name]) - np.mean(CORNERS[name], axis=0)
    corners /= 2 * np.linalg.norm(corners, axis=1).max()
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    places = (corners @ turn.T + 0.5) * (side - 1)
    mask = image_module.new("L", (side, side))
    pillow("ImageDraw").Draw(mask).polygon([tuple(place) for place in places.tolist()], fill=255)
    return mask.resize((size, size), image_module.Resampling.LANCZOS)
