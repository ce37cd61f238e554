"""The data of a run: its batches, and the held-out examples on which it is evaluated.

Texts are cut into windows of N tokens. In arrays of your own, each row is an example.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import check_count, require
from dfm_jax.data.tokens import Tokenizer, TokenSet
from dfm_jax.training.batches import (
    ArrayBatches,
    Batches,
    cut_windows,
    document_pieces,
    document_windows,
    drawn_rows,
    mapped_windows,
    read_ahead,
    stream_windows,
)
from dfm_jax.training.config import TrainConfig


class DocumentLosses(NamedTuple):
    """The nats of each document, and the number of tokens that they belong to."""

    nats: np.ndarray  # [D], float64
    counts: np.ndarray  # [D], int64


class HeldOut(NamedTuple):
    """The examples for evaluation: batches, the last one padded, and the document of each row."""

    batches: Sequence[Any]
    document: np.ndarray  # [W] the document of each row; rows beyond W fill up the last batch
    num_documents: int

    def by_document(self, nats: np.ndarray, counts: np.ndarray) -> DocumentLosses:
        """Sum the losses of the rows of all batches by document: [≥ W]."""
        num = len(self.document)
        return DocumentLosses(
            np.bincount(self.document, nats[:num].astype(np.float64), self.num_documents),
            np.bincount(self.document, counts[:num], self.num_documents).astype(np.int64),
        )


class Examples(NamedTuple):
    """The data of a run, of any kind."""

    batches: Batches  # (key, step) → a batch; any pytree whose leaves have a leading axis of B rows
    held_out: Callable[[int | None], HeldOut] | None  # so many rows at most; None: nothing is
    description: Mapping[str, Any]  # digests and counts: what must not change under a run
    on_disk: bool = False  # batches are made on the host


class MemberData(NamedTuple):
    """The documents of a member, as tokens."""

    train: TokenSet
    held_out: TokenSet
    tokenizer: Tokenizer
    description: dict[str, Any]  # digests and counts: what must not change under a run
    mapped: bool = False  # from the disk, for tokens that outgrow memory


def examples_of(data: MemberData | Examples, config: TrainConfig) -> Examples:
    """Documents as windows of N tokens; data that are examples already stay as they are.

    Raises:
        ValueError: if windows of a stream are to be made of tokens that stay on the disk.
    """
    if isinstance(data, Examples):
        return data
    judged = partial(document_rows, data.held_out, config) if config.held_out > 0 else None
    return Examples(_windows(data, config), judged, data.description, data.mapped)


def _windows(data: MemberData, config: TrainConfig) -> Batches:
    size, length, train = config.batch_size, config.num_positions, data.train
    if data.mapped:
        rule = "`config.windows` must be documents if the tokens stay on the disk"
        require(config.windows == "documents", rule, config.windows)
        return read_ahead(mapped_windows(train.tokens, train.offsets, length, size))
    if config.windows == "stream":
        return stream_windows(train.tokens, length, size)
    return document_windows(train.tokens, train.offsets, length, size)


def document_rows(documents: TokenSet, config: TrainConfig, limit: int | None) -> HeldOut:
    """The windows of documents; if there are more than `limit`, evenly spaced ones are taken.

    Raises:
        ValueError: if the documents have no token.
    """
    pieces = document_pieces(documents.offsets, config.num_positions)
    require(len(pieces) > 0, "The documents must hold a token", 0, name="number of tokens")
    pieces = pieces[spaced_rows(len(pieces), limit)]
    size = config.batch_size
    padded = np.concatenate([pieces, np.zeros((-len(pieces) % size, 2), np.int64)])
    batches = [
        cut_windows(documents.tokens, padded[i : i + size], config.num_positions)
        for i in range(0, len(padded), size)
    ]
    document = np.searchsorted(documents.offsets, pieces[:, 0], side="right") - 1
    return HeldOut(batches, document, len(documents.offsets) - 1)


def array_examples(
    train: Any, batch_size: int, *, held_out: Any = None, num_tokens: int | None = None
) -> Examples:
    """Arrays as examples, one per row; each row occurs exactly once per epoch, in random order.

    Args:
        train: Any pytree of arrays, each with a leading axis of R rows.
        batch_size: B.
        held_out: The same for the examples of the evaluation; with None, there is no evaluation.
        num_tokens: The number of tokens in `train`, which gives the weight of an expert that is
            trained on it; by default the number of rows.

    Raises:
        ValueError: if there is no row, or the arrays differ in their number of rows.
    """
    check_count("batch_size", batch_size)
    num_rows = _num_rows("train", train)
    batches = ArrayBatches(drawn_rows, jax.tree.map(jnp.asarray, train), (num_rows, batch_size))
    description = {
        "train_examples": num_rows,
        "train_tokens": num_rows if num_tokens is None else num_tokens,
        "train_sha256": _digest(train),
    }
    judged = None
    if held_out is not None:
        count = _num_rows("held_out", held_out)
        description |= {"held_out_examples": count, "held_out_sha256": _digest(held_out)}
        judged = partial(_array_rows, jax.tree.map(np.asarray, held_out), count, batch_size)
    return Examples(batches, judged, description)


def _array_rows(arrays: Any, count: int, batch_size: int, limit: int | None) -> HeldOut:
    kept = spaced_rows(count, limit)
    filled = np.concatenate([kept, np.zeros(-len(kept) % batch_size, int)])
    batches = [
        jax.tree.map(itemgetter(filled[i : i + batch_size]), arrays)
        for i in range(0, len(filled), batch_size)
    ]
    return HeldOut(batches, kept, count)


def spaced_rows(count: int, limit: int | None) -> np.ndarray:
    """The numbers of all rows, or of `limit` evenly spaced ones."""
    if limit is None or count <= limit:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).round().astype(int)


def _num_rows(name: str, arrays: Any) -> int:
    counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(arrays)}
    rule = f"The arrays of `{name}` must have the same number of rows, and at least one"
    good = len(counts) == 1 and counts != {()} and counts != {(0,)}
    require(good, rule, sorted(counts), name="numbers of rows")
    return counts.pop()[0]


def _digest(arrays: Any) -> str:
    """A digest of the name, type, shape and bytes of every array."""
    content = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        array = np.ascontiguousarray(leaf)
        content.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        content.update(array.tobytes())
    return content.hexdigest()
