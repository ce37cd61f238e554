"""Killed, and given again: the same bits. A few times here; the study does it twenty."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from dfm_jax.training.checkpoint import write_checkpoint
from experiments.systems.interruptions import __main__ as interruptions
from experiments.systems.interruptions.__main__ import flipped, killed, verdicts_of
from experiments.systems.interruptions.config import Config, check_config

KILLS = [{"status": -9}] * 3
END = {"leaves": 0, "of_leaves": 5, "lines": 0, "of_lines": 9}
FLIPS = [{"refusal": "damaged"}] * 20


@pytest.mark.slow
def test_three_kills_and_the_same_bits(tmp_path):
    """The real command, SIGKILL at three random moments: leaves and log are those of one run."""
    config = dataclasses.replace(Config(), out=tmp_path / "out", width=8, num_steps=60)
    assert interruptions.run(config, Console(quiet=True))
    result = json.loads((config.out / "result.json").read_text())
    assert result["summary"]["end"]["leaves"] == 0
    assert result["summary"]["end"]["of_leaves"] > 10
    kills = [row for row in result["rows"] if "kill" in row]
    assert [row["status"] for row in kills] == [-9] * 3
    assert [row["from_step"] for row in kills][1:] == [row["last_saved"] for row in kills][:-1]


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"twice": END | {"leaves": 1}}, "leaves in which two undisturbed runs differ"),
        ({"kills": [*KILLS[:2], {"status": 0}]}, "runs that died of SIGKILL"),
        ({"end": END | {"leaves": 1}}, "leaves that differ from the undisturbed run"),
        ({"end": END | {"lines": 1}}, "lines of the log that differ from it"),
        ({"step_before": 0}, "falsifier: leaves that the last few steps change"),
        ({"flips": [*FLIPS[1:], {"refusal": None}]}, "flipped bits that were refused"),
    ],
)
def test_each_claim_can_fail(changes, claim):
    good = {"kills": KILLS, "twice": END, "end": END, "step_before": 4, "flips": FLIPS}
    assert all(v.passed for v in verdicts_of(Config(), **good))
    assert [v.claim for v in verdicts_of(Config(), **(good | changes)) if not v.passed] == [claim]


def test_a_flip_is_one_bit_and_is_undone(tmp_path):
    write_checkpoint(tmp_path / "1", {"w": np.arange(8.0)}, step=1, config={})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    rows = list(flipped(tmp_path / "1", 4, np.random.default_rng(0)))
    for row in rows:  # a bit of the list may be in the name or the digest of another file
        assert row["refusal"] is not None
        assert row["file"] in row["refusal"] or row["file"] == "SHA256SUMS"
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_run_too_short_for_its_kills_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`num_steps` must leave two checkpoints for each of the"):
        check_config(Config(num_steps=17))
    assert interruptions.main(["--kills", "0", "--out", str(tmp_path)]) == 2


def test_a_run_that_ends_before_its_kill_is_no_kill(tmp_path, monkeypatch):
    """`killed` says so by the status; the verdict counts those that died."""

    class Finished:
        stdout = None

        def poll(self):
            return 0

        def communicate(self, timeout):
            return "", None

        def wait(self):
            return 0

    monkeypatch.setattr(interruptions, "begun", lambda config, run: Finished())
    seconds = {"until_first": 0.0, "between": 0.0}
    rows = list(killed(Config(), tmp_path, seconds, np.random.default_rng(0)))
    assert [row["status"] for row in rows] == [0, 0, 0]
