"""A comparison of gates as a picture: differences to the dense model, by partition."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import SubFigure

from experiments.lib.gate_comparison_report import Row, partition_labels, select

# Okabe and Ito's palette: told apart by every kind of color vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
_MARKERS = {"top-1": "x", "top-2": "^", "full": "o"}


def draw_gate_comparison(figure: SubFigure, rows: Sequence[Row], margin: float) -> None:
    figure.suptitle("Ensemble − dense on held-out windows: mean and 95 % interval over seeds")
    partitions = partition_labels(rows)
    gates = list(dict.fromkeys(row["gate"] for row in rows))
    panels = figure.subplots(1, len(partitions), sharey=True, sharex=True, squeeze=False)[0]
    for axes, (partition, label) in zip(panels, partitions.items(), strict=True):
        axes.axvspan(-margin, margin, color="#DDDDDD", linewidth=0)
        for row, (top, marker) in enumerate(_MARKERS.items()):
            own = select(rows, partition=partition, top=top)
            found = [x["minus"]["dense"] for x in own]
            mean = np.array([x["mean"] for x in found])
            reach = [0.0 if x["low"] is None else x["mean"] - x["low"] for x in found]
            place = [gates.index(x["gate"]) + 0.2 * (row - 1) for x in own]
            axes.errorbar(
                *(mean, place),
                xerr=reach,
                fmt=marker,
                color=COLORS[row],
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
