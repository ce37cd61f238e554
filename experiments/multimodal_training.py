"""Members of `multimodal`: each trained from its own questions alone, its seeds as one program.

A member's learning rate is the best of a grid by its own validation questions, at the first seed;
the other seeds take it. Everything is saved as it is trained.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dfm_jax.models import Params
from dfm_jax.models.sizes import flops_per_token
from dfm_jax.parallel import independent
from dfm_jax.training.batches import PictureBatch, picture_batches
from dfm_jax.training.checkpoint import read_checkpoint
from dfm_jax.training.config import TrainConfig, Watch, hyperparameters, shape_of, to_json
from dfm_jax.training.loop import Run, train
from dfm_jax.training.losses import answer_losses
from dfm_jax.training.run import run_keys
from dfm_jax.training.state import TrainState, init_state, make_optimiser, with_hyperparameters
from dfm_jax.training.step import TrainStep, make_evaluation, make_train_step
from dfm_jax.types import Array, Key
from experiments.language_training import Begin, digest_of, tuned, with_rate
from experiments.multimodal_data import Data, Examples
from experiments.multimodal_network import Sight, network_of

_JUDGED = 256  # questions of validation that are scored together,
_JUDGED_AT_MOST = 1024  # and in all


@dataclass(frozen=True, kw_only=True)
class Member:
    """A trained member: its parameters by seed, and how they were found."""

    config: TrainConfig  # but for its seed
    params: Params  # [R, …] on the host
    rates: dict[str, float]  # validation by learning rate at the first seed, nats per token
    sight: Sight

    @property
    def num_tokens(self) -> int:
        """Tokens that one seed was trained on, those of pictures and of padding included."""
        positions = self.sight.num_patches + self.config.num_positions - 1
        return self.config.num_steps * self.config.batch_size * positions

    @property
    def flops(self) -> float:
        """Of that training, but for those of the encoder."""
        return 3 * flops_of(self.config, self.sight)

    def of_seed(self, number: int) -> Params:
        """The parameters of one seed, by its place."""
        return jax.tree.map(lambda leaf: leaf[number], self.params)


def flops_of(config: TrainConfig, sight: Sight) -> float:
    """Of the forward passes of a member's training: projector, transformer, head behind tokens."""
    model, tokens = config.model, config.num_positions - 1
    length = sight.num_patches + tokens
    projector = 2 * sight.num_patches * model.width * (sight.num_features + model.width)
    transformer = length * flops_per_token(model, length)
    no_head = 2 * sight.num_patches * model.width * model.num_tokens
    return config.num_steps * config.batch_size * (projector + transformer - no_head)


def trained(
    folder: Path,
    config: TrainConfig,
    data: Data,
    train_set: Examples,
    held_out: Examples,
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    mesh: Mesh,
    begin: Begin | None = None,
) -> Member:
    """Train a member, or go on with it from what lies in `folder`.

    Args:
        folder: of this member.
        config: but for the learning rate and the seed.
        data: its pictures.
        train_set: its questions.
        held_out: what its rate is chosen on.
        rates: the grid.
        seeds: the runs; the first one tries every rate.
        mesh: whose devices the runs are cut over.
        begin: parameters to begin from, in place of a drawn start.
    """

    def swept(name: str, configs: Sequence[TrainConfig]) -> tuple[Params, list[float]]:
        starts = None if begin is None else begin([one.seed for one in configs])
        return _swept(folder / name, configs, data, train_set, held_out, mesh, starts)

    params, losses, best = tuned(swept, config, rates, seeds)
    return Member(
        config=with_rate(config, rates[best], seeds[0]),
        params=params,
        rates={str(rate): loss for rate, loss in zip(rates, losses, strict=True)},
        sight=data.sight,
    )


