"""Training steps and greedy answers of a LLaVA: here, in a plain first version, in transformers.

    make install-peers
    .venv-peers/bin/python -m experiments.multimodal_speed --preset standard

All sides start from the same Hugging Face folder, and each is a process of its own that waits for
commands. First their losses and their answers are compared. Then they take turns, A B C A B C …, a
batch each, so that other load on the machine affects all of them. The ratio is that of the medians
over rounds; its interval is a bootstrap over rounds.

Our side is what `train` and `answer` do: `training.fit.make_run`, `training.answering`. The plain
first version is `plain`: one row as its equations say, `jax.vmap`, `jax.jit`, a `jax.lax.scan` over
a cache. The peer is `LlavaForConditionalGeneration`, with fused AdamW and `generate`; its rows are
padded to the longest of their batch. Pixels lie in memory for all of them.

Peaks of memory come from separate processes, whose allocator returns every buffer at once. A peak
is what a step or a batch of answers takes beyond what is alive between two of them: parameters, and
in training the moments of Adam.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dfm_jax.models.multimodal import num_multimodal_parameters
from experiments.lib import reporting, study
from experiments.lib.reporting import Verdict
from experiments.systems.benchmarks.serving import KEEP, Side
from experiments.systems.multimodal_speed import report as multimodal_speed_report
from experiments.systems.multimodal_speed.config import (
    ATTENTION,
    PRESETS,
    Config,
    check_config,
    size_of,
)
from experiments.systems.multimodal_speed.work import (
    ANSWERS,
    FIRST,
    STEP,
    Size,
    data_file,
    write_work,
)
from experiments.systems.training_speed.sides import ALLOCATORS, AS_COMMANDS_START, OURS
from experiments.systems.training_speed.times import block_times, ratio

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax")
PEERS = ("torch", "transformers")
_PROG = "python -m experiments.multimodal_speed"
UNMAPPED = "every buffer unmapped at once"  # so that what is resident is what is alive
_ENVIRONMENTS = ALLOCATORS | {
    UNMAPPED: {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**16)}
}
FIRST_STEPS = 3  # whose losses are compared
AGREE = 1e-4  # nats per token, over the first steps: all sides do the same work
# The time of the faster transformers over ours, and that of the first version, as commands start.
AIMS = {STEP: (0.75, 1.5), ANSWERS: (1.2, 1.5)}
_AIMED_SIZE = "28M"
Rounds = dict[str, list[dict[str, Any]]]


# ── sides ───────────────────────────────────────────────────────────────────────────────────────


def peer_name(attention: str) -> str:
    """The name of a peer's side."""
    return f"transformers, {attention}"


def forms_of(config: Config) -> tuple[str, ...]:
    """The names of all sides."""
    return (OURS, FIRST, *map(peer_name, config.attention))


def side_of(form: str, allocator: str, folder: Path, config: Config) -> Side:
    """The process of a side."""
    if form in (OURS, FIRST):
        command = [sys.executable, "-m", "experiments.multimodal_speed.ours", str(folder), form]
        command += [KEEP] * (form == OURS and allocator == AS_COMMANDS_START)
    else:
        program = str(Path(__file__).with_name("torch_side.py"))
        (attention,) = (name for name in ATTENTION if peer_name(name) == form)
        # -P: its own folder is not searched for modules.
        command = [config.peers_python, "-P", program, str(folder), attention]
        command += [str(config.num_threads)]
    return Side(form, command, config.num_threads, _ENVIRONMENTS[allocator])


class Sides:
    """All sides of one allocator, which take orders."""

    def __init__(self, sides: Mapping[str, Side], size: Size, folder: Path) -> None:
        self.sides, self.size, self.folder = sides, size, folder

    def told(self, form: str, workload: str, do: str, reps: int) -> dict[str, Any]:
        """The answer of one side to one order."""
        own = form.removeprefix(peer_name(""))
        sizes = {"batch": self.size.batch_size, "new": self.size.new}
        data = str(data_file(self.folder, workload))
        order = {"do": do, "reps": reps, "form": own, "workload": workload, "size": sizes}
        return self.sides[form].told({**order, "data": data})


