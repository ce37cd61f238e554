"""`experiments.regimes` on small texts: cells against sums by hand, predictions without a leak."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dfm_jax.comparison.evaluation_sets import EvaluationSet
from dfm_jax.comparison.gates import Sequences
from experiments.regimes import __main__ as regimes
from experiments.regimes import measure as regimes_cell
from experiments.regimes import predictions as regimes_predictions
from experiments.regimes import report as regimes_report
from experiments.regimes import seed_split as regimes_seed_split
from experiments.regimes import transformers as regimes_transformers
from experiments.regimes.config import Config


@pytest.fixture(scope="module")
def corpora(word_corpora):
    return word_corpora("")


def _config(out, **changes):
    small = Config(
        out=out,
        sizes=(2_000, 6_000, 15_000),
        num_experts=(2, 3),
        held_bytes=2_000,
        max_order=3,
        discounts=(0.6, 0.9),
        window=64,
        num_features=4,
        training_tokens=(),
        num_seeds=2,
        num_draws=50,
    )
    return dataclasses.replace(small, **changes)


@pytest.fixture(scope="module")
def folded(corpora):
    return regimes_seed_split.seed_split(corpora, seed=0, config=_config(Path()))


# ── text of several sizes ───────────────────────────────────────────────────────────────────────


def test_sizes_are_whole_documents_and_each_is_held_in_the_next(folded):
    config = _config(Path())
    cut = [regimes_seed_split.sized(folded, size, config) for size in config.sizes]
    for one, size in zip(cut, config.sizes, strict=True):
        assert size - 500 < one.num_bytes <= size
        assert one.num_bytes == sum(map(len, one.texts["train"]))
        assert one.texts["test"] == cut[0].texts["test"]
        known = len(one.texts["train"]) + len(one.texts["validation"]) + len(one.texts["test"])
        assert one.features.shape[0] == known == sum(len(c.documents) for c in one.corpora)
    for small, large in itertools.pairwise(cut):
        assert set(small.texts["train"]) < set(large.texts["train"])
    for name in ("validation", "test"):
        assert sum(map(len, cut[0].texts[name])) <= config.held_bytes
        assert not set(cut[-1].texts["train"]) & set(cut[-1].texts[name])


def test_more_text_than_there_is_is_refused(corpora):
    with pytest.raises(
        ValueError, match=r"`sizes` must be at most [\d,]+, the bytes of the training"
    ):
        regimes_seed_split.seed_split(corpora, seed=0, config=_config(Path(), sizes=(2_000, 10**9)))


# ── cells ───────────────────────────────────────────────────────────────────────────────────────


def test_windows_by_hand():
    """B1, and the gate's margin, summed in NumPy."""
    rng = np.random.default_rng(1)
    starts = np.array([0, 5, 12, 13])
    log_probs = np.log(rng.uniform(0.05, 0.9, (20, 3)))
    part = np.repeat([2, 0, 1, 1], [5, 7, 1, 7])
    evaluation_set = EvaluationSet(
        name="reset",
        log_probs=log_probs,
        dense=np.log(rng.uniform(0.05, 0.9, 20)),
        part=part,
        sequences=Sequences(starts=starts, windows=starts, num_bytes=20),
        unit=np.array([0, 0, 1, 1]),
    )
    weights = np.array([0.5, 0.2, 0.3])
    found = regimes_cell.scored(evaluation_set, np.log(weights))
    margins = 0.0
    for w, (a, b) in enumerate(zip(starts, [*starts[1:], 20], strict=True)):
        joint = weights * np.exp(log_probs[a:b].sum(0))
        k = part[a]
        assert found.mixed[w] == pytest.approx(-np.log(joint.sum()))
        assert found.own[w] == pytest.approx(-log_probs[a:b, k].sum())
        assert found.cost[w] == pytest.approx(np.log(joint[k] / joint.sum() / weights[k]))
        assert found.ceiling[w] == pytest.approx(-np.log(weights[k]))
        for t in range(a, b):
            gate = np.sort(weights * np.exp(log_probs[a:t].sum(0)))
            margins += (gate[-1] - gate[-2]) / gate.sum()
    assert found.margin == pytest.approx(margins / 20)
    assert found.b1_residual < 1e-12
    assert (found.cost <= found.ceiling + 1e-12).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", regimes_cell.KINDS)
def test_the_terms_sum_to_the_difference(folded, kind):
    config = _config(Path())
    cut = regimes_seed_split.sized(folded, 15_000, config)
    found = regimes_cell.measure(cut, kind, 3, config)
    assert found["num_experts"] == 3
    assert sum(found["terms"].values()) == pytest.approx(found["minus"][0], abs=1e-12)
    assert found["minus"][1] <= found["minus"][0] <= found["minus"][2]
    assert sum(found["held"]) == cut.num_bytes
    if kind == "domain":  # they share no word: a window says which it is of
        assert found["of_its_ceiling"] > 0.8
        assert found["terms"]["own"] < 0


