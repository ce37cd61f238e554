"""The picture of `language`: loss against tokens, and the gate comparison."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from experiments.lib.gate_comparison_figure import COLORS, draw_gate_comparison
from experiments.lib.gate_comparison_report import Cell, Row, select


def draw(path: Path, rows: Sequence[Row], cells: Sequence[Cell], margin: float) -> Path:
    """Above, validation loss along training; below, the gate comparison by variant."""
    figure = Figure(figsize=(13, 10), layout="constrained")
    FigureCanvasAgg(figure)
    halves = figure.add_gridspec(2, 1, height_ratios=(1, 1.7))
    _draw_curves(figure.add_subfigure(halves[0]), cells)
    draw_gate_comparison(
        figure.add_subfigure(halves[1]), select(rows, evaluation_set="reset"), margin
    )
    figure.savefig(path, dpi=100)
    return path


def _draw_curves(figure: SubFigure, cells: Sequence[Cell]) -> None:
    """Experts on their own parts, averaged by w, against the tokens of all of them together."""
    figure.suptitle("Validation loss of the first seed, each expert on its own part")
    axes = figure.subplots()
    first = cells[0]
    tokens = first["dense"]["tokens"] / first["dense"]["steps"]
    steps, losses = np.array(first["dense_curve"]).T
    axes.plot(steps * tokens, losses, "o-", color="black", label="dense", markersize=3)
    shown = [cell for cell in cells if cell["seed"] == first["seed"]]
    for number, cell in enumerate(shown):
        grid = np.arange(1, 7) / 6  # members are judged at every sixth of their steps
        spent = cell["tokens"] * grid
        curves = [_along(curve, whole, grid) for curve, whole in _curves(cell)]
        mean = np.einsum("k,kn->n", np.array(cell["weights"]), np.stack(curves))
        if cell["kind"] == "warm":  # its first half is the trunk's
            spent = cell["tokens"] * (0.5 + 0.5 * grid)
        color = COLORS[number % len(COLORS)]
        axes.plot(spent, mean, "o-", color=color, label=cell["partition"], markersize=3)
    axes.set(xlabel="training tokens of the variant", ylabel="nats per token")
    axes.grid(linewidth=0.3)
    axes.legend(fontsize=8, ncols=2)


def _curves(cell: Cell):
    return zip(cell["curves"], cell["steps"], strict=True)


def _along(curve: Sequence[Sequence[float]], num_steps: int, grid: np.ndarray) -> np.ndarray:
    """A curve at these shares of its number of steps."""
    steps, losses = np.array(curve).T
    return np.interp(grid, steps / num_steps, losses)
