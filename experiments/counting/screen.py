"""The output of `counting` on the screen: text, gates, account, other sets, oracles, margins."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dfm_jax.comparison.gates import NUM_BINS
from experiments.counting.report import EVALUATION_SETS
from experiments.lib.gate_comparison_report import Row, judged, select
from experiments.lib.gate_comparison_screen_report import (
    account,
    gate_comparison,
    groups,
    narrow_table,
)


def print_tables(console: Console, rows: Sequence[Row], summary: Mapping[str, Any]) -> None:
    """Print the text, the gates twice, the account, the other sets, oracles and margins."""
    console.print(_texts(summary["splits"][0]))
    titles = {
        "reset": "The gate comparison: gates start again with every window",
        "carried": "The gate comparison again: gates are carried through the document",
    }
    for evaluation_set, title in titles.items():
        for partitions in groups(rows, 4):
            console.print(
                gate_comparison(select(rows, evaluation_set=evaluation_set), title, partitions)
            )
    console.print(account(select(rows, evaluation_set="reset")))
    for partitions in groups(rows, 3):
        console.print(_evaluation_sets(rows, partitions))
    console.print(_oracles(summary["partitions"]))
    console.print(_margins(summary["partitions"]))


def _evaluation_sets(rows: Sequence[Row], partitions: Mapping[str, str]) -> Table:
    table = narrow_table(
        *("text", "gate", *partitions.values()),
        title="Full gates − Bayes, nats per byte: when is Bayes best?",
        caption="generated: by the experts themselves, which are exact there;\n"
        "held out: real text; spliced: the part changes in the middle of a window.",
    )
    for evaluation_set, title in EVALUATION_SETS.items():
        gates = [row["gate"] for row in select(rows, evaluation_set=evaluation_set, top="full")]
        gates = [gate for gate in dict.fromkeys(gates) if gate != "Bayes"]
        for gate in gates:
            found = [
                select(
                    rows, evaluation_set=evaluation_set, gate=gate, top="full", partition=partition
                )[0]
                for partition in partitions
            ]
            table.add_row(
                *(title if gate == gates[0] else "", gate),
                *(judged(row["minus"]["bayes"]) for row in found),
                end_section=gate == gates[-1],
            )
    return table


def _oracles(partitions: Mapping[str, Any]) -> Table:
    table = narrow_table(
        *("parts", "own part's", "at most", "best by hindsight", "at most"),
        title="What an oracle that has read the window gains over Bayes",
        caption="Nats per window; the bound is the mean −log w_k of its expert (B9, B11).",
    )
    for partition, found in partitions.items():
        gains = found["evaluation_sets"]["reset"]["flattery"]
        names = ("part", "part_ceiling", "best", "best_ceiling")
        table.add_row(partition, *(f"{gains[name]:+.3f}" for name in names))
    return table


def _margins(partitions: Mapping[str, Any]) -> Table:
    edges = (0, 1, 5, 9, NUM_BINS)
    table = narrow_table(
        *("parts", "margin", *(f"{a / NUM_BINS:g} – {b / NUM_BINS:g}" for a, b in pairwise(edges))),
        "all",
        title="How sure the Bayes gate is, and what its top-1 costs there",
        caption="The margin is r₁ − r₂; top-1 − full in nats per byte of the whole text.",
    )
    for partition, found in partitions.items():
        margins = found["evaluation_sets"]["reset"]["margins"]
        for name, label, style in (
            ("bytes", "of the bytes", "{:.1%}"),
            ("hard_minus_soft", "top-1 − full", "{:+.4f}"),
        ):
            sums = np.add.reduceat(margins[name], edges[:-1])
            first = partition if name == "bytes" else ""
            table.add_row(first, label, *(style.format(x) for x in (*sums, sums.sum())))
    return table


def _texts(split: Mapping[str, Any]) -> Table:
    table = narrow_table(
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
