"""Every workload and its peers on this CPU: seconds, memory, growth, and equal results.

    make install-peers
    .venv-peers/bin/python -m experiments.benchmarks --preset standard --before 1b2cef9

The sides are processes that wait for commands. Their forms take turns in blocks of work, A B C A B
C …, so that other load affects all of them. The ratio is that of the medians over blocks; its
interval is a bootstrap over rounds. A size that has an aim is measured on one and two processors,
with glibc's allocator as it is, told to keep its buffers, and as a command of the package starts,
for all rounds. Any other size serves the growth: it is measured on one processor with glibc's own
allocator, in fewer rounds if they are long. Slow workloads are measured on two processors: with an
aim, with kept buffers and as a command starts, and else only as a command starts. A block takes a
few tenths of a second, or one repetition if that is longer. Peaks of memory and compared results
come from separate processes, whose allocator returns every buffer at once; they are the same for
all rows of a size. A run that is stopped goes on, because every size is kept.

With `--before COMMIT`, the build of that commit is a further side, timed by the program that came
with it; its rows stand beside the peers', and their ratio is its time over ours.

Last come our forms alone along several axes, in this process, beside the exponents that a count of
operations gives; `--workloads growth` measures nothing else.

The peers have other random weights if only shapes matter, and their own k-means starts. The auction
of the paper's code is not a package; the study `clustering` measures it.
"""

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.lib import reporting, study
from experiments.lib.builds import Build, unpacked
from experiments.systems.benchmarks import report as benchmarks_report
from experiments.systems.benchmarks.account import (
    before_form,
    memory_of,
    rows_of,
    summary_of,
    verdicts_of,
)
from experiments.systems.benchmarks.config import (
    FEWEST,
    GROWTH,
    PRESETS,
    Config,
    check_config,
)
from experiments.systems.benchmarks.growth import CURVES
from experiments.systems.benchmarks.growth import measured as growth_measured
from experiments.systems.benchmarks.kinds import BEFORE, Size, Workload, size_name
from experiments.systems.benchmarks.serving import KEEP, Side
from experiments.systems.benchmarks.workloads import TRAINING, WORKLOADS, inputs
from experiments.systems.training_speed.sides import (
    ALLOCATORS,
    AS_COMMANDS_START,
    BUFFERS_KEPT,
    DEFAULT,
    OURS,
    SIZES,
    Plan,
)
from experiments.systems.training_speed.sides import Size as Network
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

    def __init__(self, workload: Workload, config: Config, before: Build | None) -> None:
        self.workload, self.python, self.before = workload, config.peers_python, before
        self.started: dict[tuple[str, int, str], Side] = {}

    def of(self, form: str, threads: int, allocator: str) -> Side:
        """The side that has a form; it is started when it is first needed."""
        own = form in self.workload.forms or form.endswith("(ours)")
        earlier = form in map(before_form, self.workload.forms)
        name = OURS if own else BEFORE if earlier else "peers"
        if allocator == AS_COMMANDS_START and not own:
            allocator = DEFAULT  # the same process
        key = (name, threads, allocator)
        if key not in self.started:
            program = str(Path(__file__).with_name("torch_side.py"))
            # -P: its own folder, which holds a `statistics`, is not searched for modules.
            command, folder = [self.python, "-P", program, str(threads)], None
            if own:
                command = [sys.executable, "-m", "experiments.benchmarks.ours", str(threads)]
                command += [KEEP] * (allocator == AS_COMMANDS_START)
            elif earlier:
                assert self.before is not None
                command = self.before.command("benchmarks", str(threads))
                folder = self.before.folder
            self.started[key] = Side(name, command, threads, _ENVIRONMENTS[allocator], folder)
        return self.started[key]

    @property
    def forms(self) -> tuple[str, ...]:
        """All forms that take turns: ours, those of the earlier build, the peers'."""
        earlier = () if self.before is None else before_forms(self.workload)
        return (*self.workload.forms, *earlier, *self.workload.peers)

    def order(self, form: str, size: Size, data: Path) -> dict[str, Any]:
        """What a command says of the work, to the form's side."""
        name = self.workload.name
        if form in before_forms(self.workload):
            name, form = self.workload.before or name, form.removeprefix(before_form(""))
        # "work" is what builds before 0.2 read.
        return {"workload": name, "work": name, "size": size, "data": str(data), "form": form}

    def end(self) -> None:
        """End all processes."""
        for side in self.started.values():
            side.end()
        self.started.clear()


