"""The tables of `synthetic`, on the screen and for the README, beside the authors' numbers."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from dfm_jax.comparison import compare
from experiments.lib import study
from experiments.lib.gate_comparison_report import JUDGED, SIGNS, markdown_lines, mean
from experiments.lib.gate_comparison_screen_report import narrow_table
from experiments.synthetic.config import TWICE
from experiments.synthetic.data import HELD_OUT
from experiments.synthetic.measure import DENSE, WRONG
from experiments.synthetic.pictures import TASKS

Cell = Mapping[str, Any]
AUTHORS: Mapping[str, tuple[float, ...]] = {
    DENSE: (67.74, 58.74, 78.23, 73.44, 78.07),
    "context": (68.04, 58.46, 79.77, 73.38, 78.97),
    "prominence": (65.71, 57.24, 75.83, 70.17, 75.85),
    "random": (66.99, 56.69, 79.50, 73.98, 77.63),
}
"""Exact match in per cent that the authors report on 20,000 held-out items: of all, and by task.
The first number of the dense model is the mean of three seeds, the others are of one."""
AUTHORS_OTHERS: Mapping[str, float] = {
    "layer-wise MoE": 67.88,
    "full-model MoE": 65.96,
    "twice the parameters, on the test": 68.24,
}
"""What else they report; the two rivals are not built here."""
AUTHORS_AGREEMENT = {"prominence": 83.9, "task": 79.7}
"""Per cent of items for which their clusters agree with what is more prominent, and with the
task."""


def result_rows(cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """Exact match of every variant, gate, split and task, a row for each seed."""
    for cell in cells:
        for seed, tests in enumerate(cell["seeds"]):
            for split, gates in tests.items():
                for gate, judged in gates.items():
                    for task, accuracy in ({"all": judged["accuracy"]} | judged["tasks"]).items():
                        yield {
                            "split": split,
                            "task": task,
                            "variant": cell["variant"],
                            "gate": gate or "none",
                            "num_experts": cell["num_experts"],
                            "accuracy": None if accuracy is None else round(accuracy, 6),
                            "seed": seed,
                            "tokens": cell["tokens"],
                            "flops": cell["flops"],
                        }


def summary(cells: Sequence[Cell], margin: float) -> dict[str, Any]:
    """What the tables show: means over seeds, differences to the dense model, costs, parts."""
    compared = []
    for cell in cells:
        for split, gates in cell["seeds"][0].items():
            for gate in gates:
                found = [tests[split][gate] for tests in cell["seeds"]]
                compared.append(_compared(cell["variant"], split, gate, found, margin))
    costs = ("num_experts", "steps", "batch_size", "width", "parameters", "tokens", "flops")
    parts = ("gate", "sizes", "facts")
    return {
        "comparisons": compared,
        "guess": cells[0]["guess"],
        "variants": [{name: cell[name] for name in ("variant", *costs)} for cell in cells],
        "parts": [
            {name: cell[name] for name in ("variant", *parts)} for cell in cells if "gate" in cell
        ],
    }


def _compared(
    variant: str, split: str, gate: str, found: Sequence[Cell], margin: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": variant, "split": split, "gate": gate, "seeds": len(found)}
    row["accuracy"] = mean(one["accuracy"] for one in found)
    row["tasks"] = {task: _mean([one["tasks"][task] for one in found]) for task in TASKS}
    row["nats"] = mean(one["nats"] for one in found)
    if "minus" in found[0]:
        # The statistics speak of losses: what they judge is errors more.
        judged = compare([-one["minus"][0] for one in found], margin=margin).as_record()
        row |= {f"errors_{name}": judged[name] for name in JUDGED}
        row["items"] = [one["minus"] for one in found]
        row["items_verdict"] = [one["verdict"] for one in found]
        row["items_of_tasks"] = {t: [one["minus_tasks"][t] for one in found] for t in TASKS}
    return row


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def own_gates(rows: Sequence[Cell], parts: Sequence[Cell]) -> list[Cell]:
    """The comparisons on held-out items of each variant with the gate that is its own."""
    gate = {row["variant"]: row["gate"] for row in parts}
    return [
        row
        for row in rows
        if row["split"] == HELD_OUT and row["gate"] == gate.get(row["variant"], "")
    ]


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


def main_table(found: Cell) -> list[list[str]]:
    """Held-out items: a row per variant and gate, a column per task, in per cent."""
    table = [["variant", "gate", *TASKS, "all", "− dense, points", "nats an answer"]]
    for row in found["comparisons"]:
        if row["split"] == HELD_OUT:
            other = f", {WRONG}" if row["gate"] == WRONG else ""
            table.append(
                [
                    row["variant"] + other,
                    "" if other else row["gate"],
                    *(_percent(row["tasks"][task]) for task in TASKS),
                    _percent(row["accuracy"]),
                    points(row),
                    f"{row['nats']:.3f}",
                ]
            )
    guess = found["guess"]
    most = [_percent(guess[task]) for task in TASKS]
    return [*table, ["most frequent answer", "", *most, "", "", ""]]


def authors_table(found: Cell) -> list[list[str]]:
    """Each variant with its own gate, less the dense model, beside what the authors report."""
    theirs = AUTHORS[DENSE]
    table = [["variant", "all", "authors, all", *(x for t in TASKS for x in (t, f"authors, {t}"))]]
    for row in own_gates(found["comparisons"], found["parts"]):
        name = row["variant"]
        if name in (DENSE, TWICE):
            continue
        reported = [f"{a - b:+.2f}" for a, b in zip(AUTHORS[name], theirs, strict=True)]
        cells = [name, points(row), reported[0]]
        for task, other in zip(TASKS, reported[1:], strict=True):
            intervals = row["items_of_tasks"][task]
            middle = _mean([None if x is None else 100 * x[0] for x in intervals])
            cells += ["" if middle is None else f"{middle:+.2f}", other]
        table.append(cells)
    return table


def reported_table() -> list[list[str]]:
    """What the authors report, in per cent: their numbers, none of them measured here."""
    table = [["authors", "all", *TASKS]]
    for name, values in AUTHORS.items():
        table.append([name, *(f"{value:.2f}" for value in values)])
    for name, value in AUTHORS_OTHERS.items():
        table.append([name, f"{value:.2f}", *("" for _ in TASKS)])
    return table


def splits_table(found: Cell) -> list[list[str]]:
    """The other splits, each variant with its own gate, in per cent."""
    gate = {row["variant"]: row["gate"] for row in found["parts"]}
    splits = list(dict.fromkeys(row["split"] for row in found["comparisons"]))
    table = [["variant", "gate", *splits]]
    for name in dict.fromkeys(row["variant"] for row in found["comparisons"]):
        own = {
            row["split"]: _percent(row["accuracy"])
            for row in found["comparisons"]
            if row["variant"] == name and row["gate"] == gate.get(name, "")
        }
        table.append([name, gate.get(name, ""), *(own[split] for split in splits)])
    return table


def parts_table(found: Cell) -> list[list[str]]:
    """What parts the partitions have, and what they agree with, beside the authors' clusters."""
    table = [["partition", "training items", "what", "here", "authors"]]
    for row in found["parts"]:
        sizes = " / ".join(f"{size:,}" for size in row["sizes"])
        facts = row["facts"] or {"": None}
        for what, value in facts.items():
            theirs = AUTHORS_AGREEMENT.get(what.split(",")[0]) if "," in what else None
            words = {"": "", "router": "question read by the router, held out"}
            table.append(
                [
                    row["variant"],
                    sizes,
                    words.get(what, f"agreement with {what}"),
                    "" if value is None else f"{value:.1%}",
                    "" if theirs is None else f"{theirs:.1f}%",
                ]
            )
    return table


