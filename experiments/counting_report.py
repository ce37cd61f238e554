"""What `counting` shows: cells gathered over seeds, the ladder and its account."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.gate_ladder import NUM_BINS
from experiments.statistics import compare

Cell = Mapping[str, Any]
Row = Mapping[str, Any]
_JUDGED = ("per_seed", "mean", "low", "high", "p_equivalence", "verdict")
SIGNS = {"equivalent": "=", "better": "−", "worse": "+", "undecided": "?"}


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
            "tuned": [cell["tuned"] for cell in own],  # n and discount: the centre, then experts
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


def select(rows: Iterable[Row], **wanted: str) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def partition_labels(rows: Iterable[Row]) -> dict[str, str]:
    return {row["partition"]: f"{row['partition']}, K={row['num_experts']}" for row in rows}


# ── on screen ───────────────────────────────────────────────────────────────────────────────────


def print_tables(console: Console, rows: Sequence[Row], summary: Mapping[str, Any]) -> None:
    """The text; the ladder twice, its account; the other worlds; oracles and margins."""
    console.print(_texts(summary["splits"][0]))
    titles = {
        "reset": "The ladder: gates start again with every window",
        "carried": "The ladder again: gates are carried through the document",
    }
    for world, title in titles.items():
        console.print(_ladder(select(rows, world=world), title))
    console.print(_account(select(rows, world="reset")))
    console.print(_worlds(rows))
    console.print(_oracles(summary["partitions"]))
    console.print(_margins(summary["partitions"]))


def _table(*columns: str, title: str, caption: str) -> Table:
    """Narrow enough for 80 columns."""
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=0)
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def _ladder(rows: Sequence[Row], title: str) -> Table:
    partitions = partition_labels(rows)
    signs = ", ".join(f"{sign} {word}" for word, sign in SIGNS.items())
    table = _table(
        *("gate", "top", *partitions.values()),
        title=f"{title}:\nensemble − centre, nats per byte",
        caption=f"Mean and 95 % t interval over seeds;\n{signs}.",
    )
    for gate, top in dict.fromkeys((row["gate"], row["top"]) for row in rows):
        cells = []
        for partition in partitions:
            (row,) = select(rows, partition=partition, gate=gate, top=top)
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
        title="Where it comes from, reset gates:\nterms of ensemble − centre, nats per byte",
        caption="own: the part's own expert − centre; price: what Bayes pays to find it;\n"
        "gate: − Bayes; → 1, → 2: top-1, top-2 − full; experts run per byte: full, top-1.",
    )
    for partition in partition_labels(rows):
        gates = [row["gate"] for row in select(rows, partition=partition, top="full")]
        for gate in gates:
            own = {row["top"]: row for row in select(rows, partition=partition, gate=gate)}
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
    partitions = partition_labels(rows)
    table = _table(
        *("text", "gate", *partitions.values()),
        title="Full gates − Bayes, nats per byte: when is Bayes best?",
        caption="generated: by the experts themselves, which are exact there;\n"
        "held out: real text; spliced: the part changes in the middle of a window.",
    )
    titles = {"generated": "generated", "reset": "held out", "spliced": "spliced"}
    for world, title in titles.items():
        gates = [row["gate"] for row in select(rows, world=world, top="full")]
        gates = [gate for gate in dict.fromkeys(gates) if gate != "Bayes"]
        for gate in gates:
            found = [
                select(rows, world=world, gate=gate, top="full", partition=partition)[0]
                for partition in partitions
            ]
            table.add_row(
                *(title if gate == gates[0] else "", gate),
                *(_judged(row["minus"]["bayes"]) for row in found),
                end_section=gate == gates[-1],
            )
    return table


def _oracles(partitions: Mapping[str, Any]) -> Table:
    table = _table(
        *("parts", "own part's", "at most", "best by hindsight", "at most"),
        title="What an oracle that has read the window gains over Bayes",
        caption="Nats per window; the bound is the mean −log w_k of its expert (B9, B11).",
    )
    for partition, found in partitions.items():
        gains = found["worlds"]["reset"]["flattery"]
        names = ("part", "part_ceiling", "best", "best_ceiling")
        table.add_row(partition, *(f"{gains[name]:+.3f}" for name in names))
    return table


def _margins(partitions: Mapping[str, Any]) -> Table:
    edges = (0, 1, 5, 9, NUM_BINS)
    table = _table(
        *("parts", "margin", *(f"{a / NUM_BINS:g} – {b / NUM_BINS:g}" for a, b in pairwise(edges))),
        "all",
        title="How sure the Bayes gate is, and what its top-1 costs there",
        caption="The margin is r₁ − r₂; top-1 − full in nats per byte of the whole text.",
    )
    for partition, found in partitions.items():
        margins = found["worlds"]["reset"]["margins"]
        for name, label, style in (
            ("bytes", "of the bytes", "{:.1%}"),
            ("hard_minus_soft", "top-1 − full", "{:+.4f}"),
        ):
            sums = np.add.reduceat(margins[name], edges[:-1])
            first = partition if name == "bytes" else ""
            table.add_row(first, label, *(style.format(x) for x in (*sums, sums.sum())))
    return table


def _texts(split: Mapping[str, Any]) -> Table:
    table = _table(
        *("domain", "train", "kB", "validation", "kB", "test", "kB", "removed", "kB"),
        title="Documents of the first seed, and those held out that repeat another split",
        caption="Removed: more than a fifth of its 13-grams of words stand in another split.",
    )
    for domain, found in split.items():
        cells = [(part["documents"], part["bytes"]) for part in found.values()]
        removed = [(part["removed_documents"], part["removed_bytes"]) for part in found.values()]
        cells.append((sum(n for n, _ in removed), sum(size for _, size in removed)))
        table.add_row(domain, *(x for n, size in cells for x in (f"{n:,}", f"{size / 1e3:,.0f}")))
    return table
