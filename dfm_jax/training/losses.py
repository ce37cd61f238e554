"""The losses of a network on one sequence: nats per position, and which positions count."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_interval
from dfm_jax.interfaces import Losses, Network, Params
from dfm_jax.models import VisionLanguage
from dfm_jax.models.multimodal import Multimodal
from dfm_jax.objectives import cross_entropy_loss, generalized_kl_loss, step_loss
from dfm_jax.paths import mask_source, mixture_path, sample_mixture, sample_path
from dfm_jax.schedules import linear
from dfm_jax.steps import step_size
from dfm_jax.training.batches import Batch, MultimodalBatch, PictureBatch
from dfm_jax.types import Array, ArrayLike, Float, Key, Table, as_ids

LossFunction = Callable[[Params, Batch, Key | None], Losses]
"""(params, one sequence, key) → Losses; without a key, without dropout."""


def next_token_losses(network: Network, *, start: int | None) -> LossFunction:
    """−log p̂(x^i | x^{<i}) of a causal network, one loss per position.   [A4, L1]

    Row i of a causal network is the distribution of the token after x^i. With `start`, an id that
    stands before every sequence (the mask, V), the first token is predicted too, and the losses sum
    to −log p̂(x). Without `start` the first token is given and does not count.
    """

    def losses(params: Params, batch: Batch, key: Key | None = None) -> Losses:
        tokens, counts = jnp.asarray(as_ids(batch.tokens, "tokens")), jnp.asarray(batch.valid)
        first = tokens[0] if start is None else start
        x_before = jnp.concatenate([jnp.full((1,), first, tokens.dtype), tokens[:-1]])
        if start is None:
            counts = counts.at[0].set(False)
        nats = cross_entropy_loss(network.apply(params, x_before, key=key), tokens)
        return Losses(jnp.where(counts, nats, 0.0), counts)

    return losses


def answer_losses(network: VisionLanguage) -> Callable[..., Losses]:
    """−log p̂(x^i | picture, x^{<i}) on the tokens of answers; given tokens do not count.   [A5]

    The first token never counts, even in an answer, because no token before it predicts it.
    """

    def losses(params: Params, batch: PictureBatch, key: Key | None = None) -> Losses:
        tokens, counts = jnp.asarray(as_ids(batch.tokens, "tokens")), jnp.asarray(batch.answers)
        logits = network.apply(params, jnp.asarray(batch.features), tokens[:-1], key=key)
        nats = cross_entropy_loss(logits, tokens[1:])
        nats = jnp.concatenate([jnp.zeros(1, nats.dtype), nats])
        counts = counts.at[0].set(False)
        return Losses(jnp.where(counts, nats, 0.0), counts)

    return losses


def multimodal_losses(
    network: Multimodal, table: Float[ArrayLike, "256 3"], *, weighted: bool = False
) -> Callable[..., Losses]:
    """−log p̂(x^i | pictures, x^{<i}) on the learnt tokens of conversations.   [A5]

    A token that has no token before it in its segment never counts.

    Args:
        network: The network.
        table: What the network reads for each value of a color, see `PictureProcessor.table`.
        weighted: Whether the nats weigh in training as the batch says.
    """

    def losses(params: Params, batch: MultimodalBatch, key: Key | None = None) -> Losses:
        tokens, segments = jnp.asarray(as_ids(batch.tokens, "tokens")), jnp.asarray(batch.segments)
        values = jnp.asarray(table)[jnp.asarray(batch.pixels), jnp.arange(3)]
        logits = network.apply(params, tokens, values, segments=segments, key=key)
        # All rows of the logits: V columns of all but the last one would be a copy. What the last
        # row says of the first token does not count.
        nats = jnp.roll(cross_entropy_loss(logits, jnp.roll(tokens, -1)), 1)
        follows = jnp.concatenate([jnp.zeros(1, bool), segments[1:] == segments[:-1]])
        counts = jnp.asarray(batch.learnt) & follows
        weights = jnp.asarray(batch.weights) if weighted else None
        return Losses(jnp.where(counts, nats, 0.0), counts, weights)

    return losses


def masked_losses(network: Network, table: Table, *, time_conditioned: bool) -> LossFunction:
    """T times the loss of one step of the finite-grid bound: unbiased for its sum.   [L5, Q3]

        T λ_t^i 1[X_t^i = m] (−log p̂^i(x_1^i | X_t)),  t uniform over 0 … T − 1

    X_t is drawn from the mixture path of the all-mask source. Tokens that do not count are context
    and are never masked. A key is always needed: it draws t, X_t and the dropout.
    """
    table = jnp.asarray(table)
    num_steps = table.shape[0] - 1

    def losses(params: Params, batch: Batch, key: Key | None) -> Losses:
        if key is None:
            raise ValueError(
                "`key` must be given, because the masked objective draws its states; got key = "
                "None."
            )
        x_1, counts = jnp.asarray(as_ids(batch.tokens, "tokens")), jnp.asarray(batch.valid)
        step_key, path_key, apply_key = jax.random.split(key, 3)
        step = jax.random.randint(step_key, (), 0, num_steps)
        mask_id = _num_tokens(network, params, x_1, table, time_conditioned)
        x_0 = mask_source(x_1, ~counts, mask_id=mask_id)
        probs = mixture_path(x_0, x_1, table[step], num_states=mask_id + 1)
        x_t = sample_path(path_key, probs)
        t = step / num_steps if time_conditioned else None
        logits = network.apply(params, x_t, t, key=apply_key)
        nats = step_loss(logits, x_1, x_t, step_size(table, step))
        return Losses(jnp.where(counts, num_steps * nats, 0.0), counts)

    return losses


def uniform_losses(network: Network, *, end: float, time_conditioned: bool) -> LossFunction:
    """The integrand of the evidence bound at one time, times the length of the integral.   [L2, P3]

        t_end Σ_v [u log(u/û) − u + û](v),  t uniform over [0, t_end),  κ_t = t

    It is an unbiased estimate of the integral over [0, t_end). X_0 is uniform over the V tokens and
    independent of X_1. As t → 1 the rate 1/(1 − t) is unbounded, and so is the loss of a learned p̂
    that differs from δ_{X_1}. So `end` < 1; the rest is left to the last step (S4), whose minimizer
    is the same p_{1|t}. Tokens that do not count are context and never move. A key is needed.

    Raises:
        ValueError: if `end` lies outside (0, 1).
    """
    check_interval("end", end, 0.0, 1.0, ends="()")
    schedule = linear()

    def losses(params: Params, batch: Batch, key: Key | None) -> Losses:
        if key is None:
            raise ValueError(
                "`key` must be given, because the objective of the uniform source draws its "
                "states; got key = None."
            )
        x_1, counts = jnp.asarray(as_ids(batch.tokens, "tokens")), jnp.asarray(batch.valid)
        time_key, source_key, path_key, apply_key = jax.random.split(key, 4)
        t = end * jax.random.uniform(time_key)
        conditioned = t if time_conditioned else None
        num_tokens = jax.eval_shape(network.apply, params, x_1, conditioned).shape[-1]
        x_0 = jax.random.randint(source_key, x_1.shape, 0, num_tokens, x_1.dtype)
        x_0 = jnp.where(counts, x_0, x_1)
        x_t = sample_mixture(path_key, x_0, x_1, t)
        logits = network.apply(params, x_t, conditioned, key=apply_key)
        nats = generalized_kl_loss(logits, x_1, x_t, t, schedule)
        return Losses(jnp.where(counts, end * nats, 0.0), counts)

    return losses


def _num_tokens(network: Network, params: Params, x: Array, *rest: Any) -> int:
    """V, the number of columns of the logits, from a trace that computes nothing."""
    table, conditioned = rest
    t = jnp.zeros((), table.dtype) if conditioned else None
    return jax.eval_shape(network.apply, params, x, t).shape[-1]
