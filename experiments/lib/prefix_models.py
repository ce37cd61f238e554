"""Byte bigrams of each cluster of texts, backed by those of all texts: small models of a prefix.

    p_k(v | z) = (c_k(z v) + β p(v | z)) / (c_k(z) + β)

z is the byte before, 0 at the start of a text; c_k counts the texts of cluster k. p(v | z) is the
same of all texts, backed by 1/256: every byte has a probability above 0, and a bigram that a
cluster has not seen speaks against it only as far as the cluster has seen z.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np

from dfm_jax.checks import check_count, check_interval
from dfm_jax.clustering import LikelihoodClustering, likelihood_clustering
from experiments.lib.ngrams import NUM_BYTES, ngram_codes

CONCENTRATION = 32.0  # β: counts of a state after which a cluster's own say half


class Bigrams(NamedTuple):
    """How often each bigram stands in each text, the first byte of a text after a 0."""

    num_texts: int  # R
    text: np.ndarray  # [M]
    gram: np.ndarray  # [M] 256 z + v
    count: np.ndarray  # [M]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """[R] values of bigrams [M], summed over each text."""
        return np.bincount(self.text, values, minlength=self.num_texts)


@dataclass(frozen=True, kw_only=True)
class PrefixModels:
    """The bigrams of K clusters."""

    counts: np.ndarray  # [K, 256²] c_k(z v), by 256 z + v
    pooled: np.ndarray  # [256²] p(v | z)
    concentration: float  # β

    @cached_property
    def totals(self) -> np.ndarray:
        """[K, 256] c_k(z)."""
        return self.counts.reshape(-1, NUM_BYTES, NUM_BYTES).sum(2)

    @cached_property
    def log_probs(self) -> np.ndarray:
        """[K, 256²] log p_k(v | z), nats."""
        return self._log_probs(self.counts, self.totals.repeat(NUM_BYTES, axis=1), self.pooled)

    def of_bytes(self, texts: Sequence[bytes]) -> np.ndarray:
        """[N, K] log p_k(byte | the byte before) along these texts, one after the other."""
        codes = np.concatenate([ngram_codes(text, 2) for text in texts])
        return self.log_probs.T[codes]

    def scores(self, counts: Bigrams) -> np.ndarray:
        """[R, K] log p_k of texts."""
        columns = [counts.sums(counts.count * probs[counts.gram]) for probs in self.log_probs]
        return np.stack(columns, axis=1)

    def left_out(self, counts: Bigrams, labels: np.ndarray) -> np.ndarray:
        """[R, K] log p_k of the texts fitted, each left out of its own cluster's counts."""
        state, own = counts.gram // NUM_BYTES, labels[counts.text]
        place = counts.text * NUM_BYTES + state
        of_state = np.bincount(place, counts.count)[place]
        rest = self.counts[own, counts.gram] - counts.count
        total = self.totals[own, state] - of_state
        own_probs = self._log_probs(rest, total, self.pooled[counts.gram])
        scores = self.scores(counts)
        scores[np.arange(counts.num_texts), labels] = counts.sums(counts.count * own_probs)
        return scores

    def _log_probs(self, counts: np.ndarray, totals: np.ndarray, backed: np.ndarray) -> np.ndarray:
        beta = self.concentration
        return np.log((counts + beta * backed) / (totals + beta))


def bigrams(texts: Sequence[bytes]) -> Bigrams:
    """Those of these texts."""
    codes = [np.unique(ngram_codes(text, 2), return_counts=True) for text in texts]
    return Bigrams(
        num_texts=len(texts),
        text=np.repeat(np.arange(len(texts)), [gram.size for gram, _ in codes]),
        gram=np.concatenate([np.empty(0, np.int64), *(gram for gram, _ in codes)]),
        count=np.concatenate([np.empty(0), *(count for _, count in codes)]),
    )


def fit(
    counts: Bigrams,
    labels: np.ndarray,
    num_clusters: int,
    *,
    concentration: float = CONCENTRATION,
) -> PrefixModels:
    """The models of texts with these labels.

    Raises:
        ValueError: if β ≤ 0.
    """
    check_interval("concentration", concentration, 0.0, np.inf, ends="()")
    place = labels[counts.text] * NUM_BYTES**2 + counts.gram
    own = np.bincount(place, counts.count, minlength=num_clusters * NUM_BYTES**2)
    own = own.reshape(num_clusters, NUM_BYTES**2)
    pooled = own.sum(0).reshape(NUM_BYTES, NUM_BYTES) + concentration / NUM_BYTES
    pooled = pooled / pooled.sum(1, keepdims=True)
    return PrefixModels(counts=own, pooled=pooled.ravel(), concentration=concentration)


def clustered(
    prefixes: Sequence[bytes], loads: np.ndarray, num_clusters: int, *, seed: int
) -> LikelihoodClustering:
    """Clusters of texts by the likelihood of their prefixes, their loads near the mean; its models.

    Each text is judged by models from which it is left out: by its own it would stay where it is.
    So no objective is sure to rise, and the search may end before it comes to rest.

    Args:
        prefixes: The prefixes that are counted and scored.
        loads: The loads to balance: the bytes of the whole texts.
        num_clusters: K.
        seed: The seed of the first labels.

    Raises:
        ValueError: if there are fewer texts than clusters, or all loads are 0.
    """
    check_count("num_clusters", num_clusters, at_most=len(prefixes))
    counts = bigrams(prefixes)

    def fitted(labels: np.ndarray) -> tuple[PrefixModels, np.ndarray]:
        return fit(counts, labels, num_clusters), labels

    def score(params: tuple[PrefixModels, np.ndarray]) -> np.ndarray:
        models, labels = params
        return models.left_out(counts, labels)

    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        found = likelihood_clustering(
            jax.random.key(seed),
            fitted,
            score,
            len(prefixes),
            num_clusters,
            balance="weights",
            weights=loads.astype(float),
        )
        return found._replace(labels=np.asarray(found.labels), params=found.params[0])
