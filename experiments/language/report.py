"""What `language` measured: rows for the file, tables for the screen and the README."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dfm_jax.comparison import compare
from experiments.lib import study
from experiments.lib.gate_comparison_report import (
    JUDGED,
    SIGNS,
    Cell,
    Row,
    account_table,
    gate_comparison_table,
    judged,
    markdown_lines,
    mean,
    select,
)
from experiments.lib.gate_comparison_screen_report import (
    account,
    gate_comparison,
    groups,
    narrow_table,
)

DENSE = "dense"


def result_rows(cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """A row for every variant, gate and seed: loss, and what was spent on training."""
    seen = set()
    for cell in cells:
        reset, common = cell["evaluation_sets"]["reset"], {"seed": cell["seed"]}
        if cell["seed"] not in seen:
            seen.add(cell["seed"])
            spent = {name: cell["dense"][name] for name in ("tokens", "flops")}
            yield _row(DENSE, None, 1, None, None, **common, nll=reset["dense_nll"], **spent)
        own = ("partition", "num_experts")
        partition, num_experts = (cell[name] for name in own)
        variant = "warm experts" if cell["kind"] == "warm" else "experts"
        spent = {name: cell[name] for name in ("tokens", "flops")}
        for evaluation_set, found in cell["evaluation_sets"].items():
            for row in found["rows"]:
                gate = row["gate"] if evaluation_set == "reset" else f"{row['gate']}, carried"
                yield _row(
                    *(variant, partition, num_experts, gate, row["top"]),
                    **common,
                    nll=row["nll"],
                    **spent,
                )
        for name, found in cell["single"].items():
            yield _row(name, partition, num_experts, None, None, **common, **found)


def _row(
    variant: str,
    partition: str | None,
    num_experts: int,
    gate: str | None,
    top: str | None,
    *,
    seed: int,
    nll: float,
    tokens: float,
    flops: float,
) -> dict[str, Any]:
    return {
        "variant": variant,
        "partition": partition,
        "num_experts": num_experts,
        "gate": gate,
        "top": top,
        "seed": seed,
        "nats_per_byte": nll,
        "tokens": int(tokens),
        "flops": float(flops),
    }


def variants(cells: Sequence[Cell], rates: Sequence[float]) -> list[dict[str, Any]]:
    """What each variant was trained with: tokens, FLOPs, rates chosen, and what the choice cost."""
    first = cells[0]

    def chosen(found: Mapping[str, float]) -> float:
        return float(min(found, key=found.__getitem__))

    def variant(name: str, own: Mapping[str, Any], found: Sequence[Mapping[str, float]]):
        return {
            "variant": name,
            "tokens": own["tokens"],
            "flops": own["flops"],
            "tuning_tokens": (len(rates) - 1) * own["tokens"],  # beside those of the first seed
            "rates": sorted({chosen(one) for one in found}),
        }

    table = [variant(DENSE, first["dense"], [first["dense_rates"]])]
    for cell in _firsts(cells):
        steps, share = cell["steps"], cell["weights"]
        more = {"steps": steps, "weights": share, "domains": cell["domains"]}
        more["router"] = cell["router"]
        table.append(variant(cell["partition"], cell, cell["rates"]) | more)
    return table


def by_domain(cells: Sequence[Cell], margin: float) -> list[dict[str, Any]]:
    """The loss of each variant on each domain, and its difference to the dense model over seeds.

    In nats per byte, of whole gates; `documents` are the bootstrap intervals inside each seed.
    """
    table = []
    for first in _firsts(cells):
        seeds = [
            c["evaluation_sets"]["reset"] for c in cells if c["partition"] == first["partition"]
        ]
        for gate_variants in zip(*(seed["rows"] for seed in seeds), strict=True):
            if gate_variants[0]["top"] != "full" and gate_variants[0]["gate"] != "oracle":
                continue
            for domain in gate_variants[0]["groups"]:
                found = [gate_variant["groups"][domain] for gate_variant in gate_variants]
                across = compare([one["minus"][0] for one in found], margin=margin).as_record()
                row = {
                    "variant": first["partition"],
                    "gate": gate_variants[0]["gate"],
                    "domain": domain,
                }
                row["nll"] = mean(one["nll"] for one in found)
                row["documents"] = [one["minus"][1:] for one in found]
                table.append(row | {name: across[name] for name in JUDGED})
    return table


def _firsts(cells: Sequence[Cell]) -> list[Cell]:
    """The first cell of each variant."""
    return list({cell["partition"]: cell for cell in reversed(cells)}.values())[::-1]


# ── the screen ──────────────────────────────────────────────────────────────────────────────────


def print_tables(console: Console, rows: Sequence[Row], summary: Mapping[str, Any]) -> None:
    """Print what was trained, the gate comparison, its account, and the domains."""
    console.print(_variants(summary["variants"]))
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
    console.print(_domains(summary["domains"]))


def _variants(variants: Sequence[Mapping[str, Any]]) -> Table:
    table = narrow_table(
        *("variant", "steps", "tokens", "FLOPs", "rates", "tuning tokens", "router"),
        title="What each variant was trained on, a seed",
        caption="Every member takes its best rate on its own validation text.\n"
        "router: its FLOPs over those of the variant, beside them.",
    )
    for variant in variants:
        table.add_row(*_variant_cells(variant))
    return table


def _variant_cells(variant: Mapping[str, Any]) -> list[str]:
    steps = variant.get("steps")
    return [
        variant["variant"],
        f"{min(steps)} to {max(steps)}" if steps else "all",
        f"{variant['tokens']:,}",
        f"{variant['flops']:.3g}",
        ", ".join(f"{rate:g}" for rate in variant["rates"]),
        f"{variant['tuning_tokens']:,}",
        f"{variant['router']['flops'] / variant['flops']:.1%}" if "router" in variant else "",
    ]


_ACCOUNTED = ("static", "fixed share", "router × Bayes", "running router", "Bayes")
_SHOWN = ("static", "fixed share", "running router", "Bayes", "oracle")


def _domains(found: Sequence[Mapping[str, Any]]) -> Table:
    head, *body = _domain_cells(found, lambda row: f"{row['mean']:+.3f}{SIGNS[row['verdict']]}")
    table = narrow_table(
        *head,
        title="By domain: whole gates, ensemble − dense, nats per byte",
        caption="Mean over seeds, and the sign of its verdict.",
    )
    for row in body:
        table.add_row(*row)
    return table


def _domain_cells(
    found: Sequence[Mapping[str, Any]], shown: Callable[[Mapping[str, Any]], str] = judged
) -> list[list[str]]:
    names = list(dict.fromkeys(row["domain"] for row in found))
    variants = list(dict.fromkeys(row["variant"] for row in found))
    dense = [
        f"{_dense_nll(select(found, variant=variants[0], domain=name)[0]):.3f}" for name in names
    ]
    table = [["variant: gate", *names], ["dense, its loss", *dense]]
    for variant in variants:
        for gate in _SHOWN:
            own = select(found, variant=variant, gate=gate)
            table.append([f"{variant}: {gate}", *map(shown, own)])
    return table


def _dense_nll(row: Mapping[str, Any]) -> float:
    return row["nll"] - row["mean"]


# ── Markdown ────────────────────────────────────────────────────────────────────────────────────


def markdown(result: Mapping[str, Any]) -> list[str]:
    """The tables of `experiments/README.md`, from what `result.json` holds."""
    rows, summary = result["summary"]["comparisons"], result["summary"]
    head = ["variant", "steps of a member", "tokens", "FLOPs", "rates", "tuning tokens", "router"]
    spent = [head, *(_variant_cells(variant) for variant in summary["variants"])]
    head, *terms = account_table(rows)
    terms = [row for row in terms if row[0].split(": ")[1] in _ACCOUNTED]
    tables = [spent, gate_comparison_table(rows), [head, *terms], _domain_cells(summary["domains"])]
    return list(map(markdown_lines, tables))


def main(args: Sequence[str] | None = None) -> int:
    """0, or 2 if the file cannot be used."""
    return study.show_tables("language", markdown, args)


if __name__ == "__main__":
    sys.exit(main())
