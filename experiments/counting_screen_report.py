"""What `counting` prints: the text, the ladder and its account, other worlds, oracles, margins."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.counting_report import SIGNS, WORLDS, Row, judged, partition_labels, select
from experiments.gate_ladder import NUM_BINS


def print_tables(console: Console, rows: Sequence[Row], summary: Mapping[str, Any]) -> None:
    """The text; the ladder twice, its account; the other worlds; oracles and margins."""
    console.print(_texts(summary["splits"][0]))
    titles = {
        "reset": "The ladder: gates start again with every window",
        "carried": "The ladder again: gates are carried through the document",
    }
    for world, title in titles.items():
        for partitions in _groups(rows, 4):
            console.print(_ladder(select(rows, world=world), title, partitions))
    console.print(_account(select(rows, world="reset")))
    for partitions in _groups(rows, 3):
        console.print(_worlds(rows, partitions))
    console.print(_oracles(summary["partitions"]))
    console.print(_margins(summary["partitions"]))


def _table(*columns: str, title: str, caption: str) -> Table:
    """Narrow enough for 80 columns."""
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=0)
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def _groups(rows: Sequence[Row], most: int) -> list[dict[str, str]]:
    """The partitions, no more in a table than fit side by side, and as many in each as can be."""
    labels = list(partition_labels(rows).items())
    groups = np.array_split(np.arange(len(labels)), -(-len(labels) // most))
    return [dict(labels[i] for i in group) for group in groups]


def _ladder(rows: Sequence[Row], title: str, partitions: Mapping[str, str]) -> Table:
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
            cells.append(judged(row["minus"]["centre"]))
        name, count = gate if top == "top-1" else "", top.removeprefix("top-")
        table.add_row(name, count, *cells, end_section=top == "full")
    return table


def _account(rows: Sequence[Row]) -> Table:
    table = _table(
        *("gate", "own", "+ price", "+ gate", "= full", "→ 1", "→ 2", "experts"),
        title="Where it comes from, reset gates:\nterms of ensemble − centre, nats per byte",
        caption="own: the part's own expert − centre; price: what Bayes pays to find it;\n"
        "gate: − Bayes; → 1, → 2: top-1, top-2 − full; experts run per byte: full, top-1.",
    )
    for partition, label in partition_labels(rows).items():
        table.add_row(f"[bold]{label}[/]")
        gates = [row["gate"] for row in select(rows, partition=partition, top="full")]
        for gate in gates:
            own = {row["top"]: row for row in select(rows, partition=partition, gate=gate)}
            terms = own["full"]["terms"]
            table.add_row(
                gate,
                *(f"{terms[name]:+.3f}" for name in ("own", "price", "gate")),
                f"{own['full']['minus']['centre']['mean']:+.3f}",
                *(f"{own[top]['terms']['truncation']:+.3f}" for top in ("top-1", "top-2")),
                f"{own['full']['evaluations']:.1f}, {own['top-1']['evaluations']:.1f}",
                end_section=gate == gates[-1],
            )
    return table


def _worlds(rows: Sequence[Row], partitions: Mapping[str, str]) -> Table:
    table = _table(
        *("text", "gate", *partitions.values()),
        title="Full gates − Bayes, nats per byte: when is Bayes best?",
        caption="generated: by the experts themselves, which are exact there;\n"
        "held out: real text; spliced: the part changes in the middle of a window.",
    )
    for world, title in WORLDS.items():
        gates = [row["gate"] for row in select(rows, world=world, top="full")]
        gates = [gate for gate in dict.fromkeys(gates) if gate != "Bayes"]
        for gate in gates:
            found = [
                select(rows, world=world, gate=gate, top="full", partition=partition)[0]
                for partition in partitions
            ]
            table.add_row(
                *(title if gate == gates[0] else "", gate),
                *(judged(row["minus"]["bayes"]) for row in found),
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
