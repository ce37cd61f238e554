"""The tables of `multimodal`, on the screen and for the README."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from dfm_jax.comparison import compare
from experiments.lib import study
from experiments.lib.gate_comparison_report import JUDGED, SIGNS, markdown_lines, mean
from experiments.lib.gate_comparison_screen_report import narrow_table

Cell = Mapping[str, Any]
DENSE = "dense"
JUDGED_GATES = ("nearest", "soft", "router", "Bayes", "static")
"""What the picture shows: the others are a control and hindsight."""


def result_rows(cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """Accuracy of every variant, gate and family, a row each."""
    for cell in cells:
        variant = cell["variant"]
        base = {
            "budget": cell["budget"],
            "role": cell["role"],
            "encoder": cell["encoder"],
            "variant": variant if variant in (DENSE, "no picture") else "experts",
            "partition": variant if "kind" in cell else "none",
            "num_experts": cell.get("num_experts", 1),
            "seed": cell["seed"],
            "tokens": cell.get("tokens"),
            "flops": cell.get("flops"),
        }
        for test, gates in cell["tests"].items():
            by_gate = gates if "kind" in cell else {"none": gates}
            for gate, judged in by_gate.items():
                found = {"all": judged["accuracy"], **judged["families"]}
                for family, accuracy in found.items():
                    yield {
                        "dataset": cell["dataset"] + ("" if test == "test" else f", {test}"),
                        "family": family,
                        "gate": gate,
                        "accuracy": round(accuracy, 6),
                        **base,
                    }


def records(cells: Sequence[Cell]) -> Iterator[Cell]:
    """One measurement a line: what each cell found."""
    yield from cells


def summary(cells: Sequence[Cell], margin: float) -> dict[str, Any]:
    """What the tables show: means over seeds, differences to the dense model and their verdicts."""
    names = dict.fromkeys((c["dataset"], c["budget"], c["role"], c["encoder"]) for c in cells)
    compared = []
    for name in names:
        here = [c for c in cells if (c["dataset"], c["budget"], c["role"], c["encoder"]) == name]
        for variant in dict.fromkeys(c["variant"] for c in here):
            compared += _of_variant([c for c in here if c["variant"] == variant], margin)
    curves = {c["dataset"]: c["curve"] for c in cells}
    return {"curves": curves, "comparisons": compared, "experts": _experts(cells)}


def of_variants(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The comparisons of variants at the budget that tells them apart, on the test itself."""
    return [
        row
        for row in rows
        if (row["role"], row["test"]) == ("compared", "test") and row["gate"] in JUDGED_GATES
    ]


def _of_variant(cells: Sequence[Cell], margin: float) -> Iterator[dict[str, Any]]:
    first = cells[0]
    for test, gates in first["tests"].items():
        for gate in gates if "kind" in first else [None]:
            found = [c["tests"][test] if gate is None else c["tests"][test][gate] for c in cells]
            row = {
                name: first[name] for name in ("dataset", "budget", "role", "encoder", "variant")
            }
            row |= {"test": test, "gate": gate or "", "seeds": len(found)}
            row["accuracy"] = mean(x["accuracy"] for x in found)
            row["families"] = {
                name: mean(x["families"][name] for x in found) for name in found[0]["families"]
            }
            row["nats"] = mean(x["nats"] for x in found)
            if gate is not None:
                # The statistics speak of losses: what they judge is errors more.
                judged = compare([-x["minus"][0] for x in found], margin=margin).as_record()
                row |= {f"errors_{name}": judged[name] for name in JUDGED}
                row["pictures"] = [x["minus"] for x in found]
            yield row


