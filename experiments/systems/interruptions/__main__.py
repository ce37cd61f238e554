"""A run that is killed again and again ends with the same bits; a flipped bit is never loaded.

    python -m experiments.interruptions --preset standard

`python -m dfm_jax train` runs once without kills. Then the same command is killed with SIGKILL and
given again, as often as the config says, until it runs to its end. A kill comes at a random moment
between two checkpoints; one in four comes while the command still starts. Then single bits of the
last checkpoint are flipped, each at a random place of a random file.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import dfm_jax
from dfm_jax.training.checkpoint import checkpoint_steps, read_record
from dfm_jax.training.config import config_digest
from dfm_jax.training.digests import CheckpointError
from dfm_jax.training.metrics import read_metrics
from experiments.lib import reporting, study
from experiments.lib.corpora import write_texts
from experiments.lib.reporting import Verdict
from experiments.systems.interruptions.config import PRESETS, Config, check_config

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint")
_PROG = "python -m experiments.interruptions"
_POLL = 0.002  # seconds


def command(config: Config, run: Path) -> list[str]:
    """The command that is killed and given again."""
    fields = {
        "model.width": config.width,
        "model.num_layers": 1,
        "model.ffn_width": 2 * config.width,
        "num_steps": config.num_steps,
        "num_positions": 32,
        "batch_size": 4,
        "ema_decay": 0.9,
    }
    changes = [f"{name}={value}" for name, value in fields.items()]
    return [
        *(
            sys.executable,
            "-m",
            "dfm_jax",
            "train",
            "--config",
            "tiny",
            "--run",
            str(run.absolute()),
        ),
        *("--data", str((config.out / "texts").absolute()), "--set", *changes, "--log-every", "1"),
        *("--save-every", str(config.save_every), "--evaluate-every", str(10 * config.save_every)),
    ]


def begun(config: Config, run: Path) -> "subprocess.Popen[str]":
    """Start the command as a separate process, and keep its output."""
    cache = {  # what one process has compiled the next one need not
        "JAX_COMPILATION_CACHE_DIR": str((config.out / "cache").absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(
        command(config, run),
        cwd=Path(dfm_jax.__file__).parents[1],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | cache,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> str:
    """The output of a process, which must have succeeded.

    Raises:
        RuntimeError: if it did not succeed; the message has its output.
    """
    text, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"The run has ended with status {process.returncode}: {text}")
    return text


def undisturbed(config: Config, run: Path) -> dict[str, float]:
    """Run once to the end: seconds until the first checkpoint, and from one to the next."""
    start = time.perf_counter()
    process, first = begun(config, run), None
    while process.poll() is None:
        if first is None and checkpoint_steps(run / "dense"):
            first = time.perf_counter()
        time.sleep(_POLL)
    ended(process)
    if first is None:
        raise RuntimeError(f"{run}: no checkpoint was seen while the run was going on.")
    between = (time.perf_counter() - first) / (config.num_steps / config.save_every)
    return {"until_first": first - start, "between": between}


def killed(
    config: Config, run: Path, seconds: Mapping[str, float], random: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Kill and start again; one row for each kill, with its moment and what it left."""
    member, last = run / "dense", config.num_steps - 2 * config.save_every
    saves = np.arange(config.save_every, last + 1, config.save_every)
    early = np.arange(config.kills) % 4 == 3
    targets = np.sort(random.choice(saves, size=int((~early).sum()), replace=False))
    at = iter(targets.tolist())
    for number in range(config.kills):
        after = _last(member)
        target = 0 if early[number] else next(at)
        unit = "until_first" if early[number] else "between"
        delay = float(random.uniform(0, seconds[unit]))
        process = begun(config, run)
        while _last(member) < target and process.poll() is None:
            time.sleep(_POLL)
        try:
            process.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            process.kill()
        ended_with = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        left = sorted(path.name for path in member.glob("*.*ing")) if member.is_dir() else []
        yield {
            "kill": number + 1,
            "phase": "starting" if _last(member) == after else "training",
            "from_step": after,
            "last_saved": _last(member),
            "seconds_after_that": round(delay, 3),
            "left_unfinished": left,
            "status": ended_with,
        }


def differences(config: Config, one: Path, other: Path) -> dict[str, int]:
    """The number of leaves, and of lines of the logs, in which two finished runs differ."""
    step = str(config.num_steps)
    a, b = (read_record(run / "dense" / step).leaves for run in (one, other))
    logs = [
        [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_metrics(path)]
        for path in (one / "dense" / "metrics.jsonl", other / "dense" / "metrics.jsonl")
    ]
    shared = sum(x == y for x, y in zip(*logs, strict=False))
    return {
        "leaves": sum(a.get(name) != b.get(name) for name in {*a, *b}),
        "of_leaves": len(a),
        "lines": max(map(len, logs)) - shared,
        "of_lines": len(logs[0]),
    }


