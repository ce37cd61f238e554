"""Sweeps: runs of one shape as one program equal the same runs one by one."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from dfm_jax import cli
from dfm_jax.models import TransformerConfig
from dfm_jax.parallel import make_mesh
from dfm_jax.training.checkpoint import checkpoint_steps
from dfm_jax.training.config import (
    LogConfig,
    OptimizerConfig,
    TrainConfig,
    differences_until,
    lengthening_hint,
    to_json,
)
from dfm_jax.training.digests import CheckpointError
from dfm_jax.training.evaluation import load_member
from dfm_jax.training.fit import make_run, train_member
from dfm_jax.training.loop import Outcome, train
from dfm_jax.training.members import load_member_data, member_data_path, read_member
from dfm_jax.training.metrics import read_metrics
from dfm_jax.training.presets import load_axes, load_axis, load_config
from dfm_jax.training.state import learning_rate_shape
from dfm_jax.training.stopping import StopRequest
from dfm_jax.training.sweep import by_shape, grid, make_sweep, train_sweep

STEPS = 6
BASE = TrainConfig(
    model=TransformerConfig(
        num_tokens=256,
        num_states=257,
        width=8,
        num_layers=1,
        num_heads=2,
        ffn_width=16,
        dropout=0.1,
    ),
    optimizer=OptimizerConfig(warmup_steps=1),
    num_steps=STEPS,
    batch_size=4,
    num_positions=16,
    held_out=0.3,
)
AXES = {"seed": (0, 1), "optimizer.learning_rate": (1e-3, 1e-2), "num_steps": (STEPS, 3)}
LOG_CONFIG = LogConfig(log_every=2, save_every=2, evaluate_every=4)


# ── grids ───────────────────────────────────────────────────────────────────────────────────────


def test_a_grid_is_every_combination_and_what_is_a_number_rides():
    configs = grid(BASE, AXES | {"model.width": (8, 16)})
    assert len(configs) == 16
    assert [c.model.width for c in configs[:2]] == [8, 16]
    groups = by_shape(configs)
    assert [len(group) for group in groups] == [8, 8]
    assert {c.model.width for c in groups[0]} == {8}
    assert [c.seed for c in groups[1]] == [0] * 4 + [1] * 4


@pytest.mark.slow
def test_warm_ups_of_any_length_ride(data):
    """One program, and each run is what it is alone."""
    configs = grid(BASE, {"optimizer.warmup_steps": (0, 3)})
    assert len(by_shape(configs)) == 1
    run, _ = make_sweep(configs, data, LOG_CONFIG, make_mesh(1))
    state, _ = run.update(run.init(), 0)
    for number, config in enumerate(configs):
        alone = make_run(config, data, LOG_CONFIG)
        expected, _ = alone.update(alone.init(), 0)
        kernels = [np.asarray(leaf)[number] for leaf in jax.tree.leaves(state.params)]
        for a, b in zip(kernels, jax.tree.leaves(expected.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    pairs = map(np.asarray, jax.tree.leaves(state.params))
    assert any(np.abs(first - second).max() > 1e-4 for first, second in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2])
def test_bits_do_not_depend_on_how_updates_are_divided_among_calls(data, num_devices):
    """Seven calls of one update, or calls of 3, 1 and 3: a signal may come between any two."""
    configs = grid(dataclasses.replace(BASE, num_steps=7), {"seed": (0, 1, 2)})
    run, _ = make_sweep(configs, data, LOG_CONFIG, make_mesh(num_devices))
    found = []
    for counts in ((1,) * 7, (3, 1, 3)):
        state, done, losses = run.init(), 0, []
        for count in counts:
            state, metrics = run.updates(state, done, count)
            losses.append(np.asarray(metrics.metrics.loss)[:, :count])
            done += count
        found.append(jax.device_get((state, np.concatenate(losses, axis=1))))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(one, other)
    losses = found[0][1]
    assert losses.shape == (3, 7)
    assert len(np.unique(losses)) == losses.size  # no update was made twice, or left out


@pytest.mark.slow
def test_a_call_makes_the_updates_up_to_the_next_event_and_no_more(data, tmp_path):
    configs = grid(dataclasses.replace(BASE, num_steps=9), {"seed": (0, 1)})
    run, _ = make_sweep(configs, data, LOG_CONFIG, make_mesh(1))
    calls = []

    def updates(state, start, count):
        calls.append((start, count))
        return run.updates(state, start, count)

    told = LogConfig(log_every=3, save_every=4, evaluate_every=100)
    train(run._replace(updates=updates), tmp_path, config={}, log_config=told)
    assert sum(count for _, count in calls) == 9
    for start, count in calls:
        events = (every * (start // every + 1) for every in (3, 4, 9))
        assert start + count <= min(events)
    assert len(calls) < 9
    assert {row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")} >= {3, 6, 9}


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("seed=0:3", ("seed", (0, 1, 2))),
        ("optimizer.learning_rate=1e-3,0.01", ("optimizer.learning_rate", (1e-3, 1e-2))),
        ("windows=stream,documents", ("windows", ("stream", "documents"))),
        ("model.width=64", ("model.width", (64,))),
    ],
)
def test_axes_are_read(text, axis):
    assert load_axis(text) == axis


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", r"`grid` must be FIELD=VALUE,VALUE or FIELD=FROM:TO; got grid = 'seed'\."),
        ("seed=", r"`grid` must be FIELD=VALUE,VALUE"),
        ("seed=1,1", r"`grid` must give `seed` values that differ; got grid = '1,1'\."),
        ("seed=3:3", r"`grid` must give `seed` values that differ; got grid = '3:3'\."),
        ("held_out=0.1,1e-1", r"`grid` must give `held_out` values that differ"),
        ("model={},{}", r"`grid` must give numbers or words to `model`; got"),
        ("seed=0:2000000000000", r"`grid` must give `seed` at most 100,000 values; got"),
    ],
)
def test_axes_that_are_none_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        load_axis(text)


@pytest.mark.parametrize(
    ("axes", "changes", "message"),
    [
        (["seed=0:2", "seed=3,4"], [], "`grid` .* seed does not give already; got grid = 'seed'"),
        (["seed=0:2"], ["seed=3"], "`set` must name a field that seed does not give already"),
        (
            ["model.width=8,16"],
            ["model={}"],
            "`set` .* model.width does not give already; got set = 'model'",
        ),
    ],
)
def test_a_field_is_given_once(axes, changes, message):
    """The last would be taken, and the others not."""
    with pytest.raises(ValueError, match=message):
        load_axes(axes, changes)
    assert load_axes(["seed=0:2", "num_steps=3"], ["num_positions=8"]).keys() == {
        "seed",
        "num_steps",
    }
    with pytest.raises(ValueError, match=r"`set` .* seed does not give already; got set = .seed."):
        load_config("tiny", ["seed=1", "seed=2"])


def test_runs_that_are_one_are_no_grid():
    with pytest.raises(
        ValueError, match=r"`axes` must give runs that differ; got numbers .* = \(2, 1\)"
    ):
        grid(BASE, {"optimizer.weight_decay": (0, 0.0)})
    with pytest.raises(ValueError, match=r"the number of runs of `axes`.* \[1, 100000\]"):
        grid(BASE, {"seed": range(400), "num_steps": range(1, 400)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed=4294967301", r"`seed` must be an integer in \[0, 4294967295\]"),  # 5, for a key
        ("seed=-1", "`seed` must be an integer"),
        ("num_steps=3000000000", r"`num_steps` must lie in \[1, 2147483647\]"),
        ("batch_size=3000000000", r"`batch_size` must lie in"),
        ("optimizer.warmup_steps=3000000000", r"`warmup_steps` must lie in \[0, 2147483647\]"),
    ],
)
def test_what_a_key_or_a_counter_cannot_hold_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        load_config("tiny", [change])
    name, _, value = change.partition("=")
    with pytest.raises(ValueError, match=message):
        grid(BASE, {name: (5, int(value))})


def test_a_field_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"`grid` must name a field .* Did you mean 'seed'\?"):
        grid(BASE, {"sed": (0, 1)})


# ── runs ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    random = np.random.default_rng(0)
    for number in range(20):
        words = random.choice(["in", "the", "beginning", "was", "light"], random.integers(4, 20))
        (folder / f"{number:02d}.txt").write_text(" ".join(words), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(texts):
    return load_member_data(texts, BASE, None)


@pytest.fixture(scope="module")
def swept(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    outcome = train_sweep(grid(BASE, AXES), data, folder, make_mesh(3), log_config=LOG_CONFIG)
    return outcome, folder


def digests(folder: Path) -> dict:
    record = json.loads((folder / str(STEPS) / "checkpoint.json").read_text())
    return {name: leaf["sha256"] for name, leaf in record["leaves"].items()}


@pytest.mark.slow
def test_a_sweep_is_its_runs_one_by_one(data, swept, tmp_path):
    """8 runs on 3 devices, two lengths, dropout: parameters, validation and steps of each."""
    outcome, folder = swept
    assert (outcome.step, outcome.finished) == (STEPS, True)
    rows = json.loads((folder / "sweep.json").read_text())
    configs = grid(BASE, AXES)
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for number, config in enumerate(configs):
        run = make_run(config, data, dataclasses.replace(LOG_CONFIG, evaluation_windows=10**6))
        alone = train(run, tmp_path / str(number), config={"run": number}, log_config=LOG_CONFIG)
        row = rows[number]
        assert row["config"] == to_json(config)
        assert (row["step"], row["finished"]) == (config.num_steps, True)
        assert row["validation"] == pytest.approx(alone.metrics["validation"], rel=1e-5)
        last = [line for line in logged if f"loss/{number}" in line][-1]
        assert last["step"] == config.num_steps if config.num_steps % 2 == 0 else 2
        if last["step"] == config.num_steps:
            assert last[f"loss/{number}"] == pytest.approx(alone.metrics["loss"], rel=1e-5)
    assert len({round(row["validation"], 6) for row in rows}) == len(rows)


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on_to_the_same_bits(data, swept, tmp_path):
    class StopAfter(StopRequest):
        def __init__(self, steps):
            self.left = steps

        @property
        def signal(self):
            self.left -= 1
            return 15 if self.left < 0 else None

    def go_on(stop=None):
        configs, mesh = grid(BASE, AXES), make_mesh(3)
        return train_sweep(configs, data, tmp_path, mesh, log_config=LOG_CONFIG, stop=stop)

    assert not go_on(StopAfter(2)).finished
    assert not (tmp_path / "sweep.json").exists()
    assert go_on().finished
    assert digests(tmp_path) == digests(swept[1])
    again = go_on()
    assert (again.began_at, again.step) == (STEPS, STEPS)
    assert checkpoint_steps(tmp_path)[-1] == STEPS


@pytest.mark.slow
def test_a_run_that_breaks_stops_alone_and_is_named(data, tmp_path):
    """The other is what it is beside one that does not break."""
    rows = {}
    for rate in (1e38, 1e-2):
        configs = grid(BASE, {"optimizer.learning_rate": (1e-3, rate)})
        folder = tmp_path / str(rate)
        assert train_sweep(configs, data, folder, make_mesh(1), log_config=LOG_CONFIG).finished
        rows[rate] = json.loads((folder / "sweep.json").read_text())
    good, bad = rows[1e38]
    assert (good["step"], good["finished"]) == (STEPS, True)
    assert bad["step"] < STEPS
    assert not bad["finished"]
    assert good["validation"] == pytest.approx(rows[1e-2][0]["validation"], rel=1e-6)


@pytest.mark.slow
def test_where_every_run_breaks_at_once_the_sweep_says_so(data, tmp_path):
    configs = grid(BASE, {"optimizer.learning_rate": (1e38, 3e38)})
    assert train_sweep(configs, data, tmp_path, make_mesh(1), log_config=LOG_CONFIG).finished
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert [(row["step"], row["finished"]) for row in rows] == [(0, False)] * 2


@pytest.mark.slow
def test_a_validation_that_is_not_finite_is_none_and_stops_no_other(data, tmp_path):
    """The parameters are finite and huge: what they say of documents is not finite."""
    configs = grid(BASE, {"optimizer.learning_rate": (1e-3, 1e16)})
    assert train_sweep(configs, data, tmp_path, make_mesh(1), log_config=LOG_CONFIG).finished
    good, bad = json.loads((tmp_path / "sweep.json").read_text())
    assert good["finished"]
    assert np.isfinite(good["validation"])
    assert (bad["finished"], bad["validation"]) == (False, None)
    assert 0 < bad["step"] < STEPS


@pytest.mark.slow
def test_another_grid_in_the_same_folder_is_refused(data, swept):
    with pytest.raises(CheckpointError, match="config"):
        train_sweep(grid(BASE, AXES)[:4], data, swept[1], make_mesh(3), log_config=LOG_CONFIG)


def test_runs_of_two_shapes_are_refused(data):
    configs = grid(BASE, {"model.width": (8, 16)})
    with pytest.raises(ValueError, match="All of `configs` must have the shape"):
        make_sweep(configs, data, LOG_CONFIG, make_mesh(1))


def test_data_on_the_disk_are_refused(data):
    with pytest.raises(ValueError, match="`data` must be in memory if it is of a sweep"):
        make_sweep([BASE], data._replace(mapped=True), LOG_CONFIG, make_mesh(1))


@pytest.mark.slow
def test_the_command(texts, tmp_path, capsys):
    small = ("task=own_networks:plain", "num_steps=3", "num_positions=16")
    args = ["sweep", "--config", "tiny", "--data", str(texts), "--run", str(tmp_path)]
    args += ["--set", *small, "--devices", "2"]
    args += ["--grid", "seed=0:2", "model.width=8,16"]
    assert cli.main([*args, "--group", "1"]) == 0
    assert not (tmp_path / "group_000").exists()
    assert cli.main(args) == 0
    said = capsys.readouterr().out
    assert said.count("2 runs, one program") == 3
    widths = [json.loads((tmp_path / f"group_00{g}/sweep.json").read_text()) for g in (0, 1)]
    assert [row["config"]["model"]["width"] for rows in widths for row in rows] == [8, 8, 16, 16]
    assert cli.main([*args, "--group", "2"]) == 2
    assert "`group` must lie in [0, 1]; got group = 2." in capsys.readouterr().err


# ── who takes a sweep for a run ─────────────────────────────────────────────────────────────────


def test_a_group_of_a_sweep_is_no_member_and_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="Nothing was trained here"):
        read_member(tmp_path)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"Take a config from sweep\.json"):
        read_member(tmp_path)


def test_data_that_are_not_there_are_not_blamed_on_the_expert(tmp_path):
    with pytest.raises(ValueError, match="`data` must be a folder that exists"):
        member_data_path(tmp_path / "nowhere", 0)
    with pytest.raises(ValueError, match="`expert` must have the folder"):
        member_data_path(tmp_path, 0)


# ── how it ends ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("finished", "status"), [((), 3), ((1,), 0)])
def test_a_sweep_without_a_finite_run_is_no_success(
    texts, tmp_path, monkeypatch, capsys, finished, status
):
    """A run that stops alone is told; if all do, the sweep has failed, in whatever group."""

    def swept(configs, data, folder, mesh, **options):
        folder.mkdir(parents=True, exist_ok=True)
        number = int(folder.name[-3:])
        row = {"step": 1, "finished": number in finished, "validation": None}
        row |= {"measure": "exact", "standard_error": None}
        rows = [row | {"config": to_json(config)} for config in configs]
        (folder / "sweep.json").write_text(json.dumps(rows))
        return Outcome(5, 0, True, {})

    monkeypatch.setattr("dfm_jax.training.sweep.train_sweep", swept)
    command = ["sweep", "--config", "tiny", "--data", str(texts), "--run", str(tmp_path)]
    command += ["--grid", "seed=0,1", "model.num_layers=1,2"]
    assert cli.main(command) == status
    captured = capsys.readouterr()
    assert captured.out.count("the next update was not finite") == 4 - 2 * len(finished)
    assert ("every run has met a number that is not finite" in captured.err) == (status == 3)


def test_results_go_when_a_sweep_begins_anew(data, tmp_path, monkeypatch):
    """Those of checkpoints that were taken away are of no run that is here."""

    def begun(run, folder, *, before_first, **options):
        before_first()
        return Outcome(2, 0, False, {})

    monkeypatch.setattr("dfm_jax.training.sweep.train", begun)
    (tmp_path / "sweep.json").write_text("[]")
    train_sweep([BASE], data, tmp_path, make_mesh(1), log_config=LOG_CONFIG)
    assert not (tmp_path / "sweep.json").exists()


# ── longer ──────────────────────────────────────────────────────────────────────────────────────


PLAIN = dataclasses.replace(BASE, task="own_networks:plain")  # quick to compile


def longer(config: TrainConfig, steps: int, **optimizer) -> TrainConfig:
    optimizer = dataclasses.replace(config.optimizer, **optimizer)
    return dataclasses.replace(config, num_steps=steps, optimizer=optimizer)


@pytest.mark.slow
def test_a_run_that_is_lengthened_is_the_longer_one(texts, tmp_path):
    """A cosine that has ended, at its last rate, to the bit; its config.json says so."""
    short, long = longer(PLAIN, 3), longer(PLAIN, STEPS, decay_steps=3)
    found = {}
    for run, configs in {"whole": [long], "twice": [short, long, long]}.items():
        folder = tmp_path / run
        ends = [train_member(config, texts, folder, log_config=LOG_CONFIG) for config in configs]
        found[run] = digests(folder / "dense")
    assert [(end.began_at, end.step) for end in ends] == [(0, 3), (3, STEPS), (STEPS, STEPS)]
    assert found["twice"] == found["whole"]
    member = folder / "dense"
    assert read_member(member)["config"] == to_json(long)
    assert load_member(member, best=True).config == long  # perhaps a checkpoint of the shorter one
    lines = [row["step"] for row in read_metrics(member / "metrics.jsonl") if "loss" in row]
    assert lines == [2, 3, 4, 6]
    with pytest.raises(CheckpointError, match=r"it has made 6 updates. Take another run folder"):
        train_member(short, texts, folder, log_config=LOG_CONFIG)


@pytest.mark.slow
def test_a_sweep_is_lengthened_where_none_of_its_runs_has_ended_before(data, tmp_path):
    """At a constant rate, to the bit."""

    def swept(name, steps):
        runs = [longer(PLAIN, n, final_fraction=1.0) for n in steps]
        configs = [dataclasses.replace(run, seed=seed) for seed, run in enumerate(runs)]
        return train_sweep(configs, data, tmp_path / name, make_mesh(2), log_config=LOG_CONFIG)

    for steps in ((3, 3), (5, STEPS)):
        swept("twice", steps)
        rows = json.loads((tmp_path / "twice" / "sweep.json").read_text())
        assert [(row["step"], row["finished"]) for row in rows] == [(n, True) for n in steps]
    swept("whole", (5, STEPS))
    assert digests(tmp_path / "twice") == digests(tmp_path / "whole")
    with pytest.raises(
        CheckpointError, match=r"`configs.0.num_steps`.* has ended, and other runs went"
    ):
        swept("twice", (STEPS, STEPS))


@pytest.mark.slow
def test_only_what_the_updates_made_depend_on_is_compared():
    """A cosine that ends elsewhere is another run from the first update whose rate it changes."""
    every = jax.jit(jax.vmap(lambda s, w, n: learning_rate_shape(s, w, n, 0.1), (0, None, None)))

    def rates_of(steps, warmup, end):
        return np.asarray(every(np.arange(9), warmup, end))[: len(steps)]

    for made, end, warmup in itertools.product((1, 4, 5, 6, 9), (9, 12, 20), (0, 3, 4)):
        long = longer(BASE, 30, warmup_steps=warmup, decay_steps=end)
        short = longer(BASE, 9, warmup_steps=warmup)
        rates = [rates_of(np.arange(made), warmup, n) for n in (9, end)]
        records = ({"config": to_json(one)} for one in (long, short))
        found = list(differences_until(made, *records))
        assert bool(found) == (not np.array_equal(*rates))
        expected = [("config.optimizer.decay_steps", end, 9)] if found else []
        assert found == expected
    six, five = to_json(BASE), to_json(longer(BASE, 5, decay_steps=STEPS))
    assert list(differences_until(STEPS, five, six)) == [("num_steps", 5, STEPS)]
    assert not list(differences_until(5, five, six))  # stopped there
    twelve = to_json(longer(BASE, 12))
    ((field, *values),) = differences_until(STEPS, {"config": twelve}, {"config": six})
    assert f"set `optimizer.decay_steps` to {STEPS}" in lengthening_hint(field, *values)
    assert lengthening_hint("config.seed", 0, 1) == ""
