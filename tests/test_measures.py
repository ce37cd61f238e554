"""What a number on held-out documents is, and that every table says it."""

import json

import jax
import numpy as np
import pytest

from dfm_jax import cli
from dfm_jax.training.checkpoint import best_step, write_checkpoint
from dfm_jax.training.evaluation import evaluate_member, evaluated, load_member
from dfm_jax.training.members import load_member_data
from dfm_jax.training.metrics import measure_words, metric_name
from dfm_jax.training.presets import PRESETS
from dfm_jax.training.tasks import task_of

SMALL = ("model.width=8", "model.ffn_width=16", "model.num_layers=1", "model.num_heads=2")
SMALL += ("num_steps=2", "num_positions=16", "num_grid_steps=4", "batch_size=4", "held_out=0.4")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"document {number}, some words " * 2)
    return folder


@pytest.mark.slow
def test_a_masked_run_is_a_bound_with_its_standard_error(texts, tmp_path, capsys):
    """Under the heading of exact losses it would be taken for one."""
    words = ["--config", "small-masked", "--data", str(texts), "--run", str(tmp_path / "run")]
    assert cli.main(["train", *words, "--set", *SMALL]) == 0
    assert "validation_bound" in capsys.readouterr().out
    member = tmp_path / "run" / "dense"
    rows = [json.loads(line) for line in (member / "metrics.jsonl").read_text().splitlines()]
    judged = next(row for row in rows if "validation_bound" in row)
    assert judged.keys() == {"step", "validation_bound", "validation_bound_se"}
    assert best_step(member) == 2

    trained = load_member(member)
    documents = load_member_data(texts, trained.config, None).held_out
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = [evaluated(trained.state, trained.config, documents, key) for key in keys]
    totals = [one.nats.sum() / one.counts.sum() for one in drawn]
    found = evaluate_member(member, num_draws=3)
    assert found.per_token[0] == pytest.approx(np.mean(totals), rel=1e-12)
    assert (found.measure, found.num_draws) == ("bound", 3)
    assert found.draw_error == pytest.approx(np.std(totals, ddof=1) / 3**0.5, rel=1e-9)
    assert evaluate_member(member, num_draws=1).draw_error is None

    assert cli.main(["evaluate", "--run", str(tmp_path / "run"), "--draws", "3"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.endswith("what it is")
    error = f"{found.draw_error:.4f}"
    assert line.endswith(f"upper bound on −log p, 3 draws a window, s.e. of them {error}/token")


@pytest.mark.slow
def test_a_masked_sweep_says_it_too(texts, tmp_path, capsys):
    words = ["--config", "small-masked", "--data", str(texts), "--run", str(tmp_path / "sweep")]
    args = ["sweep", *words, "--devices", "1", "--grid", "seed=0:2", "--set", *SMALL]
    assert cli.main(args) == 0
    said = capsys.readouterr().out
    assert said.count("upper bound on −log p, 1 draw a window, s.e. over documents and draws") == 2
    folder = tmp_path / "sweep" / "group_000"
    assert "validation_bound/1" in (folder / "metrics.jsonl").read_text()
    rows = json.loads((folder / "sweep.json").read_text())
    assert [row["measure"] for row in rows] == ["bound"] * 2
    assert all(row["standard_error"] > 0 for row in rows)


def test_what_is_exact_and_what_is_drawn_have_names_of_their_own(tmp_path):
    exact = task_of(PRESETS["small"]).measure
    masked = task_of(PRESETS["small-masked"]).measure
    assert (metric_name(exact), metric_name(masked)) == ("validation", "validation_bound")
    assert measure_words(exact, 0, None) == "exact −log p"
    words = measure_words(masked, 8, 0.00125)
    assert words == "upper bound on −log p, 8 draws a window, s.e. of them 0.0013/token"
    for step, loss in {1: 2.0, 2: 1.0, 3: 3.0}.items():
        metrics = {"validation_bound": loss, "validation_bound_se": 0.1}
        write_checkpoint(
            tmp_path / str(step), {"w": np.ones(2)}, step=step, config={}, metrics=metrics
        )
    assert best_step(tmp_path) == 2
