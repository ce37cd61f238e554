"""Do the samplers of the field draw from the model? Exact denoisers, exact distributions.  [S8–S12]

    python -m experiments.samplers --preset quick

With an exact denoiser whatever differs from the data is the sampler's. On short distributions every
draw is enumerated, so the distribution of whole runs is exact. On Markov sources of length 1,024
the posteriors come from message passing, and the divergence of a choice that is blind to its draws
is the mean of log q(x) − log q̂(x). The samplers of diffusers and flow_matching run with their own
code, in an environment that has them.
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
from rich.console import Console

from dfm_jax.sampling import choices
from experiments.lib import reporting, study
from experiments.lib.reporting import Verdict
from experiments.samplers import chains, growth, measure, peers, sources
from experiments.samplers import figure as samplers_figure
from experiments.samplers import report as samplers_report
from experiments.samplers.config import PRESETS, Config, check_config
from experiments.samplers.sources import Long

_PROG = "python -m experiments.samplers"
EXACT = 1e-12  # total variation, float64
BISECTION = 1e-9  # nats of a sequence, by sums over its positions in float64
MASKS = 1e-9  # nats
BIASED = 0.1  # total variation that the most confident draw has at least, in the mean
HALF = 0.5  # of the passes of random positions
PRODUCTS = 2.0  # times the products of message passing alone
TIMED = (1024, 64)  # the length and the number of states at which it is claimed
SHORT = 4  # positions of sources full of ties, whose orders are all enumerated


def run(config: Config, console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    start = time.perf_counter()
    shown = ("preset", "out", "peers_python")
    of_a_cell = {name: value for name, value in asdict(config).items() if name not in shown}
    versions = reporting.installed(("jax", "jaxlib", "numpy", "scipy"))
    cells = study.Cells(
        folder=config.out / "cells",
        depends_on={"config": of_a_cell, "versions": versions},
        programs=("experiments.samplers", "experiments.samplers.peer_side"),
    )
    found: dict[str, Any] = {}
    console.print("enumerated distributions", highlight=False)
    found |= cells.measured("short", partial(_short, config))
    found |= {"chains": [], "lower": [], "random": []}
    for here in sources.long_sources(config):
        console.print(f"{here.name}, {config.length} positions", highlight=False)
        cell = cells.measured(here.name.replace(" ", "_"), partial(_long, here, config, console))
        found["chains"] += cell["chains"]
        found["lower"] += cell["lower"]
        found["random"].append({"source": here.name, **cell["random"]})
    found["growth"] = cells.measured("growth", lambda: {"rows": growth.timed(config)})["rows"]
    if config.peers_python:
        console.print("diffusers and flow_matching", highlight=False)
        versions |= reporting.installed_in(config.peers_python, peers.PACKAGES)
        cell = cells.measured("peers", lambda: {"rows": peers.drawn(config)})
        found["peers"] = cell["rows"]
    else:
        console.print(
            "diffusers and flow_matching are left out: no `--peers-python` (make install-peers)",
            highlight=False,
        )
        found["peers"] = []
    passes = samplers_report.passes(found["chains"], found["random"], config.target)
    verdicts = verdicts_of(found, passes, config)
    picture = samplers_figure.draw(config.out / "samplers.png", found, config.length)
    summary = {name: rows for name, rows in found.items() if name != "enumerated"} | {
        "short": measure.summary(found["enumerated"]),
        "passes": passes,
        "seconds": round(time.perf_counter() - start, 1),
    }
    return reporting.conclude(
        console,
        config,
        versions=versions,
        seeds=[config.seed],
        rows=samplers_report.result_rows(found),
        summary=summary,
        verdicts=verdicts,
        records=found["enumerated"],
        pictures=[picture],
        shown_as={"peers_python": "a Python with the peers" if config.peers_python else ""},
        tables=lambda: samplers_report.print_tables(console, summary),
    )


def _short(config: Config) -> dict[str, Any]:
    """All that is enumerated: every sampler on every distribution."""
    rows = sources.dirichlet(config.num_distributions, config.concentration, config.seed)
    alike = [sources.coins(0.9, SHORT), sources.twins(SHORT)]
    return {
        "enumerated": [row for source in rows for row in measure.enumerated(source)],
        "symmetric": [row for source in alike for row in measure.enumerated(source)],
        "experts": [
            row | {"pair": pair}
            for pair, (one, two) in enumerate(zip(rows[::2], rows[1::2], strict=False))
            for row in measure.experts(one, two, 0.4)
        ],
        "drift": measure.drift(rows[0]),
        "slack": [measure.slack(source) for source in rows[:3]],
    }


def _long(here: Long, config: Config, console: Console) -> dict[str, Any]:
    """The choices on a long source, and a lower bound for one that reads its draws."""
    with jax.enable_x64(True):
        x, log_q = chains.sequences(here, config)
        h = chains.information(here, x, config)
        rows = []
        for family, what, number, choice in chains.candidates(here, config, h):
            row = chains.cost(here, choice, x, log_q, config)
            rows.append(
                {"source": here.name, "family": family, "what": what, "number": number, **row}
            )
            console.print(
                f"  {family} {what} {number:g}: {row['kl']:.4g} nats in {row['passes']:.0f} passes",
                highlight=False,
            )
        lower = []
        if here.name == "hidden chain":
            size = math.ceil(config.length / max(config.strides))
            for count in dict.fromkeys((1, size)):
                choice = choices.most_confident_draw(count)
                bound = chains.lower_bound(here, choice, config)
                lower.append({"source": here.name, "count": count, **bound})
    return {"chains": rows, "lower": lower, "random": chains.random_passes(h, config.target)}


def verdicts_of(
    found: dict[str, Any], passes: Sequence[dict[str, Any]], config: Config
) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here."""
    short = measure.summary(found["enumerated"])
    of = lambda label: [row for row in short if row["statement"] == label]  # noqa: E731
    gates = {
        gate: [row["tv"] for row in found["experts"] if row["gate"] == gate]
        for gate in ("posterior of the parts", "static")
    }
    drift = {row["selection"]: row["tv"] for row in found["drift"]}  # the last sweep
    blind = max(drift["always"], drift["the less sure the others are"])
    reads = min(drift["the less the token is believed"], drift["the least believed token first"])
    markov = next(
        row
        for row in found["chains"]
        if row["source"] == "Markov chain" and row["family"] == "bisection"
    )
    verdicts = [
        Verdict(
            "one a step, blind: largest TV", "S8", max(r["tv_max"] for r in of("S8")), "≤", EXACT
        ),
        Verdict("the most confident draw: mean TV", "S9", of("S9")[0]["tv"], "≥", BIASED),
        Verdict(
            "gate of the parts: largest TV",
            "D5, S8",
            max(gates["posterior of the parts"]),
            "≤",
            EXACT,
        ),
        Verdict("static gate: least TV", "B10", min(gates["static"]), "≥", 1e-3),
        Verdict("redraws blind to the token: drift", "S11", blind, "≤", EXACT),
        Verdict("redraws that read the token: drift", "S11", reads, "≥", 1e-3),
        Verdict(
            "masks: bound − entropy, nats",
            "L2",
            max(abs(r["masks"]) for r in found["slack"]),
            "≤",
            MASKS,
        ),
        Verdict(
            "uniform source: bound − entropy, nats",
            "L2",
            min(r["uniform"] for r in found["slack"]),
            "≥",
            1e-3,
        ),
        Verdict(
            "bisection of a Markov chain: |KL|, nats", "S12", abs(markov["kl"]), "≤", BISECTION
        ),
        Verdict(
            "its passes",
            "S12",
            markov["passes"],
            "≤",
            math.ceil(math.log2(config.length + 1)),
        ),
    ]
    hidden = next(row for row in passes if row["source"] == "hidden chain")
    if hidden["best"] is not None:
        claim = f"hidden chain, KL ≤ {config.target:g}: best blind choice / random, passes"
        verdicts.append(Verdict(claim, "S10", hidden["best"] / hidden["even"], "≤", HALF))
    for row in found["growth"]:
        if (row["length"], row["hidden"]) == TIMED:
            claim = "message passing over its products alone, seconds"
            verdicts.append(Verdict(claim, "P7", row["ratio"], "≤", PRODUCTS))
    return tuple(verdicts)


main = study.main_of(_PROG, PRESETS, run, check_config)


if __name__ == "__main__":
    sys.exit(main())
