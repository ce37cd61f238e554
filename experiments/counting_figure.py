"""The picture of `counting`: gates along a text whose part changes, and the ladder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from experiments.counting_report import Row, partition_labels, select

# Okabe and Ito's palette: told apart by every kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
_MARKERS = {"top-1": "x", "top-2": "^", "full": "o"}


def draw(path: Path, rows: Sequence[Row], trace: Mapping[str, Any], margin: float) -> Path:
    """Above, three gates along a sequence that changes its part; below, the ladder by partition."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    halves = figure.add_gridspec(2, 1, height_ratios=(1, 1.7))
    _draw_trace(figure.add_subfigure(halves[0]), trace)
    _draw_ladder(figure.add_subfigure(halves[1]), select(rows, world="reset"), margin)
    figure.savefig(path, dpi=100)
    return path


def _draw_trace(figure: SubFigure, trace: Mapping[str, Any]) -> None:
    first, second = trace["parts"]
    figure.suptitle(f"Weight of each expert along a text that turns from {first} to {second}")
    panels = figure.subplots(1, len(trace["gates"]), sharey=True, squeeze=False)[0]
    for axes, (gate, weights) in zip(panels, trace["gates"].items(), strict=True):
        weights = np.array(weights)
        colours = [_COLOURS[k % len(_COLOURS)] for k in range(weights.shape[1])]
        axes.stackplot(
            np.arange(len(weights)), weights.T, labels=trace["labels"], colors=colours, linewidth=0
        )
        axes.axvline((len(weights) - 1) / 2, color="black", linewidth=1)
        axes.set(title=gate, xlim=(0, len(weights) - 1), ylim=(0, 1), xlabel="bytes read")
    panels[0].set_ylabel("weight")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def _draw_ladder(figure: SubFigure, rows: Sequence[Row], margin: float) -> None:
    figure.suptitle("Ensemble − centre on held-out windows: mean and 95 % interval over seeds")
    partitions = partition_labels(rows)
    gates = list(dict.fromkeys(row["gate"] for row in rows))
    panels = figure.subplots(1, len(partitions), sharey=True, sharex=True, squeeze=False)[0]
    for axes, (partition, label) in zip(panels, partitions.items(), strict=True):
        axes.axvspan(-margin, margin, color="#DDDDDD", linewidth=0)
        for row, (top, marker) in enumerate(_MARKERS.items()):
            own = select(rows, partition=partition, top=top)
            found = [x["minus"]["centre"] for x in own]
            mean = np.array([x["mean"] for x in found])
            reach = [0.0 if x["low"] is None else x["mean"] - x["low"] for x in found]
            place = [gates.index(x["gate"]) + 0.2 * (row - 1) for x in own]
            axes.errorbar(
                *(mean, place),
                xerr=reach,
                fmt=marker,
                color=_COLOURS[row],
                label=top,
                markersize=5,
                linewidth=1,
            )
        axes.set_xscale("symlog", linthresh=0.1)
        axes.set(title=label, xlabel="nats per byte")
        axes.grid(axis="x", linewidth=0.3)
    panels[0].set_yticks(range(len(gates)), gates)
    panels[0].invert_yaxis()
    panels[0].legend(fontsize=8)
