"""Ways to part documents among experts: by domain, by file, by clusters of two kinds, at random.

A partition labels every document it is given, held-out ones too: `Corpus` after `Corpus`, in order.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from dfm_jax.checks import check_count
from dfm_jax.clustering import nearest_cluster, spherical_k_means
from dfm_jax.data import Corpus
from experiments.lib import prefix_models
from experiments.lib.prefix_models import PrefixModels

NUM_FEATURES = 64  # of a document, after the SVD


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A split of the documents into parts."""

    name: str
    part_of: np.ndarray  # [D] the part of each document
    labels: tuple[str, ...]  # [K] what a part is called
    models: PrefixModels | None = None  # those that say of a new text which part it is of
    search: Mapping[str, Any] | None = None  # how the search for the parts ended

    @property
    def num_parts(self) -> int:
        """K."""
        return len(self.labels)

    def by_split(self, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """The part of each document, by split; `sizes` are documents, in the order labeled."""
        edges = np.cumsum(list(sizes.values()))[:-1]
        return dict(zip(sizes, np.split(self.part_of, edges), strict=True))


def by_domain(corpora: Sequence[Corpus]) -> Partition:
    """One part per domain."""
    domains = [corpus.domain for corpus in corpora for _ in corpus.documents]
    return _numbered("domain", [(domain,) for domain in domains])


def by_file(corpora: Sequence[Corpus]) -> Partition:
    """One part per file: a book, a play, a source file."""
    return _numbered("file", _works(corpora))


def by_assigned_files(corpora: Sequence[Corpus], num_parts: int, *, seed: int) -> Partition:
    """Whole files assigned to `num_parts` parts at random; no file is split."""
    check_count("num_parts", num_parts)
    part_of = [_draw(num_parts, seed, "file", *work) for work in _works(corpora)]
    return _counted("file", part_of, num_parts)


def at_random(corpora: Sequence[Corpus], num_parts: int, *, seed: int) -> Partition:
    """Every document by a draw of its own: the part says nothing about the text."""
    check_count("num_parts", num_parts)
    names = [(corpus.domain, document.name) for corpus in corpora for document in corpus.documents]
    part_of = [_draw(num_parts, seed, "document", *name) for name in names]
    return _counted("random", part_of, num_parts)


def by_clusters(
    corpora: Sequence[Corpus], num_parts: int, *, fitted_on: int, seed: int
) -> Partition:
    """Clusters of words: TF-IDF, SVD, unit length, k-means; each document goes to the nearest mean.

    Args:
        corpora: The corpora whose documents are labeled.
        num_parts: K.
        fitted_on: The number of documents, from the first, on which words and means are fitted; the
            others are only labeled, by all of their own text.
        seed: The seed of the SVD and of the starts.
    """
    texts = [document.text for corpus in corpora for document in corpus.documents]
    check_count("fitted_on", fitted_on, at_least=2, at_most=len(texts))
    check_count("num_parts", num_parts, at_most=fitted_on)
    words = TfidfVectorizer(sublinear_tf=True, max_features=20_000)
    counted = words.fit_transform(texts[:fitted_on])
    size = min(NUM_FEATURES, min(counted.shape) - 1)
    features = make_pipeline(TruncatedSVD(size, random_state=seed), Normalizer())
    means = KMeans(num_parts, random_state=seed).set_params(n_init=4)
    means.fit(features.fit_transform(counted))
    part_of = np.asarray(means.predict(features.transform(words.transform(texts))))
    return _counted("cluster", part_of, num_parts)


def by_balanced_clusters(
    corpora: Sequence[Corpus],
    num_parts: int,
    *,
    features: np.ndarray,
    loads: np.ndarray,
    fitted_on: int,
    balance: str = "weights",
    seed: int,
) -> Partition:
    """Spherical k-means of features, loads balanced; the same rule labels later documents.

    Args:
        corpora: The corpora whose documents are labeled.
        num_parts: K.
        features: The features, [D, F]; a document with NaN has none, and gets a random part.
        loads: The number of tokens of each document, [D].
        fitted_on: The number of documents, from the first, that are clustered.
        balance: "weights", or "none".
        seed: The seed of the starts and of random parts.
    """
    drawn = at_random(corpora, num_parts, seed=seed).part_of
    known = ~np.isnan(features[:, 0])
    first = known & (np.arange(known.size) < fitted_on)
    weights = loads.astype(np.float32)
    found = spherical_k_means(
        jax.random.key(seed),
        features[first].astype(np.float32),
        num_parts,
        balance=balance,
        weights=None if balance == "none" else weights[first],
        num_restarts=4,
    )
    later = known & ~first
    part_of = drawn.copy()
    part_of[first] = np.asarray(found.labels)
    if later.any():
        rows = features[later].astype(np.float32)
        part_of[later] = np.asarray(nearest_cluster(rows, found.clusters, weights[later]))
    counted = np.bincount(part_of[:fitted_on], loads[:fitted_on], minlength=num_parts)
    search = {
        "mean_cosine": float(found.mean_cosine),
        "unbalanced_cosine": float(found.unbalanced_cosine),
        "agreement": float(found.agreement),
        "loads": counted.tolist(),
        "drawn": int((~known).sum()),
    }
    return replace(_counted("cluster", part_of, num_parts), search=search)


def by_likelihood(
    corpora: Sequence[Corpus], num_parts: int, *, fitted_on: int, prefix: int, seed: int
) -> Partition:
    """Clusters by the likelihood of a prefix, their bytes balanced.

    A later document goes where its prefix is likeliest: its part is a function of its prefix, and
    the models that decide it are a gate. Source: SmallTalk, arXiv 2410.03529, whose rows are
    sequences of one length.

    Args:
        corpora: The corpora whose documents are labeled.
        num_parts: K.
        fitted_on: The number of documents, from the first, that are balanced and on which the
            models are fitted; the others are only labeled.
        prefix: The number of bytes of each document that are read.
        seed: The seed of the first labels.

    Raises:
        ValueError: if an option is out of range, or the documents fitted on hold no byte.
    """
    texts = [document.text.encode() for corpus in corpora for document in corpus.documents]
    check_count("fitted_on", fitted_on, at_most=len(texts))
    check_count("num_parts", num_parts, at_most=fitted_on)
    check_count("prefix", prefix)
    prefixes = [text[:prefix] for text in texts]
    loads = np.array([len(text) for text in texts[:fitted_on]])
    found = prefix_models.clustered(prefixes[:fitted_on], loads, num_parts, seed=seed)
    others = found.params.scores(prefix_models.bigrams(prefixes[fitted_on:]))
    partition = _counted("likelihood", np.r_[found.labels, others.argmax(1)], num_parts)
    search = {
        "passes": len(found.objectives),
        "converged": found.converged,
        "nats_per_document": np.asarray(found.objectives).tolist(),
        "loads": np.bincount(found.labels, loads, minlength=num_parts).tolist(),
    }
    return replace(partition, models=found.params, search=search)


def _works(corpora: Sequence[Corpus]) -> list[tuple[str, str]]:
    return [(corpus.domain, document.work) for corpus in corpora for document in corpus.documents]


def _numbered(name: str, keys: Sequence[tuple[str, ...]]) -> Partition:
    number = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    part_of = np.array([number[key] for key in keys])
    return Partition(name=name, part_of=part_of, labels=tuple(map("/".join, number)))


def _counted(name: str, part_of: Sequence[int] | np.ndarray, num_parts: int) -> Partition:
    labels = tuple(str(k) for k in range(num_parts))
    return Partition(name=name, part_of=np.asarray(part_of, int), labels=labels)


def _draw(num_parts: int, seed: int, *names: str) -> int:
    """The same on every machine, whatever the other documents are; another kind, another draw."""
    hashed = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(hashed, "big") % num_parts
