"""Ensembles of trained experts: gathered, verified, changed, and exactly renormalized."""

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import cli
from dfm_jax.training.checkpoint import write_checkpoint
from dfm_jax.training.digests import CheckpointError, DamagedError
from dfm_jax.training.ensemble import (
    MANIFEST,
    Ensemble,
    check_ensemble,
    make_ensemble,
    read_ensemble,
    read_expert,
    write_ensemble,
)

COUNTS = (3, 7, 11)


def record(count: int, **changes) -> dict:
    """What goes with the checkpoint of an expert."""
    model = {"num_tokens": 5, "num_states": 6, "width": 8} | changes.pop("model", {})
    config = {"objective": "autoregressive", "num_steps": 100, "model": model}
    data = {"tokenizer": "bytes", "train_tokens": count}
    for name, value in changes.items():
        (data if name in data else config)[name] = value
    return {"config": config, "data": data}


def trained(run: Path, number: int, count: int, *, step: int = 100, loss=1.0, **changes) -> Path:
    """A member with a checkpoint, its parameters one number."""
    member = run / f"expert_{number:03d}"
    write_checkpoint(
        member / str(step),
        {"w": jnp.full(2, float(number))},
        step=step,
        config=record(count, **changes),
        metrics={"validation": loss},
    )
    return member


@pytest.fixture
def run(tmp_path) -> Path:
    for number, count in enumerate(COUNTS):
        trained(tmp_path, number, count)
    return tmp_path


def test_trained_experts_are_gathered_by_name_hash_and_mass(run):
    ensemble = make_ensemble(run)
    assert [e.name for e in ensemble.experts] == ["expert_000", "expert_001", "expert_002"]
    assert [e.step for e in ensemble.experts] == [100] * 3
    assert ensemble.weights == (Fraction(3, 21), Fraction(7, 21), Fraction(11, 21))
    assert len({e.sha256 for e in ensemble.experts}) == 3
    check_ensemble(run, ensemble)


def test_the_manifest_comes_back_as_it_was_written(run):
    ensemble = make_ensemble(run)
    write_ensemble(run / MANIFEST, ensemble)
    assert read_ensemble(run / MANIFEST) == ensemble
    rows = json.loads((run / MANIFEST).read_text())["experts"]
    assert [row["weight"] for row in rows] == ["1/7", "1/3", "11/21"]


def test_an_expert_taken_out_leaves_weights_that_sum_to_one_exactly(run):
    ensemble = make_ensemble(run)
    fewer = ensemble.without_expert("expert_001")
    assert fewer.weights == (Fraction(3, 14), Fraction(11, 14))
    # What remains keeps its proportions: the distribution given that the part is not the one taken
    # out.
    left = 1 - ensemble.weights[1]
    assert fewer.weights == (ensemble.weights[0] / left, ensemble.weights[2] / left)
    np.testing.assert_allclose(np.exp(fewer.log_weights).sum(), 1.0, rtol=0, atol=1e-15)
    again = fewer.with_expert(ensemble.experts[1])
    assert again == ensemble
    assert again.log_weights.tolist() == ensemble.log_weights.tolist()  # to the bit


def test_a_thousand_changes_leave_no_trace(run):
    """Floats that were renormalized each time would drift; shares of integers cannot."""
    ensemble = changed = make_ensemble(run)
    for number in range(1000):
        expert = ensemble.experts[number % 3]
        changed = changed.without_expert(expert.name)
        assert sum(changed.weights) == 1
        changed = changed.with_expert(expert)
    assert changed == ensemble


def test_an_expert_is_replaced_with_its_own_mass(run):
    ensemble = make_ensemble(run)
    trained(run, 1, 13, step=150)
    new = read_expert(run / "expert_001")
    assert (new.step, new.count) == (150, 13)
    changed = ensemble.with_replaced(new)
    assert changed.weights == (Fraction(3, 27), Fraction(13, 27), Fraction(11, 27))
    assert changed == make_ensemble(run)


def test_last_or_best(run):
    trained(run, 1, 7, step=150, loss=2.0)
    assert [e.step for e in make_ensemble(run).experts] == [100, 150, 100]
    assert [e.step for e in make_ensemble(run, best=True).experts] == [100, 100, 100]


