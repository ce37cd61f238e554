"""Jobs that share nothing: on this machine, and as files for SLURM and Kubernetes."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from dfm_jax import cli
from dfm_jax.cli.launch import Members
from dfm_jax.cli.sweep import Sweep
from dfm_jax.cli.training import Train
from dfm_jax.durable import TemporaryError
from dfm_jax.launch import (
    Allocation,
    Job,
    Pods,
    Row,
    experts_of,
    gpu_sets,
    jobset_text,
    max_array_size,
    read_summary,
    run_jobs,
    slurm_text,
    slurm_texts,
    summary_text,
    train_jobs,
    write_summary,
)
from dfm_jax.launch.jobset import yaml_text
from dfm_jax.training.stopping import StopRequest
from experiments.lib.corpora import write_texts

# Stands for the command: FOLDER, then a word for each attempt. `new` leaves one checkpoint more.
FAKE = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
count = folder / "attempts"
attempt = int(count.read_text()) if count.is_file() else 0
count.write_text(str(attempt + 1))
for word in sys.argv[2 + attempt].split("+"):
    if word == "new":
        steps = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
        (folder / str(max(steps, default=0) + 5)).mkdir()
    elif word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "wait":
        time.sleep(60)
    elif word == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / "5").mkdir()
        time.sleep(60)
    elif word == "full":
        with open("/dev/full", "w") as file:
            file.write("x")
    elif word == "gpu":
        print("sees", os.environ.get("CUDA_VISIBLE_DEVICES"))
        sys.exit(2)
    elif word.isdecimal():
        print("python -m dfm_jax train: this is why\\na last word\\n\\n", file=sys.stderr)
        sys.exit(int(word))
"""
COMMAND = (sys.executable, "-c", FAKE)


def fake(run: Path, *scripts: str) -> list[Job]:
    folders = [run / f"expert_{number:03d}" for number in range(len(scripts))]
    pairs = zip(folders, scripts, strict=True)
    return [Job(f.name, (str(f), *words.split()), f) for f, words in pairs]


def launched(run: Path, *scripts: str, **options) -> list[Row]:
    options = {"command": COMMAND, "pause": 0, "say": lambda text: None} | options
    return run_jobs(fake(run, *scripts), run, **options)


# ── on this machine ─────────────────────────────────────────────────────────────────────────────


def test_each_job_ends_for_itself(tmp_path):
    """Finished, bad input, not finite, a crash without end: nobody's fate is another's."""
    rows = launched(tmp_path, "new+0", "2", "new+3", "1 1 1", "new+0", at_once=2, retries=2)
    assert [row.status for row in rows] == ["finished", "failed", "failed", "failed", "finished"]
    assert [row.attempts for row in rows] == [1, 1, 1, 3, 1]
    assert [row.step for row in rows] == [5, 0, 5, 0, 5]
    assert [row.reason for row in rows] == [
        *("", "this is why", "this is why"),
        *("status 1: this is why", ""),
    ]
    assert read_summary(tmp_path) == rows


def test_a_job_that_goes_on_is_never_given_up(tmp_path):
    (row,) = launched(tmp_path, " ".join(["new+kill"] * 8 + ["0"]), retries=0)
    assert (row.status, row.attempts, row.step) == ("finished", 9, 40)


def test_attempts_without_a_newer_checkpoint_are_counted_in_a_row(tmp_path):
    (row,) = launched(tmp_path, "kill kill new+kill kill 143 kill 0", retries=2)
    assert (row.status, row.attempts, row.step) == ("failed", 6, 5)
    assert row.reason == "killed by SIGKILL"


def test_a_full_disk_is_the_end_of_one(tmp_path):
    rows = launched(tmp_path, "full", "0", retries=0)
    assert [row.status for row in rows] == ["failed", "finished"]
    assert "No space left on device" in rows[0].reason


def test_a_job_that_cannot_be_begun_is_the_end_of_one(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "expert_000.log").symlink_to("/dev/full")
    (tmp_path / "launch.json.part").symlink_to("/dev/full")
    said = []
    rows = launched(tmp_path, "0", "0", say=said.append)
    assert [row.status for row in rows] == ["failed", "finished"]
    assert rows[0].reason.startswith("it could not be begun: [Errno 28] No space left on device")
    assert rows[0].attempts == 4  # a disk may be emptied
    assert said[-1].startswith("the summary is not written: [Errno 28]")


@pytest.mark.parametrize("error", [ValueError("no head"), TemporaryError("no answer")])
def test_a_folder_that_cannot_be_read_is_the_end_of_none(tmp_path, monkeypatch, error):
    """Of a run on an object store; what is wrong there the job says too."""
    real = Job.step.fget

    def step(job: Job) -> int:
        if job.name == "expert_000":
            raise error
        return real(job)

    monkeypatch.setattr(Job, "step", property(step))
    said: list[str] = []
    rows = launched(tmp_path, "2", "new+0", at_once=2, say=said.append)
    assert [(row.status, row.step) for row in rows] == [("failed", 0), ("finished", 5)]
    assert f"expert_000: {error}" in said


def test_a_log_is_appended_to_and_says_which_attempt(tmp_path):
    launched(tmp_path, "1 new+1 0")
    launched(tmp_path, "- - - 0")
    log = (tmp_path / "logs" / "expert_000.log").read_text().splitlines()
    marks = [line.split()[1:3] + line.split()[-2:] for line in log if line.startswith("──────── ")]
    assert marks == [["attempt", f"{n},", "step", step] for n, step in enumerate("0055", start=1)]


def test_no_more_run_at_once_than_may_and_each_has_its_gpu(tmp_path):
    begun = []
    gpus = gpu_sets(["0", "3"])
    rows = launched(tmp_path, *["gpu"] * 5, at_once=2, devices=gpus, say=begun.append)
    assert {row.reason for row in rows} == {"sees 0", "sees 3"}
    running = peak = 0
    for text in begun:
        running += 1 if "begins" in text else -1
        peak = max(peak, running)
    assert (peak, running) == (2, 0)


