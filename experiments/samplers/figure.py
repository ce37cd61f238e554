"""The picture of `samplers`: what each draws wrongly, and what passes buy at length."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.samplers.measure import summary

COLORS = {"S8": "#0072B2", "S10": "#009E73", "S9": "#D55E00"}  # safe for colour-blind readers
MEANING = {
    "S8": "blind to the draws, one a step: exact",
    "S10": "blind, several a step: costs total correlation",
    "S9": "reads the draws: another distribution",
}
LEAST = 1e-17  # what is 0 to rounding is drawn here
ZERO = 1e-4  # nats, likewise
FAMILY_COLORS = ("#0072B2", "#56B4E9", "#CC79A7", "#009E73", "#B8860B", "#D55E00")


def draw(path: Path, found: Mapping[str, Any], length: int) -> Path:
    """Left, the total variation of every sampler; right, divergence against passes."""
    figure = Figure(figsize=(12.5, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
    _distances(left, summary(found["enumerated"]))
    _passes(right, [row for row in found["chains"] if row["source"] == "hidden chain"], length)
    figure.savefig(path, dpi=100)
    return path


def _distances(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for place, row in enumerate(reversed(rows)):
        value = max(row["tv"], LEAST)
        axes.plot([LEAST, value], [place, place], color=COLORS[row["statement"]], linewidth=2)
        axes.plot(value, place, "o", color=COLORS[row["statement"]])
        axes.annotate(
            f"{row['passes']:.1f} passes",
            (value, place),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="0.35",
        )
    axes.set_yticks(range(len(rows)), [row["sampler"] for row in reversed(rows)])
    axes.set_xscale("log")
    axes.set_xlim(LEAST, 1e4)
    axes.set_xlabel("total variation to the data, mean over the distributions (at most 1)")
    axes.set_title("An exact denoiser, 2 tokens, 5 positions: is it the data?")
    for place, (label, words) in enumerate(MEANING.items()):
        axes.text(
            0.02,
            0.97 - 0.045 * place,
            words,
            color=COLORS[label],
            transform=axes.transAxes,
            fontsize=9,
        )
    axes.set_ylim(-0.7, len(rows) + 2.2)


def _passes(axes: Axes, rows: list[dict[str, Any]], length: int) -> None:
    families = list(dict.fromkeys(row["family"] for row in rows))
    for place, family in enumerate(families):
        own = sorted((row for row in rows if row["family"] == family), key=lambda r: r["passes"])
        passes = np.array([row["passes"] for row in own])
        kl = np.maximum([row["kl"] for row in own], ZERO)
        color = FAMILY_COLORS[place % len(FAMILY_COLORS)]
        axes.plot(passes, kl, marker="o", color=color)
        above = family == "bisection"  # whose point lies beside another line
        axes.annotate(
            family.replace(" positions", "").replace("steps by", "by"),
            (passes[-1], kl[-1]),
            xytext=(0, 8) if above else (8, 0),
            textcoords="offset points",
            ha="right" if above else "left",
            va="bottom" if above else "center",
            color=color,
            fontsize=9,
        )
    axes.axhline(ZERO, color="0.7", linewidth=0.8)
    axes.text(1, ZERO, " 0, or too small to be seen", va="bottom", color="0.4", fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1, 40 * length)
    axes.set_xlabel(f"passes of the denoiser, of {length:,} positions")
    axes.set_ylabel("KL(q ‖ samples), nats of a sequence")
    axes.set_title("A hidden Markov chain: what passes buy")
