"""Trackers: told each line of the log in order, and unable to end a run."""

import struct
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest

from dfm_jax import cli
from dfm_jax.cli.launch import Members
from dfm_jax.parallel import make_mesh
from dfm_jax.training.config import LogConfig, OptimizerConfig
from dfm_jax.training.loop import Outcome, Run, train
from dfm_jax.training.metrics import MetricsLog, read_metrics
from dfm_jax.training.state import init_state, make_optimizer
from dfm_jax.training.step import StepMetrics
from dfm_jax.training.stopping import NonFiniteError, Stopped
from dfm_jax.training.trackers import open_tracker, tracker_name

STEPS = 12
LOG_CONFIG = LogConfig(log_every=2, save_every=4, evaluate_every=4)


def make_run(*, bad_at: int = -1) -> Run:
    """A run of one number, whose loss in update `bad_at` is not finite."""
    network = SimpleNamespace(init=lambda key: {"w": jnp.zeros(2)})
    state = init_state(jnp.array(0), network, make_optimizer(OptimizerConfig(), STEPS))

    def update(state, index):
        loss = jnp.nan if index == bad_at else jnp.array(1.0 / (1 + index))
        metrics = dict.fromkeys(StepMetrics._fields, jnp.array(1.0)) | {"loss": loss}
        return state._replace(step=state.step + 1), StepMetrics(**metrics)

    def scalars(metrics):
        return {"loss": float(metrics.loss), "num_tokens": 8}

    return Run(lambda: state, update, lambda state: {"validation": 2.0}, STEPS, scalars)


def fit(folder: Path, *, bad_at: int = -1, **more) -> list[str]:
    """Train to the end, or to the update that is bad; return what was said."""
    said: list[str] = []
    options = {"config": {}, "log_config": LOG_CONFIG, "say": said.append} | more
    if bad_at < 0:
        train(make_run(), folder, **options)
    else:
        with pytest.raises(NonFiniteError):
            train(make_run(bad_at=bad_at), folder, **options)
    return said


def rows(told: list) -> list[dict]:
    return [{"step": step, **values} for step, values in told]


# ── the hook ────────────────────────────────────────────────────────────────────────────────────


def test_a_tracker_is_told_the_lines_of_the_log_in_order(tmp_path):
    told = []
    fit(tmp_path, tracker=lambda step, scalars: told.append((step, scalars)))
    assert rows(told) == read_metrics(tmp_path / "metrics.jsonl")
    assert [step for step, _ in told] == [2, 4, 4, 6, 8, 8, 10, 12, 12]


def test_after_an_interruption_it_is_told_the_steps_from_the_checkpoint_on(tmp_path):
    before, after = [], []
    fit(tmp_path, bad_at=10, tracker=lambda *line: before.append(line))
    fit(tmp_path, tracker=lambda *line: after.append(line))
    assert [step for step, _ in before] == [2, 4, 4, 6, 8, 8, 10]
    assert [step for step, _ in after] == [10, 12, 12]
    assert rows(before[:6]) + rows(after) == read_metrics(tmp_path / "metrics.jsonl")


def test_a_tracker_that_changes_its_numbers_changes_no_others(tmp_path):
    fit(tmp_path, tracker=lambda step, scalars: scalars.clear())
    assert read_metrics(tmp_path / "metrics.jsonl")[-1] == {"step": STEPS, "validation": 2.0}


def test_a_tracker_that_raises_is_told_once_and_the_run_goes_on(tmp_path):
    def broken(step, scalars):
        if step >= 8:
            raise ConnectionError("the network\nis away")

    said = fit(tmp_path / "dense", tracker=broken)
    folder = tmp_path / "dense"
    first, last = said
    assert first.startswith(f"{folder}: the tracker failed at step 8, and the run goes on: ")
    assert first.endswith(": ConnectionError: the network is away")
    assert last == f"{folder}: the tracker missed 5 of 9 lines; metrics.jsonl has them all."
    assert len(read_metrics(folder / "metrics.jsonl")) == 9
    assert (folder / str(STEPS)).is_dir()