def _swept(
    folder: Path,
    configs: Sequence[TrainConfig],
    data: Data,
    train_set: Examples,
    held_out: Examples,
    mesh: Mesh,
    begin: Params | None,
) -> tuple[Params, list[float]]:
    """Parameters at the end, [R, …], and validation losses, nats per token."""
    shape = shape_of(configs[0])
    start, step, judge = _compiled(shape, data.sight, mesh)
    keys = [run_keys(config.seed) for config in configs]
    init_keys, batch_keys, step_keys, _ = map(jnp.stack, zip(*keys, strict=True))
    columns = [hyperparameters(config) for config in configs]
    values = {name: jnp.array([one[name] for one in columns]) for name in columns[0]}
    batches = picture_batches(
        data.on_device, train_set.picture, train_set.tokens, train_set.counts, shape.batch_size
    )
    every, some = jax.vmap(batches, in_axes=(0, None)), _validation(data, held_out)

    def init() -> TrainState:
        state = start(jax.random.clone(init_keys), values)
        return state if begin is None else state._replace(params=begin)

    def update(state: TrainState, index: int) -> tuple[TrainState, Any]:
        return step(state, every(batch_keys, index), _folded(step_keys, index))

    def losses(state: TrainState) -> np.ndarray:
        found = [jax.device_get(judge(state.params, batch)) for batch in some]
        nats, counts = (np.concatenate(x, axis=1).sum(axis=1) for x in zip(*found, strict=True))
        return nats / counts

    def numbers(metrics: Any) -> dict[str, float]:
        return {"loss": float(metrics.loss.mean()), "num_tokens": int(metrics.num_tokens.sum())}

    run = Run(init, update, None, configs[0].num_steps, numbers)
    record: dict[str, Any] = {
        "configs": [to_json(config) for config in configs],
        "data": data.digest,
        "train": train_set.digest,
        "begin": None if begin is None else digest_of(begin),
    }
    often = max(1, configs[0].num_steps // 4)
    outcome = train(run, folder, config=record, watch=Watch(log_every=often, save_every=often))
    state = read_checkpoint(folder / str(outcome.step), jax.eval_shape(init), config=record)
    return jax.device_get(state.params), losses(state).tolist()


def init_and_step(
    shape: TrainConfig, sight: Sight
) -> tuple[Callable[[Key, Mapping[str, Array]], TrainState], TrainStep]:
    """(key, hyperparameters) → state, and the step, of all configs of that shape; not compiled."""
    network, optimiser = network_of(shape.model, sight), make_optimiser(shape.optimiser, 1)
    step = make_train_step(
        answer_losses(network), optimiser, num_micro_batches=shape.num_micro_batches
    )

    def init(key: Key, values: Mapping[str, Array]) -> TrainState:
        return with_hyperparameters(init_state(key, network, optimiser), **values)

    return init, step


@cache
def _compiled(shape: TrainConfig, sight: Sight, mesh: Mesh) -> tuple[Any, Any, Any]:
    init, step = init_and_step(shape, sight)
    judge = make_evaluation(answer_losses(network_of(shape.model, sight)))
    return (
        independent(init, mesh, pad=True),
        independent(step, mesh, pad=True, donate_args=(0,)),
        jax.jit(jax.vmap(judge, in_axes=(0, None))),
    )


_folded = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(0, None)))


def _validation(data: Data, held_out: Examples) -> list[PictureBatch]:
    """The first questions, in batches of one shape; what is filled up does not count."""
    found = []
    for first in range(0, min(len(held_out.questions), _JUDGED_AT_MOST), _JUDGED):
        rows = held_out.chosen(np.arange(first, min(first + _JUDGED, len(held_out.questions))))
        missing = _JUDGED - len(rows.questions)
        counts = np.pad(rows.counts, ((0, missing), (0, 0)))
        tokens = np.pad(rows.tokens, ((0, missing), (0, 0)))
        features = data.features[np.pad(rows.picture, (0, missing))]
        found.append(PictureBatch(features, tokens, counts))
    return found
