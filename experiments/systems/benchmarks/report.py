"""The output of `benchmarks`: its tables, and a figure of seconds by size."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.lib import study
from experiments.systems.benchmarks.account import curves, slope
from experiments.systems.benchmarks.kinds import BEFORE
from experiments.systems.benchmarks.workloads import BY_NAME
from experiments.systems.training_speed.times import MET

# Okabe and Ito's palette: told apart by every kind of color vision.
_COLORS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00")
_HEADS = ("size", "threads", "allocator", "form", "ours", "peer", "peer's", "ratio", "95 %")
_HEADS = (*_HEADS, "aim", "peak MB", "gap or p")
_LEFT = (0, 2, 3, 5)


def _shown(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else f"{value:{form}}"


def seconds_shown(seconds: float) -> str:
    """Seconds in a suitable unit."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _entries(row: Mapping[str, Any]) -> tuple[str, ...]:
    peaks = f"{_shown(row['peak_mb'], '.0f')} / {_shown(row['peer_peak_mb'], '.0f')}"
    return (
        row["size"],
        str(row["threads"]),
        row["allocator"],
        row["form"],
        seconds_shown(row["ours_s"]),
        row["peer"],
        seconds_shown(row["peer_s"]),
        f"{row['ratio']:.2f}",
        f"{row['low']:.2f}–{row['high']:.2f}",
        _shown(row["goal"], ".3g"),
        peaks,
        _shown(row["gap"], ".1e"),
    )


def print_table(
    console: Console, rows: Sequence[Mapping[str, Any]], growth: Sequence[Mapping[str, Any]]
) -> None:
    """A table per work and size, and that of growth; peaks and gaps are in the Markdown."""
    columns = [_HEADS.index(head) for head in ("threads", "allocator", "form", "ours", "peer")]
    columns += [_HEADS.index(head) for head in ("peer's", "ratio", "95 %", "aim")]
    for workload, size in dict.fromkeys((row["workload"], row["size"]) for row in rows):
        table = Table(title=f"{workload}; {size}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for index in columns:
            left = index in _LEFT
            table.add_column(_HEADS[index], justify="left" if left else "right", no_wrap=not left)
        for row in rows:
            if (row["workload"], row["size"]) == (workload, size):
                entries = _entries(row)
                table.add_row(*(entries[index] for index in columns))
        console.print(table)
    if growth:
        shown = growth_table(growth)
        console.print(shown, markup=False, highlight=False, soft_wrap=True)


def markdown(result: Mapping[str, Any]) -> list[str]:
    """The aims and what was reached; how every work grows; then a table of rows per work.

    The second table is followed by that of our forms along further axes, if they were measured.
    """
    summary = result["summary"]
    workloads = summary["workloads"]
    tables = [_aims(workloads) + _memory(summary["memory"]), _growth(workloads)]
    if summary.get("growth"):  # results of earlier builds have none
        tables.append(growth_table(summary["growth"]))
    for workload in workloads:
        rows = [_entries(row) for row in result["rows"] if row["workload"] == workload]
        tables.append(_table((f"{workload}: {_HEADS[0]}", *_HEADS[1:]), _LEFT, rows))
    return tables


def _aims(workloads: Mapping[str, Any]) -> str:
    lines = []
    for workload, found in workloads.items():
        for aim in found["goals"]:
            ends = [
                " / ".join(f"{form} {value:.2f}" for form, value in aim[end].items())
                for end in ("at_best", "best", "least")
            ]
            met = "yes" if aim["met"] else "no"
            where = aim["size"] or ("every" if aim.get("at") == "every" else "best of all")
            where += f"; {aim['allocator']}" if aim.get("allocator") else ""
            lines.append((workload, where, aim["peer"], *ends, f"{aim['goal']:.3g}", met))
    heads = (
        "workload",
        "size",
        "peer",
        "each at its best",
        "best ratio",
        "least ratio",
        "aim",
        f"met ({100 * MET:.0f} %)",
    )
    return _table(heads, (0, 1, 2), lines)


def _memory(found: Sequence[Mapping[str, Any]]) -> str:
    """Our peaks of memory, as a share of the peer's."""
    lines = []
    for aim in found:
        met = "met" if aim["met"] else "not met"
        peak = f"{aim['share']:.2f} (aim {aim['goal']:.2f}, {met})"
        name, peer = f"{aim['workload']}, {aim['size']}", aim["peer"]
        lines.append(f"{name[0].upper()}{name[1:]}: our peak memory over {peer}'s: {peak}.")
    return "".join(f"\n\n{line}" for line in lines)


def _growth(workloads: Mapping[str, Any]) -> str:
    lines = [
        (workload, BY_NAME[workload].axis, side, _shown(value))
        for workload, found in workloads.items()
        for side, value in found["slopes"].items()
    ]
    return _table(("workload", "axis", "side", "slope"), (0, 1, 2), lines)


def growth_table(curves: Sequence[Mapping[str, Any]]) -> str:
    """Our forms along one axis each: the exponent, and that of a count of operations."""
    lines = []
    for curve in curves:
        ends = [
            f"{seconds_shown(curve['seconds'][end])} at {curve['sizes'][end]}" for end in (0, -1)
        ]
        name = f"{curve['workload']}, {curve['form']}"
        exponents = (f"{curve['exponent']:.2f}", f"{curve['count']:.3g}")
        lines.append((name, curve["fixed"], curve["axis"], *ends, *exponents))
    heads = ("ours alone", "fixed", "axis", "seconds, first", "last", "exponent", "by operations")
    return _table(heads, (0, 1, 2), lines)


def _table(heads: Sequence[str], left: Sequence[int], lines: Sequence[Sequence[str]]) -> str:
    marks = ["---" if index in left else "---:" for index in range(len(heads))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, marks, *lines))


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Seconds over size, both logarithmic, a panel per work; the fitted slopes in the legends.

    It shows one processor, with the default of glibc's allocator; of a slow workload, two, with
    ours as a command starts it. The earlier build's lines are dashed.
    """
    named = dict.fromkeys(row["workload"] for row in rows)
    panels = [(BY_NAME[n], found) for n in named if (found := curves(BY_NAME[n], map(dict, rows)))]
    columns = max(1, min(4, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(3.4 * columns, 3.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (workload, found) in zip(grid, panels, strict=False):
        ours = [name for name in found if name.startswith("ours, ")]
        earlier = [name for name in found if name.startswith(f"{BEFORE}, ")]
        others = [name for name in found if name not in (*ours, *earlier)]
        colors = dict(zip(ours, _COLORS[:2], strict=False))
        colors |= dict(zip(others, _COLORS[2:], strict=False))
        colors |= {name: colors[f"ours{name.removeprefix(BEFORE)}"] for name in earlier}
        for name, (sizes, seconds) in found.items():
            fitted = slope(sizes, seconds)
            label = name if fitted is None else f"{name}: {fitted:.2f}"
            line = "--" if name in earlier else "-"
            axes.plot(
                sizes, seconds, line, marker="o", markersize=3, color=colors[name], label=label
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = sorted({int(size) for sizes, _ in found.values() for size in sizes})
        axes.set_xticks(ticks, map(str, ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(workload.name, fontsize=9)
        axes.set_xlabel(workload.axis)
        axes.set_ylabel("s")
        axes.legend(fontsize=7)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=120)
    return path


def main(args: Sequence[str] | None = None) -> int:
    """0, or 2 if the file is another's."""
    return study.show_tables("benchmarks", markdown, args)


if __name__ == "__main__":
    sys.exit(main())