def test_a_signal_to_the_launcher_stops_all_of_them(tmp_path):
    """SIGTERM to each that runs, once; those that wait are not begun."""
    stop, job = StopRequest(), tmp_path / "expert_000"

    def ask() -> None:
        while not (job / "5").is_dir():
            time.sleep(0.01)
        stop.signal = signal.SIGTERM

    asking = threading.Thread(target=ask)
    asking.start()
    rows = launched(tmp_path, "new+wait", "0", stop=stop)
    asking.join()
    assert [(row.status, row.attempts) for row in rows] == [("stopped", 1), ("stopped", 0)]
    assert [row.reason for row in rows] == ["killed by SIGTERM", "not begun"]


def test_a_job_that_ignores_sigterm_is_killed_after_its_grace(tmp_path):
    stop, said = StopRequest(), []

    def ask() -> None:
        while not (tmp_path / "expert_000" / "5").is_dir():
            time.sleep(0.01)
        stop.signal = signal.SIGTERM

    asking = threading.Thread(target=ask)
    asking.start()
    (row,) = launched(tmp_path, "deaf", stop=stop, grace=0.2, say=said.append)
    asking.join()
    assert (row.status, row.reason) == ("stopped", "killed by SIGKILL")
    assert "expert_000: still there 0.2 s after SIGTERM; it is killed" in said


def test_trouble_that_passes_is_tried_again(tmp_path):
    (row,) = launched(tmp_path, "75 75 0", retries=2)
    assert (row.status, row.attempts) == ("finished", 3)


def test_the_summary_is_a_table_and_a_file(tmp_path):
    rows = [Row("expert_000", "finished", 2, 1234.5, 100, ""), Row("c", "failed", 1, 3.0, 0, "why")]
    lines = summary_text(rows).splitlines()
    assert lines[0].split() == ["job", "status", "attempts", "seconds", "step", "reason"]
    assert lines[1].split() == ["expert_000", "finished", "2", "1,234.5", "100"]
    assert lines[2].split() == ["c", "failed", "1", "3.0", "0", "why"]
    write_summary(tmp_path, rows)
    assert json.loads((tmp_path / "launch.json").read_text())[1]["reason"] == "why"
    assert read_summary(tmp_path) == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at_once": 0}, "`at_once` must be at least 1; got at_once = 0"),
        ({"retries": -1}, "`retries` must be at least 0; got retries = -1"),
        ({"pause": -1}, r"`pause` must lie in \[0, inf\); got pause = -1"),
        ({"devices": gpu_sets("0"), "at_once": 2}, "`devices` must hold 2 sets, one for each job"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        launched(tmp_path, "0", **options)
    with pytest.raises(ValueError, match="`jobs` must hold a job, and their names must differ"):
        run_jobs([], tmp_path)


# ── which jobs ──────────────────────────────────────────────────────────────────────────────────


def test_the_experts_are_those_of_the_data(tmp_path):
    with pytest.raises(ValueError, match="`data` must hold the folders expert_000 and so on"):
        experts_of(tmp_path)
    for number in (0, 2, 11):
        (tmp_path / f"expert_{number:03d}").mkdir()
    (tmp_path / "expert_first").mkdir()
    assert experts_of(tmp_path) == [0, 2, 11]
    (tmp_path / "manifest.json").write_text('{"sizes": [5, 5, 5, 5]}')
    assert experts_of(tmp_path) == [0, 1, 2, 3]  # one that is lost will fail by name
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="must be the manifest of a partition"):
        experts_of(tmp_path)


def test_a_job_is_the_train_command_of_a_member():
    jobs = train_jobs(Path("d"), Path("r"), ["--config", "tiny"], experts=[3], dense=True)
    assert [job.name for job in jobs] == ["expert_003", "dense"]
    assert jobs[0].folder == Path("r/expert_003")
    words = "train --data d --run r --expert 3 --config tiny"
    assert jobs[0].arguments == tuple(words.split())
    assert "--expert" not in jobs[1].arguments


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ([], "`experts` must name an expert unless `dense` is asked for"),
        ([1, 1], "`experts` must be distinct"),
        ([-1], r"`experts` must lie in \[0, 999999\]; got experts = -1"),
        ([10**20 - 1], r"`experts` must lie in \[0, 999999\]; got experts = 9999"),
    ],
)
def test_members_that_cannot_be_are_refused(experts, message):
    with pytest.raises(ValueError, match=message):
        train_jobs(Path("d"), Path("r"), [], experts=experts)


def test_launch_has_every_option_of_train():
    """With the same default; and the arguments that it writes are those that `train` reads."""
    there = {field.name: field.default for field in dataclasses.fields(Train)}
    here = {field.name: field.default for field in dataclasses.fields(Members)}
    del here["grid"]  # of another command
    assert here.pop("total_steps") is None  # num_steps of each member
    assert there.pop("expert") is None
    assert there.pop("distributed") is False  # as --hosts-per-expert says
    assert here == there | {"experts": (), "dense": False}
    given = {"tokenizer": Path("t.json"), "set": ("seed=1", "held_out=0"), "log_every": 3}
    given |= {"save_every": 4, "evaluate_every": 5, "keep_last": 6}
    given |= {"tracker": "tensorboard", "on_disk": True, "keep_buffers": False, "init": "llama"}
    given |= {"freeze": ("embed_tokens", "layers_*/mlp")}
    given |= {"images": Path("photos"), "pixels": Path("kept")}
    where = {"config": "tiny", "data": Path("d"), "folder": Path("r")}
    (job,) = Members(**where, **given, experts=(7,)).jobs()
    assert parsed(job.arguments) == Train(**where, **given, expert=7)


def test_a_group_of_a_sweep_is_swept_with_the_options_that_are_given(monkeypatch):
    given = {"config": "tiny", "data": Path("d"), "folder": Path("r"), "set": ("seed=1",)}
    given |= {"log_every": 3, "grid": ("seed=0:2", "model.num_layers=1,2,3")}
    given |= {"init": "llama", "freeze": ("embed_tokens", "layers_*/mlp")}
    jobs = Members(**given).jobs()
    assert [job.name for job in jobs] == ["group_000", "group_001", "group_002"]
    assert jobs[1].folder == Path("r/group_001")
    found = []
    monkeypatch.setattr(Sweep, "run", lambda self: found.append(self) or 0)
    assert cli.main(list(jobs[1].arguments)) == 0
    assert found == [Sweep(**given, group=1)]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"experts": (0,)}, "experts"),
        ({"dense": True}, "dense"),
        ({"keep_last": 3}, "keep_last"),
        ({"total_steps": 3}, "total_steps"),
    ],
)
def test_a_sweep_without_members_options(change, named):
    members = Members(config="tiny", data=Path("d"), folder=Path("r"), grid=("seed=0:2",), **change)
    with pytest.raises(
        ValueError, match=rf"`grid` must not be given together with the options of .*{named}"
    ):
        members.jobs()


