"""The text before a sequence of `counting` in its own document, as text and as features.

A gate may see only the context and the prefix (B9); the context of a window is the bytes before it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dfm_jax.comparison.evaluation_sets import windows_of
from dfm_jax.data import encode_documents, fit_documents

Encoder = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """The contexts of Q sequences."""

    spans: np.ndarray  # [Q, 2] of the flat text; begin = end where nothing stands before
    features: np.ndarray  # [Q, F] of length 1; NaN where there is no known word

    @property
    def known(self) -> np.ndarray:
        """Whether a context has a feature, [Q]."""
        return ~np.isnan(self.features[:, 0])

    @property
    def empty(self) -> np.ndarray:
        """Whether a sequence has no context, [Q]."""
        return self.spans[:, 0] == self.spans[:, 1]


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Training text split into windows, and which of them are contexts of the next window."""

    features: np.ndarray  # [P, F], NaN where there is no known word
    document: np.ndarray  # [P]
    precedes: np.ndarray  # [P] another window of its document follows


def encoder(texts: Sequence[bytes], num_features: int, *, seed: int) -> Encoder:
    """TF-IDF and SVD of words, fitted on whole documents."""
    fitted = fit_documents(map(bytes.decode, texts), num_features=num_features, seed=seed)

    def encode(texts: Sequence[str]) -> np.ndarray:
        features, known = encode_documents(fitted, texts)
        return np.where(known[:, None], features, np.nan)

    return encode


def encoded(encode: Encoder, text: bytes, spans: np.ndarray) -> np.ndarray:
    """Features of spans of a text, [Q, F]; a character that a span splits is left out."""
    cut = [text[a:b].decode(errors="ignore") for a, b in spans]
    return encode(cut).astype(float)


def contexts(encode: Encoder, text: bytes, spans: np.ndarray) -> Contexts:
    """The contexts at these spans."""
    return Contexts(spans=spans, features=encoded(encode, text, spans))


def pieces(encode: Encoder, texts: Sequence[bytes], window: int) -> Pieces:
    """Every window of every document."""
    sizes = np.array([len(text) for text in texts])
    held = np.flatnonzero(sizes)
    starts = np.r_[0, np.cumsum(sizes[held])[:-1]]
    begin = windows_of(starts, int(sizes.sum()), window)
    document = np.searchsorted(starts, begin, side="right") - 1
    spans = np.stack([begin, np.r_[begin[1:], sizes.sum()]], axis=1)
    return Pieces(
        features=encoded(encode, b"".join(texts), spans),
        document=held[document],
        precedes=np.r_[document[1:] == document[:-1], False],
    )
