"""One cell of `counting`: one partition's experts, one seed, every gate on every evaluation set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from dfm_jax.comparison import evaluation_sets
from dfm_jax.comparison.evaluation_sets import EvaluationSet
from dfm_jax.comparison.gates import ContextProbs
from dfm_jax.comparison.record import gate_comparison_record
from dfm_jax.data import split_sizes
from dfm_jax.mixture import GateState, bayes_gate, fixed_share_gate, last_token_gate
from dfm_jax.types import Array
from experiments.counting import evaluation_sets as counting_evaluation_sets
from experiments.counting.config import Config
from experiments.counting.seed_split import HELD_OUT, SPLITS, SeedSplit, fitted, partitioned
from experiments.lib import context_gates, contexts
from experiments.lib.context_gates import ContextModels
from experiments.lib.contexts import Contexts
from experiments.lib.fixed_share import fixed_share_losses
from experiments.lib.kneser_ney import Model, Queries
from experiments.lib.partitions import Partition

TRACED = {"kjv", "shakespeare", "stdlib"}  # a change from one of these to another is drawn


def measure(seed_split: SeedSplit, name: str, config: Config) -> dict[str, Any]:
    """Train the experts of one partition, run the gate comparison, account for every gate variant.

    Raises:
        ValueError: if a part is left without a document for training or for validation.
    """
    partition, part_of = partitioned(seed_split, name, config)
    sizes = {split: np.array([len(text) for text in seed_split.texts[split]]) for split in SPLITS}
    weights = np.bincount(part_of["train"], weights=sizes["train"], minlength=partition.num_parts)
    weights = weights / weights.sum()
    experts, scores = _experts(seed_split, part_of, partition.num_parts, seed_split.asked, config)
    held: dict[str, dict[str, EvaluationSet]] = {}
    for split in HELD_OUT:
        reset, carried = evaluation_sets.held_out(
            scores[split],
            seed_split.dense_scores[split],
            sizes[split],
            part_of[split],
            config.window,
        )
        spliced = evaluation_sets.spliced(carried, config.window, seed=seed_split.seed)
        held[split] = {
            evaluation_set.name: evaluation_set for evaluation_set in (reset, carried, spliced)
        }
    held["test"]["generated"] = counting_evaluation_sets.generated(
        experts,
        seed_split.dense,
        weights,
        config.num_generated,
        config.window,
        seed=seed_split.seed,
    )
    log_prior = np.log(weights)
    readers = _readers(seed_split, held["validation"]["reset"], part_of["train"], log_prior, config)
    if partition.models is None:
        short = {split: asked[: config.router_order] for split, asked in seed_split.asked.items()}
        _, cheap = _experts(seed_split, part_of, partition.num_parts, short, config)
    else:  # those that made the parts find them again
        cheap = {split: partition.models.of_bytes(seed_split.texts[split]) for split in HELD_OUT}
    records = {}
    options = {"prefixes": config.prefixes, "num_draws": config.num_draws, "seed": seed_split.seed}
    for evaluation_set in held["test"].values():
        # What the experts write has no validation text: α as for held-out windows.
        tuning = held["validation"].get(evaluation_set.name)
        alpha = _best_alpha(tuning, log_prior, config)
        alpha = records["reset"]["alpha"] if alpha is None else alpha
        probs, found = _context_probs(seed_split, readers, tuning, evaluation_set, cheap)
        records[evaluation_set.name] = gate_comparison_record(
            evaluation_set, log_prior, alpha, probs, **options
        )
        records[evaluation_set.name]["contexts"] = found
    return {
        "partition": name,
        "seed": seed_split.seed,
        "num_experts": partition.num_parts,
        "weights": weights.tolist(),
        "split": split_sizes(seed_split.split),
        "search": partition.search,
        "domains": normalized_mutual_info_score(seed_split.domains["train"], part_of["train"]),
        "tuned": [[model.order, model.discount] for model in (seed_split.dense, *experts)],
        "router": {
            "decay": readers.decay,
            "converged": bool(readers.router.converged),
            "validation": {str(decay): loss for decay, loss in readers.router_losses.items()},
            "rows": readers.num_rows,
        },
        "evaluation_sets": records,
        "trace": _trace(
            held["test"]["spliced"], partition, log_prior, records["spliced"]["alpha"], config
        ),
    }


def _experts(
    seed_split: SeedSplit,
    part_of: Mapping[str, np.ndarray],
    num_parts: int,
    asked: Mapping[str, tuple[Queries, ...]],
    config: Config,
) -> tuple[list[Model], dict[str, np.ndarray]]:
    """A model of each part, tuned on its own validation text, and what they score: [N, K]."""
    models, scores = [], []
    sizes = [len(text) for text in seed_split.texts["validation"]]
    for k in range(num_parts):
        own = [
            t
            for t, part in zip(seed_split.texts["train"], part_of["train"], strict=True)
            if part == k
        ]
        chosen_on = np.repeat(part_of["validation"] == k, sizes)
        model, found = fitted(own, asked, chosen_on, config.discounts)
        models.append(model)
        scores.append(found)
    return models, {split: np.stack([x[split] for x in scores], axis=1) for split in HELD_OUT}


def _best_alpha(
    evaluation_set: EvaluationSet | None, log_prior: np.ndarray, config: Config
) -> float | None:
    if evaluation_set is None:
        return None
    of_alphas = fixed_share_losses(
        evaluation_set.log_probs, evaluation_set.sequences, log_prior, config.alphas
    )
    return float(config.alphas[int(of_alphas.argmin())])


def _readers(
    seed_split: SeedSplit,
    reset: EvaluationSet,
    part_of: np.ndarray,
    log_prior: np.ndarray,
    config: Config,
) -> ContextModels:
    """The gates that read contexts, fitted on training windows and chosen on validation windows."""
    part = reset.part[reset.sequences.starts]
    return context_gates.fitted(
        *(seed_split.pieces, part_of, seed_split.before["validation"], part, log_prior),
        decays=config.decays,
    )


def _context_probs(
    seed_split: SeedSplit,
    readers: ContextModels,
    tuning: EvaluationSet | None,
    evaluation_set: EvaluationSet,
    cheap: Mapping[str, np.ndarray],
) -> tuple[ContextProbs | None, dict[str, Any] | None]:
    """The distributions of an evaluation set's contexts, and the fits; none if all are empty."""
    if tuning is None or tuning.context is None or evaluation_set.context is None:
        return None, None

    def read(split: str, of: EvaluationSet) -> tuple[Contexts, np.ndarray]:
        spans = np.asarray(of.context)
        own = seed_split.before[split]
        if of.name != "reset":  # the windows of every partition are the same
            own = contexts.contexts(seed_split.encode, seed_split.flat[split], spans)
        return own, context_gates.span_scores(cheap[split], spans)

    held, judged = read("validation", tuning), read("test", evaluation_set)
    probs, temperatures = context_gates.token_probs(readers, (tuning, *held), judged)
    return probs, {
        "temperatures": temperatures,
        "empty": int(judged[0].empty.sum()),
        "wordless": int((~judged[0].known & ~judged[0].empty).sum()),
        "sequences": len(judged[0].spans),
    }


def _trace(
    spliced: EvaluationSet,
    partition: Partition,
    log_prior: np.ndarray,
    alpha: float,
    config: Config,
) -> dict[str, Any]:
    """Three gates along one sequence whose part changes in the middle, [window + 1, K] each."""
    starts, window = spliced.sequences.starts, config.window // 2 * 2
    changes = [
        tuple(partition.labels[k] for k in spliced.part[[at, at + window - 1]]) for at in starts
    ]
    pair = next((i for i, change in enumerate(changes) if TRACED.issuperset(change)), 0)
    log_probs = spliced.log_probs[starts[pair] : starts[pair] + window]
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        rows = _traced(log_prior, log_probs, alpha)
    return {
        "parts": list(changes[pair]),
        "labels": list(partition.labels),
        "gates": {name: np.exp(r.log_weights).round(4).tolist() for name, r in rows.items()},
    }


@jax.jit
def _traced(log_prior: Array, log_probs: Array, alpha: float) -> dict[str, GateState]:
    return {
        "Bayes": bayes_gate(log_prior, log_probs),
        "fixed share": fixed_share_gate(log_prior, log_probs, alpha),
        "last token": last_token_gate(log_prior, log_probs),
    }
