"""One cell of `regimes`: counted experts of one partition, and the dense model of the same text.

For a window x of part k, with ŵ_k the shares of training text, in nats:

    −log Σ_j ŵ_j p̂_j(x) + log p_c(x) = [−log p̂_k(x) + log p_c(x)]   own
                                      + [log r̂_k(x) − log ŵ_k]        cost   [B1]

The mean of the cost is Î(X; K), the information about the part that the experts find in a window.
For exact experts it is I(X; K), otherwise a lower bound of it; it is below 0 if they route worse
than a guess.   [B1, D10]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.accounting import routing_cost
from dfm_jax.comparison import document_interval, evaluation_sets
from dfm_jax.comparison.evaluation_sets import EvaluationSet
from dfm_jax.mixture import bayes_gate, mix_log_probs
from dfm_jax.types import Array
from experiments.counting.seed_split import HELD_OUT, SPLITS, fitted
from experiments.lib import partitions
from experiments.lib.partitions import Partition
from experiments.regimes.config import Config
from experiments.regimes.seed_split import Sized

KINDS = ("domain", "cluster", "random")
_BLOCK = 256  # windows


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The windows of one evaluation set, in nats."""

    mixed: np.ndarray  # [W] −log Σ_k ŵ_k p̂_k(x)
    own: np.ndarray  # [W] −log p̂_k(x) of the window's own part
    cost: np.ndarray  # [W] log r̂_k(x) − log ŵ_k
    ceiling: np.ndarray  # [W] −log ŵ_k, the most that the cost can be
    dense: np.ndarray  # [W]
    margin: float  # of the Bayes gate, r_(1) − r_(2), mean over bytes
    b1_residual: float  # the largest over windows and experts


def partitioned(sized: Sized, kind: str, num_parts: int) -> tuple[Partition, dict[str, np.ndarray]]:
    """The partition of every document, and the part of each, by split."""
    sizes = {split: len(sized.texts[split]) for split in SPLITS}
    loads = np.array([len(text) for split in SPLITS for text in sized.texts[split]])
    makers: dict[str, Callable[[], Partition]] = {
        "domain": lambda: partitions.by_domain(sized.corpora),
        "random": lambda: partitions.at_random(sized.corpora, num_parts, seed=sized.seed),
        "cluster": lambda: partitions.by_balanced_clusters(
            *(sized.corpora, num_parts),
            features=sized.features,
            loads=loads,
            fitted_on=sizes["train"],
            seed=sized.seed,
        ),
    }
    partition = makers[kind]()
    return partition, partition.by_split(sizes)


def measure(sized: Sized, kind: str, num_parts: int, config: Config) -> dict[str, Any]:
    """Count the experts, score held-out windows, and compute the quantities of the theory.

    A part without a training document has no expert; then the cell says only this. An expert whose
    part has no validation text is tuned on all of it.
    """
    where = {
        "model": "counts",
        "partition": kind,
        "num_experts": num_parts,
        "seed": sized.seed,
        "bytes": sized.num_bytes,
    }
    known = ~np.isnan(sized.features[: len(sized.texts["train"]), 0])
    if kind == "cluster" and num_parts > known.sum():
        return where | {"skipped": f"only {known.sum()} training documents to cluster"}
    partition, part_of = partitioned(sized, kind, num_parts)
    where["num_experts"] = partition.num_parts
    train = np.array([len(text) for text in sized.texts["train"]])
    held = np.bincount(part_of["train"], weights=train, minlength=partition.num_parts)
    if empty := np.flatnonzero(held == 0).tolist():
        return where | {"skipped": f"no training text for {len(empty)} of the parts"}
    log_prior = np.log(held / held.sum())
    scores = _experts(sized, part_of, partition.num_parts, config)
    found = {split: _evaluation_set(sized, scores, part_of, split, config) for split in HELD_OUT}
    return where | quantities(found, log_prior, held.tolist(), config.num_draws, sized.seed)


