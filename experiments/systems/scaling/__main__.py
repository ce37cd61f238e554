"""The cost of a step on n chips, by formula, for a dense model and K experts that share nothing.

    python -m experiments.scaling --preset standard

The study computes bytes, memory and seconds by the formulas of `costs`, from 1 to 70 billion
parameters and from 8 to 4,096 chips; on 8 virtual devices it compares the formulas with compiled
programs. All variants train on the same tokens with the same FLOPs per token, and an expert is as
large as the dense model. A row is the cost of training on `tokens_per_step` tokens by one of

    dense                     one update, over all chips
    experts, shared batch     K updates, each by its K-th of the tokens on its K-th of the chips
    experts, dense model's batch  a K-th of an update each, with a batch as large

Each variant uses the faster of data-parallel and sharded that fits in memory.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import jax
from rich.console import Console

from dfm_jax.models import SIZES, TransformerConfig, num_parameters
from experiments.lib import reporting, study
from experiments.lib.reporting import Verdict
from experiments.systems.scaling import compiled as scaling_compiled
from experiments.systems.scaling import report as scaling_report
from experiments.systems.scaling.config import CHIPS, PRESETS, Config, check_config
from experiments.systems.scaling.costs import Chip, Cost, Rules, between_sites, cost, sharded_cost
from experiments.systems.scaling.crossover import crossovers, gains

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax")
_PROG = "python -m experiments.scaling"
SHOWN = (8, 128, 512, 4096)  # of them, in the result


def _llama(width: int, layers: int, heads: int, kv: int, ffn: int) -> TransformerConfig:
    return TransformerConfig(
        num_tokens=32000,
        width=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv,
        ffn_width=ffn,
        tied=False,
    )


MODELS = {
    "1b": SIZES["1b"],
    "7b": _llama(4096, 32, 32, 32, 11008),  # Llama 2, Code Llama 34B
    "34b": _llama(8192, 48, 64, 8, 22016),
    "70b": _llama(8192, 80, 64, 8, 28672),
}


# ── what follows from it ────────────────────────────────────────────────────────────────────────


def variants(config: Config) -> dict[str, tuple[int, int, float]]:
    """Per variant: tokens of an update, runs that share the chips, updates of each in a step."""
    tokens, experts = config.tokens_per_step, config.num_experts
    return {
        "dense": (tokens, 1, 1.0),
        "experts, shared batch": (tokens // experts, experts, 1.0),
        "experts, dense model's batch": (tokens, experts, 1 / experts),
    }


def layouts(
    model: TransformerConfig, tokens: int, chips: int, chip: Chip, rules: Rules
) -> dict[str, Cost]:
    """The layouts of a run: every chip has the whole state, or each has a part of it."""
    found = {"data-parallel": cost(model, tokens, chips, 1, chip, rules)}
    if chips > 1:
        found["sharded"] = sharded_cost(model, tokens, chips, chip, rules)
    return found


def rows_of(config: Config) -> Iterator[dict[str, Any]]:
    """A row for each kind of chip, size, number of chips, variant and layout."""
    rules = Rules(
        length=config.num_positions,
        efficiency=config.efficiency,
        usable=config.usable,
        gradient_bytes=config.gradient_bytes,
        gather_bytes=config.gather_bytes,
    )
    for kind, (size, model), chips in product(config.kinds, MODELS.items(), CHIPS):
        chip: Chip = getattr(config, kind)
        sites = between_sites(model, config.num_experts, rules) / config.site_rate
        for variant, (tokens, runs, updates) in variants(config).items():
            found = layouts(model, tokens, chips // runs, chip, rules)
            fitting = {name: one.in_turn for name, one in found.items() if one.fits}
            quickest = min(fitting, key=lambda name: fitting[name]) if fitting else None
            for layout, one in found.items():
                row = {
                    "kind": kind,
                    "size": size,
                    "chips": chips,
                    "variant": variant,
                    "layout": layout,
                }
                row |= {"quickest": layout == quickest} | _row(one, updates)
                yield row | {"sites_s": sites if runs == 1 else 0.0}


def _row(found: Cost, updates: float) -> dict[str, Any]:
    """What a chip does for a step: a run makes `updates` updates in it, which may be a fraction."""
    in_turn = updates * found.in_turn
    return {
        "shards": found.shards,
        "micro_batches": found.micro_batches,
        "fast_gb": updates * found.traffic.fast / 1e9,
        "slow_gb": updates * found.traffic.slow / 1e9,
        "memory_gb": found.memory / 1e9,
        "fits": found.fits,
        "compute_s": updates * found.compute,
        "in_turn_s": in_turn,
        "at_once_s": updates * found.at_once,
        "lost": 1 - updates * found.compute / in_turn,
    }


def verdicts_of(
    rows: Sequence[Mapping[str, Any]], compiled: Sequence[Mapping[str, Any]]
) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here."""
    ratios = gains(rows)
    shared = max(r["in_turn"] for r in ratios if r["variant"] == "experts, shared batch")
    own = [r for r in ratios if r["variant"] == "experts, dense model's batch"]
    most = max(r["in_turn"] for r in own if r["chips"] == CHIPS[-1])
    hidden = max(r["at_once"] for r in ratios)
    formulas = [
        Verdict(f"{row['program']}: {what}", "–", row[name], "≤", 0)
        for row in compiled
        if row["claimed"]
        for name, what in (
            ("unexplained", "bytes sent that formula and named extras miss"),
            ("to_others", "bytes to another expert"),
        )
        if row[name] is not None
    ]
    off = next(row for row in compiled if row["program"] == "dense, sharded")["if_data_parallel"]
    return (
        *formulas,
        Verdict("falsifier: data-parallel formula on the sharded program, bytes", "–", off, "≥", 1),
        Verdict("most that experts gain on a shared batch, no overlap", "–", shared, "≤", 1.05),
        Verdict(f"and on the dense model's batch, {CHIPS[-1]} chips", "–", most, "≥", 1.1),
        Verdict("most that they gain where traffic hides behind FLOPs", "–", hidden, "≤", 1.05),
    )


def run(config: Config, console: Console) -> bool:
    """Run the whole study: table, files into `config.out`; return whether every claim holds."""
    start = time.perf_counter()
    rows = list(rows_of(config))
    compiled = scaling_compiled.compared(jax.devices("cpu")[:8])
    verdicts = verdicts_of(rows, compiled)
    picture = scaling_report.draw(config.out / "scaling.png", rows, gains(rows))
    kept = [{k: _short(v) for k, v in r.items()} for r in rows if r["chips"] in SHOWN]
    return reporting.conclude(
        console,
        config,
        versions=reporting.installed(PACKAGES),
        seeds=[],
        rows=kept,
        summary={
            "parameters": {size: num_parameters(model) for size, model in MODELS.items()},
            "compiled": compiled,
            "crossovers": crossovers(rows),
            "gains": [{k: _short(v) for k, v in r.items()} for r in gains(rows)],
            "seconds": round(time.perf_counter() - start, 1),
        },
        verdicts=verdicts,
        records=[*rows, *compiled],
        pictures=[picture],
        tables=lambda: scaling_report.print_tables(console, rows, crossovers(rows), compiled),
    )


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def whole(config: Config, console: Console) -> bool:
    """Run the study on its data."""
    study.have_cpu_devices(8)
    return run(config, console)


main = study.main_of(_PROG, PRESETS, whole, check_config)


if __name__ == "__main__":
    sys.exit(main())
