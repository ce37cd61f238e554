"""Read the rows of a data set: loads and ids in a first pass, then features.

Features come from a file of the user, or from an encoder of each row. A row without a feature is
kept with the reason; no row is sent to an expert by a feature that it does not have. Rows are read
one by one, and only their features are kept in memory.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dfm_jax.checks import check_interval, require
from dfm_jax.data.arrays import aligned_empty, read_npy_file
from dfm_jax.data.columns import Columns, picture_columns
from dfm_jax.data.features import (
    DocumentEncoder,
    PictureEncoder,
    clip_encoder,
    document_encoder_to_files,
    efficientnet_encoder,
    encode_documents,
    encoded_pictures,
    fit_documents,
    read_features,
)
from dfm_jax.data.packages import package_folder
from dfm_jax.data.pictures import READING, decoded_picture, picture_path
from dfm_jax.data.records import Record, context_text, conversation_bytes, read_records
from dfm_jax.durable import file_digest

# ── What a first pass over the rows learns: the load of each, and whose id is not its own ─────────

_SHOWN = 5  # rows named in a refusal


class Survey(NamedTuple):
    """Facts about all rows, whether they have a feature or not."""

    loads: np.ndarray  # [R], the bytes of the conversations, or the user's weights
    num_repeated_ids: int
    num_without_id: int
    unused: dict[str, int]  # the rows of each column but `id` and `conversations`


def survey(input: Path, weights: Path | None, unique_ids: bool) -> Survey:
    """The first pass; ids are compared by 63 bits of a hash, of which 10⁷ collide once in 10⁵.

    Raises:
        ValueError: if a row is not a conversation; if `read_weights` refuses the weights; if, with
            `unique_ids`, an id is missing or repeated.
    """
    loads, ids, columns = array("q"), array("Q"), Columns(text_only=True)
    for record in read_records(input):
        try:
            loads.append(conversation_bytes(record))
        except ValueError as error:
            raise ValueError(f"{input}, line {record.line}: {error}") from error
        columns.add(input, record, "conversations")
        name = record.fields.get("id")
        text = json.dumps(name, sort_keys=True).encode()
        digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
        ids.append(0 if name is None else digest | 1)
    hashes = np.array(ids, np.uint64)
    repeats = np.ones(hashes.size, bool)
    repeats[np.unique(hashes, return_index=True)[1]] = False  # the first of each
    repeated, without = np.flatnonzero(repeats & (hashes > 0)), np.flatnonzero(hashes == 0)
    if unique_ids:
        for rows, what in ((repeated, "rows with a repeated id"), (without, "rows without an id")):
            more = f" ({rows.size} in all)" if rows.size > _SHOWN else ""
            rule = f"Each row of {input} must have an `id` of its own"
            require(rows.size == 0, rule, rows[:_SHOWN].tolist(), name=f"{what}{more}")
    own = np.array(loads, np.int64) if weights is None else read_weights(weights, len(loads))
    return Survey(own, repeated.size, without.size, dict(columns.unused))


def read_weights(path: Path, num_rows: int) -> np.ndarray:
    """Read the user's load of each row from an `.npy` file; nothing is unpickled.

    Raises:
        ValueError: if it is not a list of `num_rows` numbers, or one is negative or not finite.
    """
    try:
        weights = read_npy_file(path)
    except OSError:
        raise
    except Exception as error:  # damage can surface anywhere, as anything
        rule = "`weights` must be an .npy file of numbers"
        raise ValueError(f"{rule}; got weights = {str(path)!r}: {error}.") from error
    name = f"`weights` in {path}"
    number = weights.dtype.kind in "iuf"
    rule = f"{name} must be one array of numbers"
    require(number, rule, str(weights.dtype), name="weights.dtype")
    rule = f"{name} must hold {num_rows} numbers, one for each row"
    require(weights.shape == (num_rows,), rule, weights.shape, name="weights.shape")
    check_interval(f"weights in {path}", weights, 0, np.inf, ends="[)")
    return weights


ENCODERS = ("efficientnet", "clip", "tfidf")
_OF_PICTURES = ("efficientnet", "clip")
_IMAGES = 256  # encoded at a time, or those of one row
_DOCUMENTS = 1024


class Reason(NamedTuple):
    """Why a row has no feature."""

    kind: str  # one of few, to be counted
    detail: str | None = None


NO_FEATURE = Reason("no feature")
ZERO_FEATURE = Reason("feature is zero")  # what encoders leave of what they could not read


class Source(NamedTuple):
    """The source of the features; exactly one of `features` and `encoder` is given."""

    features: Path | None = None
    encoder: str | None = None
    images: Path | None = None
    cache: Path | None = None
    num_features: int | None = None
    clip: Path | str | None = None


class EncodedRows(NamedTuple):
    """Features of the rows that have one, and the reasons why the others have none."""

    features: np.ndarray  # [R, D]
    rows: np.ndarray  # [R], which row of the input each is of
    num_averaged: int  # rows whose feature is the mean of several
    reasons: dict[int, Reason]  # of rows without; one that is not in it is `NO_FEATURE`
    inputs: dict[str, str]  # hashes of what was read beside the input
    artifacts: dict[str, bytes]  # files by which the same encoder encodes new rows
    num_constant: int = 0  # of a user's features, those that are one number throughout


def check_source(source: Source) -> None:
    """Check that the options can be used together."""
    features, encoder, images, cache, num_features, clip = source
    one = (features is None) != (encoder is None)
    rule = "Exactly one of `--features` and `--encoder` must be given"
    require(one, rule, (features, encoder), name="(features, encoder)")
    known = encoder is None or encoder in ENCODERS
    require(known, f"`encoder` must be one of {ENCODERS}", encoder)
    paired = (images is not None) == (encoder in _OF_PICTURES)
    rule = "`--images` must be given if the encoder is efficientnet or clip, and only then"
    require(paired, rule, (images, encoder), name="(images, encoder)")
    alone = cache is None or encoder in _OF_PICTURES
    rule = "`--cache` must only be given if the encoder is efficientnet or clip"
    require(alone, rule, encoder, name="encoder")
    paired = (clip is not None) == (encoder == "clip")
    rule = "`--clip`, the folder of a CLIP, must be given if the encoder is clip, and only then"
    require(paired, rule, (clip, encoder), name="(clip, encoder)")
    alone = num_features is None or encoder == "tfidf"
    rule = "`--num-features` must only be given if the encoder is tfidf"
    require(alone, rule, encoder, name="encoder")


def encoded_rows(
    input: Path,
    source: Source,
    *,
    num_rows: int,
    seed: int = 0,
    fitted: DocumentEncoder | None = None,
) -> EncodedRows:
    """The features of the rows of `input`; tfidf is fitted to these rows unless `fitted` is given.

    Raises:
        ValueError: if `read_features` refuses the user's features; if a row names an image by
            something other than a path inside the folder; if there are no words to fit.
        MissingDataError: if a package that the encoder needs is not installed.
    """
    if source.features is not None:
        inputs = {"features": file_digest(source.features)}
        found = read_features(source.features, num_rows=num_rows)
        after = file_digest(source.features)
        rule = f"{source.features} must not change while it is read"
        require(after == inputs["features"], rule, after, name="SHA-256 afterwards")
        return EncodedRows(
            found.features,
            found.rows,
            found.num_averaged,
            dict.fromkeys(found.zero.tolist(), ZERO_FEATURE),
            inputs,
            {},
            found.num_constant,
        )
    if source.images is not None:
        encoder = efficientnet_encoder() if source.clip is None else clip_encoder(source.clip)
        return _image_rows(input, source.images, source.cache, num_rows, encoder)
    return _document_rows(input, num_rows, source.num_features, seed, fitted)


def source_inputs(input: Path, source: Source) -> dict[str, str]:
    """The `inputs` that `encoded_rows` would report, found without encoding."""
    if source.features is not None:
        return {"features": file_digest(source.features)}
    if source.images is None:
        return {}
    whole = hashlib.sha256()
    for record in _shown(input, None, "hashing images"):
        for name, path in _image_paths(input, record, source.images):
            _add(whole, name, _content(path))
    return {"images": whole.hexdigest()}


# ── images ──────────────────────────────────────────────────────────────────────────────────────


def _image_rows(
    input: Path, folder: Path, cache: Path | None, num_rows: int, encoder: PictureEncoder
) -> EncodedRows:
    """The mean over a row's images, all of which must open."""
    require(folder.is_dir(), "`images` must be a folder that exists", folder)
    package_folder("PIL", "pillow")  # says how to install it
    features = aligned_empty((num_rows, encoder.width), np.float32)  # no memory before it is filled
    rows, reasons, whole, num_averaged = array("q"), {}, hashlib.sha256(), 0
    waiting: list[list[np.ndarray]] = []  # the images of the rows behind the last that is encoded

    def encode() -> None:
        images = [image for of_row in waiting for image in of_row]
        if images:
            encoded = encoded_pictures(encoder, images, folder=cache).features
            ends = np.cumsum([len(of_row) for of_row in waiting])
            for row, part in enumerate(np.split(encoded, ends[:-1]), len(rows) - len(waiting)):
                features[row] = part.mean(axis=0, dtype=np.float64)
        waiting.clear()

    for record in _shown(input, num_rows, "encoding images"):
        found = _images_of(input, record, folder, whole, encoder)
        if isinstance(found, Reason):
            reasons[record.number] = found
            continue
        rows.append(record.number)
        waiting.append(found)
        num_averaged += len(found) > 1
        if sum(map(len, waiting)) >= _IMAGES:
            encode()
    encode()
    about = {"encoder": encoder.name, "hash": encoder.digest, "read": READING}
    return EncodedRows(
        features[: len(rows)],
        np.array(rows, np.int64),
        num_averaged,
        reasons,
        {"images": whole.hexdigest()},
        {"encoder.json": json.dumps(about).encode() + b"\n"},
    )


