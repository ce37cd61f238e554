"""Drawing from K experts: from all at every step, or from one that is kept. [D7, S2, S6, S7]

With a router that is a function of (x_t, t), `mixture_denoiser` makes one denoiser of K experts,
and every sampler can use it. The Bayes gate depends on what was drawn before, so its samplers are
here. Drawing one expert and keeping it gives the same distribution as the Bayes-gated mixture, at
the cost of one expert.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dfm_jax.boundary import widened
from dfm_jax.checks import check_count, check_distribution, check_log_distribution, require
from dfm_jax.interfaces import Decoder, Denoiser
from dfm_jax.mixture.gates import GateState, bayes_gate_update, gate_init, top_experts_gate
from dfm_jax.mixture.posterior import mix_log_probs
from dfm_jax.sampling.autoregressive import (
    NO_DISTRIBUTION,
    Draw,
    Sample,
    checked_prompts,
    row_keys,
    sample_rows,
)
from dfm_jax.sampling.by_choice import PROGRESS, viewed
from dfm_jax.sampling.choices import Choice
from dfm_jax.sampling.denoisers import log_probs, whole
from dfm_jax.sampling.jumps import VALID, Method, Run, State, checked_run, revealed, start
from dfm_jax.sampling.tables import check_masks, sample_on_table, whole_table
from dfm_jax.types import (
    Array,
    ArrayLike,
    Float,
    Int,
    Key,
    Number,
    PerExpert,
    Table,
    Token,
    Tokens,
    Weights,
    typed,
)


class MixtureDraw(NamedTuple):
    """A sequence, and the state of the gate at its end."""

    tokens: Int[Array, " N"]
    log_weights: Float[Array, " K"]  # log r_k(x)


@typed
def sample_mixed_step(
    key: Key, weights: Weights | Float[ArrayLike, "N K"], log_probs: Float[ArrayLike, "K N S"]
) -> Tokens:
    """Draw an expert k^i ~ r for every position, then a token from its row: no mixing.   [S6, S7]

        k^i ~ r(z, t),  X^i ~ p_{k^i}^i

    The distribution is that of a step of the mixed velocity (`mix`), for any router and any number
    of positions that move, because each position draws its own expert. The weights are those of all
    positions [K] or of each position [N, K]. The distributions are in nats.

    Raises:
        ValueError: if the weights are not a distribution, or a row of an expert with a weight above
            0 is not a distribution.
    """
    check_distribution("weights", weights)
    read = jnp.broadcast_to(weights, (jnp.shape(log_probs)[1], jnp.shape(log_probs)[0])).T != 0
    check_log_distribution("log_probs", log_probs, read=read)
    log_probs, weights = jnp.asarray(log_probs), jnp.asarray(weights)
    num_experts, num_positions = log_probs.shape[:2]
    weights = jnp.broadcast_to(weights, (num_positions, num_experts))
    expert_key, token_key = jax.random.split(key)
    experts = jax.random.categorical(expert_key, jnp.log(widened(weights)), axis=-1, mode="high")
    rows = log_probs[experts, jnp.arange(num_positions)]
    return jax.random.categorical(token_key, widened(rows), axis=-1, mode="high")


@typed
def sample_mixture_on_table(
    key: Key,
    params: Any,
    denoiser: Denoiser,
    log_prior: PerExpert,
    x_0: Tokens,
    table: Table,
    *,
    top_experts: int | None = None,
) -> MixtureDraw:
    """Draw from all K experts, mixed at every step by the Bayes gate of what was drawn.   [D7, S2]

        X^i ~ Σ_k r_k p̂_{1|t}^{k,i}(· | X_t),  then r_k ← r_k p̂_{1|t}^{k,i}(X^i | X_t), normalized

    Positions are drawn in the order of the table, one in each step. For any experts, the
    distribution is Σ_k r_k(c) q̂_k(x | c). A step that moves two positions is refused: the
    likelihood of an expert would not be a product of p̂, and the gate would not be the Bayes gate.
    Outside of the context the sequence starts from masks.

    Args:
        key: The key of this sequence.
        params: The parameters of the experts, stacked [K, …].
        denoiser: The denoiser of one expert; it is static.
        log_prior: log r_k(c), in nats; the gate does not read the context again.
        x_0: The masks, and the context.
        table: κ[t, i] ∈ {0, 1}, with one more 1 in each row than in the last; 1 at the context.
        top_experts: If given, only this many of the largest weights are kept at every step (B6).

    Raises:
        ValueError: as `sample_on_table`; if a step moves more than one position; if the prior is
            not a distribution.
    """
    num_experts = jnp.shape(log_prior)[0]
    _check_stacked(params, num_experts)
    one = jax.tree.map(lambda leaf: leaf[0], params)
    run = checked_run(one, denoiser, x_0, source="mask", carry_over=True)
    check_log_distribution("log_prior", log_prior)
    if top_experts is not None:
        check_count("top_experts", top_experts, at_most=num_experts)
    order = _one_by_one(table)
    check_masks(x_0, jnp.asarray(table)[0], run.num_states - 1)
    found, gate = _mixture(key, params, log_prior, x_0, order, run=run, top_experts=top_experts)
    require(found.valid, VALID, found.valid, name="valid")
    return MixtureDraw(found.x_t, gate.log_weights)


def _check_stacked(params: Any, num_experts: int) -> None:
    """Check that every leaf has K rows; a missing row would silently be read as the last one."""
    for leaf in jax.tree.leaves(params):
        rule = (
            f"Every leaf of `params` must have {num_experts} rows, one for each expert of the prior"
        )
        shape = jnp.shape(leaf)
        require(shape[:1] == (num_experts,), rule, shape, name="leaf.shape")


def _one_by_one(table: Table) -> Array:
    """The position that each step of a table moves; −1 if it moves none.

    Raises:
        ValueError: if a step moves two positions, or moves one only part of the way.
    """
    whole_table(table)
    xp = jnp if isinstance(table, Tracer) else np  # what can be read is read, also under a jit
    rows = xp.asarray(table)
    require((rows == 0) | (rows == 1), "`table` must hold only 0 and 1", rows)
    moved = xp.diff(rows, axis=0)
    counts = xp.sum(moved > 0, axis=1)
    rule = "`table` must reveal at most one position in each step"
    require(counts <= 1, rule, counts, name="revealed")
    return jnp.asarray(xp.where(counts == 1, xp.argmax(moved, axis=1), -1))


@partial(jax.jit, static_argnames=("run", "top_experts"))
def _mixture(
    key: Key,
    params: Any,
    log_prior: Array,
    x_0: Array,
    order: Array,
    *,
    run: Run,
    top_experts: int | None,
) -> tuple[State, GateState]:
    each = jax.vmap(whole(run.denoiser), (0, None, None))
    num_steps = order.shape[0]

    def step(carry: tuple[State, GateState], row: Array) -> tuple[tuple[State, GateState], None]:
        state, gate = carry
        index, position = row
        moves = (position >= 0) & state.valid
        at = jnp.maximum(position, 0)
        moves = moves & ~revealed(state.x_t, run)[at]
        probs = log_probs(each(params, state.x_t, index / num_steps)[:, at])  # [K, V]
        weights = gate.log_weights
        if top_experts is not None:
            weights = jnp.log(top_experts_gate(jnp.exp(weights), top_experts))
        # Of all that the gate has not given up: it is told what each of them says.
        dead = gate.log_weights == -jnp.inf
        is_distribution = jnp.all(jnp.isfinite(jnp.max(probs, axis=-1)) | dead)
        mixed = mix_log_probs(weights, probs)
        drawn = jax.random.categorical(jax.random.fold_in(key, index), mixed, mode="high")
        valid = state.valid & (is_distribution | ~moves)
        takes = moves & is_distribution
        x_t = state.x_t.at[at].set(jnp.where(takes, drawn.astype(state.x_t.dtype), state.x_t[at]))
        told = bayes_gate_update(gate, jnp.where(takes, probs[:, drawn], 0.0))
        return (State(x_t, valid), told), None

    begin = (start(x_0), gate_init(log_prior.astype(float)))
    rows = jnp.stack([jnp.arange(num_steps), order], axis=1)
    return jax.lax.scan(step, begin, rows)[0]


@typed
def sample_mixture_by_choice(
    key: Key,
    params: Any,
    denoiser: Denoiser,
    log_prior: PerExpert,
    x_0: Tokens,
    choice: Choice,
) -> MixtureDraw:
    """Draw from all K experts, mixed by the Bayes gate, in an order that a choice makes. [D7, S8]

        p̂ = Σ_k r_k p̂_{1|t}^k(· | X_t),  i = choice(p̂),  X^i ~ p̂^i,  then r_k ∝ r_k p̂^{k,i}(X^i)

    One position a step, and the choice does not look at the draws: then the gate is the Bayes
    gate (D7), and exact experts give exact samples (S8). The choice sees the mixed posterior.

    Args:
        key: The key of this sequence.
        params: The parameters of the experts, stacked [K, …].
        denoiser: The denoiser of one expert; it is static.
        log_prior: log r_k(c), in nats; the gate does not read the given tokens again.
        x_0: Masks, with id V, and given tokens.
        choice: A choice that is exact; static.

    Raises:
        ValueError: if the choice reads the draws, or may reveal two positions in a step; if the
            prior is not a distribution; as `sample_by_choice`.
    """
    num_experts = jnp.shape(log_prior)[0]
    _check_stacked(params, num_experts)
    rule = "`choice` must be blind to the draws and reveal one position in each step"
    told = (choice.blind, choice.most)
    require(choice.is_exact, rule, told, name="(choice.blind, choice.most)")
    one = jax.tree.map(lambda leaf: leaf[0], params)
    run = checked_run(one, denoiser, x_0, source="mask", carry_over=True)
    check_log_distribution("log_prior", log_prior)
    state, gate, progress = _chosen_mixture(key, params, log_prior, x_0, run=run, choice=choice)
    require(state.valid, VALID, state.valid, name="valid")
    require(progress, PROGRESS, progress, name="progress")
    return MixtureDraw(state.x_t, gate.log_weights)


@partial(jax.jit, static_argnames=("run", "choice"))
def _chosen_mixture(
    key: Key, params: Any, log_prior: Array, x_0: Array, *, run: Run, choice: Choice
) -> tuple[State, GateState, Array]:
    each = jax.vmap(whole(run.denoiser), (0, None, None))
    mask_id = run.num_states - 1

    def goes_on(carry: tuple[State, GateState, Array, Array]) -> Array:
        state, _, _, progress = carry
        return jnp.any(state.x_t == mask_id) & state.valid & progress

    def step(carry: tuple[State, GateState, Array, Array]) -> tuple:
        state, gate, index, _ = carry
        pending = state.x_t == mask_id
        probs = log_probs(each(params, state.x_t, 1 - jnp.mean(pending)))  # [K, N, V]
        # Of all that the gate has not given up: it is told what each of them says.
        dead = (gate.log_weights == -jnp.inf)[:, None]
        good = jnp.all(jnp.isfinite(jnp.max(probs, axis=-1)) | dead, axis=0)  # [N]
        mixed = mix_log_probs(gate.log_weights, probs)  # [N, V]
        mixed = jnp.where(good[:, None], mixed, jnp.nan)
        view, valid = viewed(jax.random.fold_in(key, index), mixed, pending, index)
        chosen = choice.select(view) & pending
        at = jnp.argmax(chosen)
        takes = chosen & valid & (jnp.arange(chosen.shape[0]) == at)
        x_t = jnp.where(takes, view.draws.astype(state.x_t.dtype), state.x_t)
        told = jnp.where(valid & jnp.any(chosen), probs[:, at, view.draws[at]], 0.0)
        return State(x_t, valid), bayes_gate_update(gate, told), index + 1, jnp.any(chosen)

    begin = gate_init(log_prior.astype(float))
    carry = (start(x_0), begin, jnp.array(0), jnp.array(True))
    state, gate, _, progress = jax.lax.while_loop(goes_on, step, carry)
    return state, gate, progress


class OneExpertSample(NamedTuple):
    """The rows, as `sample_autoregressive` gives them, and the expert that drew each of them."""

    sample: Sample
    experts: Int[Array, " B"]


@typed
def sample_one_expert_on_table(
    key: Key,
    params: Any,
    denoiser: Denoiser,
    log_prior: PerExpert,
    x_0: Tokens,
    table: Table,
    *,
    method: Method = "clear",
    rows_at_once: int | None = None,
) -> tuple[Tokens, Token]:
    """Draw one expert, k ~ r(c), and then the whole sequence from it.  [S7]

        x ~ Σ_k r_k(c) q̂_k(x | c)

    The distribution is that of `sample_mixture_on_table`, at the cost of one expert instead of K.
    It holds only if each step moves one position and the gate is not truncated. The function
    returns the sequence and k; its arguments are those of `sample_mixture_on_table`.

    Raises:
        ValueError: as `sample_mixture_on_table`.
    """
    check_log_distribution("log_prior", log_prior)
    _check_stacked(params, jnp.shape(log_prior)[0])
    _one_by_one(table)
    expert_key, key = jax.random.split(key)
    expert = jax.random.categorical(expert_key, widened(log_prior), mode="high")
    x = sample_on_table(
        key,
        jax.tree.map(lambda leaf: leaf[expert], params),
        denoiser,
        x_0,
        table,
        source="mask",
        carry_over=True,
        method=method,
        rows_at_once=rows_at_once,
    )
    return x, expert


@typed
def sample_one_expert(
    key: Key,
    params: Any,
    decoder: Decoder,
    log_posterior: Float[ArrayLike, "B K"],
    prompts: Int[ArrayLike, "B P"],
    lengths: Int[ArrayLike, " B"],
    *,
    max_new: int,
    temperature: Number = 1.0,
    top_k: int | None = None,
    top_p: Number | None = None,
    truncate: Literal["mixture", "expert"] = "mixture",
    stop_tokens: tuple[int, ...] = (),
    prefixes: Any = None,
    draw: Draw | None = None,
) -> OneExpertSample:
    """Draw left to right, each row from one expert that is drawn after the prompt and kept.   [S7]

        k ~ r(c),  x^t ~ q̂_k(· | x^{<t}, c)

    The distribution is the mixture of all experts under the Bayes gate (D7), at the cost of one
    expert; a machine that serves one expert need not know the others. A temperature or truncation
    of the mixture's distribution is not possible with one expert, and is refused. With `truncate` =
    "expert" each expert's own distribution is truncated; this differs from the truncated mixture.
    Rows of one expert are drawn together. The function cannot be called under an outer jit.

    Args:
        key: One key for all rows.
        params: The parameters of the experts, stacked [K, …].
        decoder: The decoder of one expert.
        log_posterior: log r_k(c) of every row, where c includes the prompt.
        prompts: See `sample_autoregressive`, also for the arguments that are not explained here.
        lengths: The lengths of the prompts.
        max_new: The largest number of tokens to draw for a row.
        temperature: Must be 1, unless `truncate` is "expert".
        top_k: Must be None, unless `truncate` is "expert".
        top_p: Must be None, unless `truncate` is "expert".
        truncate: The distribution to which temperature and truncation apply.
        stop_tokens: Ids in [0, V) after which a row ends.
        prefixes: What stands before the prompts, [B, …].
        draw: See `sample_autoregressive`.

    Raises:
        ValueError: if the mixture is to have a temperature other than 1 or a truncation; if a row
            of `log_posterior` is not a distribution; as `sample_autoregressive`.
    """
    plain = temperature == 1 and top_k is None and top_p is None
    rule = (
        "`temperature` must be 1 and `top_k` and `top_p` must be None, because one expert stands "
        "for the mixture only then (S7)"
    )
    then = 'To change the distribution of each expert, pass truncate="expert".'
    options, name = (temperature, top_k, top_p), "(temperature, top_k, top_p)"
    require(plain or truncate == "expert", rule, options, name=name, then=then)
    check_log_distribution("log_posterior", log_posterior)
    _check_stacked(params, jnp.shape(log_posterior)[1])
    one = jax.tree.map(lambda leaf: leaf[0], params)
    options = {"max_new": max_new, "top_k": top_k, "stop_tokens": stop_tokens}
    truncation = {"temperature": temperature, "top_p": top_p, "prefixes": prefixes}
    prompts, lengths = checked_prompts(one, decoder, prompts, lengths, **options, **truncation)
    num_rows = prompts.shape[0]
    rule = f"`log_posterior` must have {num_rows} rows, as many as the prompts"
    shape = jnp.shape(log_posterior)
    require(shape[0] == num_rows, rule, shape, name="log_posterior.shape")
    expert_key, key = jax.random.split(key)
    drawn = jax.random.categorical(expert_key, widened(log_posterior), axis=-1, mode="high")
    keys, experts = row_keys(key, num_rows), np.asarray(drawn)
    parts, order = [], []
    for expert in np.unique(experts):
        rows = np.flatnonzero(experts == expert)
        # Padded to a power of two: few shapes to compile for.
        padded = np.resize(rows, 1 << (len(rows) - 1).bit_length())
        found = sample_rows(
            keys[padded],
            jax.tree.map(lambda leaf, k=int(expert): leaf[k], params),
            prompts[padded],
            lengths[padded],
            temperature,
            top_p,
            jax.tree.map(lambda leaf, at=padded: leaf[at], prefixes),
            decoder=decoder,
            draw=draw,
            **options,
        )
        count = len(rows)
        parts.append(jax.tree.map(lambda leaf, count=count: leaf[:count], found))
        order.append(rows)
    back = np.argsort(np.concatenate(order))
    sample = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[back], *parts)
    require(sample.valid, NO_DISTRIBUTION, sample.valid, name="valid")
    return OneExpertSample(sample, drawn)
