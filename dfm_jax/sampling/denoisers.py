"""What samplers ask of a network or an exact posterior: p̂_{1|t} as logits, and ways to bend it.

Logits need not be normalized, so log p̂ will do. A denoiser is static: keep one, don't make one per
call. The factories here return the same denoiser for the same arguments.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_count, check_interval
from dfm_jax.interfaces import Denoiser, HeadedDenoiser
from dfm_jax.sampling.autoregressive import truncated_probs
from dfm_jax.types import Array


def halves(denoiser: Denoiser) -> HeadedDenoiser:
    """Any denoiser as two halves; one that has none does all its work in the first."""
    if isinstance(denoiser, HeadedDenoiser):
        return denoiser
    return HeadedDenoiser(denoiser, _same)


def whole(denoiser: Denoiser) -> Callable[..., Array]:
    """Any denoiser as one function."""
    return _joined(denoiser) if isinstance(denoiser, HeadedDenoiser) else denoiser


@cache
def denoiser_of(apply: Callable[..., Array], *, time_conditioned: bool) -> Denoiser:
    """A network's `apply(params, x_t, t=None)` as a denoiser; one without time is not told it."""

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
    """Every position's distribution under a temperature, then top-k, then top-p.  [B6]

    As `next_token_log_probs`; what is drawn is then another distribution than the model's.

    Raises:
        ValueError: unless τ ≥ 0, k ≥ 1, 0 < p ≤ 1.
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
    """Classifier-free guidance of the posterior; it takes the pair of both denoisers' parameters.

        log p̃(v | z, c) = (1 + ω) log p̂(v | z, c) − ω log p̂(v | z) − log Z(z, c)   per position

    ω = 0 is the conditional one, ω = −1 the other; ω > 0 sharpens what c says. p̃ is no posterior
    of any data: the samples' distribution is not stated. With ω > 0 it has no value where the
    unconditional one is 0 and the conditional is not; the row is then NaN, which samplers refuse.
    Applied to rates, not to distributions, the exponent changes how often one jumps as well.

    Source: Ho & Salimans (2207.12598); in discrete state spaces Nisonoff et al. (2406.01572).

    Raises:
        ValueError: unless ω ≥ −1 and finite.
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
    """[N, V], by a trace that computes nothing."""
    return tuple(jax.eval_shape(whole(denoiser), params, x_t, jnp.zeros(())).shape)


def log_probs(logits: Array) -> Array:
    """In float32 at least, whatever a network computed in; rows of −∞ alone become NaN."""
    wide = logits if jnp.finfo(logits.dtype).bits >= 32 else logits.astype(jnp.float32)
    return jax.nn.log_softmax(wide, axis=-1)


@cache
def _joined(denoiser: HeadedDenoiser) -> Callable[..., Array]:
    def joined(params: Any, x_t: Array, t: Array) -> Array:
        return denoiser.head(params, denoiser.hidden(params, x_t, t))

    return joined


def _same(params: Any, rows: Array) -> Array:
    return rows
