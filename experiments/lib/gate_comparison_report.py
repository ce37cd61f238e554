"""A comparison of gates, gathered over seeds: rows, and the tables of the README."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dfm_jax.comparison import compare

Cell = Mapping[str, Any]
Row = Mapping[str, Any]
JUDGED = ("per_seed", "mean", "low", "high", "p_equivalence", "verdict")
SIGNS = {"equivalent": "=", "better": "−", "worse": "+", "undecided": "?"}


def aggregated(cells: Sequence[Cell], *, margin: float) -> list[dict[str, Any]]:
    """One row per partition, evaluation set and gate variant: means over seeds, with verdicts.

    Differences are in nats per byte: this gate variant minus the dense model, and minus the full
    Bayes gate. `documents` is the bootstrap interval over documents inside each seed.
    """
    rows = []
    for partition in dict.fromkeys(cell["partition"] for cell in cells):
        own = [cell for cell in cells if cell["partition"] == partition]
        for evaluation_set in own[0]["evaluation_sets"]:
            seeds = [cell["evaluation_sets"][evaluation_set] for cell in own]
            for gate_variants in zip(*(seed["rows"] for seed in seeds), strict=True):
                minus = {}
                for name in gate_variants[0]["minus"]:
                    intervals = [gate_variant["minus"][name] for gate_variant in gate_variants]
                    judged = compare([x[0] for x in intervals], margin=margin).as_record()
                    minus[name] = {field: judged[field] for field in JUDGED}
                    minus[name]["documents"] = [x[1:] for x in intervals]
                rows.append(
                    {
                        "partition": partition,
                        "num_experts": own[0]["num_experts"],
                        "evaluation_set": evaluation_set,
                        "gate": gate_variants[0]["gate"],
                        "top": gate_variants[0]["top"],
                        "nll": mean(gate_variant["nll"] for gate_variant in gate_variants),
                        "evaluations": mean(
                            gate_variant["evaluations"] for gate_variant in gate_variants
                        ),
                        "terms": {
                            name: mean(
                                gate_variant["terms"][name] for gate_variant in gate_variants
                            )
                            for name in gate_variants[0]["terms"]
                        },
                        "minus": minus,
                    }
                )
    return rows


def records(cells: Iterable[Cell]) -> Iterator[dict[str, Any]]:
    """One line per seed, partition, evaluation set and gate variant."""
    for cell in cells:
        for evaluation_set, found in cell["evaluation_sets"].items():
            for row in found["rows"]:
                yield {
                    "seed": cell["seed"],
                    "partition": cell["partition"],
                    "evaluation_set": evaluation_set,
                    **row,
                }


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


def gate_comparison_table(rows: Sequence[Row]) -> list[list[str]]:
    reset = select(rows, evaluation_set="reset")
    partitions = list(partition_labels(rows))
    table = [["ensemble − dense", *partitions]]
    for gate in dict.fromkeys(row["gate"] for row in reset):
        tops = {row["top"] for row in select(reset, gate=gate)}
        for top in [top for top in ("full", "top-1") if top in tops]:
            found = across(reset, partitions, gate=gate, top=top)
            table.append([f"{gate}, {top}", *(judged(row["minus"]["dense"]) for row in found)])
    return table


def account_table(rows: Sequence[Row]) -> list[list[str]]:
    reset = select(rows, evaluation_set="reset")
    table = [["held out", "own", "cost", "gate", "= full", "top-1 − full"]]
    for partition in partition_labels(rows):
        for gate in whole_gates(select(reset, partition=partition)):
            if gate == "last token":
                continue
            (full,) = across(reset, [partition], gate=gate, top="full")
            (one,) = across(reset, [partition], gate=gate, top="top-1")
            terms = [full["terms"][name] for name in ("own", "cost", "gate")]
            values = (*terms, full["minus"]["dense"]["mean"], one["terms"]["truncation"])
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
