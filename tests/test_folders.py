"""Folders that are whole or not there: a full disk, a kill, a second process, an order of syncs."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dfm_jax import cli, durable
from dfm_jax.data.manifest import check_file, finish_with_manifest, read_manifest
from dfm_jax.data.tokens import texts_in
from dfm_jax.durable import HashedFile, NewFolder, TemporaryError, write_file

MANIFEST = {"settings": {}, "inputs": {}}


def contents(out) -> dict:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def written(out, **more):
    with NewFolder(out) as folder:
        folder.write("a/b.txt", b"one\n")
        folder.write("c.txt", b"two\n")
        return finish_with_manifest(folder, MANIFEST | more)


def test_a_folder_is_found_as_it_was_written(tmp_path):
    manifest = written(tmp_path / "out", said="ä")
    assert read_manifest(tmp_path / "out") == manifest
    assert set(contents(tmp_path / "out")) == {"a/b.txt", "c.txt", "manifest.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    check_file(tmp_path / "out", manifest, "a/b.txt")
    (tmp_path / "out" / "a" / "b.txt").write_text("One\n")
    with pytest.raises(ValueError, match=r"b\.txt must be [0-9a-f]{64}, as its manifest says; got"):
        check_file(tmp_path / "out", manifest, "a/b.txt")
    (tmp_path / "out" / "c.txt").unlink()
    with pytest.raises(ValueError, match="got SHA-256 = 'no such file'"):
        check_file(tmp_path / "out", manifest, "c.txt")


def test_what_a_stopped_run_left_is_cleared(tmp_path):
    left = tmp_path / "out.partial"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "old.txt").write_text("old")
    (left / "old.txt").write_text("old")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept.txt").write_text("mine")
    (left / "link").symlink_to(tmp_path / "mine")
    written(tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"a/b.txt", "c.txt", "manifest.json"}
    assert (tmp_path / "mine" / "kept.txt").read_text() == "mine"


def test_two_processes_do_not_write_one_folder(tmp_path):
    with NewFolder(tmp_path / "out") as first:
        first.write("a.txt", b"one")
        with pytest.raises(TemporaryError, match="by one process at a time; another has"):
            written(tmp_path / "out")
        finish_with_manifest(first, MANIFEST)
    assert set(contents(tmp_path / "out")) == {"a.txt", "manifest.json"}


def test_the_folder_has_its_name_after_everything_is_on_the_disk(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        events.append(os.path.relpath(path, tmp_path.resolve()))
        fsync(descriptor)

    def moved(*paths):
        events.append("move")
        replace(*paths)

    monkeypatch.setattr(durable.os, "fsync", synced)
    monkeypatch.setattr(durable.os, "replace", moved)
    written(tmp_path / "out")
    before = ["a/b.txt", "c.txt", "a", "", "manifest.json", ""]
    assert events == [os.path.join("out.partial", name).rstrip("/") for name in before] + [
        "move",
        ".",
    ]


@pytest.mark.parametrize("where", ["write", "fsync", "fsync of a folder", "move"])
def test_a_full_disk_names_the_file_and_leaves_nothing_finished(tmp_path, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        def __init__(self, file):
            self.file = self.raw = file

        def __getattr__(self, name):
            return full if name == where else getattr(self.file, name)

    made = HashedFile.__init__

    def opened(self, path):
        made(self, path)
        self.file = Full(self.file)

    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(HashedFile, "__init__", opened)
        elif where == "fsync":
            patch.setattr(durable.os, "fsync", full)
        elif where == "fsync of a folder":
            patch.setattr(durable, "force_to_disk", full)
        else:
            patch.setattr(durable.os, "replace", full)
        with pytest.raises(OSError, match="No space left on device") as raised:
            written(tmp_path / "out")
    if where in ("write", "fsync"):
        assert raised.value.filename == str(tmp_path / "out.partial" / "a" / "b.txt")
    assert not (tmp_path / "out").exists()
    assert read_manifest(tmp_path / "out.partial") is None or where in ("move",)
    written(tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"a/b.txt", "c.txt", "manifest.json"}


@pytest.mark.parametrize("stopped_at", ["write", "replace"])
def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path, monkeypatch, stopped_at):
    path = tmp_path / "a.json"
    write_file(path, "old")

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        owner = HashedFile if stopped_at == "write" else durable.os
        patch.setattr(owner, stopped_at, stopped)
        with pytest.raises(KeyboardInterrupt):
            write_file(path, b"new")
    assert path.read_text() == "old"
    write_file(path, "ä")
    assert contents(tmp_path) == {"a.json": "ä".encode()}


# ── of the command, in a process of its own ─────────────────────────────────────────────────────

NUM_ROWS = 40
KILLED = """
import os, signal, sys
from dfm_jax import cli, durable