def _images_of(
    input: Path, record: Record, folder: Path, whole: "hashlib._Hash", encoder: PictureEncoder
) -> list[np.ndarray] | Reason:
    images, reason = [], None
    for name, path in _image_paths(input, record, folder):
        content = _content(path)
        _add(whole, name, content)
        if reason is not None:
            continue
        if content is None:
            reason = Reason("image missing", name)
        else:
            opened = _opened(content, encoder)
            if isinstance(opened, str):
                reason = Reason("image does not open", f"{name}: {opened}")
            else:
                images.append(opened)
    return reason or images or Reason("no image")


def _image_paths(input: Path, record: Record, folder: Path) -> list[tuple[str, Path]]:
    """The names in `image`, any number of them, and their paths; none may leave `folder`.

    Pictures in another field are refused too, because the row would have no feature.
    """
    value = record.fields.get("image")
    names = [] if value in (None, "") else value if isinstance(value, list) else [value]
    if not names and (others := picture_columns(record.fields)):
        held = ", ".join(f"`{name}`" for name in others)
        raise ValueError(
            f"{input}, line {record.line}: the pictures of a row must stand in `image`; got "
            f"pictures in {held}."
        )
    try:
        return [(name, picture_path(folder, name)) for name in names]
    except ValueError as error:
        raise ValueError(f"{input}, line {record.line}: {error}") from error


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None  # a pipe would never end


