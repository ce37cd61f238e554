"""The cost of fewer steps: exact distance on a toy, bounds on digits, by sampler.   [S1–S5, L5]

    python -m experiments.generation --preset quick

With exact posteriors, one position per step has no error. Several positions at once cost the total
correlation of the tokens that are drawn together (Q6), and more steps cost less. On held-out digits
the bounds of a trained network's samplers show the same, in nats per pixel.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments.flows.images import Images, digits
from experiments.generation import digits as generation_digits
from experiments.generation import report as generation_report
from experiments.generation import toy as generation_toy
from experiments.generation.config import PRESETS, Config, check_config
from experiments.lib import reporting, study
from experiments.lib.reporting import Verdict

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")
_PROG = "python -m experiments.generation"
EXACT = 1e-12  # TV, in float64
ORDER = 0.1  # of a slope
ERRORS = 4.0  # standard errors of a difference that is no difference


def run(config: Config, images: Images, console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    check_config(config)
    shown = ("preset", "out")
    of_a_cell = {name: value for name, value in asdict(config).items() if name not in shown}
    versions = reporting.installed(PACKAGES)
    depends_on = {"config": of_a_cell, "versions": versions, "data": images.digest}
    cells = study.Cells(
        folder=config.out / "cells", depends_on=depends_on, programs=("experiments.generation",)
    )
    start = time.perf_counter()
    console.print("exact distributions on the toy …", highlight=False)
    toy = cells.measured("toy", partial(_toy, config))["rows"]
    console.print("digits: one network, every sampler's bound …", highlight=False)
    bounds = cells.measured("digits", partial(_digits, config, images))["rows"]
    verdicts = verdicts_of(toy, bounds)
    picture = generation_report.draw(config.out / "generation.png", toy, bounds)
    rows = [{"on": "toy", **row} for row in toy] + [{"on": "digits", **row} for row in bounds]
    return reporting.conclude(
        console,
        config,
        versions=versions,
        seeds=[config.seed],
        rows=rows,
        summary={"data": images.digest, "seconds": round(time.perf_counter() - start, 1)},
        verdicts=verdicts,
        records=rows,
        pictures=[picture],
        tables=lambda: generation_report.print_tables(console, rows),
    )


def _toy(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        toys = generation_toy.toys(config.seed)
        rows = [
            r for name, toy in toys.items() for r in generation_toy.rows_of(toy, name, config.steps)
        ]
    return {"rows": rows}


def _digits(config: Config, images: Images) -> dict[str, Any]:
    return {"rows": list(generation_digits.rows_of(config, images))}


def verdicts_of(
    toy: Sequence[Mapping[str, Any]], bounds: Sequence[Mapping[str, Any]]
) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here."""
    single = [r["tv"] for r in toy if r["sampler"] == "blocks" and r["steps"] == generation_toy.N]
    together = [r["tv"] for r in toy if r["sampler"] == "blocks" and r["steps"] == 1]
    slopes = []
    for source in ("masked", "uniform"):
        rows = [r for r in toy if (r["source"], r["sampler"]) == (source, "Euler, cosine")]
        last, before = rows[-1], rows[-2]
        growth = np.log(last["steps"] / before["steps"])
        slopes.append(np.log(before["tv"] / last["tv"]) / growth)
    linear = {r["steps"]: r for r in bounds if r["sampler"] == "exact step, linear"}
    mean = next(r for r in bounds if r["sampler"] == "any order, mean")
    finest, coarsest = linear[max(linear)], linear[min(linear)]
    apart = (finest["nats_per_pixel"] - mean["nats_per_pixel"]) / np.hypot(
        finest["standard_error"], mean["standard_error"]
    )
    gain = coarsest["nats_per_pixel"] - finest["nats_per_pixel"]
    off = max(abs(slope - 1) for slope in slopes)
    return (
        Verdict("TV of one position a step, largest", "S2", max(single), "≤", EXACT),
        Verdict("TV of all positions at once, smallest", "Q6", min(together), "≥", 0.01),
        Verdict("order of Euler in 1/T, |slope − 1|, largest", "S3", off, "≤", ORDER),
        Verdict("digits: one step − finest grid, nats per pixel", "L5", gain, "≥", 0.0),
        Verdict("digits: finest grid − mean over orders, s.e.", "L3", float(apart), "≥", -ERRORS),
    )


def whole(config: Config, console: Console) -> bool:
    """Run the study on its data."""
    return run(config, digits(config.num_train, config.num_test), console)


main = study.main_of(_PROG, PRESETS, whole, check_config)


if __name__ == "__main__":
    sys.exit(main())
