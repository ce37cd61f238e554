"""One member over many devices and over two processes: the numbers of one, and one who writes."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import cli
from dfm_jax.parallel import make_mesh, state_shardings
from dfm_jax.training import distributed
from dfm_jax.training.checkpoint import checkpoint_steps, read_checkpoint, write_checkpoint
from dfm_jax.training.config import LogConfig
from dfm_jax.training.distributed import Layout, over_all_devices, sharded_evaluation
from dfm_jax.training.evaluation import load_member
from dfm_jax.training.fit import make_run, train_member
from dfm_jax.training.metrics import read_metrics
from dfm_jax.training.presets import load_config
from dfm_jax.training.stopping import StopRequest

STEPS = 12
CHANGES = ("batch_size=8", "num_positions=16", "model.dropout=0.1", "ema_decay=0.9")
CHANGES += ("model.width=16", "model.num_layers=1", "model.num_heads=2", "model.ffn_width=32")
LOG_CONFIG = LogConfig(log_every=2, save_every=4, evaluate_every=6)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Sixty documents of the same few words."""
    folder, rng = tmp_path_factory.mktemp("texts"), random.Random(0)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    for number in range(60):
        (folder / f"{number}.txt").write_text(" ".join(rng.choices(words, k=40)))
    return folder


def config(steps: int = STEPS):
    return load_config("tiny", (*CHANGES, f"num_steps={steps}"))


class StopAt(StopRequest):
    """A signal that comes in that call of the process's program, which may make several updates."""

    def __init__(self, call):
        self.left = call

    @property
    def signal(self):
        self.left -= 1
        return signal.SIGTERM if self.left <= 0 else None


def logged(run: Path) -> list[dict]:
    rows = read_metrics(run / "dense" / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


def assert_same_run(found: Path, expected: Path) -> None:
    """To rounding: every line of the log, and every parameter."""
    for here, there in zip(logged(found), logged(expected), strict=True):
        assert here.keys() == there.keys()
        for name, value in here.items():
            assert value == pytest.approx(there[name], rel=1e-5), (name, here["step"])
    states = [load_member(run / "dense").state for run in (found, expected)]
    for here, there in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5)  # sums through Adam


# ── many devices of one process ─────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """The run on one device."""
    run = tmp_path_factory.mktemp("alone")
    assert train_member(config(), data, run, log_config=LOG_CONFIG).finished
    return run


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_a_member_over_eight_devices_is_that_of_one(placement, data, alone, tmp_path):
    outcome = train_member(
        config(), data, tmp_path, log_config=LOG_CONFIG, layout=over_all_devices(placement)
    )
    assert outcome.finished
    assert_same_run(tmp_path, alone)
    records = [json.loads((run / "dense" / "config.json").read_text()) for run in (tmp_path, alone)]
    assert records[0] == records[1]


@pytest.mark.slow
@pytest.mark.parametrize("back", [False, True], ids=["one to eight", "four to one"])
def test_a_run_goes_on_over_any_number_of_devices(back, data, alone, tmp_path):
    fewer = Layout(make_mesh({"data": 4}), "replicated")
    first, then = (fewer, None) if back else (None, over_all_devices("sharded"))
    stopped = train_member(
        config(), data, tmp_path, log_config=LOG_CONFIG, stop=StopAt(5), layout=first
    )
    assert 5 <= stopped.step < STEPS
    assert not stopped.finished
    outcome = train_member(config(), data, tmp_path, log_config=LOG_CONFIG, layout=then)
    assert (outcome.began_at, outcome.finished) == (stopped.step, True)
    assert_same_run(tmp_path, alone)


def test_a_checkpoint_is_read_to_where_its_template_lies(tmp_path):
    state = {"a": jnp.arange(16.0), "b": jnp.arange(3)}
    lies = state_shardings(state, make_mesh({"data": 8}), "sharded")
    write_checkpoint(tmp_path / "1", jax.device_put(state, lies), step=1, config={})
    for where in (lies, None):
        found = read_checkpoint(
            tmp_path / "1", state if where is None else jax.device_put(state, where)
        )
        np.testing.assert_array_equal(found["a"], np.arange(16.0))
        assert len(found["a"].sharding.device_set) == (1 if where is None else 8)


