"""The variants of `multimodal`: how questions are partitioned, and how members are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from dfm_jax.checks import require
from dfm_jax.clustering import (
    Clusters,
    cosine_scores,
    nearest_cluster,
    spherical_k_means,
    two_stage_k_means,
    two_stage_labels,
)
from dfm_jax.models import TransformerConfig
from dfm_jax.training.equal_cost import divided_steps
from experiments.language.config import Variant
from experiments.lib.training import Begin
from experiments.multimodal.config import Config, member_config, small_model
from experiments.multimodal.data import Data
from experiments.multimodal.network import Start, starts_from
from experiments.multimodal.training import Member, trained

_FINE = 64  # clusters of the first of two stages
_RESTARTS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """A partition of the questions of a set."""

    num_parts: int
    part_of: dict[str, np.ndarray]  # [Q] by split
    of_context: bool  # whether picture and question tell the part: f(c)   [D8]
    scores: np.ndarray | None  # [M, K] of pictures, f(c) their largest; None: no such scores


@dataclass(frozen=True, kw_only=True, eq=False)  # by identity: what its methods found is kept
class Trainer:
    """Trains the members of one set at one budget when they are first needed."""

    data: Data
    config: Config
    num_steps: int  # S, of the dense model
    seeds: tuple[int, ...]
    mesh: Mesh
    folder: Path
    start: Start | None = None  # what every member begins from

    @cache  # noqa: B019  one trainer a set and budget
    def dense(self, num_steps: int | None = None) -> Member:
        """The dense model, trained on all questions, for `num_steps` steps if they are given."""
        steps = self.num_steps if num_steps is None else num_steps
        everything = {name: np.ones(len(x.questions), bool) for name, x in self._splits()}
        return self._member(f"dense_{steps}", everything, steps, self._begins)

    @cache  # noqa: B019
    def blind(self) -> Member:
        """The dense model of one seed that was trained on zeros instead of pictures."""
        unseen = replace(self.data, features=np.zeros_like(self.data.features))
        other = replace(self, data=unseen, seeds=self.seeds[:1], folder=self.folder / "blind")
        return other.dense()

    @cache  # noqa: B019
    def parts(self, variant: Variant) -> Parts:
        """The partition of a variant.

        Raises:
            ValueError: if a part is left without a question of training or validation.
        """
        kind = "cluster" if variant.kind == "warm" else variant.kind
        parts = parts_of(self.data, replace(variant, kind=kind))
        for split, _ in self._splits():
            held = np.bincount(parts.part_of[split], minlength=parts.num_parts)
            rule = f"Each part of {variant.name} must have a question of {split}"
            require(held > 0, rule, held, name="questions")
        return parts

    @cache  # noqa: B019
    def weights(self, variant: Variant) -> np.ndarray:
        """The weights w_k, which are shares of training questions: [K]."""
        parts = self.parts(variant)
        held = np.bincount(parts.part_of["train"], minlength=parts.num_parts)
        return held / held.sum()

    @cache  # noqa: B019
    def experts(self, variant: Variant) -> tuple[Member, ...]:
        """The experts, each trained on its own part for its share of the steps.

        Warm experts share the steps after the first half.
        """
        parts, whole, begin = self.parts(variant), self.num_steps, self._begins
        if variant.kind == "warm":
            whole, begin = whole - self.trunk().config.num_steps, self._goes_on
        steps = divided_steps(self.weights(variant), whole)
        return tuple(
            self._member(
                f"{variant.name.replace(':', '_')}_{self.num_steps}/expert_{k:03d}",
                {name: parts.part_of[name] == k for name, _ in self._splits()},
                int(steps[k]),
                begin,
            )
            for k in range(parts.num_parts)
        )

    def trunk(self) -> Member:
        """The start of warm experts: the dense model after half of its steps, on all questions."""
        return self.dense(self.num_steps // 2)

    def _splits(self):
        return ((name, self.data.splits[name]) for name in ("train", "validation"))

    @property
    def _model(self) -> TransformerConfig:
        known = self.start
        return known.config if known else small_model(self.config, self.data.num_tokens)

    @property
    def _begins(self) -> Begin | None:
        if self.start is None:
            return None
        return starts_from(self._model, self.data.sight, self.start.params)

    def _goes_on(self, seeds: Sequence[int]):
        rows = np.array([self.seeds.index(seed) for seed in seeds])
        return jax.tree.map(lambda leaf: leaf[rows], self.trunk().params)

    def _member(
        self, name: str, which: dict[str, np.ndarray], steps: int, begin: Begin | None
    ) -> Member:
        data, splits = self.data, dict(self._splits())
        length = splits["train"].tokens.shape[1]
        return trained(
            self.folder / name,
            member_config(self.config, self._model, length, steps),
            data,
            *(splits[split].chosen(which[split]) for split in ("train", "validation")),
            rates=self.config.rates,
            seeds=self.seeds,
            mesh=self.mesh,
            begin=begin,
        )


def families(data: Data) -> tuple[str, ...]:
    """The families of training questions, the most frequent first."""
    names, counts = np.unique(data.splits["train"].family, return_counts=True)
    return tuple(names[np.argsort(-counts, kind="stable")].tolist())


def parts_of(data: Data, variant: Variant) -> Parts:
    """The partition of one kind, fitted only on training questions."""
    count = variant.num_experts or 0
    makers: dict[str, Callable[[], tuple[np.ndarray, np.ndarray | None]]] = {
        "cluster": lambda: _clusters(data, count, "rows"),
        "unbalanced": lambda: _clusters(data, count, "none"),
        "two_stage": lambda: (_two_stage(data, count), None),
        "random": lambda: (np.random.default_rng(0).integers(count, size=len(data.paths)), None),
    }
    if variant.kind == "task":
        part_of = {name: _tasks(data, count, x.family) for name, x in data.splits.items()}
        return Parts(num_parts=count, part_of=part_of, of_context=True, scores=None)
    of_picture, scores = makers[variant.kind]()
    part_of = {name: of_picture[x.picture] for name, x in data.splits.items()}
    return Parts(
        num_parts=count, part_of=part_of, of_context=variant.kind != "random", scores=scores
    )


def _tasks(data: Data, count: int, asked: np.ndarray) -> np.ndarray:
    """Assign whole families, the largest first, to the part with the fewest questions so far."""
    names = families(data)
    rule = (
        f"K of `task` must be at most {len(names)}, the number of the families {', '.join(names)}"
    )
    require(count <= len(names), rule, count, name="K")
    held, part = np.zeros(count), {}
    for name in names:
        part[name] = int(held.argmin())
        held[part[name]] += (data.splits["train"].family == name).sum()
    return np.array([part[name] for name in asked.tolist()])


def _seen(data: Data) -> np.ndarray:
    return np.unique(data.splits["train"].picture)


def _clusters(data: Data, count: int, balance: str) -> tuple[np.ndarray, np.ndarray]:
    """The part of every picture by one rule, in training and later, and the scores of the rule."""
    rows = data.whole[_seen(data)]
    found = spherical_k_means(
        jax.random.key(0), rows, count, balance=balance, num_restarts=_RESTARTS
    )
    clusters: Clusters = found.clusters
    scores = np.asarray(cosine_scores(data.whole, clusters)) - np.asarray(clusters.prices)
    return np.asarray(nearest_cluster(data.whole, clusters)), scores


def _two_stage(data: Data, count: int) -> np.ndarray:
    rows = data.whole[_seen(data)]
    found = two_stage_k_means(jax.random.key(0), rows, count, num_fine=_FINE)
    return np.asarray(two_stage_labels(data.whole, found))