def test_a_part_without_text_is_said(folded):
    config = _config(Path())
    cut = regimes_seed_split.sized(folded, 2_000, config)
    found = regimes_cell.measure(cut, "random", 30, config)
    assert found["skipped"].startswith("no training text for")
    assert "minus" not in found


# ── what is foreseen ────────────────────────────────────────────────────────────────────────────

SIZES = (1e4, 4e4, 16e4, 64e4)


def _dense(num_bytes):
    return 4.0 - 0.2 * np.log(num_bytes)


def _row(kind, number, size, mean, information=0.0, margin=0.5):
    return {
        "model": "counts",
        "partition": kind,
        "num_experts": number,
        "bytes": size,
        "dense": _dense(size),
        "mean": mean,
        "verdict": "worse" if mean > 0 else "better",
        "information": information,
        "margin": margin,
    }


@pytest.fixture
def rows():
    """Parts that are told apart win, sooner or later; at random, an expert is a smaller dense."""
    found = []
    for i, size in enumerate(SIZES):
        found.append(_row("domain", 5, size, 0.1 - 0.2 * i, information=-0.1 + 0.1 * i))
        found.append(_row("cluster", 4, size, 0.3 - 0.2 * i, information=-0.3 + 0.1 * i))
        for number in (2, 8):
            worse = _dense(size / number) - _dense(size)
            found.append(_row("random", number, size, worse, information=-0.5))
    return found


def test_each_rule_by_hand(rows):
    found = {
        (r["partition"], r["num_experts"], r["bytes"]): r["foreseen"]
        for r in regimes_predictions.predictions(rows)
    }
    assert ("domain", 5, SIZES[0]) not in found  # nothing before it
    assert set(found["domain", 5, SIZES[1]]) == {"as before", "Î(X; K)"}
    last = found["domain", 5, SIZES[3]]
    assert last["as before"] == pytest.approx(-0.3)
    assert last["trend"] == pytest.approx(-0.5)
    # A line in log bytes falls as much for an expert as for the dense model: what was, stays.
    for number in (2, 8):
        here = found["random", number, SIZES[3]]
        assert here["learning curve"] == pytest.approx(0.2 * np.log(number))
    assert last["Î(X; K)"] == pytest.approx(-0.1)  # of the size before
    assert last["all quantities"] < 0 < found["random", 8, SIZES[3]]["all quantities"]


def test_a_curve_that_bends_lets_experts_catch_up(rows):
    """Flat for the dense model, steep for its eighth: experts gain."""
    losses = dict(zip(SIZES, (2.0, 1.5, 1.2, 1.1), strict=True))
    bent = [row | {"dense": losses[row["bytes"]]} for row in rows]
    found = regimes_predictions.predictions(bent)
    (last,) = (r for r in found if r["num_experts"] == 8 and r["bytes"] == SIZES[3])
    before = next(r for r in bent if r["num_experts"] == 8 and r["bytes"] == SIZES[2])
    # From an eighth of the third size to an eighth of the fourth, against one step more.
    steep, flat = -0.5, -0.3
    share = np.log(2) / np.log(4)  # of the step that lies above 4e4
    fall = (1 - share) * steep + share * flat - flat
    expected = before["mean"] + fall
    assert last["foreseen"]["learning curve"] == pytest.approx(expected)


def test_nothing_of_the_size_in_question_is_read(rows):
    """Falsifier of a leak: other differences there and beyond, the same foresight."""
    changed = [
        row | {"mean": -row["mean"], "information": 9.0, "dense": 0.0, "margin": 0.0}
        if row["bytes"] >= SIZES[2]
        else row
        for row in rows
    ]
    at = [
        [r["foreseen"] for r in regimes_predictions.predictions(table) if r["bytes"] == SIZES[2]]
        for table in (rows, changed)
    ]
    assert at[0] == at[1]
    assert len(at[0]) == 4  # variants


def test_rules_are_judged_on_the_same_rows(rows):
    rows[-1]["verdict"] = "undecided"
    found = regimes_predictions.predictions(rows)
    table = {row["rule"]: row for row in regimes_predictions.accuracies(found)}
    assert {row["rows"] for row in table.values()} == {7}  # two sizes × four variants, less one
    assert table["trend"]["right"] == 7
    assert table["as before"]["right"] == 6  # the clusters turn between the second and the third
    assert table["always the commoner sign"]["right"] == 4
    assert regimes_predictions.separations(rows)["information"] == 1.0


