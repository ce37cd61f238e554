"""The ratio of the times of two sides that took turns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MET = 0.95  # of the goal: less is within what such timings are worth


def block_times(answers: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The seconds per step, as the median of each block."""
    return np.array([np.median(answer["seconds"]) for answer in answers])


def ratio(theirs: np.ndarray, ours: np.ndarray, *, seed: int) -> tuple[float, float, float]:
    """median(theirs) / median(ours) over rounds, and the ends of its 95 % interval.

    Whole rounds are resampled, because both sides share the load of a round.
    """
    rng = np.random.default_rng(seed)
    rounds = rng.integers(len(ours), size=(10_000, len(ours)))
    drawn = np.median(theirs[rounds], axis=1) / np.median(ours[rounds], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.median(theirs) / np.median(ours)), float(low), float(high)
