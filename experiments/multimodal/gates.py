"""The gates of `multimodal`: the weights r_0(k | c) of experts before an answer, and its nats.

The context c is the picture and the question.

    static             w_k, whatever is asked
    nearest            1 for f(c), the rule that partitioned the training questions       [D8]
    soft               ∝ exp(s_k(c) / τ), f(c) = argmax s_k
    router             ρ̂(k | c), linear in picture and question                      [D11]
    Bayes              the router's, times what each expert gave the answer so far   [D7]
    Bayes without r_0  w_k, times the same: the control, since experts model answers, not questions
    oracle             1 for the expert that finds the expected answer the likeliest

Only the two Bayes gates change along the answer.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.mixture import fit_temperature
from dfm_jax.training.router import fit_router, router_log_probs
from dfm_jax.types import Array
from experiments.multimodal.data import Data, Examples
from experiments.multimodal.variants import Parts, Trainer

_TEMPERATURES = (0.005, 5.0)
_ROUTED = 8192  # training questions that a router is fitted on, at most


@dataclass(frozen=True, kw_only=True, eq=False)
class Gate:
    """A gate on the questions of a split."""

    name: str
    log_prior: np.ndarray  # [Q, K] log r_0(k | c)
    moves: bool  # with the answer

    @property
    def kind(self) -> Literal["bayes", "static"]:
        """The name that decoders give to this kind of gate."""
        return "bayes" if self.moves else "static"


@dataclass(frozen=True, kw_only=True, eq=False)
class Router:
    """A router of one partition."""

    layers: Any
    mean: np.ndarray  # of pictures,
    directions: np.ndarray  # [D, F] and what is read of them
    decay: float
    losses: dict[float, float]  # cross-entropy on validation by decay, nats
    accuracy: float  # on validation

    def log_probs(self, data: Data, examples: Examples) -> np.ndarray:
        """log ρ̂(k | c): [Q, K]."""
        inputs = _inputs(data, examples, self.mean, self.directions)
        return np.asarray(jax.vmap(partial(router_log_probs, self.layers))(inputs))


def fitted_router(trainer: Trainer, parts: Parts) -> Router:
    """The router of a partition: fitted on training questions, its decay chosen on validation."""
    data, config = trainer.data, trainer.config
    train, held_out = data.splits["train"], data.splits["validation"]
    rows = np.sort(np.random.default_rng(0).permutation(len(train.questions))[:_ROUTED])
    known = data.whole[np.unique(train.picture)]
    mean = known.mean(axis=0)
    _, sizes, directions = np.linalg.svd(known - mean, full_matrices=False)
    count = min(config.num_directions, int((sizes > 0).sum()))
    scale = sizes[:count] / np.sqrt(len(known))
    directions = (directions[:count] / scale[:, None]).T
    inputs = _inputs(data, train.chosen(rows), mean, directions)
    found = {}
    for decay in config.decays:
        layers = fit_router(
            jax.random.key(0), inputs, parts.part_of["train"][rows], parts.num_parts, decay=decay
        ).layers
        router = Router(
            layers=layers, mean=mean, directions=directions, decay=decay, losses={}, accuracy=0.0
        )
        probs, part = router.log_probs(data, held_out), parts.part_of["validation"]
        loss = -float(probs[np.arange(part.size), part].mean())
        found[decay] = (loss, float((probs.argmax(axis=1) == part).mean()), router)
    best = min(found, key=lambda decay: found[decay][0])
    losses = {decay: loss for decay, (loss, _, _) in found.items()}
    return Router(
        layers=found[best][2].layers,
        mean=mean,
        directions=directions,
        decay=best,
        losses=losses,
        accuracy=found[best][1],
    )


def gates_of(
    trainer: Trainer,
    parts: Parts,
    weights: np.ndarray,
    router: Router,
    temperature: float | None,
    split: str,
    examples: Examples,
    answers: np.ndarray,
) -> list[Gate]:
    """Every gate that the partition has, on the questions of a split.

    Args:
        trainer: The trainer of the set.
        parts: The partition.
        weights: w_k, [K].
        router: The router of that partition.
        temperature: The temperature of the soft gate; None if there is none.
        split: The split whose parts are used; `examples` may have other pictures.
        examples: The questions.
        answers: log p_k of the expected answers, [Q, K], for the oracle.
    """
    prior = np.broadcast_to(np.log(weights), answers.shape)
    routed = router.log_probs(trainer.data, examples)
    found = [Gate(name="static", log_prior=prior, moves=False)]
    if parts.of_context:
        part = parts.part_of[split]
        found.append(Gate(name="nearest", log_prior=_one_hot(part, parts.num_parts), moves=False))
    if temperature is not None and parts.scores is not None:
        probs = _log_softmax(parts.scores[examples.picture] / temperature)
        found.append(Gate(name="soft", log_prior=probs, moves=False))
    found += [
        Gate(name="router", log_prior=routed, moves=False),
        Gate(name="Bayes", log_prior=routed, moves=True),
        Gate(name="Bayes without r_0", log_prior=prior, moves=True),
    ]
    best = _one_hot(answers.argmax(axis=1), parts.num_parts)
    return [*found, Gate(name="oracle", log_prior=best, moves=False)]


def nats(gate: Gate, log_probs: np.ndarray) -> np.ndarray:
    """−log p of the expected answers under a gate, [Q]; `log_probs` [Q, K, A] are the experts'."""
    if gate.moves:
        return -_log_sum(gate.log_prior + log_probs.sum(axis=2))
    return -_log_sum(gate.log_prior[:, :, None] + log_probs, axis=1).sum(axis=1)


def soft_temperature(scores: np.ndarray, log_probs: np.ndarray) -> tuple[float, bool]:
    """The τ whose soft gate decodes validation best, and whether it is an end of the interval."""
    found = _fitted(scores, log_probs)
    return float(found.temperature), bool(found.at_bound)


@jax.jit
def _fitted(scores: Array, log_probs: Array):
    def loss(temperature: Array) -> Array:
        probs = jax.nn.log_softmax(scores / temperature, axis=1)
        return -jnp.mean(jax.nn.logsumexp(probs[:, :, None] + log_probs, axis=1).sum(axis=1))

    return fit_temperature(loss, *_TEMPERATURES)


def _inputs(data: Data, examples: Examples, mean: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Directions of the picture, each of variance 1 in training, and which tokens are asked."""
    seen = (data.whole[examples.picture] - mean) @ directions
    asked = np.zeros((len(examples.questions), data.num_tokens))
    inside = np.arange(examples.tokens.shape[1]) < examples.lengths[:, None]
    rows, columns = np.nonzero(inside)
    asked[rows, examples.tokens[rows, columns]] = 1
    return np.concatenate([seen, asked], axis=1).astype(np.float32)


def _one_hot(part: np.ndarray, count: int) -> np.ndarray:
    return np.where(part[:, None] == np.arange(count), 0.0, -np.inf)


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    return scores - _log_sum(scores)[:, None]


def _log_sum(values: np.ndarray, axis: int = 1) -> np.ndarray:
    top = values.max(axis=axis, keepdims=True)
    return np.squeeze(top, axis) + np.log(np.exp(values - top).sum(axis=axis))
