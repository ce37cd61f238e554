"""One of four killed: quick parts here; the study itself does it ten times."""

import dataclasses
import json

import pytest
from rich.console import Console

from experiments.systems.launching import __main__ as launching
from experiments.systems.launching.__main__ import verdicts_of, write_parts
from experiments.systems.launching.config import Config, check_config

GOOD = {
    **{"kills": 3, "leaves": [0, 0, 0, 0], "step_before": 9},
    **{"attempts": [1, 1, 4, 1], "ratio": 1.0},
}


@pytest.mark.slow
def test_one_kill_and_the_other_does_not_notice(tmp_path, monkeypatch):
    """Two real members. The study takes four, and judges times where the machine does less else."""
    for name, value in {"_EXPERTS": 2, "_VICTIM": 1, "_OTHERS": [0]}.items():
        monkeypatch.setattr(launching, name, value)
    config = dataclasses.replace(Config(), out=tmp_path, kills=1, num_steps=200, width=8)
    launching.run(config, Console(quiet=True))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["summary"]["differing_leaves_of_the_killed"] == 0
    assert result["summary"]["differing_leaves_of_the_others"] == 0
    failed = {row["claim"] for row in result["verdicts"] if not row["passed"]}
    assert failed <= {"the others' seconds, over those without kills"}


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"kills": 2}, "kills of one expert"),
        ({"attempts": [1, 1, 3, 1]}, "its attempts"),
        ({"leaves": [0, 0, 1, 0]}, "its leaves that differ"),
        ({"leaves": [0, 0, 0, 1]}, "the others' leaves that differ"),
        ({"attempts": [2, 1, 4, 1]}, "the others' attempts"),
        ({"ratio": 1.3}, "the others' seconds, over those without kills"),
        ({"step_before": 0}, "falsifier: leaves that the last few steps change"),
    ],
)
def test_each_claim_can_fail(changes, claim):
    assert all(v.passed for v in verdicts_of(Config(), **GOOD))
    assert [v.claim for v in verdicts_of(Config(), **(GOOD | changes)) if not v.passed] == [claim]


def test_a_run_too_short_for_its_kills_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`num_steps` must leave four checkpoints for each of the"):
        check_config(Config(num_steps=239))
    assert launching.main(["--kills", "0", "--out", str(tmp_path)]) == 2


def test_every_document_is_dealt_once(tmp_path):
    write_parts(tmp_path / "parts")
    names = [[p.name for p in (tmp_path / f"parts/expert_{k:03d}").iterdir()] for k in range(4)]
    assert [len(part) for part in names] == [10] * 4
    assert len(set().union(*names)) == 40