def parsed(arguments: tuple[str, ...]) -> Train:
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Train, "run", lambda self: found.append(self) or 0)
        assert cli.main(list(arguments)) == 0
    return found[0]


# ── SLURM ───────────────────────────────────────────────────────────────────────────────────────

ODD = [
    Job("expert_000", ("train", "--set", "a b", "it's"), Path("my run/expert_000")),
    Job("dense", ("train", "$HOME"), Path("my run/dense")),
]


def test_an_array_says_what_it_asks_for():
    allocation = Allocation(
        **{"name": "x", "at_once": 2, "partition": "gpu", "time": "04:00:00", "gpus": 1, "cpus": 8},
        **{"memory": "64G", "grace": 60, "lines": ("--account=a",), "setup": ("source here",)},
    )
    text = slurm_text(ODD, Path("my run"), allocation, folder=Path("there"))
    header = {line.removeprefix("#SBATCH --") for line in text.splitlines() if "#SBATCH" in line}
    assert header == {
        *("job-name=x", "array=0-1%2", "chdir=there", "output='my run/logs/slurm_%a.log'"),
        *("open-mode=append", "requeue", "signal=B:TERM@60", "nodes=1", "ntasks-per-node=1"),
        *("partition=gpu", "time=04:00:00", "gpus-per-node=1", "cpus-per-task=8", "mem=64G"),
        "account=a",
    }
    assert "\nsource here\n" in text
    assert "srun" not in text
    spanning = slurm_text(ODD, Path("r"), Allocation(hosts=4), folder=Path("there"))
    assert "#SBATCH --nodes=4\n" in spanning
    assert "\nsrun --kill-on-bad-exit=1 python -m dfm_jax" in spanning
    spanning = slurm_text(ODD, Path("r"), Allocation(hosts=4, cpus=8), folder=Path("there"))
    assert "\nsrun --kill-on-bad-exit=1 --cpus-per-task=8 python" in spanning


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hosts": 0}, "`hosts` must be at least 1; got hosts = 0"),
        ({"time": "4 hours"}, "`time` must be one word"),
        ({"time": "4h"}, "`time` must be as SLURM writes it, such as 04:00:00; got time = '4h'"),
        ({"time": "1-2-3"}, "`time` must be as SLURM writes it"),
        ({"memory": "64x"}, "`memory` must be as SLURM writes it, such as 64G"),
        ({"python": " "}, "`python` must not be empty"),
        ({"lines": ("-",)}, "Each of `lines` must be an option of sbatch"),
        ({"lines": ("account=a",)}, "Each of `lines` must be an option of sbatch"),
        ({"lines": ("--account=a\rb",)}, "`lines` must be one line of printable characters"),
        ({"setup": ("true\rtrue",)}, "`setup` must be one line of printable characters"),
    ],
)
def test_what_sbatch_would_not_understand_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Allocation(**options)


@pytest.mark.parametrize(
    "line", ["--array=0-3", "-a0-3", "--output x", "--no-requeue", "-t 5", "--signal=B:USR1@60"]
)
def test_a_line_that_would_undo_one_of_the_script_is_refused(line):
    """With another array, some jobs would be lost without a word."""
    with pytest.raises(ValueError, match="`lines` must not set again what the script sets"):
        slurm_text(ODD, Path("r"), Allocation(lines=(line,), time="60"), folder=Path("x"))
    allowed = ("--account=a", "-A a", "--time-min=5", "--partition=gpu", "-pgpu", "--export=NONE")
    assert "-pgpu\n" in slurm_text(ODD, Path("r"), Allocation(lines=allowed), folder=Path("x"))


@pytest.mark.parametrize("time", ["30", "4:00", "04:00:00", "2-0", "2-12:30", "UNLIMITED", None])
@pytest.mark.parametrize("memory", ["0", "64G", "64gb", "1000", None])
def test_what_sbatch_understands_is_taken(time, memory):
    assert Allocation(time=time, memory=memory).time == time


# A name that is two lines to bash, to sbatch, or to some reader of YAML; or that is no Unicode.
TWO_LINES = ["a\ntrue", "a\rb", "a\x85b", "a\u2028b", "a\u2029b", "a\x0bb", "a\x7fb", "a\udc80b"]


@pytest.mark.parametrize("name", TWO_LINES, ids=ascii)
def test_a_name_of_two_lines_is_refused_by_every_writer(name):
    """Before, `mkdir $'a\\ntrue'` as the folder of a run made a line of the script of its own."""
    message = "must be one line of printable characters"
    for job in (
        Job("expert_000", ("train", "--run", name), Path("run")),
        Job("expert_000", ("train",), Path("runs") / name),
        Job(name, ("train",), Path("run")),
    ):
        with pytest.raises(ValueError, match=message):
            slurm_text([job], Path("run"), Allocation(), folder=Path("there"))
        with pytest.raises(ValueError, match=message):
            jobset_text([job], Pods(image="i"))
    for run, folder in ((Path(name), Path("there")), (Path("run"), Path("there") / name)):
        with pytest.raises(ValueError, match=message):
            slurm_text(ODD, run, Allocation(), folder=folder)
    with pytest.raises(ValueError, match=message):
        Pods(image=name)
    with pytest.raises(ValueError, match=message):
        Allocation(python=name)


@pytest.mark.parametrize("name", ["run_%j", "run_%", "a\\b"])
def test_what_slurm_replaces_in_the_path_of_a_log_is_refused(name):
    for run, folder in ((Path(name), Path("there")), (Path("run"), Path("there") / name)):
        with pytest.raises(ValueError, match=r"must not hold % or .*, which SLURM replaces"):
            slurm_text(ODD, run, Allocation(), folder=folder)


