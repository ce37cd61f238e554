"""Interpolated byte n-grams that smooth themselves: the experts and the centre of `counting`.

    p_n(v | z) = (c(z v) + d(z) p_{n−1}(v | z')) / (c(z) + d(z)),   p_0 = 1/256

z is the last n − 1 bytes, z' the last n − 2, c a count of the training text, d(z) the number of
different bytes seen after z. Nothing to tune but n, and every byte has a probability above 0.
Source: Witten & Bell (1991), as Chen & Goodman (1998) write it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfm_jax.checks import check_count
from experiments.ngrams import NUM_BYTES, ngram_codes


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What was seen at one n: grams sorted by code, so that those of a context lie together."""

    contexts: np.ndarray  # [C] codes of the n − 1 bytes
    ends: np.ndarray  # [C + 1] the grams of context c are ends[c] … ends[c + 1] − 1
    grams: np.ndarray  # [G] codes of the n bytes
    before: np.ndarray  # [G + 1] Σ counts of all grams that come earlier


Model = tuple[Counts, ...]  # of n = 1, 2, …


@dataclass(frozen=True, kw_only=True)
class Queries:
    """The different n-grams of a text at one n; every expert is asked once for each."""

    grams: np.ndarray  # [Q] sorted codes
    shorter: np.ndarray  # [Q] where its last n − 1 bytes stand among the queries of n − 1
    at: np.ndarray  # [N] the query of each byte


def fit(texts: Sequence[bytes], order: int) -> Model:
    """Counts of every n up to `order`; a document starts after zero bytes.

    Raises:
        ValueError: if the order is no number of bytes that fit an int64, or there is no text.
    """
    check_count("order", order, at_most=7)
    check_count("the number of bytes", sum(map(len, texts)))
    return tuple(_counted(_all_codes(texts, n)) for n in range(1, order + 1))


def queries(texts: Sequence[bytes], order: int) -> tuple[Queries, ...]:
    """What to ask of a model for these texts, one after the other."""
    found: list[Queries] = []
    for n in range(1, order + 1):
        grams, at = np.unique(_all_codes(texts, n), return_inverse=True)
        last = grams % NUM_BYTES ** (n - 1)
        shorter = np.searchsorted(found[-1].grams, last) if found else np.zeros_like(last)
        found.append(Queries(grams=grams, shorter=shorter, at=at))
    return tuple(found)


def log_probs(model: Model, asked: Sequence[Queries]) -> np.ndarray:
    """log p_n(byte | the bytes before it) for n = 1, 2, …: [order, N], in nats."""
    probs, rows = np.full(1, 1 / NUM_BYTES), []
    for counts, ask in zip(model, asked, strict=True):
        backed = probs[ask.shorter]
        context, seen = _find(counts.contexts, ask.grams // NUM_BYTES)
        first, last = counts.ends[context], counts.ends[context + 1]
        total, followers = counts.before[last] - counts.before[first], last - first
        gram, hit = _find(counts.grams, ask.grams)
        count = np.where(hit, counts.before[gram + 1] - counts.before[gram], 0)
        probs = np.where(seen, (count + followers * backed) / (total + followers), backed)
        rows.append(np.log(probs)[ask.at])
    return np.stack(rows)


def sample(model: Model, num: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Texts drawn from the model's own law: [num, length] bytes, each from a document's start.

    The interpolation is a mixture: with chance c(z)/(c(z) + d(z)) a byte is drawn from the counts
    after z, else from p_{n−1}; so a draw descends from the longest context.
    """
    check_count("num", num)
    check_count("length", length)
    order = len(model)
    text = np.zeros((num, order - 1 + length), np.int64)
    places = NUM_BYTES ** np.arange(order - 1)[::-1]
    for t in range(order - 1, order - 1 + length):
        byte = rng.integers(NUM_BYTES, size=num)
        waiting = np.arange(num)
        for n in range(order, 0, -1):
            counts = model[n - 1]
            code = text[waiting, t - n + 1 : t] @ places[order - n :]
            context, seen = _find(counts.contexts, code)
            first, last = counts.ends[context], counts.ends[context + 1]
            total, followers = counts.before[last] - counts.before[first], last - first
            taken = seen & (rng.random(waiting.size) * (total + followers) < total)
            target = counts.before[first] + np.floor(rng.random(waiting.size) * total)
            gram = np.searchsorted(counts.before, target[taken], side="right") - 1
            byte[waiting[taken]] = counts.grams[gram] % NUM_BYTES
            waiting = waiting[~taken]
        text[:, t] = byte
    return text[:, order - 1 :].astype(np.uint8)


def _all_codes(texts: Sequence[bytes], n: int) -> np.ndarray:
    return np.concatenate([ngram_codes(text, n) for text in texts])


def _counted(codes: np.ndarray) -> Counts:
    codes = np.sort(codes)
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    grams = codes[starts]
    of = grams // NUM_BYTES
    firsts = np.flatnonzero(np.r_[True, of[1:] != of[:-1]])
    return Counts(
        contexts=of[firsts],
        ends=np.r_[firsts, grams.size],
        grams=grams,
        before=np.r_[starts, codes.size],
    )


def _find(codes: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted code stands (anywhere, if it does not), and whether it is there."""
    at = np.minimum(np.searchsorted(codes, wanted), codes.size - 1)
    return at, codes[at] == wanted