def before_forms(workload: Workload) -> tuple[str, ...]:
    """The forms of the earlier build, if it has the workload."""
    return () if workload.before is None else tuple(map(before_form, workload.forms))


def settings(workload: Workload, size: Size, config: Config) -> list[tuple[int, str]]:
    """Threads and allocators: all pairs where an aim is stated, or one; of a slow workload fewer.

    The one is the first; for a slow workload it is the last, and an aim adds kept buffers.
    """
    pairs = list(itertools.product(config.threads, config.allocators))
    aimed = bool(workload.goals_at(size))
    if not workload.slow:
        return pairs if aimed else pairs[:1]
    kept = [pair for pair in pairs if pair == (config.threads[-1], BUFFERS_KEPT)]
    return list(dict.fromkeys((*(kept if aimed else ()), pairs[-1])))


def cell(workload: Workload, size: Size, sides: Sides, config: Config) -> dict[str, Any]:
    """All blocks of one size, for every number of threads and allocator; checks and memory."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "inputs.npz")
        np.savez(data, allow_pickle=False, **inputs(workload.name, size, config.seed))

        def teller(form: str, threads: int, allocator: str) -> Tell:
            side, order = sides.of(form, threads, allocator), sides.order(form, size, data)
            return lambda do, reps: side.told(order | {"do": do, "reps": reps})

        fewest = config.num_blocks if workload.goals_at(size) else FEWEST
        pairs = settings(workload, size, config)
        once: dict[tuple[int, str], dict[str, float]] = {}
        if not workload.slow:
            for pair in pairs:
                once[pair] = once_of({form: teller(form, *pair) for form in sides.forms})
            pairs = best_settings(once)
        for threads, allocator in pairs:
            told = {form: teller(form, threads, allocator) for form in sides.forms}
            first = once.get((threads, allocator)) or once_of(told)
            found = run_of(told, first, config.num_blocks, fewest)
            runs.append({"threads": threads, "allocator": allocator, **found})
            if workload.slow:
                sides.end()  # its data are large
        shown, peaks = {}, {}
        for form in sides.forms:
            tell = teller(form, config.threads[0], UNMAPPED)
            seconds = np.median(runs[0]["blocks"][form][0]["seconds"])
            draws = min(DRAWS[workload.check], int(CHECKED / seconds))
            shown[form] = tell("check", max(1, draws))["shown"]
            peaks[form] = tell("memory", 1)["peak_mb"]
    return {"size": size_name(size), "shown": shown, "peaks": peaks, "runs": runs}


def once_of(told: Mapping[str, Tell]) -> dict[str, float]:
    """The seconds of a repetition of every form, the median of a short block, once compiled."""
    once = {form: tell("time", 1)["seconds"][0] for form, tell in told.items()}
    for _ in range(2):  # the first was compiling, so it cannot say how many make a block
        reps = {form: _repetitions(seconds) for form, seconds in once.items() if seconds < SLOW}
        once |= {
            form: float(np.median(told[form]("time", n)["seconds"])) for form, n in reps.items()
        }
    return once


def _repetitions(seconds: float) -> int:
    return max(1, min(1000, int(BLOCK / seconds)))


def best_settings(once: Mapping[tuple[int, str], Mapping[str, float]]) -> list[tuple[int, str]]:
    """The first pair, and each at which a form was at its best: only they are measured in turns.

    A pair that is slower for every form decides no ratio of both sides at their best.
    """
    pairs = list(once)
    best = {min(pairs, key=lambda pair: once[pair][form]) for form in once[pairs[0]]}
    return [pair for pair in pairs if pair == pairs[0] or pair in best]


def run_of(
    told: Mapping[str, Tell], once: Mapping[str, float], num_blocks: int, fewest: int
) -> dict[str, Any]:
    """Run blocks of every form in turn, each of as many repetitions as its seconds allow."""
    reps = {form: _repetitions(seconds) for form, seconds in once.items()}
    round_seconds = sum(once[form] * reps[form] for form in told)
    rounds = max(fewest, min(num_blocks, int(ROUNDS / round_seconds)))
    blocks: dict[str, list[dict]] = {form: [] for form in told}
    load = os.getloadavg()[0]
    for block in range(rounds):
        forms = list(told)
        turn = block % len(forms)
        for form in (*forms[turn:], *forms[:turn]):
            blocks[form].append(told[form]("time", reps[form]))
    return {"load": load, "blocks": blocks}


def training_cell(size: Network, config: Config, before: Build | None) -> dict[str, Any]:
    """A size of `training_speed`, on two processors, in the form of other cells."""
    threads = min(2, len(os.sched_getaffinity(0)))
    blocks = max(4, config.num_blocks)
    plan = Plan(config.peers_python, ("torch",), threads, blocks, config.seed, before)
    found = training_measured(size, plan, phases=())
    form_of = {OURS: "clear", BEFORE: before_form("clear"), "torch": "torch"}
    runs, shown = [], {}
    for allocator in ALLOCATORS:
        sides = [side for side in found["sides"] if side["allocator"] == allocator]
        blocks = {form_of[side["side"]]: side["step"] for side in sides}
        shown = {form_of[side["side"]]: [[side["losses"]]] for side in sides}
        runs.append({"threads": threads, "allocator": allocator, "blocks": blocks})
    return {"size": found["size"], "shown": shown, "peaks": dict.fromkeys(shown), "runs": runs}


# ── the whole ───────────────────────────────────────────────────────────────────────────────────


def measured(
    config: Config, cells: study.Cells, console: Console, before: Build | None
) -> list[tuple[Workload, dict]]:
    """All sizes of all workloads, from their files or measured now."""
    found, whole = [], config.preset == "standard"
    for workload in (workload for workload in WORKLOADS if workload.name in config.workloads):
        if workload.name == TRAINING:
            for network in SIZES if whole else SIZES[:1]:
                console.print(f"{workload.name}, {network.name} …", highlight=False)
                name = f"ar_training_step_{SIZES.index(network)}"
                one = cells.measured(name, lambda n=network: training_cell(n, config, before))
                found.append((workload, one))
            continue
        sides = Sides(workload, config, before)
        try:
            for size in workload.sizes if whole else workload.quick:
                console.print(f"{workload.name}, {size_name(size)} …", highlight=False)
                name = f"{workload.name}, {size_name(size)}".replace(", ", "_").replace(" ", "_")
                one = cells.measured(name, lambda size=size: cell(workload, size, sides, config))  # noqa: B023
                found.append((workload, one))
        finally:
            sides.end()
    return found


def grown(config: Config, cells: study.Cells, console: Console) -> list[dict[str, Any]]:
    """Every curve of `growth`, from its file or measured now; `quick` has the first."""
    found = []
    if GROWTH in config.workloads:
        for curve in CURVES if config.preset == "standard" else CURVES[:1]:
            console.print(f"{GROWTH}: {curve.workload}, {curve.axis} …", highlight=False)
            measure = partial(growth_measured, curve, config.seed)
            found.append(cells.measured(curve.name, measure))
    return found


def run(config: Config, console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    start = time.perf_counter()
    versions = reporting.installed(PACKAGES) | reporting.installed_in(config.peers_python, PEERS)
    values = {name: list(getattr(config, name)) for name in ("threads", "allocators")}
    values |= {"num_blocks": config.num_blocks, "seed": config.seed, "versions": versions}
    with unpacked(config.before) as before:
        commit = None if before is None else before.commit
        return _run(config, console, before, versions, values | {"before": commit}, start)


def _run(
    config: Config,
    console: Console,
    before: Build | None,
    versions: dict[str, str],
    values: dict[str, Any],
    start: float,
) -> bool:
    cells = study.Cells(
        folder=config.out / "cells",
        depends_on=values,
        programs=(
            "experiments.benchmarks",
            "experiments.benchmarks.ours",
            "experiments.benchmarks.torch_side",
        ),
    )
    found = measured(config, cells, console, before)
    growth = grown(config, cells, console)
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
            "growth": growth,
            "allocators": ALLOCATORS,
            "before": values["before"],
            "seconds": round(time.perf_counter() - start, 1),
        },
        verdicts=verdicts,
        records=[one | {"workload": w.name} for w, one in found],
        pictures=[picture],
        shown_as={"peers_python": "PYTHON"},
        tables=lambda: benchmarks_report.print_table(console, rows, growth),
    )


main = study.main_of(_PROG, PRESETS, run, check_config)


if __name__ == "__main__":
    sys.exit(main())
