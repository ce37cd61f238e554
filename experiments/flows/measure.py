"""One cell of `flows`: a source, a partition, a seed, and all gates on the same draws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.comparison import document_interval
from dfm_jax.models import Params, TransformerConfig
from dfm_jax.training.config import OptimizerConfig
from dfm_jax.training.equal_cost import divided_steps
from experiments.flows import bounds as flows_bounds
from experiments.flows import training as flows_training
from experiments.flows.bounds import GATES
from experiments.flows.config import Config
from experiments.flows.images import NUM_TOKENS, Images, Kind, Parts, partitioned
from experiments.flows.samples import sampled
from experiments.flows.sources import Draws, Name, Source, image_draws
from experiments.flows.training import Member, Recipe, member_config

_JUDGES, _SAMPLES = 1000, 2000  # keys apart from those of the seeds


@dataclass(frozen=True, kw_only=True, eq=False)  # by identity: what its methods found is kept
class Trainer:
    """Trains members when they are first needed, each only on its own images."""

    images: Images
    config: Config

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of starts, batches and states, common to all variants."""
        return tuple(range(self.config.num_seeds))

    def source(self, name: Name) -> Source:
        """A source over the images' positions."""
        return Source(
            name=name,
            num_tokens=NUM_TOKENS,
            num_positions=self.images.train.shape[1],
            num_steps=self.config.num_steps,
            epsilon=self.config.epsilon,
        )

    @cache  # noqa: B019  one trainer a process
    def parts(self, kind: Kind) -> Parts:
        """A partition of all images, held out or not."""
        return partitioned(self.images, kind, self.config.num_experts)

    @cache  # noqa: B019
    def dense(self, name: Name) -> Member:
        """The dense model, trained on all images."""
        steps = self.config.training_steps
        return self._flow(name, f"{name}/dense", np.ones(len(self.images.train), bool), steps)

    @cache  # noqa: B019
    def experts(self, name: Name, kind: Kind) -> tuple[Member, ...]:
        """The experts, each trained on its own part for its share of the dense model's steps."""
        parts = self.parts(kind)
        steps = divided_steps(parts.weights, self.config.training_steps)
        return tuple(
            self._flow(name, f"{name}/{kind}/expert_{k:03d}", parts.train == k, int(steps[k]))
            for k in range(parts.num_experts)
        )

    @cache  # noqa: B019
    def router(self, name: Name, kind: Kind) -> Member:
        """ρ̂(z, t), for its share of the dense model's steps, on all images and their parts.
        [D11]
        """
        parts, config = self.parts(kind), self.config
        steps = max(1, round(config.router_share * config.training_steps))
        return flows_training.trained(
            Path(config.out) / "members" / name / kind / "router",
            self._recipe(name, config.router_width, steps, parts.num_experts),
            self.images.train,
            parts.train,
            seeds=self.seeds,
        )

    def _flow(self, name: Name, folder: str, kept: np.ndarray, steps: int) -> Member:
        return flows_training.trained(
            Path(self.config.out) / "members" / folder,
            self._recipe(name, self.config.width, steps, None),
            self.images.train[kept],
            seeds=self.seeds,
        )

    def _recipe(self, name: Name, width: int, steps: int, num_experts: int | None) -> Recipe:
        config, source = self.config, self.source(name)
        model = TransformerConfig(
            num_tokens=NUM_TOKENS,
            num_states=source.num_states,
            width=width,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            ffn_width=8 * (width // 3),
            max_positions=source.num_positions,
            learned_positions=True,  # where all is masked, distances say nothing
            causal=False,
            time_conditioned=True,
            scan_layers=True,
        )
        # In tens: experts' shares may differ by a step, and their programs should not.
        warmup = 10 * max(1, round(config.warmup * steps / 10))
        optimizer = OptimizerConfig(learning_rate=config.rate, warmup_steps=warmup)
        train = member_config(
            source, model, optimizer, num_steps=steps, batch_size=config.batch_size
        )
        return Recipe(source=source, config=train, num_experts=num_experts)


def measure(trainer: Trainer, name: Name, kind: Kind, number: int) -> dict[str, Any]:
    """Train members if needed, and evaluate held-out images under every gate, as JSON values."""
    config, parts, source = trainer.config, trainer.parts(kind), trainer.source(name)
    dense, experts = trainer.dense(name), trainer.experts(name, kind)
    router, images = trainer.router(name, kind), trainer.images.test
    stacked = stacked_params(experts, number)
    scores = flows_bounds.ensemble_scores(
        source,
        (experts[0].recipe.network, router.recipe.network),
        stacked,
        router.of_seed(number),
        np.log(parts.weights),
        images,
        parts.test,
        _draws(trainer, name),
    )
    of_dense = _dense_nats(trainer, name, number)
    pixels = np.full(len(images), images.shape[1])

    def against(nats: np.ndarray, other: np.ndarray) -> list[float]:
        draws = {"num_draws": config.num_draws, "seed": number}
        return [float(x) for x in document_interval(nats - other, pixels, **draws)]

    own, gated = (scores.gates[:, GATES.index(gate)] for gate in ("oracle", "router"))
    return {
        "source": name,
        "partition": parts.name,
        "num_experts": parts.num_experts,
        "seed": trainer.seeds[number],
        "weights": parts.weights.tolist(),
        "steps": [expert.recipe.config.num_steps for expert in experts],
        "tokens": sum(expert.num_tokens for expert in experts),
        "flops": sum(expert.flops for expert in experts),
        "router": {
            "tokens": router.num_tokens,
            "flops": router.flops,
            "nats": float(scores.router.mean()),
        },
        "dense": {
            "steps": dense.recipe.config.num_steps,
            "tokens": dense.num_tokens,
            "flops": dense.flops,
            **per_pixel(of_dense, images.shape[1]),
        },
        "gates": [
            {"gate": gate, **per_pixel(nats, images.shape[1]), "minus": against(nats, of_dense)}
            for gate, nats in zip(GATES, scores.gates.T, strict=True)
        ],
        "b8": {
            "gap": against(gated, own),
            "cost": against(scores.named, own),
            "bound": per_pixel(scores.named, images.shape[1]),
            "slack": scores.slack,
        },
        "residual": scores.residual,
        "sequential": _sequential(trainer, name, kind, number) if name == "masked" else None,
    }


def per_pixel(nats: np.ndarray, num_positions: int) -> dict[str, float]:
    """The mean over images and its standard error, in nats per pixel."""
    each = nats / num_positions
    error = each.std(ddof=1) / np.sqrt(len(each))
    return {"nats_per_pixel": float(each.mean()), "stderr": float(error)}


def stacked_params(experts: tuple[Member, ...], number: int) -> Params:
    """Parameters of one seed of the experts: leaves [K, …]."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(x.of_seed(number) for x in experts))


@cache
def _draws(trainer: Trainer, name: Name) -> Draws:
    """The draws, which are the same for every variant and seed."""
    images = jnp.asarray(trainer.images.test, jnp.int32)
    key = jax.random.key(_JUDGES)
    return jax.device_get(
        image_draws(trainer.source(name), key, images, trainer.config.times_per_image)
    )


@cache
def _dense_nats(trainer: Trainer, name: Name, number: int) -> np.ndarray:
    dense = trainer.dense(name)
    network, params = dense.recipe.network, dense.of_seed(number)
    return flows_bounds.dense_scores(
        trainer.source(name), network, params, trainer.images.test, _draws(trainer, name)
    )


def _sequential(trainer: Trainer, name: Name, kind: Kind, number: int) -> float:
    """The largest gap between L5 and the sampler's own NLL, over some images with an order each."""
    experts, router = trainer.experts(name, kind), trainer.router(name, kind)
    num_positions = trainer.images.test.shape[1]
    gaps = [
        flows_bounds.sequential_gap(
            trainer.source(name),
            *(experts[0].recipe.network, router.recipe.network),
            *(stacked_params(experts, number), router.of_seed(number)),
            jnp.asarray(x_1, jnp.int32),
            np.random.default_rng(row).permutation(num_positions),
        )
        for row, x_1 in enumerate(trainer.images.test[: trainer.config.sequential_images])
    ]
    return float(np.max(gaps))


def sample_sheet(trainer: Trainer, name: Name, kind: Kind, count: int) -> dict[str, Any]:
    """Images of the first seed, drawn by the dense model, each expert and the gated ensemble."""
    experts, router, dense = (
        trainer.experts(name, kind), trainer.router(name, kind), trainer.dense(name)
    )  # fmt: skip
    num_experts = len(experts)
    networks = experts[0].recipe.network, router.recipe.network
    gates = {"ensemble": np.zeros(num_experts)}
    gates |= {f"expert {k + 1}": np.eye(num_experts)[k] for k in range(num_experts)}
    keys = jax.random.split(jax.random.key(_SAMPLES), count * (num_experts + 2))

    def drawn(params: Params, fixed: np.ndarray, at: int) -> np.ndarray:
        here = keys[at * count : at * count + len(fixed)]
        weights = jnp.asarray(fixed, jnp.float32)
        source = trainer.source(name)
        return np.asarray(sampled(source, *networks, params, router.of_seed(0), weights, here))

    # The dense model is K copies of itself under expert 1 alone: the same compiled program.
    copies = jax.tree.map(lambda x: np.stack([x] * num_experts), dense.of_seed(0))
    first = np.tile(np.eye(num_experts)[:1], (count, 1))
    rows = {"dense": drawn(copies, first, 0)}
    mine = stacked_params(experts, 0)
    for at, (label, probs) in enumerate(gates.items(), start=1):
        rows[label] = drawn(mine, np.tile(probs, (count, 1)), at)
    return {"source": name, "rows": {label: row.tolist() for label, row in rows.items()}}
