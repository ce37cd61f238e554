"""`experiments.sweeps`: small, whole, and refused."""

import json

import pytest

from experiments.systems.sweeps import __main__ as sweeps


@pytest.mark.slow
def test_the_study_runs_small(tmp_path, capsys):
    options = f"--out {tmp_path} --num-seeds 2 --learning-rates 1e-3 1e-2 --num-steps 3"
    assert sweeps.main([*options.split(), "--num-rounds", "1"]) == 0
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert [row["side"] for row in result["rows"]] == [
        *("one program", "one program, 2 devices", "one by one")
    ]
    assert {row["runs"] for row in result["rows"]} == {4}
    assert 0 <= result["summary"]["loss_gap"] < 1e-4 < result["summary"]["loss_spread"]
    assert "FAILS" not in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--num-seeds", "--num-steps", "--num-rounds", "--num-devices"])
def test_values_out_of_range_are_refused(option, capsys):
    assert sweeps.main([option, "0"]) == 2
    name = option.removeprefix("--").replace("-", "_")
    assert f"`{name}` must be at least 1; got {name} = 0." in capsys.readouterr().err
