"""The members of `flows`: dense model, experts and routers, each trained on its own images.

Every member is a sweep over its seeds, in a folder of its own, from which it can go on. Members of
one shape share a compiled step.
"""

from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dfm_jax.interfaces import Network, Params, Task
from dfm_jax.models import TransformerConfig, flops_per_token, router, transformer
from dfm_jax.parallel import make_mesh
from dfm_jax.training.batches import ArrayBatches, Batch
from dfm_jax.training.config import LogConfig, OptimizerConfig, TrainConfig
from dfm_jax.training.examples import Examples, array_examples
from dfm_jax.training.stopping import NonFiniteError
from dfm_jax.types import ArrayLike, Key
from experiments.flows.sources import Source
from experiments.lib.training import swept

_SAVED = 100  # steps between checkpoints, at least: one takes as long as some of them


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a member is trained, except its images and its seeds."""

    source: Source
    config: TrainConfig
    num_experts: int | None = None  # of a router; None trains a flow

    @property
    def network(self) -> Network:
        """A flow's token posteriors [N, V], or a router's distribution over experts [K]."""
        return _network(self.config.model, self.num_experts)


def member_config(
    source: Source,
    model: TransformerConfig,
    optimizer: OptimizerConfig,
    *,
    num_steps: int,
    batch_size: int,
) -> TrainConfig:
    """The config for whole images, all of which are seen, except the seed."""
    return TrainConfig(
        model=model,
        optimizer=optimizer,
        objective="masked",
        num_grid_steps=source.num_steps,
        num_steps=num_steps,
        batch_size=batch_size,
        num_positions=source.num_positions,
        held_out=0.0,
    )


@cache  # the same pair of functions: what they are compiled into is found again
def _network(model: TransformerConfig, num_experts: int | None) -> Network:
    return transformer(model) if num_experts is None else router(model, num_experts, last=True)


@cache  # members of one shape are one program
def _task(source: Source, model: TransformerConfig, num_experts: int | None) -> Task:
    network = _network(model, num_experts)
    return source.task(network) if num_experts is None else source.router_task(network)


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """A trained member with all of its seeds."""

    recipe: Recipe
    params: Params  # [R, …] on the host

    @property
    def num_tokens(self) -> int:
        """The number of tokens on which one seed was trained."""
        config = self.recipe.config
        return config.num_steps * config.batch_size * config.num_positions

    @property
    def flops(self) -> float:
        """The FLOPs of that training."""
        config, outputs = self.recipe.config, self.recipe.num_experts
        per_token = flops_per_token(config.model, config.num_positions, num_outputs=outputs)
        return 3 * per_token * self.num_tokens

    def of_seed(self, number: int) -> Params:
        """The parameters of one seed, by its number."""
        return jax.tree.map(lambda leaf: leaf[number], self.params)


def trained(
    folder: Path,
    recipe: Recipe,
    images: np.ndarray,
    parts: np.ndarray | None = None,
    *,
    seeds: tuple[int, ...],
) -> Member:
    """Train a member, or continue it from the files in `folder`.

    Args:
        folder: The folder of this member.
        recipe: The recipe of its network and its training.
        images: Its images, drawn uniformly with replacement, [R, N].
        parts: Their parts, for a router, [R].
        seeds: The seeds of starts, batches and states, one run each.

    Raises:
        NonFiniteError: if the training of a seed met a number that is not finite.
    """
    config, tokens = recipe.config, np.asarray(images, np.int32)
    if parts is None:
        seen: Any = Batch(tokens, np.ones(tokens.shape, bool))
    else:
        seen = tokens, np.asarray(parts, np.int32)
    every = max(1, config.num_steps // 4)
    params, found = swept(
        [replace(config, seed=seed) for seed in seeds],
        _examples(seen, recipe),
        folder,
        LogConfig(log_every=every, save_every=max(_SAVED, every)),
        make_mesh(1),
        task=_task(recipe.source, config.model, recipe.num_experts),
    )
    broken = [one.config.seed for one in found if not one.finished]
    if broken:
        rule = "the loss of every seed must be finite"
        raise NonFiniteError(f"{folder}: {rule}; got seeds that are not = {broken}.")
    return Member(recipe=recipe, params=params)


def _examples(arrays: Any, recipe: Recipe) -> Examples:
    """Rows of arrays, drawn uniformly with replacement; what the config does not say goes along."""
    on_device, size = jax.device_put(arrays), recipe.config.batch_size
    found = array_examples(arrays, size)
    task = {"source": asdict(recipe.source), "num_experts": recipe.num_experts}
    return found._replace(
        batches=ArrayBatches(_drawn, on_device, (size,)),
        description={**found.description, "task": task},
    )


@partial(jax.jit, static_argnums=3)
def _drawn(arrays: Any, key: Key, step: ArrayLike, batch_size: int) -> Any:
    num_rows = jax.tree.leaves(arrays)[0].shape[0]
    index = jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, num_rows)
    return jax.tree.map(lambda leaf: leaf[index], arrays)