def quantities(
    found: Mapping[str, EvaluationSet],
    log_prior: np.ndarray,
    held: list[float],
    num_draws: int,
    seed: int,
    num_bytes: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """The difference on test and its terms, and quantities on validation that may predict its sign.

    Args:
        found: The windows of validation and of test.
        log_prior: log ŵ_k, [K].
        held: The bytes of training text of each part, [K].
        num_draws: The number of draws of the bootstrap over documents.
        seed: The seed of the bootstrap.
        num_bytes: The bytes of each document, by split; by default a token is a byte.
    """
    rows = {split: scored(evaluation_set, log_prior) for split, evaluation_set in found.items()}
    sizes = num_bytes or {split: _sizes(evaluation_set) for split, evaluation_set in found.items()}
    test, told = rows["test"], rows["validation"]
    evaluation_set, total = found["test"], sizes["test"].sum()
    apart = np.bincount(evaluation_set.unit, test.mixed - test.dense)
    interval = document_interval(apart, sizes["test"], num_draws=num_draws, seed=seed)
    terms = {"own": test.own - test.dense, "cost": test.cost}
    return {
        "dense": float(test.dense.sum() / total),
        "minus": [float(x) for x in interval],
        "terms": {name: float(term.sum() / total) for name, term in terms.items()},
        "information": float(told.cost.sum() / sizes["validation"].sum()),
        "of_its_ceiling": float(told.cost.sum() / told.ceiling.sum()),
        "margin": told.margin,
        "held": held,
        "b1_residual": max(row.b1_residual for row in rows.values()),
    }


def scored(evaluation_set: EvaluationSet, log_prior: np.ndarray) -> Scored:
    """Every window of an evaluation set, scored from its start by the Bayes gate."""
    starts = evaluation_set.sequences.starts
    by_expert = np.add.reduceat(evaluation_set.log_probs, starts)
    part = evaluation_set.part[starts]
    lengths = np.diff(np.r_[starts, evaluation_set.sequences.num_bytes])
    size = int(lengths.max())
    filled = -(-starts.size // _BLOCK) * _BLOCK
    held = np.zeros((filled, size, log_prior.size))
    place = np.arange(evaluation_set.sequences.num_bytes) - starts.repeat(lengths)
    held[np.arange(starts.size).repeat(lengths), place] = evaluation_set.log_probs
    count = np.zeros(filled, int)
    count[: starts.size] = lengths
    sums = np.zeros((filled, log_prior.size))
    sums[: starts.size] = by_expert
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        blocks = [
            _block(log_prior, *rows)
            for rows in zip(
                *(np.split(x, filled // _BLOCK) for x in (held, sums, count)), strict=True
            )
        ]
    mixed, costs, margins = (np.concatenate(x)[: starts.size] for x in zip(*blocks, strict=True))
    own = np.arange(starts.size), part
    return Scored(
        mixed=-mixed,
        own=-by_expert[own],
        cost=-costs[own],
        ceiling=-log_prior[part],
        dense=-np.add.reduceat(evaluation_set.dense, starts),
        margin=float(margins.sum() / evaluation_set.sequences.num_bytes),
        b1_residual=float(np.abs(-by_expert - costs + mixed[:, None]).max()),
    )


@jax.jit
def _block(
    log_prior: Array, log_probs: Array, sums: Array, lengths: Array
) -> tuple[Array, Array, Array]:
    """Of windows: log Σ_k ŵ_k p̂_k(x), the cost of each expert alone, Σ of the gate's margins."""

    def one(log_probs: Array, sums: Array, length: Array) -> tuple[Array, Array, Array]:
        costs = jax.vmap(routing_cost, (None, None, 0))(log_prior, sums, jnp.arange(log_prior.size))
        gate = jnp.exp(bayes_gate(log_prior, log_probs).log_weights[:-1])
        best, second = jax.lax.top_k(gate, 2)[0].T
        inside = jnp.arange(log_probs.shape[0]) < length
        margin = jnp.where(inside, best - second, 0).sum()
        return mix_log_probs(log_prior, sums), costs, margin

    return jax.vmap(one)(log_probs, sums, lengths)


def _experts(
    sized: Sized, part_of: Mapping[str, np.ndarray], num_parts: int, config: Config
) -> dict[str, np.ndarray]:
    """What the experts score: [N, K] by held-out split."""
    sizes = [len(text) for text in sized.texts["validation"]]
    columns = []
    for k in range(num_parts):
        own = [
            text
            for text, part in zip(sized.texts["train"], part_of["train"], strict=True)
            if part == k
        ]
        chosen_on = np.repeat(part_of["validation"] == k, sizes)
        chosen_on = chosen_on if chosen_on.any() else ~chosen_on
        columns.append(fitted(own, sized.asked, chosen_on, config.discounts)[1])
    return {split: np.stack([one[split] for one in columns], axis=1) for split in HELD_OUT}


def _evaluation_set(
    sized: Sized,
    scores: Mapping[str, np.ndarray],
    part_of: Mapping[str, np.ndarray],
    split: str,
    config: Config,
) -> EvaluationSet:
    sizes = np.array([len(text) for text in sized.texts[split]])
    reset, _ = evaluation_sets.held_out(
        scores[split], sized.dense_scores[split], sizes, part_of[split], config.window
    )
    return reset


def _sizes(evaluation_set: EvaluationSet) -> np.ndarray:
    lengths = np.diff(np.r_[evaluation_set.sequences.windows, evaluation_set.sequences.num_bytes])
    return np.bincount(evaluation_set.unit, lengths)
