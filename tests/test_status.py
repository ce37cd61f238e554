"""The command status: it tells how far members are, from the ends of files, and only reads."""

import fcntl
import json
import os
import pty
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dfm_jax import cli
from dfm_jax.cli.status import lines_that_fit, status_lines
from dfm_jax.launch import local
from dfm_jax.training import checkpoint, loop, members, metrics, status
from dfm_jax.training.checkpoint import sole_writer
from dfm_jax.training.status import (
    LONG_END,
    SHORT_END,
    SILENT_AFTER,
    MemberFiles,
    files_of_members,
    member_status,
    read_end,
    run_status,
)

NOW = 1_800_000_000.0
CONFIG = json.dumps({"config": {"num_steps": 100, "seed": 0}, "data": {}}).encode()
HERE, THERE = socket.gethostname(), "another-host"


def log_of(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def line(step: int, loss: float = 2.0, speed: float = 1000.0) -> dict:
    return {"step": step, "loss": loss, "num_tokens": 50, "tokens_per_second": speed}


LOG = log_of(line(10), {"step": 10, "validation": 2.5}, line(20, 1.5))
FILES = MemberFiles("expert_003", (".lock", "10", "config.json", "metrics.jsonl"))
FILES = FILES._replace(config=CONFIG, log=LOG, log_at=NOW - 5, saved_at=NOW - 60)


def holder(host: str = HERE, began: float = NOW - 100, **more: int) -> bytes:
    return json.dumps({"host": host, "pid": 1234, "began": began} | more).encode()


# ── the state, as a function of what the files hold ─────────────────────────────────────────────


def test_a_member_that_runs():
    found = member_status(FILES._replace(held=True, holder=holder()), NOW)
    assert found.name == "expert_003"
    assert (found.state, found.step, found.num_steps) == ("running", 20, 100)
    assert (found.loss, found.validation, found.measure) == (1.5, 2.5, "validation")
    assert found.tokens_per_second == 1000
    assert found.seconds_left == pytest.approx(80 / (1000 / 50))
    assert (found.saved_step, found.saved_at, found.written_at) == (10, NOW - 60, NOW - 5)
    assert (found.host, found.pid, found.held) == (HERE, 1234, True)
    assert (found.damaged, found.error, found.num_runs) == ((), None, 1)


def test_one_slow_interval_does_not_move_the_time_left():
    """The first line of a process counts the time in which it compiled."""
    log = log_of(line(10, speed=1.0), *(line(step, speed=1000.0) for step in (20, 30)))
    found = member_status(FILES._replace(held=True, log=log), NOW)
    assert found.seconds_left == pytest.approx(70 / (1000 / 50))


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, "stopped"),
        ({"names": (), "config": None, "log": b"", "log_at": None, "saved_at": None}, "not begun"),
        ({"names": (*FILES.names, "100")}, "finished"),
        ({"names": (*FILES.names, "100"), "held": True}, "running"),
        ({"held": None, "holder": holder(THERE)}, "running"),
        ({"held": None, "holder": holder(THERE), "log_at": NOW - SILENT_AFTER - 1}, "running"),
        (
            {
                "held": None,
                "holder": holder(THERE, NOW - 9999),
                "log_at": NOW - SILENT_AFTER - 1,
                "saved_at": NOW - SILENT_AFTER - 1,
            },
            "silent",
        ),
        ({"held": None, "holder": holder(THERE), "names": (*FILES.names, "100")}, "running"),
    ],
)
def test_the_state(change, state):
    assert member_status(FILES._replace(**change), NOW).state == state


def test_who_holds_a_run_says_how_long_it_is_now():
    """config.json is written again with the first checkpoint of a run that is made longer."""
    longer = FILES._replace(held=True, holder=holder(num_steps=200))
    assert member_status(longer, NOW).num_steps == 200
    assert member_status(FILES, NOW).num_steps == 100


