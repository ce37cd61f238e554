"""What `samplers` measured: rows for the file, tables for the screen and the README."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from experiments.lib import study
from experiments.lib.gate_comparison_screen_report import narrow_table
from experiments.samplers.chains import passes_at

Row = Mapping[str, Any]


def result_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each enumerated sampler and source, and for each choice at length."""
    rows = [{"part": "short", **row} for row in [*found["enumerated"], *found["symmetric"]]]
    return rows + [{"part": "long", **row} for row in found["chains"]]


def passes(rows: Sequence[Row], random: Sequence[Row], target: float) -> list[dict[str, Any]]:
    """For each long source, the fewest passes of a family with a divergence of `target`.

    Of random positions they come from h (S10), of the others from what was run.
    """
    found = []
    for name in dict.fromkeys(row["source"] for row in rows):
        own = [dict(row) for row in rows if row["source"] == name]
        by_family = {
            family: passes_at(own, family, target)
            for family in dict.fromkeys(row["family"] for row in own)
        }
        others = {family: count for family, count in by_family.items() if count is not None}
        best = min(others, key=others.__getitem__, default=None)
        by_h = next(row for row in random if row["source"] == name)
        found.append(
            {
                "source": name,
                "target": target,
                "even": by_h["even"],
                "by_information": by_h["by_information"],
                "best": None if best is None else others[best],
                "best_family": best,
            }
        )
    return found


def _number(value: float | None, form: str = ".4f") -> str:
    return "∞" if value is None else format(value, form)


def _short_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        tv, most = (_scaled(row[name]) for name in ("tv", "tv_max"))
        yield row["sampler"], row["statement"], tv, most, _scaled(row["kl"]), f"{row['passes']:.2f}"


def _scaled(value: float | None) -> str:
    """Rounding errors as a power of ten, distances as decimals."""
    if value is None:
        return "∞"
    return f"{value:.0e}" if abs(value) < 5e-4 else f"{value:.4f}"


ROUNDING = 1e-12
SHORT_COLUMNS = ("sampler", "statement", "mean TV", "largest TV", "mean KL", "passes")
SYMMETRIC_COLUMNS = ("source", "sampler", "TV", "passes")
DRIFT_COLUMNS = ("position is redrawn", "sweeps", "TV")
CHAIN_COLUMNS = ("source", "choice", "", "KL, nats", "± s.e.", "passes")
PASSES_COLUMNS = ("source", "KL ≤", "random, even", "random, by information", "best", "its choice")
PEER_COLUMNS = ("package", "sampler", "options", "steps", "skewed", "symmetric", "left")
SLACK_COLUMNS = ("source", "entropy", "masks", "uniform source")
GROWTH_COLUMNS = (
    "N",
    "states",
    "jax, ms",
    "its products, ms",
    "ratio",
    "NumPy, ms",
    "messages, MB",
)


def _symmetric_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        if row["tv"] > ROUNDING:
            yield row["source"], row["sampler"], _scaled(row["tv"]), f"{row['passes']:.2f}"


def _drift_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        yield row["selection"], f"{row['sweeps']}", _scaled(row["tv"])


def _chain_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        what = f"{row['what']} {row['number']:g}" if row["what"] else ""
        numbers = (
            f"{row[name]:.0e}" if abs(row[name]) < 5e-4 else f"{row[name]:.3f}"
            for name in ("kl", "stderr")
        )
        yield row["source"], row["family"], what, *numbers, f"{row['passes']:,.0f}"


def _passes_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        counts = [
            "none" if row[name] is None else f"{row[name]:.0f}"
            for name in ("even", "by_information", "best")
        ]
        yield row["source"], f"{row['target']:g}", *counts, row["best_family"] or ""


def _peer_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    keys = ("package", "sampler", "options", "steps")
    for key in dict.fromkeys(tuple(row[name] for name in keys) for row in rows):
        own = {row["source"]: row for row in rows if tuple(row[name] for name in keys) == key}
        values = [
            "raises" if own[s]["tv"] is None else f"{own[s]['tv']:.4f}" for s in ("skewed", "twins")
        ]
        left = max(row["unfinished"] for row in own.values())
        yield key[0], key[1], key[2], str(key[3]), *values, f"{left:.2%}" if left else ""


