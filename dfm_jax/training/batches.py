"""A batch is a pure function of (key, step), so a restart needs no iterator and is bit-exact."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer, UInt8

from dfm_jax.checks import check_count, check_tokens, require
from dfm_jax.types import Array, ArrayLike, Bool, Float, Int, Key, typed

_GRAIN = 2**16  # tokens; what a stream is filled up to
_ROUNDS = 6  # of the Feistel network; four already pass the tests


class Batch(NamedTuple):
    """Sequences, and which of their tokens count; padding has the id 0 and does not count."""

    tokens: Int[ArrayLike, "*B N"]
    valid: Bool[ArrayLike, "*B N"]


class PictureBatch(NamedTuple):
    """Pictures, questions and answers; all tokens but the answers are context, as is padding."""

    features: Float[ArrayLike, "*B P F"]
    tokens: Int[ArrayLike, "*B N"]
    answers: Bool[ArrayLike, "*B N"]  # which tokens are of an answer, its stop token included


class MultimodalBatch(NamedTuple):
    """Conversations with pictures, one or several in a sequence; padding is in segment 0.

    Image tokens stand for the features of the pictures, in order, from the first segment to the
    last. Pictures beyond those that the tokens ask for fill up the array.
    """

    tokens: Int[ArrayLike, "*B N"]
    learnt: Bool[ArrayLike, "*B N"]  # which tokens are of an answer
    segments: Int[ArrayLike, "*B N"]  # the conversation of a token, from 1 on
    weights: Float[ArrayLike, "*B N"]  # of the nats of learnt tokens, see `Reduction`
    pixels: UInt8[ArrayLike, "*B I H W 3"]


Batches = Callable[[Key, ArrayLike], Any]
"""(key, step) → a batch, of texts `Batch` [B, N]; one key a run. Steps lie in [0, 2³¹)."""


@partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["draw", "sizes"])
@dataclass(frozen=True)
class ArrayBatches:
    """`Batches` out of arrays in memory: (key, step) ↦ `draw(arrays, key, step, *sizes)`.

    It is a pytree whose leaves are the arrays. So it can be an argument of a compiled program that
    makes several updates, and all data of one shape share the program.
    """

    draw: Callable[..., Any]  # a function of a module: two are equal if they are the same one
    arrays: Any
    sizes: tuple[int, ...]

    def __call__(self, key: Key, step: ArrayLike) -> Any:
        """The batch of a step."""
        return self.draw(self.arrays, key, step, *self.sizes)


def whole_batch(arrays: Any, key: Key, step: ArrayLike) -> Any:
    """A batch that was made on the host, as the `draw` of `ArrayBatches`: it is all there is."""
    del key, step
    return arrays


def stream_windows(tokens: np.ndarray, num_positions: int, batch_size: int) -> Batches:
    """Windows that begin anywhere in one long stream [M], drawn uniformly with replacement.

    Raises:
        ValueError: if the stream is shorter than a window, or M ≥ 2³¹.
    """
    check_count("batch_size", batch_size)
    rule = f"`tokens` must hold at least {num_positions} tokens, one window, and fewer than 2³¹"
    require(num_positions <= len(tokens) < 2**31, rule, len(tokens), name="len(tokens)")

    filled = np.zeros(-(-len(tokens) // _GRAIN) * _GRAIN, tokens.dtype)
    filled[: len(tokens)] = tokens
    stream, last = jnp.asarray(filled), jnp.asarray(len(tokens) - num_positions)
    return ArrayBatches(_stream_batch, (stream, last), (num_positions, batch_size))


# Here, and filled up to one of few lengths, so that runs share what was compiled.
@partial(jax.jit, static_argnums=(3, 4))
def _stream_batch(
    arrays: tuple[Array, Array], key: Key, step: ArrayLike, num_positions: int, batch_size: int
) -> Batch:
    stream, last = arrays
    key = jax.random.fold_in(key, step)
    starts = jax.random.randint(key, (batch_size,), 0, last + 1)
    windows = stream[starts[:, None] + jnp.arange(num_positions)[None]].astype(jnp.int32)
    return Batch(windows, jnp.ones(windows.shape, bool))


def document_windows(
    tokens: np.ndarray, offsets: np.ndarray, num_positions: int, batch_size: int
) -> Batches:
    """Windows of single documents; each occurs exactly once per epoch, in an order drawn per epoch.

    Document d is `tokens[offsets[d] : offsets[d + 1]]`. It is cut into windows of N from its
    beginning, and the last window is padded. Window j of epoch e is number σ_e(j), where σ_e is a
    permutation drawn by (key, e). It is evaluated only at j, so nothing is shuffled or stored. A
    batch may contain windows of two epochs.

    Raises:
        ValueError: if there is no token, or windows × batch size ≥ 2³¹.
    """
    rule = "The documents must hold fewer than 2³¹ tokens"
    require(offsets[-1] < 2**31, rule, offsets[-1], name="number of tokens")
    pieces = document_pieces(offsets, num_positions)
    check_windows(len(pieces), batch_size)
    stream, table = jnp.asarray(tokens), jnp.asarray(pieces.astype(np.int32))
    return ArrayBatches(_document_batch, (stream, table), (num_positions, batch_size))


@partial(jax.jit, static_argnums=(3, 4))
def _document_batch(
    arrays: tuple[Array, Array], key: Key, step: ArrayLike, num_positions: int, batch_size: int
) -> Batch:
    stream, pieces = arrays
    indices = row_indices(key, step, pieces.shape[0], batch_size)
    return pieces_batch(stream, pieces[indices], num_positions)


def mapped_windows(
    tokens: np.ndarray, offsets: np.ndarray, num_positions: int, batch_size: int
) -> Batches:
    """`document_windows` with the same bits, for tokens that are memory-mapped from the disk.

    A call runs on the host and reads only what it returns, so the tokens may exceed memory and 2³¹.
    Use `read_ahead` to hide the waiting time.

    Raises:
        ValueError: if there is no token, or windows × batch size ≥ 2³¹.
    """
    pieces = document_pieces(offsets, num_positions)
    count = len(pieces)
    check_windows(count, batch_size)

    def batch(key: Key, step: ArrayLike) -> Batch:
        indices = np.asarray(row_indices(key, step, count, batch_size))
        return cut_windows(tokens, pieces[indices], num_positions)

    return batch


def picture_batches(
    features: Float[ArrayLike, "M P F"],
    pictures: Int[ArrayLike, " Q"],
    tokens: Int[ArrayLike, "Q N"],
    answers: Bool[ArrayLike, "Q N"],
    batch_size: int,
) -> Callable[[Key, ArrayLike], PictureBatch]:
    """Questions about pictures, each exactly once per epoch, in the order of `document_windows`.

    Args:
        features: The features of all pictures; there may be pictures of other questions too.
        pictures: The number of the picture that each question is about.
        tokens: The questions with their answers.
        answers: Which tokens belong to an answer.
        batch_size: The number of questions in a batch.

    Raises:
        ValueError: if there is no question; if a picture number does not exist; if questions ×
            batch size ≥ 2³¹.
    """
    rows = jnp.asarray(pictures), jnp.asarray(tokens), jnp.asarray(answers)
    check_tokens("pictures", rows[0], jnp.shape(features)[0])
    check_windows(rows[0].shape[0], batch_size)
    return ArrayBatches(_picture_batch, (jnp.asarray(features), *rows), (batch_size,))


@partial(jax.jit, static_argnums=3)
def _picture_batch(
    arrays: tuple[Array, ...], key: Key, step: ArrayLike, batch_size: int
) -> PictureBatch:
    features, pictures, tokens, answers = arrays
    indices = row_indices(key, step, pictures.shape[0], batch_size)
    return PictureBatch(features[pictures[indices]], tokens[indices], answers[indices])


def check_windows(count: int, batch_size: int) -> None:
    """Check that there is something to draw a batch from, and that its numbers fit in 31 bits."""
    check_count("batch_size", batch_size)
    check_count("the number of windows", count)
    rule, product = "The number of windows times `batch_size` must be below 2³¹", count * batch_size
    require(product < 2**31, rule, product, name="number of windows * batch_size")


@partial(jax.jit, static_argnums=(3, 4))
def drawn_rows(arrays: Any, key: Key, step: ArrayLike, count: int, batch_size: int) -> Any:
    """The rows of a step's batch out of arrays that have `count` rows each."""
    indices = row_indices(key, step, count, batch_size)
    return jax.tree.map(lambda leaf: leaf[indices], arrays)


