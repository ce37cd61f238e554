"""`experiments.generation`: its toy against what is known of it, its verdicts, its refusals."""

import dataclasses

import jax
import numpy as np
import pytest

from dfm_jax import exact, schedules
from experiments.generation import __main__ as study
from experiments.generation import digits, toy


@pytest.fixture(scope="module")
def toys():
    return toy.toys(0)


@pytest.mark.slow
@pytest.mark.statement("S2", "Q6")
@pytest.mark.parametrize("name", ["masked", "uniform"])
@pytest.mark.usefixtures("x64")
def test_one_position_a_step_is_exact_and_all_at_once_are_their_product(toys, name):
    here = toys[name]
    one = toy.on_table(here, np.asarray(schedules.left_to_right(toy.N), np.float64))
    assert here.distance(one) < 1e-14
    probs = toy.on_table(here, np.asarray(schedules.blocks([0] * toy.N), np.float64))
    rows = [exact.marginal(here.data, (i,), toy.V, toy.N) for i in range(toy.N)]
    tokens = exact.states(toy.V, toy.N)
    product = np.prod([row[tokens[:, i]] for i, row in enumerate(rows)], axis=0)
    assert np.abs(probs - exact.embed(product, toy.V, toy.S, toy.N)).max() < 1e-14
    assert here.distance(probs) > 0.1


@pytest.mark.slow
@pytest.mark.statement("S3", "V7")
@pytest.mark.usefixtures("x64")
def test_without_steps_back_the_corrected_distribution_is_eulers(toys, monkeypatch):
    schedule, times = schedules.cosine(), np.linspace(0, 1, 9)
    here = toys["masked"]
    with_steps = toy.corrected(here, schedule, times)
    monkeypatch.setattr(toy, "BETA", 0.0)
    plain = toy.by_euler(here, schedule, times)
    np.testing.assert_allclose(toy.corrected(here, schedule, times), plain, atol=1e-14)
    assert exact.total_variation(with_steps, plain) > 1e-3


def rows():
    found = []
    for source in ("masked", "uniform"):
        one = {"source": source, "sampler": "Euler, cosine"}
        found += [one | {"steps": t, "tv": 1 / t} for t in (16, 32)]
        blocks = {"source": source, "sampler": "blocks"}
        found += [blocks | {"steps": 1, "tv": 0.2}, blocks | {"steps": toy.N, "tv": 1e-16}]
    bounds = [
        {"sampler": "exact step, linear", "steps": t, "nats_per_pixel": n, "standard_error": 0.01}
        for t, n in ((1, 1.7), (64, 1.4))
    ]
    mean = {"sampler": "any order, mean", "nats_per_pixel": 1.39, "standard_error": 0.01}
    return found, [*bounds, mean]


def test_a_verdict_fails_where_its_claim_does():
    found, bounds = rows()
    assert all(verdict.passed for verdict in study.verdicts_of(found, bounds))
    inexact = [r | {"tv": 1e-6} if r["steps"] == toy.N else r for r in found]
    second = [r | {"tv": r["tv"] ** 2} if r["sampler"].startswith("Euler") else r for r in found]
    below = [r | {"nats_per_pixel": 1.2} if r.get("steps") == 64 else r for r in bounds]
    for place, pair in ((0, (inexact, bounds)), (2, (second, bounds)), (4, (found, below))):
        passed = [verdict.passed for verdict in study.verdicts_of(*pair)]
        assert [i for i, ok in enumerate(passed) if not ok] == [place]


def test_tables_of_blocks_reveal_every_pixel_once():
    for name, table in digits.orders().items():
        count = int(name.split(":")[1])
        assert table.shape == (count + 1, digits.POSITIONS)
        np.testing.assert_array_equal(np.diff(table, axis=0).sum(axis=1), 64 / count)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": (1, 2)}, "`steps` must hold at least 3 numbers that increase"),
        ({"steps": (4, 2, 1)}, "`steps` must hold at least 3 numbers that increase"),
        (
            {"strata": 3},
            "`strata` must divide every number of steps above it, such as 4; got strata = 3",
        ),
        ({"rate": 0.0}, r"`rate` must lie in \(0, inf\); got rate = 0.0"),
    ],
)
def test_a_bad_option_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        study.check_config(dataclasses.replace(study.Config(), **change))


@pytest.mark.slow
def test_the_quick_study_holds_and_goes_on(tmp_path, capsys, monkeypatch):
    ends = {name: at for name, at in digits.orders().items() if name.endswith((":1", ":64"))}
    monkeypatch.setattr(digits, "orders", lambda: ends)  # a program for each T
    args = ["--out", str(tmp_path), "--steps", "1", "2", "4", "--num-test", "8"]
    args += ["--training-steps", "20"]
    assert study.main(args) in (0, 1)  # a network of 20 steps promises nothing
    first = capsys.readouterr().out
    assert "TV of one position a step" in first
    assert (tmp_path / "generation.png").stat().st_size > 10_000
    assert study.main(args) in (0, 1)
    assert jax.config.jax_enable_x64 is False  # pyright: ignore
