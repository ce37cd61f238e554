"""The members of `multimodal`, each trained only on its own questions; its seeds are one program.

The learning rate of a member is the best of a grid on its own validation questions, at the first
seed; the other seeds use it too. All results are saved during training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from dfm_jax.interfaces import Task
from dfm_jax.models import Params, TransformerConfig
from dfm_jax.models.sizes import flops_per_token
from dfm_jax.training.batches import PictureBatch, picture_batches
from dfm_jax.training.config import LogConfig, TrainConfig
from dfm_jax.training.examples import Examples as Seen
from dfm_jax.training.examples import HeldOut
from dfm_jax.training.sweep import RunResult
from dfm_jax.training.tasks import answer_task
from experiments.lib.training import Begin, swept, tuned, with_rate
from experiments.multimodal.data import Data, Examples
from experiments.multimodal.network import Sight, network_of

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
        """The number of tokens on which one seed was trained, including pictures and padding."""
        positions = self.sight.num_patches + self.config.num_positions - 1
        return self.config.num_steps * self.config.batch_size * positions

    @property
    def flops(self) -> float:
        """The FLOPs of that training, without those of the encoder."""
        return 3 * flops_of(self.config, self.sight)

    def of_seed(self, number: int) -> Params:
        """The parameters of one seed, by its number."""
        return jax.tree.map(lambda leaf: leaf[number], self.params)


def flops_of(config: TrainConfig, sight: Sight) -> float:
    """FLOPs of the forward passes in training: projector, transformer, and head after tokens."""
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
    """Train a member, or continue it from the files in `folder`.

    Args:
        folder: The folder of this member.
        config: The config, except the learning rate and the seed.
        data: The pictures.
        train_set: The training questions.
        held_out: The questions on which its rate is chosen.
        rates: The grid of learning rates.
        seeds: The seeds of the runs; the first one tries every rate.
        mesh: The mesh over whose devices the runs are split.
        begin: Parameters to start from, instead of a random start.
    """

    def runs(name: str, configs: Sequence[TrainConfig]) -> tuple[Params, list[RunResult]]:
        starts = None if begin is None else begin([one.seed for one in configs])
        return _swept(folder / name, configs, data, train_set, held_out, mesh, starts)

    params, losses, best = tuned(runs, config, rates, seeds)
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
) -> tuple[Params, list[RunResult]]:
    """The parameters at the end, [R, …], and the result of each run."""
    seen = Seen(
        batches=picture_batches(
            data.on_device,
            train_set.picture,
            train_set.tokens,
            train_set.counts,
            configs[0].batch_size,
        ),
        held_out=lambda _: _validation(data, held_out),
        description={"data": data.digest, "train": train_set.digest},
    )
    often = max(1, configs[0].num_steps // 4)
    log_config = LogConfig(log_every=often, save_every=often, evaluate_every=configs[0].num_steps)
    task = task_of(configs[0].model, data.sight)
    return swept(configs, seen, folder, log_config, mesh, begin, task=task)


@cache  # members of one shape are one program
def task_of(model: TransformerConfig, sight: Sight) -> Task:
    """The task of a network with this sight: the likelihood of the answer."""
    return answer_task(network_of(model, sight))


def _validation(data: Data, held_out: Examples) -> HeldOut:
    """The first questions, in batches of one shape; padding does not count."""
    count = min(len(held_out.questions), _JUDGED_AT_MOST)
    found = []
    for first in range(0, count, _JUDGED):
        rows = held_out.chosen(np.arange(first, min(first + _JUDGED, count)))
        missing = _JUDGED - len(rows.questions)
        counts = np.pad(rows.counts, ((0, missing), (0, 0)))
        tokens = np.pad(rows.tokens, ((0, missing), (0, 0)))
        features = data.features[np.pad(rows.picture, (0, missing))]
        found.append(PictureBatch(features, tokens, counts))
    return HeldOut(found, np.arange(count), count)