def test_before_the_first_checkpoint_the_length_is_that_of_the_holder():
    files = MemberFiles("dense", (".lock",), holder=holder(num_steps=50), held=True)
    found = member_status(files, NOW)
    assert (found.state, found.step, found.num_steps, found.loss) == ("running", 0, 50, None)


@pytest.mark.parametrize("cut", [b"", b'{"step": 30, "lo', b'{"step": 30}', b"\x00\xff{"])
def test_a_log_that_was_cut_by_a_kill_is_read_up_to_its_last_whole_line(cut):
    found = member_status(FILES._replace(log=LOG + cut), NOW)
    assert (found.step, found.loss, found.validation) == (20, 1.5, 2.5)


@pytest.mark.parametrize("row", ["not JSON", "[1]", '{"step": "x"}', '{"step": true}', "NaN"])
def test_a_line_that_is_none_is_passed_over(row):
    found = member_status(FILES._replace(log=LOG + row.encode() + b"\n"), NOW)
    assert (found.step, found.loss, found.validation) == (20, 1.5, 2.5)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"config": 1}', b'{"config": {}}'])
def test_a_config_that_is_none_leaves_the_length_open(text):
    found = member_status(FILES._replace(config=text), NOW)
    assert (found.num_steps, found.seconds_left, found.state) == (None, None, "stopped")


def test_an_old_validation_is_found_before_many_lines():
    rows = [{"step": 10, "validation_bound": 3.0}, *(line(step) for step in range(20, 2000, 10))]
    found = member_status(FILES._replace(log=log_of(*rows)), NOW)
    assert (found.validation, found.measure, found.step) == (3.0, "validation_bound", 1990)


def test_a_group_of_a_sweep():
    """It has no config.json; its checkpoint holds the configs, of which the longest counts."""
    configs = [{"num_steps": 30}, {"num_steps": 60}, {"num_steps": 40}]
    record = json.dumps({"config": {"configs": configs, "data": {}}}).encode()
    log = log_of(
        line(10) | {"loss/0": 1.0, "loss/1": 3.0},
        {"step": 10, "validation/0": 2.5, "validation/1": 2.25},
    )
    files = MemberFiles("group_000", ("10",), record=record, log=log, log_at=NOW)
    found = member_status(files, NOW)
    assert (found.num_steps, found.num_runs) == (60, 3)
    assert (found.loss, found.validation, found.measure) == (2.0, 2.25, "validation")


def test_checkpoints_that_were_set_aside_are_named():
    names = (*FILES.names, "5.damaged", "5.damaged.1", "5.writing")
    assert member_status(FILES._replace(names=names), NOW).damaged == ("5.damaged", "5.damaged.1")


# ── the last error ──────────────────────────────────────────────────────────────────────────────

PRINTED = """──────── attempt 1, 2026-01-01 00:00:00, step 0
python -m dfm_jax train: an old error.
──────── attempt 2, 2026-01-01 00:01:00, step 10
a library says something
"""


@pytest.mark.parametrize(
    ("printed", "error"),
    [
        (PRINTED, None),
        (PRINTED + "python -m dfm_jax train: the disk is full.\nbye\n", "the disk is full."),
        (PRINTED + "python -m dfm_jax: SIGTERM: stopped.\n", "SIGTERM: stopped."),
        (
            PRINTED + "Traceback (most recent call last):\n  File\nKeyError: 'a'\n",
            "KeyError: 'a'",
        ),
    ],
)
def test_the_last_attempt_says_why_it_ended(printed, error):
    files = FILES._replace(attempt=printed.encode())
    assert member_status(files, NOW).error == error
    assert member_status(files._replace(held=True), NOW).error is None
    assert member_status(files._replace(names=("100",)), NOW).error is None


def launched(state: str, reason: str) -> bytes:
    row = {"job": "expert_003", "status": state, "attempts": 1, "seconds": 1.0, "step": 10}
    return json.dumps([row | {"job": "dense"}, row | {"reason": reason}]).encode()


