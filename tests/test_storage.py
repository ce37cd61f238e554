"""Run folders on object stores: a lease of conditional writes, commits that are whole or absent.

The store here is obstore's own, in memory, which keeps conditions; `tests/test_object_stores.py`
asks a server.
"""

import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from obstore import exceptions
from obstore.store import MemoryStore
from test_fit import QUIET, RUN, STEPS, digests, lines

from dfm_jax.cli import parsed
from dfm_jax.durable import TemporaryError
from dfm_jax.storage import Objects, StorePath, acquired, folders, objects, run_folder
from dfm_jax.storage.lease import HEAD, Lease, lease_seconds, read_head
from dfm_jax.training import checkpoint
from dfm_jax.training.checkpoint import (
    best_step,
    checkpoint_steps,
    read_record,
    sole_writer,
    write_checkpoint,
)
from dfm_jax.training.digests import CheckpointError
from dfm_jax.training.evaluation import members_of
from dfm_jax.training.loop import train
from dfm_jax.training.status import run_status
from dfm_jax.training.stopping import StopRequest
from dfm_jax.training.trackers import open_tracker

BUSY, OVER = "another process is training here", "another process has taken over"
SILENCE = 0.2  # seconds


@pytest.fixture
def bucket() -> Objects:
    return Objects("s3://bucket", MemoryStore())


@pytest.fixture
def run(bucket, monkeypatch) -> StorePath:
    monkeypatch.setattr(folders, "open_bucket", lambda scheme, name: bucket)
    folder = run_folder("s3://bucket/run")
    assert isinstance(folder, StorePath)
    return folder


def held(bucket: Objects) -> Lease:
    """A lease that is not renewed, as of a process that sleeps from now on."""
    return acquired(bucket, "run/dense", silence=SILENCE, say=lambda text: None)


def entries(bucket: Objects) -> dict[str, bytes]:
    """The content of every object that the list names; there are no others beside the list."""
    found = read_head(bucket, "run/dense")
    assert found is not None
    contents = {}
    for key in set(bucket.sizes("run/dense/")) - {f"run/dense/{HEAD}"}:
        listed = found.head.entries.items()
        (name, entry) = next((n, entry) for n, entry in listed if key.startswith(entry.key))
        contents[name + key.removeprefix(entry.key)] = bucket.read(key).content
    return contents


class Faulty(Objects):
    """A store whose next conditional writes fail as they are told to: `lost`, `late` or `torn`."""

    def __init__(self, store, *faults: str) -> None:
        super().__init__("s3://bucket", store)
        self.faults, self.asked = list(faults), 0

    def _written_if(self, key, content, mode):
        self.asked += 1
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "lost":  # it never reaches the store
            raise TemporaryError("timed out")
        tag = super()._written_if(key, content, mode)
        if fault == "late":  # it takes effect, but the answer is lost
            raise TemporaryError("timed out")
        return tag

    def write(self, key, content):
        if self.faults[:1] == ["torn"] and key.endswith("second"):
            content = b"x"  # the connection breaks, and the store takes what has come
        super().write(key, content)


# ── the lease ─────────────────────────────────────────────────────────────────────────────────────


def test_entries_are_replaced_together_and_nothing_is_left_over(bucket, tmp_path):
    (tmp_path / "new" / "inner").mkdir(parents=True)
    (tmp_path / "new" / "first").write_bytes(b"1")
    (tmp_path / "new" / "inner" / "second").write_bytes(b"22")
    with held(bucket) as lease:
        lease.commit({"log": b"a", "200": tmp_path / "new"})
        assert entries(bucket) == {"log": b"a", "200first": b"1", "200inner/second": b"22"}
        lease.commit({"log": b"ab", "300": tmp_path / "new" / "first"}, removed=("200",))
        assert entries(bucket) == {"log": b"ab", "300": b"1"}
        lease.commit({}, renamed={"300": "300.damaged"})
        assert entries(bucket) == {"log": b"ab", "300.damaged": b"1"}


