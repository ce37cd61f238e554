"""What checkpoints to a store cost: small loops here; the study itself takes 100 MB."""

import dataclasses
import json

import pytest
from rich.console import Console

from experiments.systems.stores import __main__ as stores
from experiments.systems.stores.__main__ import VARIANTS, verdicts_of
from experiments.systems.stores.config import Config, check_config


@pytest.mark.slow
def test_every_variant_is_timed_in_every_round(tmp_path, monkeypatch):
    for name in stores.s3_environment(""):
        monkeypatch.setenv(name, "")  # so that they are what they were afterwards
    config = dataclasses.replace(
        Config(), out=tmp_path, rounds=2, num_steps=4, save_every=2, width=32, num_layers=1
    )
    stores.run(config, Console(quiet=True))
    result = json.loads((tmp_path / "result.json").read_text())
    rows = [(row["round"], row["variant"]) for row in result["rows"]]
    assert rows == [(number, variant) for number in range(2) for variant in VARIANTS]
    assert all(row["seconds"] > 0 for row in result["rows"])
    assert result["summary"]["leaves_that_differ"] == 0
    assert result["summary"]["megabytes_of_a_checkpoint"] > 0.1
    failed = {row["claim"] for row in result["verdicts"] if not row["passed"]}
    assert failed <= {"seconds of the store's loop over the disk's"}  # 4 steps are no measurement


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"ratio": 1.16}, "seconds of the store's loop over the disk's"),
        ({"differing": 1}, "leaves of the last checkpoint that differ"),
    ],
)
def test_each_claim_can_fail(changes, claim):
    good = {"ratio": 1.0, "differing": 0}
    assert all(v.passed for v in verdicts_of(**good))
    assert [v.claim for v in verdicts_of(**(good | changes)) if not v.passed] == [claim]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 50}, "`num_steps` must be a multiple of `save_every`, at least twice"),
        ({"width": 40}, "`width` must be a multiple of 32"),
        ({"rounds": 0}, "`rounds`"),
    ],
)
def test_options_outside_their_domain_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_config(dataclasses.replace(Config(), **changes))
