"""The output of `training_speed`: its table, and a figure of the time in a step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_PARTS = {"forward_ms": "forward", "backward_ms": "backward", "update_ms": "update"}
# Okabe and Ito's palette: told apart by every kind of color vision.
_COLORS = ("#0072B2", "#56B4E9", "#D55E00")
_BLACK = "#000000"


def print_table(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table per size and allocator, a line per side; times in milliseconds."""
    for size, allocator in dict.fromkeys((row["size"], row["allocator"]) for row in rows):
        table = Table("side", title=f"{size}; {allocator}", box=SIMPLE_HEAD)
        for column in ("step", "ratio", "95 %", *_PARTS.values(), "GEMM", "faults"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            if (row["size"], row["allocator"]) == (size, allocator):
                table.add_row(
                    row["side"],
                    f"{row['step_ms']:.1f}",
                    f"{row['ratio']:.2f}",
                    f"{row['low']:.2f}–{row['high']:.2f}",
                    *(f"{row[part]:.1f}" for part in _PARTS),
                    f"{100 * row['products_share']:.0f} %",
                    f"{row['faults']:.0f}",
                )
        console.print(table)


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Bars of milliseconds, cut into parts; a tick where the products with weights alone end."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    figure = Figure(figsize=(4.6 * len(sizes), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        here = [row for row in rows if row["size"] == size]
        at = np.arange(len(here))[::-1]
        left = np.zeros(len(here))
        for (part, label), color in zip(_PARTS.items(), _COLORS, strict=True):
            # A part is a difference of medians, and can be a little below 0.
            width = np.maximum([row[part] for row in here], 0)
            axes.barh(at, width, left=left, color=color, label=label)
            left += width
        ends = [row["products_ms"] for row in here]
        axes.vlines(ends, at - 0.4, at + 0.4, color=_BLACK, label="its matrix products alone")
        axes.set_yticks(at, [f"{row['side']}\n{row['allocator']}" for row in here], fontsize=7)
        axes.set_title(size, fontsize=8)
        axes.set_xlabel("ms")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    return path