def test_evaluation_over_devices_is_that_of_one():
    def evaluation(params, batch, key):
        noise = jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n)))(jnp.arange(8))
        return batch @ params + noise

    batch, params = np.arange(24.0).reshape(8, 3), jnp.arange(3.0)
    layout = sharded_evaluation(evaluation, make_mesh({"data": 8}))
    expected = evaluation(params, batch, jax.random.key(1))
    np.testing.assert_allclose(layout(params, batch, jax.random.key(1)), expected, rtol=1e-6)


def test_devices_that_do_not_divide_the_batch_are_refused_before_anything_is_made(data, tmp_path):
    uneven = load_config("tiny", ("batch_size=12",))
    with pytest.raises(
        ValueError,
        match=r"must be a multiple of 8, the number of devices; got config.batch_size = 12",
    ):
        train_member(uneven, data, tmp_path, layout=over_all_devices("sharded"))


# ── what processes agree on, with the others' part played here ──────────────────────────────────


def play(monkeypatch, process: int, *answers: list[int]) -> list[int]:
    """Two processes, of which this is one: what is gathered each time; what this one has given."""
    given, rest = [], list(answers)

    def gathered(number):
        given.append(number)
        return np.array(rest.pop(0))

    monkeypatch.setattr(distributed, "gathered", gathered)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    return given


def test_a_signal_to_one_is_a_signal_to_all(monkeypatch):
    stop = StopRequest()
    given = play(monkeypatch, 1, [0, 0], [15, 0])
    assert not distributed.agree_to_stop(stop)
    assert distributed.agree_to_stop(stop)
    assert (stop.status, given) == (143, [0, 0])


def test_a_signal_that_comes_while_they_ask_is_not_lost(monkeypatch):
    stop = StopRequest()

    def gathered(number):
        stop.signal = signal.SIGTERM
        return np.array([number, 0])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "gathered", gathered)
    assert not distributed.agree_to_stop(stop)
    assert distributed.agree_to_stop(stop)


@pytest.mark.parametrize(
    ("code", "kind", "error"), [(2, ValueError, OSError("full")), (1, RuntimeError, KeyError("x"))]
)
def test_what_fails_in_one_fails_in_all(monkeypatch, code, kind, error):
    given = play(monkeypatch, 1, [code, 0], [0, code])
    with pytest.raises(kind, match="Process 0 of 2 cannot go on"), distributed.all_or_none():
        pass
    with pytest.raises(type(error)), distributed.all_or_none():
        raise error
    assert given == [0, code]


@pytest.mark.parametrize("process", [0, 1])
def test_the_first_has_its_turn_before_the_others(monkeypatch, process):
    play(monkeypatch, process, [0, 0], [0, 0])
    assert distributed.in_turn(lambda: "first", lambda: "others") == ("first", "others")[process]


def test_other_data_in_one_process_are_refused(monkeypatch):
    play(monkeypatch, 0, [7, 8])
    with pytest.raises(
        ValueError, match=r"the data must be the same .*; got processes that differ = \[1\]"
    ):
        distributed.check_same("the data", "00000000")


def test_one_process_asks_no_other():
    with distributed.all_or_none():
        assert distributed.is_first()
    assert distributed.gathered(5).tolist() == [5]
    assert distributed.in_turn(lambda: 1, lambda: 2) == 1
    distributed.check_same("the data", "ffffffff")


def test_a_run_of_several_processes_must_lie_somewhere(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="`layout` must be given if several processes"):
        make_run(config(), None, LOG_CONFIG)


