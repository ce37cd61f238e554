"""A fit: the same bits after any interruption, metrics without a gap, one way to fail."""

import errno
import io
import json
import os
import re
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import tqdm

from dfm_jax.models import Network
from dfm_jax.training.batches import document_windows
from dfm_jax.training.checkpoint import best_step, checkpoint_steps
from dfm_jax.training.config import LogConfig, OptimizerConfig
from dfm_jax.training.digests import CheckpointError
from dfm_jax.training.loop import Run, keyed_run, train
from dfm_jax.training.losses import next_token_losses
from dfm_jax.training.metrics import MetricsLog, read_metrics
from dfm_jax.training.state import init_state, make_optimizer
from dfm_jax.training.step import make_train_step
from dfm_jax.training.stopping import ExitStatus, NonFiniteError, StopRequest, stop_on_signals
from dfm_jax.training.trouble import ended

V, STEPS = 5, 24
LOG_CONFIG = LogConfig(log_every=3, save_every=4, evaluate_every=8, keep_last=2)
QUIET = {"log_config": LOG_CONFIG, "say": lambda text: None}


def network() -> Network:
    def init(key):
        return {"table": jax.random.normal(key, (V + 1, V))}

    return Network(init, lambda params, x_t, t=None, *, key=None: params["table"][x_t])


def make_run() -> Run:
    """A run over 40 tokens in two documents."""
    net, optimizer = network(), make_optimizer(OptimizerConfig(warmup_steps=2), STEPS)
    step = make_train_step(next_token_losses(net, start=V), optimizer)
    tokens = np.random.default_rng(0).integers(0, V, 40).astype(np.uint8)
    return keyed_run(
        lambda: init_state(jax.random.key(0), net, optimizer),
        jax.jit(step, donate_argnums=0),
        document_windows(tokens, np.array([0, 13, 40]), 6, 4),
        jax.random.key(1),
        jax.random.key(2),
        num_steps=STEPS,
        evaluate=lambda state: {"validation": float(jnp.sum(state.params["table"] ** 2))},
    )


RUN = make_run()  # compiled once for all tests


def poisoned(at: int) -> Run:
    """The same run, with a loss that is no number in one step."""

    def update(state, index):
        state, metrics = RUN.update(state, index)
        return state, metrics._replace(loss=jnp.nan) if int(state.step) == at else metrics

    return RUN._replace(update=update)


def digests(folder: Path, step: int = STEPS) -> dict:
    leaves = json.loads((folder / str(step) / "checkpoint.json").read_text())["leaves"]
    return {name: leaf["sha256"] for name, leaf in leaves.items()}


