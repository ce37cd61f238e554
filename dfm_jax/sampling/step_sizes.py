"""How many positions to reveal in each step, where positions are drawn at random.   [S10]"""

import numpy as np

from dfm_jax.checks import check_count, require
from dfm_jax.types import ArrayLike, Float, typed


@typed
def step_cost(information: Float[ArrayLike, " N"], sizes: tuple[int, ...]) -> float:
    """The expected total correlation of a run in nats, for positions drawn uniformly.   [S10]

        Σ_s [ b_s h(a_s) − Σ_{j < b_s} h(a_s + j) ],  a_s = b_0 + … + b_{s−1}

    h(a) = E H(X^i | X^A) over a uniformly random set A of a positions and a random i outside it. By
    the chain rule the sum over j is E H(X^B | X^A). It bounds KL(q ‖ q̂) from above.

    Args:
        information: h(0), …, h(N − 1) in nats; it does not rise.
        sizes: b_0, b_1, …, which sum to N.
    """
    h = np.asarray(information, float)
    require(
        sum(sizes) == len(h), f"`sizes` must sum to N = {len(h)}", sum(sizes), name="sum(sizes)"
    )
    ends = np.cumsum(sizes)
    starts = ends - np.asarray(sizes)
    below = np.concatenate([[0.0], np.cumsum(h)])
    return float(np.sum(np.asarray(sizes) * h[starts] - (below[ends] - below[starts])))


@typed
def step_sizes(information: Float[ArrayLike, " N"], num_steps: int) -> tuple[int, ...]:
    """The sizes of T steps with the least `step_cost`, by dynamic programming.   [S10]

    The result is the `count` of `random_order`. It is the best for positions that are drawn
    uniformly, and for no other choice: h does not know which positions depend on each other.

    Source: Chen, Cong & Li (2511.04647) and 2510.25544, who find the best sizes from this curve.

    Args:
        information: h(0), …, h(N − 1) in nats, as for `step_cost`.
        num_steps: T, at most N.

    Raises:
        ValueError: if h is not finite, or T lies outside [1, N].
    """
    h = np.asarray(information, float)
    require(np.isfinite(h), "`information` must be finite", h)
    num_positions = len(h)
    check_count("num_steps", num_steps, at_most=num_positions)
    below = np.concatenate([[0.0], np.cumsum(h)])
    end = np.arange(num_positions + 1)
    # cost[a, c]: a step from a to c revealed positions.
    cost = np.full((num_positions + 1, num_positions + 1), np.inf)
    for start in range(num_positions):
        size = end[start + 1 :] - start
        cost[start, start + 1 :] = size * h[start] - (below[start + 1 :] - below[start])
    best = np.where(end == 0, 0.0, np.inf)
    steps = []
    for _ in range(num_steps):
        through = best[:, None] + cost
        steps.append(np.argmin(through, axis=0))
        best = np.min(through, axis=0)
    sizes, at = [], num_positions
    for before in reversed(steps):
        sizes.append(int(at - before[at]))
        at = before[at]
    return tuple(reversed(sizes))
