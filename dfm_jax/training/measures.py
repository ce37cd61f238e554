"""What a number of nats on held-out documents is: a likelihood, or a bound on it that is drawn.

The left-to-right network says −log p̂ itself. What the masked one pays is an upper bound on it [L5],
an expectation over masks that is estimated by draws: to set the two side by side as equals is to
compare a number with one that is too large by an unknown amount, and noisy.
"""

from dfm_jax.interfaces import Measure

METRICS: dict[Measure, str] = {  # in metrics.jsonl and checkpoints
    "exact": "validation",
    "bound": "validation_bound",
    "loss": "validation_loss",
}


def metric_name(measure: Measure) -> str:
    """The name of a validation among metrics."""
    return METRICS[measure]


def measure_words(measure: Measure, num_draws: int, error: float | None) -> str:
    """What a table says of such a number; the standard error is of the draws, per token."""
    if measure == "exact":
        return "exact −log p"
    if measure == "loss":
        return "the loss, neither −log p nor a bound on it"
    draws = "1 draw" if num_draws == 1 else f"{num_draws} draws"
    told = "" if error is None else f", s.e. of them {error:.4f}/token"
    return f"upper bound on −log p, {draws} a window{told}"
