"""The output of `stacks`: its tables."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.lib import study


def markdown(result: Mapping[str, Any]) -> list[str]:
    """Draws that differ; the compiled programs; the speed."""
    rows = result["rows"]
    return [
        _draws([row for row in rows if row["kind"] == "draw"]),
        _programs([row for row in rows if row["kind"] == "program"]),
        _step(result["summary"]["training_step"]),
        _speed([row for row in rows if row["kind"] == "work"]),
    ]


def _draws(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| draw of `jax.random.key(0)` | equal entries | largest difference |",
        "|---|---:|---:|",
    ]
    for row in rows:
        if not row["same"]:
            ids = row["dtype"].startswith(("int", "uint", "bool"))
            gap = "–" if ids else f"{row['largest_difference']:.2g}"
            lines.append(f"| {row['name']} | {100 * row['equal']:.1f} % | {gap} |")
    names = "; ".join(row["name"] for row in rows if row["same"])
    return "\n".join([*lines, f"| the same bits: {names} | 100 % | 0 |"])


def _kinds(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"


def _programs(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| program on 8 devices | collectives, lowest | newest | bytes, lowest | newest |"]
    lines += ["|---|---|---|---:|---:|"]
    for row in rows:
        counts = [_kinds(row[side]["collectives"]) for side in ("lowest", "newest")]
        sent = [f"{row[side]['bytes']:,}" for side in ("lowest", "newest")]
        lines.append(f"| {' | '.join((row['name'], *counts, *sent))} |")
    return "\n".join(lines)


_STEP = {
    "state_bytes": ("its arguments, MB", 1e-6),
    "temporary_bytes": ("temporary memory, MB", 1e-6),
    "trace_s": ("tracing, s", 1),
    "compile_s": ("compiling, s", 1),
}


def _step(found: Mapping[str, Mapping[str, float]]) -> str:
    lines = ["| training step as it is compiled | lowest | newest |", "|---|---:|---:|"]
    for name, (label, factor) in _STEP.items():
        values = [f"{factor * found[side][name]:.2f}" for side in ("lowest", "newest")]
        lines.append(f"| {label} | {' | '.join(values)} |")
    return "\n".join(lines)


def _speed(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| work | size | lowest, ms | newest, ms | lowest over newest | 95 % |"]
    lines += ["|---|---|---:|---:|---:|---|"]
    for row in rows:
        times = [f"{1e3 * row[side]:.3g}" for side in ("lowest_s", "newest_s")]
        ratio = (f"{row['ratio']:.2f}", f"{row['low']:.2f}–{row['high']:.2f}")
        lines.append(f"| {' | '.join((row['name'], row['size'], *times, *ratio))} |")
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    """Print the tables of a result; 2 if the file is wrong."""
    return study.show_tables("stacks", markdown, args)


if __name__ == "__main__":
    sys.exit(main())