def flipped(folder: Path, flips: int, random: np.random.Generator) -> Iterator[dict[str, Any]]:
    """One bit of a checkpoint at a time; a row for each, and whether it was refused."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = np.array([path.stat().st_size for path in files])
    for number in range(flips):
        path = files[random.choice(len(files), p=sizes / sizes.sum())]
        good = path.read_bytes()
        byte, bit = int(random.integers(len(good))), int(random.integers(8))
        bad = bytearray(good)
        bad[byte] ^= 1 << bit
        path.write_bytes(bytes(bad))
        try:
            read_record(folder)
            refusal = None
        except CheckpointError as error:
            refusal = str(error).removeprefix(f"{folder}: ")
        path.write_bytes(good)
        name = path.relative_to(folder).as_posix()
        yield {"flip": number + 1, "file": name, "byte": byte, "bit": bit, "refusal": refusal}


def verdicts_of(
    config: Config,
    kills: Sequence[Mapping[str, Any]],
    twice: Mapping[str, int],
    end: Mapping[str, int],
    step_before: int,
    flips: Sequence[Mapping[str, Any]],
) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here."""
    died = sum(row["status"] == -9 for row in kills)
    refused = sum(row["refusal"] is not None for row in flips)
    return (
        Verdict("leaves in which two undisturbed runs differ", "restart", twice["leaves"], "≤", 0),
        Verdict("runs that died of SIGKILL", "restart", died, "≥", config.kills),
        Verdict("leaves that differ from the undisturbed run", "restart", end["leaves"], "≤", 0),
        Verdict("lines of the log that differ from it", "restart", end["lines"], "≤", 0),
        Verdict("falsifier: leaves that the last few steps change", "restart", step_before, "≥", 1),
        Verdict("flipped bits that were refused", "integrity", refused, "≥", config.flips),
    )


def run(config: Config, console: Console) -> bool:
    """Run the whole study: files into `config.out`; return whether every claim holds."""
    check_config(config)
    start, random = time.perf_counter(), np.random.default_rng(config.seed)
    for name in ("texts", "first", "whole", "killed"):
        shutil.rmtree(config.out / name, ignore_errors=True)
    write_texts(config.out / "texts")
    whole, other = config.out / "whole", config.out / "killed"
    seconds = undisturbed(config, whole)
    first = whole
    if config.control:  # what the first compiled the second finds, as those do that are killed
        first = config.out / "first"
        whole.rename(first)
        seconds = undisturbed(config, whole)
    kills = []
    for row in killed(config, other, seconds, random):
        kills.append(row)
        console.print(f"kill {row['kill']} of {config.kills}: {row['phase']}, {row['last_saved']}")
    ended(begun(config, other))
    end, twice = (differences(config, whole, run) for run in (other, first))
    last_two = checkpoint_steps(whole / "dense")[-2:]
    a, b = (read_record(whole / "dense" / str(step)).leaves for step in last_two)
    flips = list(flipped(other / "dense" / str(config.num_steps), config.flips, random))
    changed = sum(a[name] != b[name] for name in a)
    verdicts = verdicts_of(config, kills, twice, end, changed, flips)
    return reporting.conclude(
        console,
        config,
        versions=reporting.installed(PACKAGES),
        seeds=[config.seed],
        rows=[*kills, *flips],
        summary={
            "end": end,
            "sha256_of_leaves": config_digest(b),
            "seconds_to_first_checkpoint": round(seconds["until_first"], 2),
            "seconds_between_checkpoints": round(seconds["between"], 4),
            "killed_while_writing": sum(
                row["phase"] == "training" and bool(row["left_unfinished"]) for row in kills
            ),
            "seconds": round(time.perf_counter() - start, 1),
        },
        verdicts=verdicts,
        records=[*kills, *flips],
        tables=lambda: print_kills(console, kills),
    )


def print_kills(console: Console, kills: Sequence[Mapping[str, Any]]) -> None:
    """A line for each kill."""
    columns = ("kill", "phase", "from_step", "last_saved", "seconds_after_that", "left_unfinished")
    table = Table(*(name.replace("_", " ") for name in columns), title="Kills")
    for row in kills:
        table.add_row(*(", ".join(v) if isinstance(v := row[c], list) else str(v) for c in columns))
    console.print(table)


def main(args: Sequence[str] | None = None) -> int:
    """0 if every claim holds, 1 if one fails, 2 for input that cannot be used, 130 if stopped."""
    config = study.parsed(PRESETS, _PROG, args)
    return study.exit_status(_PROG, lambda: run(config, Console()))


def _last(member: Path) -> int:
    return max(checkpoint_steps(member), default=0)


if __name__ == "__main__":
    sys.exit(main())