def test_quantities_are_those_of_the_size_before(rows):
    """What the largest size says of itself is read by no one; what it was told before is."""
    turned = {"information": 9.0, "margin": 0.0}
    last = [r | turned if r["bytes"] == SIZES[3] and r["mean"] > 0 else r for r in rows]
    assert regimes_predictions.separations(last) == regimes_predictions.separations(rows)
    before = [r | turned if r["bytes"] == SIZES[2] and r["mean"] > 0 else r for r in rows]
    assert regimes_predictions.separations(before) != regimes_predictions.separations(rows)


def test_without_two_signs_nothing_is_separated(rows):
    lost = [row | {"verdict": "worse", "mean": abs(row["mean"])} for row in rows]
    assert set(regimes_predictions.separations(lost).values()) == {None}
    assert regimes_predictions.accuracies([]) == []


def test_the_best_number(rows):
    found = regimes_predictions.best_numbers(rows)
    assert [row["best"] for row in found if row["partition"] == "domain"] == [1, 5, 5, 5]
    assert {row["best"] for row in found if row["partition"] == "random"} == {1}


# ── the study ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_study(corpora, tmp_path, monkeypatch):
    config = _config(tmp_path, num_experts=(2, 30))
    assert regimes.run(config, corpora, Console(quiet=True))
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert all(verdict["passed"] for verdict in found["verdicts"])
    assert (tmp_path / "regimes.png").stat().st_size > 10_000
    skipped = {(r["partition"], r["num_experts"], r["bytes"]) for r in found["summary"]["skipped"]}
    assert ("random", 30, 2_000) in skipped
    measured = {
        (r["partition"], r["num_experts"], r["bytes"]) for r in found["summary"]["comparisons"]
    }
    assert len(measured) + len(skipped) == 3 * 5  # sizes × variants
    assert not measured & skipped
    grid, terms, best, foreseen, trained = regimes_report.markdown(found)
    assert grid.splitlines()[0] == "| variant | 2,000 | 6,000 | 15,000 |"
    assert "domain, K=3" in terms
    assert "random" in best
    assert "as before" in foreseen or "AUC" in foreseen

    assert len(trained.splitlines()) == 2  # a head and no row

    monkeypatch.setattr(regimes, "measure", None)  # with its cells, nothing is counted again
    assert regimes.run(config, corpora, Console(quiet=True))


@pytest.mark.slow
def test_transformers_stand_beside(corpora, tmp_path, monkeypatch):
    """Their bytes are those of their tokens, and what is foreseen reads counted experts too."""
    config = _config(
        tmp_path,
        num_experts=(2,),
        training_tokens=(256, 1_024),
        transformer_domain_bytes=8_000,
        num_tokens=280,
        width=8,
        num_layers=1,
        num_positions=16,
        batch_size=4,
    )
    assert regimes.run(config, corpora, Console(quiet=True))
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    trained = [row for row in found["rows"] if row["model"] == "transformers"]
    assert [row["num_experts"] for row in trained] == [3, 3]
    few, many = (row["bytes"] for row in trained)
    assert many == pytest.approx(4 * few, abs=2)
    assert few > 256  # a token is a byte or more
    for row in trained:
        assert row["own"] + row["cost"] == pytest.approx(row["bayes_minus_dense"], abs=1e-9)
    (last,) = (r for r in found["summary"]["predictions"] if r["model"] == "transformers")
    before = next(row["bayes_minus_dense"] for row in trained)
    assert last["foreseen"]["as before"] == pytest.approx(before)
    assert "domain, K=3" in regimes_report.markdown(found)[-1]

    more = dataclasses.replace(config, training_tokens=(10**6,))
    with pytest.raises(ValueError, match=r"`training_tokens` must be at most [\d,]+, the tokens"):
        regimes_transformers.trainers(corpora, more)

    monkeypatch.setattr(regimes_transformers, "measure", None)
    assert regimes.run(config, corpora, Console(quiet=True))


def test_bad_options(tmp_path, capsys):
    for options, words in (
        (("--sizes", "20", "10"), "`sizes` must increase; got sizes = (20, 10)"),
        (("--num-experts", "1"), "`num_experts` must be at least 2; got num_experts = 1"),
        (("--max-order", "8"), "`max_order`"),
        (
            ("--training-tokens", "9", "3"),
            "`training_tokens` must increase; got training_tokens = (9, 3)",
        ),
        (("--transformer-variants", "files"), "`variants` must be `domain`, or KIND:K"),
        (("--num-seeds", "0"), "`num_seeds` must be at least 1; got num_seeds = 0"),
    ):
        assert regimes.main(["--out", str(tmp_path), *options]) == 2
        assert words in capsys.readouterr().err
