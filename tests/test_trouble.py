"""Trouble that passes is neither damage nor bad input; a signal is one line, wherever it comes."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from dfm_jax import cli
from dfm_jax.data.packages import MissingDataError
from dfm_jax.durable import TemporaryError
from dfm_jax.training import checkpoint, digests, stopping
from dfm_jax.training.checkpoint import (
    checkpoint_steps,
    read_checkpoint,
    resume,
    sole_writer,
    write_checkpoint,
)
from dfm_jax.training.digests import CheckpointError, DamagedError
from dfm_jax.training.stopping import (
    ExitStatus,
    NonFiniteError,
    Stopped,
    StopRequest,
    raising_signals,
    stop_on_signals,
)
from dfm_jax.training.trouble import ended, status_of

STATE, CONFIG = {"w": jnp.zeros(2)}, {"seed": 1}


@pytest.fixture
def saved(tmp_path) -> Path:
    """A run with two checkpoints."""
    for step in (1, 2):
        write_checkpoint(
            tmp_path / str(step), {"w": jnp.full(2, float(step))}, step=step, config=CONFIG
        )
    return tmp_path


def failing(error: Exception, *, when: str):
    """`Path.open` and `open`, which fail once for a path that ends so."""
    left, real = [error], Path.open

    def opened(self, *args, **options):
        if left and str(self).endswith(when):
            raise left.pop()
        return real(self, *args, **options)

    return opened


# ── damage and trouble ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("when", ["SHA256SUMS", "checkpoint.json", "_METADATA"])
@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_what_cannot_be_read_now_stays_as_it_is(saved, monkeypatch, error, when):
    """The second start goes on from the last step; the first one said that it may pass."""
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing(error, when=when))
        with pytest.raises(type(error)) as raised:
            resume(saved, STATE, CONFIG)
    assert status_of(raised.value) == ExitStatus.TROUBLE == 75
    assert checkpoint_steps(saved) == [1, 2]
    found = resume(saved, STATE, CONFIG)
    assert (found.step, found.damaged) == (2, ())


def test_a_folder_that_cannot_be_listed_has_lost_no_file(saved, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("state"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        resume(saved, STATE, CONFIG)
    assert checkpoint_steps(saved) == [1, 2]


class Orbax:
    """Fails as tensorstore does: with what the system said in the text of a ValueError."""

    def __init__(self, message):
        self.message = message

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def restore(self, *args, **options):
        raise ValueError(self.message)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ('RESOURCE_EXHAUSTED: Error opening "zarr" driver: Too many open files', 75),
        ("NOT_FOUND: Error reading byte range: Input/output error [os_error_code='5']", 75),
        ("the metadata are of another version", 2),
    ],
)
def test_what_orbax_fails_on_is_no_damage_of_files_that_are_good(
    saved, monkeypatch, message, status
):
    monkeypatch.setattr(checkpoint, "_orbax", lambda: Orbax(message))
    with pytest.raises(ValueError, match=r"os_error_code|EXHAUSTED|orbax cannot read") as raised:
        resume(saved, STATE, CONFIG)
    assert status_of(raised.value) == status
    assert not isinstance(raised.value, DamagedError)
    assert checkpoint_steps(saved) == [1, 2]


def test_beside_set_aside_checkpoints_nothing_begins_anew(saved):
    for step in "12":
        (saved / step / "checkpoint.json").write_text("{}")
    for _ in range(2):  # the second start finds none that is left to judge
        with pytest.raises(
            CheckpointError, match="take another run folder, or remove what was set"
        ):
            resume(saved, STATE, CONFIG)
        assert checkpoint_steps(saved) == []
    for aside in saved.glob("*.damaged"):
        digests_of = sorted(path.name for path in aside.iterdir())
        assert "checkpoint.json" in digests_of
        for path in sorted(aside.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        aside.rmdir()
    assert resume(saved, STATE, CONFIG) is None


@pytest.mark.parametrize(
    "change",
    [
        {"step": "2"},
        {"step": -1},
        {"metrics": {"validation": None}},
        {"leaves": {"w": None}},
        {"leaves": {"w": {"dtype": "float32", "shape": 2, "sha256": ""}}},
        {"config": 0},
        {"more": 1},
    ],
)
def test_a_sealed_record_of_another_kind_is_refused_by_field(saved, change):
    path = saved / "2" / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (saved / "2" / "SHA256SUMS").unlink()
    digests.seal_folder(saved / "2")
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.json must be as this version writes it"
    ):
        read_checkpoint(saved / "2", STATE)


# ── statuses ────────────────────────────────────────────────────────────────────────────────────


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("`n` must be odd"), 2),
        (FileNotFoundError(errno.ENOENT, "none", "/a"), 2),
        (PermissionError(errno.EACCES, "no", "/a"), 2),
        (IsADirectoryError(errno.EISDIR, "a folder", "/a"), 2),
        (MissingDataError("a package"), 2),
        (DamagedError("a checkpoint"), 2),
        (OSError("an image that is none"), 2),
        (NonFiniteError("loss is nan"), 3),
        *((OSError(number, "passes"), 75) for number in (errno.ENOSPC, errno.EMFILE, errno.EIO)),
        (TemporaryError("another process"), 75),
        (MemoryError(), 75),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), 75),
        (RuntimeError("INTERNAL: Error dispatching: Out of memory allocating 9 bytes."), 75),
        (RuntimeError("can't start new thread"), 75),
        (caused(ValueError("a file is no record"), OSError(errno.ENFILE, "table")), 75),
        (KeyboardInterrupt(), 130),
        (Stopped(signal.SIGTERM), 143),
        (BrokenPipeError(errno.EPIPE, "gone"), 141),
        (RuntimeError("a mistake"), None),
        (ZeroDivisionError(), None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_an_error_has_one_status(error, status):
    assert status_of(error) == status


def raises(error: BaseException) -> int:
    raise error


def test_what_ends_a_command_is_one_line(capsys):
    assert ended(lambda: "prog", lambda: raises(OSError(errno.ENOSPC, "full", "/a"))) == 75
    said = "prog: [Errno 28] full: '/a'. This may pass: give the same command again.\n"
    assert capsys.readouterr() == ("", said)
    assert ended(lambda: "prog", lambda: raises(BrokenPipeError())) == 141
    assert capsys.readouterr() == ("", "")
    assert ended(lambda: "prog", lambda: raises(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "prog: stopped.\n")
    with pytest.raises(ZeroDivisionError):
        ended(lambda: "prog", lambda: raises(ZeroDivisionError()))


def test_a_full_disk_behind_the_output_is_trouble(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert ended(lambda: "prog", lambda: print("said") or 0) == 75
        monkeypatch.undo()


def test_a_lock_of_another_process_is_trouble(tmp_path, capsys):
    with sole_writer(tmp_path), pytest.raises(TemporaryError) as raised:
        sole_writer(tmp_path).__enter__()
    assert status_of(raised.value) == 75


@pytest.mark.parametrize("command", ["verify", "evaluate", "launch", "partition"])
def test_ctrl_c_is_a_line_of_every_command(monkeypatch, capsys, command):
    class Interrupted:
        def run(self):
            raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, command, Interrupted)
    monkeypatch.setattr(cli, "parsed", lambda args: Interrupted())
    assert cli.main([command]) == 130
    assert capsys.readouterr().err.endswith(f"{command}: stopped.\n")


# ── signals ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def command(monkeypatch):
    """This process as one that listens; what the handlers were comes back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:  # of a suite that runs in the background the shell ignores SIGINT
        signal.signal(number, signal.SIG_DFL)
    stopping.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_of_a_command_the_first_signal_is_raised_and_the_second_ends_it(command, number, capsys):
    def run():
        os.kill(os.getpid(), number)
        raise AssertionError

    def status():
        with raising_signals():
            before = ended(lambda: "prog", run)
            return before, signal.getsignal(number)

    assert status() == (128 + number, signal.SIG_DFL)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{signal.Signals(number).name}: stopping; a second signal ends at once." in err


def test_where_nobody_asks_a_signal_is_raised(capsys):
    with pytest.raises(Stopped), stop_on_signals(asked=False) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    with stop_on_signals(asked=False) as stop, stop.between_steps():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.status == 143
    assert "SIGTERM: what is in hand is saved first" in capsys.readouterr().err


def test_a_request_says_whether_somebody_asks():
    stop = StopRequest()
    stop.asked = False
    with stop.between_steps():
        assert stop.asked
    assert not stop.asked


def test_closed_streams_and_a_signal_at_the_imports():
    """No descriptor of a file becomes what libraries print to; 143, and one line."""
    words = [sys.executable, "-m", "dfm_jax", "equations"]
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&- | head -c 1', "sh", *words],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        check=True,
    )
    assert closed.stderr == b""
    assert len(closed.stdout) == 1
    code = "import os, signal; from dfm_jax.training import stopping; stopping.listen(); "
    code += "os.kill(os.getpid(), signal.SIGTERM)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.returncode == 143
    assert done.stderr.endswith("SIGTERM: stopped.\n")
    assert done.stderr.count("\n") == 1