@pytest.mark.parametrize("name", ["a b", "it's", '"$HOME"', "`true`; #", "-x", "é ─", "$(true)"])
def test_any_other_name_is_quoted(name, tmp_path):
    """bash reads the name again from the script: nothing of it is executed."""
    job = Job("expert_000", ("train", "--run", name), Path(name) / "expert_000")
    text = slurm_text([job], Path(name), Allocation(), folder=tmp_path)
    head, body = text.split('case "$SLURM_ARRAY_TASK_ID" in', maxsplit=1)
    assert all(line.startswith("#") for line in head.strip().splitlines())
    body = f'case "0" in{body.partition("esac")[0]}esac\nprintf "%s|" "$folder" "${{job[@]}}"\n'
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    done = subprocess.run(["bash"], input=body, capture_output=True, text=True, check=True)
    assert done.stdout == f"{name}/expert_000|train|--run|{name}|"


def cluster(folder: Path) -> None:
    """The script, and commands of ours that it will find: python, squeue and scontrol."""
    script = slurm_text(ODD, folder / "my run", Allocation(), folder=folder)
    (folder / "array.sbatch").write_text(script)
    (folder / "bin").mkdir()
    commands = {
        "python": 'printf "%s|" "$@" >>words; trap "exit 143" TERM; . ./behavior',
        "squeue": 'echo "${STATE:-RUNNING}"',
        "scontrol": 'echo "$@" >>requeued',
    }
    for name, text in commands.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)


def task(folder: Path, number: int, behavior: str, **more: str) -> "subprocess.Popen[str]":
    (folder / "behavior").write_text(behavior)
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    environment |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(number)} | more
    return subprocess.Popen(
        ["bash", "array.sbatch"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )


def test_the_script_is_bash_and_gives_a_task_its_words(tmp_path):
    cluster(tmp_path)
    subprocess.run(["bash", "-n", "array.sbatch"], cwd=tmp_path, check=True)
    for number, words in enumerate(("train|--set|a b|it's|", "train|$HOME|")):
        process = task(tmp_path, number, "exit 0")
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert ODD[number].name in said
        assert (tmp_path / "words").read_text().startswith(f"-m|dfm_jax|{words}")
        (tmp_path / "words").unlink()
    process = task(tmp_path, 2, "exit 0")
    process.communicate(timeout=30)
    assert process.returncode == 2


@pytest.mark.parametrize(
    ("behavior", "state", "status", "requeued"),
    [
        ("exit 0", "RUNNING", 0, False),
        ("exit 2", "RUNNING", 2, False),
        ("exit 3", "RUNNING", 3, False),
        ("exit 143", "RUNNING", 143, True),
        ("exit 130", "RUNNING", 130, True),
        ("exit 143", "COMPLETING", 143, False),
        ("exit 1", "RUNNING", 1, False),
        ("exit 75", "RUNNING", 75, True),
        ("mkdir -p 'my run/expert_000/5'; kill -9 $$", "RUNNING", 137, True),
    ],
)
def test_what_was_saved_goes_back_to_the_queue(tmp_path, behavior, state, status, requeued):
    cluster(tmp_path)
    process = task(tmp_path, 0, behavior, STATE=state)
    process.communicate(timeout=30)
    assert process.returncode == status
    found = (tmp_path / "requeued").read_text() if (tmp_path / "requeued").is_file() else ""
    assert found == ("requeue 7_0\n" if requeued else "")


@pytest.mark.parametrize(("restarts", "requeued"), [("9", True), ("10", False)])
def test_trouble_goes_back_to_the_queue_ten_times(tmp_path, restarts, requeued):
    cluster(tmp_path)
    task(tmp_path, 0, "exit 75", SLURM_RESTART_COUNT=restarts).communicate(timeout=30)
    assert (tmp_path / "requeued").is_file() == requeued


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING"])
def test_sigterm_to_the_script_reaches_the_command_once(tmp_path, state):
    """When SLURM ends the task itself, it has signalled the command too: twice would be fatal."""
    cluster(tmp_path)
    process = task(tmp_path, 0, "echo $$ >pid; while :; do sleep 0.05; done", STATE=state)
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    process.terminate()
    if state == "COMPLETING":
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert (tmp_path / "requeued").is_file() == (state == "RUNNING")


def header(script: str) -> dict[str, str]:
    """The options of a script that have a value."""
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if "#SBATCH" in line]
    return dict(line.split("=", maxsplit=1) for line in lines if "=" in line)


def chosen(script: str, task: int) -> str:
    """What the script chooses for a task, by bash: the status, the name of the job, its words."""
    body = script.split('case "$SLURM_ARRAY_TASK_ID" in', maxsplit=1)[1].partition("\nesac\n")[0]
    body = f'case "$SLURM_ARRAY_TASK_ID" in{body}\nesac\nprintf "%s|" "$name" "${{job[@]}}"\n'
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": str(task)}
    command = ["bash", "-c", 'eval "$(cat)"']
    done = subprocess.run(
        command, input=body, env=environment, capture_output=True, text=True, check=False
    )
    return f"{done.returncode}|{done.stdout}"


@pytest.mark.parametrize(
    ("count", "size", "firsts"),
    [
        (1001, 1001, [0]),
        (1002, 1001, [0, 501]),
        (2500, 1001, [0, 834, 1667]),
        (7, 3, [0, 3, 5]),
        (3, 1, [0, 1, 2]),
    ],
)
def test_more_jobs_than_an_array_holds_are_several_arrays(count, size, firsts):
    """The first and the last task of each array are their own jobs, by bash; none is lost."""
    jobs = train_jobs(Path("d"), Path("r"), ["--config", "tiny"], experts=range(count))
    texts = slurm_texts(jobs, Path("r"), Allocation(), folder=Path("x"), max_array_size=size)
    assert list(texts) == firsts
    for first, end in zip(firsts, [*firsts[1:], count], strict=True):
        options = header(texts[first])
        assert options["array"] == f"0-{end - first - 1}"
        assert end - first <= size
        assert options["output"] == f"r/logs/slurm_{f'{first}+' if first else ''}%a.log"
        for number in {first, end - 1}:
            words = "|".join(jobs[number].arguments)
            assert chosen(texts[first], number - first) == f"0|{jobs[number].name}|{words}|"
        assert chosen(texts[first], end - first) == "2|"


