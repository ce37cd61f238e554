"""One cell of `counting`: one partition's experts, one seed, every gate on every world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from dfm_jax.data import split_sizes
from dfm_jax.mixture import GateState, bayes_gate, fixed_share_gate, last_token_gate
from dfm_jax.types import Array
from experiments.counting import worlds as counting_worlds
from experiments.counting.config import Config
from experiments.counting.fold import HELD_OUT, SPLITS, Fold, fitted, parted
from experiments.lib import context_gates, contexts, worlds
from experiments.lib.context_gates import ContextModels
from experiments.lib.contexts import Contexts
from experiments.lib.fixed_share import fixed_share_losses
from experiments.lib.gate_ladder import ContextLaws
from experiments.lib.kneser_ney import Model, Queries
from experiments.lib.ladder_record import ladder_record
from experiments.lib.partitions import Partition
from experiments.lib.worlds import World

TRACED = {"kjv", "shakespeare", "stdlib"}  # a change from one of these to another is drawn


def measure(fold: Fold, name: str, config: Config) -> dict[str, Any]:
    """Train the experts of one partition, run the ladder, account for every rung.

    Raises:
        ValueError: if a part is left without a document for training or for validation.
    """
    partition, part_of = parted(fold, name, config)
    sizes = {split: np.array([len(text) for text in fold.texts[split]]) for split in SPLITS}
    weights = np.bincount(part_of["train"], weights=sizes["train"], minlength=partition.num_parts)
    weights = weights / weights.sum()
    experts, scores = _experts(fold, part_of, partition.num_parts, fold.asked, config)
    held: dict[str, dict[str, World]] = {}
    for split in HELD_OUT:
        reset, carried = worlds.held_out(
            scores[split], fold.centre_scores[split], sizes[split], part_of[split], config.window
        )
        spliced = worlds.spliced(carried, config.window, seed=fold.seed)
        held[split] = {world.name: world for world in (reset, carried, spliced)}
    held["test"]["generated"] = counting_worlds.generated(
        experts, fold.centre, weights, config.num_generated, config.window, seed=fold.seed
    )
    log_prior = np.log(weights)
    readers = _readers(fold, held["validation"]["reset"], part_of["train"], log_prior, config)
    if partition.models is None:
        short = {split: asked[: config.router_order] for split, asked in fold.asked.items()}
        _, cheap = _experts(fold, part_of, partition.num_parts, short, config)
    else:  # those that made the parts find them again
        cheap = {split: partition.models.of_bytes(fold.texts[split]) for split in HELD_OUT}
    records = {}
    options = {"prefixes": config.prefixes, "num_draws": config.num_draws, "seed": fold.seed}
    for world in held["test"].values():
        # What the experts write has no validation text: α as for held-out windows.
        tuning = held["validation"].get(world.name)
        alpha = _best_alpha(tuning, log_prior, config)
        alpha = records["reset"]["alpha"] if alpha is None else alpha
        laws, found = _context_laws(fold, readers, tuning, world, cheap)
        records[world.name] = ladder_record(world, log_prior, alpha, laws, **options)
        records[world.name]["contexts"] = found
    return {
        "partition": name,
        "seed": fold.seed,
        "num_experts": partition.num_parts,
        "weights": weights.tolist(),
        "split": split_sizes(fold.split),
        "search": partition.search,
        "domains": normalized_mutual_info_score(fold.domains["train"], part_of["train"]),
        "tuned": [[model.order, model.discount] for model in (fold.centre, *experts)],
        "router": {
            "decay": readers.decay,
            "converged": bool(readers.router.converged),
            "validation": {str(decay): loss for decay, loss in readers.router_losses.items()},
            "rows": readers.num_rows,
        },
        "worlds": records,
        "trace": _trace(
            held["test"]["spliced"], partition, log_prior, records["spliced"]["alpha"], config
        ),
    }


def _experts(
    fold: Fold,
    part_of: Mapping[str, np.ndarray],
    num_parts: int,
    asked: Mapping[str, tuple[Queries, ...]],
    config: Config,
) -> tuple[list[Model], dict[str, np.ndarray]]:
    """A model of each part, tuned on its own validation text, and what they score: [N, K]."""
    models, scores = [], []
    sizes = [len(text) for text in fold.texts["validation"]]
    for k in range(num_parts):
        own = [
            t for t, part in zip(fold.texts["train"], part_of["train"], strict=True) if part == k
        ]
        chosen_on = np.repeat(part_of["validation"] == k, sizes)
        model, found = fitted(own, asked, chosen_on, config.discounts)
        models.append(model)
        scores.append(found)
    return models, {split: np.stack([x[split] for x in scores], axis=1) for split in HELD_OUT}


def _best_alpha(world: World | None, log_prior: np.ndarray, config: Config) -> float | None:
    if world is None:
        return None
    of_alphas = fixed_share_losses(world.log_probs, world.sequences, log_prior, config.alphas)
    return float(config.alphas[int(of_alphas.argmin())])


def _readers(
    fold: Fold, reset: World, part_of: np.ndarray, log_prior: np.ndarray, config: Config
) -> ContextModels:
    """The gates that read contexts, fitted on training windows, chosen on those of validation."""
    part = reset.part[reset.sequences.starts]
    return context_gates.fitted(
        *(fold.pieces, part_of, fold.before["validation"], part, log_prior), decays=config.decays
    )


def _context_laws(
    fold: Fold,
    readers: ContextModels,
    tuning: World | None,
    world: World,
    cheap: Mapping[str, np.ndarray],
) -> tuple[ContextLaws | None, dict[str, Any] | None]:
    """The laws of a world's contexts, and what was tuned; none where nothing stands before."""
    if tuning is None or tuning.context is None or world.context is None:
        return None, None

    def read(split: str, of: World) -> tuple[Contexts, np.ndarray]:
        spans = np.asarray(of.context)
        own = fold.before[split]
        if of.name != "reset":  # the windows of every partition are the same
            own = contexts.contexts(fold.encode, fold.flat[split], spans)
        return own, context_gates.span_scores(cheap[split], spans)

    held, judged = read("validation", tuning), read("test", world)
    laws, temperatures = context_gates.laws(readers, (tuning, *held), judged)
    return laws, {
        "temperatures": temperatures,
        "empty": int(judged[0].empty.sum()),
        "wordless": int((~judged[0].known & ~judged[0].empty).sum()),
        "sequences": len(judged[0].spans),
    }


def _trace(
    spliced: World,
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
