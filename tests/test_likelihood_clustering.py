"""Classification EM: monotone, balanced to the row, and it finds what was planted."""

import re

import jax
import numpy as np
import pytest

from dfm_jax.clustering import capacities, likelihood_clustering

V, LENGTH = 12, 60


def planted(seed: int, num_rows: int, num_clusters: int, *, concentration: float = 0.5):
    """Counts of tokens of each row, [R, V], and the distribution it was drawn from."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(V, concentration), size=num_clusters)
    truth = rng.integers(num_clusters, size=num_rows)
    return rng.multinomial(LENGTH, probs[truth]), truth


def categorical(counts: np.ndarray, num_clusters: int, *, prior: float = 1e-3):
    """The maximum of the likelihood times a Dirichlet prior: `fit` and `score`."""

    def fit(labels: np.ndarray) -> np.ndarray:
        sums = np.zeros((num_clusters, V))
        np.add.at(sums, labels, counts)
        return (sums + prior) / (sums + prior).sum(1, keepdims=True)

    def score(probs: np.ndarray) -> np.ndarray:
        return counts @ np.log(probs).T

    return fit, score


SOLVED = pytest.param("rows", marks=pytest.mark.slow)  # a transport problem, mostly compilation


@pytest.mark.parametrize("balance", ["none", SOLVED])
@pytest.mark.parametrize("seed", range(3))
def test_no_pass_lowers_the_objective(balance, seed, x64):
    """With the exact maximum of the likelihood as the fit; one that is not does lower it."""
    counts, _ = planted(seed, 90, 4, concentration=5.0)
    fit, score = categorical(counts, 4, prior=1e-9)
    found = likelihood_clustering(jax.random.key(seed), fit, score, 90, 4, balance=balance)
    objectives = np.asarray(found.objectives)
    assert found.converged
    assert len(objectives) > 2
    assert (np.diff(objectives) >= -1e-9).all()
    assert objectives[-1] > objectives[0] + 0.1

    def poor(labels):
        rng = np.random.default_rng(labels)
        probs = fit(labels) * rng.uniform(0.3, 1.0, (4, V))
        return probs / probs.sum(1, keepdims=True)

    options = {"balance": balance, "max_passes": 8}
    lost = likelihood_clustering(jax.random.key(seed), poor, score, 90, 4, **options)
    assert np.diff(lost.objectives).min() < -1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("num_rows", "num_clusters"), [(61, 4), (7, 7), (30, 1)])
def test_sizes_are_exact(num_rows, num_clusters, x64):
    counts, _ = planted(0, num_rows, 3)
    fit, score = categorical(counts, num_clusters)
    found = likelihood_clustering(jax.random.key(1), fit, score, num_rows, num_clusters)
    sizes = np.bincount(found.labels, minlength=num_clusters)
    assert sorted(sizes) == sorted(capacities(num_rows, num_clusters))


@pytest.mark.parametrize("balance", ["none", SOLVED])
def test_planted_clusters_are_found_and_labels_are_those_of_the_models(balance, x64):
    counts, truth = planted(3, 240, 3)
    fit, score = categorical(counts, 3)
    found = likelihood_clustering(jax.random.key(0), fit, score, 240, 3, balance=balance)
    table = np.histogram2d(np.asarray(found.labels), truth, bins=(3, 3))[0]
    most = np.sort(table, axis=1)[:, -1].sum() / 240  # in the planted cluster of their own cluster
    assert most > (0.99 if balance == "none" else 0.9)
    np.testing.assert_array_equal(found.params, fit(np.asarray(found.labels)))
    again = likelihood_clustering(jax.random.key(0), fit, score, 240, 3, balance=balance)
    np.testing.assert_array_equal(found.labels, again.labels)


def test_without_balance_the_share_of_a_cluster_counts(x64):
    """Two distributions that say the same of a row: it goes to the larger cluster."""

    def score(_):
        scores = np.zeros((10, 2))
        scores[0, 1] = scores[1, 0] = 5.0
        scores[2:5, 0] = 1.0
        return scores

    key = jax.random.key(0)
    found = likelihood_clustering(key, lambda labels: None, score, 10, 2, balance="none")
    assert found.labels.tolist() == [1] + [0] * 9
    best = np.log([0.9, 0.1])
    np.testing.assert_allclose(
        found.objectives[-1], (5 + best[1] + 5 + 3 + 9 * best[0]) / 10, rtol=1e-12
    )


@pytest.mark.slow
def test_too_few_passes_are_reported(x64):
    counts, _ = planted(0, 90, 4)
    fit, score = categorical(counts, 4)
    found = likelihood_clustering(jax.random.key(0), fit, score, 90, 4, max_passes=1)
    assert not found.converged
    assert found.objectives.shape == (1,)


def test_an_assignment_that_comes_back_ends_the_search():
    """Rows that each want to be where they are not go to and fro for ever."""
    passes = []

    def score(labels):
        passes.append(labels)
        return 9.0 * (np.arange(2) != labels[:, None])

    found = likelihood_clustering(
        jax.random.key(0), lambda labels: labels, score, 4, 2, balance="none"
    )
    assert not found.converged
    assert len(passes) == 2
    np.testing.assert_array_equal(found.labels, passes[0])


def _scores(value):
    return lambda params: value


REFUSED = {
    "too few rows": ({"num_rows": 2}, "`num_clusters` must lie in [1, 2]; got num_clusters = 3."),
    "an unknown balance": ({"balance": "loads"}, "`balance` must be one of ('none', 'rows'"),
    "no weights": ({"balance": "weights"}, "`weights` must be given if"),
    "weights of nothing": ({"weights": np.ones(6)}, "`weights` must be given if"),
    "no pass": ({"max_passes": 0}, "`max_passes` must be at least 1; got max_passes = 0."),
    "another shape": (
        {"score": _scores(np.zeros((6, 2)))},
        "`score` must return an array of shape (6, 3)",
    ),
    "a NaN": ({"score": _scores(np.full((6, 3), np.nan))}, "`score` must return finite numbers"),
    "an empty cluster": (
        {"score": _scores(np.eye(3)[[0] * 6] * 9), "balance": "none"},
        "Every cluster must keep a row; got sizes[1] = 0. Ask for fewer clusters, or for balance.",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_by_name(changes, message):
    call = {
        "fit": lambda labels: None,
        "score": _scores(np.zeros((6, 3))),
        "num_rows": 6,
        "num_clusters": 3,
    } | changes
    with pytest.raises(ValueError, match=re.escape(message)):
        likelihood_clustering(jax.random.key(0), **call)


@pytest.mark.slow
def test_loads_are_balanced_by_weights(x64):
    counts, truth = planted(5, 60, 3)
    fit, score = categorical(counts, 3)
    weights = np.where(truth == 0, 50.0, 1.0)
    call = (fit, score, 60, 3)
    found = likelihood_clustering(jax.random.key(0), *call, balance="weights", weights=weights)
    loads = np.bincount(found.labels, weights, minlength=3)
    assert loads.max() - weights.sum() / 3 <= 50
    free = likelihood_clustering(jax.random.key(0), *call, balance="none")
    loads = np.bincount(free.labels, weights, minlength=3)
    assert loads.max() - weights.sum() / 3 > 50  # the falsifier