def test_the_arrays_share_the_tasks_that_may_run_at_the_same_time():
    jobs = train_jobs(Path("d"), Path("r"), [], experts=range(10))
    options = {"folder": Path("x"), "max_array_size": 4}
    texts = slurm_texts(jobs, Path("r"), Allocation(at_once=8), **options)
    assert [header(text)["array"] for text in texts.values()] == ["0-3%3", "0-2%3", "0-2%2"]
    with pytest.raises(ValueError, match="`at_once` must be at least 3, the number of arrays"):
        slurm_texts(jobs, Path("r"), Allocation(at_once=2), **options)
    with pytest.raises(ValueError, match="`max_array_size` must be at least 1; got max_array_si"):
        slurm_texts(jobs, Path("r"), Allocation(), folder=Path("x"), max_array_size=0)


@pytest.mark.parametrize(
    ("scontrol", "size"),
    [
        ("echo 'MaxArraySize            = 50001'", 50001),
        ("echo 'MaxArraySize = 0'", 0),
        ("echo 'slurm_load_ctl_conf error: Unable to contact slurm controller' >&2; exit 1", 1001),
        (None, 1001),
    ],
)
def test_the_cluster_says_how_many_tasks_an_array_holds(tmp_path, monkeypatch, scontrol, size):
    monkeypatch.setenv("PATH", str(tmp_path))
    if scontrol is not None:
        (tmp_path / "scontrol").write_text(f'#!/bin/sh\n[ "$*" = "show config" ] && {scontrol}\n')
        (tmp_path / "scontrol").chmod(0o755)
    assert max_array_size() == size


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="there is no sbatch")
def test_sbatch_takes_the_file(tmp_path):
    if subprocess.run(["sinfo"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no cluster answers")
    text = slurm_text(ODD, tmp_path, Allocation(at_once=1, time="01:00"), folder=tmp_path)
    (tmp_path / "array.sbatch").write_text(text)
    command = ["sbatch", "--test-only", "array.sbatch"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ── Kubernetes ──────────────────────────────────────────────────────────────────────────────────


def loaded(text: str) -> list:
    return list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def jobset_of(jobs: list[Job], pods: Pods) -> dict:
    """The JobSet of jobs of one host, which is the last object of its file."""
    *maps, made = loaded(jobset_text(jobs, pods))
    assert {one["kind"] for one in maps} == {"ConfigMap"}
    return made


def command_of(objects: list, folder: Path) -> list[str]:
    """The words of the container; the files of its ConfigMaps lie in `folder`, not in the pod."""
    *maps, made = objects
    spec = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    (volume,) = [one for one in spec["volumes"] if one["name"] == "jobs"]
    sources = [source["configMap"]["name"] for source in volume["projected"]["sources"]]
    assert sources == [one["metadata"]["name"] for one in maps]
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "jobs"]
    for one in maps:
        for name, text in one["data"].items():
            (folder / name).write_text(text)
    return [word.replace(mount["mountPath"], str(folder)) for word in container["command"]]


def test_yaml_is_read_back_as_it_was():
    value = {
        "a": [1, True, None, "yes", "1", "", "x: y", "é ─", "- z", "#"],
        "b/c.d": {"e": [{"f": [["g"], {}], "h": "i"}, []], "j": 'case\n  "x"\n\n  y: 1\n'},
        "on": "a\nb",
        "no line breaks": ["a\x85b", "a\u2028b\n", "a\rb", "\x7f\u00a0", "\ufeff", "🙂\u200d"],
        "no plain blocks": ["  a\nb\n", "a\n\n", "\na\n", "\n", "a\t\n", " \n", "a\n \nb\n"],
    }
    assert loaded(yaml_text(value)) == [value]


def test_a_jobset_of_indexes():
    pods = Pods(image="here/it:1", claim="c", mount="/m", cpus="4", memory="8Gi", gpus=1, at_once=1)
    found = jobset_of(ODD, pods)
    assert found["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert found["kind"] == "JobSet"
    assert found["metadata"] == {"name": "dfm-jax"}
    assert set(found["spec"]) == {"network", "replicatedJobs"}
    (part,) = found["spec"]["replicatedJobs"]
    assert (part["name"], part["replicas"]) == ("jobs", 1)
    job = part["template"]["spec"]
    template = job.pop("template")["spec"]
    assert job == {
        "completionMode": "Indexed",
        "completions": 2,
        "parallelism": 1,
        "backoffLimitPerIndex": 10,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailIndex",
                    "onExitCodes": {"containerName": "main", "operator": "In", "values": [2, 3]},
                },
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
            ]
        },
    }
    (container,) = template.pop("containers")
    claim, files = template.pop("volumes")
    assert claim == {"name": "data", "persistentVolumeClaim": {"claimName": "c"}}
    assert files["name"] == "jobs"
    assert template == {"restartPolicy": "Never", "terminationGracePeriodSeconds": 120}
    asked = {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": 1}
    assert container["resources"] == {"requests": asked, "limits": asked}
    assert container["volumeMounts"] == [
        {"name": "data", "mountPath": "/m"},
        {"name": "jobs", "mountPath": "/etc/dfm_jax_jobs", "readOnly": True},
    ]
    assert (container["name"], container["image"]) == ("main", "here/it:1")
    assert container["command"][:2] == ["sh", "-c"]


@pytest.fixture
def pod(tmp_path):
    """Runs the words of a container as the pod of an index: what its python gets, and the end."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text('#!/bin/sh\nprintf "%s|" "$@"\nexit 3\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    (tmp_path / "files").mkdir()
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"

    def run(command: list[str], index: int) -> tuple[int, str]:
        environment = {"PATH": path, "JOB_COMPLETION_INDEX": str(index)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    return run


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_an_index_gives_its_command(tmp_path, pod, shell):
    """The container's own words, by a shell; python ends as it would. Nothing is replaced."""
    jobs = [*ODD, Job("more", ("a$$b", "$(JOB_COMPLETION_INDEX)", "<&>", "é ─"), Path("r"))]
    command = command_of(loaded(jobset_text(jobs, Pods(image="i"))), tmp_path / "files")
    assert command.pop(0) == "sh"
    words = ["train|--set|a b|it's|", "train|$HOME|", "a$$b|$(JOB_COMPLETION_INDEX)|<&>|é ─|"]
    for index, expected in enumerate(words):
        assert pod([shell, *command], index) == (3, f"-m|dfm_jax|{expected}")
    assert pod([shell, *command], 3) == (2, "")


@pytest.mark.parametrize(
    ("count", "maps"), [(1000, 1), pytest.param(5000, 5, marks=pytest.mark.slow)]
)
def test_thousands_of_jobs_fit_into_arguments_and_objects(tmp_path, pod, count, maps):
    """1,000 jobs in one argument had 134,902 bytes; no kernel starts more than 131,071.

    An object of etcd has at most 1 MiB. kubectl keeps it a second time, in an annotation of at
    most 262,144 bytes of JSON, in which Go writes the characters <, > and & as six each.
    """
    words = ["--config", "tiny", *("--log-every", "10", "--save-every", "200"), "--set", "<&>é"]
    words += ["--evaluate-every", "200", "--keep-last", "2"]
    jobs = train_jobs(Path("/data/parts"), Path("/data/run"), words, experts=range(count))
    files = tmp_path / "files"
    objects = loaded(jobset_text(jobs, Pods(image="i", claim="c")))
    assert len(objects) == maps + 1
    for made in objects:
        written = json.dumps(made, ensure_ascii=False)
        assert len(written.encode()) < 2**20
        assert len(written.encode()) + 5 * sum(map(written.count, "<>&")) < 262_144
    command = command_of(objects, files)
    assert max(len(word.encode()) for word in command) < 1000
    assert len(list(files.iterdir())) == maps
    firsts = [
        int(re.search(r"^ *(\d+)\)", f.read_text(), re.MULTILINE)[1]) for f in files.iterdir()
    ]
    for index in {0, count - 1, *firsts, *(max(first - 1, 0) for first in firsts)}:
        expected = "|".join(jobs[index].arguments)
        assert pod(command, index) == (3, f"-m|dfm_jax|{expected}|")
    assert pod(command, count)[0] == 2


def test_a_jobset_never_takes_the_jobs_of_an_earlier_file():
    """Other jobs, another name; the ConfigMap itself cannot be changed. The same jobs, the same."""
    first, other = (loaded(jobset_text(jobs, Pods(image="i")))[0] for jobs in (ODD, ODD[:1]))
    assert first["immutable"]
    assert first["metadata"]["name"] != other["metadata"]["name"]
    assert first == loaded(jobset_text(ODD, Pods(image="another")))[0]


def test_what_is_too_much_for_kubernetes_is_refused():
    job = ODD[0]._replace(arguments=("a" * 131_072,))
    with pytest.raises(ValueError, match="`arguments` must have less than 131072 bytes; got a wor"):
        jobset_text([job], Pods(image="i"))
    job = ODD[0]._replace(arguments=("a" * 70_000, "b" * 70_000))
    jobset_text([job], Pods(image="i"))
    with pytest.raises(ValueError, match="less than 131072 bytes as one argument of a shell"):
        jobset_text([job], Pods(image="i", hosts=2))
    job = ODD[0]._replace(arguments=("a" * 131_000, "b" * 131_000))
    with pytest.raises(ValueError, match="`arguments` must have at most 200000 bytes in all; got"):
        jobset_text([job], Pods(image="i"))
    with pytest.raises(ValueError, match="`jobs` must hold at most 100,000 jobs"):
        jobset_text(ODD[:1] * 100_001, Pods(image="i"))


def test_a_jobset_for_tpus():
    pods = Pods(image="i", tpus=4, accelerator="tpu-v5-lite-podslice", topology="2x2")
    found = jobset_of(ODD, pods)
    spec = found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "2x2",
    }
    assert spec["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}


def test_hosts_of_one_expert_lie_in_one_slice():
    tpus = {"tpus": 4, "accelerator": "tpu-v5-lite-podslice", "topology": "4x4"}
    key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    for made in loaded(jobset_text(ODD, Pods(image="i", hosts=4, **tpus))):
        assert made["metadata"]["annotations"] == {key: "cloud.google.com/gke-nodepool"}
    assert "annotations" not in jobset_of(ODD, Pods(image="i", **tpus))["metadata"]


def test_jobs_that_span_hosts_are_a_jobset_each():
    first, second = loaded(jobset_text(ODD, Pods(image="i", hosts=4, retries=5)))
    assert first["metadata"]["name"] == "dfm-jax-expert-000"
    assert second["metadata"]["name"] == "dfm-jax-dense"
    assert first["spec"]["failurePolicy"] == {
        "maxRestarts": 5,
        "rules": [
            {
                "name": "final_status",
                "action": "FailJobSet",
                "onJobFailureReasons": ["PodFailurePolicy"],
            }
        ],
    }
    job = first["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (4, 4, 0)
    assert job["podFailurePolicy"]["rules"][0]["action"] == "FailJob"
    env = {e["name"]: e for e in job["template"]["spec"]["containers"][0]["env"]}
    coordinator = "dfm-jax-expert-000-jobs-0-0.dfm-jax-expert-000:55527"
    assert env["JAX_COORDINATOR_ADDRESS"]["value"] == coordinator
    assert env["JAX_NUM_PROCESSES"]["value"] == "4"
    field = env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "Mine_1"}, "`name` must have at most 40 characters"),
        ({"mount": "data"}, "`mount` must be an absolute path"),
        ({"mount": "/etc/dfm_jax_jobs/"}, "`mount` must not be /etc/dfm_jax_jobs, where a pod"),
        ({"mount": "/"}, "`mount` must be an absolute path"),
        ({"mount": "/a:b"}, "`mount` must be an absolute path in the pod, without a colon"),
        ({"tpus": 0}, r"`tpus` must lie in \[1, 2147483647\]; got tpus = 0"),
        ({"retries": 2**31}, r"`retries` must lie in \[0, 2147483647\]"),
        ({"image": ""}, "`image` must not be empty"),
        ({"image": "a b"}, "`image` must be a name that Kubernetes accepts"),
        ({"cpus": "four"}, "`cpus` must be an amount that Kubernetes accepts"),
        ({"memory": "8GB"}, "`memory` must be an amount that Kubernetes accepts"),
        ({"topology": "2x2"}, "`accelerator` and `topology` must be given together"),
        ({"claim": "My data"}, "`claim` must be a name that Kubernetes accepts"),
        ({"accelerator": "a" * 64, "topology": "2x2"}, "`accelerator` must be a name"),
        ({"python": "i\nj"}, "`python` must be one line of printable characters"),
    ],
)
def test_what_kubernetes_would_not_take_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Pods(**{"image": "i"} | options)


