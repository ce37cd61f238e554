"""A router that reads the prefix: a transformer that predicts the part of each token.   [D11]

    min_φ E[−log ρ̂_k(x^{<i}; φ)],  k the part of token i

over training windows; row i of its distribution mixes the experts' distributions of token i. Its
temperature is fitted on validation to what is decoded, −Σ_i log Σ_k ρ̂_k(x^{<i})^{1/τ} p_k(x^i |
x^{<i}) / Z.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.data.tokens import TokenSet
from dfm_jax.interfaces import Losses, Task
from dfm_jax.mixture import fit_temperature
from dfm_jax.models import Network, Params, TransformerConfig
from dfm_jax.models import router as router_network
from dfm_jax.models.sizes import flops_per_token
from dfm_jax.objectives import router_loss
from dfm_jax.training.batches import cut_windows, document_pieces, stream_windows
from dfm_jax.training.checkpoint import read_checkpoint
from dfm_jax.training.config import LogConfig, OptimizerConfig, TrainConfig, to_json
from dfm_jax.training.examples import Examples
from dfm_jax.training.fit import make_run
from dfm_jax.training.loop import train
from dfm_jax.types import Array, ArrayLike, Key

_TEMPERATURES = (0.1, 10.0)
_BATCH = 64  # windows that are routed together


class RoutedBatch(NamedTuple):
    """Sequences, which of their tokens count, and the part that each token is of."""

    tokens: ArrayLike
    valid: ArrayLike
    parts: ArrayLike


@dataclass(frozen=True, kw_only=True)
class Router:
    """A trained router."""

    config: TrainConfig
    num_experts: int
    params: Params

    @property
    def num_tokens(self) -> int:
        """The number of tokens on which it was trained."""
        return self.config.num_steps * self.config.batch_size * self.config.num_positions

    @property
    def flops(self) -> float:
        """The FLOPs of its training."""
        length = self.config.num_positions
        per_token = flops_per_token(self.config.model, length, num_outputs=self.num_experts)
        return 3 * per_token * self.num_tokens


def trained(
    folder: Path, config: TrainConfig, documents: TokenSet, parts: np.ndarray, num_experts: int
) -> Router:
    """Train a router, or continue it from the files in `folder`.

    Args:
        folder: The folder of this router.
        config: The config of its network and its training.
        documents: The training text.
        parts: The part of each document, [D].
        num_experts: K.
    """
    of_tokens = np.repeat(parts, np.diff(documents.offsets))
    shape = config.num_positions, config.batch_size
    words, labels = stream_windows(documents.tokens, *shape), stream_windows(of_tokens, *shape)

    def batches(key: Key, index: ArrayLike) -> Any:
        here = words(key, index)  # a key draws the same windows of both
        return RoutedBatch(here.tokens, here.valid, labels(key, index).tokens)

    every = max(1, config.num_steps // 10)
    log_config = LogConfig(log_every=every, save_every=every)
    run = make_run(
        config, Examples(batches, None, {}), log_config, task=_task(config.model, num_experts)
    )
    record = {"config": to_json(config), "data": documents.digest, "parts": parts.tolist()}
    outcome = train(run, folder, config=record, log_config=log_config)
    template = jax.eval_shape(run.init)
    state = read_checkpoint(folder / str(outcome.step), template, config=record)
    return Router(config=config, num_experts=num_experts, params=jax.device_get(state.params))


def router_probs(router: Router, documents: TokenSet) -> np.ndarray:
    """log ρ̂_k(x^{<i}) before every token, in windows from the beginnings of documents: [M, K]."""
    pieces = document_pieces(documents.offsets, router.config.num_positions)
    probs, found = _probs(router.config.model, router.num_experts), []
    for first in range(0, len(pieces), _BATCH):
        here = pieces[first : first + _BATCH]
        padded = np.concatenate([here, np.zeros((_BATCH - len(here), 2), np.int64)])
        batch = cut_windows(documents.tokens, padded, router.config.num_positions)
        found.append(np.asarray(probs(router.params, batch.tokens))[np.asarray(batch.valid)])
    return np.concatenate(found).astype(np.float64)


def tempered(
    validation: np.ndarray, log_probs: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Distributions of test at the temperature that decodes validation best, and that temperature.

    Args:
        validation: The distributions of the validation tokens, [M, K].
        log_probs: The log-probabilities that the experts give to these tokens, [M, K].
        test: The distributions of the test tokens, [M', K].
    """
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        found = _fitted(validation, log_probs)
        probs = jax.nn.log_softmax(jnp.asarray(test) / found.temperature, axis=-1)
    return np.asarray(probs), {
        "temperature": float(found.temperature),
        "at_bound": bool(found.at_bound),
    }


@jax.jit
def _fitted(probs: Array, log_probs: Array):
    def loss(temperature: Array) -> Array:
        weights = jax.nn.log_softmax(probs / temperature, axis=-1)
        return -jnp.sum(jax.nn.logsumexp(weights + log_probs, axis=-1))

    return fit_temperature(loss, *_TEMPERATURES, num_starts=12, num_steps=16)


def router_config(
    model: TransformerConfig, *, num_steps: int, batch_size: int, num_positions: int, seed: int
) -> TrainConfig:
    """How routers are trained: as the experts are, at the default rate."""
    return TrainConfig(
        model=model,
        optimizer=OptimizerConfig(warmup_steps=max(1, num_steps // 20)),
        num_steps=num_steps,
        batch_size=batch_size,
        num_positions=num_positions,
        windows="stream",
        seed=seed,
    )


@cache  # the routers of all seeds, and of variants with as many experts, are one program
def _task(model: TransformerConfig, num_experts: int) -> Task:
    network = router_network(model, num_experts)
    return Task(init=network.init, losses=_losses(network, model.num_tokens), measure="loss")


@cache
def _probs(model: TransformerConfig, num_experts: int) -> Callable[[Params, Array], Array]:
    network = router_network(model, num_experts)

    def probs(params: Params, tokens: Array) -> Array:
        logits = jax.vmap(lambda row: _logits(network, params, row, model.num_tokens))(tokens)
        return jax.nn.log_softmax(logits)

    return jax.jit(probs)


def _logits(network: Network, params: Params, tokens: Array, start: int) -> Array:
    """[N, K]: row i has read what stands before token i."""
    before = jnp.concatenate([jnp.full((1,), start, tokens.dtype), tokens[:-1]])
    return network.apply(params, before)


def _losses(network: Network, start: int) -> Any:
    def losses(params: Params, batch: RoutedBatch, key: Key | None = None) -> Losses:
        tokens, valid = jnp.asarray(batch.tokens), jnp.asarray(batch.valid)
        nats = jax.vmap(router_loss)(_logits(network, params, tokens, start), batch.parts)
        return Losses(jnp.where(valid, nats, 0.0), valid)

    return losses