def test_a_signal_inside_a_tracker_still_ends_the_run(tmp_path):
    def stopped(step, scalars):
        raise Stopped(15)

    with pytest.raises(Stopped):
        fit(tmp_path, tracker=stopped)


def test_a_line_is_in_the_file_before_the_log_is_flushed(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.begin(0)
    log.write(1, loss=2.0)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
    log.close()


@pytest.mark.slow
def test_a_sweep_tells_its_tracker_the_loss_of_each_run(tmp_path):
    from dfm_jax.training.members import load_member_data
    from dfm_jax.training.presets import load_config
    from dfm_jax.training.sweep import grid, train_sweep

    (tmp_path / "texts").mkdir()
    for number in range(4):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number} is a number. " * 40)
    config = load_config("tiny", ["num_steps=2", "model.num_layers=1", "held_out=0"])
    told, configs = [], grid(config, {"seed": (0, 1)})
    train_sweep(
        configs,
        load_member_data(tmp_path / "texts", config, None),
        tmp_path / "group_000",
        make_mesh(1),
        log_config=LogConfig(log_every=1),
        tracker=lambda *line: told.append(line),
    )
    assert [step for step, _ in told] == [1, 2]
    assert {"loss/0", "loss/1"} <= set(told[0][1])


# ── tensorboard, itself ─────────────────────────────────────────────────────────────────────────


