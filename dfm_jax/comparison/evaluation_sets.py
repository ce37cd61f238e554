"""Held-out text as sequences: where gates start again, and the part of each token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfm_jax.comparison.gates import Sequences


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Sequences, scored by every expert and by the dense model; N bytes, W windows, D units."""

    name: str
    log_probs: np.ndarray  # [N, K] log p̂_k(byte | the bytes before it), nats
    dense: np.ndarray  # [N] the dense model's
    part: np.ndarray  # [N] the part each byte is from
    sequences: Sequences
    unit: np.ndarray  # [W] the unit of the bootstrap that each window belongs to, from 0 on
    changes: bool = False  # the part changes inside a sequence
    context: np.ndarray | None = None  # [Q, 2] what stands before each sequence in the flat text


def windows_of(starts: np.ndarray, num_bytes: int, window: int) -> np.ndarray:
    """Where windows begin if each document is cut from its start; its last may be short."""
    ends = np.r_[starts[1:], num_bytes]
    spans = [np.arange(a, b, window) for a, b in zip(starts, ends, strict=True)]
    return np.concatenate(spans)


def held_out(
    log_probs: np.ndarray, dense: np.ndarray, sizes: np.ndarray, parts: np.ndarray, window: int
) -> tuple[EvaluationSet, EvaluationSet]:
    """Documents in which gates start again at each window, and documents in which they go on.

    An empty document is not a sequence. The context of a window is the text before it in its
    document, at most as long as a window; a document in which gates go on has no context.
    """
    parts, sizes = parts[sizes > 0], sizes[sizes > 0]
    starts, num_bytes = np.r_[0, np.cumsum(sizes)[:-1]], int(sizes.sum())
    windows = windows_of(starts, num_bytes, window)
    unit = np.searchsorted(starts, windows, side="right") - 1
    part = np.repeat(parts, sizes)

    def evaluation_set(
        name: str, sequences: np.ndarray, context: np.ndarray | None
    ) -> EvaluationSet:
        spans = Sequences(starts=sequences, windows=windows, num_bytes=num_bytes)
        return EvaluationSet(
            name=name,
            log_probs=log_probs,
            dense=dense,
            part=part,
            sequences=spans,
            unit=unit,
            context=context,
        )

    context = window_contexts(sizes, window)
    return evaluation_set("reset", windows, context), evaluation_set("carried", starts, None)


def window_contexts(sizes: Sequence[int] | np.ndarray, window: int) -> np.ndarray:
    """The span before each window of documents of these sizes, all above 0: [W, 2]."""
    starts = np.r_[0, np.cumsum(sizes)[:-1]]
    windows = windows_of(starts, int(np.sum(sizes)), window)
    document = np.searchsorted(starts, windows, side="right") - 1
    return before(windows, starts[document], window)


def before(at: np.ndarray, document: np.ndarray, window: int) -> np.ndarray:
    """Spans of at most so many bytes before these places, inside the document."""
    return np.stack([np.maximum(document, at - window), at], axis=1)


def spliced(carried: EvaluationSet, window: int, *, seed: int) -> EvaluationSet:
    """Half a window of one document, and then half a window of another from another part.

    Each document is used once, so that pairs are independent. The second half is scored after the
    bytes before it in its own document. The context is that of the first half.

    Raises:
        ValueError: if fewer than two pairs can be made.
    """
    rng = np.random.default_rng(seed)
    half = window // 2
    starts = carried.sequences.starts
    sizes = np.diff(np.r_[starts, carried.sequences.num_bytes])
    waiting, pairs = list(rng.permutation(np.flatnonzero(sizes >= half))), []
    part = carried.part[starts]
    while waiting:
        first = waiting.pop()
        others = (i for i in reversed(range(len(waiting))) if part[waiting[i]] != part[first])
        second = next(others, None)
        if second is not None:
            pairs.append((first, waiting.pop(second)))
    if len(pairs) < 2:
        raise ValueError(
            "`window` must leave 2 pairs of held-out documents of different parts with at least "
            f"{half} bytes each; got window = {window}, which leaves {len(pairs)}."
        )
    pairs = np.array(pairs)
    room = np.floor(rng.random(pairs.shape) * (sizes[pairs] - half + 1)).astype(int)
    offset = starts[pairs] + room
    at = (offset[..., None] + np.arange(half)).reshape(-1)
    edges = np.arange(0, at.size, 2 * half)
    return EvaluationSet(
        name="spliced",
        log_probs=carried.log_probs[at],
        dense=carried.dense[at],
        part=carried.part[at],
        sequences=Sequences(starts=edges, windows=edges, num_bytes=at.size),
        unit=np.arange(edges.size),
        changes=True,
        context=before(offset[:, 0], starts[pairs[:, 0]], window),
    )