def test_an_owner_that_wakes_after_its_lease_expired_fails_to_commit(bucket):
    sleeper = held(bucket)
    sleeper.commit({"log": b"of the first"})
    later = held(bucket)  # waits for as long as the first may be silent
    assert (sleeper.fence, later.fence) == (1, 2)
    with pytest.raises(TemporaryError, match=r"taken over \(fencing number 2, .*silent for more"):
        sleeper.commit({"log": b"too late"})
    with pytest.raises(TemporaryError, match=OVER):
        sleeper.check()
    with later:
        assert entries(bucket) == {"log": b"of the first"}, "what it sent is deleted"
        later.commit({"log": b"of the second"})
        assert entries(bucket) == {"log": b"of the second"}


def test_an_owner_that_wakes_between_two_commits_of_the_next_one_fails_too(bucket):
    sleeper = held(bucket)
    with held(bucket) as later:
        later.commit({"log": b"of the second"})
        with pytest.raises(TemporaryError, match=OVER):
            sleeper.commit({"log": b"too late"})
        later.commit({"more": b"of the second"})
    with held(bucket):  # the next owner deletes what the sleeper sent
        assert entries(bucket) == {"log": b"of the second", "more": b"of the second"}


def test_an_owner_that_lives_is_not_replaced(bucket):
    with held(bucket) as lease:
        with pytest.raises(TemporaryError, match=BUSY):
            held(bucket)
        lease.check()


def test_a_folder_that_was_given_back_is_taken_at_once(bucket):
    with held(bucket) as lease:
        lease.commit({"log": b"a"})
    messages: list[str] = []
    with acquired(bucket, "run/dense", silence=60, say=messages.append) as lease:
        assert (lease.fence, messages, entries(bucket)) == (2, [], {"log": b"a"})


def test_of_two_that_take_over_one_wins(bucket, monkeypatch):
    """The second finds, when it writes, that the head is not the one that it waited on."""
    held(bucket)
    real = Objects.replace

    def overtaken(self, key, content, tag):
        monkeypatch.setattr(Objects, "replace", real)
        held(bucket)
        return real(self, key, content, tag)

    monkeypatch.setattr(Objects, "replace", overtaken)
    assert held(bucket).fence == 3, "after it waited for the other one, which is silent too"


@pytest.mark.parametrize("fault", ["lost", "late"])
def test_a_request_without_an_answer_takes_effect_once(bucket, fault, monkeypatch):
    monkeypatch.setattr("dfm_jax.storage.lease._PAUSE", 0.001)
    lease = held(bucket)
    lease.objects = faulty = Faulty(bucket._store, fault, fault)
    lease.commit({"log": b"a"})
    lease.commit({"log": b"ab"})
    assert entries(bucket) == {"log": b"ab"}
    assert faulty.asked == {"lost": 4, "late": 4}[fault]


def test_a_store_that_never_answers_leaves_the_entries_as_they_were(bucket, monkeypatch):
    monkeypatch.setattr("dfm_jax.storage.lease._PAUSE", 0.001)
    lease = held(bucket)
    lease.commit({"log": b"a"})
    lease.objects = Faulty(bucket._store, *["lost"] * 50)
    with pytest.raises(TemporaryError, match="timed out"):
        lease.commit({"log": b"ab"})
    lease.objects = bucket
    lease.commit({"more": b"b"})
    with held(bucket):
        assert entries(bucket) == {"log": b"a", "more": b"b"}


@pytest.mark.parametrize("fault", ["lost", "late"])
def test_the_first_request_of_an_owner_may_lose_its_answer(bucket, fault, monkeypatch):
    monkeypatch.setattr("dfm_jax.storage.lease._PAUSE", 0.001)
    faulty = Faulty(bucket._store, fault)
    lease = acquired(faulty, "run/dense", silence=SILENCE)
    lease.commit({"log": b"a"})
    assert entries(bucket) == {"log": b"a"}


