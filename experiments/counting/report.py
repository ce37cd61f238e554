"""What `counting` measured: cells gathered over seeds; the tables of the README.

python -m experiments.counting.report experiments/results/counting.json
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfm_jax.comparison.gates import INFORMED
from experiments.lib import study
from experiments.lib.gate_comparison_report import (
    Cell,
    Row,
    account_table,
    across,
    gate_comparison_table,
    judged,
    markdown_lines,
    mean,
    partition_labels,
    select,
    whole_gates,
)

EVALUATION_SETS = {"generated": "generated", "reset": "held out", "spliced": "spliced"}


def summarized(cells: Sequence[Cell]) -> dict[str, Any]:
    """Results that are not of a gate variant: means over seeds, and the choices that were made."""
    summary: dict[str, Any] = {}
    for partition in dict.fromkeys(cell["partition"] for cell in cells):
        own = [cell for cell in cells if cell["partition"] == partition]
        summary[partition] = {
            "weights": [cell["weights"] for cell in own],
            "domains": mean(cell["domains"] for cell in own),  # NMI with them
            "search": [cell["search"] for cell in own],  # of the parts, where there was one
            "tuned": [
                cell["tuned"] for cell in own
            ],  # n and discount: the dense model, then experts
            "router": [cell["router"] for cell in own],
            "evaluation_sets": {
                evaluation_set: _over_seeds(
                    [cell["evaluation_sets"][evaluation_set] for cell in own]
                )
                for evaluation_set in own[0]["evaluation_sets"]
            },
        }
    return summary


def _over_seeds(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "bytes": [seed["bytes"] for seed in seeds],
        "units": [seed["units"] for seed in seeds],
        "alpha": [seed["alpha"] for seed in seeds],
        "contexts": [seed["contexts"] for seed in seeds],
        "dense_nll": mean(seed["dense_nll"] for seed in seeds),
        "flattery": {
            name: mean(seed["flattery"][name] for seed in seeds) for name in seeds[0]["flattery"]
        },
        "margins": {
            name: np.mean([seed["margins"]["Bayes"][name] for seed in seeds], axis=0).tolist()
            for name in seeds[0]["margins"]["Bayes"]
        },
    }


# ── Markdown ────────────────────────────────────────────────────────────────────────────────────


def markdown(result: Mapping[str, Any]) -> list[str]:
    """The tables of `experiments/README.md`, from what `result.json` holds.

    The gate comparison without top-2; its account and the other evaluation sets without gates that
    stop early; and, where gates read contexts, what was fitted for them.
    """
    rows, partitions = result["rows"], result["summary"]["partitions"]
    tables = [gate_comparison_table(rows), account_table(rows), _evaluation_sets(rows)]
    if any(found["evaluation_sets"]["reset"].get("contexts") for found in partitions.values()):
        tables.append(_fitted(partitions))
    return list(map(markdown_lines, tables))


def _evaluation_sets(rows: Sequence[Row]) -> list[list[str]]:
    partitions = list(partition_labels(rows))
    table = [["full gate − Bayes", *partitions]]
    for evaluation_set, title in EVALUATION_SETS.items():
        own = select(rows, evaluation_set=evaluation_set)
        for gate in whole_gates(own):
            if gate != "Bayes":
                found = across(own, partitions, gate=gate, top="full")
                shown = (judged(row["minus"]["bayes"]) for row in found)
                table.append([f"{title}: {gate}", *shown])
    return table


def _fitted(partitions: Mapping[str, Any]) -> list[list[str]]:
    """Temperatures by gate and use, the router's decay: smallest and largest over seeds.

    And how many windows of test have nothing to read before them, so that a gate keeps the prior.
    """
    table = [["fitted on validation", *partitions]]
    seeds = {
        name: found["evaluation_sets"]["reset"]["contexts"] for name, found in partitions.items()
    }
    gates = next(iter(seeds.values()))[0]["temperatures"]
    for gate in gates:
        for use, label in (("fixed", f"τ of {gate}"), ("prior", f"τ of {gate}{INFORMED}")):
            found = [[seed["temperatures"][gate][use] for seed in own] for own in seeds.values()]
            table.append([label, *map(_temperatures, found)])
    decays = [[seed["decay"] for seed in found["router"]] for found in partitions.values()]
    table.append(["decay of router", *(_range(found, "g") for found in decays)])
    empty = [[seed["empty"] / seed["sequences"] for seed in own] for own in seeds.values()]
    table.append(["windows without a context", *(_range(found, ".0%") for found in empty)])
    return table


def _temperatures(seeds: Sequence[Mapping[str, Any]]) -> str:
    ends = sum(seed["at_bound"] for seed in seeds)
    at_bound = f" ({ends} of {len(seeds)} at the end searched)" if ends else ""
    return _range([seed["temperature"] for seed in seeds], ".3g") + at_bound


def _range(values: Sequence[float], style: str) -> str:
    low, high = f"{min(values):{style}}", f"{max(values):{style}}"
    return low if low == high else f"{low} to {high}"


def main(args: Sequence[str] | None = None) -> int:
    """0, or 2 if the file cannot be used."""
    return study.show_tables("counting", markdown, args)


if __name__ == "__main__":
    sys.exit(main())
