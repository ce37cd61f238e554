"""Documents as one array of tokens: bytes, or the pieces of a `tokenizer.json`.

A document is a file of a folder, or a row of a JSON file, of which the `text` or the
`conversations` are read. Whether a document is held out depends only on its content, so an expert
and the dense model hold out the same documents.
"""

import hashlib
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, tee
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dfm_jax.checks import check_interval, require
from dfm_jax.data.arrays import read_npy_file
from dfm_jax.data.columns import Columns
from dfm_jax.data.listing import documents_in, files_in, read_document
from dfm_jax.data.manifest import check_file, check_rows, finish_with_manifest, read_manifest
from dfm_jax.data.records import DOCUMENT, Record, names_of, read_records
from dfm_jax.durable import HashedFile, NewFolder
from dfm_jax.models.pretrained.tokenizer import (
    Tokenizer,
    check_repeats,
    lossless_ids,
    read_tokenizer_json,
)

_BLOCK = 1 << 22  # tokens that are looked at together
_TWICE = 1_000_000  # bytes of a set that are encoded twice, to find a tokenizer that draws


class TokenSet(NamedTuple):
    """Document d is `tokens[offsets[d] : offsets[d + 1]]`, with `num_bytes[d]` bytes in UTF-8."""

    tokens: np.ndarray  # [M], uint8 if V ≤ 256, else int32
    offsets: np.ndarray  # [D + 1], int64, from 0 to M
    num_bytes: np.ndarray  # [D], int64

    @property
    def digest(self) -> str:
        """The SHA-256 of all three fields; a wrong byte count would make nats per byte wrong."""
        content = hashlib.sha256()
        for part in self:
            content.update(f"{part.dtype} {len(part)}\n".encode())
            for first in range(0, len(part), _BLOCK):  # they may be mapped from the disk
                content.update(part[first : first + _BLOCK].tobytes())
        return content.hexdigest()