@pytest.mark.parametrize("amount", ["1", "0.5", "500m", "8Gi", "1e3", "16G"])
def test_an_amount_of_kubernetes_is_taken(amount):
    assert Pods(image="i", cpus=amount, memory=amount).cpus == amount


def test_names_of_pods_are_labels_of_at_most_63_characters():
    """NAME-expert_000-jobs-0-3-abcde: 27 characters beside the name of the JobSet."""
    name = "a" * (63 - len("-expert-000-jobs-0-3-abcde"))
    (made,) = loaded(jobset_text(ODD[:1], Pods(image="i", hosts=4, name=name)))
    assert made["metadata"]["name"] == f"{name}-expert-000"
    with pytest.raises(
        ValueError,
        match=(
            r"a pod must have at most 63 characters; got a name of 64 "
            r"characters"
        ),
    ):
        jobset_text(ODD[:1], Pods(image="i", hosts=4, name=f"{name}a"))
    with pytest.raises(
        ValueError,
        match=(
            r"a pod must have at most 63 characters; got a name of 64 "
            r"characters"
        ),
    ):
        jobset_text(ODD[:1], Pods(image="i", hosts=11, name=name))
    jobset_text(ODD[:1], Pods(image="i", name="a" * 40))  # one JobSet for all of them
    strange = [Job("Expert+1", ("train",), Path("run"))]
    with pytest.raises(ValueError, match="The name of a JobSet must consist of small letters"):
        jobset_text(strange, Pods(image="i", hosts=4))


