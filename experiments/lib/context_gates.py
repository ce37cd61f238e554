"""Gates that read the context of a sequence, fitted on training text, tuned on validation.

    centroid     ρ_k ∝ exp(⟨f, c_k⟩ / τ), c_k the mean direction of the text of part k
    router       ρ̂, linear in f, by cross-entropy to the part                              [D11]
    likelihood   ρ_k ∝ w_k p̃_k(c)^{1/τ}, p̃_k a short n-gram of part k

The last is the router of SmallTalk (arXiv 2410.03529), by small models of the prefix. Each is used
as a gate that does not change, and as the prior P̂(k | c) of a Bayes gate [D7]. τ is fitted to the
likelihood of the decoded text, so each of the two uses has its own value. A sequence without a
context, or without a feature, gets the prior w.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import require
from dfm_jax.comparison.evaluation_sets import EvaluationSet
from dfm_jax.comparison.gates import ContextProbs
from dfm_jax.mixture import FittedTemperature, centroid_gate, fit_temperature
from dfm_jax.training.router import FittedRouter, Router, fit_router, router_log_probs
from dfm_jax.types import Array
from experiments.lib.contexts import Contexts, Pieces

NAMES = ("centroid", "router", "likelihood")
TEMPERATURES = {"centroid": (0.01, 10.0), "likelihood": (1.0, 1e4)}
_STARTS, _STEPS = 12, 16  # τ to a tenth of a per cent
_BYTES, _SEQUENCES, _ROWS = 2**17, 2**10, 2**11  # shapes are multiples of these


@dataclass(frozen=True, kw_only=True)
class ContextModels:
    """The models with which the gates of one partition recognize its parts."""

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
    """Fit centroids on all training text, and a router on the training windows that are contexts.

    Args:
        pieces: The training text.
        part_of: The part of each training document, [D].
        held_out: The contexts of validation.
        held_out_part: The part of each of them, [Q].
        log_prior: log w_k, [K].
        decays: The decays of the router from which validation chooses.
    """
    num_parts, part = log_prior.size, part_of[pieces.document]
    known = ~np.isnan(pieces.features[:, 0])
    sums = np.zeros((num_parts, pieces.features.shape[1]))
    np.add.at(sums, part[known], pieces.features[known])
    rows, asked = known & pieces.precedes, held_out.known
    for text, some in (("training", rows), ("validation", asked)):
        rule = f"`window` must leave a context with a known word in the {text} text"
        require(some.any(), rule, 0, name="number of such contexts")
    batch = _Batch(*(_padded(x, _ROWS) for x in (pieces.features[rows], part[rows], rows[rows])))
    routers, losses = {}, {}
    for decay in decays:
        with _float64():
            fit = jax.tree.map(np.asarray, _fit_router(jax.random.key(0), batch, decay, num_parts))
        rule = f"The loss of the router must be finite at decay {decay}"
        require(np.isfinite(fit.objective), rule, fit.objective, name="loss")
        found = _router_probs(fit.layers, held_out, log_prior)[asked, held_out_part[asked]]
        routers[decay], losses[decay] = fit, -float(found.mean())
    best = min(losses, key=losses.__getitem__)
    return ContextModels(
        log_prior=log_prior,
        centroids=sums,
        router=routers[best],
        decay=best,
        num_rows=int(rows.sum()),
        router_losses=losses,
    )


def token_probs(
    models: ContextModels,
    tuned_on: tuple[EvaluationSet, Contexts, np.ndarray],
    judged_on: tuple[Contexts, np.ndarray],
) -> tuple[ContextProbs, dict[str, Any]]:
    """The gates' distributions of some sequences, tuned on others, and the temperatures.

    Args:
        models: The result of `fitted`.
        tuned_on: An evaluation set of validation, its contexts, and log p̃_k of each, [Q, K].
        judged_on: Other contexts, and their log p̃_k, for which the distributions are.
    """
    evaluation_set, tuning, tuning_scores = tuned_on
    contexts, scores = judged_on
    num, fixed, prior, record = len(contexts.spans), {}, {}, {}
    with _float64():
        of_bytes, of_sequences = _decoded(evaluation_set)
        for name in TEMPERATURES:
            here = _inputs(name, models, tuning, tuning_scores)
            there = _inputs(name, models, contexts, scores)
            ends = TEMPERATURES[name]
            found, token_probs = _tuned(_MAKERS[name], here, there, *ends, of_bytes, of_sequences)
            fixed[name], prior[name] = (np.asarray(probs)[:num] for probs in token_probs)
            record[name] = dict(zip(("fixed", "prior"), map(_record, found), strict=True))
    fixed["router"] = prior["router"] = _router_probs(
        models.router.layers, contexts, models.log_prior
    )
    return (
        ContextProbs(
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


# ── distributions as functions of a temperature ───────────────────────────────────────────────────


def _inputs(
    name: str, models: ContextModels, contexts: Contexts, scores: np.ndarray
) -> Mapping[str, np.ndarray]:
    if name == "centroid":
        own = {"features": _padded(_filled(contexts), _SEQUENCES), "centroids": models.centroids}
        known = contexts.known
    else:
        own, known = {"scores": _padded(scores, _SEQUENCES)}, ~contexts.empty
    return own | {"known": _padded(known, _SEQUENCES), "log_prior": models.log_prior}


def _centroid_probs(inputs: Mapping[str, Array], temperature: Array) -> Array:
    gate = jax.vmap(centroid_gate, (0, None, None))
    found = jnp.log(gate(inputs["features"], inputs["centroids"], temperature))
    return jnp.where(inputs["known"][:, None], found, inputs["log_prior"][None])


def _likelihood_probs(inputs: Mapping[str, Array], temperature: Array) -> Array:
    joint = inputs["log_prior"][None] + inputs["scores"] / temperature
    found = jax.nn.log_softmax(joint, axis=-1)
    return jnp.where(inputs["known"][:, None], found, inputs["log_prior"][None])


_MAKERS: dict[str, Callable[[Any, Array], Array]] = {
    "centroid": _centroid_probs,
    "likelihood": _likelihood_probs,
}


def _filled(contexts: Contexts) -> np.ndarray:
    """A direction for every row; the result for a row without a feature is not used."""
    return np.where(contexts.known[:, None], contexts.features, 1.0)


# ── what temperatures are fitted to ─────────────────────────────────────────────────────────────


class _Bytes(NamedTuple):
    probs: np.ndarray  # [N, K] p_k of each byte: it does not underflow, and is read at every step
    sequence: np.ndarray  # [N]
    counted: np.ndarray  # [N] 0 where the text is padded


class _Sums(NamedTuple):
    log_probs: np.ndarray  # [Q, K] log p_k of each sequence
    counted: np.ndarray  # [Q] 0 where there is none


def _decoded(evaluation_set: EvaluationSet) -> tuple[_Bytes, _Sums]:
    spans = evaluation_set.sequences
    first = np.zeros(spans.num_bytes, int)
    first[spans.starts[1:]] = 1
    sums = np.add.reduceat(evaluation_set.log_probs, spans.starts)
    return (
        _Bytes(
            _padded(np.exp(evaluation_set.log_probs), _BYTES, 1.0),
            _padded(np.cumsum(first), _BYTES),
            _padded(np.ones(spans.num_bytes), _BYTES),
        ),
        _Sums(_padded(sums, _SEQUENCES), _padded(np.ones(len(sums)), _SEQUENCES)),
    )


@partial(jax.jit, static_argnames="make")
def _tuned(
    make, here, there, low, high, of_bytes: _Bytes, of_sequences: _Sums
) -> tuple[tuple[FittedTemperature, ...], tuple[Array, ...]]:
    """The temperatures of a gate that does not change and of a prior, and their distributions."""

    def token_by_token(temperature: Array) -> Array:
        weights = jnp.exp(make(here, temperature))[of_bytes.sequence]
        losses = -jnp.log(jnp.sum(weights * of_bytes.probs, axis=-1))
        return jnp.sum(of_bytes.counted * losses)

    def sequence_mixture(temperature: Array) -> Array:
        joint = make(here, temperature) + of_sequences.log_probs
        return -jnp.sum(of_sequences.counted * jax.nn.logsumexp(joint, axis=-1))

    options = {"num_starts": _STARTS, "num_steps": _STEPS}
    found = tuple(
        fit_temperature(loss, low, high, **options) for loss in (token_by_token, sequence_mixture)
    )
    return found, tuple(make(there, fit.temperature) for fit in found)


def _padded(rows: np.ndarray, multiple: int, filler: float = 0) -> np.ndarray:
    """Pad to a multiple of so many rows, so that there are few shapes and few compilations."""
    num = -(-len(rows) // multiple) * multiple
    filled = np.full((num, *rows.shape[1:]), filler, rows.dtype)
    filled[: len(rows)] = rows
    return filled


# ── the router ──────────────────────────────────────────────────────────────────────────────────


class _Batch(NamedTuple):
    features: np.ndarray  # [R, F]
    parts: np.ndarray  # [R]
    counted: np.ndarray  # [R] False where there is no row


@partial(jax.jit, static_argnames="num_parts")
def _fit_router(key, batch: _Batch, decay: float, num_parts: int) -> FittedRouter:
    weights = batch.counted.astype(float)
    return fit_router(key, batch.features, batch.parts, num_parts, row_weights=weights, decay=decay)


def _router_probs(layers: Router, contexts: Contexts, log_prior: np.ndarray) -> np.ndarray:
    with _float64():
        found = np.asarray(_log_probs(layers, _padded(_filled(contexts), _SEQUENCES)))
    return np.where(contexts.known[:, None], found[: len(contexts.spans)], log_prior)


@jax.jit
def _log_probs(layers: Router, features: Array) -> Array:
    return jax.vmap(router_log_probs, (None, 0))(layers, features)


@contextmanager
def _float64() -> Iterator[None]:
    """In this context, compute on the host's CPU in float64."""
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        yield
