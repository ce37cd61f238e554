"""What `regimes` measured: rows for the file, tables for the screen and the README."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from dfm_jax.comparison import compare
from experiments.lib import study
from experiments.lib.gate_comparison_report import JUDGED, Cell, judged, markdown_lines, mean
from experiments.lib.gate_comparison_screen_report import narrow_table
from experiments.regimes.predictions import RULES

_MEANS = ("dense", "information", "of_its_ceiling", "margin")


def result_rows(cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """A row for every seed, size, partition and K that was measured."""
    for cell in cells:
        if "skipped" in cell:
            continue
        same = ("model", "bytes", "partition", "num_experts", "seed", "dense")
        mean, low, high = cell["minus"]
        yield (
            {name: cell[name] for name in same}
            | {"bayes_minus_dense": mean, "low": low, "high": high}
            | cell["terms"]
            | {
                "information": cell["information"],
                "bytes_per_expert": sum(cell["held"]) / cell["num_experts"],
                "margin": cell["margin"],
            }
        )


def aggregated(cells: Sequence[Cell], *, margin: float) -> tuple[list[dict], list[dict]]:
    """A row for each model, partition, K and size: the difference judged over seeds; and the rest.

    The second list names what was left out, and why: a variant counts only if every seed has it.
    """
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        variant = cell["model"], cell["partition"], cell["num_experts"]
        groups.setdefault((*variant, cell["size"]), []).append(cell)
    rows, skipped = [], []
    for (model, partition, number, size), own in groups.items():
        row = {"model": model, "partition": partition, "num_experts": number, "bytes": size}
        if reasons := [f"seed {c['seed']}: {c['skipped']}" for c in own if "skipped" in c]:
            skipped.append(row | {"skipped": reasons})
            continue
        found = compare([cell["minus"][0] for cell in own], margin=margin).as_record()
        row |= {name: mean(cell[name] for cell in own) for name in _MEANS}
        row["terms"] = {name: mean(cell["terms"][name] for cell in own) for name in own[0]["terms"]}
        row["documents"] = [cell["minus"][1:] for cell in own]
        rows.append(row | {name: found[name] for name in JUDGED})
    return rows, skipped


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


def print_tables(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the grid, the best K, and the predictions."""
    titles = (
        "Bayes-gated experts − dense, nats per byte, by bytes of training text",
        "Where it comes from: own + cost; Î(X; K), gate's margin on validation",
        "The best number of experts (1: the dense model)",
        "Counted experts: how often the sign was foreseen, of the decided ones",
        "Transformers: the difference, and what was foreseen: above 0, to lose",
    )
    for title, (head, *body) in zip(titles, _tables(summary), strict=True):
        if not body:
            continue
        table = narrow_table(*head, title=title, caption="")
        for row in body:
            table.add_row(*row)
        console.print(table)
    for row in summary["skipped"]:
        variant = f"{row['partition']}, K = {row['num_experts']}, {row['bytes']:,} bytes"
        console.print(f"left out: {variant}: {'; '.join(row['skipped'])}", highlight=False)


def _tables(summary: Mapping[str, Any]) -> list[list[list[str]]]:
    rows = summary["comparisons"]
    return [
        _grid([row for row in rows if row["model"] == "counts"]),
        _terms(rows),
        _best(summary["best"]),
        _foreseen(summary),
        _trained(summary["predictions"]),
    ]


def _grid(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    sizes = sorted({row["bytes"] for row in rows})
    table = [["variant", *(f"{size:,}" for size in sizes)]]
    for variant in dict.fromkeys(map(_variant, rows)):
        own = {row["bytes"]: row for row in rows if _variant(row) == variant}
        table.append([variant, *(judged(own[size]) if size in own else "" for size in sizes)])
    return table


def _terms(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    table = [["variant", "bytes", "own", "+ cost", "= full", "Î(X; K)", "of its ceiling", "margin"]]
    for row in rows:
        table.append(
            [
                _variant(row) if row["model"] == "counts" else f"transformers: {_variant(row)}",
                f"{row['bytes']:,}",
                *(f"{row['terms'][name]:+.3f}" for name in ("own", "cost")),
                f"{row['mean']:+.3f}",
                f"{row['information']:.4f}",
                f"{row['of_its_ceiling']:.2f}",
                f"{row['margin']:.2f}",
            ]
        )
    return table


def _best(best: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    sizes = sorted({row["bytes"] for row in best})
    table = [["partition", *(f"{size:,}" for size in sizes)]]
    for kind in dict.fromkeys(row["partition"] for row in best):
        own = {row["bytes"]: row for row in best if row["partition"] == kind}
        table.append([kind, *(str(own[size]["best"]) if size in own else "" for size in sizes)])
    return table


def _foreseen(summary: Mapping[str, Any]) -> list[list[str]]:
    table = [["rule", "right", "of"]]
    for row in summary["accuracies"]:
        table.append([row["rule"], str(row["right"]), str(row["rows"])])
    for name, value in summary["separations"].items():
        table.append([f"AUC of {name}", "–" if value is None else f"{value:.2f}", ""])
    return table


def _trained(predictions: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    table = [["variant", "bytes", "difference", *RULES]]
    for row in predictions:
        if row["model"] == "transformers":
            foreseen = [row["foreseen"].get(rule) for rule in RULES]
            table.append(
                [
                    _variant(row),
                    f"{row['bytes']:,}",
                    f"{row['mean']:+.3f} {row['verdict']}",
                    *("–" if value is None else f"{value:+.3f}" for value in foreseen),
                ]
            )
    return table


def _variant(row: Mapping[str, Any]) -> str:
    return f"{row['partition']}, K={row['num_experts']}"


def markdown(result: Mapping[str, Any]) -> list[str]:
    """The tables of `experiments/README.md`, from what `result.json` holds."""
    return list(map(markdown_lines, _tables(result["summary"])))


def main(args: Sequence[str] | None = None) -> int:
    """0, or 2 if the file cannot be used."""
    return study.show_tables("regimes", markdown, args)


if __name__ == "__main__":
    sys.exit(main())
