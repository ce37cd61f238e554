"""What a number of nats on held-out documents is: a likelihood, or a bound on it that is drawn.

The left-to-right network says −log p̂ itself. What the masked one pays is an upper bound on it [L5],
an expectation over masks that is estimated by draws: to set the two side by side as equals is to
compare a number with one that is too large by an unknown amount, and noisy.
"""

from typing import Any, Literal

EXACT, BOUND = "validation", "validation_bound"  # in metrics.jsonl and checkpoints
Measure = Literal["exact", "bound"]


def measure_of(config: Any) -> Measure:
    """What the objective of a config measures."""
    return "exact" if config.objective == "autoregressive" else "bound"


def metric_name(config: Any) -> str:
    """The name of its validation among metrics."""
    return EXACT if measure_of(config) == "exact" else BOUND


def measure_words(measure: Measure, num_draws: int, error: float | None) -> str:
    """What a table says of such a number; the standard error is of the draws, per token."""
    if measure == "exact":
        return "exact −log p"
    draws = "1 draw" if num_draws == 1 else f"{num_draws} draws"
    told = "" if error is None else f", s.e. of them {error:.4f}/token"
    return f"upper bound on −log p, {draws} a window{told}"
