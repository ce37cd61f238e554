"""Bigrams of prefixes: distributions, a text left out of its own cluster, and clusters of planted
texts.
"""

import numpy as np
import pytest

from experiments.lib import prefix_models
from experiments.lib.prefix_models import NUM_BYTES, bigrams, fit

TEXTS = (b"abracadabra", b"", b"banana bread", b"abba", b"\0\xff\0", b"bread and butter")
LABELS = np.array([0, 1, 1, 0, 2, 1])


def _pairs(text):
    """The bytes of a text, each after the one before it."""
    return list(zip(b"\0" + text[:-1], text, strict=True)) if text else []


def _by_hand(texts, labels, num_clusters, beta):
    """log p_k(v | z) from its equation, [K, 256, 256]."""
    own = np.zeros((num_clusters, NUM_BYTES, NUM_BYTES))
    for text, label in zip(texts, labels, strict=True):
        for z, v in _pairs(text):
            own[label, z, v] += 1
    pooled = own.sum(0) + beta / NUM_BYTES
    pooled = pooled / pooled.sum(-1, keepdims=True)
    return np.log((own + beta * pooled) / (own.sum(-1, keepdims=True) + beta)), own, pooled


@pytest.mark.parametrize("beta", [0.5, 32.0])
def test_every_state_of_every_cluster_has_a_distribution(beta):
    models = fit(bigrams(TEXTS), LABELS, 4, concentration=beta)
    expected, *_ = _by_hand(TEXTS, LABELS, 4, beta)
    found = models.log_probs.reshape(4, NUM_BYTES, NUM_BYTES)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-12)
    pooled = np.log(models.pooled).reshape(NUM_BYTES, NUM_BYTES)
    np.testing.assert_allclose(found[3], pooled, rtol=1e-12)  # of a cluster without a text


def test_bytes_are_scored_one_by_one_and_texts_by_their_sums():
    models = fit(bigrams(TEXTS), LABELS, 3)
    log_probs = models.log_probs.reshape(3, NUM_BYTES, NUM_BYTES)
    expected = [log_probs[:, z, v] for text in TEXTS for z, v in _pairs(text)]
    found = models.of_bytes(TEXTS)
    np.testing.assert_array_equal(found, expected)
    row = np.repeat(np.arange(len(TEXTS)), list(map(len, TEXTS)))
    sums = np.zeros((len(TEXTS), 3))
    np.add.at(sums, row, found)
    np.testing.assert_allclose(models.scores(bigrams(TEXTS)), sums, rtol=1e-12)


def test_a_text_is_judged_by_the_other_texts_of_its_cluster():
    """As if the cluster had been counted without it; with it, its own cluster is flattered."""
    counts, beta = bigrams(TEXTS), 2.0
    models = fit(counts, LABELS, 3, concentration=beta)
    found = models.left_out(counts, LABELS)
    _, own, pooled = _by_hand(TEXTS, LABELS, 3, beta)
    for i, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True)):
        rest = own.copy()
        for z, v in _pairs(text):
            rest[label, z, v] -= 1
        log_probs = np.log((rest + beta * pooled) / (rest.sum(-1, keepdims=True) + beta))
        expected = [sum(log_probs[k, z, v] for z, v in _pairs(text)) for k in range(3)]
        np.testing.assert_allclose(found[i], expected, rtol=1e-12)
    flattered = models.scores(counts)
    rows = np.arange(len(TEXTS))
    long = [0, 2, 3, 4, 5]
    assert (flattered[rows, LABELS] > found[rows, LABELS] + 0.1)[long].all()


def test_a_concentration_below_0_is_refused():
    with pytest.raises(ValueError, match="`concentration` must lie in"):
        fit(bigrams(TEXTS), LABELS, 3, concentration=0.0)


# ── clusters ────────────────────────────────────────────────────────────────────────────────────


def _planted(seed, num_texts=45, num_clusters=3, length=80):
    """Texts of Markov chains over 6 letters, as many of each, in no order; and whose each is."""
    rng = np.random.default_rng(seed)
    chains = rng.dirichlet(np.full(6, 0.4), size=(num_clusters, 6))
    truth = rng.permutation(np.arange(num_texts) % num_clusters)
    texts = []
    for k in truth:
        letters = [0]
        for _ in range(length):
            letters.append(rng.choice(6, p=chains[k, letters[-1]]))
        texts.append(bytes(ord("a") + letter for letter in letters[1:]))
    return texts, truth


@pytest.mark.slow
def test_planted_chains_are_found_though_letters_are_the_same():
    texts, truth = _planted(0)
    loads = np.full(45, 80)
    found = prefix_models.clustered(texts, loads, 3, seed=0)
    assert found.converged
    pairs = set(zip(truth.tolist(), found.labels.tolist(), strict=True))
    assert len(pairs) == 3
    refitted = fit(bigrams(texts), found.labels, 3)
    np.testing.assert_array_equal(found.params.counts, refitted.counts)
    again = prefix_models.clustered(texts, loads, 3, seed=0)
    np.testing.assert_array_equal(found.labels, again.labels)


@pytest.mark.slow
def test_loads_are_balanced_not_numbers():
    """A third of the texts holds nearly all bytes: it is spread, though it is of one chain."""
    texts, truth = _planted(1)
    loads = np.where(truth == 0, 900, 30)
    found = prefix_models.clustered(texts, loads, 3, seed=0)
    sums = np.bincount(found.labels, loads, minlength=3)
    assert sums.max() - loads.sum() / 3 <= 900
    assert len(set(found.labels[truth == 0].tolist())) == 3