def points(row: Cell) -> str:
    """Points above the dense model, and a verdict: of one seed over items, of more over seeds."""
    if "errors_mean" not in row:
        return ""
    middle, one = -100 * row["errors_mean"], row["errors_low"] is None
    sign = SIGNS[row["items_verdict"][0] if one else row["errors_verdict"]]
    sign = {"−": "+", "+": "−"}.get(sign, sign)  # fewer errors are better
    if one:
        low, high = (100 * x for x in row["items"][0][1:])
        return f"{middle:+.2f} [{low:+.1f}, {high:+.1f}] {sign}"
    half = 50 * (row["errors_high"] - row["errors_low"])
    return f"{middle:+.2f} ± {half:.2f} {sign}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def print_tables(console: Console, found: Cell) -> None:
    """Every table."""
    for title, table in _titled(found):
        head, *body = table
        shown = narrow_table(*head, title=title, caption="")
        for row in body:
            shown.add_row(*row)
        console.print(shown)


def _titled(found: Cell) -> Iterator[tuple[str, list[list[str]]]]:
    yield "Exact match on held-out items, in per cent", main_table(found)
    yield "Experts − dense in points, beside the authors'", authors_table(found)
    yield "Exact match that the authors report, in per cent", reported_table()
    yield "Exact match by split, in per cent", splits_table(found)
    yield "Parts, and what they agree with", parts_table(found)


def markdown(result: Mapping[str, Any]) -> list[str]:
    """The tables of `experiments/README.md`, from what `result.json` holds."""
    found = list(_titled(result["summary"]))
    return [f"**{title}**\n\n{markdown_lines(table)}" for title, table in found]


def main(args: Sequence[str] | None = None) -> int:
    """0, or 2 if the file cannot be used."""
    return study.show_tables("synthetic", markdown, args)


if __name__ == "__main__":
    sys.exit(main())