@pytest.mark.parametrize(
    ("launch", "at", "state", "error"),
    [
        (launched("failed", "bad"), NOW, "failed", "bad"),
        (launched("stopped", "killed by SIGKILL"), NOW, "stopped", "killed by SIGKILL"),
        (launched("stopped", "not begun"), NOW, "stopped", None),
        (launched("failed", "bad"), NOW - 50, "stopped", None),  # it has gone on since
        (b"[", NOW, "stopped", None),
        (b'{"a": 1}', NOW, "stopped", None),
    ],
)
def test_a_launch_says_how_it_ended(launch, at, state, error):
    found = member_status(FILES._replace(launch=launch, launch_at=at), NOW)
    assert (found.state, found.error) == (state, error)


# ── of a disk ───────────────────────────────────────────────────────────────────────────────────


def make_member(folder: Path, *, step: int = 10, log: bytes = LOG) -> Path:
    (folder / str(step)).mkdir(parents=True)
    (folder / str(step) / "checkpoint.json").write_text('{"config": {}}')
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "metrics.jsonl").write_bytes(log)
    return folder


def test_members_are_in_the_order_of_their_numbers_and_the_dense_model_is_last(tmp_path):
    for name in ("dense", "expert_1000", "expert_002", "logs", "tokens"):
        (tmp_path / name).mkdir()
    (tmp_path / "expert_001").write_text("a file")
    assert [row.name for row in run_status(tmp_path, NOW)] == ["expert_002", "expert_1000", "dense"]


def test_what_a_launch_names_is_there_before_it_has_a_folder(tmp_path):
    rows = [local.Row(f"expert_00{k}", "stopped", 0, 0.0, 0, "not begun") for k in range(2)]
    local.write_summary(tmp_path, rows)
    make_member(tmp_path / "expert_000")
    found = run_status(tmp_path, NOW)
    assert [(row.name, row.state) for row in found] == [
        ("expert_000", "stopped"),
        ("expert_001", "not begun"),
    ]
    assert not any(row.error for row in found)


def test_a_launch_names_its_members_before_the_first_one_ends(tmp_path):
    jobs = [local.Job(f"expert_00{k}", (), tmp_path / f"expert_00{k}") for k in range(2)]
    seen = []
    code = "import time; time.sleep(0.2)"
    local.run_jobs(
        jobs,
        tmp_path,
        command=(sys.executable, "-c", code),
        say=lambda text: seen.append([row.name for row in run_status(tmp_path, NOW)]),
    )
    assert seen[0] == ["expert_000", "expert_001"]


def test_a_file_for_slurm_names_its_members_too(tmp_path):
    (tmp_path / "parts" / "expert_000").mkdir(parents=True)
    words = ["launch", "slurm", "--config", "tiny", "--data", tmp_path / "parts", "--dense"]
    words += ["--run", tmp_path / "run", "--out", tmp_path / "run.sbatch"]
    assert cli.main([*map(str, words)]) == 0
    found = [(row.name, row.state) for row in run_status(tmp_path / "run", NOW)]
    assert found == [("expert_000", "not begun"), ("dense", "not begun")]


def test_a_group_without_a_file_has_not_begun(tmp_path):
    (tmp_path / "group_001").mkdir()
    (row,) = run_status(tmp_path, NOW)
    assert (row.name, row.state) == ("group_001", "not begun")


def test_logs_are_told_by_their_names_or_by_what_slurm_wrote_in_them(tmp_path):
    make_member(tmp_path / "expert_000")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "expert_000.log").write_text(
        "──────── attempt 1, now, step 0\npython -m dfm_jax train: one.\n"
    )
    (tmp_path / "logs" / "slurm_7.log").write_text(
        "──────── expert_004, attempt 1, now, step 0\npython -m dfm_jax train: two.\n"
    )
    (tmp_path / "logs" / "other.log").write_text("nothing\n")
    found = {row.name: (row.state, row.error) for row in run_status(tmp_path, NOW)}
    assert found == {"expert_000": ("stopped", "one."), "expert_004": ("not begun", "two.")}