@partial(jax.jit, static_argnums=(2, 3))
def row_indices(key: Key, step: ArrayLike, count: int, batch_size: int) -> Array:
    """The numbers of the rows in a step's batch, [B]; each of `count` rows comes once per epoch."""
    within = (jnp.asarray(step) % count) * batch_size + jnp.arange(batch_size)
    epoch = (jnp.asarray(step) // count) * batch_size + within // count
    return jax.vmap(permuted, in_axes=(None, 0, 0, None))(key, epoch, within % count, count)


def document_pieces(offsets: np.ndarray, num_positions: int) -> np.ndarray:
    """(start, length) of the windows into which documents are cut: int64 [P, 2]."""
    check_count("num_positions", num_positions)
    offsets = np.asarray(offsets, np.int64)
    per_document = -(-np.diff(offsets) // num_positions)
    first = np.cumsum(per_document) - per_document  # the number of a document's first window
    within = np.arange(per_document.sum()) - np.repeat(first, per_document)
    starts = np.repeat(offsets[:-1], per_document) + within * num_positions
    lengths = np.minimum(np.repeat(offsets[1:], per_document) - starts, num_positions)
    return np.stack([starts, lengths], axis=1)


def cut_windows(tokens: np.ndarray, pieces: np.ndarray, num_positions: int) -> Batch:
    """The windows (start, length), padded with id 0 to N; on the host, no other token is read."""
    valid = np.arange(num_positions)[None] < pieces[:, 1:]
    windows = np.zeros(valid.shape, np.int32)
    for row, (start, length) in zip(windows, pieces.tolist(), strict=True):
        row[:length] = tokens[start : start + length]
    return Batch(windows, valid)


@typed
def pieces_batch(
    stream: Integer[ArrayLike, " M"], pieces: Int[ArrayLike, "B 2"], num_positions: int
) -> Batch:
    """The windows (start, length), padded with id 0 to N."""
    start, length = pieces[:, :1], pieces[:, 1:]
    position = jnp.arange(num_positions)[None]
    valid = position < length
    tokens = jnp.asarray(stream)[jnp.where(valid, start + position, 0)].astype(jnp.int32)
    return Batch(jnp.where(valid, tokens, 0), valid)


@typed
def permuted(key: Key, epoch: Int[ArrayLike, ""], index: Int[ArrayLike, ""], count: int) -> Array:
    """σ(index), where σ is a permutation of 0 … count − 1 drawn by (key, epoch) and never listed.

    A Feistel network permutes the pairs of h-bit halves, with 4^h ≥ count. If an image lies outside
    the range, the network is applied again until it lies inside, which takes less than four steps
    on average.

    Source: Luby & Rackoff (1988); cycle walking, Black & Rogaway (2002).
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low = jnp.uint32(2**half - 1)
    keys = jax.random.bits(jax.random.fold_in(key, epoch), (_ROUNDS,), jnp.uint32)

    def once(x: Array) -> Array:
        left, right = x >> half, x & low
        for r in range(_ROUNDS):
            left, right = right, left ^ (_mixed(right ^ keys[r]) & low)
        return (left << half) | right

    first = once(jnp.asarray(index).astype(jnp.uint32))
    return jax.lax.while_loop(lambda x: x >= count, once, first).astype(jnp.int32)


def _mixed(x: Array) -> Array:
    """A hash of 32 bits: murmur3's finalizer."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


_LAST = 2**31 - 1


def read_ahead(batches: Batches, *, num_threads: int = 2, buffer: int = 8) -> Batches:
    """The same batches, with those of the next steps made in threads before they are needed.

    Any step can be requested; a step that is not the next one begins a new series there.

    Raises:
        ValueError: if grain is not installed (extra `data`).
    """
    check_count("num_threads", num_threads)
    check_count("buffer", buffer)
    try:
        import grain
    except ImportError as error:
        raise ValueError(
            "Reading ahead needs the package `grain`, which is not installed: "
            "`pip install 'dfm_jax[data]'`."
        ) from error
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer)
    series: Any = (None, None, iter(()))  # key, the step that comes next, the batches from it on

    def begun(key: Key, step: int) -> Iterator[Batch]:
        steps = grain.MapDataset.range(step, _LAST)
        return iter(steps.map(lambda s: batches(key, s)).to_iter_dataset(options))

    def batch(key: Key, step: ArrayLike) -> Batch:
        nonlocal series
        step = int(step)
        known, following, rest = series
        if key is not known or step != following:
            rest = begun(key, step)
        found = next(rest)
        series = (key, step + 1, rest)
        return found

    return batch
