"""`experiments.isolation`: what it counts, what it claims, what it writes."""

import json

import jax
import pytest

from dfm_jax.parallel import Collective
from experiments.systems.isolation import __main__ as isolation
from experiments.systems.isolation.__main__ import keeps_to_itself

EVERYONE = Collective("all-reduce", (tuple(range(8)),), 4)
PAIRS = Collective("all-gather", ((0, 1), (2, 3), (4, 5), (6, 7)), 4)
ACROSS = Collective("all-reduce", ((0, 2), (1, 3), (4, 6), (5, 7)), 4)
ALL = Collective("all-reduce", (), 4)


@pytest.mark.parametrize(
    ("name", "found", "holds"),
    [
        ("expert step, pmap", (), True),
        ("expert step, pmap", (PAIRS,), False),
        ("expert × data step", (PAIRS,), True),
        ("expert × data step", (), False),
        ("expert × data step", (PAIRS, ACROSS), False),
        ("expert × data step", (PAIRS, ALL), False),
        ("dense step, sharded", (EVERYONE,), True),
        ("dense step, sharded", (), False),
        ("mixing step", (EVERYONE,), True),
        ("mixing step", (EVERYONE, EVERYONE), False),
    ],
)
def test_a_claim_can_fail(name, found, holds):
    assert keeps_to_itself(name, found, 8) == holds


@pytest.mark.slow
def test_every_program_keeps_its_claim(tmp_path, capsys):
    path = tmp_path / "made" / "isolation.json"
    assert isolation.main(["--json", str(path)]) == 0
    rows = json.loads(path.read_text(encoding="utf-8"))
    said = {row["program"]: row["collectives"] for row in rows}
    for backend in ("shard_map", "pmap"):
        assert said[f"expert step, {backend}"] == said[f"expert sampler, {backend}"] == {}
    assert said["dense step, data-parallel"]["all-reduce"] >= 1
    assert said["dense step, sharded"]["all-gather"] >= 1
    assert said["mixing step"] == {"all-reduce": 1}
    assert {(row["platform"], row["devices"]) for row in rows} == {(jax.default_backend(), 8)}
    assert "FAILS" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "message"),
    [("9", "`devices` must be at most 8, as many as jax finds"), ("3", "must hold an even number")],
)
def test_devices_that_do_not_fit_are_refused(count, message, capsys):
    assert isolation.main(["--devices", count]) == 2
    assert message in capsys.readouterr().err
