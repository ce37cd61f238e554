"""The variants of `language`: how documents are partitioned, and how members are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from dfm_jax.checks import require
from dfm_jax.models import TransformerConfig
from dfm_jax.models.sizes import num_parameters
from dfm_jax.training.equal_cost import divided_steps
from experiments.language import router as language_router
from experiments.language.config import Config, Variant, member_config, network_of
from experiments.language.router import Router
from experiments.language.text import SPLITS, Text
from experiments.lib import partitions
from experiments.lib import training as language_training
from experiments.lib.partitions import Partition
from experiments.lib.training import Begin, Member


@dataclass(frozen=True, kw_only=True, eq=False)  # by identity: what its methods found is kept
class Trainer:
    """Trains members when they are first needed, each only on its own text."""

    text: Text
    config: Config
    mesh: Mesh

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of starts and batches, common to all variants."""
        return tuple(range(self.config.num_seeds))

    @cached_property
    def network(self) -> TransformerConfig:
        """The architecture of every member."""
        return network_of(self.config, self.config.width, self.config.num_layers)

    @property
    def num_parameters(self) -> int:
        """The number of parameters of one member."""
        return num_parameters(self.network)

    @property
    def num_steps(self) -> int:
        """S, the number of steps of the dense model."""
        return max(1, round(self.config.training_tokens / self._tokens_per_step))

    @cache  # noqa: B019  one trainer a process
    def dense(self, num_steps: int | None = None) -> Member:
        """The dense model, trained on all of the text, for `num_steps` steps if they are given."""
        steps = self.num_steps if num_steps is None else num_steps
        name = "dense" if num_steps is None else f"dense_{steps}"
        everything = {split: np.ones(size, bool) for split, size in self.text.sizes.items()}
        return self._member(name, everything, steps)

    @cache  # noqa: B019
    def partition(self, variant: Variant) -> tuple[Partition, dict[str, np.ndarray]]:
        """The partition of a variant, and the part of each document, by split.

        Raises:
            ValueError: if a part is left without a window of training text, or without validation.
        """
        text, config = self.text, self.config
        corpora, fitted_on = text.corpora, text.sizes["train"]
        count = variant.num_experts or 0
        loads = np.concatenate([np.diff(text.tokens[split].set.offsets) for split in SPLITS])

        def clusters(balance: str) -> Partition:
            options = {"loads": loads, "fitted_on": fitted_on, "balance": balance, "seed": 0}
            return partitions.by_balanced_clusters(
                corpora, count, features=self._features, **options
            )

        makers: dict[str, Callable[[], Partition]] = {
            "domain": lambda: partitions.by_domain(corpora),
            "random": lambda: partitions.at_random(corpora, count, seed=0),
            "cluster": lambda: clusters("weights"),
            "warm": lambda: clusters("weights"),
            "unbalanced": lambda: clusters("none"),
        }
        partition = makers[variant.kind]()
        part_of = partition.by_split(text.sizes)
        for split, least in (("train", config.num_positions), ("validation", 1)):
            held = self.part_tokens(part_of[split], split, partition.num_parts)
            rule = f"Each part of {variant.name} must have at least {least} tokens of {split} text"
            require(held >= least, rule, held, name="tokens")
        return partition, part_of

    @cache  # noqa: B019
    def experts(self, variant: Variant) -> tuple[Member, ...]:
        """The experts, each trained on its own part for its share of the steps.

        Warm experts share the steps after the first half.
        """
        partition, part_of = self.partition(variant)
        whole, begin = self.num_steps, None
        if variant.kind == "warm":
            trunk = self.trunk()
            whole, begin = whole - trunk.config.num_steps, self._goes_on(trunk)
        steps = divided_steps(self.weights(variant), whole)
        return tuple(
            self._member(
                f"{variant.name.replace(':', '_')}/expert_{k:03d}",
                {split: part_of[split] == k for split in SPLITS},
                int(steps[k]),
                begin,
            )
            for k in range(partition.num_parts)
        )

    def trunk(self) -> Member:
        """The start of warm experts: the dense model after half of its steps, on all text."""
        return self.dense(self.num_steps // 2)

    def router(self, variant: Variant, number: int) -> Router:
        """The router of a variant's parts, for its share of the dense model's steps; one seed."""
        partition, part_of = self.partition(variant)
        config = self.config
        return language_router.trained(
            Path(config.out) / "members" / f"{variant.name.replace(':', '_')}" / f"router_{number}",
            language_router.router_config(
                network_of(config, config.router_width, config.router_layers),
                num_steps=max(1, round(config.router_share * self.num_steps)),
                batch_size=config.batch_size,
                num_positions=config.num_positions,
                seed=self.seeds[number],
            ),
            self.text.tokens["train"].set,
            part_of["train"],
            partition.num_parts,
        )

    def weights(self, variant: Variant) -> np.ndarray:
        """The weights w_k, which are shares of training tokens: [K]."""
        partition, part_of = self.partition(variant)
        held = self.part_tokens(part_of["train"], "train", partition.num_parts)
        return held / held.sum()

    def part_tokens(self, part_of: np.ndarray, split: str, num_parts: int) -> np.ndarray:
        """The number of tokens of each part, [K]."""
        sizes = np.diff(self.text.tokens[split].set.offsets)
        return np.bincount(part_of, weights=sizes, minlength=num_parts)

    @cached_property
    def _features(self) -> np.ndarray:
        texts = [document.text for corpus in self.text.corpora for document in corpus.documents]
        return self.text.encode(texts)

    @property
    def _tokens_per_step(self) -> int:
        return self.config.batch_size * self.config.num_positions

    def _goes_on(self, trunk: Member) -> Begin:
        def begin(seeds: Sequence[int]):
            rows = np.array([self.seeds.index(seed) for seed in seeds])
            return jax.tree.map(lambda leaf: leaf[rows], trunk.params)

        return begin

    def _member(
        self, name: str, documents: dict[str, np.ndarray], steps: int, begin: Begin | None = None
    ) -> Member:
        config, tokens = self.config, self.text.tokens
        return language_training.trained(
            Path(config.out) / "members" / name,
            member_config(config, steps),
            tokens["train"].chosen(documents["train"]),
            tokens["validation"].chosen(documents["validation"]),
            self.text.tokenizer,
            rates=config.rates,
            seeds=self.seeds,
            mesh=self.mesh,
            begin=begin,
        )
