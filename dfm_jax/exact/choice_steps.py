"""Steps of samplers that draw all masks and keep some, with every draw listed."""

import numpy as np

from dfm_jax.exact.chains import products
from dfm_jax.exact.checks import (
    RefusedError,
    check_distributions,
    check_real,
    check_shape,
    check_states,
)
from dfm_jax.exact.distributions import states


def choice_step(probs: np.ndarray, posteriors: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """One step of a sampler from masks: it draws all masked tokens and keeps some  [S8–S10].

        y^i ~ posteriors[z, i] at the masks of z, independently;  x^i = y^i where kept, else z^i

    The positions that are kept may depend on all that was drawn: every draw y is listed. A mask is
    the state V; tokens stay.

    Args:
        probs: The distribution before the step, [Z], Z = (V + 1)^N.
        posteriors: [Z, N, V]; distributions at masks where p(z) > 0, other rows are not read.
        kept: Bool, [Z, Y, N] with Y = V^N draws in lexicographic order, or [Z, 1, N] if it does not
            depend on them.

    Returns:
        [Z].

    Raises:
        ValueError: if an argument has another shape; if a row that is read is not a distribution.
    """
    probs = check_distributions("probs", probs)
    posteriors = check_real("posteriors", posteriors)
    if posteriors.ndim != 3 or 0 in posteriors.shape:
        rule = "`posteriors` must have axes [Z, N, V]"
        raise RefusedError(f"{rule}; got posteriors.shape = {list(posteriors.shape)}.")
    _, num_positions, num_tokens = posteriors.shape
    total = check_states(num_tokens + 1, num_positions)
    check_shape("posteriors", posteriors, (total, num_positions, num_tokens))
    check_shape("probs", probs, (total,))
    z, draws = states(num_tokens + 1, num_positions), states(num_tokens, num_positions)
    kept = np.asarray(kept)
    width = 1 if kept.ndim == 3 and kept.shape[1] == 1 else len(draws)
    check_shape("kept", kept, (total, width, num_positions))
    if kept.dtype != bool:
        raise RefusedError(f"`kept` must be bool; got kept.dtype = {kept.dtype}.")
    live = probs > 0.0
    masked = z[live] == num_tokens
    rows = np.where(masked[:, :, None], posteriors[live], 1.0 / num_tokens)
    check_distributions("posteriors", rows)
    weights = probs[live, None] * products(rows)  # p(z) P(y | z): [live, Y]
    moves = kept[live] & masked[:, None]
    ends = np.where(moves, draws[None], z[live][:, None])
    strides = (num_tokens + 1) ** np.arange(num_positions - 1, -1, -1)
    return np.bincount((ends @ strides).reshape(-1), weights.reshape(-1), minlength=total)
