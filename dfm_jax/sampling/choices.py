"""Which masked positions a step reveals: choices for `sample_by_choice`.   [S8–S10, S12]

A choice that is blind to this step's draws, and reveals one position a step, makes an exact sampler
(S8): `most_confident()`, `lowest_entropy()`, `largest_margin()`, `random_order()`, `first()`. The
same with several positions a step costs the total correlation inside the sets (S10);
`entropy_bound` bounds it, and `middles` pays nothing on a Markov chain (S12). `most_confident_draw`
reads the draws and makes another distribution, whatever the number of steps (S9).

The factories give the same choice for the same values, because a choice is static: a new one would
be a new program.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.boundary import x_log_ratio
from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.types import Array, Bool, Float, Int


class StepView(NamedTuple):
    """What a choice may look at, in one step of one sequence."""

    log_probs: Float[Array, "N V"]  # log p̂_{1|t}^i(v | X_t), in nats
    draws: Int[Array, " N"]  # a token of each row; a blind choice does not read them
    pending: Bool[Array, " N"]  # True where X_t is a mask
    ranks: Int[Array, " N"]  # a random order of the positions, new in every step; it breaks ties
    step: Int[Array, ""]  # from 0 on


class Choice(NamedTuple):
    """`select(view) -> bool [N]`: the pending positions that a step reveals, one at least.

    With `blind` the draws are not read. `most` is the largest number of positions that a step can
    reveal; None means that only N bounds it. All randomness of a choice comes from `view.ranks`.
    """

    select: Callable[[StepView], Array]
    blind: bool
    most: int | None

    @property
    def is_exact(self) -> bool:
        """Whether exact posteriors give exact samples, for any data (S8)."""
        return self.blind and self.most == 1


Count = int | Sequence[int]  # how many positions each step reveals, or every step the same
MOST_STRIDE = 2**16


def _counts(count: Count) -> tuple[int, ...]:
    """A count as Python numbers; whatever is no whole number from 1 on is refused by name."""
    counts = count if isinstance(count, Sequence | np.ndarray) else (count,)
    require(len(counts) > 0, "`count` must hold at least one number", count)
    return tuple(_whole("count", one) for one in counts)


def _whole(name: str, value: Any, at_most: int | None = None) -> int:
    """A whole number from 1 on, of Python or NumPy, as a Python number."""
    value = value.item() if isinstance(value, np.generic) else value
    check_count(name, value, at_most=at_most)
    return value


def _places(scores: Array, view: StepView) -> Array:
    """The place of every position in the order of its score, the largest first; masks come first.

    Ties are broken by `view.ranks`.
    """
    order = jnp.lexsort((view.ranks, -scores, ~view.pending))
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))


def top(scores: Array, count: Array | int, view: StepView) -> Array:
    """The `count` pending positions of the largest scores [N]; ties are broken at random."""
    return (_places(scores, view) < count) & view.pending


def entropies(log_probs: Array) -> Array:
    """H(p̂^i) of every row, in nats: [N]."""
    probs = jnp.exp(log_probs)
    return -jnp.sum(x_log_ratio(probs, jnp.ones_like(probs)), axis=-1)


def _largest(view: StepView) -> Array:
    return jnp.max(view.log_probs, axis=-1)


def _margin(view: StepView) -> Array:
    two = jnp.exp(jax.lax.top_k(view.log_probs, min(2, view.log_probs.shape[-1]))[0])
    return two[:, 0] - (two[:, 1] if two.shape[1] > 1 else 0.0)


def _drawn(view: StepView) -> Array:
    return jnp.take_along_axis(view.log_probs, view.draws[:, None], axis=-1)[:, 0]


# The score of each position, by the name of its factory.
_SCORES: dict[str, Callable[[StepView], Array]] = {
    "random_order": lambda view: jnp.zeros(view.pending.shape),
    "first": lambda view: -jnp.arange(view.pending.shape[0]),
    "most_confident": _largest,
    "largest_margin": _margin,
    "lowest_entropy": lambda view: -entropies(view.log_probs),
    "most_confident_draw": _drawn,
}


@functools.cache
def _scored(name: str, counts: tuple[int, ...]) -> Choice:
    """The positions of the largest scores; after the last count every step has the last one."""
    score = _SCORES[name]

    def select(view: StepView) -> Array:
        last = len(counts) - 1
        count = jnp.asarray(counts)[jnp.minimum(view.step, last)] if last else counts[0]
        return top(score(view), count, view)

    return Choice(select, name != "most_confident_draw", max(counts))


def random_order(count: Count = 1) -> Choice:
    """Positions drawn uniformly from the pending ones: exact with one a step.   [S8]

    Args:
        count: How many positions a step reveals; or several numbers, one for each step, as
            `step_sizes` makes them, whose last one holds for all later steps.

    Raises:
        ValueError: if a count is no whole number from 1 on.
    """
    return _scored("random_order", _counts(count))


def first(count: Count = 1) -> Choice:
    """The leftmost pending positions: exact with one a step, which is autoregression.   [S1, S8]

    Args:
        count: See `random_order`.
    """
    return _scored("first", _counts(count))


def most_confident(count: Count = 1) -> Choice:
    """The largest max_v p̂^i(v | X_t), which does not look at a draw: exact with one a step.   [S8]

    Do not confuse it with `most_confident_draw`.

    Args:
        count: See `random_order`.
    """
    return _scored("most_confident", _counts(count))


def largest_margin(count: Count = 1) -> Choice:
    """The largest difference of the two largest probabilities: exact with one a step.   [S8]

    Args:
        count: See `random_order`.
    """
    return _scored("largest_margin", _counts(count))


def lowest_entropy(count: Count = 1) -> Choice:
    """The smallest H(p̂^i): exact with one a step.   [S8]

    Args:
        count: See `random_order`.
    """
    return _scored("lowest_entropy", _counts(count))


def most_confident_draw(count: Count = 1) -> Choice:
    """The positions whose *drawn* tokens have the largest probabilities: not exact.   [S9]

    It is a common default ("low-confidence remasking" draws all positions and masks all but the
    most confident ones again). Likely tokens are kept more often than they are drawn, so the
    distribution of the samples is not the model's, at any number of steps.
    `experiments.samplers` measures how far it is.

    Args:
        count: See `random_order`.
    """
    return _scored("most_confident_draw", _counts(count))


def entropy_bound(bound: float) -> Choice:
    """As many positions of the smallest entropies as Σ H − max H ≤ γ allows, one at least.   [S10]

        KL(q ‖ q̂) ≤ γ E_q[the number of steps that reveal two or more],  for exact posteriors

    Total correlation is at most Σ_i H(X^i) − max_i H(X^i). It is blind to draws.

    Source of the sampler: Ben-Hamu et al. (2505.24857).

    Args:
        bound: γ in nats, 0 or more.

    Raises:
        ValueError: if γ is negative or infinite.
    """
    check_interval("bound", bound, 0, jnp.inf, ends="[)")
    return _entropy_bound(float(bound))


@functools.cache
def _entropy_bound(bound: float) -> Choice:
    def select(view: StepView) -> Array:
        entropy = entropies(view.log_probs)
        places = _places(-entropy, view)
        ascending = jnp.zeros_like(entropy).at[places].set(entropy)
        # With the k smallest, Σ H − max H is the sum of the k − 1 smallest.
        before = jnp.concatenate([jnp.zeros(1), jnp.cumsum(ascending)[:-1]])
        # The sums grow, so what is allowed is a prefix.
        return (places < jnp.sum(before <= bound)) & view.pending

    return Choice(select, True, None)


def confidence_threshold(threshold: float) -> Choice:
    """All positions with max_v p̂^i(v | X_t) ≥ τ, or the most confident one if there is none.

    It is blind to draws; S10 gives its cost, which τ bounds only through the entropies.

    Raises:
        ValueError: if τ lies outside (0, 1].
    """
    check_interval("threshold", threshold, 0, 1, ends="(]")
    return _confidence_threshold(float(threshold))


@functools.cache
def _confidence_threshold(threshold: float) -> Choice:
    def select(view: StepView) -> Array:
        sure = jnp.exp(_largest(view)) >= threshold
        return (sure & view.pending) | top(_largest(view), 1, view)

    return Choice(select, True, None)


@functools.cache
def middles() -> Choice:
    """The middle of every run of masks, all at once: bisection.   [S12]

    On a Markov chain of first order the middles are independent given the revealed tokens around
    them, so exact posteriors give exact samples in ⌈log₂(N + 1)⌉ steps. On other data S10 gives the
    cost.
    """

    def select(view: StepView) -> Array:
        here = jnp.arange(view.pending.shape[0])
        # The revealed positions around each mask; −1 and N stand for the ends.
        left = jax.lax.cummax(jnp.where(view.pending, -1, here))
        right = jax.lax.cummin(jnp.where(view.pending, here.shape[0], here), reverse=True)
        return view.pending & (here == (left + right) // 2)

    return Choice(select, True, None)


def strided(stride: int) -> Choice:
    """Every L-th position at once, in L steps: what lies far apart hardly depends on each other.

    A step reveals the pending positions with i mod L = j, for the next offset j that has any. The
    offsets are ⌊L v⌋ for v = 0, ½, ¼, ¾, … (van der Corput), so the first ones lie far apart. S10
    gives the cost.

    Source of dilated sets: Luxembourg et al. (2506.19037).

    Raises:
        ValueError: if `stride` is no whole number in [1, 65536].
    """
    return _strided(_whole("stride", stride, at_most=MOST_STRIDE))


@functools.cache
def _strided(stride: int) -> Choice:
    digits = max(1, (stride - 1).bit_length())
    reversed_digits = (int(f"{number:0{digits}b}"[::-1], 2) for number in range(2**digits))
    offsets = list(dict.fromkeys(stride * number // 2**digits for number in reversed_digits))

    def select(view: StepView) -> Array:
        turn = jnp.argsort(jnp.asarray(offsets))[jnp.arange(view.pending.shape[0]) % stride]
        now = jnp.min(jnp.where(view.pending, turn, stride))
        return view.pending & (turn == now)

    return Choice(select, True, None)


def in_blocks(choice: Choice, block_size: int) -> Choice:
    """A choice inside the first block of positions that is not finished: semi-autoregressive.

    What is exact stays exact. Blocks are [0, L), [L, 2L), …; the last one may be shorter.

    Raises:
        ValueError: if `block_size` is no whole number from 1 on.
    """
    return _in_blocks(choice, _whole("block_size", block_size))


@functools.cache
def _in_blocks(choice: Choice, block_size: int) -> Choice:
    def select(view: StepView) -> Array:
        block = jnp.arange(view.pending.shape[0]) // block_size
        now = jnp.min(jnp.where(view.pending, block, jnp.iinfo(block.dtype).max))
        return choice.select(view._replace(pending=view.pending & (block == now)))

    most = block_size if choice.most is None else min(block_size, choice.most)
    return Choice(select, choice.blind, most)
