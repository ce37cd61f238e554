"""`experiments.stacks`: its arithmetic, its refusals, and both sides under the same versions."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from rich.console import Console

from experiments.systems.stacks import __main__ as study
from experiments.systems.stacks import measure, report, side
from experiments.systems.stacks.config import WORKS, Config
from experiments.systems.training_speed import sides as training_sides

ISOLATED = [
    {"program": "expert step", "collectives": {}, "bytes": 0, "isolated": True},
    {"program": "mixing step", "collectives": {"all-reduce": 1}, "bytes": 8, "isolated": True},
]


def written(values):
    return {"dtype": values.dtype.name, "bits": values.tobytes().hex()}


def found_of(lowest, newest, isolated=True):
    sides = {"lowest": (lowest, True), "newest": (newest, isolated)}
    return {
        side: {
            "draw": {"uniform": written(np.asarray(values, np.float32))},
            "isolation": [row | {"isolated": holds} for row in ISOLATED],
            "compile": [{"compile_s": s} for s in (1.0, 5.0, 2.0)],
        }
        for side, (values, holds) in sides.items()
    }


def timed(lowest, newest, losses=(1.0, 1.0)):
    return {
        "rounds": {"lowest": [[lowest]] * 5, "newest": [[newest, 9.0, newest]] * 5},
        "losses": {"lowest": [losses[0]], "newest": [losses[1]]},
    }


def test_a_draw_is_the_same_only_to_the_bit():
    (row,) = study.draw_rows(found_of([0.5, 0.25], [0.5, 0.25]))
    assert (row["same"], row["equal"], row["largest_difference"]) == (True, 1.0, 0.0)
    (row,) = study.draw_rows(found_of([0.5, 0.25], [0.5, 0.75]))
    assert (row["same"], row["equal"], row["largest_difference"]) == (False, 0.5, 0.5)
    (row,) = study.draw_rows(found_of([0.0], [-0.0]))
    assert (row["same"], row["equal"]) == (False, 1.0)


def test_the_ratio_is_of_medians_and_the_step_is_their_median_too():
    row = study.work_row(WORKS[0], timed(3.0, 2.0), seed=0)
    assert (row["lowest_s"], row["newest_s"], row["ratio"]) == (3.0, 2.0, 1.5)
    assert study.step_of(found_of([0.0], [0.0]))["newest"] == {"compile_s": 2.0}


def test_a_verdict_fails_where_a_program_talks_losses_part_or_time_is_lost():
    def passed(found, seconds, losses=(1.0, 1.0)):
        rows = study.program_rows(found)
        rows.append(study.work_row(WORKS[0], timed(1.0, seconds), seed=0))
        gap = study.losses_gap(timed(1.0, seconds, losses))
        return [verdict.passed for verdict in study.verdicts_of(rows, gap)]

    good = found_of([0.0], [0.0])
    assert passed(good, 1.0) == [True, True, True]
    assert passed(found_of([0.0], [0.0], isolated=False), 1.0) == [False, True, True]
    assert passed(good, 1.0, (1.0, 1.01)) == [True, False, True]
    assert passed(good, 1.3) == [True, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"newest_python": "/nowhere/python"}, "`newest_python` must be the Python of an env"),
        ({"works": 6}, r"`works` must lie in \[1, 5\]; got works = 6"),
        ({"num_rounds": 2}, r"`num_rounds` must .*; got num_rounds = 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, message):
    config = Config(lowest_python=sys.executable, newest_python=sys.executable)
    with pytest.raises(ValueError, match=message):
        study.check_config(dataclasses.replace(config, **change))


@pytest.mark.slow
def test_two_sides_with_the_same_versions_do_the_same(tmp_path, monkeypatch):
    tiny = training_sides.Size(32, 2, 2, 16, 8, 2, steps=1)
    monkeypatch.setattr(side, "SIZES", (tiny,))
    config = Config(
        lowest_python=sys.executable, newest_python=sys.executable, out=tmp_path, num_rounds=3
    )

    def programs(config):
        with measure.sides(config, "experiments.stacks.side") as told:
            versions = {name: one.told({"do": "versions"}) for name, one in told.items()}
        both = {
            "draw": side.drawn(),
            "compile": [side.compiled_step()],
            "isolation": ISOLATED,
        }
        return {name: both | {"versions": versions[name]} for name in ("lowest", "newest")}

    monkeypatch.setattr(measure, "programs", programs)
    monkeypatch.setattr(measure, "WORKS", WORKS[3:])
    monkeypatch.setattr(measure, "BLOCK", 0.01)
    study.run(config, Console(quiet=True))
    result = json.loads((tmp_path / "result.json").read_text())
    draws = [row for row in result["rows"] if row["kind"] == "draw"]
    assert len(draws) > 25
    assert all(row["same"] for row in draws)
    step = result["summary"]["training_step"]
    assert step["lowest"]["state_bytes"] == step["newest"]["state_bytes"] > 0
    assert result["versions"]["lowest: jax"] == result["versions"]["newest: jax"]
    tables = report.markdown(result)
    assert "path sampling" in tables[3]
    assert "ours: sample_autoregressive" in tables[0]
