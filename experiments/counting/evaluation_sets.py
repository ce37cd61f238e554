"""Text that counted experts generate themselves, and the scores of models."""

from collections.abc import Sequence

import numpy as np

from dfm_jax.comparison.evaluation_sets import EvaluationSet
from dfm_jax.comparison.gates import Sequences
from experiments.lib import kneser_ney
from experiments.lib.kneser_ney import Model


def generated(
    experts: Sequence[Model],
    dense: Model,
    weights: np.ndarray,
    num_sequences: int,
    window: int,
    *,
    seed: int,
) -> EvaluationSet:
    """Text that the experts generated, with parts drawn by their weights; here they are exact."""
    rng = np.random.default_rng(seed)
    parts = np.sort(rng.choice(len(experts), size=num_sequences, p=weights))
    counts = np.bincount(parts, minlength=len(experts))
    drawn = [
        kneser_ney.sample(model, count, window, rng)
        for model, count in zip(experts, counts, strict=True)
        if count
    ]
    texts = [row.tobytes() for rows in drawn for row in rows]
    scores = score_all([*experts, dense], texts)
    starts = np.arange(num_sequences) * window
    return EvaluationSet(
        name="generated",
        log_probs=scores[:, :-1],
        dense=scores[:, -1],
        part=np.repeat(parts, window),
        sequences=Sequences(starts=starts, windows=starts, num_bytes=num_sequences * window),
        unit=np.arange(num_sequences),
    )


def score_all(models: Sequence[Model], texts: Sequence[bytes]) -> np.ndarray:
    """log p(byte | the bytes before it) by each model at its own order: [N, models], nats."""
    asked = kneser_ney.queries(texts, max(model.order for model in models))
    return np.stack([kneser_ney.log_probs(model, asked) for model in models], axis=1)
