"""Denoisers, which give samplers p̂_{1|t} as logits, from networks or exact posteriors.

Logits need not be normalized, so log p̂ can be used. A denoiser is static: keep one, and do not
make one per call. The factories here return the same denoiser for the same arguments.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from dfm_jax.boundary import widened
from dfm_jax.checks import check_count, check_interval
from dfm_jax.interfaces import Denoiser, HeadedDenoiser
from dfm_jax.sampling.autoregressive import truncated_probs
from dfm_jax.types import Array


def halves(denoiser: Denoiser) -> HeadedDenoiser:
    """Any denoiser as two halves; one without halves does all its work in the first."""
    if isinstance(denoiser, HeadedDenoiser):
        return denoiser
    return HeadedDenoiser(denoiser, _same)


def whole(denoiser: Denoiser) -> Callable[..., Array]:
    """Any denoiser as one function."""
    return _joined(denoiser) if isinstance(denoiser, HeadedDenoiser) else denoiser


@cache
def denoiser_of(apply: Callable[..., Array], *, time_conditioned: bool) -> Denoiser:
    """A denoiser from a network's `apply(params, x_t, t=None)`; without time it is not given t."""

    def denoiser(params: Any, x_t: Array, t: Array) -> Array:
        return apply(params, x_t, t) if time_conditioned else apply(params, x_t)

    return denoiser


@cache
def truncated_denoiser(
    denoiser: Denoiser,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Denoiser:
    """A denoiser with a temperature, then top-k, then top-p at every position.  [B6]

    It works as `next_token_log_probs`. Samples then have another distribution than the model's.

    Raises:
        ValueError: if τ ≥ 0, k ≥ 1 or 0 < p ≤ 1 does not hold.
    """
    check_interval("temperature", temperature, 0, jnp.inf, ends="[)")
    if top_k is not None:
        check_count("top_k", top_k)
    if top_p is not None:
        check_interval("top_p", top_p, 0, 1, ends="(]")
    head_of = halves(denoiser)

    def head(params: Any, rows: Array) -> Array:
        logits = head_of.head(params, rows)
        if top_k is not None:
            check_count("top_k", top_k, at_most=logits.shape[-1])
        probs = jax.vmap(lambda row: truncated_probs(row, temperature, top_k, top_p))(logits)
        # At temperature 0 what is no distribution would become a point mass, and pass for one.
        return jnp.where(jnp.isfinite(jnp.max(logits, axis=-1))[:, None], probs, jnp.nan)

    return HeadedDenoiser(head_of.hidden, head)


@cache
def guided_denoiser(conditional: Denoiser, unconditional: Denoiser, weight: float) -> Denoiser:
    """Classifier-free guidance of the posterior; the parameters are a pair, one of each denoiser.

        log p̃(v | z, c) = (1 + ω) log p̂(v | z, c) − ω log p̂(v | z) − log Z(z, c)   per position

    ω = 0 is the conditional denoiser, ω = −1 the unconditional one; ω > 0 strengthens the effect of
    c. p̃ is not the posterior of any data, so the distribution of the samples is not stated. With ω
    > 0 it is undefined where the unconditional probability is 0 and the conditional one is not; the
    row is then NaN, which samplers refuse. If the exponent were applied to rates instead of
    distributions, it would also change how often positions jump.

    Source: Ho & Salimans (2207.12598); in discrete state spaces Nisonoff et al. (2406.01572).

    Raises:
        ValueError: if ω is below −1 or not finite.
    """
    check_interval("weight", weight, -1, jnp.inf, ends="[)")
    told, untold = whole(conditional), whole(unconditional)

    def denoiser(params: tuple[Any, Any], x_t: Array, t: Array) -> Array:
        given = log_probs(told(params[0], x_t, t))
        alone = log_probs(untold(params[1], x_t, t))
        if weight in (0, -1):
            return given if weight == 0 else alone
        never, free = given == -jnp.inf, alone == -jnp.inf
        mixed = (1 + weight) * given - weight * jnp.where(free, 0.0, alone)  # never ∞ − ∞
        ratio = jnp.where(free, jnp.nan if weight > 0 else -jnp.inf, mixed)
        return log_probs(jnp.where(never, -jnp.inf, ratio))

    return denoiser


def logits_shape(params: Any, denoiser: Denoiser, x_t: Array) -> tuple[int, ...]:
    """The shape [N, V], from a trace that computes nothing."""
    return tuple(jax.eval_shape(whole(denoiser), params, x_t, jnp.zeros(())).shape)


def log_probs(logits: Array) -> Array:
    """Log-probabilities in float32 or wider, for logits of any type; a row of −∞ becomes NaN."""
    return jax.nn.log_softmax(widened(logits), axis=-1)


@cache
def _joined(denoiser: HeadedDenoiser) -> Callable[..., Array]:
    def joined(params: Any, x_t: Array, t: Array) -> Array:
        return denoiser.head(params, denoiser.hidden(params, x_t, t))

    return joined


def _same(params: Any, rows: Array) -> Array:
    return rows
