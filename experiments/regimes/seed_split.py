"""The text of `regimes`: one split per seed, and training text of several nested sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dfm_jax.checks import require
from dfm_jax.data import Corpus, Document, split_documents
from experiments.counting.seed_split import HELD_OUT, SPLITS, fitted, texts_of
from experiments.lib import contexts, kneser_ney
from experiments.lib.kneser_ney import Model, Queries
from experiments.regimes.config import Config

Named = tuple[str, Document]  # with its domain


@dataclass(frozen=True, kw_only=True)
class SeedSplit:
    """The split of one seed: training documents in random order, and the queries for models."""

    seed: int
    train: tuple[Named, ...]
    held: Mapping[str, tuple[Corpus, ...]]  # by held-out split
    asked: Mapping[str, tuple[Queries, ...]]  # likewise


@dataclass(frozen=True, kw_only=True)
class Sized:
    """A seed split with so many bytes of training text: the dense model, and all features."""

    seed: int
    num_bytes: int
    corpora: tuple[Corpus, ...]  # of training, of validation, of test
    texts: Mapping[str, list[bytes]]  # by split
    asked: Mapping[str, tuple[Queries, ...]]
    dense: Model
    dense_scores: Mapping[str, np.ndarray]  # [N] by held-out split
    features: np.ndarray  # [D, F] of all documents, NaN where there is no known word


def seed_split(corpora: Sequence[Corpus], *, seed: int, config: Config) -> SeedSplit:
    """Split by document; held-out text is cut to whole documents in a drawn order.

    Raises:
        ValueError: if the largest of `sizes` exceeds what the training text holds.
    """
    split = split_documents(corpora, seed=seed)
    rng = np.random.default_rng(seed)
    train = [(corpus.domain, document) for corpus in split.train for document in corpus.documents]
    held = {name: _first(getattr(split, name), config.held_bytes, rng) for name in HELD_OUT}
    whole = sum(len(document.text.encode()) for _, document in train)
    rule = f"`sizes` must be at most {whole:,}, the bytes of the training text of seed {seed}"
    require(max(config.sizes) <= whole, rule, max(config.sizes), name="max(sizes)")
    return SeedSplit(
        seed=seed,
        train=tuple(train[i] for i in rng.permutation(len(train))),
        held=held,
        asked={
            name: kneser_ney.queries(texts_of(held[name]), config.max_order) for name in HELD_OUT
        },
    )


def sized(seed_split: SeedSplit, num_bytes: int, config: Config) -> Sized:
    """The first training documents up to so many bytes, at least three, and their dense model."""
    kept = _up_to(seed_split.train, num_bytes, at_least=3)
    train = _by_domain(kept, [corpus.domain for corpus in seed_split.held["test"]])
    texts = {"train": texts_of(train)} | {
        name: texts_of(seed_split.held[name]) for name in HELD_OUT
    }
    everything = np.ones(sum(map(len, texts["validation"])), bool)
    dense, scores = fitted(texts["train"], seed_split.asked, everything, config.discounts)
    size = min(config.num_features, len(kept) - 1)
    encode = contexts.encoder(texts["train"], size, seed=seed_split.seed)
    features = encode([text.decode() for split in SPLITS for text in texts[split]])
    return Sized(
        seed=seed_split.seed,
        num_bytes=sum(map(len, texts["train"])),
        corpora=(*train, *seed_split.held["validation"], *seed_split.held["test"]),
        texts=texts,
        asked=seed_split.asked,
        dense=dense,
        dense_scores=scores,
        features=features,
    )


def _first(
    corpora: Sequence[Corpus], num_bytes: int, rng: np.random.Generator
) -> tuple[Corpus, ...]:
    """Whole documents in a drawn order up to so many bytes, two at least."""
    documents = [(corpus.domain, document) for corpus in corpora for document in corpus.documents]
    drawn = [documents[i] for i in rng.permutation(len(documents))]
    return _by_domain(_up_to(drawn, num_bytes, at_least=2), [c.domain for c in corpora])


def _up_to(documents: Sequence[Named], num_bytes: int, *, at_least: int) -> Sequence[Named]:
    ends = np.cumsum([len(document.text.encode()) for _, document in documents])
    return documents[: max(at_least, int(np.searchsorted(ends, num_bytes, side="right")))]


def _by_domain(documents: Sequence[Named], domains: Sequence[str]) -> tuple[Corpus, ...]:
    return tuple(
        Corpus(domain=domain, documents=tuple(d for own, d in documents if own == domain))
        for domain in domains
    )
