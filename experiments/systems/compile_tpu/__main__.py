"""Every program compiled for TPUs that are not on this machine: collectives, memory, FLOPs.

    make install-tpu && make compile-tpu

libtpu's compiler runs on a CPU, for a topology that is described by its name. The study shows that
the programs compile, what they send and how much memory they take; it does not show that numbers
are right, nor the speed. On two slices an exchange between them is a `send` and a `recv`, over the
network that joins them.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dfm_jax.checks import require
from dfm_jax.models import SIZES, TransformerConfig, flops_per_token
from dfm_jax.models.sizes import num_parameters
from dfm_jax.parallel import Collective, collectives, count_by_kind
from dfm_jax.training.config import shape_of
from dfm_jax.training.plan import plan_of
from dfm_jax.training.state import TrainState
from experiments.language.config import PRESETS as PRESETS_OF_LANGUAGE
from experiments.language.config import member_config
from experiments.lib import reporting, study
from experiments.lib.programs import (
    TINY,
    Program,
    picture_step,
    programs,
    study_step,
    system_step,
)
from experiments.lib.reporting import Verdict
from experiments.multimodal import config as multimodal_config
from experiments.multimodal.config import PRESETS as PRESETS_OF_MULTIMODAL
from experiments.multimodal.network import Sight, at_large
from experiments.systems.compile_tpu.config import PRESETS, Config, check_config
from experiments.systems.compile_tpu.topologies import (
    LANGUAGE,
    LARGE,
    MEMORY,
    TOPOLOGIES,
    devices_of,
)
from experiments.systems.compile_tpu.whole_systems import ARMS
from experiments.systems.scaling.costs import Rules
from experiments.systems.scaling.costs import memory as memory_of

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax")
_PROG = "python -m experiments.compile_tpu"
MISSING = "libtpu is not installed: run `make install-tpu`"
ACROSS = ("send", "recv")


# ── what is read off a program ──────────────────────────────────────────────────────────────────


def compiled_row(name: str, program: Program, devices: Sequence[Any]) -> dict[str, Any]:
    """One row: what a program sends to which devices, and its memory; or why it was refused."""
    start = time.perf_counter()
    donate = (0,) if isinstance(program.shapes[0], TrainState) else ()
    row: dict[str, Any] = {"program": name, "devices": len(devices)}
    try:
        compiled = jax.jit(program.fn, donate_argnums=donate).lower(*program.shapes).compile()
    except ValueError as error:
        if "contiguous subcube" not in str(error):
            raise
        return row | {"skipped": "refused by pmap: a process does not hold a block of these chips"}
    found = collectives(compiled)
    memory: Any = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes
    kept -= memory.alias_size_in_bytes
    return row | {
        "collectives": count_by_kind(found),
        "bytes": sum(one.num_bytes for one in found),
        "groups": sorted({one.groups for one in found}),
        "across_slices": sum(crosses(one, devices) for one in found),
        "across_experts": across_experts(name, found, len(devices)),
        "state_bytes": kept,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "flops_loops_once": (compiled.cost_analysis() or {}).get("flops"),
        "seconds": round(time.perf_counter() - start, 1),
    }


def crosses(one: Collective, devices: Sequence[Any]) -> bool:
    """Whether chips of different slices communicate.

    With several slices each slice has a program of its own, whose groups number its own chips, so
    only sends leave the slice. A collective without groups is among all chips of the slice.
    """
    return _num_slices(devices) > 1 and one.kind in ACROSS


def across_experts(name: str, found: Sequence[Collective], num_devices: int) -> int | None:
    """How many collectives leave an expert; None for programs that are not of experts alone."""
    if not name.startswith("expert"):
        return None
    size = 2 if "data" in name else 1
    rows = [set(range(start, start + size)) for start in range(0, num_devices, size)]
    return sum(
        one.kind in ACROSS
        or not one.groups
        or not all(any(set(group) <= row for row in rows) for group in one.groups)
        for one in found
    )


def _num_slices(devices: Sequence[Any]) -> int:
    return len({getattr(device, "slice_index", None) for device in devices})


def rows_of(config: Config) -> Iterator[dict[str, Any]]:
    """A row for each topology and program, the large ones last."""
    for topology in TOPOLOGIES[: config.topologies]:
        devices = devices_of(topology)
        for name, program in programs(devices).items():
            where = {"topology": topology.label, "size": "tiny"}
            yield where | compiled_row(name, program, devices) | by_formula(name, TINY, 2 * 32, 32)
    if config.large:
        model, devices, length = SIZES["1b"], devices_of(LARGE), 2048
        large = programs(devices, model=model, num_sequences=1, num_positions=length)
        for name in config.large:
            require(name in large, f"Each of `large` must be one of {', '.join(large)}", name)
            where = {"topology": LARGE.name, "size": "1b"}
            row = compiled_row(name, large[name], devices)
            yield where | row | by_formula(name, model, length, length)
    yield from map(study_row, config.language)
    yield from map(picture_row, config.multimodal)
    if config.systems:
        cells = study.Cells(  # a row takes minutes, and some gigabytes
            folder=config.out / "cells",
            depends_on={"versions": reporting.installed((*PACKAGES, "libtpu"))},
            programs=("experiments.compile_tpu",),
        )
        for name in config.systems:
            yield cells.measured(name.replace(", ", "_"), partial(system_row, name))


def study_row(preset: str) -> dict[str, Any]:
    """The update of a study's member at that preset."""
    topology = LANGUAGE[preset]
    devices = devices_of(topology)
    member = member_config(PRESETS_OF_LANGUAGE[preset], num_steps=1000)
    where = {"topology": topology.name, "size": f"{num_parameters(member.model) / 1e6:,.0f} M"}
    name = f"expert step of language, {preset}"
    return where | compiled_row(name, study_step(member, devices), devices)