def test_who_holds_a_folder_is_seen_and_the_lock_is_not_touched(tmp_path, monkeypatch):
    folder = make_member(tmp_path / "expert_000")
    with sole_writer(folder, num_steps=70):
        monkeypatch.setattr(fcntl, "flock", None)  # to call it is an error
        (row,) = run_status(tmp_path, NOW)
        monkeypatch.undo()
    assert (row.state, row.host, row.pid, row.num_steps) == ("running", HERE, os.getpid(), 70)
    (row,) = run_status(tmp_path, NOW)
    assert (row.state, row.held, row.host, row.num_steps) == ("stopped", False, None, 100)


def test_a_process_that_was_killed_holds_nothing(tmp_path):
    """Nor if another process has its number now."""
    folder = make_member(tmp_path / "expert_000")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom dfm_jax.durable import lock\n"
        "file = os.open(Path(sys.argv[1]) / '.lock', os.O_RDWR | os.O_CREAT)\nlock(file, '')\n"
        f"os.write(file, {holder(pid=os.getpid())!r})\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert done.returncode == -9
    (row,) = run_status(tmp_path, NOW)
    assert (row.state, row.held, row.host, row.pid) == ("stopped", False, HERE, os.getpid())


def test_of_another_host_the_lock_cannot_be_known(tmp_path):
    folder = make_member(tmp_path / "expert_000")
    (folder / ".lock").write_bytes(holder(THERE))
    written = (folder / "metrics.jsonl").stat().st_mtime
    (row,) = run_status(tmp_path, written + 1)
    assert (row.state, row.held, row.host) == ("running", None, THERE)
    (row,) = run_status(tmp_path, max(written, NOW) + SILENT_AFTER + 1)
    assert row.state == "silent"


@pytest.mark.parametrize(
    ("pid", "held"),
    [(os.getpid(), True), (2**22 + 1, False), (2**70, False)],
    ids=["this", "beyond Linux", "beyond C"],  # every worker must collect the same names
)
def test_without_a_list_of_locks_a_process_that_lives_is_believed(pid, held, tmp_path, monkeypatch):
    folder = make_member(tmp_path / "expert_000")
    (folder / ".lock").write_text(json.dumps({"host": HERE, "pid": pid, "began": NOW}))
    read = status._read
    monkeypatch.setattr(
        status, "_read", lambda path: None if path == Path("/proc/locks") else read(path)
    )
    (row,) = run_status(tmp_path, NOW)
    assert row.held is held


def test_from_within_a_run_it_tells_the_step_in_hand(tmp_path):
    from test_trackers import fit as fit_to_the_end

    seen = []

    def look(step, scalars):
        (row,) = run_status(tmp_path, NOW)
        seen.append((step, row.step, row.state, row.num_steps, row.pid))

    fit_to_the_end(tmp_path / "dense", tracker=look)
    assert seen[0] == (2, 2, "running", 12, os.getpid())
    assert seen[-1][:3] == (12, 12, "running")
    (row,) = run_status(tmp_path, NOW)
    assert (row.step, row.loss, row.validation) == (12, pytest.approx(1 / 12), 2.0)


@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="the system counts no bytes")
@pytest.mark.parametrize(("judged", "limit"), [(True, SHORT_END), (False, SHORT_END + LONG_END)])
def test_of_a_log_of_100_megabytes_only_the_end_is_read(judged, limit, tmp_path):
    folder = make_member(tmp_path / "expert_000")
    with (folder / "metrics.jsonl").open("wb") as file:
        file.seek(100_000_000)  # a hole: it takes no place and no time
        for step in range(20_000):
            file.write(log_of(line(step)))
        file.write(log_of(*([{"step": 20_000, "validation": 1.0}] if judged else [])))
    before = bytes_read()
    (row,) = run_status(tmp_path, NOW)
    read = bytes_read() - before
    assert (row.step, row.validation) == ((20_000, 1.0) if judged else (19_999, None))
    assert read < limit + 20_000  # the other files, and the list of locks


