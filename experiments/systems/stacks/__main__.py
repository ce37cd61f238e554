"""What differs between the lowest and the newest supported versions, in numbers.

    make install && make VENV=.venv-newest PYTHON=python3.13 install
    python -m experiments.stacks --preset standard

The two sides are processes of two environments. They draw from the same keys, compile the same
programs, and do the same works; the works are done in turns, A B B A, so that other load on the
machine affects both. The ratio is that of the medians over rounds, and its interval a bootstrap
over rounds.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from experiments.lib import reporting, study
from experiments.lib.reporting import Verdict
from experiments.systems.benchmarks.kinds import size_name
from experiments.systems.stacks import measure
from experiments.systems.stacks import report as stacks_report
from experiments.systems.stacks.config import PRESETS, Config, Work, check_config
from experiments.systems.stacks.measure import LOWEST, NEWEST
from experiments.systems.training_speed.sides import SIZES
from experiments.systems.training_speed.times import ratio

_PROG = "python -m experiments.stacks"
AGREE = 1e-4  # nats per token, over the first steps: the two do the same work
SLOWER = 1.25  # the newest versions' time over the lowest's, in any work


# ── what follows from it ────────────────────────────────────────────────────────────────────────


def draw_rows(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kind of draw: are the bits the same, and if not, how far apart are they?"""
    rows = []
    for name, one in found[LOWEST]["draw"].items():
        pair = [_values(found[side]["draw"][name]) for side in (LOWEST, NEWEST)]
        left, right = pair
        alike = left.dtype == right.dtype and left.shape == right.shape
        gap = np.abs(left.astype(float) - right.astype(float)).max() if alike else float("inf")
        rows.append(
            {
                "kind": "draw",
                "name": name,
                "dtype": one["dtype"],
                "same": one == found[NEWEST]["draw"][name],
                "equal": float(np.mean(left == right)) if alike else 0.0,
                "largest_difference": float(gap),
            }
        )
    return rows


def _values(written: Mapping[str, str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(written["bits"]), np.dtype(written["dtype"]))


def program_rows(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each program of `isolation`."""
    both = {side: {row["program"]: row for row in found[side]["isolation"]} for side in found}
    return [
        {"kind": "program", "name": name, **{side: both[side][name] for side in found}}
        for name in both[LOWEST]
    ]


def work_row(work: Work, found: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The row of one work; the ratio is above 1 where the newest versions are faster."""
    rounds = {
        side: np.array([np.median(seconds) for seconds in found["rounds"][side]])
        for side in (LOWEST, NEWEST)
    }
    estimate, low, high = ratio(rounds[LOWEST], rounds[NEWEST], seed=seed)
    return {
        "kind": "work",
        "name": work.name,
        "size": size_name(work.size) or SIZES[0].name,
        "lowest_s": float(np.median(rounds[LOWEST])),
        "newest_s": float(np.median(rounds[NEWEST])),
        "ratio": estimate,
        "low": low,
        "high": high,
    }


def step_of(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The medians over the rounds of what the training step's compilation takes and gives."""
    return {
        side: {
            name: float(np.median([one[name] for one in found[side]["compile"]]))
            for name in found[side]["compile"][0]
        }
        for side in (LOWEST, NEWEST)
    }


def losses_gap(found: Mapping[str, Any]) -> float:
    """The largest difference of the first losses of the two sides; 0 for a work without losses."""
    lowest, newest = (found["losses"][side] for side in (LOWEST, NEWEST))
    return float(np.abs(np.subtract(lowest, newest)).max()) if lowest else 0.0


def verdicts_of(rows: Sequence[Mapping[str, Any]], gap: float) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here."""
    programs = [row for row in rows if row["kind"] == "program"]
    broken = sum(not row[side]["isolated"] for row in programs for side in (LOWEST, NEWEST))
    slowest = max(1 / row["ratio"] for row in rows if row["kind"] == "work")
    return (
        Verdict("programs that are not isolated as claimed, both sides", "–", broken, "≤", 0),
        Verdict("largest gap of the first losses, nats per token", "–", gap, "≤", AGREE),
        Verdict("newest versions' time over the lowest's, slowest work", "–", slowest, "≤", SLOWER),
    )


def run(config: Config, console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    start = time.perf_counter()
    console.print("draws and programs …", highlight=False)
    found = measure.programs(config)
    rows, records, gap = draw_rows(found) + program_rows(found), [], 0.0
    for work, timed in measure.all_works(config):
        console.print(f"{work.name}: measured", highlight=False)
        rows.append(work_row(work, timed, config.seed))
        records.append({"work": work.name, **timed})
        gap = max(gap, losses_gap(timed))
    return reporting.conclude(
        console,
        config,
        versions={
            f"{side}: {name}": number
            for side in (LOWEST, NEWEST)
            for name, number in found[side]["versions"].items()
        },
        seeds=[config.seed],
        rows=rows,
        summary={
            "training_step": step_of(found),
            "load": {record["work"]: record["load"] for record in records},
            "seconds": round(time.perf_counter() - start, 1),
        },
        verdicts=verdicts_of(rows, gap),
        records=records,
        shown_as={"lowest_python": "PYTHON", "newest_python": "PYTHON"},
        tables=lambda: console.print(
            "\n\n".join(
                stacks_report.markdown({"rows": rows, "summary": {"training_step": step_of(found)}})
            ),
            markup=False,
            highlight=False,
            soft_wrap=True,
        ),
    )


main = study.main_of(_PROG, PRESETS, run, check_config)


if __name__ == "__main__":
    sys.exit(main())
