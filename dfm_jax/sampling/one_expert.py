"""Drawing one expert and keeping it: the Bayes-gated mixture in law, at one's cost.   [S7]"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import check_log_law, require
from dfm_jax.interfaces import Decoder, Denoiser
from dfm_jax.sampling.autoregressive import (
    NO_LAW,
    Draw,
    Sample,
    checked_prompts,
    row_keys,
    sample_rows,
)
from dfm_jax.sampling.experts import check_stacked, one_by_one
from dfm_jax.sampling.jumps import Method
from dfm_jax.sampling.tables import sample_on_table
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
    typed,
)


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
    """Draw one expert, k ~ r(c), and keep it: `sample_mixture_on_table` in law.   [S7]

        x ~ Σ_k r_k(c) q̂_k(x | c)

    One expert's work in the place of K. Only for one-position steps and an uncut gate; returns the
    sequence and k. Arguments as there.

    Raises:
        ValueError: as there.
    """
    check_log_law("log_prior", log_prior)
    check_stacked(params, jnp.shape(log_prior)[0])
    one_by_one(table)
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
    cut: Literal["the mixture", "each expert"] = "the mixture",
    stop_tokens: tuple[int, ...] = (),
    prefixes: Any = None,
    draw: Draw = "clear",
) -> OneExpertSample:
    """Left to right, one expert for each row, drawn after its prompt and kept.   [S7]

        k ~ r(c),  x^t ~ q̂_k(· | x^{<t}, c)

    In law the mixture of all experts under the Bayes gate (D7), at one expert's cost: whoever
    serves an expert need not know of the others. Temperature and truncation of the mixture's law
    cannot be had from one expert: refused, unless `cut` says that each expert's own law is to be
    cut, which is another law than the cut mixture's. Rows of one expert are drawn together; not for
    an outer jit.

    Args:
        key: one key for all the rows.
        params: [K, …] of one expert, stacked.
        decoder: of one expert.
        log_posterior: log r_k(c) of every row, the prompt included in c.
        prompts: see `sample_autoregressive`, as all that follows.
        lengths: of the prompts.
        max_new: the most tokens to draw for a row.
        temperature: 1, unless `cut` is "each expert".
        top_k: None, unless `cut` is "each expert".
        top_p: None, unless `cut` is "each expert".
        cut: whose law temperature and truncation are meant for.
        stop_tokens: ids in [0, V).
        prefixes: [B, …] what stands before the prompts.
        draw: see `sample_autoregressive`.

    Raises:
        ValueError: on a temperature other than 1 or a truncation of the mixture; if a row of
            `log_posterior` is no law; as `sample_autoregressive`.
    """
    plain = temperature == 1 and top_k is None and top_p is None
    rule = (
        "`temperature` must be 1, `top_k` and `top_p` None where one expert stands for the mixture "
        '(S7): cut="each expert" cuts each expert\'s own law; they'
    )
    require(plain or cut == "each expert", rule, f"{temperature}, {top_k}, {top_p}")
    check_log_law("log_posterior", log_posterior)
    check_stacked(params, jnp.shape(log_posterior)[1])
    one = jax.tree.map(lambda leaf: leaf[0], params)
    options = {"max_new": max_new, "top_k": top_k, "stop_tokens": stop_tokens}
    law = {"temperature": temperature, "top_p": top_p, "prefixes": prefixes}
    prompts, lengths = checked_prompts(one, decoder, prompts, lengths, **options, **law)
    num_rows = prompts.shape[0]
    rule = f"`log_posterior` must have a row for each of {num_rows} prompts; it has"
    require(jnp.shape(log_posterior)[0] == num_rows, rule, jnp.shape(log_posterior)[0])
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
    require(sample.alive, NO_LAW, sample.alive)
    return OneExpertSample(sample, drawn)