def test_a_folder_beside_the_experts_is_none(run):
    (run / "expert_000_copy").mkdir()
    (run / "dense").mkdir()
    assert len(make_ensemble(run).experts) == 3


def test_who_is_left_out_is_not_read(run):
    (run / "expert_003").mkdir()  # it failed before it saved anything
    with pytest.raises(CheckpointError, match="expert_003"):
        make_ensemble(run)
    assert [e.name for e in make_ensemble(run, without=["expert_003"]).experts] == [
        *("expert_000", "expert_001", "expert_002"),
    ]


@pytest.mark.parametrize(
    ("without", "message"),
    [
        (
            ["expert_009"],
            "Each of `without` must be one of expert_000, .*; got without = 'expert_009'",
        ),
        (["expert_000", "expert_001", "expert_002"], "`without` must leave an expert"),
    ],
)
def test_who_cannot_be_left_out_is_refused(run, without, message):
    with pytest.raises(ValueError, match=message):
        make_ensemble(run, without=without)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.with_expert(e.experts[1]), "each expert once; got 'expert_001' twice"),
        (lambda e: e.without_expert("expert_009"), "`name` must be one of expert_000, .*'expert_0"),
        (
            lambda e: e.with_replaced(replace(e.experts[0], name="expert_009")),
            "`name` must be one of expert_000",
        ),
        (
            lambda e: (
                e.without_expert("expert_000")
                .without_expert("expert_001")
                .without_expert("expert_002")
            ),
            r"An ensemble must have an expert; got names = \[\]",
        ),
        (lambda e: Ensemble(experts=e.experts[::-1]), "stand in the order of their names"),
        (lambda e: replace(e.experts[0], count=0), "`count` must be at least 1; got count = 0"),
    ],
)
def test_changes_that_make_no_ensemble_are_refused(run, change, message):
    with pytest.raises(ValueError, match=message):
        change(make_ensemble(run))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective": "masked"},
            (
                "have the same `config.objective`; got objective = 'autoregressive' for .* and "
                "'masked'"
            ),
        ),
        (
            {"tokenizer": "sha256:0"},
            "have the same `data.tokenizer`; got tokenizer = 'bytes' for expert_000 and",
        ),
        (
            {"model": {"num_tokens": 9}},
            "have the same `config.model.num_tokens`; got num_tokens = 5 for expert_000",
        ),
        ({"model": {"num_states": 5}}, "have the same `config.model.num_states`"),
    ],
)
def test_experts_whose_distributions_cannot_be_mixed_are_refused(run, changes, message):
    trained(run, 3, 5, **changes)
    with pytest.raises(ValueError, match=message):
        make_ensemble(run)


def test_experts_of_different_width_may_be_mixed(run):
    trained(run, 3, 5, model={"width": 16})
    assert len(make_ensemble(run).experts) == 4


def test_an_expert_without_a_checkpoint_is_named(run, tmp_path):
    (run / "expert_003").mkdir()
    with pytest.raises(CheckpointError, match="expert_003: no checkpoint is there"):
        make_ensemble(run)
    with pytest.raises(CheckpointError, match="no expert is there"):
        make_ensemble(tmp_path / "nowhere")


def test_a_damaged_expert_is_not_gathered(run):
    path = run / "expert_002" / "100" / "checkpoint.json"
    path.write_bytes(path.read_bytes().replace(b"train_tokens", b"train_tokenz"))
    with pytest.raises(
        DamagedError,
        match=(
            r"expert_002/100: the SHA-256 of the file checkpoint.json must be .* Give "
            r"`train` again"
        ),
    ):
        make_ensemble(run)


def test_another_checkpoint_in_the_place_of_the_gathered_one_is_refused(run):
    ensemble = make_ensemble(run)
    (run / "expert_001" / "100").rename(run / "aside")
    trained(run, 1, 8)
    with pytest.raises(
        CheckpointError, match="expert_001/100: the SHA-256 of the checkpoint must be"
    ):
        check_ensemble(run, ensemble)
    (run / "expert_001" / "100").rename(run / "aside too")
    with pytest.raises(CheckpointError, match="expert_001/100: no checkpoint is there"):
        check_ensemble(run, ensemble)