def _opened(content: bytes, encoder: PictureEncoder) -> np.ndarray | str:
    """The image as the encoder reads it, or what is wrong with it."""
    try:
        return encoder.prepared(decoded_picture(content))
    except ValueError as error:
        return str(error)


def _add(whole: "hashlib._Hash", name: str, content: bytes | None) -> None:
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    whole.update(json.dumps([name, digest]).encode())


# ── documents ───────────────────────────────────────────────────────────────────────────────────


def _document_rows(
    input: Path, num_rows: int, num_features: int | None, seed: int, fitted: DocumentEncoder | None
) -> EncodedRows:
    if fitted is None:
        texts = _contexts(input, num_rows)
        read = chain([next(texts)], texts)  # what is refused at the first is not the encoder's
        encoder = fit_documents(read, num_features=num_features, seed=seed)
    else:
        encoder = fitted
    features = aligned_empty((num_rows, len(encoder.directions)), np.float32)
    rows, reasons = array("q"), {}
    records = _shown(input, num_rows, "encoding documents")
    while some := list(islice(records, _DOCUMENTS)):
        texts = [context_text(record) for record in some]
        encoded = encode_documents(encoder, [text or "" for text in texts])
        for record, text, feature, known in zip(some, texts, *encoded, strict=True):
            if known:
                features[len(rows)] = feature
                rows.append(record.number)
            else:
                lost = Reason("no known word") if text is not None else Reason("no human turn")
                reasons[record.number] = lost
    artifacts = document_encoder_to_files(encoder)
    return EncodedRows(features[: len(rows)], np.array(rows, np.int64), 0, reasons, {}, artifacts)


def _contexts(input: Path, num_rows: int) -> Iterator[str]:
    """The texts to which tfidf is fitted; refused if no row has a turn whose words it reads."""
    speakers, some = Counter(), False
    for record in _shown(input, num_rows, "fitting tfidf"):
        text = context_text(record)
        if text is not None:
            some = True
            yield text
        elif not some:
            speakers.update(str(turn.get("from")) for turn in record.fields["conversations"])
    if not some:
        found = ", ".join(f"`{name}` ({count:,})" for name, count in speakers.most_common(_SHOWN))
        raise ValueError(
            f"A turn in `conversations` of {input} must be from `human` or `document`, which tfidf "
            f"reads; got turns from {found or 'nobody'}."
        )


def _shown(input: Path, num_rows: int | None, doing: str) -> Iterator[Record]:
    """The rows of the input, with a progress bar on a terminal."""
    return iter(tqdm(read_records(input), doing, num_rows, leave=False, unit="row", disable=None))
