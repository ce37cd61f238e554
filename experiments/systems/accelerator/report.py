"""The output of `accelerator`: its tables."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.lib import study


def markdown(result: Mapping[str, Any]) -> list[str]:
    """The device and the parts; a table for each kind of row that was measured."""
    rows, summary = result["rows"], result["summary"]
    made = (
        (_TRAINING, ("training step",)),
        (_LOSSES, ("loss",)),
        (_DECODING, ("decoding", "mixture")),
        (_STATEMENTS, ("statement",)),
        (_ISOLATION, ("isolation",)),
    )
    tables = [_parts(summary)]
    for columns, kinds in made:
        mine = [row for row in rows if row["kind"] in kinds]
        if mine:
            tables.append(_table(columns, mine))
    return tables


def _milli(value: float) -> str:
    return f"{1e3 * value:.3g}"


def _giga(value: float) -> str:
    return f"{1e-9 * value:,.1f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


_Columns = tuple[tuple[str, str, Any], ...]  # a heading, an entry of the row, how it is shown
_TRAINING: _Columns = (
    ("training step", "name", str),
    ("parameters", "parameters", "{:,}".format),
    ("compiled in s", "compile_s", "{:.1f}".format),
    ("ms", "seconds", _milli),
    ("tokens/s", "tokens_per_s", "{:,.0f}".format),
    ("TFLOP/s", "flops_per_s", lambda value: f"{1e-12 * value:.3g}"),
    ("of peak", "share_of_peak", _percent),
    ("temporary GB", "temporary_bytes", _giga),
    ("first loss", "first_loss", "{:.3f}".format),
    ("last", "last_loss", "{:.3f}".format),
)
_LOSSES: _Columns = (
    ("loss and gradient", "name", str),
    ("ms", "seconds", _milli),
    ("GB/s, read and written once", "bytes_per_s", _giga),
    ("of the memory's", "share_of_memory", _percent),
    ("temporary, of float32 logits", "temporary_share", "{:.3f}".format),
    ("gap from float64, nats", "gap", "{:.1e}".format),
)
_DECODING: _Columns = (
    ("decoding with a cache", "name", str),
    ("compiled in s", "compile_s", "{:.1f}".format),
    ("ms", "seconds", _milli),
    ("tokens/s", "tokens_per_s", "{:,.0f}".format),
    ("GB/s of parameters", "bytes_per_s", _giga),
    ("of the memory's", "share_of_memory", _percent),
)
_STATEMENTS: _Columns = (
    ("statement", "name", str),
    ("cases", "instances", str),
    ("largest residual", "residual", "{:.1e}".format),
    ("bound", "tolerance", "{:.1e}".format),
    ("smallest falsifier", "falsifier", "{:.1e}".format),
)
_ISOLATION: _Columns = (
    ("isolation on one device", "name", str),
    ("collectives", "collectives", str),
    ("leaves of each", "leaves", str),
    ("moved by the other's data", "first_differ", str),
    ("by its own", "second_differ", str),
)


def _table(columns: _Columns, rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [[heading for heading, _, _ in columns]]
    lines.append(["---" if number == 0 else "---:" for number in range(len(columns))])
    lines += [[shown(row[name]) for _, name, shown in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _parts(summary: Mapping[str, Any]) -> str:
    device = summary["device"]
    lines = [f"| part on {device['kind']} | s | |", "|---|---:|---|"]
    for part in summary["parts"]:
        said = part["status"] + (f": {part['why']}" if part["why"] else "")
        lines.append(f"| {part['part']} | {part['seconds']:.1f} | {said} |")
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    """Print the tables of a result; 2 if the file is wrong."""
    return study.show_tables("accelerator", markdown, args)


if __name__ == "__main__":
    sys.exit(main())
