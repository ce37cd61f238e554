"""What the cells of one seed of `counting` share, and how each partitions the documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dfm_jax.comparison import evaluation_sets
from dfm_jax.data import Corpus, Split, split_documents
from experiments.counting.config import Config
from experiments.lib import contexts, kneser_ney, partitions
from experiments.lib.contexts import Contexts, Encoder, Pieces
from experiments.lib.kneser_ney import Model, Queries
from experiments.lib.partitions import Partition

HELD_OUT: tuple[str, ...] = ("validation", "test")
SPLITS: tuple[str, ...] = ("train", *HELD_OUT)


@dataclass(frozen=True, kw_only=True)
class SeedSplit:
    """The split of one seed, the dense model counted on its training text, and contexts."""

    seed: int
    split: Split
    texts: Mapping[str, list[bytes]]  # by split
    asked: Mapping[str, tuple[Queries, ...]]  # by held-out split
    dense: Model
    dense_scores: Mapping[str, np.ndarray]  # [N] by held-out split
    encode: Encoder  # of words, fitted on the training text
    pieces: Pieces  # the training text, encoded
    flat: Mapping[str, bytes]  # by held-out split
    before: Mapping[str, Contexts]  # of its windows

    @property
    def domains(self) -> Mapping[str, list[str]]:
        """The domain of each document, by split."""
        return {
            name: [c.domain for c in getattr(self.split, name) for _ in c.documents]
            for name in SPLITS
        }


def seed_split(corpora: Sequence[Corpus], *, seed: int, config: Config) -> SeedSplit:
    """Split the documents and count the dense model, tuned on validation."""
    split = split_documents(corpora, seed=seed)
    texts = {name: texts_of(getattr(split, name)) for name in SPLITS}
    asked = {name: kneser_ney.queries(texts[name], config.max_order) for name in HELD_OUT}
    everything = np.ones(sum(map(len, texts["validation"])), bool)
    dense, scores = fitted(texts["train"], asked, everything, config.discounts)
    encode = contexts.encoder(texts["train"], config.num_features, seed=seed)
    flat = {name: b"".join(texts[name]) for name in HELD_OUT}
    return SeedSplit(
        seed=seed,
        split=split,
        texts=texts,
        asked=asked,
        dense=dense,
        dense_scores=scores,
        encode=encode,
        pieces=contexts.pieces(encode, texts["train"], config.window),
        flat=flat,
        before={
            name: contexts.contexts(
                encode,
                flat[name],
                evaluation_sets.window_contexts([len(t) for t in texts[name] if t], config.window),
            )
            for name in HELD_OUT
        },
    )


def texts_of(corpora: Sequence[Corpus]) -> list[bytes]:
    """Every document, one corpus after the other."""
    return [document.text.encode() for corpus in corpora for document in corpus.documents]


def fitted(
    train: Sequence[bytes],
    asked: Mapping[str, tuple[Queries, ...]],
    chosen_on: np.ndarray,
    discounts: Sequence[float],
) -> tuple[Model, dict[str, np.ndarray]]:
    """A model tuned on these bytes of validation, and what it scores: [N] by held-out split."""
    model = kneser_ney.tuned(train, asked["validation"], chosen_on, discounts=discounts)
    return model, {split: kneser_ney.log_probs(model, asked[split]) for split in HELD_OUT}


def partitioned(
    seed_split: SeedSplit, name: str, config: Config
) -> tuple[Partition, dict[str, np.ndarray]]:
    """The partition, and the part of each document, by split.

    Raises:
        ValueError: if a part is left without a document for training or for validation.
    """
    corpora = [corpus for split in SPLITS for corpus in getattr(seed_split.split, split)]
    options = {"fitted_on": len(seed_split.texts["train"]), "seed": seed_split.seed}
    num_parts = config.num_parts
    makers: dict[str, Callable[[], Partition]] = {
        "domain": lambda: partitions.by_domain(corpora),
        "file": lambda: partitions.by_assigned_files(corpora, num_parts, seed=seed_split.seed),
        "cluster": lambda: partitions.by_clusters(corpora, num_parts, **options),
        "likelihood": lambda: partitions.by_likelihood(
            corpora, num_parts, prefix=config.window, **options
        ),
        "random": lambda: partitions.at_random(corpora, num_parts, seed=seed_split.seed),
    }
    partition = makers[name]()
    part_of = partition.by_split({split: len(seed_split.texts[split]) for split in SPLITS})
    for split in ("train", "validation"):
        missing = set(range(partition.num_parts)) - set(part_of[split].tolist())
        if missing:
            raise ValueError(
                f"`num_parts` must leave each part of `{name}` a document in {split}; got "
                f"num_parts = {partition.num_parts}, which leaves none in {missing} with seed "
                f"{seed_split.seed}."
            )
    return partition, part_of