def test_what_was_sent_in_part_is_not_named(bucket, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(b"whole")
    lease = held(bucket)
    lease.objects = Faulty(bucket._store, "torn")
    with pytest.raises(TemporaryError, match=r"must hold 2 objects of 10 bytes.*2 objects of 6"):
        lease.commit({"200": tmp_path})
    lease.objects = bucket
    with held(bucket):
        assert entries(bucket) == {}


@pytest.mark.parametrize("kept", ["create", "replace", None])
def test_a_store_that_ignores_conditions_is_refused(bucket, kept):
    class Careless(Objects):
        def _written_if(self, key, content, mode):
            asks = kept == ("create" if mode == "create" else "replace")
            return super()._written_if(key, content, mode if asks else "overwrite")

    careless = Careless("s3://bucket", bucket._store)
    with pytest.raises(ValueError, match="store that ignores the condition, s3://bucket"):
        acquired(careless, "run/dense")


def test_a_head_of_another_form_is_refused_by_name(bucket):
    bucket.write(f"run/dense/{HEAD}", b'{"write": "x"}')
    with pytest.raises(ValueError, match=r"s3://bucket/run/dense/head.json must be as this vers"):
        held(bucket)


def test_a_renewal_that_loses_its_answer_does_not_end_the_run(bucket, monkeypatch):
    monkeypatch.setattr("dfm_jax.storage.lease._PAUSE", 0.001)
    lease = held(bucket)
    lease.objects = Faulty(bucket._store, "late")
    with pytest.raises(TemporaryError, match="timed out"):
        lease._replace(lease._found.head, tries=1)  # as the thread that renews
    lease.commit({"log": b"a"})
    lease.objects = Faulty(bucket._store, *["lost"] * 5, "late")
    with pytest.raises(TemporaryError, match="timed out"):
        lease.commit({"log": b"ab"})  # takes effect after it was given up
    lease.commit({"more": b"b"})
    assert read_head(bucket, "run/dense").head.entries == lease.entries
    with held(bucket):
        assert entries(bucket) == {"log": b"a", "more": b"b"}


def test_who_lost_the_folder_sends_nothing_more(bucket):
    sleeper = held(bucket)
    with held(bucket), pytest.raises(TemporaryError, match=OVER):
        sleeper.commit({"log": b"too late"})
    before = set(bucket.sizes("run"))
    with pytest.raises(TemporaryError, match=OVER):
        sleeper.commit({"log": b"too late"})
    assert set(bucket.sizes("run")) == before


def test_a_store_that_takes_no_first_request_is_not_asked_for_ever(bucket, monkeypatch):
    monkeypatch.setattr("dfm_jax.storage.lease._PAUSE", 0.001)
    faulty = Faulty(bucket._store, *["lost"] * 50)
    with pytest.raises(TemporaryError, match="timed out"):
        acquired(faulty, "run/dense", silence=SILENCE)
    assert faulty.asked == 6


def test_a_log_on_its_way_does_not_undo_that_of_a_checkpoint(bucket, tmp_path):
    """The thread that renews has read the log, and sends it slowly."""
    (tmp_path / "log").write_bytes(b"1\n")
    lease = held(bucket)
    lease.follow(tmp_path / "log")
    real = bucket.write_all

    def slow(contents):
        lease.objects.write_all = real
        threads.append(threading.Thread(target=lease.commit, args=({"log": b"1\n2\n"},)))
        threads[0].start()
        threads[0].join(0.2)
        real(contents)

    threads: list[threading.Thread] = []
    lease.objects.write_all = slow
    lease._send_followed()
    threads[0].join()
    assert bucket.read(lease.entries["log"].key).content == b"1\n2\n"


def test_the_lease_is_renewed_before_a_log_is_sent(bucket, tmp_path):
    (tmp_path / "log").write_bytes(b"1\n")
    lease = held(bucket)
    lease.follow(tmp_path / "log")
    before, seen = read_head(bucket, "run/dense").head.write, []
    real = bucket.write_all

    def write_all(contents):
        seen.append(read_head(bucket, "run/dense").head.write)
        real(contents)

    lease.objects.write_all = write_all
    with lease:
        time.sleep(SILENCE)
    assert seen[0] != before


def test_a_folder_that_was_copied_shares_nothing_with_the_old_one(run, bucket):
    with sole_writer(run / "dense"):
        (run / "dense" / "log").write_bytes(b"a")
    for key in bucket.sizes("run"):
        bucket.write(key.replace("run/", "copy/"), bucket.read(key).content)
    copy = run_folder("s3://bucket/copy")
    with sole_writer(copy / "dense"):
        (copy / "dense" / "log").write_bytes(b"ab")
    assert (run / "dense" / "log").read_bytes() == b"a"
    bucket.delete(bucket.sizes("run"))
    assert (copy / "dense" / "log").read_bytes() == b"ab"


def test_a_folder_whose_list_was_removed_does_not_begin_anew(run, bucket):
    with sole_writer(run / "dense"):
        (run / "dense" / "log").write_bytes(b"a")
    bucket.delete([f"run/dense/{HEAD}"])
    rule = "s3://bucket/run/dense must have its head.json, .* got objects in 000001 and no head"
    with pytest.raises(ValueError, match=rule), sole_writer(run / "dense"):
        pass
    with pytest.raises(ValueError, match=rule):
        checkpoint_steps(run / "dense")


def test_an_owner_whose_list_is_removed_says_so(bucket):
    lease = held(bucket)
    bucket.delete([f"run/dense/{HEAD}"])
    with pytest.raises(TemporaryError, match="removed while this process held the folder"):
        lease.commit({"log": b"a"})


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("..", "000001/1/a"), ("a/b", "000001/1/a"), ("", "000001/1/a")),
        *(("a", ""), ("a", "other/"), ("a", "000001/1/../"), ("a", "000001/1/.."), ("a", "/")),
    ],
)
def test_an_entry_outside_of_its_folder_is_refused(bucket, name, key):
    with held(bucket) as lease:
        lease.commit({"a": b"1"})
    head = json.loads(bucket.read(f"run/dense/{HEAD}").content)
    head["entries"] = {name: head["entries"]["a"] | {"key": key}}
    bucket.write(f"run/dense/{HEAD}", json.dumps(head).encode())
    with pytest.raises(ValueError, match="each entry must lie in the folder; got"):
        read_head(bucket, "run/dense")


