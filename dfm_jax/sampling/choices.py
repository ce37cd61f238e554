"""Which masked positions a step reveals: choices for `sample_by_choice`.   [S8–S10, S12]

A choice that is blind to this step's draws, and reveals one position a step, makes an exact sampler
(S8): `most_confident()`, `lowest_entropy()`, `largest_margin()`, `random_order()`, `first()`. The
same with several positions a step costs the total correlation inside the sets (S10);
`entropy_bound` bounds it, and `middles` pays nothing on a Markov chain (S12). `most_confident_draw`
reads the draws and makes another distribution, whatever the number of steps (S9).

The factories give the same choice for the same arguments: a choice is static.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

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


Count = int | tuple[int, ...]  # how many positions each step reveals, or every step the same


def _count_of(count: Count) -> tuple[Callable[[Array], Array | int], int]:
    """The number at a step, and the largest; after the last number every step has the last one."""
    counts = (count,) if isinstance(count, int) else tuple(count)
    require(len(counts) > 0, "`count` must hold at least one number", count)
    for number in counts:
        check_count("count", number)
    if len(counts) == 1:
        return lambda step: counts[0], counts[0]
    return lambda step: jnp.asarray(counts)[jnp.minimum(step, len(counts) - 1)], max(counts)


def _places(scores: Array, view: StepView) -> Array:
    """The place of every position in the order of its score, the largest first; masks come first.

    Ties are broken by `view.ranks`.
    """
    # Two sorts: what a key holds at positions that are not pending is never compared with a score.
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


def _scored(score: Callable[[StepView], Array], count: Count, *, blind: bool = True) -> Choice:
    at, most = _count_of(count)
    return Choice(lambda view: top(score(view), at(view.step), view), blind, most)


@functools.cache
def random_order(count: Count = 1) -> Choice:
    """Positions drawn uniformly from the pending ones: exact with one a step.   [S8]

    Args:
        count: How many positions a step reveals; or a tuple with a number for each step, as
            `step_sizes` makes it, whose last number holds for all later steps.
    """
    return _scored(lambda view: jnp.zeros(view.pending.shape), count)


@functools.cache
def first(count: Count = 1) -> Choice:
    """The leftmost pending positions: exact with one a step, which is autoregression.   [S1, S8]"""
    return _scored(lambda view: -jnp.arange(view.pending.shape[0]), count)


@functools.cache
def most_confident(count: Count = 1) -> Choice:
    """The largest max_v p̂^i(v | X_t), which does not look at a draw: exact with one a step.   [S8]

    Do not confuse it with `most_confident_draw`.
    """
    return _scored(_largest, count)


@functools.cache
def largest_margin(count: Count = 1) -> Choice:
    """The largest difference of the two largest probabilities: exact with one a step.   [S8]"""
    return _scored(_margin, count)


@functools.cache
def lowest_entropy(count: Count = 1) -> Choice:
    """The smallest H(p̂^i): exact with one a step.   [S8]"""
    return _scored(lambda view: -entropies(view.log_probs), count)


@functools.cache
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

    def select(view: StepView) -> Array:
        entropy = entropies(view.log_probs)
        places = _places(-entropy, view)
        ascending = jnp.zeros_like(entropy).at[places].set(entropy)
        # With the k smallest, Σ H − max H is the sum of the k − 1 smallest.
        before = jnp.concatenate([jnp.zeros(1), jnp.cumsum(ascending)[:-1]])
        # The sums grow, so what is allowed is a prefix.
        return (places < jnp.sum(before <= bound)) & view.pending

    return Choice(select, True, None)


@functools.cache
def confidence_threshold(threshold: float) -> Choice:
    """All positions with max_v p̂^i(v | X_t) ≥ τ, or the most confident one if there is none.

    It is blind to draws; S10 gives its cost, which τ bounds only through the entropies.

    Raises:
        ValueError: if τ lies outside (0, 1].
    """
    check_interval("threshold", threshold, 0, 1, ends="(]")

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


@functools.cache
def strided(stride: int) -> Choice:
    """Every `stride`-th position at once, in `stride` steps; what lies far apart hardly depends.

    The step s reveals the pending i with i mod L = j_s. The offsets j_0, j_1, … lie as far from the
    earlier ones as they can, in the order of the reversed binary digits. S10 gives the cost.

    Source of dilated sets: Luxembourg et al. (2506.19037).

    Raises:
        ValueError: if `stride` is no positive number.
    """
    check_count("stride", stride)
    digits = max(1, (stride - 1).bit_length())
    reverse = [int(f"{number:0{digits}b}"[::-1], 2) for number in range(2**digits)]
    offsets = tuple(number for number in reverse if number < stride)

    def select(view: StepView) -> Array:
        offset = jnp.arange(view.pending.shape[0]) % stride
        # A prompt may hold all positions of an offset: the first one that has a mask has its turn.
        turn = jnp.argsort(jnp.asarray(offsets))[offset]
        now = jnp.min(jnp.where(view.pending, turn, stride))
        return view.pending & (turn == now)

    return Choice(select, True, None)


@functools.cache
def most_confident_draw(count: Count = 1) -> Choice:
    """The positions whose *drawn* tokens have the largest probabilities: not exact.   [S9]

    It is a common default ("low-confidence remasking" draws all positions and masks all but the
    most confident ones again). Likely tokens are kept more often than they are drawn, so the
    distribution of the samples is not the model's at any number of steps: see
    `experiments.samplers` for how far it is.
    """

    def score(view: StepView) -> Array:
        return jnp.take_along_axis(view.log_probs, view.draws[:, None], axis=-1)[:, 0]

    return _scored(score, count, blind=False)


@functools.cache
def in_blocks(choice: Choice, block_size: int) -> Choice:
    """A choice inside the first block of positions that is not finished: semi-autoregressive.

    What is exact stays exact. Blocks are [0, L), [L, 2L), …; the last one may be shorter.

    Raises:
        ValueError: if `block_size` is no positive number.
    """
    check_count("block_size", block_size)

    def select(view: StepView) -> Array:
        block = jnp.arange(view.pending.shape[0]) // block_size
        now = jnp.min(jnp.where(view.pending, block, jnp.iinfo(block.dtype).max))
        return choice.select(view._replace(pending=view.pending & (block == now)))

    most = block_size if choice.most is None else min(block_size, choice.most)
    return Choice(select, choice.blind, most)
