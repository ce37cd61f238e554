"""Gates that read the context of a sequence, fitted on training text, tuned on validation.

    centroid     ρ_k ∝ exp(⟨f, c_k⟩ / τ), c_k the mean direction of the text of part k
    router       ρ̂, linear in f, by cross-entropy to the part                              [D11]
    likelihood   ρ_k ∝ w_k p̃_k(c)^{1/τ}, p̃_k a short n-gram of part k

The last is how SmallTalk routes (arXiv 2410.03529): by small models of the prefix. Each serves as a
gate that stays as it is, and as the prior P̂(k | c) of a Bayes gate [D7]. τ is fitted to the
likelihood of what is decoded, so it has one value for either use. A sequence without a context, or
without a feature, gets the prior w.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import require
from dfm_jax.gates import FittedTemperature, centroid_gate, fit_temperature
from dfm_jax.objectives import router_loss
from dfm_jax.training.router import FittedRouter, Router, fit_router, router_log_law
from dfm_jax.types import Array
from experiments.contexts import Contexts, Pieces
from experiments.counting_worlds import World
from experiments.gate_ladder import ContextLaws

NAMES = ("centroid", "router", "likelihood")
TEMPERATURES = {"centroid": (0.01, 10.0), "likelihood": (1.0, 1e4)}
_STARTS, _STEPS = 12, 16  # τ to a tenth of a per cent


@dataclass(frozen=True, kw_only=True)
class ContextModels:
    """What the gates of one partition know of its parts."""

    log_prior: np.ndarray  # [K] log w_k
    centroids: np.ndarray  # [K, F]
    router: FittedRouter
    decay: float  # the router's, the best on validation
    num_rows: int  # windows that the router was fitted on
    router_losses: dict[float, float]  # cross-entropy on validation by decay, nats


def fitted(
    pieces: Pieces,
    part_of: np.ndarray,
    held_out: Contexts,
    held_out_part: np.ndarray,
    log_prior: np.ndarray,
    *,
    decays: Sequence[float],
) -> ContextModels:
    """Centroids of all training text; a router of the training windows that are contexts.

    Args:
        pieces: training text.
        part_of: [D] the part of each training document.
        held_out: contexts of validation.
        held_out_part: [Q] the part of each.
        log_prior: [K] log w_k.
        decays: of the router, to choose from on validation.
    """
    num_parts, part = log_prior.size, part_of[pieces.document]
    known = ~np.isnan(pieces.features[:, 0])
    sums = np.zeros((num_parts, pieces.features.shape[1]))
    np.add.at(sums, part[known], pieces.features[known])
    rows = known & pieces.precedes
    require(
        rows.any(), "`window` must leave training text a context with a known word; their number", 0
    )
    features, labels, counted = _padded(pieces.features[rows], part[rows])
    asked = held_out.known
    routers, losses = {}, {}
    with _float64():
        for decay in decays:
            fit = _fit_router(jax.random.key(0), features, labels, counted, decay, num_parts)
            require(np.isfinite(fit.objective), "the router's loss must be finite", fit.objective)
            routers[decay] = jax.tree.map(np.asarray, fit)
            laws = _router_laws(fit.layers, _filled(held_out))
            found = _router_losses(laws, held_out_part)[asked]
            losses[decay] = float(found.mean()) if found.size else np.inf
    best = min(losses, key=losses.__getitem__)
    return ContextModels(
        log_prior=log_prior,
        centroids=sums,
        router=routers[best],
        decay=best,
        num_rows=int(rows.sum()),
        router_losses=losses,
    )


def laws(
    models: ContextModels,
    tuned_on: tuple[World, Contexts, np.ndarray],
    judged_on: tuple[Contexts, np.ndarray],
) -> tuple[ContextLaws, dict[str, Any]]:
    """The laws of the sequences judged, tuned on others, and the temperatures.

    Args:
        models: by `fitted`.
        tuned_on: a world of validation, its contexts, and log p̃_k of each, [Q, K].
        judged_on: other contexts, and their log p̃_k.
    """
    world, tuning, tuning_scores = tuned_on
    contexts, scores = judged_on
    fixed, prior, record = {}, {}, {}
    with _float64():
        token_loss = _token_arguments(world)
        sequence_sums = jnp.asarray(np.add.reduceat(world.log_probs, world.sequences.starts))
        for name, make in _MAKERS.items():
            here = _inputs(name, models, tuning, tuning_scores)
            there = _inputs(name, models, contexts, scores)
            bounds = TEMPERATURES[name]
            token = _tuned_token(make, here, *bounds, *token_loss)
            sequence = _tuned_sequence(make, here, *bounds, sequence_sums)
            fixed[name] = np.asarray(jax.jit(make)(there, token.temperature))
            prior[name] = np.asarray(jax.jit(make)(there, sequence.temperature))
            record[name] = {"fixed": _record(token), "prior": _record(sequence)}
        routed = np.asarray(_router_laws(models.router.layers, _filled(contexts)))
    routed = np.where(contexts.known[:, None], routed, models.log_prior)
    fixed["router"] = prior["router"] = routed
    return (
        ContextLaws(
            names=NAMES,
            fixed=np.stack([fixed[name] for name in NAMES], axis=1),
            prior=np.stack([prior[name] for name in NAMES], axis=1),
        ),
        record,
    )


def span_scores(log_probs: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Σ log p over spans of bytes: [Q, K] of [N, K], in nats."""
    before = np.concatenate([np.zeros((1, log_probs.shape[1])), np.cumsum(log_probs, axis=0)])
    return before[spans[:, 1]] - before[spans[:, 0]]


