"""Two pictures of what a sweep found: parallel coordinates, and a heat map of two fields.

They need matplotlib (extra `plots`). A rate has a logarithmic axis. A few runs that went astray do
not press all others together: the axis ends before them, and says so.
"""

import json
import math
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dfm_jax.training.report import Configuration, Report, shown_value

_UNITS = {  # by the last part of the name of a field
    "learning_rate": "peak",
    "num_steps": "updates",
    "warmup_steps": "updates",
    "decay_steps": "updates",
    "batch_size": "sequences",
    "num_positions": "tokens",
    "num_grid_steps": "steps",
    "width": "channels",
    "ffn_width": "channels",
    "num_tokens": "tokens",
}
_RATES = ("learning_rate", "weight_decay", "epsilon")
_LOSS = {
    "validation": "validation\n(nats per token)",
    "validation_bound": "upper bound\n(nats per token)",
    "validation_loss": "validation loss",
}
_COLORS, _WORST, _BEST = "viridis", "0.6", "crimson"


def write_pictures(
    report: Report, folder: Path, fields: tuple[str, str] | None = None
) -> list[Path]:
    """Write parallel.png, and heat_map.png if two fields vary; return the files.

    Args:
        report: What the sweep found; at least one field must vary.
        folder: The folder to write into; it is made if it does not exist.
        fields: The fields of the heat map; by default the two along which the mean over all else
            moves most.

    Raises:
        ValueError: if matplotlib is not installed; if no field varies, or a field is not one of
            those that vary; if no configuration was judged.
    """
    check_pictures(report, fields)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"parallel.png": _parallel(report)}
    if len(report.fields) >= 2:
        drawn["heat_map.png"] = _heat_map(report, fields or _strongest(report))
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=150)
    return [folder / name for name in drawn]


def check_pictures(report: Report, fields: tuple[str, str] | None = None) -> None:
    """Check that `write_pictures` can draw.

    Raises:
        ValueError: as `write_pictures`.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "The pictures of a report need the package `matplotlib`, which is not installed: "
            "`pip install 'dfm_jax[plots]'`."
        ) from error
    if report.best is None:
        raise ValueError("`run` must hold a run that was judged; got none, so nothing is drawn.")
    if not report.fields:
        rule = "`run` must hold runs that differ in a field other than the seed"
        raise ValueError(f"{rule}; got one configuration, so nothing is drawn.")
    for name in fields or ():
        if name not in report.fields:
            rule = f"`fields` must be two of {', '.join(report.fields)}"
            raise ValueError(f"{rule}; got fields = {name!r}.")
    if fields is not None and fields[0] == fields[1]:
        raise ValueError(f"`fields` must be two different fields; got fields = {fields!r}.")


class _Axis:
    """The place of each value of a field between 0 and 1, and the words at an axis."""

    def __init__(self, name: str, values: Iterable[Any]) -> None:
        kinds = {json.dumps(value): value for value in values}
        self.values = sorted(kinds.values(), key=_order)
        last = name.split(".")[-1]
        unit = f" ({_UNITS[last]})" if last in _UNITS else ""
        numbers = [value for value in self.values if _is_number(value)]
        self.scale = "categories"
        if len(numbers) == len(self.values) and len(numbers) > 1:
            positive = numbers[0] > 0
            wide = positive and (last in _RATES or numbers[-1] / numbers[0] >= 16)
            self.scale = "log" if wide else "linear" if last not in _RATES else "categories"
        self.label = f"{name.replace('.', '.' + chr(10))}{unit}"
        self.label += "\nlog scale" if self.scale == "log" else ""

    def place(self, value: Any) -> float:
        """Where a value lies, from 0 to 1."""
        if self.scale == "categories":
            known = [json.dumps(one) for one in self.values]
            return (known.index(json.dumps(value)) + 0.5) / len(known)
        low, high = self.values[0], self.values[-1]
        if self.scale == "log":
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and words; of many values, those at the ends and some between."""
        every = max(1, math.ceil((len(self.values) - 1) / 8))
        shown = [*self.values[:-1:every], self.values[-1]]
        return [(self.place(value), _short(value)) for value in shown]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(value: Any) -> tuple[int, float, str]:
    return (0, value, "") if _is_number(value) else (1, 0.0, str(value))


