"""Members of `flows`: a centre, experts and routers, each from its own images, its seeds as one.

Every member is a run of its own in a folder of its own, and goes on from there; the seeds of a
member ride a mapped axis. Members of one shape share a compiled step.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.interfaces import Losses
from dfm_jax.models import Network, Params, TransformerConfig, flops_per_token, router, transformer
from dfm_jax.objectives import router_loss
from dfm_jax.training.batches import Batch
from dfm_jax.training.checkpoint import read_checkpoint
from dfm_jax.training.config import OptimiserConfig, Watch
from dfm_jax.training.loop import Run, train
from dfm_jax.training.state import TrainState, init_state, make_optimiser, with_hyperparameters
from dfm_jax.training.step import StepMetrics, make_train_step
from dfm_jax.types import Array, ArrayLike, Key
from experiments.flows_sources import Source

_SAVED = 100  # steps between checkpoints, at least: one takes as long as some of them


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a member is trained, but for its images, its number of steps and its seeds."""

    source: Source
    model: TransformerConfig
    optimiser: OptimiserConfig
    batch_size: int
    num_experts: int | None = None  # of a router; None trains a flow

    @property
    def network(self) -> Network:
        """A flow's token posteriors [N, V], or a router's law over experts [K]."""
        return _network(self.model, self.num_experts)


@cache  # the same pair of functions: what they are compiled into is found again
def _network(model: TransformerConfig, num_experts: int | None) -> Network:
    return transformer(model) if num_experts is None else router(model, num_experts, last=True)


class LabelledBatch(NamedTuple):
    """Images, which of their tokens count, and the part of each."""

    tokens: ArrayLike
    valid: ArrayLike
    part: ArrayLike


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """A trained member, all of its seeds."""

    recipe: Recipe
    num_steps: int
    params: Params  # [R, …] on the host

    @property
    def num_tokens(self) -> int:
        """Tokens that one seed was trained on."""
        return self.num_steps * self.recipe.batch_size * self.recipe.source.num_positions

    @property
    def flops(self) -> float:
        """Of that training."""
        recipe = self.recipe
        length, outputs = recipe.source.num_positions, recipe.num_experts
        return 3 * flops_per_token(recipe.model, length, num_outputs=outputs) * self.num_tokens

    def of_seed(self, number: int) -> Params:
        """The parameters of one seed, by its place."""
        return jax.tree.map(lambda leaf: leaf[number], self.params)


def trained(
    folder: Path,
    recipe: Recipe,
    images: np.ndarray,
    parts: np.ndarray,
    *,
    num_steps: int,
    seeds: tuple[int, ...],
) -> Member:
    """Train a member, or go on with it from what lies in `folder`.

    Args:
        folder: of this member.
        recipe: of its network and its training.
        images: [R, N] what it sees, drawn uniformly with replacement.
        parts: [R] their parts, which only a router looks at.
        num_steps: S.
        seeds: of starts, batches and states; one run each.
    """
    begin, step = _compiled(recipe)
    keys = [jax.random.split(jax.random.key(seed), 3) for seed in seeds]
    init_keys, batch_keys, step_keys = (jnp.stack([k[i] for k in keys]) for i in range(3))
    rows, labels = jnp.asarray(images, jnp.int32), jnp.asarray(parts, jnp.int32)

    def init() -> TrainState:
        return begin(jax.random.clone(init_keys), jnp.array(num_steps))

    def update(state: TrainState, index: int) -> tuple[TrainState, StepMetrics]:
        batch = _drawn(rows, labels, batch_keys, index, recipe.batch_size)
        return step(state, batch, _folded(step_keys, index))

    content = hashlib.sha256(np.ascontiguousarray(rows).tobytes())
    content.update(np.ascontiguousarray(labels).tobytes())
    record = {
        "recipe": dataclasses.asdict(recipe),
        "images": content.hexdigest(),
        "num_steps": num_steps,
        "seeds": list(seeds),
    }
    every = max(1, num_steps // 4)
    watch = Watch(log_every=every, save_every=max(_SAVED, every))
    run = Run(init, update, None, num_steps, _numbers)
    outcome = train(run, folder, config=record, watch=watch)
    state = read_checkpoint(folder / str(outcome.step), jax.eval_shape(init), config=record)
    return Member(recipe=recipe, num_steps=num_steps, params=jax.device_get(state.params))


@cache  # members of one shape are one program
def _compiled(recipe: Recipe) -> tuple[Any, Any]:
    network = recipe.network
    optimiser = make_optimiser(recipe.optimiser, 1)  # S is a value of its state
    terms = recipe.source.terms(network) if recipe.num_experts is None else _router_terms(recipe)
    step = jax.jit(jax.vmap(make_train_step(terms, optimiser)), donate_argnums=0)

    def begin(key: Key, num_steps: Array) -> TrainState:
        return with_hyperparameters(init_state(key, network, optimiser), num_steps=num_steps)

    return jax.jit(jax.vmap(begin, (0, None))), step


def _router_terms(recipe: Recipe) -> Any:
    """−log ρ̂_k(X_t, t) of the image's part k, one term per state.   [D11]"""
    source, network = recipe.source, recipe.network

    def terms(params: Params, batch: LabelledBatch, key: Key | None) -> Losses:
        assert key is not None  # training always has one
        time_key, state_key = jax.random.split(key)
        t = source.time(time_key)
        x_t = source.state(state_key, jnp.asarray(batch.tokens), t)
        logits = network.apply(params, x_t, t)
        return Losses(router_loss(logits, batch.part)[None], jnp.ones(1, bool))

    return terms


@partial(jax.jit, static_argnums=4)
def _drawn(rows: Array, labels: Array, keys: Key, step: ArrayLike, batch_size: int) -> Any:
    def of_seed(key: Key) -> LabelledBatch:
        index = jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, rows.shape[0])
        tokens = rows[index]
        return LabelledBatch(*Batch(tokens, jnp.ones(tokens.shape, bool)), labels[index])

    return jax.vmap(of_seed)(keys)


_folded = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(0, None)))


def _numbers(metrics: StepMetrics) -> dict[str, float]:
    """Of all seeds; a norm that is not finite shows."""
    losses = {f"loss/{r}": float(loss) for r, loss in enumerate(metrics.loss)}
    norms = {
        name: float(np.max(getattr(metrics, name))) for name in ("gradient_norm", "update_norm")
    }
    mean = {"loss": float(np.mean(metrics.loss)), "num_tokens": int(np.sum(metrics.num_tokens))}
    return mean | losses | norms
