"""Tokens on the disk, for documents that together outgrow memory: written once, then mapped.

FOLDER/train.tokens        the ids behind one another, as they lie in memory
FOLDER/train.offsets.npy   where each document begins, and its bytes of UTF-8
FOLDER/manifest.json       what they were made of; the folder is whole or not there
"""

import hashlib
import io
import os
import shutil
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dfm_jax.data.columns import Columns
from dfm_jax.data.folders import check_file, finish_with_manifest, read_manifest
from dfm_jax.data.listing import files_in
from dfm_jax.data.npy_file import read_npy_file
from dfm_jax.data.tokens import (
    Tokenizer,
    TokenSet,
    check_split,
    encoded_texts,
    is_held_out,
    named_texts_in,
    num_bytes,
    token_dtype,
)
from dfm_jax.durable import HashedFile, NewFolder

_SIDES = ("train", "held_out")
_FORMAT = 3  # what is of another is written anew


class Mapped(NamedTuple):
    """The documents of both sides, their tokens mapped."""

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
    """The documents of `source` as tokens in `folder`, encoded if they are not there already.

    Their sides are those of `split_held_out`, their order that of `texts_in`. What is there is used
    if it was made of the same files (by size and time of change), tokenizer and share, and has its
    digest; a kill in mid-write leaves nothing.

    Args:
        source: a folder or a file, see `texts_in`.
        folder: where the tokens lie, or will.
        tokenizer: text to ids.
        name: what tells that tokenizer from others.
        share: of documents held out.
        columns: see `named_texts_in`; what was counted when the tokens were written is added.

    Raises:
        ValueError: see `texts_in`, `split_held_out`; if the tokens are damaged.
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
            raise ValueError(f"{folder}: {side}.tokens is damaged; take the folder away.")
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
    """Of the paths, sizes and times of change of all files."""
    files = files_in(source) if source.is_dir() else [(".", source)]
    digest = hashlib.sha256()
    for name, path in files if source.exists() else ():
        about = path.stat()
        name = os.fsencode(name)  # which need not be text
        digest.update(name + f"\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()
