"""What `language` measured: rows for the file, tables for the screen and the README."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from experiments import study
from experiments.ladder_report import (
    Cell,
    Row,
    account_table,
    ladder_table,
    markdown_lines,
    mean,
    select,
)
from experiments.ladder_screen_report import account, groups, ladder, narrow_table

CENTRE = "centre"


def result_rows(cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """A row for every arm, gate and seed: loss, and what was spent on training."""
    seen = set()
    for cell in cells:
        reset, common = cell["worlds"]["reset"], {"seed": cell["seed"]}
        if cell["seed"] not in seen:
            seen.add(cell["seed"])
            spent = {name: cell["centre"][name] for name in ("tokens", "flops")}
            yield _row(CENTRE, None, 1, None, None, **common, nll=reset["centre_nll"], **spent)
        own = ("partition", "num_experts")
        partition, num_experts = (cell[name] for name in own)
        arm = "warm experts" if cell["kind"] == "warm" else "experts"
        spent = {name: cell[name] for name in ("tokens", "flops")}
        for world, found in cell["worlds"].items():
            for row in found["rows"]:
                gate = row["gate"] if world == "reset" else f"{row['gate']}, carried"
                yield _row(
                    *(arm, partition, num_experts, gate, row["top"]),
                    **common,
                    nll=row["nll"],
                    **spent,
                )
        for name, found in cell["single"].items():
            yield _row(name, partition, num_experts, None, None, **common, **found)


def _row(
    arm: str,
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
        "arm": arm,
        "partition": partition,
        "num_experts": num_experts,
        "gate": gate,
        "top": top,
        "seed": seed,
        "nats_per_byte": nll,
        "tokens": int(tokens),
        "flops": float(flops),
    }


def arms(cells: Sequence[Cell], rates: Sequence[float]) -> list[dict[str, Any]]:
    """What each arm was trained with: tokens, FLOPs, rates chosen, and what the choice cost."""
    first = cells[0]

    def chosen(found: Mapping[str, float]) -> float:
        return float(min(found, key=found.__getitem__))

    def arm(name: str, own: Mapping[str, Any], found: Sequence[Mapping[str, float]]):
        return {
            "arm": name,
            "tokens": own["tokens"],
            "flops": own["flops"],
            "tuning_tokens": (len(rates) - 1) * own["tokens"],  # beside those of the first seed
            "rates": sorted({chosen(one) for one in found}),
        }

    table = [arm(CENTRE, first["centre"], [first["centre_rates"]])]
    for cell in _firsts(cells):
        steps, share = cell["steps"], cell["weights"]
        more = {"steps": steps, "weights": share, "domains": cell["domains"]}
        more["router"] = cell["router"]
        table.append(arm(cell["partition"], cell, cell["rates"]) | more)
    return table


def by_domain(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The loss of each domain, mean over seeds: of the centre, and of whole gates that are judged.

    In nats per byte.
    """
    reset = [cell["worlds"]["reset"] for cell in cells]
    names = list(reset[0]["centre_groups"])

    def means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: mean(one[name] for one in found) for name in names}

    of_first = [cell for cell in cells if cell["partition"] == cells[0]["partition"]]
    centre = [cell["worlds"]["reset"]["centre_groups"] for cell in of_first]
    table = [{"arm": CENTRE, "gate": None} | means(centre)]
    for cell in _firsts(cells):
        own = [c["worlds"]["reset"] for c in cells if c["partition"] == cell["partition"]]
        for place, row in enumerate(own[0]["rows"]):
            if row["top"] == "full" or row["gate"] == "oracle":
                found = [world["rows"][place]["groups"] for world in own]
                table.append({"arm": cell["partition"], "gate": row["gate"]} | means(found))
    return table


def _firsts(cells: Sequence[Cell]) -> list[Cell]:
    """The first cell of each arm."""
    return list({cell["partition"]: cell for cell in reversed(cells)}.values())[::-1]


# ── the screen ──────────────────────────────────────────────────────────────────────────────────


def print_tables(console: Console, rows: Sequence[Row], summary: Mapping[str, Any]) -> None:
    """What was trained; the ladder, where it comes from, and the domains."""
    console.print(_arms(summary["arms"]))
    titles = {
        "reset": "The ladder: gates start again with every window",
        "carried": "The ladder again: gates are carried through the document",
    }
    for world, title in titles.items():
        for partitions in groups(rows, 4):
            console.print(ladder(select(rows, world=world), title, partitions))
    console.print(account(select(rows, world="reset")))
    console.print(_domains(summary["domains"]))


def _arms(arms: Sequence[Mapping[str, Any]]):
    table = narrow_table(
        *("arm", "steps", "tokens", "FLOPs", "rates", "tuning tokens", "router"),
        title="What each arm was trained on, a seed",
        caption="Every member takes its best rate on its own validation text.\n"
        "router: its FLOPs over those of the arm, beside them.",
    )
    for arm in arms:
        table.add_row(*_arm_cells(arm))
    return table


def _arm_cells(arm: Mapping[str, Any]) -> list[str]:
    steps = arm.get("steps")
    return [
        arm["arm"],
        f"{min(steps)} to {max(steps)}" if steps else "all",
        f"{arm['tokens']:,}",
        f"{arm['flops']:.3g}",
        ", ".join(f"{rate:g}" for rate in arm["rates"]),
        f"{arm['tuning_tokens']:,}",
        f"{arm['router']['flops'] / arm['flops']:.1%}" if "router" in arm else "",
    ]


_SHOWN = ("static", "fixed share", "running router", "Bayes", "oracle")


def _domains(found: Sequence[Mapping[str, Any]]):
    names = [name for name in found[0] if name not in ("arm", "gate")]
    table = narrow_table(
        *("arm", "gate", *names), title="By domain, nats per byte", caption="Whole gates."
    )
    for row in found:
        if row["gate"] is None or row["gate"] in _SHOWN:
            table.add_row(row["arm"], row["gate"] or "", *(f"{row[name]:.3f}" for name in names))
    return table


# ── Markdown ────────────────────────────────────────────────────────────────────────────────────


def markdown(result: Mapping[str, Any]) -> list[str]:
    """The tables of `experiments/README.md`, from what `result.json` holds."""
    rows, summary = result["summary"]["comparisons"], result["summary"]
    head = ["arm", "steps of a member", "tokens", "FLOPs", "rates", "tuning tokens", "router"]
    spent = [head, *(_arm_cells(arm) for arm in summary["arms"])]
    names = [name for name in summary["domains"][0] if name not in ("arm", "gate")]
    domains = [["nats per byte", *names]]
    for row in summary["domains"]:
        if row["gate"] is None or row["gate"] in _SHOWN:
            label = row["arm"] if row["gate"] is None else f"{row['arm']}: {row['gate']}"
            domains.append([label, *(f"{row[name]:.3f}" for name in names)])
    tables = [spent, ladder_table(rows), account_table(rows), domains]
    return list(map(markdown_lines, tables))


def main(args: Sequence[str] | None = None) -> int:
    """0, or 2 if the file cannot be used."""

    def show(result: tyro.conf.Positional[Path]) -> bool:
        """Print the tables of the README, in Markdown.

        Args:
            result: `result.json` of a run of `experiments.language`.
        """
        print("\n\n".join(markdown(json.loads(result.read_text(encoding="utf-8")))))
        return True

    prog = "python -m experiments.language_report"
    return study.exit_status(prog, lambda: tyro.cli(show, prog=prog, args=args))


if __name__ == "__main__":
    sys.exit(main())
