"""Runs on a server of objects: killed, put to sleep, and with requests that fail in every way.

S3 is moto's server, which checks the conditions of writes. Google Cloud Storage was tried only on
the server of `object_server`, which answers as its pages say.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from object_server import Fault, environment, gs_server, s3_proxy
from test_fit import QUIET, RUN, STEPS, digests, lines

from dfm_jax.cli import main
from dfm_jax.launch import Allocation, Job, slurm_text
from dfm_jax.storage import StorePath, open_bucket, run_folder
from dfm_jax.storage.lease import read_head
from dfm_jax.training.loop import train
from dfm_jax.training.stopping import ExitStatus
from experiments.systems.stores.server import BUCKET, s3_environment

pytestmark = pytest.mark.slow

KINDS = ("unsent", "unanswered", "cut", "refused")
REQUESTS = (  # of a checkpoint: its files, their list, the list of entries, what is deleted
    ("PUT", r"/state/manifest.ocdbt$"),
    ("PUT", r"/SHA256SUMS$"),
    ("GET", r"list-type=2.*%2Fdense%2F0"),
    ("PUT", r"/head\.json$"),
    ("POST", r"\?delete"),
)
SILENCE = 2  # seconds
NARROW = ("num_positions=16", "model.num_layers=1", "model.width=16")  # quick to compile


@pytest.fixture(scope="module")
def proxy():
    with s3_proxy() as server, environment(**s3_environment(server.address)):
        yield server


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """The data of a partition with two experts."""
    folder = tmp_path_factory.mktemp("parts")
    for expert in range(2):
        texts = [f"row {i} of expert {expert} has {i * i % 7} words" for i in range(40)]
        path = folder / f"expert_{expert:03d}" / "rows.jsonl"
        path.parent.mkdir()
        path.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    return folder


def train_words(data: Path, run: str) -> list[str]:
    words = ["train", "--config", "tiny", "--data", str(data), "--expert", "0", "--run", run]
    return [*words, "--set", "num_steps=30", *NARROW, "--save-every", "10", "--log-every", "5"]


def started(*words: str, **options) -> subprocess.Popen:
    variables = os.environ | {"DFM_JAX_LEASE_SECONDS": str(SILENCE)}
    command = [sys.executable, "-m", "dfm_jax", *words]
    return subprocess.Popen(command, env=variables, text=True, stderr=subprocess.PIPE, **options)


@pytest.fixture(scope="module")
def expected(rows, tmp_path_factory) -> Path:
    """The run that nothing disturbs, on a disk."""
    folder = tmp_path_factory.mktemp("disk")
    assert main(train_words(rows, str(folder))) == 0
    return folder / "expert_000"


def store_path(address: str) -> StorePath:
    folder = run_folder(address)
    assert isinstance(folder, StorePath)
    return folder


def check_same_run(run: str, expected: Path, *, fence: int) -> None:
    """The member has the bits and the lines of the expected one, and nothing else is left."""
    member = store_path(run) / "expert_000"
    assert digests(member, 30) == digests(expected, 30)
    assert lines(member) == lines(expected)
    objects = open_bucket("s3", BUCKET)
    found = read_head(objects, member.key)
    assert found is not None
    assert (found.head.fence, found.head.owner) == (fence, None)
    keys = set(objects.sizes(f"{member.key}/")) - {f"{member.key}/head.json"}
    listed = tuple(entry.key for entry in found.head.entries.values())
    assert all(key.startswith(listed) for key in keys)


def test_an_expert_killed_while_it_writes_is_resumed_by_another_process(
    proxy, rows, expected, capsys, monkeypatch
):
    monkeypatch.setenv("DFM_JAX_LEASE_SECONDS", str(SILENCE))
    run = f"s3://{BUCKET}/killed"
    proxy.stalled.clear()
    proxy.released.clear()
    proxy.faults = [Fault("stalled", "PUT", "/killed/.*/20/state/d/")]
    with started(*train_words(rows, run)) as first:
        assert proxy.stalled.wait(120)
        first.kill()
    began = time.monotonic()
    assert main(train_words(rows, run)) == 0
    printed = capsys.readouterr().err
    assert time.monotonic() - began > SILENCE
    assert f"process {first.pid}" in printed
    assert f"It is taken over if it stays silent for {SILENCE} s." in printed
    assert "going on from step 10 of 30." in printed
    check_same_run(run, expected, fence=2)


def test_a_process_that_wakes_after_another_took_over_ends_and_changes_nothing(
    proxy, rows, expected, monkeypatch
):
    monkeypatch.setenv("DFM_JAX_LEASE_SECONDS", str(SILENCE))
    run = f"s3://{BUCKET}/asleep"
    proxy.stalled.clear()
    proxy.released.clear()
    proxy.faults = [Fault("stalled", "PUT", "/asleep/.*/20/state/d/")]
    with started(*train_words(rows, run)) as first:
        assert proxy.stalled.wait(120)
        first.send_signal(signal.SIGSTOP)
        assert main(train_words(rows, run)) == 0
        first.send_signal(signal.SIGCONT)
        proxy.released.set()
        _, printed = first.communicate()
    assert first.returncode == ExitStatus.TROUBLE
    assert "another process has taken over (fencing number 2)" in printed
    assert main(train_words(rows, run)) == 0, "it is finished; what the first one sent is deleted"
    check_same_run(run, expected, fence=3)


def test_twenty_requests_fail_and_nothing_is_lost(proxy, tmp_path):
    train(RUN, tmp_path / "disk", config={}, **QUIET)
    for number, request in enumerate(REQUESTS):
        proxy.faults = [Fault(kind, *request) for kind in KINDS]
        proxy.happened.clear()
        folder = run_folder(f"s3://{BUCKET}/faults_{number}") / "dense"
        outcome = train(RUN, folder, config={}, **QUIET)
        assert len(proxy.happened) == len(KINDS)
        assert (outcome.began_at, outcome.finished) == (0, True)
        assert digests(folder) == digests(tmp_path / "disk")
        assert lines(folder) == lines(tmp_path / "disk")
        again = train(RUN, folder, config={}, **QUIET)
        assert again.began_at == outcome.step, "begun anew"


def test_a_checkpoint_takes_few_requests(proxy, tmp_path):
    """One for each file, and five: the log, two lists of objects, the head, a deletion."""
    counts = []

    def update(state, step):
        if step % 4 == 0:  # a checkpoint was begun, and after a second it is complete
            time.sleep(1)
            counts.append(len(proxy.requests))
        return RUN.update(state, step)

    folder = run_folder(f"s3://{BUCKET}/counted") / "dense"
    train(RUN._replace(update=update, num_steps=16), folder, config={}, **QUIET)
    found = read_head(open_bucket("s3", BUCKET), store_path(str(folder)).key)
    assert found is not None
    entry = found.head.entries["12"]
    asked = proxy.requests[counts[-2] : counts[-1]]
    assert len(asked) - 5 == entry.objects, asked


def test_the_commands_work_as_on_a_disk(proxy, rows, tmp_path, capsys, monkeypatch):
    said = []
    for run, more in (
        (str(tmp_path / "run"), []),
        (f"s3://{BUCKET}/commands", ["--logs", str(tmp_path / "logs")]),
    ):
        words = ["launch", "local", "--config", "tiny", "--data", str(rows), "--run", run, *more]
        words += ["--save-every", "10", "--jobs", "2", "--set", "num_steps=20", *NARROW]
        assert main(words) == 0
        capsys.readouterr()
        assert main(["make-ensemble", "--run", run]) == 0
        weights = [line.split()[:5] for line in capsys.readouterr().out.splitlines()]
        assert main(["evaluate", "--run", run]) == 0
        assert main(["sample", "--run", run, "--prompt", "row", "--max-new", "12", "--ids"]) == 0
        said.append((weights, capsys.readouterr().out))
    assert said[0] == said[1]
    assert len(said[0][1].splitlines()) == 5, "a heading, two experts, the ensemble, a sample"
    names = {path.name for path in run_folder(f"s3://{BUCKET}/commands").iterdir()}
    assert names == {"expert_000", "expert_001", "ensemble.json", "launch.json"}
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {
        "expert_000.log",
        "expert_001.log",
    }


def test_a_task_of_slurm_finds_the_last_step(proxy, tmp_path):
    folder = run_folder(f"s3://{BUCKET}/slurm")
    train(RUN, folder / "expert_000", config={}, **QUIET)
    jobs = [Job("expert_000", ("train",), folder / "expert_000")]
    allocation = Allocation(python=sys.executable)
    text = slurm_text(jobs, folder, allocation, folder=tmp_path, logs=tmp_path)
    begin = text[: text.index("before=")]  # up to its functions
    command = ["bash", "-c", f"{begin}\nlast_step"]
    variables = os.environ | {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == f"{STEPS}\n"


def test_a_sweep_works_as_on_a_disk(proxy, rows, tmp_path, capsys):
    words = ["--config", "tiny", "--data", str(rows / "expert_000" / "rows.jsonl")]
    words += ["--devices", "1", "--set", "num_steps=10", *NARROW]
    words += ["--grid", "seed=0,1", "optimizer.learning_rate=1e-3,1e-2"]
    said = []
    for run in (str(tmp_path / "sweep"), f"s3://{BUCKET}/sweep"):
        assert main(["sweep", *words, "--run", run]) == 0
        capsys.readouterr()
        assert main(["report", "--run", run, "--json"]) == 0
        report = capsys.readouterr().out
        assert main(["status", "--run", run, "--json"]) == 0
        member = json.loads(capsys.readouterr().out)["members"][0]
        said.append((report, member["state"], member["step"], member["num_runs"]))
    assert said[0] == said[1]
    assert said[0][1:] == ("finished", 10, 4)


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_signal_ends_the_wait_for_a_store_that_does_not_answer(method, proxy, rows):
    proxy.stalled.clear()
    proxy.released.clear()
    proxy.faults = [Fault("stalled", method, "/silent_")]
    with started(*train_words(rows, f"s3://{BUCKET}/silent_{method}")) as process:
        assert proxy.stalled.wait(120)
        began = time.monotonic()
        process.terminate()
        _, printed = process.communicate(timeout=60)
    proxy.released.set()
    assert process.returncode == ExitStatus.SIGTERM, printed
    assert time.monotonic() - began < 20


def test_a_bucket_that_is_missing_is_named(proxy, rows, capsys):
    assert main(train_words(rows, "s3://nobucket/run")) == ExitStatus.BAD_INPUT
    said = capsys.readouterr().err
    assert "The bucket of `run` must exist; got bucket = 's3://nobucket'." in said


def test_a_run_on_google_cloud_storage(tmp_path):
    with gs_server() as variables, environment(**variables):
        folder = store_path(f"gs://{BUCKET}/run") / "dense"
        for length in (RUN.num_steps - 4, RUN.num_steps):  # taken up by a second owner
            train(RUN._replace(num_steps=length), folder, config={}, **QUIET)
        train(RUN, tmp_path, config={}, **QUIET)
        assert digests(folder) == digests(tmp_path)
        found = read_head(open_bucket("gs", BUCKET), folder.key)
        assert found is not None
        assert found.head.fence == 2
