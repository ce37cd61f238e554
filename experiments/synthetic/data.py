"""The items of `synthetic` as members read them: tokens, and features of frozen encoders.

    picture, question END answer END

A word of a question is a token, and so is an answer, except that OCR is answered letter by letter.
Different texts are different tokens, so exact match of tokens is exact match of texts.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.data.features import (
    clip_encoder,
    encoded_pictures,
    image_grid_features,
    load_efficientnet_lite0,
)
from experiments.synthetic.config import Config
from experiments.synthetic.pictures import (
    ALPHABET,
    CORNERS,
    QUESTIONS,
    SIDE,
    TASKS,
    TYPES,
    Item,
    drawn_item,
    drawn_picture,
)

HELD_OUT = "held out"
SPLITS = ("train", "validation", "test", HELD_OUT)
END = 0
_ASKED = sorted({word for question in QUESTIONS.values() for word in question.split()})
_ANSWERS = [*TYPES.values(), *CORNERS, *map(str, TYPES)]
TOKENS = ("END", *ALPHABET, *_ASKED, *_ANSWERS)
"""The tokens by their ids."""
_ID = {token: number for number, token in enumerate(TOKENS)}
_CHUNK = 2_048  # pictures in memory at a time; the first ones give the directions
_BLOCK = 6  # px of a side that become one, where pixels are the features
_SMALLEST = 1e-6  # of the largest singular value

Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Pictures [B, 96, 96, 3] → what a network may read [B, …], what is clustered [B, D]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """The items of a split."""

    seed: int  # of the items,
    index: int  # and the number of the first of them
    items: tuple[Item, ...]
    row: np.ndarray  # [Q] rows of the features
    tokens: np.ndarray  # [Q, N]
    counts: np.ndarray  # [Q, N] which of them are of the answer, its END included
    lengths: np.ndarray  # [Q] tokens of the prompt, its END included

    @cached_property
    def task(self) -> np.ndarray:
        """The task of each item, [Q] names."""
        return np.array([item.task for item in self.items])

    @cached_property
    def prominence(self) -> np.ndarray:
        """The prominence of each word, [Q]."""
        return np.array([item.prominence for item in self.items])

    def pictures(self) -> Iterator[np.ndarray]:
        """The pictures, so many at a time: uint8 [B, 96, 96, 3]."""
        for first in range(0, len(self.items), _CHUNK):
            here = range(first, min(first + _CHUNK, len(self.items)))
            yield np.stack(
                [drawn_picture(self.items[i], self.index + i, seed=self.seed) for i in here]
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """All splits, and the features of all pictures."""

    splits: Mapping[str, Examples]
    features: np.ndarray  # [M, 1, F] what networks read
    whole: np.ndarray  # [M, D] what is clustered

    @property
    def num_positions(self) -> int:
        """N, the number of tokens of an item with its padding."""
        return self.splits["train"].tokens.shape[1]

    @cached_property
    def on_device(self) -> jax.Array:
        """The features on the device on which members train."""
        return jnp.asarray(self.features)

    @cached_property
    def digest(self) -> str:
        """A digest of the features and of the tokens of every split."""
        content = hashlib.sha256(np.ascontiguousarray(self.features).tobytes())
        for name in SPLITS:
            content.update(self.splits[name].tokens.tobytes())
        return content.hexdigest()


def data_of(config: Config, cache: Path) -> Data:
    """Items, tokens and features; what is fitted to features is fitted to training pictures.

    Args:
        config: The options.
        cache: A folder that keeps the features of encoders.

    Raises:
        MissingDataError: if a package that draws or encodes is not installed.
    """
    splits = splits_of(config)
    encode = _encoder(config, cache)
    features, whole, directions = [], [], None
    for name in SPLITS:
        for images in splits[name].pictures():
            seen, clustered = encode(images)
            if directions is None:
                directions = principal_directions(seen, config.num_features)
            features.append(directions(seen))
            whole.append(clustered)
    return Data(
        splits=splits, features=np.concatenate(features)[:, None], whole=np.concatenate(whole)
    )


def splits_of(config: Config) -> dict[str, Examples]:
    """The items of every split; no two items have the same seed and index."""
    sizes = (
        *(config.train_items, config.validation_items, config.test_items),
        config.held_out_items,
    )
    found, row, index = {}, 0, 0
    for name, size in zip(SPLITS, sizes, strict=True):
        seed, first = (config.held_out_seed, 0) if name == HELD_OUT else (0, index)
        items = tuple(
            drawn_item(first + i, seed=seed, num_letters=config.num_letters) for i in range(size)
        )
        tokens, counts, lengths = spelled(items, num_positions(config.num_letters))
        found[name] = Examples(
            seed=seed,
            index=first,
            items=items,
            row=np.arange(row, row + size),
            tokens=tokens,
            counts=counts,
            lengths=lengths,
        )
        row, index = row + size, index + size
    return found


def num_positions(num_letters: int) -> int:
    """N, the tokens of the longest item that there may be."""
    answers = {task: num_letters if task == "OCR" else 1 for task in TASKS}
    return max(len(QUESTIONS[task].split()) + answers[task] + 2 for task in TASKS)


def spelled(items: tuple[Item, ...], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [Q, N], which of them are of the answer [Q, N], and lengths of prompts [Q]."""
    tokens = np.zeros((len(items), length), np.int32)
    counts, lengths = np.zeros(tokens.shape, bool), np.zeros(len(items), int)
    for row, item in enumerate(items):
        prompt = [*(_ID[word] for word in item.question.split()), END]
        parts = item.answer if item.task == "OCR" else (item.answer,)
        answer = [*(_ID[part] for part in parts), END]
        end = len(prompt) + len(answer)
        tokens[row, :end] = prompt + answer
        counts[row, len(prompt) : end] = True
        lengths[row] = len(prompt)
    return tokens, counts, lengths


def principal_directions(rows: np.ndarray, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """A map to the first principal directions of these rows, each of variance 1 in them.

    Args:
        rows: The rows [R, …], each flattened.
        count: The largest number of directions; there are no more than the rows have.
    """
    rows = rows.reshape(len(rows), -1)
    mean = rows.mean(axis=0)
    _, sizes, directions = np.linalg.svd(rows - mean, full_matrices=False)
    kept = min(count, int((sizes > _SMALLEST * sizes[0]).sum()))
    scale = sizes[:kept] / len(rows) ** 0.5
    matrix = (directions[:kept] / scale[:, None]).T

    def mapped(values: np.ndarray) -> np.ndarray:
        return ((values.reshape(len(values), -1) - mean) @ matrix).astype(np.float32)

    return mapped


def _encoder(config: Config, cache: Path) -> Encode:
    if config.encoder == "pixels":
        return _blocks
    if config.encoder == "clip":
        assert config.clip is not None
        clip = clip_encoder(config.clip)

        def by_clip(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            found = encoded_pictures(clip, images, folder=cache).features
            return found, found

        return by_clip
    params = load_efficientnet_lite0()

    def by_efficientnet(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grid = image_grid_features(params, images, folder=cache).features
        return grid, grid.mean(axis=(1, 2))

    return by_efficientnet


def _blocks(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of blocks of pixels in [0, 1], in float32."""
    side = SIDE // _BLOCK
    parts = images.reshape(len(images), side, _BLOCK, side, _BLOCK, 3)
    means = parts.mean(axis=(2, 4), dtype=np.float32) / 255
    flat = means.reshape(len(images), -1)
    return flat, flat
