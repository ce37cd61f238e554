"""What a user waits for: an earlier build and this one, in turns, each in processes of its own.

    python -m experiments.waiting --preset standard

The earlier build is a commit of this repository, unpacked into a temporary folder; the same Python
runs both. The long commands are those of `make compare`, with a new compilation cache in each
round: first `verify`, then three quick studies, which this build runs two at a time. A row has the
seconds that pass, the seconds of all processors, and the largest memory of one process. Linux
counts that from the fork on: a command that takes less shows this study's own memory, 230 MiB.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from experiments.lib import reporting, study
from experiments.lib.builds import CHECKOUT, unpacked
from experiments.lib.reporting import Verdict
from experiments.systems.waiting.config import PRESETS, Config, check_config

PACKAGES = ("jax", "jaxlib", "numpy", "tyro")
NOW, BEFORE = "now", "before"
SHORT: dict[str, tuple[str, ...]] = {
    "import dfm_jax": ("-c", "import dfm_jax"),
    "import dfm_jax.mixture": ("-c", "import dfm_jax.mixture"),
    "--help": ("-m", "dfm_jax", "--help"),
    "train --help": ("-m", "dfm_jax", "train", "--help"),
    "doctor": ("-m", "dfm_jax", "doctor"),
}
VERIFY = ("-m", "dfm_jax", "verify")
STUDIES = ("equality", "counting", "language")
TOGETHER = {NOW: 2, BEFORE: 1}  # studies at a time, as the Makefiles of both builds run them
_PROG = "python -m experiments.waiting"
# The aims, met at 95 %: 24 s of 71 s, and 90 s of 180 s.
_AIMS = {"verify": 24 / 71 / 0.95, "make compare": 90 / 180 / 0.95}
_NO_SLOWER = 1.1


class Cost(NamedTuple):
    """What a command took."""

    seconds: float
    processor_seconds: float
    peak_bytes: int
    status: int


def cost_of(words: Sequence[str], tree: Path, variables: Mapping[str, str]) -> Cost:
    """Run Python in a tree with these words, and say what the process and its children took."""
    environment = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    if "JAX_COMPILATION_CACHE_DIR" not in variables:
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=tree,
        env=environment | dict(variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _, status, used = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return Cost(
        time.perf_counter() - began,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss * 1024,
        process.returncode,
    )


def compare_costs(tree: Path, together: int, scratch: Path) -> dict[str, Cost]:
    """The costs of `verify`, of each quick study, and of `make compare`, which is all of them."""
    variables = {
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    began = time.perf_counter()
    costs = {"verify": cost_of(VERIFY, tree, variables)}

    def study_cost(name: str) -> Cost:
        words = ("-m", f"experiments.{name}", "--preset", "quick", "--out", str(scratch / name))
        return cost_of(words, tree, variables)

    with ThreadPoolExecutor(together) as pool:
        costs |= dict(zip(STUDIES, pool.map(study_cost, STUDIES), strict=True))
    seconds = time.perf_counter() - began
    return costs | {
        "make compare": Cost(
            seconds,
            sum(one.processor_seconds for one in costs.values()),
            max(one.peak_bytes for one in costs.values()),
            max(abs(one.status) for one in costs.values()),
        )
    }


def measured(config: Config, trees: Mapping[str, Path]) -> list[dict[str, Any]]:
    """A row for each command, round and build; the builds take turns."""
    rows: list[dict[str, Any]] = []

    def add(number: int, build: str, costs: Mapping[str, Cost]) -> None:
        rows.extend(
            {"command": name, "round": number, "build": build} | cost._asdict()
            for name, cost in costs.items()
        )

    for name, words in SHORT.items():  # the first run reads the files from the disk
        for number in range(-1, config.short_rounds):
            for build, tree in trees.items():
                cost = cost_of(words, tree, {})
                if number >= 0:
                    add(number, build, {name: cost})
    for number in range(config.long_rounds):
        for build, tree in trees.items():
            with tempfile.TemporaryDirectory() as scratch:
                add(number, build, compare_costs(tree, TOGETHER[build], Path(scratch)))
    return rows


def medians_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each command and build: medians over the rounds, and the ratio of their seconds."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["command"], row["build"]), []).append(row)
    medians = {
        (command, build): {
            "command": command,
            "build": build,
            "rounds": len(some),
            "seconds": statistics.median(one["seconds"] for one in some),
            "processor_seconds": statistics.median(one["processor_seconds"] for one in some),
            "peak_bytes": statistics.median(one["peak_bytes"] for one in some),
            "failed": sum(one["status"] != 0 for one in some),
        }
        for (command, build), some in found.items()
    }
    for (command, _), row in medians.items():
        before = medians.get((command, BEFORE))
        row["before_over_this"] = before["seconds"] / row["seconds"] if before else None
    return list(medians.values())


def verdicts_of(medians: Sequence[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here."""
    failed = sum(row["failed"] for row in medians if row["build"] == NOW)
    claims = [Verdict("commands of this build that failed", "all", failed, "≤", 0)]
    for row in medians:
        if row["build"] == NOW and row["before_over_this"] is not None:
            bound = _AIMS.get(row["command"], _NO_SLOWER)
            name, ratio = row["command"], 1 / row["before_over_this"]
            claims.append(Verdict("seconds over the earlier build's", name, ratio, "≤", bound))
    return tuple(claims)


def show(console: Console, medians: Sequence[Mapping[str, Any]]) -> None:
    """Print the medians."""
    table = Table(title="What a user waits for, medians")
    for name in ("command", "build", "rounds", "seconds", "of processors", "MiB", "before / this"):
        table.add_column(name, justify="left" if name in ("command", "build") else "right")
    for row in medians:
        ratio = row["before_over_this"]
        table.add_row(
            row["command"],
            row["build"],
            str(row["rounds"]),
            f"{row['seconds']:.2f}",
            f"{row['processor_seconds']:.2f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
            "" if ratio is None else f"{ratio:.2f}",
        )
    console.print(table)


def draw(medians: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw the seconds of every command, on a logarithmic axis, one bar for each build."""
    commands = list(dict.fromkeys(row["command"] for row in medians))
    figure = Figure(figsize=(7, 0.6 + 0.45 * len(commands)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for build, color, shift in ((BEFORE, "#999999", 0.2), (NOW, "#0072B2", -0.2)):
        rows = [row for row in medians if row["build"] == build]
        if rows:
            places = [len(commands) - commands.index(row["command"]) + shift for row in rows]
            seconds = [row["seconds"] for row in rows]
            axes.barh(places, seconds, height=0.38, color=color, label=build)
    axes.set_yticks(range(len(commands), 0, -1), commands)
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    axes.legend()
    figure.savefig(path, dpi=120)
    return path


def run(config: Config, console: Console) -> bool:
    """Run the whole study: files into `config.out`; return whether every claim holds."""
    with unpacked(config.before) as before:  # it goes first in each round
        earlier = {} if before is None else {BEFORE: before.folder}
        rows = measured(config, earlier | {NOW: CHECKOUT})
    medians = medians_of(rows)
    return reporting.conclude(
        console,
        config,
        versions=reporting.installed(PACKAGES),
        seeds=[0],
        rows=medians,
        records=rows,
        summary={
            "processors": len(os.sched_getaffinity(0)),
            "before": None if before is None else before.commit,
        },
        verdicts=verdicts_of(medians),
        pictures=[draw(medians, config.out / "waiting.png")],
        tables=partial(show, console, medians),
    )


main = study.main_of(_PROG, PRESETS, run, check_config)

if __name__ == "__main__":
    raise SystemExit(main())