# ── the command line ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("args", "environment", "message"),
    [
        (
            [],
            {},
            (
                "`placement` must be replicated or sharded if several processes train one run; "
                "got placement = None."
            ),
        ),
        (["--placement", "sharded"], {}, "`distributed` needs JAX_COORDINATOR_ADDRESS, JAX_NUM_PR"),
        (
            ["--placement", "sharded"],
            {"JAX_PROCESS_ID": "one"},
            "`JAX_PROCESS_ID` must be a number",
        ),
    ],
)
def test_processes_that_cannot_find_each_other(
    args, environment, message, data, tmp_path, monkeypatch, capsys
):
    def initialize(**options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = ["train", "--config", "tiny", "--data", str(data), "--run", str(tmp_path / "run")]
    assert cli.main([*command, "--distributed", *args]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_who_this_process_is_comes_from_the_environment(monkeypatch):
    found = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: found.update(options))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    distributed.join_processes()
    names = ("num_processes", "process_id", "local_device_ids")
    assert [found[name] for name in names] == [4, 3, []]


# ── two processes of two devices ────────────────────────────────────────────────────────────────


# The command, with a pause wherever the processes ask each other: time to signal one of them.
SLOW = """
import sys, time
from dfm_jax import cli
from dfm_jax.training import loop

asked = loop.agree_to_stop
loop.agree_to_stop = lambda stop: (time.sleep(1), asked(stop))[1]
sys.exit(cli.main())
"""


class Pair:
    """The same command, twice, as two hosts would give it."""

    def __init__(self, data: Path, run: Path, *, slow: bool = False) -> None:
        self.run, port = run, free_port()
        command = [sys.executable, *(("-c", SLOW) if slow else ("-m", "dfm_jax")), "train"]
        command += ["--config", "tiny", "--run", str(run)]
        command += ["--data", str(data), "--set", *CHANGES, f"num_steps={STEPS}"]
        command += ["--log-every", "2", "--save-every", "4", "--evaluate-every", "6"]
        command += ["--placement", "sharded", "--distributed"]
        shared = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
        shared |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
        self.processes = [
            subprocess.Popen(
                command,
                env=shared | {"JAX_PROCESS_ID": str(number)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
        ]

    def ended(self, timeout: float) -> list[tuple[int, str]]:
        """(status, words) of each."""
        deadline = time.monotonic() + timeout
        try:
            said = [p.communicate(timeout=deadline - time.monotonic())[0] for p in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(p.returncode, words) for p, words in zip(self.processes, said, strict=True)]

    def until(self, step: int) -> None:
        """Until that step has a checkpoint."""
        while max(checkpoint_steps(self.run / "dense"), default=0) < step:
            assert all(process.poll() is None for process in self.processes)
            time.sleep(0.02)


@pytest.fixture(scope="module")
def paired(data, tmp_path_factory):
    """The run of two processes that nothing stops, and how each has ended."""
    run = tmp_path_factory.mktemp("paired")
    return run, Pair(data, run).ended(120)


@pytest.mark.slow
def test_two_processes_are_one_run_that_the_first_writes(alone, paired):
    run, ((status, said), (other, silent)) = paired
    assert (status, other) == (0, 0), said + silent
    assert "finished at step 12" in said
    assert "finished" not in silent
    assert_same_run(run, alone)
    assert {path.name for path in run.iterdir()} == {"dense"}


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_the_same_command_goes_on(data, paired, tmp_path):
    """To the bits of a run that nothing stopped, from the last checkpoint that is not damaged."""
    pair, member = Pair(data, tmp_path, slow=True), tmp_path / "dense"
    pair.until(8)
    pair.processes[1].send_signal(signal.SIGTERM)
    (status, said), (other, silent) = pair.ended(60)
    assert (status, other) == (143, 143), said + silent
    assert f"stopped at step {checkpoint_steps(member)[-1]}, saved" in said
    *_, before, last = checkpoint_steps(member)
    path = member / str(last) / "SHA256SUMS"
    path.write_bytes(path.read_bytes()[1:])
    (status, said), (other, silent) = Pair(data, tmp_path).ended(120)
    assert (status, other) == (0, 0), said + silent
    assert f"going on from step {before} of {STEPS}" in said
    assert "DAMAGED" in said
    assert "DAMAGED" not in silent
    assert (member / f"{last}.damaged").is_dir()  # once, though both have read it
    assert not (member / f"{last}.damaged.1").exists()
    leaves = [
        json.loads((folder / "dense" / str(STEPS) / "checkpoint.json").read_text())["leaves"]
        for folder in (paired[0], tmp_path)
    ]
    assert leaves[0] == leaves[1]
    assert logged(paired[0]) == logged(tmp_path)


@pytest.mark.slow
def test_what_stops_the_first_stops_both_with_its_status(data, tmp_path):
    """A checkpoint that cannot be written, known to the first alone: nobody waits for it."""
    pair = Pair(data, tmp_path, slow=True)
    pair.until(4)
    (tmp_path / "dense" / str(STEPS)).mkdir()
    (status, said), (other, silent) = pair.ended(120)
    assert (status, other) == (2, 2), said + silent
    assert f"/{STEPS}'." in said
    assert "never overwritten" in said
    assert "Process 0 of 2 cannot go on" in silent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