def _record(found: FittedTemperature) -> dict[str, Any]:
    return {"temperature": float(found.temperature), "at_bound": bool(found.at_bound)}


# ── laws as functions of a temperature ──────────────────────────────────────────────────────────


def _inputs(
    name: str, models: ContextModels, contexts: Contexts, scores: np.ndarray
) -> Mapping[str, np.ndarray]:
    if name == "centroid":
        own = {"features": _filled(contexts), "centroids": models.centroids}
        return own | {"known": contexts.known, "log_prior": models.log_prior}
    return {"scores": scores, "known": ~contexts.empty, "log_prior": models.log_prior}


def _centroid_laws(inputs: Mapping[str, Array], temperature: Array) -> Array:
    gate = jax.vmap(centroid_gate, (0, None, None))
    found = jnp.log(gate(inputs["features"], inputs["centroids"], temperature))
    return jnp.where(inputs["known"][:, None], found, inputs["log_prior"][None])


def _likelihood_laws(inputs: Mapping[str, Array], temperature: Array) -> Array:
    joint = inputs["log_prior"][None] + inputs["scores"] / temperature
    found = jax.nn.log_softmax(joint, axis=-1)
    return jnp.where(inputs["known"][:, None], found, inputs["log_prior"][None])


_MAKERS: dict[str, Callable[[Any, Array], Array]] = {
    "centroid": _centroid_laws,
    "likelihood": _likelihood_laws,
}


def _filled(contexts: Contexts) -> np.ndarray:
    """A direction for every row: what comes of one without a feature is not read."""
    return np.where(contexts.known[:, None], contexts.features, 1.0)


# ── what temperatures are fitted to ─────────────────────────────────────────────────────────────


def _token_arguments(world: World) -> tuple[Array, Array]:
    """p_k of each byte, [N, K], and its sequence, [N]."""
    first = np.zeros(world.sequences.num_bytes, int)
    first[world.sequences.starts[1:]] = 1
    # Not in log space: a byte's probability does not underflow, and every step reads all bytes.
    return jnp.exp(world.log_probs), jnp.asarray(np.cumsum(first))


@partial(jax.jit, static_argnames="make")
def _tuned_token(make, inputs, low, high, probs, sequence) -> FittedTemperature:
    def loss(temperature: Array) -> Array:
        weights = jnp.exp(make(inputs, temperature))[sequence]
        return -jnp.mean(jnp.log(jnp.sum(weights * probs, axis=-1)))

    return fit_temperature(loss, low, high, num_starts=_STARTS, num_steps=_STEPS)


@partial(jax.jit, static_argnames="make")
def _tuned_sequence(make, inputs, low, high, sums) -> FittedTemperature:
    def loss(temperature: Array) -> Array:
        return -jnp.mean(jax.nn.logsumexp(make(inputs, temperature) + sums, axis=-1))

    return fit_temperature(loss, low, high, num_starts=_STARTS, num_steps=_STEPS)


# ── the router ──────────────────────────────────────────────────────────────────────────────────


def _padded(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """To the next power of two, the rest with weight 0: one shape for texts of like size."""
    num = 1 << (len(labels) - 1).bit_length()
    filled = np.zeros((num, features.shape[1]))
    filled[: len(labels)] = features
    padded = np.zeros(num, int)
    padded[: len(labels)] = labels
    return filled, padded, (np.arange(num) < len(labels)).astype(float)


@partial(jax.jit, static_argnames="num_parts")
def _fit_router(key, features, labels, counted, decay, num_parts: int) -> FittedRouter:
    return fit_router(key, features, labels, num_parts, row_weights=counted, decay=decay)


@jax.jit
def _router_laws(layers: Router, features: Array) -> Array:
    return jax.vmap(router_log_law, (None, 0))(layers, features)


@jax.jit
def _router_losses(log_laws: Array, parts: Array) -> Array:
    return jax.vmap(router_loss)(log_laws, parts)


@contextmanager
def _float64() -> Iterator[None]:
    """On the host's CPU, in float64."""
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        yield
