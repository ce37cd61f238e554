"""The sets of `multimodal`, each as files: pictures, and conversations that ask about them.

easy-vqa   one colored shape (installed)
scenes     one to four emoji of a group (drawn from a seed); two more tests, of emoji and of
           combinations of emoji and cell that no training picture shows
lettered   a shape and two letters (drawn), one as prominent as the other is not

Every set, and a user's own, is read back by the reader of LLaVA's and InternVL's files.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dfm_jax.checks import require
from dfm_jax.data.conversations import Conversation, read_conversations
from dfm_jax.data.packages import pillow
from experiments.lib.easy_vqa import easy_vqa_rows
from experiments.lib.emoji import GROUPS, Emoji, PlacedEmoji, emoji_image, emoji_scenes, load_emoji
from experiments.lib.lettered import lettered_question, lettered_scenes
from experiments.lib.scene_questions import question_rows, scene_questions

SETS = ("easy-vqa", "scenes", "lettered")
_ALPHABET = "ABEHKS"  # of the letters: what frozen features can tell apart, some of them barely
_WORDS = 3  # of an emoji's name, at most
_CHUNK = 256  # scenes drawn at a time
_COMBINATIONS = 8  # of so many combinations of emoji and cell, one is held out
_QUESTIONS = 2  # drawings of every family that a scene is asked


class Sizes(NamedTuple):
    """The numbers of pictures of a set; a test is also reduced to so many questions."""

    train: int
    validation: int
    test: int


class Picture(NamedTuple):
    """One picture and the rows that ask about it, without the path of its file."""

    pixels: np.ndarray
    rows: Callable[[str], list[dict[str, Any]]]


Asked = Mapping[str, tuple[Conversation, ...]]
"""Conversations by split: train, validation, test, and what other tests there are."""


def asked(name: str, folder: Path, sizes: Sizes, *, num_emoji: int, seed: int) -> Asked:
    """A set by its name: written into `folder` unless it is there already, and read.

    Args:
        name: A name of `SETS`.
        folder: The folder of this set.
        sizes: The numbers of pictures.
        num_emoji: The largest number of emoji of each group, of which one in four is held out.
        seed: The seed of all draws.
    """
    if name == "easy-vqa":
        return _easy_vqa(folder, sizes)
    makers = {
        "scenes": lambda: _scenes(sizes, num_emoji, seed),
        "lettered": lambda: _lettered(sizes, seed),
    }
    done, drawn = folder / "done.json", json.dumps([*sizes, num_emoji, seed])
    if not done.is_file() or done.read_text(encoding="utf-8") != drawn:
        shutil.rmtree(folder, ignore_errors=True)  # drawn otherwise, or not to its end
        for split, pictures in makers[name]().items():
            _write(folder / split, pictures)
        done.write_text(drawn, encoding="utf-8")
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    return {one.name: read_conversations(one / "questions.jsonl", one) for one in found}


def own(path: Path, images: Path | None, *, shares: Sequence[float], seed: int) -> Asked:
    """A user's file, split by picture: all questions about a picture are in one split.

    Args:
        path: The path of the conversations.
        images: The folder of their pictures.
        shares: The shares of validation and test.
        seed: The seed of the split.
    """
    rows = read_conversations(path, images)
    for row in rows:
        rule = f"{path}, line {row.line}: the row must have `image`"
        require(row.picture is not None, rule, None)
    pictures = sorted({str(row.picture) for row in rows})
    order = np.random.default_rng(seed).permutation(len(pictures))
    ends = np.round(np.cumsum(shares) * len(pictures)).astype(int)
    parts = dict(zip(("validation", "test", "train"), np.split(order, ends), strict=True))
    for split, part in parts.items():
        rule = f"`conversations` must hold enough pictures for {split}"
        require(len(part) > 0, rule, 0, name=f"number of pictures of {split}")
    split_of = {pictures[i]: split for split, part in parts.items() for i in part}
    return {
        split: tuple(row for row in rows if split_of[str(row.picture)] == split) for split in parts
    }


# ── easy-VQA ────────────────────────────────────────────────────────────────────────────────────


def _easy_vqa(folder: Path, sizes: Sizes) -> Asked:
    """The set easy-VQA; the last of its training pictures are for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for split in ("train", "test"):
        rows, images = easy_vqa_rows(split)
        path = folder / f"{split}.jsonl"
        _write_rows(path, rows)
        found[split] = read_conversations(path, images)
    numbers = sorted({int(row.picture.stem) for row in found["train"] if row.picture})
    first = set(numbers[: sizes.train])
    last = set(numbers[max(sizes.train, len(numbers) - sizes.validation) :])
    tested = set(range(sizes.test))

    def of(split: str, wanted: set[int]) -> tuple[Conversation, ...]:
        return tuple(x for x in found[split] if x.picture and int(x.picture.stem) in wanted)

    return {
        "train": of("train", first),
        "validation": of("train", last),
        "test": of("test", tested),
    }


