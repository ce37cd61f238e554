"""Every workload and its peers on this CPU: seconds, memory, growth, and equal results.

    make install-peers
    .venv-peers/bin/python -m experiments.benchmarks --preset standard

The sides are processes that wait for commands. Their forms take turns in blocks of work, A B C A B
C …, so that other load affects all of them. The ratio is that of the medians over blocks; its
interval is a bootstrap over rounds. Everything is measured on one and two processors, with glibc's
allocator as it is and told to keep its buffers. A block takes a few tenths of a second, or one
repetition if that is longer; if rounds are long, there are fewer, but at least three. Peaks of
memory and compared results come from separate processes, whose allocator returns every buffer at
once; they are the same for all rows of a size. Slow workloads are measured only on one processor
with glibc's own allocator, and on two with kept buffers. A run that is stopped goes on, because
every size is kept.

The peers have other random weights if only shapes matter, and their own k-means starts. The auction
of the paper's code is not a package; the study `clustering` measures it.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dfm_jax.checks import require
from experiments.lib import reporting, study
from experiments.systems.benchmarks import report as benchmarks_report
from experiments.systems.benchmarks.account import memory_of, rows_of, summary_of, verdicts_of
from experiments.systems.benchmarks.config import FEWEST, PRESETS, Config, check_config
from experiments.systems.benchmarks.serving import Side
from experiments.systems.benchmarks.workloads import (
    TRAINING,
    WORKLOADS,
    Size,
    Workload,
    inputs,
    size_name,
)
from experiments.systems.training_speed.sides import ALLOCATORS, OURS, SIZES, Plan
from experiments.systems.training_speed.sides import measured as training_measured

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "scipy")
PEERS = ("torch", "flow-matching", "transformers", "faiss-cpu", "k-means-constrained")
_PROG = "python -m experiments.benchmarks"
BLOCK = 0.3  # seconds of work without a pause
SLOW = 5.0  # seconds that are not spent a second time to find out how long a repetition takes
ROUNDS = 4.0  # seconds of one size under one allocator, but for the least number of rounds
CHECKED = 2.0  # seconds of draws that are compared
DRAWS = {"values": 1, "probs": 1000, "objective": 10, "none": 1}  # at most
UNMAPPED = "every buffer unmapped at once"  # so that what is resident is what is alive
_ENVIRONMENTS = ALLOCATORS | {
    UNMAPPED: {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**16)}
}
Tell = Callable[[str, int], dict[str, Any]]


# ── one size of one work ────────────────────────────────────────────────────────────────────────


class Sides:
    """The processes of one workload: ours and the peers', per number of threads and allocator."""

    def __init__(self, workload: Workload, config: Config) -> None:
        self.workload, self.python = workload, config.peers_python
        self.started: dict[tuple[str, int, str], Side] = {}

    def of(self, form: str, threads: int, allocator: str) -> Side:
        """The side that has a form; it is started when it is first needed."""
        own = form in self.workload.forms or form.endswith("(ours)")
        name = OURS if own else "peers"
        key = (name, threads, allocator)
        if key not in self.started:
            program = str(Path(__file__).with_name("torch_side.py"))
            # -P: its own folder, which holds a `statistics`, is not searched for modules.
            command = [self.python, "-P", program, str(threads)]
            if own:
                command = [sys.executable, "-m", "experiments.benchmarks.ours", str(threads)]
            self.started[key] = Side(name, command, threads, _ENVIRONMENTS[allocator])
        return self.started[key]

    def end(self) -> None:
        """End all processes."""
        for side in self.started.values():
            side.end()


def settings(workload: Workload, config: Config) -> list[tuple[int, str]]:
    """Threads and allocators: all pairs; for a slow workload, the first and last of both."""
    pairs = list(itertools.product(config.threads, config.allocators))
    return list(dict.fromkeys((pairs[0], pairs[-1]))) if workload.slow else pairs


