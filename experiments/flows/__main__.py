"""Are flows trained apart, with a gate, as good as one flow, without autoregression? [D4, D11, D12]

    python -m experiments.flows --preset quick

The models are bidirectional transformers that read the time, on small pictures: a dense model, and
K experts that each see a part of the pictures, by clusters of pixels or at random, for their share
of the dense model's steps. There is a masked and a uniform source. A router ρ̂(z, t) mixes the
experts' velocities at every state. All variants are compared by their evidence bounds on the same
draws of held-out pictures, in nats per pixel; bounds of different sources cannot be compared.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any

from rich.console import Console

from experiments.flows import evaluation_set as flows_evaluation_set
from experiments.flows import figure as flows_figure
from experiments.flows import report as flows_report
from experiments.flows.config import PRESETS, Config, check_config
from experiments.flows.images import Images, Kind, digits
from experiments.flows.measure import Trainer, measure, sample_sheet
from experiments.lib import reporting, study
from experiments.lib.reporting import Verdict

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")
_PROG = "python -m experiments.flows"
SHARE = 0.01  # of tokens and FLOPs
SEQUENTIAL = 1e-2  # nats of an image of some hundred, in float32
MIXED = 1e-3  # of a draw's nats, in float32
SLACK = 1e-2  # nats of a draw of up to some hundreds, in float32
EVALUATION_SET = 1e-9  # of a distribution, and nats, in float64


def run(config: Config, images: Images, console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    check_config(config)
    shown = ("preset", "out", "sources", "partitions", "margin")
    of_a_cell = {name: value for name, value in asdict(config).items() if name not in shown}
    versions = reporting.installed(PACKAGES)
    depends_on = {"config": of_a_cell, "versions": versions, "data": images.digest}
    cells = study.Cells(
        folder=config.out / "cells", depends_on=depends_on, programs=("experiments.flows",)
    )
    start = time.perf_counter()
    trainer = Trainer(images=images, config=config)
    found, sheets, evaluation_sets = _measured(trainer, cells, console)
    comparisons = flows_report.compared(found, config.margin)
    verdicts = verdicts_of(found, evaluation_sets)
    parts = trainer.parts(config.partitions[0])
    picture = flows_figure.draw(config.out / "flows.png", images.train, parts, sheets)
    summary = {
        "data": depends_on["data"],
        "comparisons": comparisons,
        "variants": flows_report.variants(found),
        "b8": flows_report.bounds(found),
        "evaluation_set": evaluation_sets,
        "seconds": round(time.perf_counter() - start, 1),
    }
    return reporting.conclude(
        console,
        config,
        versions=versions,
        seeds=range(config.num_seeds),
        rows=list(flows_report.result_rows(found)),
        summary=summary,
        verdicts=verdicts,
        records=found,
        pictures=[picture],
        tables=lambda: flows_report.print_tables(console, summary),
    )


def _measured(
    trainer: Trainer, cells: study.Cells, console: Console
) -> tuple[list[dict[str, Any]], ...]:
    """All cells, a sheet of samples for each source, an evaluation set for each partition."""
    config = trainer.config
    shown, count = config.partitions[0], config.num_samples
    found, sheets, evaluation_sets = [], [], []
    for kind in config.partitions:
        evaluation_sets.append(
            cells.measured(f"evaluation_set-{kind}", partial(_evaluation_set, trainer, kind))
        )
    for name in config.sources:
        for kind, number in product(config.partitions, range(config.num_seeds)):
            console.print(f"{name}, {kind}, seed {number}", highlight=False)
            here = name, kind, number
            one = lambda here=here: measure(trainer, *here)  # noqa: E731
            found.append(cells.measured("-".join(map(str, here)), one))
        sheet = partial(sample_sheet, trainer, name, shown, count)
        sheets.append(cells.measured(f"samples-{name}-{shown}", sheet))
    return found, sheets, evaluation_sets


def _evaluation_set(trainer: Trainer, kind: Kind) -> dict[str, Any]:
    config = trainer.config
    options = {"smoothing": config.smoothing, "epsilon": config.epsilon}
    parts = trainer.parts(kind)
    return {
        "partition": parts.name,
        **flows_evaluation_set.measured(trainer.images, parts, **options),
    }


def verdicts_of(
    cells: Sequence[Mapping[str, Any]], evaluation_sets: Sequence[Mapping[str, Any]]
) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here.

    Whether the variants are equivalent is not a claim but a result of the study.
    """
    apart = {
        what: max(abs(cell[what] / cell["dense"][what] - 1) for cell in cells)
        for what in ("tokens", "flops")
    }
    gates = [
        gate for evaluation_set in evaluation_sets for gate in evaluation_set["gates"].values()
    ]
    inside = min(gate["integral"] - gate["kl"] for gate in gates)
    outside = min(gate["by_part"] - gate["integral"] for gate in gates)
    evolved = max(evaluation_set["residual"] for evaluation_set in evaluation_sets)
    slack = min(cell["b8"]["slack"] for cell in cells)
    verdicts = [
        Verdict(
            "tokens of a variant over the dense model's, less 1", "–", apart["tokens"], "≤", SHARE
        ),
        Verdict(
            "FLOPs of a variant over the dense model's, less 1", "–", apart["flops"], "≤", SHARE
        ),
        Verdict("81 states: ∫ − KL, smallest, nats", "B8", inside, "≥", -EVALUATION_SET),
        Verdict("81 states: Σ_k ∫ − ∫, smallest, nats", "B8", outside, "≥", -EVALUATION_SET),
        Verdict(
            "81 states: distribution of Σ r̂ û − mixture of paths",
            "D4",
            evolved,
            "≤",
            EVALUATION_SET,
        ),
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


def whole(config: Config, console: Console) -> bool:
    """Run the study on its data."""
    return run(config, digits(config.num_train, config.num_test), console)


main = study.main_of(_PROG, PRESETS, whole, check_config)


if __name__ == "__main__":
    sys.exit(main())
