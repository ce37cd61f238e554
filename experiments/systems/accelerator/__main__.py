"""What one accelerator does of its peak, within a budget of time; it runs on a CPU in small too.

    python -m experiments.accelerator --preset gpu

The parts run one after the other: an update in bfloat16 of 124 million parameters, both losses at
V = 128,256, the statements D4 and D7 in float32 and bfloat16, decoding with a cache from one model
and from a mixture of four, and two experts in one program. Every program is compiled before it is
timed, and the seconds of both are told apart. A part that would probably go beyond the budget is
not begun, and one that ends with an error does not stop the others; the result says so. It is
written anew after every part, so that a run that is killed loses only the part that it was in.
"""

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from rich.console import Console

from experiments.lib import reporting, study
from experiments.lib.reporting import Verdict
from experiments.systems.accelerator import report as accelerator_report
from experiments.systems.accelerator.config import PRESETS, SIZES, Config, check_config
from experiments.systems.accelerator.devices import described, peak_of
from experiments.systems.accelerator.parts import Part, Place, Row, parts_of

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax")
_PROG = "python -m experiments.accelerator"
GAP = 1e-4  # nats, of a mean of float32 sums over 128,256 tokens
RAN, LEFT_OUT, FAILED = "ran", "not run", "ended with an error"


def named(config: Config) -> tuple[Part, ...]:
    """The parts that the options ask for."""
    return tuple(
        part
        for part in parts_of(SIZES[config.preset])
        if not config.parts or part.name in config.parts
    )


def check(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    check_config(config, tuple(part.name for part in parts_of(SIZES[config.preset])))


def verdicts_of(rows: Sequence[Row], parts: Sequence[Row]) -> tuple[Verdict, ...]:
    """The claims on what was measured. How fast a device is is none of them."""

    def of(kind: str) -> list[Row]:
        return [row for row in rows if row["kind"] == kind]

    found = [Verdict(FAILED, "–", sum(part["status"] == FAILED for part in parts), "≤", 0)]
    if of("loss"):
        worst = max(row["gap"] for row in of("loss"))
        found.append(Verdict("largest gap of a loss from float64, nats", "L1, L2", worst, "≤", GAP))
    for row in of("statement"):
        label = row["name"].split(",")[0]
        claim = f"largest residual of {row['name']}"
        found.append(Verdict(claim, label, row["residual"], "≤", row["tolerance"]))
    for row in of("isolation"):
        claim = "collectives, and leaves of an expert that the other's data move"
        moved = row["collectives"] + row["first_differ"]
        found.append(Verdict(claim, "–", moved, "≤", 0))
        claim = "leaves of an expert that its own data move"
        found.append(Verdict(claim, "–", row["second_differ"], "≥", 1))
    return tuple(found)


def attempted(part: Part, place: Place, *, needed: float, left: float) -> tuple[Row, list[Row]]:
    """What became of a part, and its rows."""
    start = time.perf_counter()
    if needed > left:
        why = f"it probably needs {needed:.0f} s, and {left:.0f} s of the budget were left"
        return {"part": part.name, "status": LEFT_OUT, "why": why, "seconds": 0.0}, []
    try:
        rows, status, why = part.run(place), RAN, ""
    except Exception as error:  # the others shall run: a device is lent for minutes
        rows, status = [], FAILED
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    seconds = time.perf_counter() - start
    return {"part": part.name, "status": status, "why": why, "seconds": seconds}, rows


def run(config: Config, console: Console) -> bool:
    """Run the parts, write the files after each, show the tables; return whether claims hold."""
    start, device = time.perf_counter(), jax.devices()[0]
    sizes = SIZES[config.preset]
    place = Place(device, peak_of(device.device_kind), sizes, config.seed)
    # What a part needs is known for the largest preset; a small one takes a share of its budget.
    scale = PRESETS[config.preset].seconds / PRESETS["gpu"].seconds
    rows: list[Row] = []
    parts: list[Row] = []
    versions = reporting.installed(PACKAGES)

    def whole() -> dict[str, Any]:
        seconds = round(time.perf_counter() - start, 1)
        return {
            "rows": rows,
            "summary": {"device": described(device), "parts": parts, "seconds": seconds},
            "verdicts": verdicts_of(rows, parts),
            "versions": versions,
            "seeds": [config.seed],
        }

    for part in named(config):
        console.print(f"{part.name} …", highlight=False)
        left = config.seconds - (time.perf_counter() - start)
        told, found = attempted(part, place, needed=scale * part.seconds, left=left)
        parts.append(told)
        rows += found
        if told["why"]:
            console.print(f"{part.name}: {told['status']}: {told['why']}", highlight=False)
        reporting.write_files(config, **whole())
    tables = "\n\n".join(accelerator_report.markdown(whole()))
    shown = partial(console.print, tables, markup=False, highlight=False, soft_wrap=True)
    return reporting.conclude(console, config, **whole(), tables=shown)


main = study.main_of(_PROG, PRESETS, run, check)


if __name__ == "__main__":
    sys.exit(main())
