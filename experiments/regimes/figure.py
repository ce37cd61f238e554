"""The picture of `regimes`: loss against data and K, and the predicted sign."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.lib.gate_comparison_figure import COLORS

Row = Mapping[str, Any]
_KINDS = ("domain", "cluster", "random")


def draw(path: Path, summary: Mapping[str, Any], margin: float) -> Path:
    """Above, each variant's difference along the data; below, loss against K at each size."""
    rows, foreseen = summary["comparisons"], summary["predictions"]
    counted = [row for row in rows if row["model"] == "counts"]
    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 3, sharex="row", sharey="row")
    for axes, kind in zip(above, _KINDS, strict=True):
        _along_data(axes, kind, counted, foreseen, margin)
        _transformers(axes, kind, rows)
        axes.legend(fontsize=8)
    above[0].set_ylabel("Bayes-gated experts − dense, nats per byte")
    for axes, kind in zip(below, _KINDS, strict=True):
        _along_k(axes, kind, summary["best"])
    below[0].set_ylabel("nats per byte")
    figure.savefig(path, dpi=100)
    return path


def _along_data(
    axes: Axes, kind: str, rows: Sequence[Row], foreseen: Sequence[Row], margin: float
) -> None:
    own = [row for row in rows if row["partition"] == kind]
    for place, number in enumerate(sorted({row["num_experts"] for row in own})):
        variant = [row for row in own if row["num_experts"] == number]
        color = COLORS[place % len(COLORS)]
        axes.plot(*_xy(variant), "-", color=color, label=f"K = {number}", linewidth=1)
        for row in foreseen:
            same = ("counts", kind, number)
            if (row["model"], row["partition"], row["num_experts"]) != same:
                continue
            odds = row["foreseen"].get("all quantities")
            marker = {True: "^", False: "v", None: "o"}[None if odds is None else odds > 0]
            axes.plot(row["bytes"], row["mean"], marker, color=color, markersize=7)
    axes.axhspan(-margin, margin, color="gray", alpha=0.2, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xscale="log", xlabel="bytes of training text")
    axes.set_title(f"{kind}: foreseen by all quantities: ▲ lose, ▼ win, ● nothing", fontsize=9)
    axes.grid(linewidth=0.3)


def _transformers(axes: Axes, kind: str, rows: Sequence[Row]) -> None:
    own = [row for row in rows if (row["model"], row["partition"]) == ("transformers", kind)]
    for number in sorted({row["num_experts"] for row in own}):
        variant = [row for row in own if row["num_experts"] == number]
        label = f"transformers, K = {number}"
        axes.plot(*_xy(variant), "s--", color="black", label=label, linewidth=1, markersize=4)


def _xy(variant: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    pairs = sorted((row["bytes"], row["mean"]) for row in variant)
    return np.array(pairs).T[0], np.array(pairs).T[1]


def _along_k(axes: Axes, kind: str, best: Sequence[Row]) -> None:
    own = [row for row in best if row["partition"] == kind]
    for place, row in enumerate(own):
        color = COLORS[place % len(COLORS)]
        numbers = [int(number) for number in row["losses"]]
        axes.plot(
            numbers, list(row["losses"].values()), "o-", color=color, markersize=3, linewidth=1
        )
        axes.plot(row["best"], row["losses"][str(row["best"])], "*", color=color, markersize=13)
        axes.annotate(f"{row['bytes']:,}", (1, row["losses"]["1"]), fontsize=7)
    axes.set(xscale="log", xlabel="K (1: the dense model); ★ the best")
    axes.set_xticks([1, 2, 4, 8, 16, 32], [str(k) for k in (1, 2, 4, 8, 16, 32)])
    axes.set_title(f"{kind}: loss by bytes of training text", fontsize=9)
    axes.grid(linewidth=0.3)