def picture_row(preset: str) -> dict[str, Any]:
    """The update of a member of `multimodal`: SmolLM2 behind nine patches of EfficientNet-Lite0."""
    topology, config = TOPOLOGIES[0], PRESETS_OF_MULTIMODAL[preset]
    devices, model = devices_of(topology), at_large(SIZES["135m"])
    member = shape_of(multimodal_config.member_config(config, model, 64, num_steps=1000))
    sight = Sight(9, 1280, 1.0 if config.train_encoder else None)
    where = {"topology": topology.name, "size": f"{num_parameters(model) / 1e6:,.0f} M"}
    name = f"expert step of multimodal, {preset}"
    return where | compiled_row(name, picture_step(member, sight, devices), devices)


def system_row(name: str) -> dict[str, Any]:
    """The update of a whole system, split over the chips of one slice or of several."""
    arm = ARMS[name]
    devices, config = devices_of(arm.topology), arm.config
    plan = plan_of(config, chips=len(devices), frozen=config.optimizer.freeze)
    row = compiled_row(name, system_step(config, devices), devices)
    return {
        "topology": arm.topology.label,
        "size": f"{plan.parameters / 1e6:,.0f} M",
        **row,
        "share_of_memory": row["peak_bytes"] / MEMORY[arm.topology.name.partition(":")[0]],
        "flops_by_formula": plan.flops / len(devices),
        "memory_by_formula": plan.memory,
    }


def by_formula(name: str, model: TransformerConfig, tokens: int, length: int) -> dict[str, float]:
    """FLOPs of a training step on a chip, and its memory by `scaling_costs`, the state not cut."""
    if "step" not in name or name.startswith("mixing") or "sharded" in name:
        return {}
    rules = Rules(length=length, efficiency=1, usable=1, gradient_bytes=4, gather_bytes=4)
    passes = 4 if model.remat else 3  # forward, backward twice, forward again where recomputed
    return {
        "flops_by_formula": passes * tokens * flops_per_token(model, length),
        "memory_by_formula": memory_of(model, tokens, 1, rules),
    }


