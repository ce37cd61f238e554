"""The picture of `synthetic`: items of both clusters, and differences beside the authors'."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from experiments.synthetic.data import Data
from experiments.synthetic.measure import DENSE
from experiments.synthetic.pictures import drawn_picture
from experiments.synthetic.report import AUTHORS, own_gates

_EACH = 6  # items of a cluster


def draw(path: Path, data: Data, part: np.ndarray, found: Mapping[str, Any]) -> Path:
    """Above, training items of each cluster; below, points over the dense model by variant.

    Args:
        path: The file.
        data: The items.
        part: The cluster of each training item, [Q].
        found: The summary of the report.
    """
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 1, height_ratios=(1.3, 1))
    _items(figure.add_subfigure(grid[0, 0]), data, part)
    _points(figure.add_subfigure(grid[1, 0]).subplots(), found)
    figure.savefig(path, dpi=100)
    return path


def _items(figure: SubFigure, data: Data, part: np.ndarray) -> None:
    """The first items of each cluster, with question and answer."""
    train, num_parts = data.splits["train"], int(part.max()) + 1
    axes = figure.subplots(num_parts, _EACH, squeeze=False)
    for k in range(num_parts):
        for axis, i in zip(axes[k], np.flatnonzero(part == k)[:_EACH].tolist(), strict=False):
            item = train.items[i]
            axis.imshow(drawn_picture(item, train.index + i, seed=train.seed))
            axis.set_title(f"{item.question}:\n{item.answer}", fontsize=7)
        axes[k, 0].set_ylabel(f"cluster {k + 1}: {np.mean(part == k):.0%}", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    figure.suptitle("Training items by balanced clusters of frozen features", fontsize=9)


def _points(axes: Axes, found: Mapping[str, Any]) -> None:
    """Each variant with its own gate and its interval; the authors' differences as crosses."""
    rows = [r for r in own_gates(found["comparisons"], found["parts"]) if r["variant"] != DENSE]
    for place, row in enumerate(rows):
        middle = -100 * row["errors_mean"]
        if row["errors_low"] is None:
            low, high = (100 * x for x in row["items"][0][1:])
        else:
            low, high = -100 * row["errors_high"], -100 * row["errors_low"]
        reach = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
        axes.errorbar(place, middle, yerr=reach, fmt="o", color="C0", capsize=3)
        if row["variant"] in AUTHORS:
            theirs = AUTHORS[row["variant"]][0] - AUTHORS[DENSE][0]
            axes.plot(place + 0.15, theirs, "x", color="C3")
    axes.plot([], [], "o", color="C0", label="here")
    axes.plot([], [], "x", color="C3", label="the authors, 150,000 items")
    axes.axhline(0, color="0.4", linewidth=0.8)
    names = [f"{row['variant']}\n{row['gate']}".strip() for row in rows]
    axes.set_xticks(range(len(rows)), names, fontsize=8)
    axes.set_ylabel("exact match − dense, points", fontsize=8)
    axes.legend(fontsize=7)