def bytes_read() -> int:
    text = Path("/proc/self/io").read_text()
    return int(text.split("rchar: ")[1].split()[0])


def test_whole_lines_are_read_from_the_end(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nthree\n")
    assert read_end(path, 100) == b"one\ntwo\nthree\n"
    assert read_end(path, 11) == b"two\nthree\n"
    assert read_end(path, 9) == b"three\n"
    assert read_end(path, 3) == b""
    assert read_end(tmp_path / "none", 3) == b""


def test_nothing_is_written(tmp_path, capsys):
    make_member(tmp_path / "expert_000")
    (tmp_path / "expert_001").mkdir()
    before = {path: (path.stat().st_mtime_ns, path.is_file()) for path in tmp_path.rglob("*")}
    assert cli.main(["status", "--run", str(tmp_path)]) == 0
    after = {path: (path.stat().st_mtime_ns, path.is_file()) for path in tmp_path.rglob("*")}
    assert after == before


def test_the_names_are_those_of_who_writes():
    """They are repeated, because their modules import jax."""
    assert tuple(metrics.METRICS.values()) == status.VALIDATIONS
    assert status._CONFIG == members.CONFIG
    assert (status._RECORD, status._LOCK) == (checkpoint.RECORD, checkpoint.LOCK)
    assert (status._LOG, status._SUMMARY) == (loop.METRICS, local.SUMMARY)
    assert local._MARK.startswith(status._ATTEMPT)
    assert local._PROG == status._PROG
    assert status._DAMAGED.fullmatch(f"7{checkpoint.ASIDE}.1")
    for expert in (0, 12, 1234, None):
        assert status._MEMBER.fullmatch(members.member_folder(Path("r"), expert).name)


# ── the command ─────────────────────────────────────────────────────────────────────────────────


TABLE = """\
member              state         step    loss  validation  tokens/s  left         saved  host
expert_003          running  20 of 100  1.5000      2.5000     1,000   4 s  10, 60 s ago  a:1234
dense               stopped     0 of ?                                                            \
set aside: 5.damaged; x
group_000 (2 runs)  silent   10 of 100            ≤ 2.0000                   10, 2 h ago  b:1234  \
nothing was written for 2 h
"""


def test_the_table():
    expert = FILES._replace(held=True, holder=holder("a"))
    attempt = PRINTED.encode() + b"python -m dfm_jax train: x"
    dense = MemberFiles("dense", ("5.damaged",), attempt=attempt)
    group = FILES._replace(
        name="group_000",
        held=None,
        holder=holder("b", NOW - 9000),
        log=log_of({"step": 4, "validation_bound/0": 2.0, "validation_bound/1": 3.0}),
        log_at=NOW - 7300,
        saved_at=NOW - 7400,
    )
    rows = [member_status(files, NOW) for files in (expert, dense, group)]
    first, *lines = status_lines(Path("run"), rows, NOW)
    assert first.startswith("run at ")
    assert first.endswith(": 3 members: 1 running, 1 stopped, 1 silent")
    assert "\n".join(lines) + "\n" == TABLE


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (2e5, "2 d")],
)
def test_a_duration_has_two_of_its_unit(seconds, text):
    from dfm_jax.cli.status import _duration

    assert _duration(seconds) == text
    assert _duration(-1) == "0 s"  # clocks of two hosts


def test_json_is_one_line_for_each_look(tmp_path, capsys):
    make_member(tmp_path / "expert_000", step=100)
    assert cli.main(["status", "--run", str(tmp_path), "--json", "--watch"]) == 0
    (text,) = capsys.readouterr().out.splitlines()
    found = json.loads(text)
    assert found["run"] == str(tmp_path)
    (member,) = found["members"]
    assert member["name"] == "expert_000"
    assert (member["state"], member["step"], member["held"]) == ("finished", 100, False)


