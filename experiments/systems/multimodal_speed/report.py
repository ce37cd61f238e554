"""The output of `multimodal_speed`: its tables, and a figure of the ratios."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_COLUMNS = ("its time", "ours", "ratio", "95 %", "its peak MB", "ours", "apart")


def _megabytes(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def print_table(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table per workload and allocator, a line per side; times in milliseconds."""
    for workload, allocator in dict.fromkeys((row["workload"], row["allocator"]) for row in rows):
        table = Table("side", title=f"{workload}; {allocator}", box=SIMPLE_HEAD)
        for column in _COLUMNS:
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            if (row["workload"], row["allocator"]) == (workload, allocator):
                table.add_row(
                    row["side"],
                    f"{1e3 * row['seconds']:.0f}",
                    f"{1e3 * row['ours_s']:.0f}",
                    f"{row['ratio']:.2f}",
                    f"{row['low']:.2f}–{row['high']:.2f}",
                    _megabytes(row["peak_mb"]),
                    _megabytes(row["our_peak_mb"]),
                    f"{row['apart']:.2g}",
                )
        console.print(table)


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The time of each side over ours with its interval, a panel for each workload."""
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    figure = Figure(figsize=(4.4 * len(workloads), 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, workload in zip(
        figure.subplots(1, len(workloads), squeeze=False)[0], workloads, strict=True
    ):
        here = [row for row in rows if row["workload"] == workload][::-1]
        for place, row in enumerate(here):
            axes.plot([row["low"], row["high"]], [place, place], color="#0072B2")
            axes.plot(row["ratio"], place, "o", color="#0072B2", markersize=4)
        axes.axvline(1, color="0.6", linewidth=0.8)
        axes.set_yticks(
            range(len(here)), [f"{r['side']}\n{r['allocator']}" for r in here], fontsize=7
        )
        axes.set_xlabel("its time over ours")
        axes.set_title(workload, fontsize=9)
    figure.savefig(path, dpi=120)
    return path
