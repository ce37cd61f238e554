"""The likelihood of one sequence under a trained model: exact, or bounds estimated.   [L2, L3, L5]

Denoisers are those of `dfm_jax.sampling`. Likelihoods are losses per position, in nats; a given
token has the loss 0. Bounds are sums over positions, estimated from independent replicates: each
has one draw in each of `num_strata` equal intervals (strata) of time. Numbers u in (0, 1) place the
time in its stratum and decide what is revealed. With `antithetic`, a replicate is the mean of two
draws, one with u and one with 1 − u.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from dfm_jax.checks import (
    check_count,
    check_distribution,
    check_interval,
    check_num_states,
    require,
)
from dfm_jax.interfaces import Denoiser
from dfm_jax.objectives import cross_entropy_loss, generalized_kl_loss, step_loss
from dfm_jax.paths import mask_source, sample_path
from dfm_jax.sampling.denoisers import logits_shape, whole
from dfm_jax.schedules import Schedule, check_table, with_context
from dfm_jax.steps import step_size
from dfm_jax.types import Array, ArrayLike, Context, Float, Key, Step, Table, Tokens, typed

Function = Callable[..., Array]


class Estimate(NamedTuple):
    """An unbiased estimate and its standard error, std / √R over R replicates, in nats."""

    mean: Float[Array, ""]
    standard_error: Float[Array, ""]


@typed
def autoregressive_nll(
    params: Any, apply: Function, x: Tokens, *, start: int | None = None, prompt_length: Step = 0
) -> Float[Array, " N"]:
    """The next-token losses of a causal network, in nats; 0 where a token is given.

        −log p̂(x^{>P} | x^{≤P}) = Σ_{i>P} −log p̂(x^i | x^{<i})   [S1, A4]

    Row i of `apply(params, tokens)` holds the logits of the token after `tokens[i]`. The network
    reads the token `start`, for example the mask id V, and then x. Without `start` it reads x
    alone, and the first token is given.

    Raises:
        ValueError: if `start` lies outside [0, V], P lies outside [0, N], or no token is predicted.
    """
    x = jnp.asarray(x)
    check_interval("prompt_length", prompt_length, 0, x.shape[0])
    no_distribution = int(start is None)
    rule = "`x` must hold two tokens if `start` is None, and one otherwise"
    require(len(x) > no_distribution, rule, len(x), name="len(x)")
    first = jnp.full(1 - no_distribution, start or 0, x.dtype)
    logits = apply(params, jnp.concatenate([first, x[:-1]]))
    check_count("start", start or 0, at_least=0, at_most=logits.shape[-1])
    nats = jnp.pad(cross_entropy_loss(logits, x[no_distribution:]), (no_distribution, 0))
    return jnp.where(jnp.arange(x.shape[0]) < prompt_length, 0.0, nats)


@typed
def any_order_nll(
    params: Any, denoiser: Denoiser, x_1: Tokens, order: Tokens, context: Context
) -> Float[Array, " N"]:
    """The losses of one order: from all masks, one position at a time; 0 at the context.

        −log p̂_σ(x_1 | c) = Σ_a −log p̂^{σ(a)}(x_1^{σ(a)} | c, x_1^{σ(0)} … x_1^{σ(a−1)})   [A1, L3]

    `order[a]` is revealed at step a; given positions are skipped. The denoiser reads the time a/N,
    in which only free positions count. With a context this differs from the t/T of a table, which
    counts all positions.

    Raises:
        ValueError: if `order` is not a permutation of 0 … N − 1.
    """
    x_1, order, free = jnp.asarray(x_1), jnp.asarray(order), ~jnp.asarray(context)
    once = jnp.sort(order) == jnp.arange(order.shape[0])
    require(once.all(), "`order` must hold each of 0 … N − 1 once", order)

    mask_id = _mask_id(params, denoiser, x_1)

    def reveal(x_t: Array, position: Array) -> tuple[Array, Array]:
        t = jnp.sum(free & (x_t != mask_id)) / jnp.maximum(jnp.sum(free), 1)
        nats = _masked_nats(whole(denoiser)(params, x_t, t), x_1, x_t)
        return x_t.at[position].set(x_1[position]), nats[position]

    _, nats = jax.lax.scan(reveal, mask_source(x_1, context, mask_id=mask_id), order)
    return jnp.zeros_like(nats).at[order].set(nats)


@typed
def any_order_bound(
    key: Key,
    params: Any,
    denoiser: Denoiser,
    x_1: Tokens,
    context: Context,
    *,
    num_strata: int,
    num_replicates: int,
    antithetic: bool = False,
) -> Estimate:
    """The mean of `any_order_nll` over uniformly random orders, ≥ −log p̂ of the mean over orders.

        Σ_{a=0}^{N−1} 1/(N−a) E[Σ_i 1[X^i = m] (−log p̂^i(x_1^i | X))],  X shows a of N   [L3]

    N counts free positions; the a positions that X shows are uniformly random. The denoiser reads
    the time a/N, and the strata are intervals of it. For a denoiser that does not read the time,
    the bound is also the integral of L2 under every schedule.

    Raises:
        ValueError: if there are fewer than two replicates.
    """
    x_0 = mask_source(x_1, context, mask_id=_mask_id(params, denoiser, x_1))

    def share(stratum: Array, u: Array, uniforms: Array, _: Key) -> Array:
        num_free = jnp.sum(~jnp.asarray(context), dtype=u.dtype)
        a = jnp.minimum(jnp.floor((stratum + u) / num_strata * num_free), num_free - 1)
        turn = jnp.argsort(jnp.argsort(jnp.where(context, 2.0, uniforms[1:])))  # the context last
        x_t = jnp.where(turn.astype(u.dtype) < a, x_1, x_0)
        logits = whole(denoiser)(params, x_t, a / jnp.maximum(num_free, 1))
        return num_free * _mean_masked_nats(logits, x_1, x_t)

    return _estimate(_replicates(key, share, x_1, num_strata, num_replicates, antithetic))


@typed
def evidence_bound(
    key: Key,
    params: Any,
    denoiser: Denoiser,
    x_1: Tokens,
    schedule: Schedule,
    *,
    source: Float[ArrayLike, "N S"] | Literal["mask"],
    num_strata: int,
    num_replicates: int,
    context: Context | None = None,
    end: float | int = 1.0,
    antithetic: bool = False,
) -> Estimate:
    """The continuous-time bound of a process that stops at `end` and then draws all pending tokens.

        −log p̂(x_1) ≤ ∫_0^end E[Σ_i L2] dt + E[Σ_{i pending} −log p̂^i(x_1^i | X_end)]   [L2, S4]

    `source` is a distribution of each position's X_0, independent of X_1, or "mask". With "mask",
    revealed tokens are kept and have no loss, and the masks are pending. The plain weight κ̇/(1−κ)
    has an infinite variance as t → 1. So one random position is always masked, and each other one
    with probability 1 − κ. With M masks among N free positions, the weight is then bounded, and
    `end` may be 1:

        κ̇/(1−κ) E Σ_i 1[X^i = m] (−log p̂^i) = κ̇ E_held[N/M Σ_i 1[X^i = m] (−log p̂^i)]

    With token distributions, every free position has a loss at every time and is pending at the
    end. `end` must then lie where κ < 1, because the loss of a learned p̂ grows with the rate,
    without a limit. Antithetic draws share X_0. Bounds of different sources must not be compared.

    Raises:
        ValueError: if `end` lies outside (0, 1], or κ = 1 there with token distributions; if a row
            of `source` is not a distribution; if there are fewer than two replicates.
    """
    check_interval("end", end, 0.0, 1.0, ends="(]")
    free = jnp.ones(jnp.shape(x_1), bool) if context is None else ~jnp.asarray(context)
    at, rest = partial(whole(denoiser), params), (x_1, schedule, free)
    if isinstance(source, str):
        inside, last = _from_masks(at, *rest, _mask_id(params, denoiser, x_1))
    else:
        inside, last = _from_probs(at, *rest, end, source)

    def share(stratum: Array, u: Array, uniforms: Array, key: Key) -> Array:
        return end * inside(end * (stratum + u) / num_strata, uniforms, key)

    keys = jax.random.split(key)
    drawn = _replicates(keys[0], share, x_1, num_strata, num_replicates, antithetic)
    if end < 1:
        final = lambda _, u, *rest: last(jnp.asarray(end, u.dtype), *rest)  # noqa: E731
        drawn += _replicates(keys[1], final, x_1, 1, num_replicates, antithetic)
    return _estimate(drawn)


@typed
def grid_bound(
    key: Key,
    params: Any,
    denoiser: Denoiser,
    x_1: Tokens,
    table: Table,
    *,
    num_strata: int,
    num_replicates: int,
    context: Context | None = None,
    antithetic: bool = False,
) -> Estimate:
    """The bound for a sampler that starts from all masks and takes the exact steps of a table.

        −log p̂_T(x_1 | c) ≤ Σ_t Σ_i λ_t^i E[1[X_t^i = m] (−log p̂^i(x_1^i | X_t))]   [L5, Q3]

    The denoiser reads the time t/T. For a left-to-right table the bound is the next-token NLL (A4),
    and with T strata nothing is random. The columns of the table at the context are not read.

    Raises:
        ValueError: if `num_strata` does not divide T, or the table breaks a rule of `check_table`.
    """
    context = jnp.zeros(jnp.shape(x_1), bool) if context is None else jnp.asarray(context)
    x_0 = mask_source(x_1, context, mask_id=_mask_id(params, denoiser, x_1))
    table = with_context(table, context)
    if not isinstance(table, Tracer):
        check_table(table, context)
    num_steps = table.shape[0] - 1
    check_count("num_strata", num_strata)
    require(num_steps % num_strata == 0, f"`num_strata` must divide T = {num_steps}", num_strata)
    width = num_steps // num_strata

    def share(stratum: Array, u: Array, uniforms: Array, _: Key) -> Array:
        t = (width * stratum + jnp.floor(u * width)).astype(int)  # u · width stays below width
        x_t = jnp.where(uniforms[1:] < table[t], x_1, x_0)
        logits = whole(denoiser)(params, x_t, t / num_steps)
        nats = step_loss(logits, x_1, x_t, step_size(table, t))
        return num_steps * jnp.sum(nats)

    return _estimate(_replicates(key, share, x_1, num_strata, num_replicates, antithetic))


def _from_masks(
    at: Function, x_1: Tokens, schedule: Schedule, free: Array, mask_id: int
) -> tuple[Function, Function]:
    x_0, shape = mask_source(x_1, ~free, mask_id=mask_id), jnp.shape(schedule.kappa(0.5))
    rule = "`schedule` must have one κ for all positions"
    require(shape == (), rule, shape, name="schedule.kappa(0.5).shape")

    def inside(t: Array, uniforms: Array, _: Key) -> Array:
        kappa, speed = jax.jvp(schedule.kappa, (t,), (jnp.ones_like(t),))
        num_free = jnp.sum(free, dtype=t.dtype)
        held = jnp.cumsum(free, dtype=t.dtype) - 1 == jnp.floor(uniforms[0] * num_free)
        x_t = jnp.where((uniforms[1:] < kappa) & ~held, x_1, x_0)
        return speed * num_free * _mean_masked_nats(at(x_t, t), x_1, x_t)

    def last(t: Array, uniforms: Array, _: Key) -> Array:
        x_t = jnp.where(uniforms[1:] < schedule.kappa(t), x_1, x_0)
        return jnp.sum(_masked_nats(at(x_t, t), x_1, x_t))

    return inside, last


def _from_probs(
    at: Function, x_1: Tokens, schedule: Schedule, free: Array, end: float, source: Array
) -> tuple[Function, Function]:
    check_distribution("source", source)
    left = jnp.where(free, schedule.log_complement(jnp.asarray(end)), 0.0)
    rule = "`end` must lie where κ < 1 if the source is a distribution of tokens"
    require(left > -jnp.inf, rule, end)

    def state_and_logits(t: Array, uniforms: Array, key: Key) -> tuple[Array, Array]:
        x_0 = jnp.where(free, sample_path(key, source), x_1)
        x_t = jnp.where(uniforms[1:] < schedule.kappa(t), x_1, x_0)
        logits = at(x_t, t)
        check_num_states(jnp.shape(source)[-1], logits.shape[-1])
        return x_t, logits

    def inside(t: Array, uniforms: Array, key: Key) -> Array:
        x_t, logits = state_and_logits(t, uniforms, key)
        return jnp.sum(generalized_kl_loss(logits, x_1, x_t, t, schedule), where=free)

    def last(t: Array, uniforms: Array, key: Key) -> Array:
        _, logits = state_and_logits(t, uniforms, key)
        return jnp.sum(cross_entropy_loss(logits, x_1), where=free)

    return inside, last


def _replicates(
    key: Key, share: Function, x_1: Tokens, num_strata: int, count: int, antithetic: bool
) -> Array:
    """[R] independent means over the strata of `share(stratum, u, uniforms [1 + N], key)`."""
    check_count("num_strata", num_strata)
    check_count("num_replicates", count, at_least=2)

    def one(key: Key, stratum: Array) -> Array:
        uniform_key, source_key = jax.random.split(key)
        uniforms = jax.random.uniform(uniform_key, (jnp.shape(x_1)[0] + 2,))
        uniforms = uniforms + jnp.finfo(uniforms.dtype).eps / 2  # in (0, 1), and so is 1 − uniforms
        draws = jnp.stack([uniforms, 1 - uniforms]) if antithetic else uniforms[None]
        return jnp.mean(jax.vmap(lambda c: share(stratum, c[0], c[1:], source_key))(draws))

    keys, strata = jax.random.split(key, (count, num_strata)), jnp.arange(num_strata, dtype=float)
    return jnp.mean(jax.vmap(jax.vmap(one), (0, None))(keys, strata), axis=1)


def _estimate(replicates: Array) -> Estimate:
    error = jnp.std(replicates, ddof=1) / replicates.shape[0] ** 0.5
    return Estimate(jnp.mean(replicates), error)


def _masked_nats(logits: Array, x_1: Tokens, x_t: Array) -> Array:
    return jnp.where(x_t == logits.shape[-1], cross_entropy_loss(logits, x_1), 0.0)


def _mean_masked_nats(logits: Array, x_1: Tokens, x_t: Array) -> Array:
    nats = _masked_nats(logits, x_1, x_t)
    num_masked = jnp.sum(x_t == logits.shape[-1], dtype=nats.dtype)
    return jnp.sum(nats) / jnp.maximum(num_masked, 1)


def _mask_id(params: Any, denoiser: Denoiser, x_1: Tokens) -> int:
    return logits_shape(params, denoiser, jnp.asarray(x_1))[-1]
