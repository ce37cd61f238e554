"""The sharpness of the soft route: by hand, from draws, at the ends of the search, by command."""

import json

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from dfm_jax import cli
from dfm_jax.partition.sharpness import fit_sharpness, recorded_sharpness


def drawn(truth, *, num_rows=4000, num_experts=4, seed=0):
    """Cosines, and experts drawn from softmax(T cos)."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 1, (num_rows, num_experts)).astype(np.float32)
    upper = np.cumsum(softmax(truth * scores, axis=1), axis=1)
    labels = (rng.random((num_rows, 1)) > upper).sum(axis=1)
    return scores, np.minimum(labels, num_experts - 1)


def log_likelihood(sharpness, scores, labels):
    log_probs = log_softmax(sharpness * scores.astype(float), axis=1)
    return log_probs[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize(("held", "of"), [(3, 4), (1, 2), (9, 10)])
def test_of_two_experts_it_is_the_log_odds(held, of):
    """s = (1, 0) in every row: σ(T) is the share of rows of expert 0, and T its log-odds."""
    scores, labels = np.tile(np.float32([1, 0]), (of, 1)), np.arange(of) >= held
    found = fit_sharpness(scores, labels.astype(int))
    odds = held / (of - held)
    assert float(found.sharpness) == pytest.approx(np.log(odds), abs=1e-5)
    assert float(found.log_likelihood) == pytest.approx(
        log_likelihood(np.log(odds), scores, labels.astype(int)), abs=1e-6
    )
    assert bool(found.at_bound) == (odds == 1)  # T = 0, where the search begins


@pytest.mark.parametrize("truth", [0.7, 5.0, 21.8])
def test_it_finds_what_drew_the_experts(truth):
    """Within 4 standard errors, of which 1/√(Σ variances of the scores) is one."""
    scores, labels = drawn(truth)
    found = fit_sharpness(scores, labels)
    probs = softmax(truth * scores.astype(float), axis=1)
    means = (probs * scores).sum(axis=1)
    variances = (probs * (scores - means[:, None]) ** 2).sum(axis=1)
    error = variances.sum() ** -0.5
    assert abs(float(found.sharpness) - truth) < 4 * error
    assert error < 0.1 * truth
    assert not found.at_bound


def test_the_likelihood_rises_to_it_and_falls_from_it():
    scores, labels = drawn(5.0, num_rows=500)
    best = float(fit_sharpness(scores, labels).sharpness)
    before = [log_likelihood(T, scores, labels) for T in np.linspace(0, best, 12)]
    after = [log_likelihood(T, scores, labels) for T in np.linspace(best, 100, 40)]
    assert (np.diff(before) > 0).all()
    assert (np.diff(after) < 0).all()
    assert (np.diff(after, 2) < 1e-9).all()  # concave, and far out nearly a line


def test_an_end_of_the_search_is_said():
    scores, _ = drawn(5.0, num_rows=300)
    for labels, end in ((scores.argmax(axis=1), 100.0), (scores.argmin(axis=1), 0.0)):
        found = fit_sharpness(scores, labels)
        assert (float(found.sharpness), bool(found.at_bound)) == (end, True)
    found = fit_sharpness(scores, scores.argmax(axis=1), 7.0)
    assert (float(found.sharpness), bool(found.at_bound)) == (7.0, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 4])}, r"`labels` must lie in \[0, 3\]; got labels\[1\] = 4"),
        ({"labels": np.array([-1, 0])}, r"`labels` must lie in \[0, 3\]; got labels\[0\] = -1"),
        ({"scores": np.full((2, 4), np.nan, np.float32)}, "`scores` must be finite"),
        ({"high": 0.0}, r"`high` must lie in \(0, inf\)"),
        (
            {"scores": np.zeros((0, 4), np.float32), "labels": np.zeros(0, int)},
            "`scores` must hold a row",
        ),
    ],
)
def test_bad_values_are_refused_by_name(change, message):
    given = {"scores": np.eye(2, 4, dtype=np.float32), "labels": np.array([0, 1])} | change
    with pytest.raises(ValueError, match=message):
        fit_sharpness(**given)


# ── partition ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_partition_records_it_unless_experts_have_several_centroids(tmp_path):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 6)).astype(np.float32)
    features[:40] += 2  # so that balance has to move rows
    np.save(tmp_path / "features.npy", features)
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    rows = [json.dumps({"id": str(i), "conversations": turns}) + "\n" for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    words = ["partition", "--input", str(tmp_path / "rows.jsonl"), "--num-experts", "3"]
    words += ["--features", str(tmp_path / "features.npy")]
    assert cli.main([*words, "--out", str(tmp_path / "one")]) == 0
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["moved"] > 0
    found = recorded_sharpness(tmp_path / "one")
    assert manifest["sharpness"]["sharpness"] == found
    assert 0 < found < 100
    assert manifest["sharpness"]["at_bound"] is False
    two = ["--num-fine", "9", "--out", str(tmp_path / "two")]
    assert cli.main([*words, *two]) == 0
    with pytest.raises(ValueError, match=r"`sharpness` must be a number, because .* has no fitted"):
        recorded_sharpness(tmp_path / "two")
    with pytest.raises(ValueError, match="`partition` must be a folder that `partition` wrote"):
        recorded_sharpness(tmp_path)