def _short(value: Any) -> str:
    if _is_number(value) and isinstance(value, int):
        return f"{value:,}"
    return "none" if value is None else shown_value(value)


def _highest(means: Sequence[float]) -> float:
    """The top of the axis of losses: a few that went astray must not press all others together."""
    low, middle, high = min(means), statistics.median(means), max(means)
    limit = low + 4 * (middle - low)
    return limit if middle > low and high > limit else high


def _parallel(report: Report) -> Any:
    """A line for each configuration through its values to its loss; thin ones for its seeds."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    best = report.best
    assert best is not None
    judged = [one for one in report.configurations if one.measure == best.measure]
    judged = [one for one in judged if one.mean is not None]
    means = [one.mean for one in judged if one.mean is not None]
    by_seed = _losses_of_seeds(report)
    low = min([*means, *(loss for one in judged for loss in by_seed[_key(one)])])
    high, worst = _highest(means), max(means)
    span = max(high - low, 1e-12)
    astray = [one for one in report.configurations if one.state == "not finite"]
    top = 1.12 if astray else 1.0
    axes_of = [
        _Axis(name, (c.values[name] for c in report.configurations)) for name in report.fields
    ]
    figure = Figure(figsize=(2.2 + 1.9 * len(axes_of), 4.8), layout="constrained")
    axes = figure.subplots()
    color_of = colormaps[_COLORS]

    def path(one: Configuration) -> list[float]:
        return [
            axis.place(one.values[name]) for axis, name in zip(axes_of, report.fields, strict=True)
        ]

    where = range(len(axes_of) + 1)
    for one in reversed(judged):  # the best last, on top
        assert one.mean is not None
        height = (one.mean - low) / span
        is_best = one is best
        color = _BEST if is_best else color_of(min(height, 1.0) * 0.9)
        line = [*path(one), min(height, 1.0)]
        axes.plot(where, line, color=color, lw=3 if is_best else 1.5, zorder=3 if is_best else 2)
        for loss in by_seed[_key(one)] if len(one.seeds) > 1 else ():
            ends = [line[-2], min((loss - low) / span, 1.0)]
            axes.plot(where[-2:], ends, color=color, lw=0.7, alpha=0.5, zorder=1)
    for one in astray:
        axes.plot(where, [*path(one), top], color=_WORST, lw=1, ls="--", zorder=1)
    losses = [(height, f"{low + height * span:.3f}") for height in (0.0, 0.25, 0.5, 0.75, 1.0)]
    if worst > high:
        losses[-1] = (1.0, f"≥ {high:.3f}")
    losses += [(top, "not finite")] if astray else []
    for place, ticks in enumerate([*(axis.ticks() for axis in axes_of), losses]):
        last = place == len(axes_of)
        axes.plot([place, place], [0, top if last else 1.0], color="black", lw=1, zorder=4)
        for height, words in ticks:
            axes.text(
                place + (0.04 if last else -0.04),
                height,
                words,
                ha="left" if last else "right",
                va="center",
                fontsize=9,
                zorder=5,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
            )
    axes.set_xticks(where, [*(axis.label for axis in axes_of), _LOSS[best.measure or "validation"]])
    axes.tick_params(axis="x", length=0, pad=8, labelsize=10)
    axes.set_xlim(-0.45, len(axes_of) + 0.45)
    axes.set_ylim(-0.05, top + 0.05)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(_wrapped(_title(report), figure), fontsize=10)
    return figure


def _wrapped(text: str, figure: Any) -> str:
    """Lines that are no longer than a figure is wide: a letter of ten points takes a 13th inch."""
    return textwrap.fill(text, int(13 * figure.get_figwidth()))


def _title(report: Report) -> str:
    num = max(len(one.seeds) for one in report.configurations)
    seeds = "one seed each" if num == 1 else f"means over {num} seeds; a thin line is one seed"
    unfinished = sum(one.state == "unfinished" for one in report.configurations)
    told = f"; {unfinished} of them not finished" if unfinished else ""
    return f"{len(report.configurations)} configurations, {seeds}{told}; the best in red"


def _key(one: Configuration) -> str:
    return json.dumps(one.config | {"seed": None}, sort_keys=True)


def _losses_of_seeds(report: Report) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for one in report.runs:
        key = json.dumps(one.config | {"seed": None}, sort_keys=True)
        found.setdefault(key, [])
        found[key] += [] if one.validation is None else [one.validation]
    return found


def _strongest(report: Report) -> tuple[str, str]:
    """The two fields along which the mean over all else moves most."""

    def moves(name: str) -> float:
        by_value: dict[str, list[float]] = {}
        for one in report.candidates:
            if one.mean is not None:
                by_value.setdefault(json.dumps(one.values[name]), []).append(one.mean)
        means = [statistics.fmean(found) for found in by_value.values()]
        return max(means) - min(means)

    first, second = sorted(report.fields, key=moves, reverse=True)[:2]
    return first, second


def _heat_map(report: Report, fields: tuple[str, str]) -> Any:
    """The lowest mean for each pair of values of two fields."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    best = report.best
    assert best is not None
    across, up = (_Axis(n, (c.values[n] for c in report.configurations)) for n in fields)
    places = [{json.dumps(v): k for k, v in enumerate(axis.values)} for axis in (across, up)]
    losses = np.full((len(up.values), len(across.values)), np.nan)
    tried = np.zeros(losses.shape, bool)
    for one in report.configurations:
        column, row = (at[json.dumps(one.values[n])] for at, n in zip(places, fields, strict=True))
        tried[row, column] = True
        if one.mean is not None and one.measure == best.measure:
            losses[row, column] = np.fmin(losses[row, column], one.mean)
    known = losses[np.isfinite(losses)].tolist()
    high = _highest(known)
    rows, columns = losses.shape
    figure = Figure(figsize=(3.0 + 0.95 * columns, 2.2 + 0.6 * rows), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        losses, cmap=_COLORS, vmin=min(known), vmax=high, origin="lower", aspect="auto"
    )
    middle = (min(known) + high) / 2
    for row, column in np.ndindex(*losses.shape):
        loss = losses[row, column]
        words = f"{loss:.3f}" if np.isfinite(loss) else "not\nfinite" if tried[row, column] else "–"
        if rows * columns <= 200:
            color = "white" if np.isfinite(loss) and loss < middle else "black"
            axes.text(column, row, words, ha="center", va="center", fontsize=9, color=color)
    column, row = (at[json.dumps(best.values[n])] for at, n in zip(places, fields, strict=True))
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=_BEST, lw=3))
    axes.set_xticks(range(columns), [_short(value) for value in across.values])
    axes.set_yticks(range(rows), [_short(value) for value in up.values])
    axes.set_xlabel(_one_line(across.label))
    axes.set_ylabel(_one_line(up.label))
    beyond = "max" if max(known) > high else "neither"
    bar = figure.colorbar(image, ax=axes, extend=beyond)
    bar.set_label(_LOSS[best.measure or "validation"].replace("\n", " "))
    others = [name for name in report.fields if name not in fields]
    told = f"lowest over {', '.join(n.split('.')[-1] for n in others)}; " if others else ""
    axes.set_title(_wrapped(f"{told}the best in red", figure), fontsize=10)
    return figure


def _one_line(label: str) -> str:
    return label.replace(".\n", ".").replace("\nlog scale", "")
