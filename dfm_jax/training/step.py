"""One update and one evaluation as pure functions; `jax.jit` and the mesh are the caller's."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.interfaces import Losses
from dfm_jax.models import Params
from dfm_jax.models.lora import LoraConfig
from dfm_jax.training.batches import Batch, Batches
from dfm_jax.training.losses import LossFunction
from dfm_jax.training.state import TrainState, frozen, trained, with_trained
from dfm_jax.types import Array, ArrayLike, Float, Int, Key


class StepMetrics(NamedTuple):
    """Metrics of one update: the loss, the number of tokens, and two norms over all leaves.

    If the loss and both norms are finite, every parameter is finite too.
    """

    loss: Float[ArrayLike, "*R"]
    num_tokens: Int[ArrayLike, "*R"]
    gradient_norm: Float[ArrayLike, "*R"]  # before it is clipped
    update_norm: Float[ArrayLike, "*R"]


TrainStep = Callable[[TrainState, Batch, Key], tuple[TrainState, StepMetrics]]


def make_train_step(
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    num_micro_batches: int = 1,
    ema_decay: float | None = None,
    freeze: Sequence[str] = (),
    lora: LoraConfig | None = None,
) -> TrainStep:
    """(state, batch, key) → (state, metrics): one update by ∇ (Σ nats / Σ counts) over the batch.

    Losses with weights are updated by ∇ (Σ weights · nats / Σ weights) over what counts.

    The key belongs to this step. Sequence b draws from `fold_in(key, b)`. The sums are accumulated
    over micro-batches and divided once, so the gradient is that of the whole batch, up to rounding,
    for any number of tokens in each micro-batch. The state may be donated.

    The average is ema ← d · ema + (1 − d) · θ from ema = θ_0. So after n updates it contains the
    first parameters with weight d^n; this bias is not corrected.

    What `freeze` and `lora` leave out, see `frozen`, stays as it is, to the bit. No gradient of it
    is computed, so the norms are over the other leaves.

    Raises:
        ValueError: in a call, if the number of micro-batches does not divide the batch size.
    """
    check_count("num_micro_batches", num_micro_batches)
    if ema_decay is not None:
        check_interval("ema_decay", ema_decay, 0, 1, ends="[)")

    def total(
        moving: Params, params: Params, part: Batch, keys: Key
    ) -> tuple[Array, tuple[Array, Array]]:
        whole = with_trained(params, moving)
        losses = jax.vmap(loss_function, in_axes=(None, 0, 0))(whole, part, keys)
        count = jnp.sum(losses.counts)
        if losses.weights is None:
            return jnp.sum(losses.nats), (count, count)
        weights = jnp.where(losses.counts, losses.weights, 0)
        return jnp.sum(weights * losses.nats), (count, jnp.sum(weights))

    def summed(params: Params, part: Batch, keys: Key) -> tuple[Array, Array, Array, Params]:
        moving = trained(params, frozen(params, freeze, lora))
        (nats, sizes), grads = jax.value_and_grad(total, has_aux=True)(moving, params, part, keys)
        return nats, *sizes, grads

    def train_step(state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, StepMetrics]:
        rows = batch_size_of(batch)
        rule = f"`num_micro_batches` must divide the size of the batch, which is {rows}"
        require(rows % num_micro_batches == 0, rule, num_micro_batches)
        sums = _accumulated(summed, state.params, batch, key, num_micro_batches)
        nats, count, size, grads = sums
        grads = jax.tree.map(lambda g: g / size.astype(g.dtype), grads)
        stays = frozen(state.params, freeze, lora)
        moving = trained(state.params, stays)
        updates, moments = optimizer.update(grads, state.optimizer, moving)
        moving = optax.apply_updates(moving, updates)
        ema = state.ema
        if ema_decay is not None:
            d: float = ema_decay
            average = jax.tree.map(lambda a, p: d * a + (1 - d) * p, trained(ema, stays), moving)
            ema = with_trained(ema, average)
        norms = optax.tree.norm(grads), optax.tree.norm(updates)
        metrics = StepMetrics(nats / size, count, *norms)
        params = with_trained(state.params, moving)
        return TrainState(state.step + 1, params, moments, ema), metrics

    return train_step


def until_its_end(train_step: TrainStep) -> Callable[..., tuple[TrainState, StepMetrics, Array]]:
    """(state, batch, key, s, S) → (state, metrics, moved): a step that stops by itself.

    Runs of different lengths, or one that fails, can then share a mapped axis. Update s is made if
    the state has made all updates before s, if s < S, and if loss and norms are finite. Otherwise
    the state stays the same, bit for bit, from then on. Metrics mean nothing if moved is False.
    """

    def step(
        state: TrainState, batch: Batch, key: Key, index: ArrayLike, num_steps: ArrayLike
    ) -> tuple[TrainState, StepMetrics, Array]:
        after, metrics = train_step(state, batch, key)
        finite = jnp.all(jnp.isfinite(jnp.stack([metrics.loss, *metrics[2:]])))
        moves = finite & (jnp.asarray(state.step) == index) & (jnp.asarray(index) < num_steps)
        return jax.tree.map(partial(jnp.where, moves), after, state), metrics, moves

    return step


MOST_UPDATES = 64
"""The most updates that one call of `several_updates` makes: so many metrics have a place."""


def several_updates(
    step: Callable[[TrainState, Any, Key, Array], tuple[TrainState, Any]],
    batches: Batches,
    start: ArrayLike,
    count: ArrayLike,
    state: TrainState,
    batch_key: Key,
    step_key: Key,
) -> tuple[TrainState, Any]:
    """Updates start … start + count − 1 as one loop; metrics get a last axis of `MOST_UPDATES`.

    Update s is step(state, batches(batch_key, s), fold_in(step_key, s), s). The first `count`
    metrics are of these updates, the others are 0. One program serves every `start` and `count`, so
    bits do not depend on how the updates of a run are divided among calls.
    """
    first, last = jnp.asarray(start, jnp.int32), jnp.asarray(start + count, jnp.int32)

    def update(state: TrainState, s: Array) -> tuple[TrainState, Any]:
        return step(state, batches(batch_key, s), jax.random.fold_in(step_key, s), s)

    def body(s: Array, carry: tuple[TrainState, Any]) -> tuple[TrainState, Any]:
        state, rows = carry
        state, metrics = update(state, s)
        return state, jax.tree.map(lambda row, one: row.at[..., s - first].set(one), rows, metrics)

    shapes = jax.eval_shape(update, state, first)[1]
    rows = jax.tree.map(lambda one: jnp.zeros((*one.shape, MOST_UPDATES), one.dtype), shapes)
    return jax.lax.fori_loop(first, last, body, (state, rows))


def make_evaluation(loss_function: LossFunction) -> Callable[[Params, Batch, Key | None], Losses]:
    """(params, batch, key) → Σ nats and Σ counts per sequence, [B]; without a key, no dropout."""

    def evaluation(params: Params, batch: Batch, key: Key | None = None) -> Losses:
        size = batch_size_of(batch)
        if key is None:
            losses = jax.vmap(lambda row: loss_function(params, row, None))(batch)
        else:
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(size))
            losses = jax.vmap(loss_function, in_axes=(None, 0, 0))(params, batch, keys)
        return Losses(jnp.sum(losses.nats, axis=-1), jnp.sum(losses.counts, axis=-1))

    return evaluation


def batch_size_of(batch: Any) -> int:
    """The number of examples in a batch, which is the leading axis of each of its leaves."""
    return jnp.shape(jax.tree.leaves(batch)[0])[0]


def _accumulated(
    summed: Callable[..., tuple[Array, Array, Array, Params]],
    params: Params,
    batch: Batch,
    key: Key,
    parts: int,
) -> Any:
    """Sums over micro-batches, of which one at a time is in memory."""
    keys_of = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    numbers = jnp.arange(batch_size_of(batch))
    if parts == 1:
        return summed(params, batch, keys_of(key, numbers))

    def cut(leaf: Array) -> Array:
        # Part p is every parts-th row from p on: of rows that are split over devices in blocks,
        # each device then has its share of every part, and none is sent.
        leaf = jnp.asarray(leaf)  # NumPy's may have types that jax does not keep
        return leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:]).swapaxes(0, 1)

    # To turn an array of keys is to use them, so they are made of turned numbers.
    split = jax.tree.map(cut, batch), jax.vmap(keys_of, in_axes=(None, 0))(key, cut(numbers))
    # Of shapes, not of the first part: to index an array of keys is to use them.
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), split)
    shapes = jax.eval_shape(summed, params, *first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def body(totals: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, totals, summed(params, *part)), None

    return jax.lax.scan(body, zeros, split)[0]
