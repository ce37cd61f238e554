"""Scenes of a shape and two letters, one as prominent as the other is not; two kinds of question.

    shape     which shape is it?     star
    letters   what is written?       QX

What an image looks like (its prominence) and what is asked of it are drawn apart, so a partition by
appearance and one by task have nothing in common.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from dfm_jax.checks import check_count, require
from dfm_jax.data.packages import pillow
from dfm_jax.types import typed
from experiments.lib.scene_questions import SceneQuestion

SIDE = 64  # px
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "arrow")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BAND = (18, 46)  # px: what the less and the more prominent of the two get; together SIDE
_FILL = 0.8  # of its band, at least
_TINTS = (200, 255)  # of each channel of the background, least and greatest
_INKS = (0, 140)  # likewise of shape and letters


@dataclass(frozen=True, kw_only=True)
class Lettered:
    """What an image shows."""

    shape: str
    letters: str
    prominence: float  # of the letters: 0 where the shape is largest, 1 where they are
    above: bool  # the letters stand above the shape


class LetteredScenes(NamedTuple):
    """Images, and what each of them shows."""

    images: UInt8[np.ndarray, "B 64 64 3"]
    scenes: tuple[Lettered, ...]


@typed
def lettered_scenes(
    indices: Sequence[int], *, seed: int = 0, letters: str = LETTERS
) -> LetteredScenes:
    """Scene i is a function of (seed, i, letters), whatever scenes are drawn beside it.

    Shape, letters, prominence, colors and places are uniform.

    Letters get 18 px of the height at prominence 0 and 46 at 1, the shape what is left; each fills
    four fifths of its band or more.

    Args:
        indices: The number i ≥ 0 of each scene.
        seed: A seed ≥ 0; another seed gives other scenes.
        letters: The capital letters from which two are drawn.

    Raises:
        ValueError: if the seed or an index is negative, or the letters are none or no capitals.
        MissingDataError: if pillow is not installed.
    """
    check_count("seed", seed, at_least=0)
    for i in indices:
        check_count("indices", i, at_least=0)
    rule = "`letters` must be one or more capital letters"
    require(set(letters) <= set(LETTERS) and letters != "", rule, letters)
    images = np.zeros((len(indices), SIDE, SIDE, 3), np.uint8)
    scenes = []
    for image, i in zip(images, indices, strict=True):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,)))
        picture, scene = _scene(rng, letters)
        image[:] = picture
        scenes.append(scene)
    return LetteredScenes(images, tuple(scenes))


def lettered_question(scene: Lettered, *, index: int, seed: int = 0) -> SceneQuestion:
    """One of the two, with equal chance, whatever the scene: a function of (index, seed).

    Raises:
        ValueError: if a number is negative.
    """
    check_count("index", index, at_least=0)
    check_count("seed", seed, at_least=0)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, 1)))
    if rng.integers(2):
        return SceneQuestion("shape", "which shape is it?", scene.shape)
    return SceneQuestion("letters", "what is written?", scene.letters)


def _scene(rng: np.random.Generator, letters: str) -> tuple[np.ndarray, Lettered]:
    image_module = pillow("Image")
    scene = Lettered(
        shape=SHAPES[rng.integers(len(SHAPES))],
        letters="".join(letters[i] for i in rng.integers(len(letters), size=2)),
        prominence=float(rng.random()),
        above=bool(rng.integers(2)),
    )
    tint = tuple(rng.integers(_TINTS[0], _TINTS[1] + 1, size=3).tolist())
    inks = rng.integers(_INKS[0], _INKS[1] + 1, size=(2, 3))
    canvas = image_module.new("RGB", (SIDE, SIDE), tint)
    height = round(_BAND[0] + scene.prominence * (_BAND[1] - _BAND[0]))
    bands = {"letters": (0, height), "shape": (height, SIDE)}
    if not scene.above:
        bands = {"letters": (SIDE - height, SIDE), "shape": (0, SIDE - height)}
    for kind, ink in zip(("shape", "letters"), inks, strict=True):
        top, bottom = bands[kind]
        size = max(1, round((bottom - top) * rng.uniform(_FILL, 1)))
        drawn_shape = kind == "shape"
        mask = _shape(scene.shape, size) if drawn_shape else word_mask(scene.letters, size, SIDE)
        free = (SIDE - mask.width, bottom - top - mask.height)
        left, down = (int(rng.integers(max(0, room) + 1)) for room in free)
        canvas.paste(tuple(ink.tolist()), (left, top + down), mask=mask)
    return np.asarray(canvas), scene


def _shape(name: str, size: int):
    """A mask of that side, drawn four times as large and made smaller: without stairs."""
    image_module, draw_module = pillow("Image"), pillow("ImageDraw")
    side = 4 * size
    mask = image_module.new("L", (side, side))
    draw = draw_module.Draw(mask)
    whole = (0, 0, side - 1, side - 1)
    if name in ("circle", "ring"):
        draw.ellipse(whole, fill=255)
    if name == "ring":
        inner = side // 4
        draw.ellipse((inner, inner, side - 1 - inner, side - 1 - inner), fill=0)
    elif name == "square":
        draw.rectangle(whole, fill=255)
    elif name != "circle":
        draw.polygon([(x * (side - 1), y * (side - 1)) for x, y in _CORNERS[name]], fill=255)
    return mask.resize((size, size), image_module.Resampling.LANCZOS)


def word_mask(letters: str, height: int, width: int) -> Any:
    """A mask of the letters, no higher and no wider than that, as pillow draws them."""
    image_module, draw_module = pillow("Image"), pillow("ImageDraw")
    font = pillow("ImageFont").load_default(96)
    left, top, right, bottom = (round(x) for x in font.getbbox(letters))
    mask = image_module.new("L", (right - left, bottom - top))
    draw_module.Draw(mask).text((-left, -top), letters, fill=255, font=font)
    scale = min(height / mask.height, width / mask.width)
    shape = (max(1, round(mask.width * scale)), max(1, round(mask.height * scale)))
    return mask.resize(shape, image_module.Resampling.LANCZOS)


def _star() -> list[tuple[float, float]]:
    corners = []
    for i in range(10):
        radius, angle = (0.5, 0.2)[i % 2], math.pi * (i / 5 - 0.5)
        corners.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    return corners


_CORNERS = {
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "star": _star(),
    "cross": [
        *[(0.35, 0), (0.65, 0), (0.65, 0.35), (1, 0.35), (1, 0.65), (0.65, 0.65)],
        *[(0.65, 1), (0.35, 1), (0.35, 0.65), (0, 0.65), (0, 0.35), (0.35, 0.35)],
    ],
    "arrow": [(0, 0.35), (0.5, 0.35), (0.5, 0), (1, 0.5), (0.5, 1), (0.5, 0.65), (0, 0.65)],
}