@contextmanager
def started(allocator: str, folder: Path, config: Config) -> Iterator[Sides]:
    """All sides as processes, which end with the context."""
    with ExitStack() as stack:
        sides = {}
        for form in forms_of(config):
            sides[form] = side_of(form, allocator, folder, config)
            stack.callback(sides[form].end)
        yield Sides(sides, size_of(config), folder)


# ── measurements ────────────────────────────────────────────────────────────────────────────────


def measured(
    folder: Path, config: Config, cells: study.Cells, console: Console
) -> list[dict[str, Any]]:
    """Of each workload: results and peaks of every side, and its blocks with each allocator."""
    found = []
    for workload in config.workloads:
        runs = []
        for allocator in config.allocators:
            console.print(f"{workload}, {allocator} …", highlight=False)
            time_it = partial(timed, workload, allocator, folder, config)
            runs.append(cells.measured(f"{workload}, {allocator}", time_it))
        peaks = {}
        if config.memory:
            console.print(f"{workload}, memory …", highlight=False)
            peaks = cells.measured(
                f"{workload}, memory", partial(peaks_of, workload, folder, config)
            )
        found.append({"workload": workload, "peaks": peaks, "runs": runs})
    return found


def timed(workload: str, allocator: str, folder: Path, config: Config) -> dict[str, Any]:
    """The results of every side, then its blocks."""
    with started(allocator, folder, config) as sides:
        shown = results(workload, sides, config)
        load = os.getloadavg()[0]
        blocks = rounds(workload, sides, config)
    return {"allocator": allocator, "load": load, "shown": shown, "blocks": blocks}


def results(workload: str, sides: Sides, config: Config) -> dict[str, Any]:
    """The first losses of every side, or all answers; this also compiles."""
    size = size_of(config)
    reps = size.num_rows // size.batch_size if workload == ANSWERS else FIRST_STEPS
    forms = forms_of(config)
    return {form: sides.told(form, workload, "check", reps)["shown"] for form in forms}


def rounds(workload: str, sides: Sides, config: Config) -> Rounds:
    """The seconds of a batch, side after side; all sides take the same batch in a round."""
    forms = forms_of(config)
    blocks: Rounds = {form: [] for form in forms}
    for block in range(config.num_blocks):
        turn = block % len(forms)
        for form in (*forms[turn:], *forms[:turn]):
            blocks[form].append(sides.told(form, workload, "time", 1))
    return blocks


def peaks_of(workload: str, folder: Path, config: Config) -> dict[str, float | None]:
    """The peak of every side in MB; the first batches compile and make the moments."""
    found = {}
    with started(UNMAPPED, folder, config) as sides:
        for form in forms_of(config):
            sides.told(form, workload, "time", 2)
            found[form] = sides.told(form, workload, "memory", 1)["peak_mb"]
    return found


# ── what follows from them ──────────────────────────────────────────────────────────────────────