def lines(folder: Path) -> list[dict]:
    """The log without what a clock measured."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "dense"
    outcome = train(RUN, folder, config={"a": 1}, **QUIET)
    assert (outcome.step, outcome.began_at, outcome.finished) == (STEPS, 0, True)
    return folder


class StopAt(StopRequest):
    """A signal that comes in that step of the process."""

    def __init__(self, step):
        self.left = step

    @property
    def signal(self):
        self.left -= 1
        return signal.SIGTERM if self.left <= 0 else None


@pytest.mark.slow
def test_a_finished_run_is_left_alone(whole):
    files = [path for path in whole.rglob("*") if path.is_file() and path.name != ".lock"]
    before = {path: path.stat().st_mtime_ns for path in files}
    outcome = train(RUN, whole, config={"a": 1}, **QUIET)
    assert (outcome.step, outcome.began_at, outcome.finished) == (STEPS, STEPS, True)
    assert before == {path: path.stat().st_mtime_ns for path in files}
    assert {*files, whole / ".lock"} == {path for path in whole.rglob("*") if path.is_file()}


def test_the_log_has_each_line_once_in_order(whole):
    steps = [(row["step"], "validation" in row) for row in lines(whole)]
    logged = [(step, False) for step in range(3, STEPS + 1, 3)]
    assert steps == sorted(logged + [(step, True) for step in (8, 16, 24)])
    assert checkpoint_steps(whole) == sorted({best_step(whole), 20, 24})


def test_the_bar_tells_loss_speed_and_time_left(tmp_path, monkeypatch):
    shown = io.StringIO()

    def bar(**options):
        return tqdm(**(options | {"disable": False, "file": shown, "mininterval": 0}))

    monkeypatch.setattr("dfm_jax.training.loop.tqdm", bar)
    train(RUN, tmp_path / "dense", config={}, **QUIET)
    last = lines(tmp_path / "dense")
    loss = [row["loss"] for row in last if "loss" in row][-1]
    assert re.search(
        rf"24/24 \[\d\d:\d\d<00:00.*, {loss:.4f} nats, [\d,]+ tokens/s", shown.getvalue()
    )
    assert re.search(r"12/24 \[\d\d:\d\d<\d\d:\d\d", shown.getvalue())


def test_stopped_twice_and_resumed_is_the_same_run(whole, tmp_path):
    folder = tmp_path / "dense"
    stops = [train(RUN, folder, config={"a": 1}, stop=StopAt(s), **QUIET) for s in (5, 6)]
    assert [(stop.step, stop.finished) for stop in stops] == [(5, False), (11, False)]
    end = train(RUN, folder, config={"a": 1}, **QUIET)
    assert (end.began_at, end.finished) == (11, True)
    assert digests(folder) == digests(whole)
    assert lines(folder) == lines(whole)


def test_what_was_logged_after_the_last_checkpoint_is_written_once(whole, tmp_path):
    """As a kill leaves it: lines beyond the checkpoint, the last cut in the middle."""
    folder = tmp_path / "dense"
    train(RUN, folder, config={"a": 1}, stop=StopAt(8), **QUIET)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 0.0}\n{"step": 12, "lo')
    train(RUN, folder, config={"a": 1}, **QUIET)
    assert lines(folder) == lines(whole)


def test_a_damaged_last_checkpoint_costs_time_and_no_bit(whole, tmp_path):
    folder, said = tmp_path / "dense", []
    train(RUN, folder, config={"a": 1}, stop=StopAt(10), **QUIET)
    path = folder / "10" / "SHA256SUMS"
    path.write_bytes(path.read_bytes()[1:])
    train(RUN, folder, config={"a": 1}, log_config=LOG_CONFIG, say=said.append)
    assert said[0].startswith("DAMAGED: ")
    assert "/10: each line of SHA256SUMS must be a SHA-256" in said[0]
    assert "going on from step 8 of 24" in said[1]
    assert digests(folder) == digests(whole)
    assert lines(folder) == lines(whole)
    assert (folder / "10.damaged").is_dir()


def test_too_many_open_files_cost_a_start_and_no_bit(whole, tmp_path, monkeypatch, capsys):
    """75, the checkpoint untouched; the second start goes on at its step, to the same end."""
    folder, opened = tmp_path / "dense", Path.open
    train(RUN, folder, config={"a": 1}, stop=StopAt(10), **QUIET)
    before = digests(folder, 10)

    def failing(path, *args, **options):
        if path.name == "_METADATA":
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return opened(path, *args, **options)

    def start() -> int:
        outcome = train(RUN, folder, config={"a": 1}, **QUIET)
        return outcome.began_at

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        assert ended(lambda: "train", start) == ExitStatus.TROUBLE
    assert "Too many open files" in capsys.readouterr().err
    assert (checkpoint_steps(folder)[-1], digests(folder, 10)) == (10, before)
    assert start() == 10
    assert digests(folder) == digests(whole)
    assert lines(folder) == lines(whole)


def test_another_config_is_refused_by_field(whole):
    with pytest.raises(CheckpointError, match=r"`a` of the checkpoint must be 2, .*; got a = 1"):
        train(RUN, whole, config={"a": 2}, **QUIET)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    """It names step, run and last good checkpoint, and nothing after that is saved."""
    folder = tmp_path / "expert_003"
    message = rf"got loss = nan at step 10 of the run {folder}\. The last good .* is {folder}/8\."
    with pytest.raises(NonFiniteError, match=message):
        train(poisoned(10), folder, config={}, **QUIET)
    assert checkpoint_steps(folder)[-1] == 8
    assert lines(folder)[-1]["step"] == 9


def test_before_the_first_checkpoint_it_says_that_there_is_none(tmp_path):
    with pytest.raises(NonFiniteError, match="No checkpoint was saved yet"):
        train(poisoned(2), tmp_path / "dense", config={}, **QUIET)


def test_an_evaluation_that_is_no_number_stops_the_run(tmp_path):
    run = RUN._replace(evaluate=lambda state: {"validation": float("inf")})
    with pytest.raises(NonFiniteError, match="got validation = inf at step 8"):
        train(run, tmp_path / "dense", config={}, **QUIET)


# ── signals ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, ExitStatus.SIGTERM), (signal.SIGINT, ExitStatus.SIGINT)],
)
def test_the_first_signal_is_noted_and_the_second_acts(number, status):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert stop.status == ExitStatus.FINISHED
        os.kill(os.getpid(), number)
        assert stop.status == status == 128 + number
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before


# ── the log ─────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_line_in_the_middle_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnothing\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2: the line must be a JSON object"):
        MetricsLog(path).begin(3)
    assert path.read_text().count("\n") == 3


def test_json_has_no_infinities(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.begin(0)
    with pytest.raises(ValueError, match="`loss` must be finite; got loss = nan at step 2"):
        log.write(2, loss=float("nan"))
    log.close()