def byte_tokenizer() -> Tokenizer:
    """A tokenizer whose tokens are the 256 bytes of UTF-8."""
    return Tokenizer(
        encode=lambda text: text.encode("utf-8", "surrogatepass"),
        decode=lambda ids: bytes(ids).decode("utf-8", "replace"),
        num_tokens=256,
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer of a `tokenizer.json`, see `read_tokenizer_json` (extra `hf`).

    Raises:
        ValueError: if the file is not a tokenizer, or the package `tokenizers` is not installed.
    """
    try:
        return read_tokenizer_json(path)
    except ImportError as error:
        raise ValueError(
            "A tokenizer.json needs the package `tokenizers`, which is not installed: "
            "`pip install 'dfm_jax[hf]'`."
        ) from error


def read_texts(path: Path, columns: Columns | None = None) -> list[str]:
    """All texts of `texts_in` a folder or a file."""
    return list(texts_in(path, columns))


def texts_in(path: Path, columns: Columns | None = None) -> Iterator[str]:
    """The texts of `named_texts_in`, without the names."""
    return (text for _, text in named_texts_in(path, columns))


def named_texts_in(path: Path, columns: Columns | None = None) -> Iterator[tuple[str, str]]:
    """The documents of a folder of text, of rows in a `.jsonl` or `.json` file, or of one file.

    Each item is the name of the document, which is its file or line, and its text. They are read
    one at a time; at most one document of a folder or of rows is in memory.

    Turns of a conversation become lines `FROM: VALUE`; of a `document`, which is what `partition`
    writes for a file, only the text is taken. Nothing is left out: a document that cannot be read
    is refused, see `files_in`.

    Args:
        path: The path of the folder or the file.
        columns: Counts the columns of rows that are not read, and says whether pictures are left
            out.

    Raises:
        ValueError: if there is no document; if a file is not UTF-8; if a row has no text; if a row
            has a picture and pictures are not to be left out.
    """
    columns = Columns() if columns is None else columns
    if path.is_dir():
        named = ((str(path / name), text) for name, text in documents_in(path))
        first = next(named, None)
        require(first is not None, "`data` must be a folder that holds a file", path)
        assert first is not None
        yield from chain([first], named)
    elif not path.is_file():
        raise ValueError(f"`data` must be a folder or a file; got data = {str(path)!r}.")
    elif path.suffix in (".jsonl", ".json"):
        check_rows(path)
        for record in read_records(path):
            yield f"{path}, line {record.line}", text_of(path, record, columns)
    else:
        yield str(path), read_document(path)


def encode_texts(
    texts: Sequence[str], tokenizer: Tokenizer, *, names: Sequence[str] | None = None
) -> TokenSet:
    """Encode all documents into one array, in their order; an empty document has no token.

    Args:
        texts: The documents.
        tokenizer: The tokenizer.
        names: The names of the documents, for error messages; by default their numbers, from 0.

    Raises:
        ValueError: if the ids of a document do not give it back; see `encoded_texts`.
    """
    dtype = token_dtype(tokenizer)
    named = enumerate(texts) if names is None else zip(names, texts, strict=True)
    parts = list(encoded_texts(((str(name), text) for name, text in named), tokenizer))
    lengths = np.array([len(part) for part in parts], np.int64)
    sizes = np.array([num_bytes(text) for text in texts], np.int64)
    tokens = np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)
    return TokenSet(tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), sizes)


def encoded_texts(named: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The ids of each document, given by name and text; each is decoded and compared with its text.

    The first million bytes are encoded twice, to find a tokenizer that is random.

    Raises:
        ValueError: if a document does not come back, or an id is not in [0, V); the message names
            the document.
    """
    again = _TWICE
    for name, text in named:
        try:
            ids = encoded(text, tokenizer)
            if again > 0:
                check_repeats(text, ids, tokenizer)
                again -= num_bytes(text)
        except ValueError as error:
            raise ValueError(f"Document {name}: {error}") from error
        yield ids


def encoded(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """The ids of one document.

    Raises:
        ValueError: if the ids do not give the document back.
    """
    # What was read from a file compares by itself.
    checked = tokenizer.backend is not None
    ids = tokenizer.encode(text) if checked else lossless_ids(text, tokenizer)
    return np.asarray(ids).astype(token_dtype(tokenizer), copy=False)


def token_dtype(tokenizer: Tokenizer) -> type[np.integer]:
    """The type in which ids are kept: uint8 if V ≤ 256, else int32."""
    return np.uint8 if tokenizer.num_tokens <= 256 else np.int32


def num_bytes(text: str) -> int:
    """The length of a text in UTF-8 bytes."""
    return len(text.encode("utf-8", "surrogatepass"))


def held_out_sides(texts: Sequence[str], share: float) -> list[bool]:
    """Whether each document is held out.

    Raises:
        ValueError: as `split_held_out`.
    """
    check_interval("share", share, 0, 1, ends="[)")
    sides = [is_held_out(text, share) for text in texts]
    check_split(len(sides) - sum(sides), sum(sides), share)
    return sides


def is_held_out(text: str, share: float) -> bool:
    """Whether the hash of a text, a number in [0, 1), is below the share."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def check_split(num_train: int, num_held_out: int, share: float) -> None:
    """Check that no side is empty, unless no document is to be held out."""
    total = num_train + num_held_out
    rule = (
        f"`held_out` must be 0, or a share that holds out some of the {total} documents and not all"
    )
    good = share == 0 or min(num_train, num_held_out) > 0
    require(good, rule, share, then="Add documents, or give another share.")


def split_held_out(texts: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """(training, held out): a document is held out if the hash of its text, in [0, 1), is < share.

    Equal documents are on the same side, and a document is on the same side in every data set.

    Raises:
        ValueError: if one side would be empty although 0 < share.
    """
    sides: tuple[list[str], list[str]] = ([], [])
    for text, held in zip(texts, held_out_sides(texts, share), strict=True):
        sides[held].append(text)
    return sides


def text_of(path: Path, record: Record, columns: Columns) -> str:
    """The text of a row of the file or folder `path`, as `named_texts_in` gives it.

    Raises:
        ValueError: if the row has no text; if it has a picture and pictures are not to be left out.
    """
    text, turns = record.fields.get("text"), record.fields.get("conversations")
    if isinstance(text, str):
        columns.add(path, record, "text")
        return text
    try:
        said = [(turn["from"], turn["value"]) for turn in turns or [{}]]
        if not all(isinstance(part, str) for pair in said for part in pair):
            raise TypeError
    except (TypeError, KeyError):
        first = turns[0] if isinstance(turns, list) and turns else None
        inside = f", whose first turn has {names_of(first)}" if isinstance(first, dict) else ""
        raise ValueError(
            f"{path}, line {record.line}: the row must have `text`, or `conversations` of turns "
            f"with the texts `from` and `value`; got a row with {names_of(record.fields)}{inside}."
        ) from None
    columns.add(path, record, "conversations")
    if len(said) == 1 and said[0][0] == DOCUMENT:
        return said[0][1]
    return "".join(f"{speaker}: {value}\n" for speaker, value in said)


# ── Tokens on the disk, for documents that together outgrow memory: written once, then mapped ─────
#
# FOLDER/train.tokens        the ids behind one another, as they lie in memory
# FOLDER/train.offsets.npy   where each document begins, and its bytes of UTF-8
# FOLDER/manifest.json       what they were made of; the folder is whole or not there

_SIDES = ("train", "held_out")
_FORMAT = 3  # what is of another is written anew


class Mapped(NamedTuple):
    """The documents of both sides, with memory-mapped tokens."""

    train: TokenSet
    held_out: TokenSet


def map_tokens(
    source: Path,
    folder: Path,
    tokenizer: Tokenizer,
    *,
    name: str,
    share: float,
    columns: Columns | None = None,
) -> Mapped:
    """The documents of `source` as tokens in `folder`, encoded now if they are not there already.

    The sides are those of `split_held_out`, the order is that of `texts_in`. Existing tokens are
    used if they were made from the same files (by size and time of change), tokenizer and share,
    and match their digest. A process that is killed while it writes leaves nothing.

    Args:
        source: A folder or a file, see `texts_in`.
        folder: The folder of the tokens.
        tokenizer: The tokenizer.
        name: A name that distinguishes the tokenizer from others.
        share: The share of documents to hold out.
        columns: See `named_texts_in`; the counts from when the tokens were written are added.

    Raises:
        ValueError: as `texts_in` and `split_held_out`; if the tokens are damaged.
    """
    dtype = np.dtype(token_dtype(tokenizer)).name
    settings = {"format": _FORMAT, "tokenizer": name, "share": share, "dtype": dtype}
    inputs = {"files": _fingerprint(source)}
    manifest = read_manifest(folder)
    columns = Columns() if columns is None else columns
    if manifest is None or manifest["settings"] != settings or manifest["inputs"] != inputs:
        made_of = {"settings": settings, "inputs": inputs}
        manifest = _write(source, folder, tokenizer, share, columns, made_of)
    else:
        columns.take(source, manifest["columns"])
    for side in _SIDES:
        check_file(folder, manifest, f"{side}.offsets.npy")
    found = Mapped(*(_map(folder, side, dtype) for side in _SIDES))
    for side, tokens in zip(_SIDES, found, strict=True):
        if tokens.digest != manifest["digests"][side]:
            rule = f"{folder / side}.tokens must be as it was written"
            raise ValueError(f"{rule}; got another SHA-256. Remove the folder: it is written anew.")
    return found


def _write(
    source: Path,
    folder: Path,
    tokenizer: Tokenizer,
    share: float,
    columns: Columns,
    made_of: dict[str, Any],
) -> dict[str, Any]:
    dtype, tables = token_dtype(tokenizer), {side: [(0, 0)] for side in _SIDES}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with NewFolder(folder) as new:
        train, held_out = (HashedFile(new.path / f"{side}.tokens") for side in _SIDES)
        with train, held_out:
            documents, encoded = tee(named_texts_in(source, columns))
            ids_of = encoded_texts(encoded, tokenizer)
            for (_, text), ids in zip(documents, ids_of, strict=True):
                held = is_held_out(text, share)
                table = tables[_SIDES[held]]
                (held_out if held else train).write(ids.astype(dtype, copy=False).tobytes())
                table.append((table[-1][0] + len(ids), num_bytes(text)))
        check_split(len(tables["train"]) - 1, len(tables["held_out"]) - 1, share)
        digests = {}
        for side, file in zip(_SIDES, (train, held_out), strict=True):
            new.files[file.path.name] = file.hash.hexdigest()
            buffer = io.BytesIO()
            np.save(buffer, np.array(tables[side], np.int64))
            new.write(f"{side}.offsets.npy", buffer.getvalue())
            digests[side] = _map(new.path, side, np.dtype(dtype).name).digest
        if folder.exists():
            shutil.rmtree(folder)  # of other files, or another tokenizer
        return finish_with_manifest(
            new, made_of | {"digests": digests, "columns": columns.counts()}
        )


def _map(folder: Path, side: str, dtype: str) -> TokenSet:
    table = read_npy_file(folder / f"{side}.offsets.npy")
    path = folder / f"{side}.tokens"
    empty = path.stat().st_size == 0  # which cannot be mapped
    tokens = np.empty(0, dtype) if empty else np.memmap(path, dtype, mode="r")
    return TokenSet(tokens, table[:, 0], table[1:, 1])


def _fingerprint(source: Path) -> str:
    """A fingerprint of the paths, sizes and times of change of all files."""
    files = files_in(source) if source.is_dir() else [(".", source)]
    digest = hashlib.sha256()
    for name, path in files if source.exists() else ():
        about = path.stat()
        name = os.fsencode(name)  # which need not be text
        digest.update(name + f"\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()
