"""A comparison of gates on the screen: differences to the dense model, and where they come from."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.lib.gate_comparison_report import SIGNS, Row, judged, partition_labels, select


def narrow_table(*columns: str, title: str, caption: str) -> Table:
    """Narrow enough for 80 columns."""
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=0)
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def groups(rows: Sequence[Row], most: int) -> list[dict[str, str]]:
    """The partitions, no more in a table than fit side by side, and as many in each as can be."""
    labels = list(partition_labels(rows).items())
    groups = np.array_split(np.arange(len(labels)), -(-len(labels) // most))
    return [dict(labels[i] for i in group) for group in groups]


def gate_comparison(rows: Sequence[Row], title: str, partitions: Mapping[str, str]) -> Table:
    signs = ", ".join(f"{sign} {word}" for word, sign in SIGNS.items())
    table = narrow_table(
        *("gate", "top", *partitions.values()),
        title=f"{title}:\nensemble − dense, nats per byte",
        caption=f"Mean and 95 % t interval over seeds;\n{signs}.",
    )
    for gate, top in dict.fromkeys((row["gate"], row["top"]) for row in rows):
        cells = []
        for partition in partitions:
            (row,) = select(rows, partition=partition, gate=gate, top=top)
            cells.append(judged(row["minus"]["dense"]))
        name, count = gate if top == "top-1" else "", top.removeprefix("top-")
        table.add_row(name, count, *cells, end_section=top == "full")
    return table


def account(rows: Sequence[Row]) -> Table:
    table = narrow_table(
        *("gate", "own", "+ cost", "+ gate", "= full", "→ 1", "→ 2", "experts"),
        title="Where it comes from, reset gates:\nterms of ensemble − dense, nats per byte",
        caption="own: the part's own expert − dense; cost: what Bayes pays to find it;\n"
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
                *(f"{terms[name]:+.3f}" for name in ("own", "cost", "gate")),
                f"{own['full']['minus']['dense']['mean']:+.3f}",
                *(f"{own[top]['terms']['truncation']:+.3f}" for top in ("top-1", "top-2")),
                f"{own['full']['evaluations']:.1f}, {own['top-1']['evaluations']:.1f}",
                end_section=gate == gates[-1],
            )
    return table