def rows_of(found: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """A row for each allocator and each side but ours, from the data of one workload."""
    rows, peaks = [], found["peaks"]
    for run in found["runs"]:
        times = {form: block_times(blocks) for form, blocks in run["blocks"].items()}
        for form in times:
            if form == OURS:
                continue
            estimate, low, high = ratio(times[form], times[OURS], seed=seed)
            rows.append(
                {
                    "workload": found["workload"],
                    "allocator": run["allocator"],
                    "side": form,
                    "seconds": float(np.median(times[form])),
                    "ours_s": float(np.median(times[OURS])),
                    "ratio": estimate,
                    "low": low,
                    "high": high,
                    "peak_mb": peaks.get(form),
                    "our_peak_mb": peaks.get(OURS),
                    "apart": apart(found["workload"], run["shown"], form),
                    "load": run["load"],
                }
            )
    return rows


def apart(workload: str, shown: Mapping[str, Any], form: str) -> float:
    """The largest gap of the first losses, nats per token; or the number of answers that differ."""
    ours, theirs = shown[OURS], shown[form]
    if workload != ANSWERS:
        return float(np.abs(np.subtract(ours, theirs)).max())
    return float(np.any(np.not_equal(ours, theirs), axis=-1).sum())


def verdicts_of(rows: Sequence[Mapping[str, Any]], *, aimed: bool) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here; of speed and memory only if `aimed`."""
    losses = [row["apart"] for row in rows if row["workload"] != ANSWERS]
    answers = [row["apart"] for row in rows if row["workload"] == ANSWERS]
    claims = []
    if losses:
        claim = f"largest gap of the first {FIRST_STEPS} losses, nats per token"
        claims.append(Verdict(claim, "–", max(losses), "≤", AGREE))
    if answers:
        claims.append(Verdict("greedy answers that differ", "–", max(answers), "≤", 0))
    for workload, (of_peer, of_first) in AIMS.items() if aimed else ():
        mine = [
            row
            for row in rows
            if (row["workload"], row["allocator"]) == (workload, AS_COMMANDS_START)
        ]
        for name, aim, some in (
            ("the faster transformers", of_peer, [row for row in mine if row["side"] != FIRST]),
            (f"the {FIRST}", of_first, [row for row in mine if row["side"] == FIRST]),
        ):
            if some:
                least = min(row["ratio"] for row in some)
                claims.append(
                    Verdict(f"{workload}: time of {name} over ours", "–", least, "≥", aim)
                )
        shares = [
            row["our_peak_mb"] / row["peak_mb"]
            for row in mine
            if row["side"] != FIRST and row["peak_mb"] and row["our_peak_mb"] is not None
        ]
        if shares:
            claim = f"{workload}: our peak of memory over transformers'"
            claims.append(Verdict(claim, "–", max(shares), "≤", 1.0))
    return tuple(claims)


def run(config: Config, console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    start = time.perf_counter()
    versions = reporting.installed(PACKAGES) | reporting.installed_in(config.peers_python, PEERS)
    size = size_of(config)
    fixed = {name: getattr(config, name) for name in ("size", "attention", "num_threads")}
    fixed |= {"num_blocks": config.num_blocks, "seed": config.seed, "versions": versions}
    ours = "experiments.multimodal_speed.ours", "experiments.multimodal_speed.torch_side"
    cells = study.Cells(
        folder=config.out / "cells",
        depends_on=fixed,
        programs=("experiments.multimodal_speed", *ours),
    )
    with tempfile.TemporaryDirectory() as name:
        write_work(Path(name), size, config.seed)
        found = measured(Path(name), config, cells, console)
    rows = [row for one in found for row in rows_of(one, config.seed)]
    picture = multimodal_speed_report.draw(config.out / "multimodal_speed.png", rows)
    return reporting.conclude(
        console,
        config,
        versions=versions,
        seeds=[config.seed],
        rows=rows,
        summary={
            "parameters": num_multimodal_parameters(size.network),
            "image_tokens": size.network.features_per_picture,
            "positions": size.num_positions,
            "allocators": ALLOCATORS,
            "aims": {workload: list(aims) for workload, aims in AIMS.items()},
            "seconds": round(time.perf_counter() - start, 1),
        },
        verdicts=verdicts_of(rows, aimed=config.size == _AIMED_SIZE),
        records=found,
        pictures=[picture],
        shown_as={"peers_python": "PYTHON"},
        tables=lambda: multimodal_speed_report.print_table(console, rows),
    )


main = study.main_of(_PROG, PRESETS, run, check_config)


if __name__ == "__main__":
    sys.exit(main())
