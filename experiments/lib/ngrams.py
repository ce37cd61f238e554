"""Count byte n-grams exactly: no hashing, no cut-off, every byte of every document once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dfm_jax.checks import check_count

NUM_BYTES = 256
_MOST_BYTES = 7  # 256⁷ < 2⁶³: an n-gram is one int64


@dataclass(frozen=True, kw_only=True)
class NgramCounts:
    """Sparse counts of (state, document, next byte); the state is the last n − 1 bytes.

    The rows are sorted by state; only states that were seen are numbered.
    """

    n: int
    states: np.ndarray  # [Z] the code of each state seen, Σ byte · 256^place
    state: np.ndarray  # [R] its number, per row
    document: np.ndarray  # [R]
    byte: np.ndarray  # [R]
    count: np.ndarray  # [R]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Dense counts of some states, padded with empty states to a fixed number of them."""

    size: int  # how many of the states are real
    dense: np.ndarray  # [B, V] n(state, v), counted without looking at the parts
    experts: np.ndarray  # [B, K, V] n_k(state, v)


def count_ngrams(texts: Sequence[bytes], n: int) -> NgramCounts:
    """n-gram counts per document; a document starts after n − 1 zero bytes.

    Raises:
        ValueError: if n is no number of bytes that fit an int64, or there is no text.
    """
    check_count("n", n, at_most=_MOST_BYTES)
    check_count("the number of bytes", sum(map(len, texts)))
    codes, counts, documents = [], [], []
    for document, text in enumerate(texts):
        code, count = np.unique(ngram_codes(text, n), return_counts=True)
        codes.append(code)
        counts.append(count)
        documents.append(np.full(code.size, document))
    code = np.concatenate(codes)
    order = np.argsort(code, kind="stable")
    code = code[order]
    states, state = np.unique(code // NUM_BYTES, return_inverse=True)
    return NgramCounts(
        n=n,
        states=states,
        state=state,
        document=np.concatenate(documents)[order],
        byte=code % NUM_BYTES,
        count=np.concatenate(counts)[order].astype(float),
    )


def ngram_codes(text: bytes, n: int) -> np.ndarray:
    """The n-gram that ends at each byte, as a number whose last digit in base 256 is that byte."""
    padded = np.frombuffer(bytes(n - 1) + text, dtype=np.uint8).astype(np.int64)
    code = np.zeros(len(text), dtype=np.int64)
    for place in range(n):
        code = code * NUM_BYTES + padded[place : place + len(text)]
    return code


def part_sizes(counts: NgramCounts, part_of: np.ndarray, num_parts: int) -> np.ndarray:
    """N_k [K]: how many bytes each part holds."""
    return np.bincount(part_of[counts.document], weights=counts.count, minlength=num_parts)


def blocks(
    counts: NgramCounts, part_of: np.ndarray, num_parts: int, *, max_cells: int = 2**20
) -> Iterator[Block]:
    """Every state seen, in blocks of at most `max_cells` dense counts; `part_of[document]` is k."""
    num_states = counts.states.size
    width = min(max(1, max_cells // (num_parts * NUM_BYTES)), num_states)
    part = part_of[counts.document]
    for first in range(0, num_states, width):
        last = min(first + width, num_states)
        rows = slice(*np.searchsorted(counts.state, [first, last]))
        state, byte, count = counts.state[rows] - first, counts.byte[rows], counts.count[rows]
        yield Block(
            size=last - first,
            dense=_dense((width, NUM_BYTES), (state, byte), count),
            experts=_dense((width, num_parts, NUM_BYTES), (state, part[rows], byte), count),
        )


def _dense(shape: tuple[int, ...], where: tuple[np.ndarray, ...], count: np.ndarray) -> np.ndarray:
    flat = np.ravel_multi_index(where, shape)
    return np.bincount(flat, weights=count, minlength=int(np.prod(shape))).reshape(shape)