# ── scenes of emoji ─────────────────────────────────────────────────────────────────────────────


def _scenes(sizes: Sizes, num_emoji: int, seed: int) -> dict[str, Iterable[Picture]]:
    """Scenes are drawn one after another, and each goes to a split that may have it.

    A scene that shows a held-out combination belongs only to that test, not to training.
    """
    known, unknown = _emoji(num_emoji, seed)
    names = [emoji.name for emoji in known]
    everyone = names + [emoji.name for emoji in unknown]
    out = _held_out(names, seed)

    def drawn(emoji: Sequence[Emoji], part: int, asks_for: Sequence[str]) -> Iterator[Any]:
        for start in count(0, _CHUNK):
            indices = range(start, start + _CHUNK)
            found = emoji_scenes(indices, seed=seed + part, emoji=emoji)
            for index, pixels, scene in zip(indices, found.images, found.scenes, strict=True):
                yield scene, Picture(pixels, _asks(scene, asks_for, index, seed + part))

    def taken(part: int, num: int, combined: bool) -> list[Picture]:
        pairs = drawn(known, part, names)
        fits = (p for scene, p in pairs if any(_pair(e) in out for e in scene.emoji) == combined)
        return list(islice(fits, num))

    return {
        "train": taken(0, sizes.train, False),
        "validation": taken(1, sizes.validation, False),
        "test": taken(2, sizes.test, False),
        "test, combinations held out": taken(3, sizes.test, True),
        "test, emoji held out": [p for _, p in islice(drawn(unknown, 4, everyone), sizes.test)],
    }


def _emoji(num_emoji: int, seed: int) -> tuple[list[Emoji], list[Emoji]]:
    """So many of each group, no two with the same picture: known ones, and one in four held out."""
    rng = np.random.default_rng(seed)
    known, unknown = [], []
    everyone = load_emoji()
    seen: set[bytes] = set()
    for group in GROUPS:
        pool = [e for e in everyone if e.group == group and len(e.name.split()) <= _WORDS]
        chosen = []
        for i in rng.permutation(len(pool)):
            look = emoji_image(pool[i]).tobytes()
            if look not in seen and len(chosen) < num_emoji:
                chosen.append(pool[i])
                seen.add(look)
        quarter = max(1, len(chosen) // 4)
        unknown += chosen[:quarter]
        known += chosen[quarter:]
    return known, unknown


def _held_out(names: Sequence[str], seed: int) -> set[tuple[str, int]]:
    """Held-out combinations of an emoji and a cell."""
    pairs = [(name, cell) for name in names for cell in range(4)]
    order = np.random.default_rng(seed + 1).permutation(len(pairs))
    return {pairs[i] for i in order[: len(pairs) // _COMBINATIONS]}


def _pair(emoji: PlacedEmoji) -> tuple[str, int]:
    return emoji.name, emoji.cell


def _asks(scene: Any, names: Sequence[str], index: int, seed: int) -> Callable[[str], list[dict]]:
    def rows(image: str) -> list[dict[str, Any]]:
        found: dict[str, dict] = {}
        for draw in range(_QUESTIONS):
            drawn = scene_questions(scene, names, index=index, seed=seed + 1000 * draw)
            for row in question_rows(drawn, image, name=f"{image}-{draw}"):
                found.setdefault(row["conversations"][0]["value"], row)
        return list(found.values())

    return rows


# ── a shape and two letters ─────────────────────────────────────────────────────────────────────


def _lettered(sizes: Sizes, seed: int) -> dict[str, Iterable[Picture]]:
    ends = np.cumsum(sizes).tolist()
    starts = [0, *ends[:-1]]
    return {
        split: _lettered_pictures(range(start, end), seed)
        for split, start, end in zip(sizes._fields, starts, ends, strict=True)
    }


def _lettered_pictures(indices: range, seed: int) -> Iterator[Picture]:
    for first in range(indices.start, indices.stop, _CHUNK):
        here = range(first, min(first + _CHUNK, indices.stop))
        found = lettered_scenes(here, seed=seed, letters=_ALPHABET)
        for index, pixels, scene in zip(here, found.images, found.scenes, strict=True):
            question = lettered_question(scene, index=index, seed=seed)

            def rows(image: str, question: Any = question) -> list[dict[str, Any]]:
                return question_rows([question], image, name=image)

            yield Picture(pixels, rows)


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def _write(folder: Path, pictures: Iterable[Picture]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, picture in enumerate(pictures):
        name = f"{number:05d}.png"
        pillow().fromarray(picture.pixels).save(folder / name)
        rows += picture.rows(name)
    _write_rows(folder / "questions.jsonl", rows)


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
