"""The members of `synthetic`: how items are partitioned, and how each model is trained.

An expert reads half of the dense model's batch in as many updates, so tokens and FLOPs are equal,
whatever the sizes of the parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dfm_jax.clustering import nearest_cluster, spherical_k_means
from dfm_jax.mixture import context_posterior
from dfm_jax.models import Params, TransformerConfig
from dfm_jax.training.batches import picture_batches
from dfm_jax.training.config import LogConfig, TrainConfig
from dfm_jax.training.examples import Examples as Seen
from dfm_jax.training.router import Router, fit_router, router_log_probs
from experiments.lib.training import swept
from experiments.synthetic.config import NUM_EXPERTS, Config, member_config, sizes_of
from experiments.synthetic.data import HELD_OUT, SPLITS, TOKENS, Data, Examples
from experiments.synthetic.network import (
    Prefix,
    doubled_width,
    flops_of_item,
    num_parameters,
    task_of,
)

_RESTARTS = 4
_DECAY = 1e-4  # of the router's weights
_ROUTED = 8_192  # training items that the router is fitted on, at most


@dataclass(frozen=True, kw_only=True)
class Member:
    """A trained member: its parameters by seed, and what they cost."""

    config: TrainConfig  # but for its seed
    before: Prefix
    params: Params  # [R, …] on the host

    @property
    def num_tokens(self) -> int:
        """The number of positions on which one seed was trained, those of the prefix included."""
        assert self.config.model.max_positions is not None
        return self.config.num_steps * self.config.batch_size * self.config.model.max_positions

    @property
    def flops(self) -> float:
        """The FLOPs of that training, without those of the encoder."""
        of_item = 3 * flops_of_item(self.config.model, self.before)
        return float(self.config.num_steps * self.config.batch_size * of_item)

    @property
    def num_parameters(self) -> int:
        """The number of parameters."""
        return num_parameters(self.config.model, self.before)

    def of_seed(self, number: int) -> Params:
        """The parameters of one seed, by its number."""
        return jax.tree.map(lambda leaf: leaf[number], self.params)


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """A partition of the training items, and its rule for all others."""

    train: np.ndarray  # [Q] the part of each training item
    gate: str  # the name of the rule
    log_weights: Mapping[str, np.ndarray]  # [Q, K] log r_0(k | c) by split
    facts: Mapping[str, float]  # what is reported of the rule

    @property
    def sizes(self) -> np.ndarray:
        """The number of training items of each part, [K]."""
        return np.bincount(self.train, minlength=NUM_EXPERTS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainer:
    """Trains members when they are first needed, or continues them from the files of `folder`."""

    data: Data
    config: Config
    mesh: Mesh
    folder: Path

    @cached_property
    def before(self) -> Prefix:
        """What stands before the question."""
        return Prefix(self.data.features.shape[2], self.config.num_prefix)

    @cached_property
    def sizes(self) -> TransformerConfig:
        """The sizes of the dense model and of each expert."""
        return self._sizes(self.config.width)

    @cache  # noqa: B019  one trainer a study
    def dense(self) -> Member:
        """The dense model, trained on all items."""
        return self._member("dense", self.sizes, None)

    @cache  # noqa: B019
    def twice(self) -> Member:
        """A dense model of about twice the parameters."""
        wider = self._sizes(doubled_width(self.sizes, self.before))
        return self._member("twice", wider, None)

    @cache  # noqa: B019
    def parts(self, kind: str) -> Parts:
        """The partition of a kind."""
        makers = {"context": by_context, "prominence": by_prominence, "random": at_random}
        return makers[kind](self.data)

    @cache  # noqa: B019
    def experts(self, kind: str) -> tuple[Member, ...]:
        """The experts of a partition."""
        part = self.parts(kind).train
        return tuple(
            self._member(f"{kind}/expert_{k:03d}", self.sizes, np.flatnonzero(part == k))
            for k in range(NUM_EXPERTS)
        )

    def _sizes(self, width: int) -> TransformerConfig:
        return sizes_of(self.config, len(TOKENS), self.data.num_positions, width=width)

    def _member(self, name: str, sizes: TransformerConfig, rows: np.ndarray | None) -> Member:
        config, data, train = self.config, self.data, self.data.splits["train"]
        size = config.batch_size if rows is None else config.batch_size // NUM_EXPERTS
        chosen = np.arange(len(train.items)) if rows is None else rows
        member = member_config(config, sizes, data.num_positions, size)
        batches = picture_batches(
            data.on_device, train.row[chosen], train.tokens[chosen], train.counts[chosen], size
        )
        of_part = hashlib.sha256(chosen.astype(np.int64).tobytes()).hexdigest()
        seen = Seen(batches, None, {"data": data.digest, "rows": of_part})
        often = max(1, member.num_steps // 4)
        log_config = LogConfig(log_every=often, save_every=often, evaluate_every=often)
        configs = [replace(member, seed=seed) for seed in range(config.num_seeds)]
        task = task_of(sizes, self.before)
        params, _ = swept(configs, seen, self.folder / name, log_config, self.mesh, task=task)
        return Member(config=member, before=self.before, params=params)


# ── partitions ──────────────────────────────────────────────────────────────────────────────────


def by_context(data: Data) -> Parts:
    """OCR, or one of the other tasks; a linear router reads it from the tokens of the question."""
    part = {name: _of_other_tasks(data.splits[name]) for name in SPLITS}
    train = data.splits["train"]
    rows = np.sort(np.random.default_rng(0).permutation(len(train.items))[:_ROUTED])
    layers = fit_router(
        jax.random.key(0), _asked(train)[rows], part["train"][rows], NUM_EXPERTS, decay=_DECAY
    ).layers
    routed = {name: _routed(layers, data.splits[name]) for name in SPLITS}
    right = float((routed[HELD_OUT] == part[HELD_OUT]).mean())
    return Parts(
        train=part["train"],
        gate="question",
        log_weights={name: _hard(found) for name, found in routed.items()},
        facts={"router": right},
    )


def by_prominence(data: Data) -> Parts:
    """Balanced clusters of the training pictures; other pictures go to the nearest centroid.

    With them stands how far the clusters agree with what is more prominent and with the task.
    """
    train = data.splits["train"]
    found = spherical_k_means(
        jax.random.key(0),
        data.whole[train.row],
        NUM_EXPERTS,
        balance="rows",
        num_restarts=_RESTARTS,
    )
    near = {
        name: np.asarray(nearest_cluster(data.whole[data.splits[name].row], found.clusters))
        for name in SPLITS
    }
    held_out = data.splits[HELD_OUT]
    facts = {}
    for name, rows, part in (
        ("train", train, np.asarray(found.labels)),
        (HELD_OUT, held_out, near[HELD_OUT]),
    ):
        facts[f"prominence, {name}"] = agreement(part, rows.prominence < 0.5)
        facts[f"task, {name}"] = agreement(part, _of_other_tasks(rows))
    return Parts(
        train=np.asarray(found.labels),
        gate="nearest",
        log_weights={name: _hard(part) for name, part in near.items()},
        facts=facts,
    )


def at_random(data: Data) -> Parts:
    """Two random halves of the training items; the experts are averaged."""
    count = len(data.splits["train"].items)
    part = np.random.default_rng(0).permutation(np.arange(count) % NUM_EXPERTS)
    uniform = {
        name: np.full((len(rows.items), NUM_EXPERTS), -np.log(NUM_EXPERTS))
        for name, rows in data.splits.items()
    }
    return Parts(train=part, gate="average", log_weights=uniform, facts={})


def agreement(part: np.ndarray, other: np.ndarray) -> float:
    """The share of items for which two labels in {0, 1} agree, the parts named as fits better."""
    same = float((part == other.astype(int)).mean())
    return max(same, 1 - same)


def _of_other_tasks(rows: Examples) -> np.ndarray:
    return (rows.task != "OCR").astype(int)


def _asked(rows: Examples) -> np.ndarray:
    """Which tokens the question has, [Q, V]."""
    found = np.zeros((len(rows.items), len(TOKENS)), np.float32)
    inside = np.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
    numbers, columns = np.nonzero(inside)
    found[numbers, rows.tokens[numbers, columns]] = 1
    return found


def _routed(layers: Router, rows: Examples) -> np.ndarray:
    log_probs: Any = jax.vmap(partial(router_log_probs, layers))(_asked(rows))
    return np.asarray(log_probs).argmax(axis=1)


def _hard(part: np.ndarray) -> np.ndarray:
    """log 1[k = f(c)].   [D8]"""
    weights = jax.vmap(partial(context_posterior, num_experts=NUM_EXPERTS))(part)
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(weights))
