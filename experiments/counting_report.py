"""What `counting` measured: cells gathered over seeds; the tables of the README.

python -m experiments.counting_report experiments/results/counting.json
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from dfm_jax.checks import require
from experiments import study
from experiments.gate_ladder import INFORMED
from experiments.statistics import compare

Cell = Mapping[str, Any]
Row = Mapping[str, Any]
_JUDGED = ("per_seed", "mean", "low", "high", "p_equivalence", "verdict")
WORLDS = {"generated": "generated", "reset": "held out", "spliced": "spliced"}
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
            "domains": _mean(cell["domains"] for cell in own),  # NMI with them
            "search": [cell["search"] for cell in own],  # of the parts, where there was one
            "tuned": [cell["tuned"] for cell in own],  # n and discount: the centre, then experts
            "router": [cell["router"] for cell in own],
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
        "contexts": [seed["contexts"] for seed in seeds],
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


def judged(found: Mapping[str, Any]) -> str:
    """A mean, half its interval, and the sign of its verdict."""
    reach = "" if found["low"] is None else f"{(found['high'] - found['low']) / 2:.3f}"
    reach = f"±{reach.removeprefix('0')[:4]}" if reach else ""
    return f"{found['mean']:+.3f}{reach}{SIGNS[found['verdict']]}"


# ── Markdown ────────────────────────────────────────────────────────────────────────────────────


def markdown(result: Mapping[str, Any]) -> list[str]:
    """The tables of `experiments/README.md`, from what `result.json` holds.

    The ladder without top-2; its account and the other worlds without gates that stop early; and,
    where gates read contexts, what was fitted for them.
    """
    rows, partitions = result["rows"], result["summary"]["partitions"]
    tables = [_ladder(rows), _account(rows), _worlds(rows)]
    if any(found["worlds"]["reset"].get("contexts") for found in partitions.values()):
        tables.append(_fitted(partitions))
    return list(map(_lines, tables))


def _lines(table: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(cells)} |" for cells in table)
    return "\n".join([head, f"|{'---|' * len(table[0])}", *body])


def _ladder(rows: Sequence[Row]) -> list[list[str]]:
    reset = select(rows, world="reset")
    partitions = list(partition_labels(rows))
    table = [["ensemble − centre", *partitions]]
    for gate in dict.fromkeys(row["gate"] for row in reset):
        tops = {row["top"] for row in select(reset, gate=gate)}
        for top in [top for top in ("full", "top-1") if top in tops]:
            found = _across(reset, partitions, gate=gate, top=top)
            table.append([f"{gate}, {top}", *(judged(row["minus"]["centre"]) for row in found)])
    return table


def _account(rows: Sequence[Row]) -> list[list[str]]:
    reset = select(rows, world="reset")
    table = [["held out", "own", "price", "gate", "= full", "top-1 − full"]]
    for partition in partition_labels(rows):
        for gate in _gates(select(reset, partition=partition)):
            if gate == "last token":
                continue
            (full,) = _across(reset, [partition], gate=gate, top="full")
            (one,) = _across(reset, [partition], gate=gate, top="top-1")
            terms = [full["terms"][name] for name in ("own", "price", "gate")]
            values = (*terms, full["minus"]["centre"]["mean"], one["terms"]["truncation"])
            table.append([f"{partition}: {gate}", *(f"{value:+.3f}" for value in values)])
    return table


def _worlds(rows: Sequence[Row]) -> list[list[str]]:
    partitions = list(partition_labels(rows))
    table = [["full gate − Bayes", *partitions]]
    for world, title in WORLDS.items():
        own = select(rows, world=world)
        for gate in _gates(own):
            if gate != "Bayes":
                found = _across(own, partitions, gate=gate, top="full")
                shown = (judged(row["minus"]["bayes"]) for row in found)
                table.append([f"{title}: {gate}", *shown])
    return table


def _gates(rows: Sequence[Row]) -> list[str]:
    """Those that run to the end, in order."""
    gates = dict.fromkeys(row["gate"] for row in rows if row["top"] == "full")
    return [gate for gate in gates if not gate.startswith("prefix ")]


def _across(rows: Sequence[Row], partitions: Iterable[str], **wanted: str) -> list[Row]:
    """The one row of each partition."""
    found = [select(rows, partition=partition, **wanted) for partition in partitions]
    return [row for (row,) in found]


def _fitted(partitions: Mapping[str, Any]) -> list[list[str]]:
    """Temperatures by gate and use, the router's decay: smallest and largest over seeds.

    And how many windows of test have nothing to read before them, so that a gate keeps the prior.
    """
    table = [["fitted on validation", *partitions]]
    seeds = {name: found["worlds"]["reset"]["contexts"] for name, found in partitions.items()}
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


def read(path: Path) -> dict[str, Any]:
    """What a run of `counting` wrote.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is something else.
    """
    rule = f"`result` must be what `experiments.counting` wrote: {path}"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        whole = all({"partition", "world", "gate", "top"} <= set(row) for row in result["rows"])
        held = len(result["summary"]["partitions"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{rule} ({error!r})") from error
    require(whole and held, f"{rule}; the number of its partitions", held)
    return result


def main(args: Sequence[str] | None = None) -> int:
    """0, or 2 if the file cannot be used."""

    def show(result: tyro.conf.Positional[Path]) -> bool:
        """Print the tables of the README, in Markdown.

        Args:
            result: `result.json` of a run of `experiments.counting`.
        """
        print("\n\n".join(markdown(read(result))))
        return True

    prog = "python -m experiments.counting_report"
    return study.exit_status(prog, lambda: tyro.cli(show, prog=prog, args=args))


if __name__ == "__main__":
    sys.exit(main())