@pytest.mark.parametrize(("text", "message"), [("soon", "a number of seconds"), ("0.5", "lie in")])
def test_a_lease_time_that_is_none_is_refused(text, message, monkeypatch):
    monkeypatch.setenv("DFM_JAX_LEASE_SECONDS", text)
    with pytest.raises(ValueError, match=message):
        lease_seconds()


# ── paths ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        *("http://bucket/run", "s3://bucket", "s3://bucket/", "s3:///run", "S3://bucket/run"),
        *("s3://bucket/a//b", "s3://bucket/../b", "gs://B_/run", "file:///tmp/run"),
    ],
)
def test_an_address_that_is_none_is_refused(text):
    rule = "`run` must be a folder of this machine, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"
    with pytest.raises(ValueError, match=rule):
        run_folder(text)


@pytest.mark.parametrize("words", [("--run", "s3://bucket"), ("--run=http://bucket/run",)])
def test_a_command_refuses_such_an_address_in_one_line(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        parsed(["evaluate", *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m dfm_jax evaluate: `run` must be a folder of this machine, gs")


def test_a_folder_of_this_machine_is_a_path():
    assert run_folder("runs/gs") == Path("runs/gs")
    path = run_folder("gs://bucket/a/run/")
    assert str(path / "dense") == "gs://bucket/a/run/dense"
    assert path.name == "run"


def test_a_path_reads_objects_and_entries(run, bucket):
    (run / "ensemble.json").write_bytes(b"{}")
    assert (run / "ensemble.json").read_text() == "{}"
    assert bucket.read("run/ensemble.json").content == b"{}"
    with sole_writer(run / "dense"):
        (run / "dense" / "config.json").write_bytes(b"1")
    assert sorted(map(str, run.iterdir())) == [
        "s3://bucket/run/dense",
        "s3://bucket/run/ensemble.json",
    ]
    assert [path.name for path in (run / "dense").iterdir()] == ["config.json"]
    assert (run / "dense" / "config.json").read_bytes() == b"1"
    assert (run / "dense").is_dir()
    assert not (run / "dense").is_file()
    assert not (run / "dense" / "config.json").is_dir()
    for missing in (run / "dense" / "other", run / "other", run / "dense" / "config.json" / "x"):
        assert not missing.exists()
        with pytest.raises(FileNotFoundError):
            missing.read_bytes()
    (run / "dense" / "config.json").write_bytes(b"2")  # nobody holds it
    assert (run / "dense" / "config.json").read_bytes() == b"2"
    held(bucket)
    with pytest.raises(TemporaryError, match="only the process that holds it"):
        (run / "dense" / "config.json").write_bytes(b"3")
    (run / "ensemble.json").unlink()
    assert not (run / "ensemble.json").exists()


def test_nothing_is_asked_above_the_folder_that_was_named(bucket, monkeypatch):
    """There may be a head.json of another program, or no right to look."""
    monkeypatch.setattr(folders, "open_bucket", lambda scheme, name: bucket)
    bucket.write("team/head.json", b"{}")
    run = run_folder("s3://bucket/team/run")
    with sole_writer(run / "dense"):
        (run / "dense" / "log").write_bytes(b"a")
    (run / "ensemble.json").write_bytes(b"{}")
    assert (run / "dense" / "log").read_bytes() == b"a"
    assert (run / "ensemble.json").is_file()


@pytest.mark.parametrize("method", ["sizes", "copy", "read"])
def test_a_reader_is_told_that_the_owner_removed_what_it_reads(
    method, run, bucket, tmp_path, monkeypatch
):
    (tmp_path / "200").mkdir()
    (tmp_path / "200" / "file").write_bytes(b"1")
    with sole_writer(run / "dense"):
        (run / "dense").commit({"200": tmp_path / "200", "log": b"a"})
    real = getattr(Objects, method)

    def overtaken(self, key):
        if key != f"run/dense/{HEAD}":
            monkeypatch.setattr(Objects, method, real)
            with sole_writer(run / "dense"):
                (run / "dense").commit({}, removed=["200", "log"])
        return real(self, key)

    monkeypatch.setattr(Objects, method, overtaken)
    member, copy = run / "dense", tmp_path / "copy"
    read = (member / "log").read_bytes if method == "read" else (member / "200").copy_to
    with pytest.raises(TemporaryError, match="the process that trains there removed it meanwhile"):
        read(*(() if method == "read" else (copy,)))


def test_the_best_step_is_found_while_the_owner_removes_another(tmp_path, monkeypatch):
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        metrics = {"validation": loss}
        write_checkpoint(
            tmp_path / str(step), {"a": np.ones(1)}, step=step, config={}, metrics=metrics
        )
    real = checkpoint.checkpoint_steps

    def overtaken(folder):
        monkeypatch.setattr(checkpoint, "checkpoint_steps", real)
        steps = real(folder)
        shutil.rmtree(tmp_path / "1")
        return steps

    monkeypatch.setattr(checkpoint, "checkpoint_steps", overtaken)
    assert best_step(tmp_path) == 2


@pytest.mark.parametrize(
    ("scheme", "variables", "message"),
    [
        ("s3", {"AWS_ENDPOINT_URL": "localhost:9000"}, "must begin with http:// or https://; got"),
        ("s3", {"AWS_ACCESS_KEY_ID": "a"}, "must describe the store s3://bucket; got .*SecretAcc"),
        ("gs", {"GOOGLE_APPLICATION_CREDENTIALS": "/no.json"}, "must describe the store gs://buck"),
    ],
)
def test_an_environment_that_describes_no_store_is_refused(scheme, variables, message, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        objects.open_bucket(scheme, "bucket")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            exceptions.PermissionDeniedError("403\n\nDebug source:\nPermissionDenied { path }"),
            *(ValueError, r"must give credentials .* s3://bucket/a; got '403'\."),
        ),
        (
            exceptions.GenericError("GET http://169.254.169.254/latest/meta-data"),
            *(ValueError, "must give credentials"),
        ),
        (
            exceptions.GenericError("400 Bad Request: <Error><Code>ExpiredToken</Code></Error>"),
            *(ValueError, "must give credentials"),
        ),
        (
            exceptions.GenericError("this normally indicates an incorrectly configured region"),
            *(ValueError, "AWS_REGION must be that of s3://bucket; got 'this norm"),
        ),
        (
            exceptions.GenericError("non-2xx status code: 501 Not Implemented"),
            *(ValueError, "The store s3://bucket must keep conditions of writes"),
        ),
        (
            exceptions.GenericError("connection refused"),
            *(TemporaryError, "s3://bucket/a: the store does not answer: connect"),
        ),
        (
            FileNotFoundError("404: <Code>NoSuchBucket</Code>"),
            *(ValueError, r"The bucket of `run` must exist; got bucket = 's3://b"),
        ),
    ],
)
def test_an_error_of_the_library_says_what_it_means(bucket, monkeypatch, error, kind, message):
    def get(store, key):
        raise error

    monkeypatch.setattr("obstore.get", get)
    with pytest.raises(kind, match=message):
        bucket.read("a")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    objects._opened.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'dfm_jax\[stores\]'"):
        objects.open_bucket("s3", "bucket")


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_on_a_store_is_the_run_on_a_disk(run, tmp_path):
    for folder in (tmp_path / "dense", run / "dense"):
        train(RUN, folder, config={"seed": 0}, **QUIET)
    here, there = tmp_path / "dense", run / "dense"
    names = {path.name for path in here.iterdir()} - {".lock"}
    assert {path.name for path in there.iterdir()} == names
    assert digests(there) == digests(here)
    assert lines(there) == lines(here)
    assert checkpoint_steps(there) == checkpoint_steps(here)
    assert best_step(there) == best_step(here)
    assert [path.name for path in members_of(run)] == ["dense"]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(run, tmp_path):
    train(RUN, tmp_path, config={}, **QUIET)

    class StopsAt(StopRequest):
        looks = 0

        def __bool__(self):
            return True

    stop = StopRequest()
    stopping = RUN._replace(
        update=lambda state, step: (
            (setattr(stop, "signal", 15) if step == 9 else None) or RUN.update(state, step)
        )
    )
    first = train(stopping, run / "dense", config={}, stop=stop, **QUIET)
    assert (first.step, first.finished) == (10, False)
    last = train(RUN, run / "dense", config={}, **QUIET)
    assert (last.began_at, last.finished) == (10, True)
    assert digests(run / "dense") == digests(tmp_path)
    assert lines(run / "dense") == lines(tmp_path)


def test_a_copied_run_goes_on_on_a_disk(run, tmp_path):
    (run / "ensemble.json").write_bytes(b"{}")
    train(RUN._replace(num_steps=STEPS - 4), run / "dense", config={}, **QUIET)
    run.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy" / "ensemble.json").read_bytes() == b"{}"
    outcome = train(RUN, tmp_path / "copy" / "dense", config={}, **QUIET)
    assert outcome.began_at == STEPS - 4
    train(RUN, run / "dense", config={}, **QUIET)
    assert digests(tmp_path / "copy" / "dense") == digests(run / "dense")
    assert lines(tmp_path / "copy" / "dense") == lines(run / "dense")


@pytest.mark.slow
def test_the_status_of_a_run_on_a_store_is_that_on_a_disk(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DFM_JAX_LEASE_SECONDS", "1")
    for folder in (tmp_path / "dense", run / "dense"):
        train(RUN, folder, config={"num_steps": STEPS}, **QUIET)
    (here,), (there,) = run_status(tmp_path, time.time()), run_status(run, time.time())
    assert there.state == "finished"
    same = ("name", "state", "step", "num_steps", "loss", "validation", "saved_step", "damaged")
    assert [getattr(there, name) for name in same] == [getattr(here, name) for name in same]
    assert abs(there.saved_at - here.saved_at) < 60
    lease = acquired((run / "expert_000").objects, "run/expert_000", told={"num_steps": 7})
    row, _ = run_status(run, time.time())
    assert (row.name, row.state, row.num_steps) == ("expert_000", "running", 7)
    assert (row.host, row.pid, row.held) == (socket.gethostname(), os.getpid(), True)
    time.sleep(1.1)
    row, _ = run_status(run, time.time())
    assert (row.state, row.held) == ("silent", None)
    with lease:  # which renews it
        time.sleep(0.4)
        assert run_status(run, time.time())[0].state == "running"
    assert run_status(run, time.time())[0].state == "not begun"


def test_a_file_that_is_followed_is_sent_as_it_grows(bucket, tmp_path):
    log = tmp_path / "log"
    with held(bucket) as lease:
        lease.follow(log)
        for content, whole in ((b"", b""), (b"1\n2", b"1\n"), (b"1\n23\n", b"1\n23\n")):
            log.write_bytes(content)
            time.sleep(3 * SILENCE / 4)
            assert entries(bucket) == {"log": whole}
        log.write_bytes(b"1\n23\nlast\n")
    assert entries(bucket) == {"log": b"1\n23\nlast\n"}


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_and_made_again(run, bucket, tmp_path):
    train(RUN, run / "dense", config={}, **QUIET)
    expected = digests(run / "dense")
    (key,) = [
        key for key in bucket.sizes("run/dense/") if key.endswith(f"/{STEPS}/state/manifest.ocdbt")
    ]
    content = bytearray(bucket.read(key).content)
    content[len(content) // 2] ^= 1
    bucket.write(key, bytes(content))
    said: list[str] = []
    train(RUN, run / "dense", config={}, **QUIET | {"say": said.append})
    assert f"s3://bucket/run/dense/{STEPS}: the SHA-256 of the file" in said[0]
    assert f"set aside as {STEPS}.damaged" in said[0]
    assert f"{STEPS}.damaged" in {path.name for path in (run / "dense").iterdir()}
    assert digests(run / "dense") == expected


@pytest.mark.slow
def test_an_object_that_is_gone_is_named_by_its_address(run, bucket):
    train(RUN, run / "dense", config={}, **QUIET)
    (gone,) = [k for k in bucket.sizes("run/dense/") if k.endswith("24/state/manifest.ocdbt")]
    bucket.delete([gone])
    with pytest.raises(CheckpointError, match=r"^s3://bucket/run/dense/24: the file state/manif"):
        read_record(run / "dense" / "24")


def test_a_run_that_was_taken_over_ends_with_the_status_of_trouble(run, bucket):
    """The process sleeps in a step; when it wakes, another one has its folder."""
    before = {}

    def update(state, step):
        if step == 6:
            head = json.loads(bucket.read("run/dense/head.json").content)
            head |= {"write": "of another", "fence": head["fence"] + 1}
            bucket.write("run/dense/head.json", json.dumps(head).encode())
            before.update(head["entries"])
        return RUN.update(state, step)

    with pytest.raises(TemporaryError, match=OVER):
        train(RUN._replace(update=update), run / "dense", config={}, **QUIET)
    found = read_head(bucket, "run/dense")
    assert found.head.write == "of another"
    assert set(found.head.entries) == set(before)


def test_two_threads_do_not_train_in_one_folder(run):
    with sole_writer(run / "dense"), pytest.raises(TemporaryError, match="another thread"):
        train(RUN, run / "dense", config={}, **QUIET)


def test_files_that_grow_are_refused_by_name(run):
    with (
        pytest.raises(ValueError, match="`tracker` must not be tensorboard if the run is on an"),
        open_tracker("tensorboard", run / "dense"),
    ):
        pass
