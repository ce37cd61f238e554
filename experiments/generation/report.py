"""The output of `generation`: quality against the number of steps, as tables and as a picture.

python -m experiments.generation.report RESULT
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.lib import study

# Okabe and Ito's palette: told apart by every kind of color vision.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_FLOOR = 1e-4  # where a TV that is rounding is drawn, on a logarithmic axis


def _grids(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[list[str]]]]:
    """(title, lines), with the heading as first line: two of the toy, one of digits."""
    found = []
    toy = [row for row in rows if row["on"] == "toy"]
    for source in dict.fromkeys(row["source"] for row in toy):
        here = [row for row in toy if row["source"] == source]
        title = f"TV to the data, {source} source"
        found.append((title, _grid(here, lambda row: f"{row['tv']:.1e}")))
    digits = [row for row in rows if row["on"] == "digits"]
    title = "nats per pixel of held-out digits"
    shown = lambda row: f"{row['nats_per_pixel']:.4f} ± {row['standard_error']:.4f}"  # noqa: E731
    return [*found, (title, _grid(digits, shown))]


def _grid(rows: Sequence[Mapping[str, Any]], shown: Any) -> list[list[str]]:
    steps = sorted({row["steps"] for row in rows})
    samplers = dict.fromkeys(row["sampler"] for row in rows)
    cells = {(row["sampler"], row["steps"]): shown(row) for row in rows}
    return [
        ["T", *samplers],
        *([str(t), *(cells.get((name, t), "") for name in samplers)] for t in steps),
    ]


def print_tables(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each number of steps, with a column for each sampler."""
    for title, (head, *lines) in _grids(rows):
        table = Table(head[0], title=title, box=SIMPLE_HEAD)
        for name in head[1:]:
            table.add_column(name, justify="right")
        for line in lines:
            table.add_row(*(cell.split(" ±")[0] for cell in line))
        console.print(table)


def markdown(result: Mapping[str, Any]) -> list[str]:
    """The tables of the README."""
    tables = []
    for title, (head, *lines) in _grids(result["rows"]):
        width = "|".join(["---"] * len(head))
        text = [f"| {title}: {' | '.join(head)} |", f"|{width}|"]
        tables.append("\n".join([*text, *(f"| {' | '.join(line)} |" for line in lines)]))
    return tables


def draw(path: Path, toy: Sequence[Mapping[str, Any]], digits: Sequence[Mapping[str, Any]]) -> Path:
    """TV on the toy from both sources, and bounds on digits, against the number of steps."""
    figure = Figure(figsize=(12.5, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    for axes, source in zip(panels, ("masked", "uniform"), strict=False):
        _curves(axes, [row for row in toy if row["source"] == source], "tv", _FLOOR)
        axes.set_title(f"toy, {source} source: exact distributions", fontsize=9)
        axes.set_ylabel("total variation to the data")
        axes.set_yscale("log")
        axes.text(4.3, _FLOOR, "0, to rounding", fontsize=7, va="center")
    _curves(panels[2], digits, "nats_per_pixel", 0.0)
    panels[2].set_title("held-out digits: the sampler's bound", fontsize=9)
    panels[2].set_ylabel("nats per pixel")
    figure.savefig(path, dpi=110)
    return path


def _curves(axes: Axes, rows: Sequence[Mapping[str, Any]], what: str, floor: float) -> None:
    for color, name in zip(_COLORS, dict.fromkeys(r["sampler"] for r in rows), strict=False):
        here = sorted((r["steps"], max(r[what], floor)) for r in rows if r["sampler"] == name)
        axes.plot(*zip(*here, strict=True), "o-", color=color, label=name, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("steps")
    axes.legend(fontsize=6)


def main(args: Sequence[str] | None = None) -> int:
    """0, or 2 if the file is not what `generation` wrote."""
    return study.show_tables("generation", markdown, args)


if __name__ == "__main__":
    sys.exit(main())
