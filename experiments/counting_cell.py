"""One cell of `counting`: one partition's experts, one seed, every gate on every world."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from dfm_jax.data import Corpus, Split, split_documents, split_sizes
from dfm_jax.gates import bayes_gate, fixed_share_gate, last_token_gate
from experiments import context_gates, contexts, counting_worlds, kneser_ney, partitions
from experiments.context_gates import ContextModels
from experiments.contexts import Contexts, Encoder, Pieces
from experiments.counting_account import account
from experiments.counting_worlds import World
from experiments.gate_ladder import ContextLaws, Scores, gate_names, score
from experiments.kneser_ney import Model, Queries
from experiments.partitions import Partition
from experiments.statistics import document_interval

if TYPE_CHECKING:
    from experiments.counting import Config

HELD_OUT: tuple[str, ...] = ("validation", "test")
SPLITS: tuple[str, ...] = ("train", *HELD_OUT)
PARTITIONS = ("domain", "file", "cluster", "random")
TRACED = {"kjv", "shakespeare", "stdlib"}  # a change from one of these to another is drawn


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What the cells of one seed share: the split, and the centre counted on its training text."""

    seed: int
    split: Split
    texts: Mapping[str, list[bytes]]  # by split
    asked: Mapping[str, tuple[Queries, ...]]  # by held-out split
    centre: Model
    centre_scores: Mapping[str, np.ndarray]  # [N] by held-out split
    encode: Encoder  # of words, fitted on the training text
    pieces: Pieces  # the training text, encoded
    flat: Mapping[str, bytes]  # by held-out split
    before: Mapping[str, Contexts]  # of its windows


def fold(corpora: Sequence[Corpus], *, seed: int, config: Config) -> Fold:
    """Split the documents and count the centre, tuned on validation."""
    split = split_documents(corpora, seed=seed)
    texts = {name: _texts(getattr(split, name)) for name in SPLITS}
    asked = {name: kneser_ney.queries(texts[name], config.max_order) for name in HELD_OUT}
    everything = np.ones(sum(map(len, texts["validation"])), bool)
    centre, scores = _fitted(texts["train"], asked, everything, config)
    encode = contexts.encoder(texts["train"], config.num_features, seed=seed)
    flat = {name: b"".join(texts[name]) for name in HELD_OUT}
    return Fold(
        seed=seed,
        split=split,
        texts=texts,
        asked=asked,
        centre=centre,
        centre_scores=scores,
        encode=encode,
        pieces=contexts.pieces(encode, texts["train"], config.window),
        flat=flat,
        before={
            name: contexts.contexts(
                encode,
                flat[name],
                counting_worlds.window_contexts([len(t) for t in texts[name] if t], config.window),
            )
            for name in HELD_OUT
        },
    )


def measure(fold: Fold, name: str, config: Config) -> dict[str, Any]:
    """Train the experts of one partition, run the ladder, account for every rung.

    Raises:
        ValueError: if a part is left without a document for training or for validation.
    """
    partition, part_of = _parted(fold, name, config)
    sizes = {split: np.array([len(text) for text in fold.texts[split]]) for split in SPLITS}
    weights = np.bincount(part_of["train"], weights=sizes["train"], minlength=partition.num_parts)
    weights = weights / weights.sum()
    experts, scores, short_scores = [], [], []
    short = {split: asked[: config.router_order] for split, asked in fold.asked.items()}
    for k in range(partition.num_parts):
        own = [
            t for t, part in zip(fold.texts["train"], part_of["train"], strict=True) if part == k
        ]
        chosen_on = np.repeat(part_of["validation"] == k, sizes["validation"])
        expert, found = _fitted(own, fold.asked, chosen_on, config)
        experts.append(expert)
        scores.append(found)
        short_scores.append(_fitted(own, short, chosen_on, config)[1])
    worlds: dict[str, dict[str, World]] = {}
    for split in HELD_OUT:
        log_probs = np.stack([found[split] for found in scores], axis=1)
        reset, carried = counting_worlds.held_out(
            log_probs, fold.centre_scores[split], sizes[split], part_of[split], config.window
        )
        spliced = counting_worlds.spliced(carried, config.window, seed=fold.seed)
        worlds[split] = {world.name: world for world in (reset, carried, spliced)}
    worlds["test"]["generated"] = counting_worlds.generated(
        experts, fold.centre, weights, config.num_generated, config.window, seed=fold.seed
    )
    log_prior = np.log(weights)
    readers = _readers(fold, worlds["validation"]["reset"], part_of["train"], log_prior, config)
    cheap = {split: np.stack([x[split] for x in short_scores], axis=1) for split in HELD_OUT}
    records = {}
    for world in worlds["test"].values():
        # What the experts write has no validation text: α as for held-out windows.
        tuning = worlds["validation"].get(world.name)
        alpha = _best_alpha(tuning, log_prior, config)
        alpha = records["reset"]["alpha"] if alpha is None else alpha
        laws, found = _context_laws(fold, readers, tuning, world, cheap)
        records[world.name] = _record(world, log_prior, alpha, laws, config, seed=fold.seed)
        records[world.name]["contexts"] = found
    return {
        "partition": name,
        "seed": fold.seed,
        "num_experts": partition.num_parts,
        "weights": weights.tolist(),
        "split": split_sizes(fold.split),
        "tuned": [[model.order, model.discount] for model in (fold.centre, *experts)],
        "router": {
            "decay": readers.decay,
            "converged": bool(readers.router.converged),
            "validation": {str(decay): loss for decay, loss in readers.router_losses.items()},
            "rows": readers.num_rows,
        },
        "worlds": records,
        "trace": _trace(
            worlds["test"]["spliced"], partition, log_prior, records["spliced"]["alpha"], config
        ),
    }


