"""Questions as tokens, pictures as frozen features: what every member of `multimodal` reads.

    picture, question END answer END

Only the answer and the END after it have a loss. Every turn of a conversation is an example, with
the turns before it as its question.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import require
from dfm_jax.data.features import (
    image_grid_features,
    load_efficientnet_lite0,
    pixel_features,
    resized_image,
)
from dfm_jax.data.pictures import read_picture
from dfm_jax.models.efficientnet import Params
from dfm_jax.scoring.answers import exact_match
from experiments.language.text import byte_pairs
from experiments.multimodal.network import Sight, Spelling
from experiments.multimodal.sets import Asked

Encoder = Literal["efficientnet", "random", "pixels"]
"""What pictures are seen by: EfficientNet-Lite0, the same with random weights, or nothing."""
_PATCH = 32  # px of the 96 of a picture: a cell of the grid


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """The questions of a split."""

    picture: np.ndarray  # [Q] a row of the features
    family: np.ndarray  # [Q] names
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    tokens: np.ndarray  # [Q, N]
    counts: np.ndarray  # [Q, N] which of them are of the answer
    lengths: np.ndarray  # [Q] tokens of the prompt, its END included

    @cached_property
    def digest(self) -> str:
        """A digest of the picture numbers, the tokens, and which of these are answers."""
        content = hashlib.sha256(self.picture.astype(np.int64).tobytes())
        content.update(self.tokens.tobytes())
        content.update(self.counts.tobytes())
        return content.hexdigest()

    def chosen(self, which: np.ndarray) -> "Examples":
        """Some of them, by their numbers or by a mask."""
        numbers = np.arange(len(self.questions))[which]
        return Examples(
            questions=tuple(self.questions[i] for i in numbers),
            answers=tuple(self.answers[i] for i in numbers),
            **{
                name: getattr(self, name)[numbers]
                for name in ("picture", "family", "tokens", "counts", "lengths")
            },
        )


def byte_pair_spelling(texts: Sequence[str], num_tokens: int) -> Spelling:
    """A tokenizer of at most so many byte pairs of these texts, followed by END."""
    pieces = byte_pairs(texts, num_tokens, fewer=True)
    size = pieces.get_vocab_size()
    return Spelling(lambda text: pieces.encode(text).ids, pieces.decode, size, size + 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """A set as all its members read it."""

    name: str
    paths: tuple[Path, ...]  # of the pictures
    features: np.ndarray  # what networks are shown, [M, …]; see `Sight`
    sight: Sight
    whole: np.ndarray  # [M, D] of the pictures as a whole: what is clustered
    splits: Mapping[str, Examples]
    spelling: Spelling

    @property
    def end(self) -> int:
        """The id of END."""
        return self.spelling.end

    @property
    def num_tokens(self) -> int:
        """V, including END."""
        return self.spelling.num_tokens

    @property
    def tests(self) -> tuple[str, ...]:
        """The splits that are only used for evaluation."""
        return tuple(name for name in self.splits if name not in ("train", "validation"))

    def decoded(self, ids: Sequence[int]) -> str:
        """The text before the first END."""
        found = list(ids)
        stop = found.index(self.end) if self.end in found else len(found)
        return self.spelling.decode(found[:stop])

    @cached_property
    def max_answer(self) -> int:
        """The number of tokens of the longest answer, including its END."""
        return max(int(x.counts.sum(axis=1).max()) for x in self.splits.values())

    @cached_property
    def on_device(self) -> jax.Array:
        """The features on the device on which members train."""
        return jnp.asarray(self.features)

    @cached_property
    def digest(self) -> str:
        """A digest of the features and of every split."""
        content = hashlib.sha256(np.ascontiguousarray(self.features).tobytes())
        for name, found in sorted(self.splits.items()):
            content.update(f"{name} {found.digest}".encode())
        return content.hexdigest()


def data_of(
    name: str,
    asked: Asked,
    *,
    encoder: Encoder,
    num_tokens: int,
    test_questions: int,
    cache: Path,
    seed: int,
    spelling: Spelling | None = None,
    train_encoder: bool = False,
) -> Data:
    """Tokens and features of a set; the tokenizer and the scale come from training alone.

    Args:
        name: The name of the set.
        asked: Its conversations.
        encoder: The encoder of its pictures.
        num_tokens: The largest number of byte pairs.
        test_questions: The largest number of questions of each test, drawn so that all families
            stay.
        cache: A folder for features.
        seed: The seed of that draw.
        spelling: The tokenizer of a pretrained model, instead of byte pairs.
        train_encoder: If True, networks read pictures and train the encoder too.
    """
    paths = sorted({str(row.picture) for rows in asked.values() for row in rows})
    number = {path: i for i, path in enumerate(paths)}
    if spelling is None:
        texts = [t for row in asked["train"] for turn in row.turns for t in turn]
        spelling = byte_pair_spelling(texts, num_tokens)
    found = {split: _turns(rows, number, spelling) for split, rows in asked.items()}
    length = max(
        len(prompt) + len(answer) for turns in found.values() for *_, prompt, answer in turns
    )
    splits = {split: _examples(turns, length) for split, turns in found.items()}
    for split in splits:
        if split not in ("train", "validation"):
            splits[split] = _cut(splits[split], test_questions, seed)
    pictures = _pictures(paths)
    features, whole = _features(pictures, encoder, cache)
    known = features[np.unique(splits["train"].picture)]
    scale = float(np.sqrt((known**2).mean()))
    sight = Sight(features.shape[1], features.shape[2], scale if train_encoder else None)
    return Data(
        name=name,
        paths=tuple(map(Path, paths)),
        features=np.stack([resized_image(x) for x in pictures])
        if train_encoder
        else features / scale,
        sight=sight,
        whole=whole,
        splits=splits,
        spelling=spelling,
    )


def right(data: Data, examples: Examples, texts: Sequence[str]) -> np.ndarray:
    """Whether each answer is the expected one, as `scoring` compares them, [Q]."""
    pairs = zip(texts, examples.answers, strict=True)
    return np.array([exact_match(text, (answer,)) > 0 for text, answer in pairs])


def _turns(rows: Any, number: Mapping[str, int], spelling: Spelling) -> list[tuple]:
    """(picture, family, question, answer, prompt ids, answer ids) of every turn."""
    found = []
    for row in rows:
        before: list[int] = []
        for turn in row.turns:
            prompt = [*before, *spelling.encode(turn.question), spelling.end]
            answer = [*spelling.encode(turn.answer), spelling.end]
            found.append((number[str(row.picture)], row.family, *turn, prompt, answer))
            before = prompt + answer
    return found


def _examples(turns: list[tuple], length: int) -> Examples:
    tokens = np.zeros((len(turns), length), np.int32)
    counts = np.zeros(tokens.shape, bool)
    for row, (*_, prompt, answer) in enumerate(turns):
        whole = len(prompt) + len(answer)
        tokens[row, :whole] = prompt + answer
        counts[row, len(prompt) : whole] = True
    picture, family, questions, answers, prompts, _ = zip(*turns, strict=True)
    return Examples(
        picture=np.array(picture),
        family=np.array(family),
        questions=questions,
        answers=answers,
        tokens=tokens,
        counts=counts,
        lengths=np.array([len(prompt) for prompt in prompts]),
    )


def _cut(examples: Examples, most: int, seed: int) -> Examples:
    count = len(examples.questions)
    if count <= most:
        return examples
    return examples.chosen(np.sort(np.random.default_rng(seed).permutation(count)[:most]))


def _pictures(paths: Sequence[str]) -> list[np.ndarray]:
    return [read_picture(Path(path)) for path in paths]


def _features(
    pictures: Sequence[np.ndarray], encoder: Encoder, cache: Path
) -> tuple[np.ndarray, np.ndarray]:
    """The features of patches, [M, P, F], and of whole pictures, [M, D]."""
    if encoder == "pixels":
        whole = pixel_features(np.stack([resized_image(x) for x in pictures]))
        cells = whole.reshape(-1, 3, _PATCH, 3, _PATCH, 3).swapaxes(2, 3)
        return cells.reshape(len(pictures), 9, -1), whole
    params = load_efficientnet_lite0()
    if encoder == "random":
        params = _random(params)
    shapes = {x.shape for x in pictures}
    rule = "All pictures of a set must have one size"
    require(len(shapes) == 1, rule, sorted(shapes), name="sizes")
    found = image_grid_features(params, np.stack(pictures), folder=cache).features
    patches = found.reshape(len(pictures), -1, found.shape[-1])
    return patches, patches.mean(axis=1)


def _random(params: Params) -> Params:
    """An untrained encoder: kernels with the start of He et al., biases 0."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)

    def drawn(leaf: Any) -> np.ndarray:
        if leaf.ndim == 1 or leaf.shape[:2] == (1, 1):
            return np.zeros(leaf.shape, np.float32)
        return rng.normal(0, np.sqrt(2 / leaf[..., 0].size), leaf.shape).astype(np.float32)

    return jax.tree.unflatten(tree, [drawn(leaf) for leaf in leaves])
