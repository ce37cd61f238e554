"""The answers of members of `multimodal`, and the probabilities of the expected answer."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.interfaces import Decoder
from dfm_jax.mixture import Context, conditional_mixture_decoder, mixture_params
from dfm_jax.models import Params, TransformerConfig
from dfm_jax.sampling import sample_autoregressive
from dfm_jax.training.batches import PictureBatch
from dfm_jax.training.losses import answer_losses
from dfm_jax.types import Array
from experiments.multimodal.data import Data, Examples
from experiments.multimodal.network import Sight, decoder_of, network_of

_BATCH = 256  # questions that are read together


class Experts(NamedTuple):
    """Experts of one architecture."""

    config: TransformerConfig
    sight: Sight
    params: tuple[Params, ...]


def answers(
    data: Data, examples: Examples, params: Params, config: TransformerConfig, features: np.ndarray
) -> list[str]:
    """The greedy answer of one member to every question, about `features` [M, P, F]."""
    decoder = decoder_of(config, data.sight)
    return _said(data, examples, params, decoder, lambda rows: features[examples.picture[rows]])


def mixed_answers(
    data: Data,
    examples: Examples,
    experts: Experts,
    log_prior: np.ndarray,
    gate: Any,
    features: np.ndarray,
) -> list[str]:
    """The greedy answers of a mixture with log r_0(k | c), [Q, K]; see the mixture's decoder."""
    one = decoder_of(experts.config, experts.sight)
    decoders = (one,) * len(experts.params)
    decoder = conditional_mixture_decoder(decoders, gate=gate)
    uniform = np.full(len(decoders), -np.log(len(decoders)))  # not read: r_0 comes with the context
    params = mixture_params(decoders, uniform, experts.params)
    log_prior = log_prior.astype(np.float32)

    def prefixes(rows: np.ndarray) -> Context:
        return Context(log_prior[rows], features[examples.picture[rows]])

    return _said(data, examples, params, decoder, prefixes)


def answer_log_probs(examples: Examples, experts: Experts, features: np.ndarray) -> np.ndarray:
    """log p_k(x^i | c, x^{<i}) of the tokens of every answer, 0 after it: [Q, K, A], float64."""
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *experts.params)
    longest = int(examples.counts.sum(axis=1).max())
    found = []
    for rows in _batches(len(examples.questions)):
        batch = PictureBatch(
            features[examples.picture[rows]], examples.tokens[rows], examples.counts[rows]
        )
        nats = np.asarray(_nats(experts.config, experts.sight, stack, batch))
        # What is of the answer, moved to the front.
        order = np.argsort(~examples.counts[rows], axis=1, kind="stable")[:, :longest]
        found.append(np.take_along_axis(-nats, order[None], axis=2).swapaxes(0, 1))
    return np.concatenate(found)[: len(examples.questions)].astype(np.float64)


@partial(jax.jit, static_argnums=(0, 1))
def _nats(config: TransformerConfig, sight: Sight, stack: Any, batch: PictureBatch) -> Array:
    terms = answer_losses(network_of(config, sight))
    of_one = jax.vmap(lambda params, row: terms(params, row).nats, in_axes=(None, 0))
    return jax.vmap(of_one, in_axes=(0, None))(stack, batch)


def _said(
    data: Data, examples: Examples, params: Any, decoder: Decoder, prefixes: Any
) -> list[str]:
    width = int(examples.lengths.max())
    found: list[str] = []
    for rows in _batches(len(examples.questions)):
        prompts = examples.tokens[rows, :width]
        sample = sample_autoregressive(
            jax.random.key(0),  # the most probable token is taken: nothing is drawn
            params,
            decoder,
            prompts,
            examples.lengths[rows],
            max_new=data.max_answer,
            temperature=0.0,
            stop_tokens=(data.end,),
            prefixes=prefixes(rows),
        )
        for tokens, start, end in zip(
            np.asarray(sample.tokens),
            examples.lengths[rows],
            np.asarray(sample.lengths),
            strict=True,
        ):
            found.append(data.decoded(tokens[start:end].tolist()))
    return found[: len(examples.questions)]


def _batches(count: int) -> Iterator[np.ndarray]:
    """Row numbers in batches of one size, so that there is one program; the last one is padded."""
    size = min(count, _BATCH)
    for first in range(0, count, size):
        yield np.minimum(np.arange(first, first + size), count - 1)
