"""How many positions to reveal in each step, where positions are drawn at random.   [S10]"""

from collections.abc import Iterator

import numpy as np

from dfm_jax.checks import check_count, require
from dfm_jax.types import ArrayLike, Float, typed


@typed
def step_cost(information: Float[ArrayLike, " N"], sizes: tuple[int, ...]) -> float:
    """The expected total correlation of a run in nats, for positions drawn uniformly.   [S10]

        Σ_s [ b_s h(a_s) − Σ_{j < b_s} h(a_s + j) ],  a_s = b_0 + … + b_{s−1}

    h(a) = E H(X^i | X^A) over a uniformly random set A of a positions and a random i outside it;
    with a prompt, N and h are of the free positions, given the prompt. By the chain rule the sum
    over j is E H(X^B | X^A). It bounds KL(q ‖ q̂) from above.

    Args:
        information: h(0), …, h(N − 1) in nats; it does not rise.
        sizes: b_0, b_1, …, which sum to N.

    Raises:
        ValueError: if h is not finite; if a size is below 1; if the sizes do not sum to N.
    """
    h = _finite(information)
    for size in sizes:
        check_count("sizes", size)
    total = sum(sizes)
    require(total == len(h), f"`sizes` must sum to N = {len(h)}", total, name="sum(sizes)")
    ends = np.cumsum(sizes)
    starts = ends - np.asarray(sizes)
    below = np.concatenate([[0.0], np.cumsum(h)])
    return float(np.sum(np.asarray(sizes) * h[starts] - (below[ends] - below[starts])))


@typed
def step_sizes(information: Float[ArrayLike, " N"], num_steps: int) -> tuple[int, ...]:
    """The sizes of T steps with the least `step_cost`, by dynamic programming.   [S10]

    The result is the `count` of `choices.random_order`. It is the best for positions that are drawn
    uniformly, and for no other choice: h does not know which positions depend on each other.

    Source: Chen, Cong & Li (2511.04647) and 2510.25544, who find the best sizes from this curve.

    Args:
        information: h(0), …, h(N − 1) in nats, as for `step_cost`.
        num_steps: T, at most N.

    Raises:
        ValueError: if h is not finite, or T lies outside [1, N].
    """
    num_positions = len(_finite(information))
    check_count("num_steps", num_steps, at_most=num_positions)
    before = [through for _, through in zip(range(num_steps), _table(information), strict=False)]
    sizes, at = [], num_positions
    for _, origin in reversed(before):
        sizes.append(int(at - origin[at]))
        at = origin[at]
    return tuple(reversed(sizes))


@typed
def least_step_costs(information: Float[ArrayLike, " N"]) -> Float[np.ndarray, " N"]:
    """The `step_cost` of the best sizes for T = 1, …, N steps, in nats.   [S10]

    Args:
        information: h(0), …, h(N − 1), as for `step_cost`.

    Raises:
        ValueError: if h is not finite.
    """
    return np.array([cost[-1] for cost, _ in _table(information)])


def _finite(information: ArrayLike) -> np.ndarray:
    h = np.asarray(information, float)
    require(h.size > 0, "`information` must hold at least one number", h.shape)
    require(np.isfinite(h), "`information` must be finite", h)
    return h


def _table(information: ArrayLike) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For T = 1, …, N: the least cost of revealing a number of positions, and the last start.

    Both are [N + 1], by the number of positions.
    """
    h = _finite(information)
    below = np.concatenate([[0.0], np.cumsum(h)])
    end = np.arange(len(h) + 1)
    # cost[a, c]: a step from a to c revealed positions.
    cost = np.full((len(end), len(end)), np.inf)
    for start, entropy in enumerate(h):
        later = slice(start + 1, None)
        cost[start, later] = (end[later] - start) * entropy - (below[later] - below[start])
    best = np.where(end == 0, 0.0, np.inf)
    for _ in h:
        through = best[:, None] + cost
        best = np.min(through, axis=0)
        yield best, np.argmin(through, axis=0)