def cell(workload: Workload, size: Size, sides: Sides, config: Config) -> dict[str, Any]:
    """All blocks of one size, for every number of threads and allocator; checks and memory."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "inputs.npz")
        np.savez(data, allow_pickle=False, **inputs(workload.name, size, config.seed))
        order = {"workload": workload.name, "size": size, "data": str(data)}
        forms = (*workload.forms, *workload.peers)

        def teller(form: str, threads: int, allocator: str) -> Tell:
            side = sides.of(form, threads, allocator)
            return lambda do, reps: side.told(order | {"do": do, "form": form, "reps": reps})

        for threads, allocator in settings(workload, config):
            told = {form: teller(form, threads, allocator) for form in forms}
            found = run_of(told, config.num_blocks)
            runs.append({"threads": threads, "allocator": allocator, **found})
        shown, peaks = {}, {}
        for form in forms:
            tell = teller(form, config.threads[0], UNMAPPED)
            seconds = np.median(runs[0]["blocks"][form][0]["seconds"])
            draws = min(DRAWS[workload.check], int(CHECKED / seconds))
            shown[form] = tell("check", max(1, draws))["shown"]
            peaks[form] = tell("memory", 1)["peak_mb"]
    return {"size": size_name(size), "shown": shown, "peaks": peaks, "runs": runs}


def run_of(told: Mapping[str, Tell], num_blocks: int) -> dict[str, Any]:
    """Run blocks of every form in turn."""
    once = {form: tell("time", 1)["seconds"][0] for form, tell in told.items()}  # it compiles
    once |= {
        form: tell("time", 1)["seconds"][0] for form, tell in told.items() if once[form] < SLOW
    }
    reps = {form: max(1, min(1000, int(BLOCK / seconds))) for form, seconds in once.items()}
    round_seconds = sum(once[form] * reps[form] for form in told)
    rounds = max(FEWEST, min(num_blocks, int(ROUNDS / round_seconds)))
    blocks: dict[str, list[dict]] = {form: [] for form in told}
    load = os.getloadavg()[0]
    for block in range(rounds):
        forms = list(told)
        turn = block % len(forms)
        for form in (*forms[turn:], *forms[:turn]):
            blocks[form].append(told[form]("time", reps[form]))
    return {"load": load, "blocks": blocks}


def training_cell(config: Config) -> dict[str, Any]:
    """The smallest size of `training_speed`, on two processors, in the form of other cells."""
    threads = min(2, len(os.sched_getaffinity(0)))
    plan = Plan(config.peers_python, ("torch",), threads, max(4, config.num_blocks), config.seed)
    found = training_measured(SIZES[0], plan)
    form_of = {OURS: "clear", "torch": "torch"}
    runs, shown = [], {}
    for allocator in ALLOCATORS:
        sides = [side for side in found["sides"] if side["allocator"] == allocator]
        blocks = {form_of[side["side"]]: side["step"] for side in sides}
        shown = {form_of[side["side"]]: [[side["losses"]]] for side in sides}
        runs.append({"threads": threads, "allocator": allocator, "blocks": blocks})
    return {"size": found["size"], "shown": shown, "peaks": dict.fromkeys(shown), "runs": runs}


# ── the whole ───────────────────────────────────────────────────────────────────────────────────


def measured(config: Config, cells: study.Cells, console: Console) -> list[tuple[Workload, dict]]:
    """All sizes of all workloads, from their files or measured now."""
    found = []
    for workload in (workload for workload in WORKLOADS if workload.name in config.workloads):
        if workload.name == TRAINING:
            console.print(f"{workload.name} …", highlight=False)
            found.append(
                (workload, cells.measured("ar_training_step", lambda: training_cell(config)))
            )
            continue
        sides = Sides(workload, config)
        try:
            for size in workload.sizes if config.preset == "standard" else workload.quick:
                console.print(f"{workload.name}, {size_name(size)} …", highlight=False)
                name = f"{workload.name}, {size_name(size)}".replace(", ", "_").replace(" ", "_")
                one = cells.measured(name, lambda size=size: cell(workload, size, sides, config))  # noqa: B023
                found.append((workload, one))
        finally:
            sides.end()
    return found


def run(config: Config, console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    start = time.perf_counter()
    versions = reporting.installed(PACKAGES) | peer_versions(config.peers_python)
    values = {name: list(getattr(config, name)) for name in ("threads", "allocators")}
    values |= {"num_blocks": config.num_blocks, "seed": config.seed, "versions": versions}
    cells = study.Cells(
        folder=config.out / "cells",
        depends_on=values,
        programs=(
            "experiments.benchmarks",
            "experiments.benchmarks.ours",
            "experiments.benchmarks.torch_side",
        ),
    )
    found = measured(config, cells, console)
    rows = [row for workload, one in found for row in rows_of(workload, one, config.seed)]
    verdicts = verdicts_of(rows)
    picture = benchmarks_report.draw(config.out / "benchmarks.png", rows)
    return reporting.conclude(
        console,
        config,
        versions=versions,
        seeds=[config.seed],
        rows=rows,
        summary={
            "workloads": summary_of(rows),
            "memory": memory_of(rows),
            "allocators": ALLOCATORS,
            "seconds": round(time.perf_counter() - start, 1),
        },
        verdicts=verdicts,
        records=[one | {"workload": w.name} for w, one in found],
        pictures=[picture],
        shown_as={"peers_python": "PYTHON"},
        tables=lambda: benchmarks_report.print_table(console, rows),
    )


def peer_versions(python: str) -> dict[str, str]:
    """The versions of the peers in their environment.

    Raises:
        ValueError: if one of them is missing.
    """
    program = (
        "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    )
    command = [python, "-c", program, *PEERS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    rule, then = f"`peers_python` must be a Python with {', '.join(PEERS)}", f"It said: {last}"
    require(done.returncode == 0, rule, python, then=then)
    return dict(zip(PEERS, done.stdout.split(), strict=True))


main = study.main_of(_PROG, PRESETS, run, check_config)


if __name__ == "__main__":
    sys.exit(main())