def events(folder: Path) -> list:
    """The events in the files of a folder, in the order of their names, as tensorboard reads."""
    event_pb2: Any = import_module("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def shown(folder: Path) -> list[tuple[int, str, float]]:
    """What tensorboard shows: a session that begins at a step hides the events from there on."""
    points: list[tuple[int, str, float]] = []
    for event in events(folder):
        if event.session_log.status == event.session_log.START:
            points = [point for point in points if point[0] < event.step]
        points += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return points


def test_tensorboard_shows_the_log_of_a_run_that_was_interrupted(tmp_path):
    pytest.importorskip("tensorboardX")
    for bad_at in (10, -1):
        with open_tracker("tensorboard", tmp_path) as tracker:
            fit(tmp_path, bad_at=bad_at, tracker=tracker)
    wanted = [
        (row["step"], name, pytest.approx(value))
        for row in read_metrics(tmp_path / "metrics.jsonl")
        for name, value in row.items()
        if name != "step"
    ]
    assert shown(tmp_path / "tensorboard") == wanted
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


@pytest.mark.slow
def test_a_line_is_soon_in_the_event_file(tmp_path):
    """A process that is killed closes nothing."""
    pytest.importorskip("tensorboardX")
    with open_tracker("tensorboard", tmp_path) as tracker:
        for step in (3, 4):
            tracker(step, {"loss": 0.5})
        deadline = time.monotonic() + 20
        while len(shown(tmp_path / "tensorboard")) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert shown(tmp_path / "tensorboard") == [(3, "loss", 0.5), (4, "loss", 0.5)]


def test_a_finished_run_opens_no_tracker(tmp_path):
    pytest.importorskip("tensorboardX")
    fit(tmp_path)
    with open_tracker("tensorboard", tmp_path) as tracker:
        fit(tmp_path, tracker=tracker)
    assert not (tmp_path / "tensorboard").exists()


def test_the_old_argument_is_the_tracker_tensorboard_and_warns(tmp_path):
    pytest.importorskip("tensorboardX")
    with pytest.warns(DeprecationWarning, match=r"`tensorboard=True` is `tracker=` since version"):
        fit(tmp_path, tensorboard=True)
    assert shown(tmp_path / "tensorboard")[0][:2] == (2, "loss")


def test_the_old_option_is_the_new_one_and_warns():
    with pytest.warns(DeprecationWarning, match=r"`--tensorboard` is `--tracker tensorboard`"):
        assert tracker_name(None, True) == "tensorboard"
    assert tracker_name("wandb", False) == "wandb"
    with pytest.raises(ValueError, match=r"At most one of `tracker` and `tensorboard` must be"):
        tracker_name("wandb", True)


# ── trackio and wandb, up to the calls that are made ────────────────────────────────────────────


class FakeTracker:
    """The part of `trackio` and `wandb` that is used; it keeps the calls."""

    def __init__(self, step: int = 0, fault: Exception | None = None) -> None:
        self.calls: list[tuple] = []
        self.step, self.fault = step, fault

    def init(self, **words):
        self.calls.append(("init", words))
        if self.fault is not None:
            raise self.fault
        return self

    def log(self, scalars, step):
        self.calls.append(("log", step, scalars))

    def finish(self, **words):
        self.calls.append(("finish", words))


def install(monkeypatch, name: str, fake: FakeTracker) -> FakeTracker:
    module: Any = ModuleType(name)
    module.__spec__ = SimpleNamespace(name=name)
    module.init = fake.init
    monkeypatch.setitem(sys.modules, name, module)
    for variable in ("TRACKIO_PROJECT", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    return fake


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_run_is_begun_told_and_ended(name, tmp_path, monkeypatch):
    fake = install(monkeypatch, name, FakeTracker())
    folder = tmp_path / "run" / "expert_003"
    with open_tracker(name, folder, config={"seed": 1}) as tracker:
        fit(folder, tracker=tracker)
    (_, words), *told, (last, how) = fake.calls
    assert words["project"] == "run"
    assert words["name"].startswith("expert_003")
    assert words["resume"] == "allow"
    assert words["config"] == {"seed": 1}
    assert rows([line[1:] for line in told]) == read_metrics(folder / "metrics.jsonl")
    assert last == "finish"
    assert how == ({"exit_code": 0} if name == "wandb" else {})


@pytest.mark.parametrize(("name", "key"), [("trackio", "name"), ("wandb", "id")])
def test_a_run_that_goes_on_is_the_same_one_and_another_run_is_not(
    name, key, tmp_path, monkeypatch
):
    fake = install(monkeypatch, name, FakeTracker())
    for run in ("a", "a", "b"):
        with open_tracker(name, tmp_path / run / "dense") as tracker:
            (tmp_path / run / "dense").mkdir(parents=True, exist_ok=True)
            tracker(1, {"loss": 1.0})
    first, again, other = (call[1][key] for call in fake.calls if call[0] == "init")
    assert first == again != other


def test_wandb_is_not_told_again_what_it_has(tmp_path, monkeypatch):
    fake = install(monkeypatch, "wandb", FakeTracker(step=8))
    with open_tracker("wandb", tmp_path) as tracker:
        fit(tmp_path, tracker=tracker)
    assert [call[1] for call in fake.calls if call[0] == "log"] == [8, 8, 10, 12, 12]


def test_wandb_hears_that_a_run_failed(tmp_path, monkeypatch):
    fake = install(monkeypatch, "wandb", FakeTracker())
    with pytest.raises(NonFiniteError), open_tracker("wandb", tmp_path) as tracker:
        train(make_run(bad_at=5), tmp_path, config={}, log_config=LOG_CONFIG, tracker=tracker)
    assert fake.calls[-1] == ("finish", {"exit_code": 1})


def test_a_tracker_that_cannot_begin_is_tried_once(tmp_path, monkeypatch):
    fake = install(monkeypatch, "wandb", FakeTracker(fault=TimeoutError("no server")))
    with open_tracker("wandb", tmp_path) as tracker:
        said = fit(tmp_path, tracker=tracker)
    assert [call[0] for call in fake.calls] == ["init"]
    assert said == [
        f"{tmp_path}: the tracker failed at step 2, and the run goes on: TimeoutError: no server",
        f"{tmp_path}: the tracker missed 9 of 9 lines; metrics.jsonl has them all.",
    ]


def test_a_tracker_that_does_not_end_well_ends_no_run(tmp_path, monkeypatch):
    fake = install(monkeypatch, "trackio", FakeTracker())
    said = []
    with open_tracker("trackio", tmp_path, say=said.append) as tracker:
        monkeypatch.setattr(fake, "finish", lambda: 1 / 0)
        fit(tmp_path, tracker=tracker)
    assert said == [
        f"{tmp_path}: the tracker trackio did not end well: ZeroDivisionError: division by zero"
    ]


def test_the_project_may_be_named(tmp_path, monkeypatch):
    fake = install(monkeypatch, "wandb", FakeTracker())
    monkeypatch.setenv("WANDB_PROJECT", "tides")
    with open_tracker("wandb", tmp_path) as tracker:
        tracker(1, {})
    assert fake.calls[0][1]["project"] == "tides"


# ── what is refused, and the command line ───────────────────────────────────────────────────────


def test_a_package_that_is_not_installed_is_refused_before_anything_begins(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("dfm_jax.training.trackers.find_spec", lambda name: None)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a word " * 50)
    words = ["train", "--config", "tiny", "--data", tmp_path / "texts", "--run", tmp_path / "run"]
    assert cli.main([*map(str, words), "--tracker", "wandb"]) == 2
    assert capsys.readouterr().err == (
        "python -m dfm_jax train: The tracker wandb needs the package `wandb`, which is not "
        "installed: `pip install 'dfm_jax[wandb]'`.\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_known_is_refused(tmp_path):
    message = r"`tracker` must be one of tensorboard, trackio, wandb; got tracker = 'aim'"
    with pytest.raises(ValueError, match=message), open_tracker("aim", tmp_path):
        pass


def test_without_a_name_there_is_no_tracker(tmp_path):
    with open_tracker(None, tmp_path) as tracker:
        assert tracker is None


def told_once(*_, tracker, **__) -> Outcome:
    """In the place of a training: it tells one line."""
    tracker(1, {"loss": 1.0})
    return Outcome(1, 0, False, {"loss": 1.0})


def make_texts(folder: Path) -> list[str]:
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"{number} is a number. " * 40)
    return ["--config", "tiny", "--set", "held_out=0", "--data", str(folder)]


def test_train_opens_the_tracker_of_its_member(tmp_path, monkeypatch):
    fake = install(monkeypatch, "wandb", FakeTracker())
    monkeypatch.setattr("dfm_jax.training.fit.train_member", told_once)
    words = ["train", *make_texts(tmp_path / "texts"), "--run", str(tmp_path / "run")]
    assert cli.main([*words, "--expert", "3", "--tracker", "wandb"]) == 0
    (_, begun), told, _ = fake.calls
    assert (begun["project"], begun["name"]) == ("run", "expert_003")
    assert begun["config"]["num_steps"] == 100
    assert told == ("log", 1, {"loss": 1.0})


def test_the_old_option_of_train_opens_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.setattr("dfm_jax.training.fit.train_member", told_once)
    words = ["train", *make_texts(tmp_path / "texts"), "--run", str(tmp_path / "run")]
    with pytest.warns(DeprecationWarning, match="--tracker tensorboard"):
        assert cli.main([*words, "--tensorboard"]) == 0
    assert shown(tmp_path / "run" / "dense" / "tensorboard") == [(1, "loss", 1.0)]


def test_a_sweep_opens_one_for_each_group_and_makes_the_folders_of_all(tmp_path, monkeypatch):
    fake = install(monkeypatch, "trackio", FakeTracker())
    monkeypatch.setattr("dfm_jax.training.sweep.train_sweep", told_once)
    words = ["sweep", *make_texts(tmp_path / "texts"), "--run", str(tmp_path / "sweep")]
    words += ["--tracker", "trackio", "--grid", "seed=0:2", "model.width=16,32"]
    assert cli.main(words) == 0  # stopped in the first group
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == [
        "group_000",
        "group_001",
    ]
    (_, begun), *_ = fake.calls
    assert begun["name"].startswith("group_000-")
    assert [one["seed"] for one in begun["config"]["runs"]] == [0, 1]


@pytest.mark.parametrize("grid", [(), ("seed=0:2",)])
def test_launch_hands_the_tracker_on(grid):
    members = Members(
        config="tiny",
        data=Path("d"),
        folder=Path("r"),
        grid=grid,
        experts=() if grid else (0,),
        tracker="trackio",
    )
    (job,) = members.jobs()
    assert job.arguments[job.arguments.index("--tracker") + 1] == "trackio"
