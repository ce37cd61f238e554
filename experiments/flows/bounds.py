"""The losses of flows on held-out images: dense and gated experts on the same draws.    [D4, B8]

    p̂_{1|t}^i(v | z) = Σ_k ρ̂_k(z, t) p̂_{1|t}^{k,i}(v | z),  one gate a state                    [D5]

so the velocity is Σ_k ρ̂_k û^k (D4). Per draw, with k the image's own part, B8's right-hand side
for the rates 1[j = k] u(· | x_1) against ρ̂_j û^j is computable without the true r_k and u^k:

    Σ_j [1[j = k] u log(1[j = k] u/ρ̂_j û^j) − 1[j = k] u + ρ̂_j û^j]                             [B8]

If a draw is a step of a grid, or the last step, this is λ (−log ρ̂_k p̂^k), not λ (−log Σ_j ρ̂_j
p̂^j). It is above the ensemble's loss at every state. It is above the loss of the own expert (the
oracle gate) by the cost of naming k at each jump. If the part is a function of X_1, its mean is
B8's right-hand side for the true r_k u^k plus a constant of the data; the ensemble's mean is B8's
left-hand side plus a smaller constant. Neither constant is known, so B8 itself is measured in
`flows.evaluation_set`.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.mixture import mix, mix_log_probs
from dfm_jax.models import Network, Params
from dfm_jax.objectives import cross_entropy_loss, generalized_kl, router_loss, step_loss
from dfm_jax.samplers import autoregressive_log_prob
from dfm_jax.schedules import any_order, linear
from dfm_jax.steps import step_size
from dfm_jax.types import Array
from dfm_jax.velocities import mixture_velocity, posterior_to_velocity
from experiments.flows.sources import Draws, Source

GATES = ("static", "router", "oracle")
_CHUNK = 256  # states that are judged together


class Costs(NamedTuple):
    """The losses of one draw, in nats of an image, before the weight of its time."""

    gates: Array  # [3] the bound's term under each of `GATES`
    named: Array  # B8's right-hand side: ρ̂_k û^k alone may make the jump
    router: Array  # −log ρ̂_k(X_t, t) of the own part, not a term of any bound
    residual: Array  # |velocities mixed − posteriors mixed|: D4 against D5


def ensemble_costs(
    source: Source, log_prior: Array, log_posteriors: Array, log_router: Array, x_1: Array,
    part: Array, draw: Draws,
) -> Costs:  # fmt: skip
    """The loss of every gate for one draw, from the experts' posteriors [K, N, V] and ρ̂ [K]."""
    oracle = jnp.where(jnp.arange(log_prior.shape[0]) == part, 0.0, -jnp.inf)
    mixed = {
        name: mix_log_probs(probs, log_posteriors)
        for name, probs in zip(GATES, (log_prior, log_router, oracle), strict=True)
    }
    nats = {name: source.nats(probs, x_1, draw) for name, probs in mixed.items()}
    # −log ρ̂_k p̂^k in the place of −log p̂^k: what a position pays that jumps. A loss normalizes.
    own, pay = log_posteriors[part], router_loss(log_router, part)
    if source.name == "masked":
        num_masked = jnp.sum(draw.x_t == source.num_tokens)
        named = source.nats(own, x_1, draw) + draw.size * num_masked * pay
        residual = jnp.zeros_like(nats["router"])
    else:
        rates, mixture = _named_rates(source, log_posteriors, log_router, x_1, part, draw)
        named = jnp.where(draw.last, jnp.sum(cross_entropy_loss(own, x_1) + pay), rates)
        residual = jnp.where(draw.last, 0.0, jnp.abs(mixture - nats["router"]))
    return Costs(jnp.stack([nats[name] for name in GATES]), named, pay, residual)


def _named_rates(
    source: Source, log_posteriors: Array, log_router: Array, x_1: Array, part: Array, draw: Draws
) -> tuple[Array, Array]:
    """Σ_i of B8's right-hand side, and of the cost of the mixed velocity Σ_k ρ̂_k û^k."""
    num_states, router = source.num_states, jnp.exp(log_router)
    at = (draw.x_t, draw.t, linear())
    target = mixture_velocity(x_1, *at, num_states=num_states)
    velocities = jax.vmap(lambda probs: posterior_to_velocity(probs, *at, num_states=num_states))(
        jnp.exp(log_posteriors)
    )
    mine = (jnp.arange(router.shape[0]) == part)[:, None, None]
    targets = jnp.where(mine, target[None], 0.0)
    costs = jax.vmap(generalized_kl, (0, 0, None))(
        targets, router[:, None, None] * velocities, draw.x_t
    )
    mixture = generalized_kl(target, mix(router, velocities), draw.x_t)
    return jnp.sum(costs), jnp.sum(mixture)


# ── over images ─────────────────────────────────────────────────────────────────────────────────


class EnsembleScores(NamedTuple):
    """Nats per image [D] in float64, and the worst values of single draws."""

    gates: np.ndarray  # [D, 3]
    named: np.ndarray  # [D]
    router: np.ndarray  # [D] mean of −log ρ̂_k over draws
    residual: float  # of a draw
    slack: float  # of a draw: B8's right-hand side less the router-gated ensemble


