"""Drawing from masks in an order that a choice makes while it goes, and correctors.   [S8–S12]"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_count, check_tokens, require
from dfm_jax.fast import sample_categorical
from dfm_jax.interfaces import Denoiser
from dfm_jax.sampling.choices import Choice, StepView
from dfm_jax.sampling.denoisers import log_probs, whole
from dfm_jax.sampling.jumps import VALID, Run, checked_run
from dfm_jax.types import Array, Context, Float, Int, Key, Tokens, typed

REDRAWN = f"{VALID}, and `probability` must lie in [0, 1]"
PROGRESS = "The choice must reveal at least one position in each step while there are masks"


class ChosenSample(NamedTuple):
    """A sequence, and when each of its positions was revealed."""

    tokens: Int[Array, " N"]
    revealed_at: Int[Array, " N"]  # the step, from 0 on; −1 where `x_0` had a token
    num_steps: Int[Array, ""]  # evaluations of the denoiser


@typed
def sample_by_choice(
    key: Key,
    params: Any,
    denoiser: Denoiser,
    x_0: Tokens,
    choice: Choice,
) -> ChosenSample:
    """Draw all masks of a sequence, in an order that is chosen from what the denoiser says.   [S8]

        B ⊆ masks from p̂_{1|t}(· | X_t),  X^i ~ p̂_{1|t}^i(· | X_t) for i ∈ B, and so on

    With one position a step and a choice that is blind to the draws, exact posteriors give exact
    samples (S8). With an inexact network each choice gives another distribution. Several positions
    a step cost S10. Tokens that are no masks are given and stay. The denoiser is told the share of
    positions that are revealed as its time, which a network for masks does not need (P7).

    Args:
        key: The key of this sequence; `jax.vmap` over keys makes the batch.
        params: The parameters of the denoiser.
        denoiser: A static function; keep one and do not make one per call.
        x_0: Masks, with id V, and given tokens.
        choice: See `choices`; it is static.

    Raises:
        ValueError: if an id lies outside [0, V]; if the logits at a mask are not a distribution, or
            the choice reveals nothing (under an outer jit only with checkify).
    """
    run = checked_run(params, denoiser, x_0, source="mask", carry_over=True)
    found = _by_choice(key, params, jnp.asarray(x_0), None, run=run, choice=choice)
    require(found.valid, VALID, found.valid, name="valid")
    require(found.progress, PROGRESS, found.progress, name="progress")
    return ChosenSample(found.x_t, found.revealed_at, found.step)


class ChosenLogProb(NamedTuple):
    """The log-probability of a sequence, and what it took."""

    log_prob: Float[Array, ""]  # in nats
    revealed_at: Int[Array, " N"]  # as in `ChosenSample`
    num_steps: Int[Array, ""]


@typed
def choice_log_prob(
    key: Key, params: Any, denoiser: Denoiser, x: Tokens, x_0: Tokens, choice: Choice
) -> ChosenLogProb:
    """The log-probability that `sample_by_choice` draws x, for a choice that is blind to the draws.

        Σ_s Σ_{i ∈ B_s} log p̂_{1|t}^i(x^i | X_s),  B_s = choice(X_s),  X_s = x if revealed   [S10]

    If the choice is deterministic (`first`, `middles`, `strided`, and the others where no scores
    tie), it is log q̂(x) exactly, for any network. A choice that uses the random ranks has several
    ways to x: then the mean over keys is at most log q̂(x). It is −∞ if the sampler cannot draw x.
    With exact posteriors and x ~ q, log q(x) less this is an unbiased estimate of the total
    correlation in S10, which is the divergence or, for random choices, bounds it.

    Args:
        key: The key of the ranks.
        params: The parameters of the denoiser.
        denoiser: A static function.
        x: The sequence; where `x_0` has a token, it must have the same.
        x_0: Masks, with id V, and given tokens, where the sampler starts.
        choice: A choice that is blind to the draws; static.

    Raises:
        ValueError: if the choice reads the draws; if an id of `x` lies outside [0, V), or differs
            from a token of `x_0`; as `sample_by_choice`.
    """
    rule = "`choice` must be blind to the draws: another one has no such product"
    require(choice.blind, rule, choice.blind, name="choice.blind")
    run = checked_run(params, denoiser, x_0, source="mask", carry_over=True)
    x, x_0 = jnp.asarray(x), jnp.asarray(x_0)
    check_tokens("x", x, run.num_states - 1)
    rule = "`x` must have the tokens that `x_0` has"
    require((x_0 == run.num_states - 1) | (x == x_0), rule, x)
    found = _by_choice(key, params, x_0, x, run=run, choice=choice)
    require(found.valid, VALID, found.valid, name="valid")
    require(found.progress, PROGRESS, found.progress, name="progress")
    return ChosenLogProb(found.log_prob, found.revealed_at, found.step)


class _Loop(NamedTuple):
    x_t: Array
    log_prob: Array  # of what was revealed so far
    revealed_at: Array
    step: Array
    valid: Array
    progress: Array


@partial(jax.jit, static_argnames=("run", "choice"))
def _by_choice(
    key: Key, params: Any, x_0: Array, told: Array | None, *, run: Run, choice: Choice
) -> _Loop:
    """Reveal until no mask is left: what is drawn, or what is `told`."""
    mask_id, num_positions = run.num_states - 1, x_0.shape[0]

    def goes_on(loop: _Loop) -> Array:
        possible = loop.log_prob > -jnp.inf  # else nothing that follows has a posterior
        return jnp.any(loop.x_t == mask_id) & loop.valid & loop.progress & possible

    def step(loop: _Loop) -> _Loop:
        pending = loop.x_t == mask_id
        logits = whole(run.denoiser)(params, loop.x_t, 1 - jnp.mean(pending))
        view, valid = viewed(jax.random.fold_in(key, loop.step), logits, pending, loop.step)
        chosen = choice.select(view) & pending
        takes = chosen & valid
        tokens = view.draws if told is None else told
        own = jnp.take_along_axis(view.log_probs, tokens[:, None], axis=-1)[:, 0]
        return _Loop(
            jnp.where(takes, tokens.astype(x_0.dtype), loop.x_t),
            loop.log_prob + jnp.sum(jnp.where(takes, own, 0.0)),
            jnp.where(takes, loop.step, loop.revealed_at),
            loop.step + 1,
            valid,
            jnp.any(chosen),
        )

    # As wide as the logits are, and float32 at least.
    shape = jax.eval_shape(lambda: log_probs(whole(run.denoiser)(params, x_0, jnp.zeros(()))))
    yes = jnp.array(True)
    begin = (x_0, jnp.zeros((), shape.dtype), jnp.full(num_positions, -1), jnp.array(0), yes, yes)
    return jax.lax.while_loop(goes_on, step, _Loop(*begin))


def viewed(key: Key, logits: Array, pending: Array, step: Array) -> tuple[StepView, Array]:
    """What a choice sees of a step, and whether every pending row is a distribution."""
    draw_key, rank_key = jax.random.split(key)  # the ranks do not depend on what is drawn
    good = jnp.isfinite(jnp.max(logits, axis=-1))
    logits = jnp.where(good[:, None], logits, 0.0)
    ranks = jax.random.permutation(rank_key, pending.shape[0])
    rows = log_probs(logits)
    view = StepView(rows, sample_categorical(draw_key, rows), pending, ranks, step)
    return view, jnp.all(good | ~pending)


@typed
def sample_redraws(
    key: Key,
    params: Any,
    denoiser: Denoiser,
    x: Tokens,
    num_redraws: int,
    *,
    context: Context | None = None,
    probability: Callable[[Array], Array] | None = None,
) -> Tokens:
    """Redraw single tokens from their posteriors given all others: a corrector that is exact. [S11]

        i uniform among revealed positions outside the context,
        X^i ~ (1 − g_i) δ_{X^i} + g_i p̂^i(· | X^{≠i})

    It keeps every p_t of a flow from masks, and the data themselves, if the denoiser is exact and
    g_i does not read X^i. So `probability` is given the row of position i with i masked. A
    probability that reads the token itself, such as "the least confident token is drawn again",
    does not keep the distribution (S11).

    Each redraw takes one evaluation of the denoiser.

    Args:
        key: The key of this sequence.
        params: The parameters of the denoiser.
        denoiser: A static function.
        x: A sequence that may hold masks, id V; they stay.
        num_redraws: The number of redraws.
        context: True where a token is given and stays.
        probability: g: log p̂^i(· | X^{≠i}) [V] → a number in [0, 1]; it is static. None means 1.

    Raises:
        ValueError: if an id lies outside [0, V]; if no position is revealed outside the context; if
            `probability` does not give one number in [0, 1]; if the logits of a position that is
            redrawn are not a distribution (under an outer jit only with checkify).
    """
    run = checked_run(params, denoiser, x, source="mask", carry_over=True)
    check_count("num_redraws", num_redraws)
    x, mask_id = jnp.asarray(x), run.num_states - 1
    check_tokens("x", x, run.num_states)
    if probability is not None:
        shape = jax.eval_shape(probability, jnp.zeros(mask_id)).shape
        rule = "`probability` must give one number for the row of a position"
        require(shape == (), rule, shape, name="probability(row).shape")
    free = jnp.ones(x.shape, bool) if context is None else ~jnp.asarray(context)
    free = free & (x != mask_id)
    rule = "`x` must have at least one token outside the context that is no mask"
    require(jnp.any(free), rule, x)
    found, valid = _redraws(
        key, params, x, free, run=run, count=num_redraws, probability=probability
    )
    require(valid, REDRAWN, valid, name="valid")
    return found


@partial(jax.jit, static_argnames=("run", "count", "probability"))
def _redraws(
    key: Key,
    params: Any,
    x: Array,
    free: Array,
    *,
    run: Run,
    count: int,
    probability: Callable[[Array], Array] | None,
) -> tuple[Array, Array]:
    mask_id = run.num_states - 1

    def redraw(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, valid = carry
        place_key, draw_key, turn_key = jax.random.split(jax.random.fold_in(key, index), 3)
        at = jax.random.categorical(place_key, jnp.where(free, 0.0, -jnp.inf), mode="high")
        masked = x.at[at].set(mask_id)
        row = whole(run.denoiser)(params, masked, jnp.mean(masked != mask_id))[at]
        valid = valid & jnp.isfinite(jnp.max(row))
        turn = True
        if probability is not None:
            share = probability(log_probs(row))
            valid = valid & (share >= 0) & (share <= 1)
            turn = jax.random.uniform(turn_key) < share
        drawn = jax.random.categorical(draw_key, log_probs(row), mode="high").astype(x.dtype)
        return jnp.where(valid & turn, x.at[at].set(drawn), x), valid

    return jax.lax.fori_loop(0, count, redraw, (x, jnp.array(True)))