def _texts(corpora: Sequence[Corpus]) -> list[bytes]:
    return [document.text.encode() for corpus in corpora for document in corpus.documents]


def _fitted(
    train: Sequence[bytes],
    asked: Mapping[str, tuple[Queries, ...]],
    chosen_on: np.ndarray,
    config: Config,
) -> tuple[Model, dict[str, np.ndarray]]:
    """A model tuned on these bytes of validation, and what it scores: [N] by held-out split."""
    model = kneser_ney.tuned(train, asked["validation"], chosen_on, discounts=config.discounts)
    return model, {split: kneser_ney.log_probs(model, asked[split]) for split in HELD_OUT}


def _parted(fold: Fold, name: str, config: Config) -> tuple[Partition, dict[str, np.ndarray]]:
    """The partition, and the part of each document, by split."""
    corpora = [corpus for split in SPLITS for corpus in getattr(fold.split, split)]
    num_train = len(fold.texts["train"])
    makers: dict[str, Callable[[], Partition]] = {
        "domain": lambda: partitions.by_domain(corpora),
        "file": lambda: partitions.by_dealt_files(corpora, config.num_parts, seed=fold.seed),
        "cluster": lambda: partitions.by_clusters(
            corpora, config.num_parts, fitted_on=num_train, seed=fold.seed
        ),
        "random": lambda: partitions.at_random(corpora, config.num_parts, seed=fold.seed),
    }
    partition = makers[name]()
    edges = np.cumsum([len(fold.texts[split]) for split in SPLITS])[:-1]
    part_of = dict(zip(SPLITS, np.split(partition.part_of, edges), strict=True))
    for split in ("train", "validation"):
        missing = set(range(partition.num_parts)) - set(part_of[split].tolist())
        if missing:
            raise ValueError(
                f"`num_parts` must leave each part of `{name}` a document in {split}; with "
                f"{partition.num_parts} parts and seed {fold.seed}, none is left in {missing}."
            )
    return partition, part_of


def _best_alpha(world: World | None, log_prior: np.ndarray, config: Config) -> float | None:
    if world is None:
        return None
    scores = score(world.log_probs, world.sequences, log_prior, prefixes=(), alphas=config.alphas)
    of_alphas = scores.soft[:, 2:-1, -1].sum(0)
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


def _record(
    world: World,
    log_prior: np.ndarray,
    alpha: float,
    laws: ContextLaws | None,
    config: Config,
    *,
    seed: int,
) -> dict[str, Any]:
    """Every rung of one world, in nats per byte, as JSON takes it."""
    options = {"prefixes": config.prefixes, "contexts": laws}
    scores = score(world.log_probs, world.sequences, log_prior, alphas=[alpha], **options)
    found = account(world, scores, log_prior, **options)
    num_bytes = found.sizes.sum()
    draws = {"num_draws": config.num_draws, "seed": seed}
    against = {
        "centre": document_interval(found.nll - found.centre, found.sizes, **draws),
        "bayes": document_interval(found.nll - found.bayes, found.sizes, **draws),
    }
    terms = {name: term.sum(1) / num_bytes for name, term in found.terms().items()}
    rows = [
        {
            "gate": gate,
            "top": top,
            "nll": float(found.nll[v].sum() / num_bytes),
            "evaluations": found.evaluations[v],
            "terms": {name: float(term[v]) for name, term in terms.items()},
            "minus": {name: [float(x[v]) for x in interval] for name, interval in against.items()},
        }
        for v, (gate, top) in enumerate(found.rungs)
    ]
    return {
        "bytes": int(num_bytes),
        "units": found.sizes.size,
        "alpha": alpha,
        "centre_nll": float(found.centre.sum() / num_bytes),
        "rows": rows,
        "b1_residual": found.b1_residual,
        "b11_slack": found.b11_slack,
        "sum_residual": found.sum_residual(),
        "flattery": found.flattery,
        "margins": _margins(scores, config, laws.names if laws else ()),
    }


def _margins(
    scores: Scores, config: Config, contexts: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """By gate: the share of bytes in each bin of r_(1) − r_(2), and what top-1 costs there."""
    names = gate_names(config.prefixes, num_alphas=1, contexts=contexts)
    total = scores.margin_bytes[0].sum()
    return {
        name: {
            "bytes": (scores.margin_bytes[g] / total).tolist(),
            "hard_minus_soft": (scores.margin_gap[g] / total).tolist(),
        }
        for g, name in enumerate(names)
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
        rows = {
            "Bayes": bayes_gate(log_prior, log_probs),
            "fixed share": fixed_share_gate(log_prior, log_probs, alpha),
            "last token": last_token_gate(log_prior, log_probs),
        }
    return {
        "parts": list(changes[pair]),
        "labels": list(partition.labels),
        "gates": {name: np.exp(r.log_weights).round(4).tolist() for name, r in rows.items()},
    }
