"""Drawing from K experts: all of them at every step, or one, drawn and kept. [D7, S2, S6, S7]

With a router that is a function of (x_t, t), `mixture_denoiser` makes K experts one denoiser for
every sampler. The Bayes gate remembers what was drawn, and is here. One expert drawn and kept is
the Bayes-gated mixture in distribution, at one's cost.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

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
    """A sequence, and what the gate thought of it at the end."""

    tokens: Int[Array, " N"]
    log_weights: Float[Array, " K"]  # log r_k(x)


@typed
def sample_mixed_step(
    key: Key, weights: Weights | Float[ArrayLike, "N K"], log_probs: Float[ArrayLike, "K N S"]
) -> Tokens:
    """Draw k^i ~ r for every position, then from expert k^i's row: nothing is mixed.   [S6, S7]

        k^i ~ r(z, t),  X^i ~ p_{k^i}^i

    In distribution the step of the mixed velocity (`mix`), for any router and any number of
    positions that move: each draws an expert of its own. Weights of all positions [K], or of each
    [N, K]; distributions in nats.

    Raises:
        ValueError: if the weights are no distribution, or a row of an expert that has a weight is
            none.
    """
    check_distribution("weights", weights)
    read = jnp.broadcast_to(weights, (jnp.shape(log_probs)[1], jnp.shape(log_probs)[0])).T != 0
    check_log_distribution("log_probs", log_probs, read=read)
    log_probs, weights = jnp.asarray(log_probs), jnp.asarray(weights)
    num_experts, num_positions = log_probs.shape[:2]
    weights = jnp.broadcast_to(weights, (num_positions, num_experts))
    expert_key, token_key = jax.random.split(key)
    experts = jax.random.categorical(expert_key, jnp.log(weights), axis=-1, mode="high")
    rows = log_probs[experts, jnp.arange(num_positions)]
    return jax.random.categorical(token_key, rows, axis=-1, mode="high")


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
    """All K experts at every step, mixed by the gate that what was drawn so far implies.   [D7, S2]

        X^i ~ Σ_k r_k p̂_{1|t}^{k,i}(· | X_t),  then r_k ← r_k p̂_{1|t}^{k,i}(X^i | X_t), normalized

    In the order of the table, one position a step: the distribution is Σ_k r_k(c) q̂_k(x | c), for
    any experts. If a step moved two, what an expert gives them is no product of p̂, and the gate
    would not be Bayes's: refused. From masks outside the context.

    Args:
        key: of this sequence.
        params: [K, …] of one expert, stacked.
        denoiser: of one expert; static.
        log_prior: log r_k(c), in nats: the context is judged by whoever made it.
        x_0: masks, and the context.
        table: κ[t, i] ∈ {0, 1}, one more position in each row; 1 at the context.
        top_experts: cut the gate to as many, the largest, at every step, at the cost of B6.

    Raises:
        ValueError: as `sample_on_table`; if a step moves more than one position; on a prior that is
            no distribution.
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
    """Every leaf has K rows: a missing one would silently be the last."""
    for leaf in jax.tree.leaves(params):
        rule = (
            f"Every leaf of `params` must have {num_experts} rows, one for each expert of the prior"
        )
        shape = jnp.shape(leaf)
        require(shape[:1] == (num_experts,), rule, shape, name="leaf.shape")


def _one_by_one(table: Table) -> Array:
    """The position that each step of a table moves, −1 for none.

    Raises:
        ValueError: if a step moves two, or one halfway.
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


class OneExpertSample(NamedTuple):
    """Rows as `sample_autoregressive` gives them, and whose they are."""

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
    """Draw one expert, k ~ r(c), and keep it: `sample_mixture_on_table` in distribution.  [S7]

        x ~ Σ_k r_k(c) q̂_k(x | c)

    One expert's work in the place of K. Only for one-position steps and an uncut gate; returns the
    sequence and k. Arguments as there.

    Raises:
        ValueError: as there.
    """
    check_log_distribution("log_prior", log_prior)
    _check_stacked(params, jnp.shape(log_prior)[0])
    _one_by_one(table)
    expert_key, key = jax.random.split(key)
    expert = jax.random.categorical(expert_key, jnp.asarray(log_prior), mode="high")
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
    draw: Draw = "clear",
) -> OneExpertSample:
    """Left to right, one expert for each row, drawn after its prompt and kept.   [S7]

        k ~ r(c),  x^t ~ q̂_k(· | x^{<t}, c)

    In distribution the mixture of all experts under the Bayes gate (D7), at one expert's cost:
    whoever serves an expert need not know of the others. Temperature and truncation of the
    mixture's distribution cannot be had from one expert: refused, unless `truncate` says that each
    expert's own distribution is to be cut, which is another distribution than the cut mixture's.
    Rows of one expert are drawn together; not for an outer jit.

    Args:
        key: one key for all the rows.
        params: [K, …] of one expert, stacked.
        decoder: of one expert.
        log_posterior: log r_k(c) of every row, the prompt included in c.
        prompts: see `sample_autoregressive`, as all that follows.
        lengths: of the prompts.
        max_new: the most tokens to draw for a row.
        temperature: 1, unless `truncate` is "expert".
        top_k: None, unless `truncate` is "expert".
        top_p: None, unless `truncate` is "expert".
        truncate: whose distribution temperature and truncation are meant for.
        stop_tokens: ids in [0, V).
        prefixes: [B, …] what stands before the prompts.
        draw: see `sample_autoregressive`.

    Raises:
        ValueError: on a temperature other than 1 or a truncation of the mixture; if a row of
            `log_posterior` is no distribution; as `sample_autoregressive`.
    """
    plain = temperature == 1 and top_k is None and top_p is None
    rule = (
        "`temperature` must be 1 and `top_k` and `top_p` must be None, because one expert stands "
        "for the mixture only then (S7)"
    )
    then = 'To change the distribution of each expert, pass cut="expert".'
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
    drawn = jax.random.categorical(expert_key, jnp.asarray(log_posterior), axis=-1, mode="high")
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