def verdicts_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here."""
    read = [row for row in rows if "skipped" not in row]
    experts = [row for row in read if row["across_experts"] is not None]
    alone = [row for row in experts if "data" not in row["program"]]
    pairs = [row for row in experts if "data" in row["program"]]
    dense = [row for row in read if row["program"].startswith("dense")]
    mixing = [row for row in read if row["program"].startswith("mixing")]
    split = [row for row in (*dense, *mixing) if "×" in row["topology"]]
    claims: list[Verdict] = []
    if experts:
        talk = sum(sum(row["collectives"].values()) for row in alone)
        left, across = _sum(experts), _sum(experts, "across_slices")
        claims += [
            Verdict("experts, one a chip: collectives", "–", talk, "≤", 0),
            Verdict("experts: exchanges that leave an expert", "–", left, "≤", 0),
            Verdict("experts: exchanges between slices", "–", across, "≤", 0),
        ]
    if pairs:
        least = min(sum(row["collectives"].values()) for row in pairs)
        claims.append(Verdict("falsifier: collectives inside an expert", "–", least, "≥", 1))
    if split:
        least = min(row["across_slices"] for row in split)
        what = "falsifier: exchanges of dense and mixing between slices"
        claims.append(Verdict(what, "–", least, "≥", 1))
    whole = [row for row in read if "share_of_memory" in row]
    for row in whole:
        what = f"{row['program']}: peak memory over that of a chip, {row['topology']}"
        claims.append(Verdict(what, "–", row["share_of_memory"], "≤", 1))
    for row in whole:
        if "×" in row["topology"]:
            what = f"falsifier: exchanges of {row['program']} between slices"
            claims.append(Verdict(what, "–", row["across_slices"], "≥", 1))
    return tuple(claims)


def _sum(rows: Sequence[Mapping[str, Any]], name: str = "across_experts") -> int:
    return sum(row[name] for row in rows)


def print_table(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each topology and program."""
    table = Table("topology", "size", "program", "collectives", box=SIMPLE_HEAD)
    for column in ("MB sent", "between slices", "state", "temporary", "peak", "FLOPs", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        if "skipped" in row:
            table.add_row(row["topology"], row["size"], row["program"], row["skipped"])
            continue
        kinds = ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items())
        table.add_row(
            row["topology"],
            row["size"],
            row["program"],
            kinds or "none",
            f"{row['bytes'] / 1e6:,.2f}",
            str(row["across_slices"]),
            *(f"{row[f'{name}_bytes'] / 1e6:,.1f} MB" for name in ("state", "temporary", "peak")),
            f"{row['flops_loops_once'] or 0:.2g}",
            f"{row['seconds']}",
        )
    console.print(table)


def run(config: Config, console: Console) -> bool:
    """Run the whole study: table, result.json; return whether every claim holds."""
    start, rows = time.perf_counter(), []
    for row in rows_of(config):
        rows.append(row)
        console.print(f"{row['topology']}, {row['size']}: {row['program']}", highlight=False)
    verdicts = verdicts_of(rows)
    return reporting.conclude(
        console,
        config,
        versions=reporting.installed((*PACKAGES, "libtpu")),
        seeds=[],
        rows=rows,
        summary={"seconds": round(time.perf_counter() - start, 1)},
        verdicts=verdicts,
        records=rows,
        tables=lambda: print_table(console, rows),
    )


def main(args: Sequence[str] | None = None) -> int:
    """0 if every claim holds or libtpu is missing, 1 if one fails, 2 for bad input, 130 stopped."""
    config = study.parsed(PRESETS, _PROG, args)

    def whole() -> bool:
        check_config(config)
        config.out.mkdir(parents=True, exist_ok=True)
        if importlib.util.find_spec("libtpu") is None:
            skipped = {"skipped": MISSING}
            (config.out / "result.json").write_text(json.dumps(skipped) + "\n", encoding="utf-8")
            print(f"{_PROG}: skipped: {MISSING}")
            return True
        return run(config, Console())

    return study.exit_status(_PROG, whole)


if __name__ == "__main__":
    sys.exit(main())
