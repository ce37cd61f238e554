"""`experiments.accelerator`: its budget, its files after every part, its numbers, small runs."""

import json

import jax
import numpy as np
import pytest
from rich.console import Console

from dfm_jax.models.sizes import num_parameters
from experiments.systems.accelerator import __main__ as accelerator
from experiments.systems.accelerator import config, devices, parts, report

CPU = parts.Place(jax.devices()[0], None, config.SIZES["quick"], 0)


def test_the_model_has_the_size_that_is_named():
    assert round(num_parameters(config.GPT) / 1e6) == 124
    assert config.GPT.compute_dtype == "bfloat16"


def test_shares_are_of_known_devices_only():
    assert devices.share(494.5e12, devices.PEAKS["NVIDIA H200"].flops) == 0.5
    found = devices.described(jax.devices()[0])
    assert found["platform"] == "cpu"
    assert found["peak_flops"] is None
    assert devices.share(1e12, found["peak_flops"]) is None
    assert all(peak.flops > 1e14 > peak.memory > 5e11 for peak in devices.PEAKS.values())


def read(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def run_with(monkeypatch, folder, made, **options):
    monkeypatch.setattr(accelerator, "parts_of", lambda sizes: made)
    given = config.Config(out=folder, **options)
    return accelerator.run(given, Console(quiet=True))


def test_what_was_measured_is_written_after_every_part(monkeypatch, tmp_path):
    """A kill in the second part, here an interrupt, leaves the first part's rows."""

    def killed(place):
        raise KeyboardInterrupt

    row = {"kind": "loss", "gap": 0.0}
    made = (parts.Part("one", 1, lambda place: [row]), parts.Part("two", 1, killed))
    with pytest.raises(KeyboardInterrupt):
        run_with(monkeypatch, tmp_path, made)
    assert read(tmp_path)["rows"] == [row]
    assert [part["part"] for part in read(tmp_path)["summary"]["parts"]] == ["one"]


def test_a_part_beyond_the_budget_is_left_out_and_an_error_stops_no_other(monkeypatch, tmp_path):
    def wrong(place):
        raise RuntimeError("out of memory\nmore lines")

    made = (
        parts.Part("long", 10_000, lambda place: [{"kind": "never"}]),
        parts.Part("wrong", 1, wrong),
        parts.Part("short", 1, lambda place: [{"kind": "other"}]),
    )
    assert not run_with(monkeypatch, tmp_path, made, seconds=30.0)
    result = read(tmp_path)
    assert result["rows"] == [{"kind": "other"}]
    long, failed, short = result["summary"]["parts"]
    assert (long["status"], failed["status"], short["status"]) == (
        "not run",
        "ended with an error",
        "ran",
    )
    assert long["why"].startswith("it probably needs 1250 s, and 30 s of the budget were left")
    assert failed["why"] == "RuntimeError: out of memory"
    assert [verdict["passed"] for verdict in result["verdicts"]] == [False]
    (table,) = report.markdown(result | {"rows": []})
    assert "| wrong |" in table


def test_verdicts_fail_where_a_number_is_wrong():
    rows = [
        {"kind": "loss", "gap": 1e-3},
        {"kind": "statement", "name": "D4, float32", "residual": 1e-4, "tolerance": 1e-5},
        {"kind": "isolation", "collectives": 0, "first_differ": 1, "second_differ": 0},
    ]
    assert [v.passed for v in accelerator.verdicts_of(rows, [])] == [True] + [False] * 4
    rows[0]["gap"], rows[1]["residual"] = 1e-6, 1e-6
    rows[2] |= {"first_differ": 0, "second_differ": 3}
    assert all(v.passed for v in accelerator.verdicts_of(rows, []))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seconds 0", "`seconds` must lie in (0, inf)"),
        ("--parts training", "Each of `parts` must be one of training, einsum, losses, statements"),
    ],
)
def test_a_bad_option_is_refused(options, message, tmp_path, capsys):
    assert accelerator.main([*options.split(), "--out", str(tmp_path)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_losses_are_those_of_float64(monkeypatch):
    monkeypatch.setattr(parts, "LARGE_V", 300)
    rows = parts.losses(CPU)
    assert [row["name"].split(", ")[:2] for row in rows] == [
        [loss, dtype]
        for dtype in ("float32", "bfloat16")
        for loss in ("cross-entropy", "generalized KL")
    ]
    assert all(row["gap"] < 1e-6 for row in rows)
    assert all(row["share_of_memory"] is None and row["seconds"] > 0 for row in rows)
    # the falsifier: another token's loss
    logits, x = np.random.default_rng(0).normal(size=(8, 30)), np.arange(8)
    truth, wrong = (parts.exact_losses(logits, x_1, x) for x_1 in (x + 8, x + 9))
    assert all(abs(truth[name] - wrong[name]) > 1e-3 for name in truth)


@pytest.mark.slow
def test_an_expert_does_not_move_for_the_other_s_data():
    (row,) = parts.isolation(CPU)
    assert (row["collectives"], row["first_differ"]) == (0, 0)
    assert row["second_differ"] > 0


@pytest.mark.slow
@pytest.mark.statement("D4", "D7")
def test_half_precision_is_rougher_than_single():
    rows = {row["name"]: row for row in parts.statements(CPU)}
    for label in ("D4", "D7"):
        single, half = (rows[f"{label}, {dtype}"] for dtype in ("float32", "bfloat16"))
        assert single["residual"] <= single["tolerance"] < half["residual"] <= half["tolerance"]


@pytest.mark.slow
def test_the_study_runs_small(tmp_path, capsys):
    assert accelerator.main(["--out", str(tmp_path), "--parts", "training, einsum"]) == 0
    (row,) = read(tmp_path)["rows"]
    assert row["last_loss"] < row["first_loss"]
    assert row["tokens_per_s"] == pytest.approx(4 * 64 / row["seconds"])
    assert row["share_of_peak"] is None
    assert "| einsum attention, 4 × 64 tokens | " in capsys.readouterr().out
    assert report.main([str(tmp_path / "result.json")]) == 0