@pytest.mark.parametrize("word", ["a$$b", "$(JOB_COMPLETION_INDEX)"])
def test_what_kubernetes_replaces_in_a_command_is_refused(word):
    job = Job("expert_000", ("train", "--run", word), Path("run"))
    with pytest.raises(ValueError, match="which Kubernetes replaces in a command"):
        jobset_text([job], Pods(image="i", hosts=2))
    with pytest.raises(ValueError, match="which Kubernetes replaces in a command"):
        jobset_text(ODD, Pods(image="i", python=word))
    jobset_text([job], Pods(image="i"))  # not in a command, but in a ConfigMap
    slurm_text([job], Path("run"), Allocation(), folder=Path("there"))


# ── the command line ────────────────────────────────────────────────────────────────────────────


def test_the_files_are_written(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "deep" / "file"
    common = ["--config", "tiny", "--data", "d", "--run", str(run), "--experts", "0", "2"]
    common += ["--dense", "--out", str(out)]
    assert cli.main(["launch", "slurm", *common, "--lines=--account=a"]) == 0
    assert "#SBATCH --array=0-2\n" in out.read_text()
    assert "#SBATCH --account=a\n" in out.read_text()
    assert (run / "logs").is_dir()
    assert f"3 tasks; submit it with `sbatch {out}`" in capsys.readouterr().out
    assert cli.main(["launch", "jobset", *common, "--image", "i"]) == 0
    _, found = loaded(out.read_text())
    assert found["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"] == 3


def test_several_arrays_are_several_files_which_the_message_submits(tmp_path, capsys):
    run, out = tmp_path / "my run", tmp_path / "my run" / "all.sbatch"
    command = ["launch", "slurm", "--config", "tiny", "--data", "d", "--run", str(run)]
    command += ["--out", str(out), "--max-array-size", "2", "--experts", "0", "1", "2", "3", "4"]
    assert cli.main(command) == 0
    first, *submit = capsys.readouterr().out.splitlines()
    assert first == "5 tasks in 3 arrays, of at most 2 each; submit all:"
    names = [shlex.split(line)[1] for line in submit]
    assert names == [str(run / f"all{part}.sbatch") for part in ("", "_2", "_4")]
    texts = [Path(name).read_text() for name in names]
    assert [header(text)["array"] for text in texts] == ["0-1", "0-1", "0-0"]
    assert "train --data d --run" in texts[2]
    assert "--expert 4 " in texts[2]


def test_a_preset_that_is_none_is_refused_before_anything_is_written(tmp_path, capsys):
    out = tmp_path / "file"
    common = ["--data", "d", "--run", str(tmp_path / "run"), "--experts", "0", "--out", str(out)]
    assert cli.main(["launch", "slurm", "--config", "smal", *common]) == 2
    assert "'smal'" in capsys.readouterr().err
    assert not out.exists()
    assert cli.main(["launch", "slurm", "--config", "/there/mine.json", *common]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--set nothing=1", "`set` must name a field of the config; got set = 'nothing'"),
        ("--set num_steps=-1", "`num_steps` must lie in"),
        ("--save-every 0", "`save_every` must be at least 1; got save_every = 0"),
        ("--keep-last 0", "`keep_last` must be at least 1; got keep_last = 0"),
        ("--out .", "`out` must be a file, not a folder; got out = '.'"),
    ],
)
@pytest.mark.parametrize("where", [["slurm"], ["jobset", "--image", "i"]], ids=["slurm", "jobset"])
def test_what_every_task_would_refuse_is_refused_before(tmp_path, capsys, where, words, message):
    common = ["--config", "tiny", "--data", "d", "--run", str(tmp_path / "run"), "--experts", "0"]
    out = [] if "--out" in words else ["--out", str(tmp_path / "file")]
    assert cli.main(["launch", *where, *common, *words.split(), *out]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_expert_that_the_data_have_not_is_refused(tmp_path, capsys):
    (tmp_path / "data" / "expert_000").mkdir(parents=True)
    (tmp_path / "data" / "expert_001").mkdir()
    common = ["--config", "tiny", "--data", str(tmp_path / "data"), "--run", str(tmp_path / "run")]
    command = ["launch", "slurm", *common, "--out", str(tmp_path / "file"), "--experts"]
    assert cli.main([*command, "0", "7"]) == 2
    assert "`experts` must be some of the 2 that" in (said := capsys.readouterr().err)
    assert said.rstrip().endswith("got experts = [0, 7].")
    assert cli.main([*command, "1"]) == 0


@pytest.mark.parametrize("where", [["slurm"], ["jobset", "--image", "i"]], ids=["slurm", "jobset"])
def test_members_of_several_hosts_are_told_so(tmp_path, capsys, where):
    out = tmp_path / "file"
    common = ["--config", "tiny", "--data", "d", "--run", str(tmp_path / "run"), "--out", str(out)]
    command = ["launch", *where, *common, "--hosts-per-expert", "2"]
    assert cli.main([*command, "--experts", "0"]) == 2
    message = (
        "`placement` must be replicated or sharded if a member runs on several hosts; got "
        "placement = None."
    )
    assert message in capsys.readouterr().err
    assert cli.main([*command, "--grid", "seed=0:2"]) == 2
    message = "`hosts_per_expert` must be 1 if `grid` is given; got hosts_per_expert = 2."
    assert message in capsys.readouterr().err
    assert not out.exists()
    assert cli.main([*command, "--experts", "0", "--placement", "sharded"]) == 0
    assert "--placement sharded --distributed" in out.read_text()
    command = ["launch", *where, *common, "--experts", "0", "--placement", "replicated"]
    assert cli.main(command) == 0  # all devices of one host
    assert "--placement replicated" in out.read_text()
    assert "--distributed" not in out.read_text()


@pytest.mark.parametrize(
    ("statuses", "number", "expected"),
    [
        (("finished", "finished"), None, 0),
        (("finished", "failed"), None, 4),
        (("stopped", "failed"), signal.SIGTERM, 143),
    ],
)
def test_the_exit_status_says_how_it_went(
    tmp_path, monkeypatch, capsys, statuses, number, expected
):
    def run(jobs, folder, *, stop, **options):
        stop.signal = number
        given = {"at_once": 2, "retries": 5, "pause": 0.5, "devices": gpu_sets(["0", "1"])}
        assert {name: options[name] for name in given} == given
        pairs = zip(jobs, statuses, strict=True)
        return [Row(job.name, status, 1, 1.0, 5, "") for job, status in pairs]

    monkeypatch.setattr("dfm_jax.launch.run_jobs", run)
    command = ["launch", "local", "--config", "tiny", "--data", "d", "--run", str(tmp_path)]
    command += ["--experts", "0", "4", "--jobs", "2", "--retries", "5", "--pause", "0.5"]
    assert cli.main([*command, "--gpus", "0", "1"]) == expected
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[-2:]] == [
        ["expert_000", statuses[0]],
        ["expert_004", statuses[1]],
    ]