where, args = sys.argv[1], sys.argv[2:]
write = durable.HashedFile.write

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(self, content, written=[]):
    written.append(1)
    if self.path.name.startswith(where) and (where != "dense" or len(written) > 40):
        write(self, content[: len(content) // 2])
        self.file.flush()
        die()
    write(self, content)

durable.HashedFile.write = dying
if where == "before":
    durable.os.replace = lambda *_: die()
cli.main(args)
"""
LIMITED = """
import resource, sys
from dfm_jax import cli

_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), most))
raise SystemExit(cli.main(sys.argv[2:]))
"""


@pytest.fixture
def data(tmp_path):
    rows = (
        {"id": n, "conversations": [{"from": "human", "value": f"{n} " * (1 + n % 7)}]}
        for n in range(NUM_ROWS)
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    features = np.random.default_rng(0).normal(size=(NUM_ROWS, 4)).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    return tmp_path


def arguments(data, out):
    paths = {"input": "rows.jsonl", "features": "features.npy", "out": out}
    given = [word for name, path in paths.items() for word in (f"--{name}", str(data / path))]
    return ["partition", *given, "--num-experts", "2", "--balance", "none"]


def in_a_process(script, *args):
    command = [sys.executable, "-c", script, *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def check_completed(data):
    """A second run gives what an uninterrupted one does, each row once."""
    assert cli.main(arguments(data, "out")) == cli.main(arguments(data, "twin")) == 0
    assert contents(data / "out") == contents(data / "twin")
    assigned = [(data / "out" / f"expert_00{k}" / "rows.jsonl").read_bytes() for k in range(2)]
    whole = (data / "rows.jsonl").read_bytes()
    assert sorted(b"".join(assigned).splitlines()) == sorted(whole.splitlines())
    assert (data / "out" / "dense.jsonl").read_bytes() == whole
    assert not (data / "out.partial").exists()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["dense", "manifest", "before"])
def test_a_kill_leaves_nothing_that_looks_finished(data, where):
    done = in_a_process(KILLED, where, *arguments(data, "out"))
    assert done.returncode == -9, done.stderr
    assert not (data / "out").exists()
    assert (data / "out.partial").exists()
    check_completed(data)


@pytest.mark.slow
def test_a_disk_that_takes_no_more_is_one_line(data):
    done = in_a_process(LIMITED, "1500", *arguments(data, "out"))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("python -m dfm_jax partition: [Errno 27] File too large: ")
    assert "out.partial" in line
    assert done.stdout == ""
    assert not (data / "out").exists()
    check_completed(data)


# ── what is read back ───────────────────────────────────────────────────────────────────────────

ROWS = b"".join(b'{"text": "document %d"}\n' % i for i in range(8))


def assigned(out):
    with NewFolder(out) as folder:
        folder.write("expert_000/rows.jsonl", ROWS)
        folder.write("dense.jsonl", ROWS)
        finish_with_manifest(folder, MANIFEST)
    return out


@pytest.mark.parametrize("expert", [0, None])
def test_rows_that_are_not_as_they_were_dealt_are_not_trained_on(expert, tmp_path, capsys):
    """A flipped bit, rows that are gone, a manifest of other numbers: status 2, and no run."""
    name = "dense.jsonl" if expert is None else "expert_000/rows.jsonl"
    path = assigned(tmp_path / "parts") / name
    words = ["train", "--config", "tiny", "--data", str(tmp_path / "parts")]
    words += ["--run", str(tmp_path / "run"), *([] if expert is None else ["--expert", "0"])]

    def refused() -> str:
        assert cli.main(words) == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    assert list(texts_in(path)) == [f"document {i}" for i in range(8)]
    path.write_bytes(ROWS.replace(b"document 5", b"document 4"))
    assert f"The SHA-256 of {path} must be" in refused()
    path.write_bytes(ROWS[: 3 * len(ROWS) // 8])
    assert "as its manifest says" in refused()
    path.unlink()
    assert f"got data = '{path}'" in refused()
    path.write_bytes(ROWS)
    manifest = tmp_path / "parts" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"inputs": {}', '"inputs": {"a": 1}'))
    assert f"{manifest} must be as it was written, and must name {name}" in refused()
    manifest.unlink()  # a folder of one's own making
    assert len(list(texts_in(path))) == 8
