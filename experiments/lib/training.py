"""The members of `language`, each trained only on its own text; its seeds are one program.

The learning rate of a member is the best of a grid on its own validation text, at the first seed;
the other seeds use it too. All results are saved during training, so that a study that was killed
goes on.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dfm_jax.checks import require
from dfm_jax.data.tokens import Tokenizer, TokenSet
from dfm_jax.interfaces import Task
from dfm_jax.models import Params
from dfm_jax.models.sizes import flops_per_token
from dfm_jax.training.checkpoint import read_checkpoint
from dfm_jax.training.config import LogConfig, TrainConfig, to_json
from dfm_jax.training.digests import host_leaves
from dfm_jax.training.examples import Examples, MemberData
from dfm_jax.training.loop import METRICS, train
from dfm_jax.training.metrics import read_metrics
from dfm_jax.training.sweep import RunResult, make_sweep

Begin = Callable[[Sequence[int]], Params]
"""Seeds → parameters [R, …] to begin from."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A trained member: its parameters by seed, and how they were found."""

    config: TrainConfig  # but for its seed
    params: Params  # [R, …] on the host
    rates: dict[str, float]  # validation by learning rate at the first seed, nats per token
    curve: tuple[tuple[int, float], ...]  # (step, validation) of the first seed at that rate

    @property
    def num_tokens(self) -> int:
        """The number of tokens on which one seed was trained."""
        return self.config.num_steps * self.config.batch_size * self.config.num_positions

    @property
    def flops(self) -> float:
        """The FLOPs of that training."""
        length = self.config.num_positions
        return 3 * flops_per_token(self.config.model, length) * self.num_tokens

    def of_seed(self, number: int) -> Params:
        """The parameters of one seed, by its number."""
        return jax.tree.map(lambda leaf: leaf[number], self.params)


def trained(
    folder: Path,
    config: TrainConfig,
    train_set: TokenSet,
    held_out: TokenSet,
    tokenizer: Tokenizer,
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
        train_set: The training text of the member.
        held_out: The text on which its rate is chosen.
        tokenizer: The tokenizer, for the record.
        rates: The grid of learning rates.
        seeds: The seeds of the runs; the first one tries every rate.
        mesh: The mesh over whose devices the runs are split.
        begin: Parameters to start from, instead of a random start.
    """
    description = {"train": train_set.digest, "held_out": held_out.digest}
    data = MemberData(train_set, held_out, tokenizer, description)
    every = max(1, config.num_steps // 6)
    log_config = LogConfig(
        log_every=every, evaluate_every=every, save_every=every, evaluation_windows=64
    )

    def runs(name: str, configs: Sequence[TrainConfig]) -> tuple[Params, list[RunResult]]:
        starts = None if begin is None else begin([one.seed for one in configs])
        return swept(configs, data, folder / name, log_config, mesh, starts)

    chosen, losses, best = tuned(runs, config, rates, seeds)
    name = f"validation/{best}"
    lines = read_metrics(folder / "rates" / METRICS)
    return Member(
        config=with_rate(config, rates[best], seeds[0]),
        params=chosen,
        rates={str(rate): loss for rate, loss in zip(rates, losses, strict=True)},
        curve=tuple((int(line["step"]), line[name]) for line in lines if name in line),
    )


def tuned(
    swept: Callable[[str, Sequence[TrainConfig]], tuple[Params, list[RunResult]]],
    config: TrainConfig,
    rates: Sequence[float],
    seeds: Sequence[int],
) -> tuple[Params, list[float], int]:
    """Parameters by seed, the losses of the first seed by rate, and the best rate.

    Args:
        swept: A function that trains configs and returns the result of each. It is called with all
            rates of the first seed, and then with the other seeds at the best rate.
        config: The config, except rate and seed.
        rates: The grid of learning rates.
        seeds: The seeds of the runs.

    Raises:
        ValueError: if training is finite at none of the rates.
    """
    params, found = swept("rates", [with_rate(config, rate, seeds[0]) for rate in rates])
    losses = [
        np.inf if one.validation is None or not one.finished else one.validation for one in found
    ]
    rule = "`rates` must hold a learning rate at which the loss stays finite"
    require(np.isfinite(losses).any(), rule, losses, name="losses")
    best = int(np.nanargmin(losses))
    chosen = jax.tree.map(lambda leaf: leaf[best : best + 1], params)
    if rest := seeds[1:]:
        more, _ = swept("seeds", [with_rate(config, rates[best], seed) for seed in rest])
        chosen = jax.tree.map(lambda a, b: np.concatenate([a, b]), chosen, more)
    return chosen, losses, best


def with_rate(config: TrainConfig, rate: float, seed: int) -> TrainConfig:
    """The config with another peak learning rate and another seed."""
    optimizer = replace(config.optimizer, learning_rate=rate)
    return replace(config, optimizer=optimizer, seed=seed)


def swept(
    configs: Sequence[TrainConfig],
    data: MemberData | Examples,
    folder: Path,
    log_config: LogConfig,
    mesh: Mesh,
    begin: Params | None = None,
    *,
    task: Task | None = None,
) -> tuple[Params, list[RunResult]]:
    """The parameters at the end, [R, …], and the result of each run; some may have failed."""
    run, results = make_sweep(configs, data, log_config, mesh, task=task)
    described = dict(data.description)
    record: dict[str, Any] = {"configs": [to_json(c) for c in configs], "data": described}
    if begin is not None:
        drawn = run.init
        run = run._replace(init=lambda: drawn()._replace(params=begin))
        record["begin"] = digest_of(begin)
    outcome = train(run, folder, config=record, log_config=log_config)
    template = jax.eval_shape(run.init)
    state = read_checkpoint(folder / str(outcome.step), template, config=record)
    return jax.device_get(state.params), results(state)


def digest_of(params: Params) -> str:
    """A digest of every leaf, by name."""
    leaves = host_leaves(params)
    content = hashlib.sha256(json.dumps(sorted(leaves)).encode())
    for name in sorted(leaves):
        content.update(np.ascontiguousarray(leaves[name]).tobytes())
    return content.hexdigest()