@pytest.mark.parametrize("name", ["local", "slurm", "jobset"])
def test_help_gives_examples(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["launch", name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.count(f"python -m dfm_jax launch {name} --") >= 2


# ── real members ────────────────────────────────────────────────────────────────────────────────

SMALL = [
    *("--config", "tiny", "--save-every", "5", "--log-every", "5"),
    *("--set", "model.width=8", "model.num_heads=2", "model.num_layers=1", "model.ffn_width=8"),
    *("num_positions=16", "batch_size=4", "num_steps=20", "held_out=0"),
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """Forty documents assigned to three experts."""
    folder = tmp_path_factory.mktemp("data")
    write_texts(folder / "all")
    for number, path in enumerate(sorted((folder / "all").iterdir())):
        part = folder / "parts" / f"expert_{number % 3:03d}"
        part.mkdir(parents=True, exist_ok=True)
        (part / path.name).write_bytes(path.read_bytes())
    return folder / "parts"


@pytest.mark.slow
def test_members_that_fail_do_so_alone_and_say_why(parts, tmp_path, monkeypatch):
    """No data, a loss that is not finite, a full disk: the fourth is trained."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    jobs = train_jobs(parts, tmp_path, SMALL, experts=[0, 1, 7])
    # The last option counts: a learning rate that leaves nothing finite.
    jobs[1] = jobs[1]._replace(arguments=(*jobs[1].arguments, "optimizer.learning_rate=1e38"))
    disk = tmp_path / "expert_002"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    jobs += train_jobs(parts, tmp_path, SMALL, experts=[2]) if mounted else []
    try:
        rows = run_jobs(jobs, tmp_path, at_once=2, retries=1, pause=0, say=lambda text: None)
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
    assert [row.attempts for row in rows] == [1, 1, 1, 2][: len(jobs)]  # a disk may be emptied
    assert (rows[0].status, rows[0].step) == ("finished", 20)
    assert rows[1].status == rows[2].status == "failed"
    assert "= nan at step" in rows[1].reason or "= inf at step" in rows[1].reason
    assert "`expert` must have the folder" in rows[2].reason
    if mounted:
        assert rows[3].status == "failed"
        assert "No space left on device" in rows[3].reason


@pytest.mark.slow
def test_from_the_shell_stopped_gone_on_and_found_finished(parts, tmp_path):
    """SIGTERM: 143, all saved. Again: 0. Again: 0, and nothing is trained. Of one member: above,
    two run at once.

    That a member goes on to the bits of one that was not stopped is said in test_fit.py and by
    experiments.interruptions.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    run = tmp_path / "run"
    longer = {"num_steps=20": "num_steps=400", "5": "20"}  # time to stop it; few checkpoints
    options = [longer.get(word, word) for word in SMALL]
    command = [sys.executable, "-m", "dfm_jax", "launch", "local", "--data", str(parts)]
    command += ["--run", str(run), "--experts", "0", "--jobs", "1", *options]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while not (run / "expert_000" / "20").is_dir() and process.poll() is None:
            time.sleep(0.02)
        process.terminate()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert read_summary(run)[0].status == "stopped"
    for _ in range(2):
        again = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        assert again.stdout.count("finished ") >= 1
        assert "1 expert: 25,600 tokens, " in again.stdout  # 400 updates of 4 rows of 16
        assert "There is no dense model in this run" in again.stdout
        assert [(row.status, row.step) for row in read_summary(run)] == [("finished", 400)]
