"""Conversations with pictures as the examples of a run: encoded, packed, read batch by batch.

A set of rows is a file of `read_conversations`. Several sets are one file in InternVL's form,

    {"NAME": {"annotation": "vqa.jsonl", "root": "images", "repeat_time": 2}, …}

whose paths begin at its folder; the rows of a set come `repeat_time` times in an epoch.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from dfm_jax.checks import require
from dfm_jax.data.conversations import (
    Conversation,
    ConversationError,
    Fault,
    conversations_and_faults,
)
from dfm_jax.data.pixels import Picture, PixelStore
from dfm_jax.data.records import first_character
from dfm_jax.data.templates import encode_conversation, template_ids, template_named
from dfm_jax.data.tokens import Tokenizer, held_out_sides, load_tokenizer
from dfm_jax.durable import file_digest
from dfm_jax.json_text import read_json
from dfm_jax.storage.folders import Folder
from dfm_jax.training.batches import (
    Batches,
    MultimodalBatch,
    check_windows,
    read_ahead,
    row_indices,
)
from dfm_jax.training.config import PicturesConfig, TrainConfig, multimodal_config
from dfm_jax.training.examples import Examples, HeldOut, spaced_rows
from dfm_jax.training.packs import pack_rows
from dfm_jax.types import ArrayLike, Key

IMAGES, PIXELS = "images", "pixels"  # the folders in which these lie if no other is named
_SET = {"annotation", "root", "repeat_time"}
_WITHOUT_SAY = {"length"}  # of a set: how many rows it should have


class Places(NamedTuple):
    """Where the data of a run lie, besides its rows."""

    tokenizer: Path  # a tokenizer.json, or a folder that holds it
    pixels: Path  # the folder where the pixels of pictures are kept, see `PixelStore`
    images: Path | None = None  # the folder of the pictures of rows


def usual_places(
    data: Path,
    member: Folder,
    tokenizer: Path | None,
    *,
    images: Path | None = None,
    pixels: Path | None = None,
) -> Places:
    """Where the data of a member lie: images in `data` or beside it, pixels in its own folder.

    Raises:
        ValueError: if there is no tokenizer; if the pixels would lie on an object store.
    """
    rule = "`tokenizer` must be given if the config has `pictures`"
    require(tokenizer is not None, rule, tokenizer)
    assert tokenizer is not None
    if images is None:
        images = usual_images(data)
    if pixels is None:
        rule = "`pixels` must be given if the run is on an object store"
        require(isinstance(member, Path), rule, pixels)
        assert isinstance(member, Path)
        pixels = member / PIXELS
    return Places(tokenizer, pixels, images)


def usual_images(data: Path) -> Path | None:
    """The folder `images` in the data, or beside them if they are a file; None if there is none."""
    beside = (data if data.is_dir() else data.parent) / IMAGES
    return beside if beside.is_dir() else None


class EncodedRow(NamedTuple):
    """A conversation as tokens, and its pictures."""

    tokens: np.ndarray  # [n], n ≤ N
    learnt: np.ndarray  # [n]
    pictures: tuple[Picture, ...]
    side: str  # rows of one side text are held out together: a picture's content, or the text

    @property
    def num_pictures(self) -> int:
        """The squares that its pictures take in a sequence."""
        return sum(picture.count for picture in self.pictures)


class ConversationRows(NamedTuple):
    """All rows of the data, in order."""

    rows: tuple[EncodedRow, ...]
    repeats: tuple[int, ...]  # how often each row comes in an epoch
    num_cut: int  # rows that were longer than N


class RowSet(NamedTuple):
    """A file of rows, the folder of their pictures, and how often the rows come in an epoch."""

    path: Path
    images: Path | None
    repeat: int


def tokenizer_file(path: Path) -> Path:
    """The tokenizer.json of a folder, or the file itself."""
    return path / "tokenizer.json" if path.is_dir() else path


def tokenizer_digest(path: Path) -> str:
    """The name of a tokenizer in the record of a run."""
    return f"sha256:{file_digest(tokenizer_file(path))}"


def read_conversation_rows(source: Path, config: TrainConfig, places: Places) -> ConversationRows:
    """Read and encode all rows, and keep the pixels of all pictures.

    Raises:
        ValueError: if the tokenizer does not fit the config; if the file of sets is none.
        ConversationError: if a row cannot be trained on: see `read_conversations`,
            `encode_conversation` and `PixelStore.picture`; if it has more than N tokens and
            `pictures.cut` is False, or no answer in its first N; if it has more than I pictures.
            It lists all such rows of the file.
    """
    pictures = config.pictures
    assert pictures is not None
    tokenizer = _tokenizer(config, pictures, places.tokenizer)
    store = PixelStore(places.pixels, pictures.processor)
    rows: list[EncodedRow] = []
    repeats: list[int] = []
    num_cut = 0
    for path, images, repeat in row_sets(source, places.images):
        found, faults, count = conversations_and_faults(path, images)
        kept = store.pictures(file for row in found for file in row.pictures)
        encode = partial(_encoded, config=config, tokenizer=tokenizer, kept=kept)
        bad = list(faults)
        for row in found:
            try:
                encoded, was_cut = encode(row)
            except ValueError as error:
                bad += [Fault(row.line, line) for line in str(error).removesuffix(".").split("\n")]
            else:
                rows.append(encoded)
                num_cut += was_cut
                repeats.append(repeat)
        if bad:
            raise ConversationError(path, tuple(sorted(bad)), count)
    return ConversationRows(tuple(rows), tuple(repeats), num_cut)


def conversation_examples(
    source: Path,
    config: TrainConfig,
    places: Places,
    *,
    ahead: bool = False,
    say: Callable[[str], object] | None = None,
) -> Examples:
    """The examples of a config with `pictures`; each batch is a `MultimodalBatch`.

    Each row is in one sequence of an epoch, as often as its set is repeated. With
    `pictures.packed` short rows share a sequence, and the seed of the config draws which ones, once
    for the whole run. Pixels are read from the disk for each batch; with `ahead`, in threads before
    they are needed.

    Rows about one picture are held out together, and so are rows of one text.

    Args:
        source: The file of rows, or of sets of rows.
        config: The config.
        places: Where tokenizer, pictures and pixels lie.
        ahead: Whether to read ahead (extra `data`).
        say: Is told how many rows there are, and how many of them were cut.

    Raises:
        ValueError: see `read_conversation_rows`, and `held_out_sides`.
    """
    pictures = config.pictures
    assert pictures is not None
    rows, repeats, num_cut = read_conversation_rows(source, config, places)
    held = np.array(held_out_sides([row.side for row in rows], config.held_out), bool)
    train = np.repeat(np.arange(len(rows)), np.where(held, 0, repeats))
    store = PixelStore(places.pixels, pictures.processor)
    packs = _packs([rows[i] for i in train], config)
    sequences = partial(_sequences, config=config, store=store)
    if say is not None:
        cut = f"; {num_cut:,} of them had more than {config.num_positions} tokens and were cut"
        shared = f" in {len(packs):,} sequences" if pictures.packed else ""
        say(f"{source}: {len(rows):,} rows, {len(train):,} an epoch{shared}{cut * bool(num_cut)}")
    batches = _batches([[rows[train[i]] for i in pack] for pack in packs], config, sequences)
    description: dict[str, Any] = {"tokenizer": tokenizer_digest(places.tokenizer)}
    sides = {"train": [rows[i] for i in train], "held_out": [rows[i] for i in np.flatnonzero(held)]}
    for name, side in sides.items():
        description |= {
            f"{name}_documents": len(side),
            f"{name}_tokens": int(sum(row.learnt.sum() for row in side)),
            f"{name}_sha256": _digest(side),
        }
    judged = None
    if config.held_out > 0:
        judged = partial(_held_out, sides["held_out"], config.batch_size, sequences)
    return Examples(read_ahead(batches) if ahead else batches, judged, description, ahead)


def conversation_held_out(source: Path, config: TrainConfig, places: Places) -> HeldOut:
    """All rows of other data, for an evaluation; each is in a sequence of its own.

    Raises:
        ValueError: see `read_conversation_rows`.
    """
    assert config.pictures is not None
    rows = read_conversation_rows(source, config, places).rows
    store = PixelStore(places.pixels, config.pictures.processor)
    sequences = partial(_sequences, config=config, store=store)
    return _held_out(rows, config.batch_size, sequences, None)


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────


def row_sets(source: Path, images: Path | None) -> Iterator[RowSet]:
    """The sets of a file of rows, or of a file of sets of rows.

    Raises:
        ValueError: if there is no such file; if a set has an unknown setting, or a bad one.
    """
    rule = "`data` must be a file of rows, or of sets of rows"
    require(source.is_file(), rule, str(source))
    said = read_json(source) if source.suffix == ".json" and _is_object(source) else None
    named = list(said.values()) if isinstance(said, dict) else []
    if not named or not all(isinstance(one, dict) and "annotation" in one for one in named):
        yield RowSet(source, images, 1)
        return
    assert isinstance(said, dict)
    for name, one in said.items():
        where = f"the set {name!r} of {source}"
        unknown = [key for key in one if key not in _SET | _WITHOUT_SAY]
        rule = f"{where} must have known settings only, which are {', '.join(sorted(_SET))}"
        require(not unknown, rule, unknown, name="unknown settings")
        for key, kinds in (("annotation", str), ("root", str | None), ("repeat_time", int)):
            value = one.get(key, 1 if key == "repeat_time" else None)
            good = isinstance(value, kinds) and not isinstance(value, bool)
            rule = f"`{key}` of {where} must be a {'whole number' if kinds is int else 'path'}"
            require(good and value != 0, rule, value)
        repeat = one.get("repeat_time", 1)
        require(repeat > 0, f"`repeat_time` of {where} must be at least 1", repeat)
        root = one.get("root")
        own = images if root is None else source.parent / root
        yield RowSet(source.parent / one["annotation"], own, repeat)


def _is_object(path: Path) -> bool:
    return first_character(path) == b"{"


def _tokenizer(config: TrainConfig, pictures: PicturesConfig, path: Path) -> Tokenizer:
    tokenizer, template = load_tokenizer(tokenizer_file(path)), template_named(pictures.template)
    token = template.picture[1]
    found = template_ids(template, tokenizer)[token]
    rule = f"`pictures.image_token` must be {found}, the id of {token!r} in {path}"
    require(found == pictures.image_token, rule, pictures.image_token)
    most = config.model.num_tokens
    rule = f"`tokenizer` must have at most {most} tokens, as `model.num_tokens` says"
    require(tokenizer.num_tokens <= most, rule, tokenizer.num_tokens, name="number of tokens")
    return tokenizer


def _encoded(
    row: Conversation, config: TrainConfig, tokenizer: Tokenizer, kept: dict[Path, Picture | str]
) -> tuple[EncodedRow, bool]:
    """A row as tokens, and whether it was cut; all that is wrong with it is said at once."""
    pictures, most = config.pictures, config.num_positions
    assert pictures is not None
    found = [kept[path] for path in row.pictures]
    if wrong := [text for text in found if isinstance(text, str)]:
        raise ValueError("\n".join(wrong))
    good = tuple(picture for picture in found if isinstance(picture, Picture))
    each = multimodal_config(config).features_per_picture
    encoded = encode_conversation(
        row,
        tokenizer,
        template_named(pictures.template),
        image_tokens=[each * picture.count for picture in good],
    )
    length, squares = len(encoded.tokens), sum(picture.count for picture in good)
    wrong = []
    if squares > pictures.max_pictures:
        rule = f"a row must have at most {pictures.max_pictures} pictures, tiles counted"
        wrong.append(f"{rule} (`pictures.max_pictures`); got {squares}")
    if length > most and not pictures.cut:
        wrong.append(
            f"a row must have at most {most} tokens (`num_positions`), unless `pictures.cut` is "
            f"true; got {length}"
        )
    elif not encoded.learnt[1:most].any():
        wrong.append(f"an answer must begin in the first {most} tokens; got {length} tokens")
    if wrong:
        raise ValueError("\n".join(wrong))
    side = good[0].key if good else "\n".join(row.said)
    kept_row = EncodedRow(encoded.tokens[:most], encoded.learnt[:most], good, side)
    return kept_row, length > most


def _digest(rows: Iterable[EncodedRow]) -> str:
    whole = hashlib.sha256()
    for row in rows:
        whole.update(np.int64(len(row.tokens)).tobytes())
        whole.update(row.tokens.tobytes() + row.learnt.tobytes())
        whole.update(" ".join(picture.key for picture in row.pictures).encode() + b"\n")
    return whole.hexdigest()


# ── sequences ─────────────────────────────────────────────────────────────────────────────────────


def _packs(rows: Sequence[EncodedRow], config: TrainConfig) -> list[np.ndarray]:
    """The rows of each sequence."""
    pictures = config.pictures
    assert pictures is not None
    if not pictures.packed:
        return [np.array([i]) for i in range(len(rows))]
    return pack_rows(
        np.array([len(row.tokens) for row in rows], np.int64),
        np.array([row.num_pictures for row in rows], np.int64),
        num_positions=config.num_positions,
        max_pictures=pictures.max_pictures,
        seed=config.seed,
    )


def _batches(
    packs: Sequence[Sequence[EncodedRow]],
    config: TrainConfig,
    sequences: Callable[..., MultimodalBatch],
) -> Batches:
    check_windows(len(packs), config.batch_size)

    def batch(key: Key, step: ArrayLike) -> MultimodalBatch:
        indices = np.asarray(row_indices(key, step, len(packs), config.batch_size))
        return sequences([packs[i] for i in indices])

    return batch


def _sequences(
    packs: Sequence[Sequence[EncodedRow]], config: TrainConfig, store: PixelStore
) -> MultimodalBatch:
    """Each pack as a sequence of N tokens and I pictures; an empty pack is padding."""
    pictures, length = config.pictures, config.num_positions
    assert pictures is not None
    size, shape = store.processor.size, (len(packs), length)
    batch = MultimodalBatch(
        tokens=np.full(shape, pictures.image_token == 0, np.int32),  # padding asks for no picture
        learnt=np.zeros(shape, bool),
        segments=np.zeros(shape, np.int32),
        weights=np.zeros(shape, np.float32),
        pixels=np.zeros((len(packs), pictures.max_pictures, size, size, 3), np.uint8),
    )
    for b, pack in enumerate(packs):
        at, seen = 0, 0
        for number, row in enumerate(pack, start=1):
            place = slice(at, at + len(row.tokens))
            batch.tokens[b, place], batch.learnt[b, place] = row.tokens, row.learnt
            batch.segments[b, place] = number
            batch.weights[b, place] = _weight(row, pictures)
            at = place.stop
            for picture in row.pictures:
                batch.pixels[b, seen : seen + picture.count] = store.pixels(picture)
                seen += picture.count
    return batch


def _weight(row: EncodedRow, pictures: PicturesConfig) -> float:
    """What each learnt token of a row weighs: 1, or 1/√(their number)."""
    return 1.0 if pictures.reduction == "token" else float(row.learnt[1:].sum()) ** -0.5


class _Made(Sequence[Any]):
    """Batches that are made when they are asked for, so that few are in memory."""

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._make(i) for i in range(self._count)[index]]
        return self._make(range(self._count)[index])


def _held_out(
    rows: Sequence[EncodedRow],
    batch_size: int,
    sequences: Callable[..., MultimodalBatch],
    limit: int | None,
) -> HeldOut:
    """Each row in a sequence of its own, evenly spaced ones if there are more than `limit`."""
    kept = spaced_rows(len(rows), limit)
    packs = [[rows[i]] for i in kept] + [[]] * (-len(kept) % batch_size)

    def made(number: int) -> MultimodalBatch:
        return sequences(packs[number * batch_size : (number + 1) * batch_size])

    return HeldOut(_Made(len(packs) // batch_size, made), kept, len(rows))