def test_an_empty_folder_says_so(tmp_path, capsys):
    assert cli.main(["status", "--run", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: nothing has begun here.\n"
    assert files_of_members(tmp_path) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "`run` must be a folder that exists; got run = "),
        (lambda folder: folder.write_text("a"), "`run` must be a folder that exists; got run = "),
        (
            lambda folder: (folder / "texts").mkdir(parents=True),
            "`run` must be the folder of a run, which holds expert_000, dense or group_000; got",
        ),
        (make_member, "`run` must be the folder of a run and not of one of its members; got"),
    ],
)
def test_a_folder_that_is_no_run_says_what_it_is(make, message, tmp_path, capsys):
    make(tmp_path / "x")
    assert cli.main(["status", "--run", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m dfm_jax status: {message}")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("interval", ["0", "-1", "inf", "nan"])
def test_an_interval_that_is_none_is_refused(interval, tmp_path, capsys):
    assert cli.main(["status", "--run", str(tmp_path), f"--interval={interval}"]) == 2
    assert "`interval` must be a number of seconds above 0; got" in capsys.readouterr().err


def test_it_watches_until_all_have_ended_also_without_a_terminal(tmp_path, capsys, monkeypatch):
    folder = make_member(tmp_path / "expert_000")
    looks = []

    def wait(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            (folder / "100").mkdir()

    monkeypatch.setattr("dfm_jax.cli.status.time.sleep", wait)
    assert cli.main(["status", "--run", str(tmp_path), "--watch", "--interval", "7"]) == 0
    assert looks == [7, 7]
    looks = capsys.readouterr().out.split("\n\n")
    assert [text.splitlines()[0].rpartition(": ")[2] for text in looks] == [
        "1 stopped",
        "1 stopped",
        "1 finished",
    ]
    assert all(text.isprintable() for text in "".join(looks).splitlines())


def test_a_watch_ends_when_what_is_left_has_failed(tmp_path, capsys):
    make_member(tmp_path / "expert_000", step=100)
    make_member(tmp_path / "expert_003")
    (tmp_path / "launch.json").write_bytes(launched("failed", "bad"))
    os.utime(tmp_path / "launch.json", (NOW * 2, NOW * 2))
    assert cli.main(["status", "--run", str(tmp_path), "--watch"]) == 4
    assert "bad" in capsys.readouterr().out
    assert cli.main(["status", "--run", str(tmp_path)]) == 0


def test_on_a_terminal_the_table_is_drawn_anew(tmp_path):
    make_member(tmp_path / "expert_000", step=100)
    here, there = pty.openpty()
    command = [sys.executable, "-m", "dfm_jax", "status", "--run", str(tmp_path), "--watch"]
    done = subprocess.run(command, stdout=there, stderr=there, check=False, env=plain())
    os.close(there)
    text = os.read(here, 100_000).decode()
    os.close(here)
    assert done.returncode == 0, text
    assert "1 member: 1 finished" in text
    assert "100 of 100" in text
    assert "\x1b[?25h" in text  # the cursor is there again


def plain() -> dict:
    return os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "20"}


def test_jax_is_not_imported(tmp_path):
    make_member(tmp_path / "expert_000")
    code = (
        "import sys\nfrom dfm_jax import cli\n"
        f"assert cli.main(['status', '--run', {str(tmp_path)!r}]) == 0\n"
        "print({name.partition('.')[0] for name in sys.modules} & {'jax', 'numpy', 'orbax'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_on_a_small_terminal_those_that_change_are_kept():
    states = ["finished", "running", "finished", "failed", "not begun"]
    lines = ["heading", "columns", *(f"m{n}  {state}  " for n, state in enumerate(states))]
    assert lines_that_fit(lines, 7) == lines
    assert lines_that_fit(lines, 6) == [
        "heading",
        "columns",
        "m0  finished  ",
        "m1  running  ",
        "m3  failed  ",
        "… and 2 members more",
    ]
