"""Four experts by `launch local`, one of them killed again and again: the others do not notice.

    python -m experiments.launching --preset standard

The same launch runs three times, with all four experts at the same time. In the second launch one
expert is killed with SIGKILL at random moments, each time after a newer checkpoint. Then the study
compares every leaf of every expert's last checkpoint by its SHA-256, and the seconds that the other
experts took; the first and third launches show how far these differ without kills.
"""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dfm_jax.launch import Job, Row, run_jobs, summary_text, train_jobs
from dfm_jax.training.checkpoint import checkpoint_steps, read_record
from experiments.lib import reporting, study
from experiments.lib.corpora import write_texts
from experiments.lib.reporting import Verdict
from experiments.systems.launching.config import PRESETS, Config, check_config

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint")
_PROG = "python -m experiments.launching"
_POLL = 0.005  # seconds
_EXPERTS, _VICTIM = 4, 2
_OTHERS = [k for k in range(_EXPERTS) if k != _VICTIM]
_SLOWER = 1.25  # what a launch may take more than another on a machine that others use too


def write_parts(folder: Path) -> None:
    """Forty short documents, assigned to the experts."""
    write_texts(folder / "all")
    for number, path in enumerate(sorted((folder / "all").iterdir())):
        part = folder / f"expert_{number % _EXPERTS:03d}"
        part.mkdir(exist_ok=True)
        path.rename(part / path.name)


def jobs_of(config: Config, run: Path) -> list[Job]:
    """A `train` command for each expert."""
    fields = {
        "model.width": config.width,
        "model.num_layers": 1,
        "model.ffn_width": 2 * config.width,
        "num_steps": config.num_steps,
        "num_positions": 32,
        "batch_size": 4,
        "held_out": 0,
    }
    options = ["--config", "tiny", "--save-every", str(config.save_every)]
    options += ["--set", *(f"{name}={value}" for name, value in fields.items())]
    parts = config.out / "parts"
    return train_jobs(parts, run, options, experts=range(_EXPERTS))


class Killer(threading.Thread):
    """Kills the process that holds a member's folder, each time after another checkpoint."""

    def __init__(self, job: Job, config: Config, random: np.random.Generator) -> None:
        super().__init__(daemon=True)
        self.job, self.rows = job, list[dict[str, Any]]()
        saves = np.arange(1, config.num_steps // config.save_every - 2) * config.save_every
        self.targets = np.sort(random.choice(saves, size=config.kills, replace=False)).tolist()
        self.delays = random.uniform(0, 0.2, size=config.kills).tolist()

    def run(self) -> None:
        """Kill several times; end with the last kill, or with the process of the launcher."""
        for number, (target, delay) in enumerate(zip(self.targets, self.delays, strict=True)):
            while self.job.step < target or (process := holder(self.job)) is None:
                time.sleep(_POLL)
            time.sleep(delay)
            before = self.job.step
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                return  # it has finished: a kill less, and the verdict says so
            while holder(self.job) == process:
                time.sleep(_POLL)
            left = [path.name for path in self.job.folder.glob("*.*ing")]
            self.rows.append({"kill": number + 1, "step": before, "left_unfinished": left})


def holder(job: Job) -> int | None:
    """The process of a job: a child process with the words of its command."""
    words = "\0".join(job.arguments).encode()
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    for number in {n for path in children for n in path.read_text().split()}:
        try:
            if words in Path(f"/proc/{number}/cmdline").read_bytes():
                return int(number)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


def launched(config: Config, run: Path) -> list[Row]:
    """Launch all four at once, with all output in the logs."""
    jobs = jobs_of(config, run)
    return run_jobs(jobs, run, at_once=_EXPERTS, say=lambda text: None)


def differing(config: Config, one: Path, other: Path) -> list[int]:
    """The number of leaves in which two finished runs differ, for each expert."""
    counts = []
    for here, there in zip(jobs_of(config, one), jobs_of(config, other), strict=True):
        paths = (job.folder / str(config.num_steps) for job in (here, there))
        a, b = (read_record(path).leaves for path in paths)
        counts.append(sum(a.get(name) != b.get(name) for name in {*a, *b}))
    return counts


def verdicts_of(
    config: Config,
    kills: int,
    leaves: Sequence[int],
    step_before: int,
    attempts: Sequence[int],
    ratio: float,
) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here."""
    changed, most = sum(leaves[k] for k in _OTHERS), max(attempts[k] for k in _OTHERS)
    return (
        Verdict("kills of one expert", "launch", kills, "≥", config.kills),
        Verdict("its attempts", "launch", attempts[_VICTIM], "≥", config.kills + 1),
        Verdict("its leaves that differ", "launch", leaves[_VICTIM], "≤", 0),
        Verdict("the others' leaves that differ", "launch", changed, "≤", 0),
        Verdict("the others' attempts", "launch", most, "≤", 1),
        Verdict("the others' seconds, over those without kills", "launch", ratio, "≤", _SLOWER),
        Verdict("falsifier: leaves that the last few steps change", "launch", step_before, "≥", 1),
    )


def run(config: Config, console: Console) -> bool:
    """Run the whole study: files into `config.out`; return whether every claim holds."""
    check_config(config)
    for name in ("parts", "first", "killed", "last"):
        shutil.rmtree(config.out / name, ignore_errors=True)
    write_parts(config.out / "parts")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    first, killed, last = (config.out / name for name in ("first", "killed", "last"))
    rows = {"first": launched(config, first)}
    victim = jobs_of(config, killed)[_VICTIM]
    killer = Killer(victim, config, np.random.default_rng(config.seed))
    killer.start()
    rows |= {"killed": launched(config, killed), "last": launched(config, last)}
    leaves, twice = differing(config, first, killed), differing(config, first, last)
    seconds = {name: sum(rows[name][k].seconds for k in _OTHERS) / len(_OTHERS) for name in rows}
    ratio = 2 * seconds["killed"] / (seconds["first"] + seconds["last"])
    a, b = (
        read_record(victim.folder / str(s)).leaves for s in checkpoint_steps(victim.folder)[-2:]
    )
    changed = sum(a[name] != b[name] for name in a)
    attempts = [row.attempts for row in rows["killed"]]
    verdicts = verdicts_of(config, len(killer.rows), leaves, changed, attempts, ratio)
    launches = [{"launch": name, **row._asdict()} for name in rows for row in rows[name]]
    return reporting.conclude(
        console,
        config,
        versions=reporting.installed(PACKAGES),
        seeds=[config.seed],
        rows=[*killer.rows, *launches],
        summary={
            "kills": len(killer.rows),
            "killed_while_writing": sum(bool(row["left_unfinished"]) for row in killer.rows),
            "of_leaves": len(a),
            "differing_leaves_of_the_killed": leaves[_VICTIM],
            "differing_leaves_of_the_others": sum(leaves) - leaves[_VICTIM],
            "differing_leaves_without_kills": sum(twice),
            "seconds_of_the_others": {name: round(value, 2) for name, value in seconds.items()},
            "ratio_without_kills": round(seconds["last"] / seconds["first"], 4),
            "ratio": round(ratio, 4),
        },
        verdicts=verdicts,
        records=[*killer.rows, *launches],
        tables=lambda: console.print(summary_text(rows["killed"]), highlight=False),
    )


def main(args: Sequence[str] | None = None) -> int:
    """0 if every claim holds, 1 if one fails, 2 for input that cannot be used, 130 if stopped."""
    config = study.parsed(PRESETS, _PROG, args)
    return study.exit_status(_PROG, lambda: run(config, Console()))


if __name__ == "__main__":
    sys.exit(main())
