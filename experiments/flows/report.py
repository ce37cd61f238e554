"""What `flows` measured: rows for the file, tables for the screen."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from dfm_jax.comparison import compare
from experiments.lib.gate_comparison_screen_report import narrow_table

DENSE = "dense"
Cell = Mapping[str, Any]


def result_rows(cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """A row for every source, variant, gate and seed: the bound, and what was spent on training."""
    seen = set()
    for cell in cells:
        at = (cell["source"], cell["seed"])
        if at not in seen:
            seen.add(at)
            yield _row(cell, DENSE, None, 1, None, cell["dense"], cell["dense"])
        for gate in cell["gates"]:
            name = "oracle (the image's own part)" if gate["gate"] == "oracle" else gate["gate"]
            parts = cell["partition"], cell["num_experts"]
            yield _row(cell, "experts", *parts, name, gate, cell)


def _row(
    cell: Cell,
    variant: str,
    partition: str | None,
    num_experts: int,
    gate: str | None,
    loss: Mapping[str, Any],
    spent: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "source": cell["source"],
        "variant": variant,
        "partition": partition,
        "num_experts": num_experts,
        "gate": gate,
        "seed": cell["seed"],
        "nats_per_pixel": loss["nats_per_pixel"],
        "stderr": loss["stderr"],
        "tokens": int(spent["tokens"]),
        "flops": float(spent["flops"]),
    }


def groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each source and partition, its seeds together, in the order they came."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell["source"], cell["partition"]), []).append(cell)
    return list(found.values())


def compared(cells: Sequence[Cell], margin: float) -> list[dict[str, Any]]:
    """Ensemble − dense under every gate, on common draws: over seeds, and over images."""
    rows = []
    for own in groups(cells):
        for place, gate in enumerate(own[0]["gates"]):
            here = [cell["gates"][place] for cell in own]
            judged = compare([one["minus"][0] for one in here], margin=margin)
            rows.append(
                {
                    "source": own[0]["source"],
                    "partition": own[0]["partition"],
                    "gate": gate["gate"],
                    "nats_per_pixel": mean(one["nats_per_pixel"] for one in here),
                    "stderr": mean(one["stderr"] for one in here),
                    "dense": mean(cell["dense"]["nats_per_pixel"] for cell in own),
                    "minus_dense": judged.as_record(),
                    "over_images": [one["minus"] for one in here],
                }
            )
    return rows


def variants(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The training of each variant, for one seed, and the FLOPs of its router."""
    rows = []
    for own in groups(cells):
        first = own[0]
        if first["source"] not in {row["source"] for row in rows}:
            spent = {name: first["dense"][name] for name in ("steps", "tokens", "flops")}
            rows.append({"source": first["source"], "variant": DENSE} | spent)
        names = ("steps", "tokens", "flops", "weights", "router")
        rows.append(
            {"source": first["source"], "variant": first["partition"]}
            | {name: first[name] for name in names}
        )
    return rows


def bounds(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Router-gated ensemble − own expert, and the bound of B8, in nats per pixel, over seeds."""
    return [
        {
            "source": own[0]["source"],
            "partition": own[0]["partition"],
            "own": mean(cell["gates"][-1]["nats_per_pixel"] for cell in own),
            "gap": mean(cell["b8"]["gap"][0] for cell in own),
            "cost": mean(cell["b8"]["cost"][0] for cell in own),
            "bound": mean(cell["b8"]["bound"]["nats_per_pixel"] for cell in own),
            "router": mean(cell["router"]["nats"] for cell in own),
        }
        for own in groups(cells)
    ]


def mean(values: Iterator[float]) -> float:
    """As a float."""
    return float(np.mean(list(values)))


# ── the screen ──────────────────────────────────────────────────────────────────────────────────


def print_tables(console: Console, summary: Mapping[str, Any]) -> None:
    """Print what was trained, the losses, and the gates."""
    console.print(_variants(summary["variants"]))
    console.print(_compared(summary["comparisons"]))
    console.print(_bounds(summary["b8"]))
    console.print(_evaluation_set(summary["evaluation_set"]))


def _variants(rows: Sequence[Mapping[str, Any]]):
    table = narrow_table(
        *("source", "variant", "steps", "tokens", "FLOPs", "router"),
        title="What each variant was trained on, a seed",
        caption="router: its FLOPs over those of the variant, beside them.",
    )
    for row in rows:
        steps = row["steps"]
        table.add_row(
            row["source"],
            row["variant"],
            f"{steps}" if isinstance(steps, int) else f"{min(steps)} to {max(steps)}",
            f"{row['tokens']:,}",
            f"{row['flops']:.3g}",
            f"{row['router']['flops'] / row['flops']:.1%}" if "router" in row else "",
        )
    return table


def _compared(rows: Sequence[Mapping[str, Any]]):
    table = narrow_table(
        *("source", "parts", "gate", "bound", "± s.e.", "− dense", "95 % over seeds", "verdict"),
        title="Evidence bounds on held-out images, nats per pixel",
        caption="Sources do not compare. oracle: the image's own part, which no gate may know.",
    )
    last = None
    for row in rows:
        if row["source"] != last:
            last = row["source"]
            table.add_row(last, DENSE, "", f"{row['dense']:.4f}", "", "", "", "")
        minus = row["minus_dense"]
        ends = [minus[name] for name in ("low", "high")]
        table.add_row(
            row["source"],
            row["partition"],
            row["gate"],
            f"{row['nats_per_pixel']:.4f}",
            f"{row['stderr']:.4f}",
            f"{minus['mean']:+.4f}",
            "one seed" if None in ends else f"{ends[0]:+.4f} to {ends[1]:+.4f}",
            minus["verdict"],
        )
    return table


def _bounds(rows: Sequence[Mapping[str, Any]]):
    table = narrow_table(
        *("source", "parts", "own expert", "gap", "≤ cost", "ensemble", "≤ B8", "−log ρ̂"),
        title="The router-gated ensemble beside its own experts, nats per pixel",
        caption="gap: ensemble − the part's own expert; cost: B8's right side − the same;\n"
        "−log ρ̂: of the own part, nats of a state, uniform over time.",
    )
    for row in rows:
        names = ("own", "gap", "cost")
        table.add_row(
            row["source"],
            row["partition"],
            *(f"{row[name]:.4f}" for name in names),
            f"{row['own'] + row['gap']:.4f}",
            f"{row['bound']:.4f}",
            f"{row['router']:.3f}",
        )
    return table


def _evaluation_set(evaluation_sets: Sequence[Mapping[str, Any]]):
    table = narrow_table(
        *("parts", "gate", "KL", "≤ ∫", "≤ Σ_k ∫"),
        title="B8 summed over 81 states, uniform source, nats of a state",
        caption="KL at 1 − ε, ∫ of the mixed rates' cost, Σ_k of the parts' own.",
    )
    for evaluation_set in evaluation_sets:
        for name, gate in evaluation_set["gates"].items():
            numbers = (f"{gate[what]:.4f}" for what in ("kl", "integral", "by_part"))
            table.add_row(evaluation_set["partition"], name, *numbers)
    return table
