"""Are flows trained apart, with a gate, as good as one flow, without autoregression? [D4, D11, D12]

    python -m experiments.flows --preset quick

Bidirectional transformers that read the time, over small pictures: a centre, and K experts that
see a part of the pictures each, by clusters of pixels or at random, for their share of the centre's
steps. From a masked and from a uniform source; a router ρ̂(z, t) mixes the experts' velocities at
every state. Every arm is judged by its evidence bound on the same draws of held-out pictures, in
nats per pixel; the two sources' bounds never compare.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from dfm_jax.checks import check_count, check_interval, require
from experiments import flows_figure, flows_report, flows_world, reporting, study
from experiments.flows_cell import Trainer, measure, sample_sheet
from experiments.flows_images import Images, Kind, digits
from experiments.flows_sources import Name
from experiments.reporting import Verdict

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")
_PROG = "python -m experiments.flows"
SHARE = 0.01  # of tokens and FLOPs
SEQUENTIAL = 1e-2  # nats of an image of some hundred, in float32
MIXED = 1e-3  # of a draw's nats, in float32
SLACK = 1e-2  # nats of a draw of up to some hundreds, in float32
WORLD = 1e-9  # of a law, and nats, in float64


@dataclass(frozen=True, kw_only=True)
class Config:
    """Flows trained apart on small pictures, and one flow trained on all of them."""

    preset: Literal["quick", "standard"] = "quick"
    """Where the other values start from: a minute, or ten."""
    out: Path = Path("runs/flows")
    """Folder for result.json, metrics.jsonl, pictures, checkpoints and unfinished cells."""
    sources: tuple[Name, ...] = ("masked", "uniform")
    """What flows start from: all masks, or uniform tokens."""
    partitions: tuple[Kind, ...] = ("cluster", "random")
    """By balanced clusters of pixels, or at random."""
    num_experts: int = 5
    """K."""
    num_train: int = 1347
    """Images that are trained on,"""
    num_test: int = 64
    """and that are judged."""
    width: int = 32
    """Of every flow,"""
    num_layers: int = 1
    """its layers"""
    num_heads: int = 2
    """and heads."""
    batch_size: int = 8
    """Images of a step."""
    training_steps: int = 100
    """S, of the centre; the experts share them."""
    rate: float = 3e-3
    """Peak learning rate, of every member."""
    warmup: float = 0.05
    """Share of a member's steps; at least 10."""
    router_width: int = 16
    """Of the router,"""
    router_share: float = 0.5
    """and its steps, as a share of the centre's."""
    num_steps: int = 64
    """T, of the masked source's grid and of Euler's."""
    epsilon: float = 0.02
    """A uniform source's process is left at 1 − ε."""
    times_per_image: int = 4
    """Strata of time, a draw of each for each held-out image."""
    sequential_images: int = 1
    """Of which L5 is taken position by position."""
    smoothing: float = 0.1
    """Pseudo-counts a state, of the experts of the world of 81 states."""
    num_samples: int = 6
    """Images drawn by each sampler."""
    num_seeds: int = 1
    """Each draws starts, batches and states anew; images and parts stay."""
    num_draws: int = 2_000
    """Of the bootstrap over images."""
    margin: float = 0.02
    """Nats per pixel; a difference proven smaller is called equivalent."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        num_test=450,
        width=48,
        num_layers=2,
        training_steps=1500,
        times_per_image=8,
        sequential_images=4,
        num_samples=10,
        num_seeds=3,
        num_draws=10_000,
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: naming the first option that is, its rule and its value.
    """
    for name in ("sources", "partitions"):
        values = getattr(config, name)
        unique = len(values) > 0 and len(set(values)) == len(values)
        require(unique, f"`{name}` must hold one or more, each once", values)
    check_count("num_experts", config.num_experts, at_least=2)
    for name in (
        *("width", "num_layers", "num_heads", "batch_size", "training_steps", "router_width"),
        *("num_steps", "times_per_image", "sequential_images", "num_samples", "num_seeds"),
        "num_draws",
    ):
        check_count(name, getattr(config, name))
    least = config.num_experts
    rule = f"`training_steps` must be at least `num_experts` = {least}"
    require(config.training_steps >= least, rule, config.training_steps)
    for name in ("rate", "router_share", "smoothing", "margin"):
        check_interval(name, getattr(config, name), 0.0, np.inf, ends="()")
    check_interval("warmup", config.warmup, 0.0, 1.0)
    check_interval("epsilon", config.epsilon, 0.0, 1.0, ends="()")
    rule = f"`times_per_image` must divide `num_steps` = {config.num_steps}"
    require(config.num_steps % config.times_per_image == 0, rule, config.times_per_image)


