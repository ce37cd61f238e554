"""The output of `scaling`: its tables and its figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

# Okabe and Ito's palette: told apart by every kind of color vision.
_COLORS = ("#56B4E9", "#009E73", "#D55E00", "#000000")
_STYLES = {"dense": "-", "experts, shared batch": ":", "experts, dense model's batch": "--"}
_SHOWN = (8, 128, 512, 4096)
_NAMES = {"v5e": "TPU v5e", "v5p": "TPU v5p", "h100": "H100"}


def print_tables(
    console: Console,
    rows: Sequence[Mapping[str, Any]],
    crossovers: Sequence[Mapping[str, Any]],
    compiled: Sequence[Mapping[str, Any]],
) -> None:
    """Print the cost of a step, where experts overtake, and what compiled programs send."""
    for kind in dict.fromkeys(row["kind"] for row in rows):
        table = Table("size", "chips", "variant", title=_NAMES[kind], box=SIMPLE_HEAD)
        for column in ("cut", "parts", "GB sent", "GB between", "memory", "s, in turn", "at once"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            # Both layouts of the dense model; of experts the one that is taken, if one fits.
            taken = row["variant"] == "dense" or row["quickest"]
            if row["kind"] != kind or row["chips"] not in _SHOWN or not taken:
                continue
            cells = (
                str(row["shards"]),
                str(row["micro_batches"]),
                f"{row['fast_gb']:.3g}",
                f"{row['slow_gb']:.3g}",
                f"{row['memory_gb']:.3g}",
                f"{row['in_turn_s']:.3g}",
                f"{row['at_once_s']:.3g}",
            )
            if not row["fits"]:
                cells = (*cells[:2], "–", "–", f"{cells[4]}: no", "–", "–")
            layout = f"dense, {row['layout']}" if row["variant"] == "dense" else row["variant"]
            table.add_row(row["size"], str(row["chips"]), layout, *cells)
        console.print(table)
    table = Table("chip", "size", "variant", title="Chips from which on", box=SIMPLE_HEAD)
    columns = {
        "dense_fits_from": "dense fits",
        "experts_fit_from": "experts fit",
        "in_turn_ahead_from": "ahead: in turn",
        "at_once_ahead_from": "at once",
        "apart_in_turn_ahead_from": "in K sites: in turn",
        "apart_at_once_ahead_from": "at once",
    }
    for title in columns.values():
        table.add_column(title, justify="right")
    for entry in crossovers:
        cells = ("–" if entry[name] is None else str(entry[name]) for name in columns)
        table.add_row(entry["kind"], entry["size"], entry["variant"], *cells)
    console.print(table)
    table = Table("program on 8 devices", "collectives", box=SIMPLE_HEAD)
    for column in ("formula", "extras", "sent", "unexplained"):
        table.add_column(column, justify="right")
    for row in compiled:
        kinds = ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items())
        extras = sum(row["extras"].values())
        numbers = (f"{n:,.0f}" for n in (row["formula"], extras, row["sent"], row["unexplained"]))
        table.add_row(row["program"], kinds or "none", *numbers)
    console.print(table)


def draw(path: Path, rows: Sequence[Mapping[str, Any]], gains: Sequence[Mapping[str, Any]]) -> Path:
    """Above, the share of a step that waits for the network; below, the ratio of times."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    figure = Figure(figsize=(1.2 + 3.6 * len(kinds), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
    for (above, below), kind in zip(grid.T, kinds, strict=True):
        for size, color in zip(sizes, _COLORS, strict=False):
            for variant, style in _STYLES.items():
                name = f"{size}, {variant}"
                here = [
                    r for r in rows if (r["kind"], r["size"], r["variant"]) == (kind, size, variant)
                ]
                fits = [row for row in here if row["quickest"]]
                x, lost = [row["chips"] for row in fits], [100 * row["lost"] for row in fits]
                above.plot(x, lost, style, color=color, label=name, linewidth=1.3)
                own = [
                    r
                    for r in gains
                    if (r["kind"], r["size"], r["variant"]) == (kind, size, variant)
                ]
                x, times = [row["chips"] for row in own], [row["in_turn"] for row in own]
                if own:
                    below.plot(x, times, style, color=color, linewidth=1.3, marker=".")
        below.axhline(1, color="#999999", linewidth=0.8)
        below.axhline(1.1, color="#999999", linewidth=0.8, linestyle=(0, (1, 3)))
        above.set_title(_NAMES[kind], fontsize=9)
        below.set_xscale("log", base=2)
        below.set_xticks([8, 64, 512, 4096], ["8", "64", "512", "4,096"])
        below.set_xlabel("chips")
    hidden = max(row["at_once"] for row in gains)
    grid[0, 0].set_ylabel("% of a step lost to the network")
    grid[1, 0].set_ylabel("dense model's time / experts' time")
    grid[1, 0].text(8, 1.3, f"nothing overlaps;\nif all does: {hidden:.2f} at most", fontsize=7)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(sizes), fontsize=7)
    figure.savefig(path, dpi=120)
    return path