def _slack_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        numbers = (_scaled(row[name]) for name in ("entropy", "masks", "uniform"))
        yield row["source"], *numbers


def _growth_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        times = {
            name: f"{1e3 * row[f'{name}_seconds']:.2f}" for name in ("jax", "products", "numpy")
        }
        yield (
            f"{row['length']:,}",
            f"{row['hidden']}",
            times["jax"],
            times["products"],
            f"{row['ratio']:.2f}",
            times["numpy"],
            f"{row['message_bytes'] / 2**20:.2f}",
        )


def _gate_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    for gate in dict.fromkeys(row["gate"] for row in rows):
        for sampler in dict.fromkeys(row["sampler"] for row in rows):
            tvs = [r["tv"] for r in rows if (r["gate"], r["sampler"]) == (gate, sampler)]
            yield gate, sampler, _scaled(float(np.mean(tvs))), _scaled(max(tvs))


def _lower_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        yield (
            f"{row['count']} a step",
            f"{row['passes']:.0f}",
            f"{row['kl_at_least']:.3f}",
            row["statistic"],
            f"{row['of_q']:.1f}",
            f"{row['of_samples']:.1f}",
        )


class Table(NamedTuple):
    """A table of the screen and of the README."""

    title: str
    columns: tuple[str, ...]
    rows: Iterator[tuple[str, ...]]
    caption: str = ""


def _tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    yield Table(
        "Whole runs on short distributions, exact denoiser: means over the distributions",
        SHORT_COLUMNS,
        _short_rows(summary["short"]),
        "TV: total variation to the data. More steps do not make a choice by draws exact (S9).",
    )
    yield Table(
        "Sources full of ties",
        SYMMETRIC_COLUMNS,
        _symmetric_rows(summary["symmetric"]),
        "coins: four independent ones; twins: all 0 or all 1. What is not listed is exact.",
    )
    yield Table(
        "Two exact experts, mixed at every step",
        ("gate", "order", "mean TV", "largest TV"),
        _gate_rows(summary["experts"]),
    )
    yield Table(
        "Redraws from the data: how far they drift",
        DRIFT_COLUMNS,
        _drift_rows(summary["drift"]),
        "A sweep is as many redraws as there are positions.",
    )
    yield Table(
        "Long sources: choices that are blind to the draws",
        CHAIN_COLUMNS,
        _chain_rows(summary["chains"]),
        "KL of a whole sequence; of random positions an upper bound.",
    )
    yield Table(
        "The fewest passes at one divergence", PASSES_COLUMNS, _passes_rows(summary["passes"])
    )
    yield Table(
        "Hidden chain: the most confident draw, KL at least (95 %)",
        ("kept", "passes", "KL, nats", "by", "its mean", "of samples"),
        _lower_rows(summary["lower"]),
    )
    yield Table(
        "Generalized KL of the exact posterior − entropy, nats",
        SLACK_COLUMNS,
        _slack_rows(summary["slack"]),
        "What is above 0 is the floor under every bound of that source.",
    )
    yield Table("Message passing for one state", GROWTH_COLUMNS, _growth_rows(summary["growth"]))
    if summary["peers"]:
        noise = max(row["noise"] for row in summary["peers"])
        yield Table(
            "Other packages, their own code: TV of the samples to the data",
            PEER_COLUMNS,
            _peer_rows(summary["peers"]),
            f"At most {noise:.4f} is the noise of so many draws. left: samples that hold a mask.",
        )


def print_tables(console: Console, summary: Mapping[str, Any]) -> None:
    """Print every table."""
    for one in _tables(summary):
        table = narrow_table(*one.columns, title=one.title, caption=one.caption)
        for row in one.rows:
            table.add_row(*row)
        console.print(table)


def markdown(result: Mapping[str, Any]) -> list[str]:
    """The tables of the README."""
    found = []
    for one in _tables(result["summary"]):
        lines = [f"| {' | '.join(one.columns)} |", "|---" * len(one.columns) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in one.rows]
        caption = f" {one.caption}" if one.caption else ""
        found.append(f"**{one.title}.**{caption}\n\n" + "\n".join(lines))
    return found


def main(args: Sequence[str] | None = None) -> int:
    """Print the tables of a result."""
    return study.show_tables("samplers", markdown, args)


if __name__ == "__main__":
    sys.exit(main())
