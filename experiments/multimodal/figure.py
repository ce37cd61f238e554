"""The pictures of `multimodal`: clusters, differences to the dense model, answered questions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from dfm_jax.data.pictures import read_picture
from experiments.lib.emoji import CREDIT
from experiments.multimodal.report import JUDGED_GATES, of_variants

Cell = Mapping[str, Any]
# Of others' art a picture that is published shows 24 at most: 16 here, 8 on the page.
_CLUSTERS_OF = ("lettered", "scenes", "own")
_PARTS, _EACH = 4, 4
_QUESTIONS = 4  # of a set
_COLORS = {"nearest": "C0", "soft": "C1", "router": "C2", "Bayes": "C3", "static": "C7"}


def draw(folder: Path, cells: Sequence[Cell], comparisons: Sequence[Cell]) -> tuple[Path, Path]:
    """`multimodal.png` and `questions.png` in the folder."""
    sets = list(dict.fromkeys(cell["dataset"] for cell in cells))
    first, page = folder / "multimodal.png", folder / "questions.png"
    _clusters_and_points(sets, cells, comparisons).savefig(first, dpi=110)
    _questions(sets, cells).savefig(page, dpi=110)
    return first, page


def _clusters_and_points(
    sets: Sequence[str], cells: Sequence[Cell], comparisons: Sequence[Cell]
) -> Figure:
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    rooms: Any = figure.subfigures(2, 1, height_ratios=(1, 1.25))
    above, below = rooms
    shown = [name for name in sets if name in _CLUSTERS_OF]
    parts = above.subfigures(1, max(1, len(shown)), squeeze=False)[0]
    for name, place in zip(shown, parts, strict=False):
        _clusters(place, name, _cell(cells, name, ("cluster",)))
    credit = f"{CREDIT}." if "scenes" in sets else ""
    above.supxlabel(credit, fontsize=7)
    axes = below.subplots(1, len(sets), squeeze=False)[0]
    for axis, name in zip(axes, sets, strict=True):
        _points(axis, name, [row for row in comparisons if row["dataset"] == name])
    below.supylabel("accuracy − dense, points", fontsize=9)
    return figure


def _cell(cells: Sequence[Cell], name: str, kinds: tuple[str, ...]) -> Cell | None:
    found = (
        cell
        for cell in cells
        if cell["dataset"] == name and cell["role"] == "compared" and cell.get("kind") in kinds
    )
    return next(found, None)


def _clusters(figure: SubFigure, name: str, cell: Cell | None) -> None:
    """One column for each cluster of training pictures."""
    if cell is None:
        return
    samples = cell["samples"][:_PARTS]
    axes = figure.subplots(_EACH, len(samples), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for k, paths in enumerate(samples):
        axes[0, k].set_title(f"{k + 1}: {cell['weights'][k]:.0%}", fontsize=8)
        for row, path in enumerate(paths[:_EACH]):
            axes[row, k].imshow(_picture(path))
    figure.suptitle(f"{name}: clusters of frozen features", fontsize=9)


def _points(axis: Axes, name: str, rows: Sequence[Cell]) -> None:
    """Each variant and gate: points over the dense model, with the t interval over seeds."""
    rows = of_variants(rows)
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    for row in rows:
        gates = [one["gate"] for one in rows if one["variant"] == row["variant"]]
        shift = 0.12 * (gates.index(row["gate"]) - (len(gates) - 1) / 2)
        middle = -100 * row["errors_mean"]
        if row["errors_low"] is None:
            low, high = (100 * x for x in row["pictures"][0][1:])
        else:
            low, high = -100 * row["errors_high"], -100 * row["errors_low"]
        axis.errorbar(
            variants.index(row["variant"]) + shift,
            middle,
            yerr=[[max(0.0, middle - low)], [max(0.0, high - middle)]],
            fmt="o",
            markersize=4,
            capsize=2,
            color=_COLORS[row["gate"]],
        )
    for gate in JUDGED_GATES:
        axis.plot([], [], "o", markersize=4, color=_COLORS[gate], label=gate)
    axis.axhline(0, color="0.4", linewidth=0.8)
    axis.set_xticks(range(len(variants)), variants, fontsize=7)
    axis.tick_params(axis="y", labelsize=7)
    axis.set_title(name, fontsize=9)
    axis.legend(fontsize=6, loc="lower left")


def _questions(sets: Sequence[str], cells: Sequence[Cell]) -> Figure:
    """One row per set: picture, question, both answers, the gate before and after the answer."""
    figure = Figure(figsize=(11, 2.9 * len(sets)), layout="constrained")
    rows = figure.subfigures(len(sets), 1, squeeze=False)[:, 0]
    for place, name in zip(rows, sets, strict=True):
        cell = _cell(cells, name, ("cluster", "task", "warm", "random"))
        page = [] if cell is None else cell["page"][:_QUESTIONS]
        if not page or cell is None:
            continue
        axes = place.subplots(1, len(page), squeeze=False)[0]
        place.suptitle(f"{name}, experts {cell['variant']}, Bayes gate", fontsize=9)
        for axis, asked in zip(axes, page, strict=True):
            axis.set_axis_off()
            axis.imshow(_picture(asked["picture"]))
            axis.set_title(_words(asked), fontsize=7, loc="left")
    if "scenes" in sets:
        figure.supxlabel(f"{CREDIT}; easy-VQA, Copyright Victor Zhou, MIT.", fontsize=7)
    return figure


def _words(asked: Mapping[str, Any]) -> str:
    def weights(probs: Sequence[float]) -> str:
        return " ".join(f"{100 * x:.0f}" for x in probs)

    return "\n".join(
        [
            asked["question"],
            f"expected: {asked['answer']}",
            f"dense: {asked['dense']}",
            f"experts: {asked['ensemble']}",
            f"gate, %: {weights(asked['before'])} → {weights(asked['behind'])}",
        ]
    )


def _picture(path: str) -> np.ndarray:
    return read_picture(Path(path))