def dense_scores(
    source: Source, network: Network, params: Params, images: np.ndarray, draws: Draws
) -> np.ndarray:
    """The loss of one network on each image, in nats: [D]."""
    nats = _over_states(_dense(source, network), (params,), images, draws, None)
    return np.sum(np.asarray(draws.weight, np.float64) * nats, axis=1)


def ensemble_scores(
    source: Source,
    networks: tuple[Network, Network],
    experts: Params,
    router: Params,
    log_prior: np.ndarray,
    images: np.ndarray,
    parts: np.ndarray,
    draws: Draws,
) -> EnsembleScores:
    """The losses of K experts [K, …] under every gate.

    Args:
        source: The source of the bound.
        networks: The networks of an expert and of the router.
        experts: The parameters of the experts, stacked.
        router: The parameters of the router.
        log_prior: log w_k, [K].
        images: Held-out images, [D, N].
        parts: Their own parts, [D].
        draws: The draws of `image_draws`, [D, J].
    """
    measure = _ensemble(source, *networks)
    params = (experts, router, jnp.asarray(log_prior, jnp.float32))
    found: Costs = _over_states(measure, params, images, draws, parts)
    weight = np.asarray(draws.weight, np.float64)
    return EnsembleScores(
        gates=np.sum(weight[..., None] * found.gates, axis=1),
        named=np.sum(weight * found.named, axis=1),
        router=np.mean(found.router, axis=1),
        residual=float(np.max(found.residual / np.maximum(1.0, found.gates[..., 1]))),
        slack=float(np.min(found.named - found.gates[..., 1])),
    )


@cache
def _dense(source: Source, network: Network) -> Any:
    def measure(params: Params, x_1: Array, _: Array, draw: Draws) -> Array:
        return source.nats(network.apply(params, draw.x_t, draw.t), x_1, draw)

    return jax.jit(jax.vmap(measure, (None, 0, 0, 0)))


@cache
def _ensemble(source: Source, network: Network, router: Network) -> Any:
    def measure(
        experts: Params, gate: Params, log_prior: Array, x_1: Array, part: Array, draw: Draws
    ) -> Costs:
        log_posteriors = _expert_probs(network, experts, draw.x_t, draw.t)
        log_router = jax.nn.log_softmax(router.apply(gate, draw.x_t, draw.t))
        return ensemble_costs(source, log_prior, log_posteriors, log_router, x_1, part, draw)

    return jax.jit(jax.vmap(measure, (None, None, None, 0, 0, 0)))


def _expert_probs(network: Network, experts: Params, x_t: Array, t: Array) -> Array:
    logits = jax.vmap(network.apply, (0, None, None))(experts, x_t, t)
    return jax.nn.log_softmax(logits)


def _over_states(
    measure: Any, params: tuple, images: np.ndarray, draws: Draws, parts: np.ndarray | None
) -> Any:
    """Of all states [D, J], some at a time, padded so that one program serves: leaves [D, J, …]."""
    shape = draws.t.shape
    x_1 = np.repeat(images, shape[1], axis=0)
    part = np.repeat(np.zeros(shape[0], int) if parts is None else parts, shape[1])
    flat = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), draws)
    size, rows = len(x_1), []
    for first in range(0, size, _CHUNK):
        at = np.minimum(np.arange(first, first + _CHUNK), size - 1)
        here = jax.tree.map(lambda leaf, at=at: leaf[at], (x_1, part, flat))
        rows.append(jax.device_get(measure(*params, *here)))

    def joined(*leaves: np.ndarray) -> np.ndarray:
        whole = np.concatenate(leaves)[:size].astype(np.float64)
        return whole.reshape(*shape, *whole.shape[1:])

    return jax.tree.map(joined, *rows)


@partial(jax.jit, static_argnums=(0, 1, 2))
def sequential_gap(
    source: Source, network: Network, router: Network, experts: Params, gate: Params, x_1: Array,
    order: Array,
) -> Array:  # fmt: skip
    """|Σ_t L5 of one-position steps − NLL of drawing position after position|, in nats. [L5, S1]

    It is for the ensemble with its router, one image and one order.
    """
    num_positions = source.num_positions
    table = any_order(order)
    steps = jnp.arange(num_positions)
    x_t = jnp.where(table[:-1] == 1, x_1[None], source.num_tokens)

    def probs(state: Array, step: Array) -> Array:
        t = step / num_positions
        log_router = jax.nn.log_softmax(router.apply(gate, state, t))
        return mix_log_probs(log_router, _expert_probs(network, experts, state, t))

    token_probs = jax.vmap(probs)(x_t, steps)
    sizes = jax.vmap(lambda step: step_size(table, step))(steps)
    every = jax.vmap(step_loss, (0, None, 0, 0))
    drawn = autoregressive_log_prob(x_1[order], token_probs[steps, order])
    return jnp.abs(jnp.sum(every(token_probs, x_1, x_t, sizes)) + drawn)
