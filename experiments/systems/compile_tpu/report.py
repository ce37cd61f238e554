"""Two results of `compile_tpu` beside each other, such as those of two versions of libtpu."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from experiments.lib import study

_PROG = "python -m experiments.compile_tpu.report"
NEAR = 0.05  # of the memory: what differs less is not listed
_BYTES = ("temporary_bytes", "peak_bytes")


def beside(lowest: Mapping[str, Any], newest: Mapping[str, Any]) -> str:
    """A table of the programs that differ in what they send or by more than 5 % in memory."""
    pair = [{_name(row): row for row in result["rows"]} for result in (lowest, newest)]
    shared = [name for name in pair[0] if name in pair[1]]
    lines = ["| topology, size | program | collectives | kB sent | temporary, MB | peak, MB |"]
    lines += ["|---|---|---|---|---|---|"]
    same = 0
    for name in shared:
        both = [rows[name] for rows in pair]
        if _alike(*both):
            same += 1
            continue
        where, program = ", ".join(name[:2]), name[2]
        columns = [_turned([_kinds(row) for row in both])]
        columns.append(_turned([_shown(row, "bytes", 1e3, 0) for row in both]))
        columns += [_turned([_shown(row, n, 1e6, 1) for row in both]) for n in _BYTES]
        lines.append(f"| {where} | {program} | {' | '.join(columns)} |")
    rest = f"{same} of {len(shared)} programs: no difference, and memory within {100 * NEAR:.0f} %"
    return "\n".join([*lines, f"| {rest} | | | | | |"])


def _name(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["topology"], row["size"], row["program"]


def _alike(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    if "skipped" in left or "skipped" in right:
        return left.get("skipped") == right.get("skipped")
    near = all(abs(right[name] - left[name]) <= NEAR * left[name] for name in _BYTES)
    return near and all(left[n] == right[n] for n in ("collectives", "bytes", "across_slices"))


def _shown(row: Mapping[str, Any], name: str, unit: float, digits: int) -> str:
    return "–" if "skipped" in row else f"{row[name] / unit:,.{digits}f}"


def _kinds(row: Mapping[str, Any]) -> str:
    if "skipped" in row:
        return "refused"
    return ", ".join(f"{n} {kind}" for kind, n in sorted(row["collectives"].items())) or "none"


def _turned(values: Sequence[str]) -> str:
    """One value, or the lowest versions' and the newest's."""
    return values[0] if values[0] == values[1] else " → ".join(values)


def main(args: Sequence[str] | None = None) -> int:
    """Print the table of two results; 2 if a file is wrong."""

    def show(lowest: tyro.conf.Positional[Path], newest: tyro.conf.Positional[Path]) -> bool:
        """Print the table of the README, in Markdown.

        Args:
            lowest: `result.json` of a run with the lowest versions.
            newest: `result.json` of a run with the newest.
        """
        pair = [json.loads(path.read_bytes()) for path in (lowest, newest)]
        try:
            print(beside(*pair))
        except (LookupError, TypeError) as error:
            rule = "Both files must be what `experiments.compile_tpu` wrote"
            raise ValueError(f"{rule}; got {error!r}.") from error
        return True

    example = (
        f"{_PROG} experiments/results/compile_tpu.json experiments/results/compile_tpu_newest.json"
    )
    words = study.described("Print two results beside each other, in Markdown.", [example])
    return study.exit_status(
        _PROG, lambda: tyro.cli(show, prog=_PROG, args=args, description=words)
    )


if __name__ == "__main__":
    sys.exit(main())
