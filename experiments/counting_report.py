"""What `counting` shows: cells gathered over seeds, the ladder and its account, one figure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.statistics import compare

Cell = Mapping[str, Any]
Row = Mapping[str, Any]
_JUDGED = ("per_seed", "mean", "low", "high", "p_equivalence", "verdict")
SIGNS = {"equivalent": "=", "better": "−", "worse": "+", "undecided": "?"}

# Okabe and Ito's palette: told apart by every kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
_MARKERS = {"top-1": "x", "top-2": "^", "full": "o"}


def aggregated(cells: Sequence[Cell], *, margin: float) -> list[dict[str, Any]]:
    """One row per partition, world and rung: means over seeds, and each difference judged.

    Differences are in nats per byte: this rung minus the centre, and minus the full Bayes gate.
    `documents` is the bootstrap interval over documents inside each seed.
    """
    rows = []
    for partition in dict.fromkeys(cell["partition"] for cell in cells):
        own = [cell for cell in cells if cell["partition"] == partition]
        for world in own[0]["worlds"]:
            seeds = [cell["worlds"][world] for cell in own]
            for rungs in zip(*(seed["rows"] for seed in seeds), strict=True):
                minus = {}
                for name in rungs[0]["minus"]:
                    intervals = [rung["minus"][name] for rung in rungs]
                    judged = compare([x[0] for x in intervals], margin=margin).as_record()
                    minus[name] = {field: judged[field] for field in _JUDGED}
                    minus[name]["documents"] = [x[1:] for x in intervals]
                rows.append(
                    {
                        "partition": partition,
                        "num_experts": own[0]["num_experts"],
                        "world": world,
                        "gate": rungs[0]["gate"],
                        "top": rungs[0]["top"],
                        "nll": _mean(rung["nll"] for rung in rungs),
                        "evaluations": _mean(rung["evaluations"] for rung in rungs),
                        "terms": {
                            name: _mean(rung["terms"][name] for rung in rungs)
                            for name in rungs[0]["terms"]
                        },
                        "minus": minus,
                    }
                )
    return rows


def summarised(cells: Sequence[Cell]) -> dict[str, Any]:
    """What is not a rung, by partition and world: means over seeds, and the choices made."""
    summary: dict[str, Any] = {}
    for partition in dict.fromkeys(cell["partition"] for cell in cells):
        own = [cell for cell in cells if cell["partition"] == partition]
        summary[partition] = {
            "weights": [cell["weights"] for cell in own],
            "orders": [cell["orders"] for cell in own],
            "centre_order": [cell["centre_order"] for cell in own],
            "worlds": {
                world: _over_seeds([cell["worlds"][world] for cell in own])
                for world in own[0]["worlds"]
            },
        }
    return summary


def _over_seeds(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "bytes": [seed["bytes"] for seed in seeds],
        "units": [seed["units"] for seed in seeds],
        "alpha": [seed["alpha"] for seed in seeds],
        "centre_nll": _mean(seed["centre_nll"] for seed in seeds),
        "flattery": {
            name: _mean(seed["flattery"][name] for seed in seeds) for name in seeds[0]["flattery"]
        },
        "margins": {
            name: np.mean([seed["margins"]["Bayes"][name] for seed in seeds], axis=0).tolist()
            for name in seeds[0]["margins"]["Bayes"]
        },
    }


def records(cells: Iterable[Cell]) -> Iterator[dict[str, Any]]:
    """One line per seed, partition, world and rung."""
    for cell in cells:
        for world, found in cell["worlds"].items():
            for row in found["rows"]:
                yield {"seed": cell["seed"], "partition": cell["partition"], "world": world, **row}


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _select(rows: Iterable[Row], **wanted: str) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _partitions(rows: Iterable[Row]) -> dict[str, str]:
    return {row["partition"]: f"{row['partition']}, K={row['num_experts']}" for row in rows}


# ── on screen ───────────────────────────────────────────────────────────────────────────────────


def print_tables(console: Console, rows: Sequence[Row], summary: Mapping[str, Any]) -> None:
    """The ladder of held-out text twice, its account, the other worlds, the oracles."""
    titles = {
        "reset": "The ladder: gates start again with every window",
        "carried": "The ladder again: gates are carried through the document",
    }
    for world, title in titles.items():
        console.print(_ladder(_select(rows, world=world), title))
    console.print(_account(_select(rows, world="reset")))
    console.print(_worlds(rows))
    console.print(_flattery(summary))


def _table(*columns: str, title: str, caption: str) -> Table:
    """Narrow enough for 80 columns."""
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=0)
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def _ladder(rows: Sequence[Row], title: str) -> Table:
    partitions = _partitions(rows)
    signs = ", ".join(f"{sign} {word}" for word, sign in SIGNS.items())
    table = _table(
        *("gate", "top", *partitions.values()),
        title=f"{title}:\nensemble − centre, nats per byte",
        caption=f"Mean and 95 % t interval over seeds; {signs}.",
    )
    for gate, top in dict.fromkeys((row["gate"], row["top"]) for row in rows):
        cells = []
        for partition in partitions:
            (row,) = _select(rows, partition=partition, gate=gate, top=top)
            cells.append(_judged(row["minus"]["centre"]))
        name, count = gate if top == "top-1" else "", top.removeprefix("top-")
        table.add_row(name, count, *cells, end_section=top == "full")
    return table


def _judged(found: Mapping[str, Any]) -> str:
    reach = "" if found["low"] is None else f"{(found['high'] - found['low']) / 2:.3f}"
    reach = f"±{reach.removeprefix('0')[:4]}" if reach else ""
    return f"{found['mean']:+.3f}{reach}{SIGNS[found['verdict']]}"


def _account(rows: Sequence[Row]) -> Table:
    table = _table(
        *("parts", "gate", "own", "+ price", "+ gate", "= full", "→ 1", "→ 2", "experts"),
        title="Where it comes from, reset gates: terms of ensemble − centre, nats per byte",
        caption="own: the part's own expert − centre; price: what Bayes pays to find it;\n"
        "gate: − Bayes; → 1, → 2: top-1, top-2 − full. Experts run per byte: full, top-1.",
    )
    for partition in _partitions(rows):
        gates = [row["gate"] for row in _select(rows, partition=partition, top="full")]
        for gate in gates:
            own = {row["top"]: row for row in _select(rows, partition=partition, gate=gate)}
            terms = own["full"]["terms"]
            table.add_row(
                *(partition if gate == gates[0] else "", gate),
                *(f"{terms[name]:+.3f}" for name in ("own", "price", "gate")),
                f"{own['full']['minus']['centre']['mean']:+.3f}",
                *(f"{own[top]['terms']['truncation']:+.3f}" for top in ("top-1", "top-2")),
                f"{own['full']['evaluations']:.1f}, {own['top-1']['evaluations']:.1f}",
                end_section=gate == gates[-1],
            )
    return table


def _worlds(rows: Sequence[Row]) -> Table:
    partitions = _partitions(rows)
    table = _table(
        *("text", "gate", *partitions.values()),
        title="Full gates − Bayes, nats per byte: when is Bayes best?",
        caption="generated: by the experts themselves, which are exact there;\n"
        "held out: real text; spliced: the part changes in the middle of a window.",
    )
    titles = {"generated": "generated", "reset": "held out", "spliced": "spliced"}
    for world, title in titles.items():
        gates = [row["gate"] for row in _select(rows, world=world, top="full")]
        gates = [gate for gate in dict.fromkeys(gates) if gate != "Bayes"]
        for gate in gates:
            found = [
                _select(rows, world=world, gate=gate, top="full", partition=partition)[0]
                for partition in partitions
            ]
            table.add_row(
                *(title if gate == gates[0] else "", gate),
                *(_judged(row["minus"]["bayes"]) for row in found),
                end_section=gate == gates[-1],
            )
    return table


def _flattery(summary: Mapping[str, Any]) -> Table:
    table = _table(
        *("parts", "its own", "≤", "best", "≤", "sure", "top-1 − full", "of it sure"),
        title="Oracles that have read the whole window, and how sure the Bayes gate is",
        caption="Gain over Bayes of its own part's expert, and of the best by hindsight, nats\n"
        "per window, and their bounds E[−log w_k] (B9, B11). "
        "Sure: r₁ − r₂ > 0.9, % of bytes; what top-1 costs, nats per byte.",
    )
    for partition, found in summary.items():
        world = found["worlds"]["reset"]
        gains, margins = world["flattery"], world["margins"]
        gap = margins["hard_minus_soft"]
        table.add_row(
            partition,
            *(f"{gains[name]:+.3f}" for name in ("part", "part_ceiling", "best", "best_ceiling")),
            f"{100 * margins['bytes'][-1]:.1f}",
            *(f"{sum(gap):.4f}", f"{gap[-1]:.4f}"),
        )
    return table


# ── the figure ──────────────────────────────────────────────────────────────────────────────────


def draw(path: Path, rows: Sequence[Row], trace: Mapping[str, Any], margin: float) -> Path:
    """Above, three gates along a sequence that changes its part; below, the ladder by partition."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    halves = figure.add_gridspec(2, 1, height_ratios=(1, 1.7))
    _draw_trace(figure.add_subfigure(halves[0]), trace)
    _draw_ladder(figure.add_subfigure(halves[1]), _select(rows, world="reset"), margin)
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
    partitions = _partitions(rows)
    gates = list(dict.fromkeys(row["gate"] for row in rows))
    panels = figure.subplots(1, len(partitions), sharey=True, sharex=True, squeeze=False)[0]
    for axes, (partition, label) in zip(panels, partitions.items(), strict=True):
        axes.axvspan(-margin, margin, color="#DDDDDD", linewidth=0)
        for row, (top, marker) in enumerate(_MARKERS.items()):
            own = _select(rows, partition=partition, top=top)
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