def run(config: Config, images: Images, console: Console) -> bool:
    """The whole study: tables, files into the folder `config.out`, whether every claim holds."""
    check_config(config)
    shown = ("preset", "out", "sources", "partitions", "margin")
    of_a_cell = {name: value for name, value in asdict(config).items() if name not in shown}
    versions = reporting.versions(PACKAGES)
    depends_on = {"config": of_a_cell, "versions": versions, "data": images.digest}
    cells = study.Cells(folder=config.out / "cells", depends_on=depends_on)
    start = time.perf_counter()
    trainer = Trainer(images=images, config=config)
    found, sheets, worlds = _measured(trainer, cells, console)
    comparisons = flows_report.compared(found, config.margin)
    verdicts = verdicts_of(found, worlds)
    parts = trainer.parts(config.partitions[0])
    picture = flows_figure.draw(config.out / "flows.png", images.train, parts, sheets)
    metrics = reporting.write_metrics(config.out, found)
    summary = {
        "data": depends_on["data"],
        "comparisons": comparisons,
        "arms": flows_report.arms(found),
        "b8": flows_report.bounds(found),
        "world": worlds,
        "seconds": round(time.perf_counter() - start, 1),
    }
    result = reporting.write_result(
        config.out,
        config=asdict(config) | {"out": str(config.out)},
        versions=versions,
        seeds=range(config.num_seeds),
        rows=flows_report.result_rows(found),
        summary=summary,
        verdicts=verdicts,
    )
    flows_report.print_tables(console, summary)
    reporting.print_verdicts(console, verdicts)
    for what, path in (("picture", picture), ("numbers", result), ("each seed", metrics)):
        console.print(f"{what}: {path}", highlight=False, soft_wrap=True)
    return all(verdict.passed for verdict in verdicts)


def _measured(
    trainer: Trainer, cells: study.Cells, console: Console
) -> tuple[list[dict[str, Any]], ...]:
    """Cells of sources, partitions and seeds; a sheet of samples a source; a world a partition."""
    config = trainer.config
    shown, count = config.partitions[0], config.num_samples
    found, sheets, worlds = [], [], []
    for kind in config.partitions:
        worlds.append(cells.measured(f"world-{kind}", partial(_world, trainer, kind)))
    for name in config.sources:
        for kind, number in product(config.partitions, range(config.num_seeds)):
            console.print(f"{name}, {kind}, seed {number}", highlight=False)
            here = name, kind, number
            one = lambda here=here: measure(trainer, *here)  # noqa: E731
            found.append(cells.measured("-".join(map(str, here)), one))
        sheet = partial(sample_sheet, trainer, name, shown, count)
        sheets.append(cells.measured(f"samples-{name}-{shown}", sheet))
    return found, sheets, worlds


def _world(trainer: Trainer, kind: Kind) -> dict[str, Any]:
    config = trainer.config
    options = {"smoothing": config.smoothing, "epsilon": config.epsilon}
    parts = trainer.parts(kind)
    return {"partition": parts.name, **flows_world.measured(trainer.images, parts, **options)}


def verdicts_of(
    cells: Sequence[Mapping[str, Any]], worlds: Sequence[Mapping[str, Any]]
) -> tuple[Verdict, ...]:
    """The claims, their bounds stated here and nowhere else.

    Whether the arms are equivalent is no claim: it is what the study finds.
    """
    apart = {
        what: max(abs(cell[what] / cell["centre"][what] - 1) for cell in cells)
        for what in ("tokens", "flops")
    }
    gates = [gate for world in worlds for gate in world["gates"].values()]
    inside = min(gate["integral"] - gate["kl"] for gate in gates)
    outside = min(gate["by_part"] - gate["integral"] for gate in gates)
    evolved = max(world["residual"] for world in worlds)
    slack = min(cell["b8"]["slack"] for cell in cells)
    verdicts = [
        Verdict("tokens of an arm over the centre's, less 1", "–", apart["tokens"], "≤", SHARE),
        Verdict("FLOPs of an arm over the centre's, less 1", "–", apart["flops"], "≤", SHARE),
        Verdict("81 states: ∫ − KL, smallest, nats", "B8", inside, "≥", -WORLD),
        Verdict("81 states: Σ_k ∫ − ∫, smallest, nats", "B8", outside, "≥", -WORLD),
        Verdict("81 states: law of Σ r̂ û − mixture of paths", "D4", evolved, "≤", WORLD),
        Verdict("digits: smallest slack of a draw, nats", "B8", slack, "≥", -SLACK),
    ]
    of_masked = [cell["sequential"] for cell in cells if cell["sequential"] is not None]
    if of_masked:
        claim = "bound by single positions − NLL, nats"
        verdicts.append(Verdict(claim, "L5", max(of_masked), "≤", SEQUENTIAL))
    of_uniform = [cell["residual"] for cell in cells if cell["source"] == "uniform"]
    if of_uniform:
        claim = "velocities mixed − posteriors mixed, of a draw"
        verdicts.append(Verdict(claim, "D4", max(of_uniform), "≤", MIXED))
    return tuple(verdicts)


def main(args: Sequence[str] | None = None) -> int:
    """0 if every claim holds, 1 if one fails, 2 for input that cannot be used, 130 if stopped."""
    config = study.parsed(PRESETS, _PROG, args)

    def whole() -> bool:
        check_config(config)
        images = digits(config.num_train, config.num_test)
        config.out.mkdir(parents=True, exist_ok=True)
        return run(config, images, Console())

    return study.exit_status(_PROG, whole)


if __name__ == "__main__":
    sys.exit(main())
