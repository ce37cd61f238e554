"""K experts as one denoiser, under a router.   [D5]"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.interfaces import Denoiser
from dfm_jax.mixture.gates import top_experts_gate
from dfm_jax.mixture.logits import mix_logits
from dfm_jax.sampling.denoisers import log_law, whole
from dfm_jax.types import Array


class EnsembleParams(NamedTuple):
    """What `ensemble_denoiser` takes."""

    experts: Any  # [K, …] the parameters of one expert, stacked
    router: Any


@cache
def ensemble_denoiser(
    denoiser: Denoiser, router: Callable[..., Array], *, top_experts: int | None = None
) -> Denoiser:
    """K experts as one denoiser, under a router; it takes `EnsembleParams`.

        p̂_{1|t}^i(v | z) = Σ_k ρ̂_k(z, t) p̂_{1|t}^{k,i}(v | z)   [D5]

    `router(params, x_t, t)` gives the logits of ρ̂, or log r_k(z, t): [K]. Steps of the mixed
    posterior are steps of the mixed velocity (D4), so every sampler of one denoiser is one of all.
    With `top_experts` the router is cut to as many, the largest, at every step, at the cost of B6.
    """
    each = whole(denoiser)

    def mixed(params: EnsembleParams, x_t: Array, t: Array) -> Array:
        log_weights = log_law(router(params.router, x_t, t))
        if top_experts is not None:
            log_weights = jnp.log(top_experts_gate(jnp.exp(log_weights), top_experts))
        logits = jax.vmap(each, (0, None, None))(params.experts, x_t, t)
        return mix_logits(log_weights, logits)

    return mixed
