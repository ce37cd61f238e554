"""What `language` measured: rows for the file, tables for the screen and the README."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.lib import study
from experiments.lib.ladder_report import (
    JUDGED,
    SIGNS,
    Cell,
    Row,
    account_table,
    judged,
    ladder_table,
    markdown_lines,
    mean,
    select,
)
from experiments.lib.ladder_screen_report import account, groups, ladder, narrow_table
from experiments.lib.statistics import compare

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


def by_domain(cells: Sequence[Cell], margin: float) -> list[dict[str, Any]]:
    """Each domain alone: an arm's loss there, and its difference to the centre's, judged by seeds.

    In nats per byte, of whole gates; `documents` are the bootstrap intervals inside each seed.
    """
    table = []
    for first in _firsts(cells):
        seeds = [c["worlds"]["reset"] for c in cells if c["partition"] == first["partition"]]
        for rungs in zip(*(seed["rows"] for seed in seeds), strict=True):
            if rungs[0]["top"] != "full" and rungs[0]["gate"] != "oracle":
                continue
            for domain in rungs[0]["groups"]:
                found = [rung["groups"][domain] for rung in rungs]
                across = compare([one["minus"][0] for one in found], margin=margin).as_record()
                row = {"arm": first["partition"], "gate": rungs[0]["gate"], "domain": domain}
                row["nll"] = mean(one["nll"] for one in found)
                row["documents"] = [one["minus"][1:] for one in found]
                table.append(row | {name: across[name] for name in JUDGED})
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


def _arms(arms: Sequence[Mapping[str, Any]]) -> Table:
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


_ACCOUNTED = ("static", "fixed share", "router × Bayes", "running router", "Bayes")
_SHOWN = ("static", "fixed share", "running router", "Bayes", "oracle")


def _domains(found: Sequence[Mapping[str, Any]]) -> Table:
    head, *body = _domain_cells(found, lambda row: f"{row['mean']:+.3f}{SIGNS[row['verdict']]}")
    table = narrow_table(
        *head,
        title="By domain: whole gates, ensemble − centre, nats per byte",
        caption="Mean over seeds, and the sign of its verdict.",
    )
    for row in body:
        table.add_row(*row)
    return table


def _domain_cells(
    found: Sequence[Mapping[str, Any]], shown: Callable[[Mapping[str, Any]], str] = judged
) -> list[list[str]]:
    names = list(dict.fromkeys(row["domain"] for row in found))
    arms = list(dict.fromkeys(row["arm"] for row in found))
    centre = [f"{_centre_nll(select(found, arm=arms[0], domain=name)[0]):.3f}" for name in names]
    table = [["arm: gate", *names], ["centre, its loss", *centre]]
    for arm in arms:
        for gate in _SHOWN:
            own = select(found, arm=arm, gate=gate)
            table.append([f"{arm}: {gate}", *map(shown, own)])
    return table


def _centre_nll(row: Mapping[str, Any]) -> float:
    return row["nll"] - row["mean"]


# ── Markdown ────────────────────────────────────────────────────────────────────────────────────


def markdown(result: Mapping[str, Any]) -> list[str]:
    """The tables of `experiments/README.md`, from what `result.json` holds."""
    rows, summary = result["summary"]["comparisons"], result["summary"]
    head = ["arm", "steps of a member", "tokens", "FLOPs", "rates", "tuning tokens", "router"]
    spent = [head, *(_arm_cells(arm) for arm in summary["arms"])]
    head, *terms = account_table(rows)
    terms = [row for row in terms if row[0].split(": ")[1] in _ACCOUNTED]
    tables = [spent, ladder_table(rows), [head, *terms], _domain_cells(summary["domains"])]
    return list(map(markdown_lines, tables))


def main(args: Sequence[str] | None = None) -> int:
    """0, or 2 if the file cannot be used."""
    return study.show_tables("language", markdown, args)


if __name__ == "__main__":
    sys.exit(main())
