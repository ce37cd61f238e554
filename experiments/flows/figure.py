"""The picture of `flows`: some images of each part, and samples of dense, ensemble and experts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from experiments.flows.images import NUM_TOKENS, SIDE, Parts

_SHOWN = 24  # real images, at most, in the whole picture


def draw(path: Path, images: np.ndarray, parts: Parts, sheets: Sequence[Mapping[str, Any]]) -> Path:
    """Left, the first images of each part; beside them, one sheet of samples per source."""
    figure = Figure(figsize=(3.5 + 6.5 * len(sheets), 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, 1 + len(sheets), width_ratios=[3.5] + [6.5] * len(sheets))
    columns = [figure.add_subfigure(grid[0, place]) for place in range(1 + len(sheets))]
    count = max(1, min(4, _SHOWN // parts.num_experts))
    shown = {
        f"part {k + 1}": images[parts.train == k][:count]
        for k in range(min(parts.num_experts, _SHOWN))
    }
    _draw_rows(columns[0], f"Images, {parts.name}", shown)
    for column, sheet in zip(columns[1:], sheets, strict=True):
        rows = {name: np.array(row) for name, row in sheet["rows"].items()}
        _draw_rows(column, f"Samples, {sheet['source']} source", rows)
    figure.savefig(path, dpi=100)
    return path


def _draw_rows(figure: SubFigure, title: str, rows: Mapping[str, np.ndarray]) -> None:
    figure.suptitle(title)
    grid = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, (name, row) in zip(grid, rows.items(), strict=True):
        padded = np.pad(row.reshape(-1, SIDE, SIDE), ((0, 0), (1, 1), (1, 1)))
        strip = np.concatenate(padded, axis=1)
        axes.imshow(strip, cmap="gray_r", vmin=0, vmax=NUM_TOKENS - 1, interpolation="nearest")
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.set_xticks([])
        axes.set_yticks([])