def test_a_manifest_that_is_not_as_written_is_refused(run):
    path = run / MANIFEST
    with pytest.raises(
        CheckpointError, match=r"no manifest is there\. Make one with `make-ensemble`"
    ):
        read_ensemble(path)
    write_ensemble(path, make_ensemble(run))
    good = path.read_bytes()
    for bad in (
        good.replace(b'"count": 7', b'"count": 9'),
        good.replace(b'"weight": "1/3"', b'"weight": "1/2"'),
        good[:-40],
        b"[]",
        b"",
        b'{"experts": [], "sha256": ""}',
    ):
        assert bad != good
        path.write_bytes(bad)
        with pytest.raises(DamagedError, match=str(path)):
            read_ensemble(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "../expert_001"},
            "`name` must be that of a member, such as expert_000; got name = '../exp",
        ),
        ({"name": "/expert_001"}, "`name` must be that of a member"),
        ({"name": "expert_001/.."}, "`name` must be that of a member"),
        ({"step": "../../100"}, "step` must be"),
        ({"step": -1}, "`step` must be a whole number, at least 0; got step = -1"),
        ({"step": True}, "step` must be"),
    ],
)
def test_a_manifest_names_no_file_outside_its_folder(run, changes, message):
    """Its digest is right: it was written by somebody, and not damaged."""
    ensemble = make_ensemble(run)
    write_ensemble(run / MANIFEST, Ensemble(experts=(replace(ensemble.experts[1], **changes),)))
    with pytest.raises(CheckpointError, match=message):
        read_ensemble(run / MANIFEST)


@pytest.mark.parametrize("part", ["expert_001", "expert_001/100"])
def test_a_link_that_leads_out_of_the_run_is_refused(run, tmp_path_factory, part):
    write_ensemble(run / MANIFEST, make_ensemble(run))
    there = tmp_path_factory.mktemp("there") / "moved"
    (run / part).rename(there)
    (run / part).symlink_to(there)
    with pytest.raises(CheckpointError, match=f"{part}.* must lie in the folder of the run"):
        read_ensemble(run / MANIFEST)
    if part == "expert_001":
        with pytest.raises(CheckpointError, match="must lie in the folder of the run"):
            make_ensemble(run)


def test_a_link_that_leads_to_itself_is_refused(run):
    write_ensemble(run / MANIFEST, make_ensemble(run))
    shutil.rmtree(run / "expert_001")
    (run / "expert_001").symlink_to(run / "expert_001")
    with pytest.raises(CheckpointError, match=r"expert_001.* must lie in the folder of the run"):
        read_ensemble(run / MANIFEST)


def test_a_flipped_bit_anywhere_in_the_manifest_is_refused(run):
    path = run / MANIFEST
    write_ensemble(path, make_ensemble(run))
    good, whole = path.read_bytes(), read_ensemble(path)
    random = np.random.default_rng(0)
    silent = 0
    for _ in range(100):
        bad = bytearray(good)
        bad[random.integers(len(bad))] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(bad))
        try:
            silent += read_ensemble(path) != whole
        except CheckpointError:
            continue
    assert silent == 0


def test_the_command_writes_prints_and_leaves_out(run, capsys):
    assert cli.main(["make-ensemble", "--run", str(run)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "expert",
        "expert_000",
        "expert_001",
        "expert_002",
    ]
    assert cli.main(["make-ensemble", "--run", str(run), "--without", "expert_001"]) == 0
    assert "0.7857" in capsys.readouterr().out
    assert read_ensemble(run / MANIFEST) == make_ensemble(run).without_expert("expert_001")
    assert cli.main(["make-ensemble", "--run", str(run), "--without", "expert_009"]) == 2
    assert (
        "Each of `without` must be one of expert_000, expert_001, expert_002"
        in capsys.readouterr().err
    )
    assert len(read_ensemble(run / MANIFEST).experts) == 2  # nothing was written
