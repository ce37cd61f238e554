"""Interpolated Kneser–Ney byte n-grams: the experts and the dense model of `counting`.

    p_n(v | z) = max(c_n(z v) − D, 0) / c_n(z) + D d_n(z) / c_n(z) · p_{n−1}(v | z'),  p_0 = 1/256

z is the last n − 1 bytes, z' the last n − 2, c_n(z) = Σ_v c_n(z v), d_n(z) the number of different
bytes seen after z; where z was not seen, p_n = p_{n−1}. At the model's own n, c_n counts the text;
below, it counts how many different bytes came before z v. Every byte has a probability above 0.
Source: Kneser & Ney (1995), interpolated as in Chen & Goodman (1998).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dfm_jax.checks import check_count, check_interval, require
from experiments.lib.ngrams import NUM_BYTES, ngram_codes


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What was seen at one n: grams sorted by code, so that those of a context lie together."""

    contexts: np.ndarray  # [C] codes of the n − 1 bytes
    ends: np.ndarray  # [C + 1] the grams of context c are ends[c] … ends[c + 1] − 1
    grams: np.ndarray  # [G] codes of the n bytes
    before: np.ndarray  # [G + 1] Σ counts of all grams that come earlier


@dataclass(frozen=True, kw_only=True)
class Model:
    """Counts of n = 1 … order, all but the last of what came before; and the discount D."""

    counts: tuple[Counts, ...]
    discount: float

    @property
    def order(self) -> int:
        """The model's own n."""
        return len(self.counts)


@dataclass(frozen=True, kw_only=True)
class Queries:
    """The different n-grams of a text at one n; every model is asked once for each."""

    grams: np.ndarray  # [Q] sorted codes
    shorter: np.ndarray  # [Q] where its last n − 1 bytes stand among the queries of n − 1
    at: np.ndarray  # [N] the query of each byte


class _Seen(NamedTuple):
    """What one table holds of the queries of one n: each [Q]."""

    count: np.ndarray  # c(z v)
    total: np.ndarray  # c(z)
    followers: np.ndarray  # d(z)


def queries(texts: Sequence[bytes], order: int) -> tuple[Queries, ...]:
    """What to ask of models of up to that order for these texts, one text after the other."""
    found: list[Queries] = []
    for n in range(1, order + 1):
        grams, at = np.unique(_all_codes(texts, n), return_inverse=True)
        last = grams % NUM_BYTES ** (n - 1)
        shorter = np.searchsorted(found[-1].grams, last) if found else np.zeros_like(last)
        found.append(Queries(grams=grams, shorter=shorter, at=at))
    return tuple(found)


def fit(texts: Sequence[bytes], order: int, *, discount: float) -> Model:
    """The model of that order; a document starts after zero bytes.

    Raises:
        ValueError: if the order is no number of bytes that fit an int64, the discount lies outside
            (0, 1], or there is no text.
    """
    check_interval("discount", discount, 0.0, 1.0, ends="(]")
    own, lower = _tables(texts, order)
    return Model(counts=(*lower, own[-1]), discount=discount)


def tuned(
    texts: Sequence[bytes],
    asked: Sequence[Queries],
    chosen_on: np.ndarray,
    *,
    discounts: Sequence[float],
) -> Model:
    """The model whose order and discount are best on some bytes of another text.

    Args:
        texts: The texts that are counted.
        asked: The other text, as `queries`; their number is the largest order that is tried.
        chosen_on: Which bytes of that text are used, [N]; at least one.
        discounts: The values of D to try.

    Raises:
        ValueError: as `fit`; or if there is no byte to choose on.
    """
    require(len(discounts) > 0, "`discounts` must not be empty", discounts)
    check_interval("discounts", np.array(discounts), 0.0, 1.0, ends="(]")
    require(chosen_on.any(), "`chosen_on` must choose a byte", 0, name="chosen_on.sum()")
    own, lower = _tables(texts, len(asked))
    seen = [
        tuple(_look_up(table, ask) for table in pair if table is not None)
        for pair, ask in zip(zip(own, (*lower, None), strict=True), asked, strict=True)
    ]
    losses = {}
    for discount in discounts:
        backed = np.full(1, 1 / NUM_BYTES)
        for order, (ask, found) in enumerate(zip(asked, seen, strict=True), start=1):
            at_top = _interpolated(found[0], backed[ask.shorter], discount)
            losses[order, discount] = -np.log(at_top)[ask.at[chosen_on]].mean()
            backed = _interpolated(found[-1], backed[ask.shorter], discount)
    order, discount = min(losses, key=losses.__getitem__)
    return Model(counts=(*lower[: order - 1], own[order - 1]), discount=discount)


