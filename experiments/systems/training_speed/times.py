"""What times of two sides, taken in turns, say about their ratio."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MET = 0.85  # of the goal: less is within what such timings are worth


def block_times(answers: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Seconds per step, the median of each block."""
    return np.array([np.median(answer["seconds"]) for answer in answers])


def ratio(theirs: np.ndarray, ours: np.ndarray, *, seed: int) -> tuple[float, float, float]:
    """median(theirs) / median(ours) over rounds, and the ends of its 95 % interval.

    Rounds are resampled whole, since both sides share a round's load.
    """
    rng = np.random.default_rng(seed)
    rounds = rng.integers(len(ours), size=(10_000, len(ours)))
    drawn = np.median(theirs[rounds], axis=1) / np.median(ours[rounds], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.median(theirs) / np.median(ours)), float(low), float(high)
