"""A ladder of gates, gathered over seeds: rows, and the tables of the README."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.lib.statistics import compare

Cell = Mapping[str, Any]
Row = Mapping[str, Any]
JUDGED = ("per_seed", "mean", "low", "high", "p_equivalence", "verdict")
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
                    minus[name] = {field: judged[field] for field in JUDGED}
                    minus[name]["documents"] = [x[1:] for x in intervals]
                rows.append(
                    {
                        "partition": partition,
                        "num_experts": own[0]["num_experts"],
                        "world": world,
                        "gate": rungs[0]["gate"],
                        "top": rungs[0]["top"],
                        "nll": mean(rung["nll"] for rung in rungs),
                        "evaluations": mean(rung["evaluations"] for rung in rungs),
                        "terms": {
                            name: mean(rung["terms"][name] for rung in rungs)
                            for name in rungs[0]["terms"]
                        },
                        "minus": minus,
                    }
                )
    return rows


def records(cells: Iterable[Cell]) -> Iterator[dict[str, Any]]:
    """One line per seed, partition, world and rung."""
    for cell in cells:
        for world, found in cell["worlds"].items():
            for row in found["rows"]:
                yield {"seed": cell["seed"], "partition": cell["partition"], "world": world, **row}


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def select(rows: Iterable[Row], **wanted: str) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def partition_labels(rows: Iterable[Row]) -> dict[str, str]:
    return {row["partition"]: f"{row['partition']}, K={row['num_experts']}" for row in rows}


def judged(found: Mapping[str, Any]) -> str:
    """A mean, half its interval, and the sign of its verdict."""
    reach = "" if found["low"] is None else f"{(found['high'] - found['low']) / 2:.3f}"
    reach = f"±{reach.removeprefix('0')[:4]}" if reach else ""
    return f"{found['mean']:+.3f}{reach}{SIGNS[found['verdict']]}"


# ── Markdown ────────────────────────────────────────────────────────────────────────────────────


def markdown_lines(table: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(cells)} |" for cells in table)
    return "\n".join([head, f"|{'---|' * len(table[0])}", *body])


def ladder_table(rows: Sequence[Row]) -> list[list[str]]:
    reset = select(rows, world="reset")
    partitions = list(partition_labels(rows))
    table = [["ensemble − centre", *partitions]]
    for gate in dict.fromkeys(row["gate"] for row in reset):
        tops = {row["top"] for row in select(reset, gate=gate)}
        for top in [top for top in ("full", "top-1") if top in tops]:
            found = across(reset, partitions, gate=gate, top=top)
            table.append([f"{gate}, {top}", *(judged(row["minus"]["centre"]) for row in found)])
    return table


def account_table(rows: Sequence[Row]) -> list[list[str]]:
    reset = select(rows, world="reset")
    table = [["held out", "own", "price", "gate", "= full", "top-1 − full"]]
    for partition in partition_labels(rows):
        for gate in whole_gates(select(reset, partition=partition)):
            if gate == "last token":
                continue
            (full,) = across(reset, [partition], gate=gate, top="full")
            (one,) = across(reset, [partition], gate=gate, top="top-1")
            terms = [full["terms"][name] for name in ("own", "price", "gate")]
            values = (*terms, full["minus"]["centre"]["mean"], one["terms"]["truncation"])
            table.append([f"{partition}: {gate}", *(f"{value:+.3f}" for value in values)])
    return table


def whole_gates(rows: Sequence[Row]) -> list[str]:
    """Those that run to the end, in order."""
    gates = dict.fromkeys(row["gate"] for row in rows if row["top"] == "full")
    return [gate for gate in gates if not gate.startswith("prefix ")]


def across(rows: Sequence[Row], partitions: Iterable[str], **wanted: str) -> list[Row]:
    """The one row of each partition."""
    found = [select(rows, partition=partition, **wanted) for partition in partitions]
    return [row for (row,) in found]
