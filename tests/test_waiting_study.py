"""What a user waits for: the shortest command here; the study itself takes a quarter of an hour."""

import dataclasses
import json

import pytest
from rich.console import Console

from experiments.lib.builds import CHECKOUT
from experiments.systems.waiting import __main__ as waiting
from experiments.systems.waiting.__main__ import BEFORE, NOW, Cost, medians_of, verdicts_of
from experiments.systems.waiting.config import Config, check_config


def row(command, build, seconds, *, number=0, status=0):
    cost = Cost(seconds, 2 * seconds, 2**20, status)
    return {"command": command, "round": number, "build": build} | cost._asdict()


GOOD = [
    *(row("verify", BEFORE, 71.0), row("verify", NOW, 24.0)),
    *(row("make compare", BEFORE, 180.0), row("make compare", NOW, 90.0)),
    *(row("--help", BEFORE, 1.7), row("--help", NOW, 1.7)),
]


@pytest.mark.slow
def test_every_command_is_measured_in_every_round(tmp_path, monkeypatch):
    """On builds of one file each; the earlier one takes twice the time."""
    trees = {}
    for build, seconds in ((BEFORE, 0.2), (NOW, 0.1)):
        trees[build] = tmp_path / build
        trees[build].mkdir()
        (trees[build] / "slow.py").write_text(f"import time\ntime.sleep({seconds})\n")
    monkeypatch.setattr(waiting, "SHORT", {"slow": ("-m", "slow")})
    monkeypatch.setattr(waiting, "VERIFY", ("-m", "slow"))
    config = Config(short_rounds=3, long_rounds=1)
    rows = waiting.measured(config, trees)
    short = [(one["round"], one["build"]) for one in rows if one["command"] == "slow"]
    assert short == [(number, build) for number in range(3) for build in (BEFORE, NOW)]
    names = ["verify", *waiting.STUDIES, "make compare"]
    assert [one["command"] for one in rows[6:]] == 2 * names
    assert {one["status"] for one in rows[:6]} == {0}
    assert {one["status"] for one in rows[6:] if one["command"] == "make compare"} == {1}
    medians = medians_of(rows)
    before, slow = [one for one in medians if one["command"] == "slow"]
    assert (before["build"], slow["build"]) == (BEFORE, NOW)
    assert slow["rounds"] == 3
    assert before["seconds"] >= 0.2  # more, on a busy machine
    assert slow["seconds"] >= 0.1
    assert slow["before_over_this"] == pytest.approx(before["seconds"] / slow["seconds"])
    assert slow["peak_bytes"] > 2**20
    assert waiting.draw(medians, tmp_path / "w.png").stat().st_size > 1000
    assert sum(one["failed"] for one in medians if one["build"] == NOW) == 4


def test_the_whole_study_without_an_earlier_build(tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "SHORT", {"pass": ("-c", "pass")})
    config = dataclasses.replace(Config(), out=tmp_path, before="", short_rounds=1)
    assert waiting.run(config, Console(quiet=True))
    result = json.loads((tmp_path / "result.json").read_text())
    assert [(one["command"], one["build"]) for one in result["rows"]] == [("pass", NOW)]
    assert result["rows"][0]["before_over_this"] is None
    assert [verdict["passed"] for verdict in result["verdicts"]] == [True]


def test_the_processor_time_of_children_is_counted(tmp_path):
    """A child writes down what it has used."""
    said = tmp_path / "seconds"
    written = f"open({str(said)!r}, 'w').write(str(time.process_time()))"
    work = f"import time; sum(range(10**7)); {written}"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    cost = waiting.cost_of(("-c", code), CHECKOUT, {})
    assert cost.status == 0
    assert cost.processor_seconds > float(said.read_text()) > 0


@pytest.mark.parametrize(
    ("changed", "claim"),
    [
        (row("verify", NOW, 26.0), ("seconds over the earlier build's", "verify")),
        (row("make compare", NOW, 96.0), ("seconds over the earlier build's", "make compare")),
        (row("--help", NOW, 1.9), ("seconds over the earlier build's", "--help")),
        (row("--help", NOW, 1.7, status=1), ("commands of this build that failed", "all")),
    ],
)
def test_each_claim_can_fail(changed, claim):
    assert all(verdict.passed for verdict in verdicts_of(medians_of(GOOD)))
    same = (changed["command"], changed["build"])
    rows = [changed if (one["command"], one["build"]) == same else one for one in GOOD]
    failed = [verdict for verdict in verdicts_of(medians_of(rows)) if not verdict.passed]
    assert [(verdict.claim, verdict.statement) for verdict in failed] == [claim]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short_rounds": 0}, "`short_rounds` must be at least 1"),
        ({"long_rounds": -1}, "`long_rounds` must be at least 0"),
        ({"before": "--output=x"}, "`before` must be a commit of this checkout"),
    ],
)
def test_options_outside_their_domain_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_config(dataclasses.replace(Config(), **changes))
