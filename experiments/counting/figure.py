"""The picture of `counting`: gates along a text whose part changes, and the gate comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from experiments.lib.gate_comparison_figure import COLORS, draw_gate_comparison
from experiments.lib.gate_comparison_report import Row, select


def draw(path: Path, rows: Sequence[Row], trace: Mapping[str, Any], margin: float) -> Path:
    """Above, three gates along a sequence whose part changes; below, all gates by partition."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    halves = figure.add_gridspec(2, 1, height_ratios=(1, 1.7))
    _draw_trace(figure.add_subfigure(halves[0]), trace)
    draw_gate_comparison(
        figure.add_subfigure(halves[1]), select(rows, evaluation_set="reset"), margin
    )
    figure.savefig(path, dpi=100)
    return path


def _draw_trace(figure: SubFigure, trace: Mapping[str, Any]) -> None:
    first, second = trace["parts"]
    figure.suptitle(f"Weight of each expert along a text that turns from {first} to {second}")
    panels = figure.subplots(1, len(trace["gates"]), sharey=True, squeeze=False)[0]
    for axes, (gate, weights) in zip(panels, trace["gates"].items(), strict=True):
        weights = np.array(weights)
        colors = [COLORS[k % len(COLORS)] for k in range(weights.shape[1])]
        axes.stackplot(
            np.arange(len(weights)), weights.T, labels=trace["labels"], colors=colors, linewidth=0
        )
        axes.axvline((len(weights) - 1) / 2, color="black", linewidth=1)
        axes.set(title=gate, xlim=(0, len(weights) - 1), ylim=(0, 1), xlabel="bytes read")
    panels[0].set_ylabel("weight")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