def _experts(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    names = ("dataset", "budget", "role", "encoder", "variant", "seed", "num_experts", "weights")
    more = ("steps", "tokens", "flops", "rates", "temperature", "at_bound", "router")
    own = ("better_elsewhere", "gain_elsewhere")
    return [
        {name: cell.get(name) for name in (*names, *more, *own)} for cell in cells if "kind" in cell
    ]


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


def main_table(summary: Mapping[str, Any], dataset: str, role: str) -> list[list[str]]:
    """One set as in papers: a row per variant and gate, a column per family, in per cent."""
    rows = [
        r
        for r in summary["comparisons"]
        if r["dataset"] == dataset and r["role"] == role and r["test"] in ("test", "wrong picture")
    ]
    if not rows:
        return []
    names = list(rows[0]["families"])
    table = [["variant", "gate", *names, "all", "− dense, points", "nats an answer"]]
    for row in rows:
        other = "" if row["test"] == "test" else ", wrong picture"
        cells = [f"{100 * row['families'][name]:.1f}" for name in names]
        cells += [f"{100 * row['accuracy']:.1f}", points(row), f"{row['nats']:.3f}"]
        table.append([row["variant"] + other, row["gate"], *cells])
    return table


def others_table(summary: Mapping[str, Any]) -> list[list[str]]:
    """The tests with content that no training picture shows."""
    rows = [r for r in summary["comparisons"] if r["test"].startswith("test, ")]
    rows = [r for r in rows if r["role"] == "compared"]
    if not rows:
        return []
    names = list(rows[0]["families"])
    table = [["test", "variant", "gate", *names, "all", "− dense, points"]]
    for row in sorted(rows, key=lambda r: r["test"]):
        cells = [f"{100 * row['families'].get(name, float('nan')):.1f}" for name in names]
        kind = row["test"].removeprefix("test, ")
        table.append(
            [kind, row["variant"], row["gate"], *cells, f"{100 * row['accuracy']:.1f}", points(row)]
        )
    return table


def signs_table(summary: Mapping[str, Any]) -> list[list[str]]:
    """Which partitions win and lose, with the authors' own synthetic study."""
    authors = {"cluster": "−2.03", "task": "+0.30", "random": "−0.75"}
    gates = {"cluster": "nearest", "task": "nearest", "random": "static"}
    sets = list(dict.fromkeys(r["dataset"] for r in summary["comparisons"]))
    table = [["partition", "gate", "authors, points", *sets]]
    for kind, gate in gates.items():
        cells = []
        for name in sets:
            found = [
                r
                for r in summary["comparisons"]
                if (r["dataset"], r["role"], r["test"], r["gate"])
                == (name, "compared", "test", gate)
                and r["variant"].split(":")[0] == kind
            ]
            cells.append(points(found[0]) if found else "")
        table.append([kind, gate, authors[kind], *cells])
    return table


def elsewhere_table(summary: Mapping[str, Any]) -> list[list[str]]:
    """How often, and by how much, an expert other than f(c) finds the answer more probable."""
    table = [
        ["set", "variant", "another is likelier", "by nats an answer", "router right", "τ of soft"]
    ]
    rows = [r for r in summary["experts"] if r["role"] == "compared"]
    for key in dict.fromkeys((r["dataset"], r["variant"]) for r in rows):
        found = [r for r in rows if (r["dataset"], r["variant"]) == key]
        tau = [r["temperature"] for r in found if r["temperature"] is not None]
        table.append(
            [
                *key,
                f"{mean(r['better_elsewhere'] for r in found):.1%}",
                f"{mean(r['gain_elsewhere'] for r in found):.3f}",
                f"{mean(r['router']['accuracy'] for r in found):.1%}",
                f"{min(tau):.3g} to {max(tau):.3g}" if tau else "",
            ]
        )
    return table


def points(row: Mapping[str, Any]) -> str:
    """Percentage points above the dense model, ± half the t interval, and the verdict's sign."""
    if not row["gate"]:
        return ""
    middle = -100 * row["errors_mean"]
    if row["errors_low"] is None:
        low, high = (100 * x for x in row["pictures"][0][1:])
        return f"{middle:+.2f} [{low:+.1f}, {high:+.1f}]"
    half = 50 * (row["errors_high"] - row["errors_low"])
    sign = {"−": "+", "+": "−"}.get(SIGNS[row["errors_verdict"]], SIGNS[row["errors_verdict"]])
    return f"{middle:+.2f} ± {half:.2f} {sign}"


def print_tables(console: Console, summary: Mapping[str, Any]) -> None:
    """Every table."""
    for title, table in _titled(summary):
        head, *body = table
        shown = narrow_table(*head, title=title, caption="")
        for row in body:
            shown.add_row(*row)
        console.print(shown)


def _titled(summary: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    sets = dict.fromkeys(r["dataset"] for r in summary["comparisons"])
    titles = {
        "compared": "accuracy in per cent",
        "saturated": "near saturation, one seed",
        "exploratory": "exploratory, one seed",
        "encoder": "other encoders, one seed",
    }
    for name in sets:
        for role, title in titles.items():
            if table := main_table(summary, name, role):
                yield f"{name}: {title}", table
    yield "Three partitions, beside the authors'", signs_table(summary)
    yield "Does the expert of f(c) know best?", elsewhere_table(summary)
    if table := others_table(summary):
        yield "What no training picture shows", table


def markdown(result: Mapping[str, Any]) -> list[str]:
    """The tables of `experiments/README.md`, from what `result.json` holds."""
    found = list(_titled(result["summary"]))
    return [f"**{title}**\n\n{markdown_lines(table)}" for title, table in found]


def main(args: Sequence[str] | None = None) -> int:
    """0, or 2 if the file cannot be used."""
    return study.show_tables("multimodal", markdown, args)


if __name__ == "__main__":
    sys.exit(main())