def log_probs(model: Model, asked: Sequence[Queries]) -> np.ndarray:
    """log p(byte | the bytes before it), [N], in nats; `asked` may go beyond the model's order."""
    probs = np.full(1, 1 / NUM_BYTES)
    for counts, ask in zip(model.counts, asked, strict=False):
        probs = _interpolated(_look_up(counts, ask), probs[ask.shorter], model.discount)
    return np.log(probs)[asked[model.order - 1].at]


def sample(model: Model, num: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Texts drawn from the model's own distribution, from a document's start: [num, length] bytes.

    A byte is drawn by the counts after z, and with chance D / c(z v) given up for one of p_{n−1}.
    """
    check_count("num", num)
    check_count("length", length)
    order = model.order
    text = np.zeros((num, order - 1 + length), np.int64)
    places = NUM_BYTES ** np.arange(order - 1)[::-1]
    for t in range(order - 1, order - 1 + length):
        byte = rng.integers(NUM_BYTES, size=num)
        waiting = np.arange(num)
        for n in range(order, 0, -1):
            counts = model.counts[n - 1]
            context, seen = _find(
                counts.contexts, text[waiting, t - n + 1 : t] @ places[order - n :]
            )
            first, last = counts.ends[context], counts.ends[context + 1]
            low, high = counts.before[first], counts.before[last]
            # Of the type of what is searched, which would else be copied whole at every draw.
            target = low + np.floor(rng.random(waiting.size) * (high - low)).astype(low.dtype)
            gram = np.searchsorted(counts.before, target, side="right") - 1
            count = counts.before[gram + 1] - counts.before[gram]
            taken = seen & (rng.random(waiting.size) * count >= model.discount)
            byte[waiting[taken]] = counts.grams[gram[taken]] % NUM_BYTES
            waiting = waiting[~taken]
        text[:, t] = byte
    return text[:, order - 1 :].astype(np.uint8)


def _tables(texts: Sequence[bytes], order: int) -> tuple[list[Counts], list[Counts]]:
    """Counts of the text at n = 1 … order, and of what came before at n = 1 … order − 1."""
    check_count("order", order, at_most=7)
    check_count("the number of bytes", sum(map(len, texts)))
    own = [_counted(_all_codes(texts, n)) for n in range(1, order + 1)]
    lower = [_counted(longer.grams % NUM_BYTES**n) for n, longer in enumerate(own[1:], start=1)]
    return own, lower


def _all_codes(texts: Iterable[bytes], n: int) -> np.ndarray:
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


def _look_up(counts: Counts, ask: Queries) -> _Seen:
    context, known = _find(counts.contexts, ask.grams // NUM_BYTES)
    first, last = counts.ends[context], counts.ends[context + 1]
    gram, hit = _find(counts.grams, ask.grams)
    return _Seen(
        count=np.where(hit, counts.before[gram + 1] - counts.before[gram], 0),
        total=np.where(known, counts.before[last] - counts.before[first], 0),
        followers=np.where(known, last - first, 0),
    )


def _interpolated(seen: _Seen, backed: np.ndarray, discount: float) -> np.ndarray:
    kept = np.maximum(seen.count - discount, 0)
    total = np.maximum(seen.total, 1)
    return np.where(seen.total > 0, (kept + discount * seen.followers * backed) / total, backed)


def _find(codes: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted code stands (anywhere, if it does not), and whether it is there."""
    at = np.minimum(np.searchsorted(codes, wanted), codes.size - 1)
    return at, codes[at] == wanted
