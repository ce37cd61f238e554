"""Which devices communicate: the collectives of every compiled program of `programs`.

    python -m experiments.isolation --json runs/isolation.json

Programs of experts must have no collective. An expert on several devices communicates only inside
them. The dense model must communicate, and experts are mixed by one sum. If libtpu is installed, in
an environment of its own, the programs are also compiled for TPUs: see `experiments.compile_tpu`.
"""

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.table import Table

from dfm_jax.checks import require
from dfm_jax.cli import check_given_once
from dfm_jax.parallel import Collective, collectives, count_by_kind
from experiments.lib import study
from experiments.lib.programs import Program, programs

_PROG = "python -m experiments.isolation"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Count the collectives of compiled programs."""

    json: Path | None = None
    """A file for the list of programs, platform, devices and collectives by kind."""
    devices: int = 8
    """The number of devices, virtual ones on a CPU; it must be even."""


def measured(name: str, program: Program, devices: Sequence[Any]) -> dict[str, Any]:
    """The collectives of a program on these devices, and whether they are allowed."""
    found = collectives(jax.jit(program.fn).lower(*program.shapes).compile())
    return {
        "program": name,
        "platform": devices[0].platform,
        "devices": len(devices),
        "collectives": count_by_kind(found),
        "bytes": sum(one.num_bytes for one in found),
        "isolated": keeps_to_itself(name, found, len(devices)),
    }


def keeps_to_itself(name: str, found: Sequence[Collective], num_devices: int) -> bool:
    """The claim: no collective, or only inside pairs; the dense model and the mixture have some."""
    if name.startswith("expert × data"):
        pairs = {(first, first + 1) for first in range(0, num_devices, 2)}
        return bool(found) and all(one.groups and set(one.groups) <= pairs for one in found)
    if name.startswith("expert"):
        return not found
    if name == "mixing step":
        return count_by_kind(found) == {"all-reduce": 1}
    return count_by_kind(found).get("all-reduce", 0) >= 1


def run(config: Config, console: Console) -> bool:
    """Compile, print the table, write the file; return whether every claim holds."""
    devices = jax.devices()[: config.devices]
    rule = f"`devices` must be at most {len(devices)}, as many as jax finds"
    require(len(devices) == config.devices, rule, config.devices)
    rows = []
    for name, program in programs(devices).items():
        console.print(f"{name} …", highlight=False)
        rows.append(measured(name, program, devices))
    console.print(table(rows))
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        console.print(f"numbers: {config.json}", highlight=False, soft_wrap=True)
    return all(row["isolated"] for row in rows)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table with one line per program."""
    made = Table(title="Collectives in the compiled program")
    for name in ("program", "devices", "collectives", "bytes", ""):
        made.add_column(name, justify="right" if name in ("devices", "bytes") else "left")
    for row in rows:
        said = ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items())
        made.add_row(
            row["program"],
            f"{row['devices']} {row['platform']}",
            said or "none",
            f"{row['bytes']:,}",
            "holds" if row["isolated"] else "FAILS",
        )
    return made


def main(args: Sequence[str] | None = None) -> int:
    """0 if every claim holds, 1 if one fails, 2 for input that cannot be used."""
    help_text = study.described(Config.__doc__ or "", [_PROG, f"{_PROG} --devices 4 --json a.json"])
    with study.refused(_PROG):
        check_given_once(sys.argv[1:] if args is None else args)
    config = tyro.cli(Config, args=args, prog=_PROG, description=help_text)
    with contextlib.suppress(RuntimeError):  # the backend is up, and has the devices that it has
        jax.config.update("jax_num_cpu_devices", max(config.devices, 1))
    return study.exit_status(_PROG, lambda: run(config, Console()))


if __name__ == "__main__":
    sys.exit(main())
