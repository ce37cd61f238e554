"""The output of `equality`: two tables, the rows of its result file, one figure."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from dfm_jax.data import Corpus
from experiments.equality.descent import Distances
from experiments.equality.exact import Row

VARIANTS = {"dense": "dense", "mixture": "gated experts"}
THRESHOLDS = (1e-3, 1e-6, 1e-9)  # nats per byte
_SHOWN = 8  # rows of the descent on screen
_SMALLEST = 1e-18  # an exact zero has no place on a log axis,
_ROUNDING = 1e-16  # nor has an excess below the rounding of its terms, which may be negative

# Okabe and Ito's palette: told apart by every kind of color vision.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def described(corpus: Corpus) -> dict[str, Any]:
    """The documents that were read, and those that were not."""
    return {
        "domain": corpus.domain,
        "documents": len(corpus.documents),
        "files": len({document.work for document in corpus.documents}),
        "bytes": sum(len(document.text.encode()) for document in corpus.documents),
        "skipped": list(corpus.skipped),
    }


def records(steps: np.ndarray, curve: Distances, *, seeds: Iterable[int]) -> Iterator[dict]:
    """One line per step looked at and start."""
    seeds = list(seeds)
    for row, step in enumerate(steps):
        for column, seed in enumerate(seeds):
            values = {name: float(x[row, column]) for name, x in curve._asdict().items()}
            yield {"step": int(step), "seed": seed, **values}


def summarized(steps: np.ndarray, curve: Distances) -> Iterator[dict]:
    """One row per step looked at: mean, smallest and largest over the starts."""
    for row, step in enumerate(steps):
        of_starts = {
            name: {
                "mean": float(x[row].mean()),
                "min": float(x[row].min()),
                "max": float(x[row].max()),
            }
            for name, x in curve._asdict().items()
        }
        yield {"study": "learned", "step": int(step), **of_starts}


def steps_to(steps: np.ndarray, curve: Distances) -> dict[str, dict[str, int | None]]:
    """The first step looked at from which each variant's worst start stays below each threshold."""
    found = {}
    for variant in VARIANTS:
        worst = np.maximum.accumulate(getattr(curve, variant).max(1)[::-1])[::-1]
        below = {f"{bound:.0e}": steps[worst <= bound] for bound in THRESHOLDS}
        found[variant] = {bound: int(at[0]) if at.size else None for bound, at in below.items()}
    return found


def print_tables(
    console: Console,
    corpora: Sequence[Corpus],
    rows: Sequence[Row],
    steps: np.ndarray,
    curve: Distances,
) -> None:
    """The counted table, then the learned one."""
    for corpus in map(described, corpora):
        console.print(
            f"{corpus['domain']}: {corpus['documents']:,} documents in {corpus['files']} files, "
            f"{corpus['bytes']:,} bytes; skipped: {', '.join(corpus['skipped']) or 'none'}",
            highlight=False,
        )
    gates = ("posterior", "static", "wrong")
    table = Table(
        *("parts", "n", "K", "states", *gates, "mean TV, static"),
        title="Counted: largest |Σ r_k u_k − u| over every state and byte, by gate",
        caption="posterior: r_k(z); static: w_k; wrong: each expert with its neighbor's r_k(z). "
        "The TV of the next-byte distribution is averaged over the text.",
    )
    for row in rows:
        table.add_row(
            *(row.partition, str(row.n), str(row.num_experts), f"{row.num_states:,}"),
            *(f"{row.residual[gate]:.1e}" for gate in gates),
            f"{row.tv_mean['static']:.1e}",
        )
    console.print(table)
    table = Table(
        *("parts", "n", "dense", *(f"+ {gate}" for gate in gates), "oracle"),
        title="Counted: nats per byte on the text counted, and what each gate adds",
        caption="The oracle sends each byte to its own part: it sees what no gate may.",
    )
    for row in rows:
        table.add_row(
            *(row.partition, str(row.n), f"{row.dense_nll:.4f}"),
            *(f"{row.extra_nll[gate]:.1e}" for gate in gates),
            f"{row.oracle_nll:.4f}",
        )
    console.print(table)
    table = Table(
        *("step", "dense", "gated experts", "= experts", "+ router", "− slack", "static gate"),
        title="Learned: nats per byte above the counted optimum, mean over starts",
        caption="The slack of D14 is what the mixture gains over its experts' and router's excess.",
    )
    for row in np.unique(np.linspace(0, len(steps) - 1, _SHOWN).round().astype(int)):
        at = Distances(*(x[row].mean() for x in curve))
        shown = (at.dense, at.mixture, at.experts, at.router, at.d14_slack, at.static_mixture)
        table.add_row(f"{steps[row]:,}", *(f"{value:.1e}" for value in shown))
    console.print(table)
    for variant, when in steps_to(steps, curve).items():
        text = ", ".join(f"{bound}: {step or 'not reached'}" for bound, step in when.items())
        console.print(f"{VARIANTS[variant]}, steps to stay below: {text}", highlight=False)


def draw(
    path: Path, rows: Sequence[Row], steps: np.ndarray, curve: Distances, tolerance: float
) -> Path:
    """Left the residual of each gate, right both variants on their way to the counted optimum."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_residuals(left, rows, tolerance)
    _draw_descent(right, steps, curve)
    figure.savefig(path, dpi=110)
    return path


def _draw_residuals(axes: Any, rows: Sequence[Row], tolerance: float) -> None:
    names = list(dict.fromkeys(row.partition for row in rows))
    rows = sorted(rows, key=lambda row: (names.index(row.partition), row.n))
    place = np.arange(len(rows))
    styles = (
        ("posterior", "posterior gate r_k(z)", "o", _BLUE),
        ("static", "static gate w_k", "s", _ORANGE),
        ("wrong", "neighbor's weight", "^", _GREY),
    )
    for gate, label, marker, color in styles:
        values = [max(row.residual[gate], _SMALLEST) for row in rows]
        axes.semilogy(place, values, marker, color=color, label=label)
    axes.axhline(tolerance, color="black", linewidth=0.8, linestyle=":")
    axes.text(place[-1] + 0.4, tolerance * 1.6, "tolerance", ha="right", fontsize=8)
    axes.set_xticks(place, [f"n={row.n}" for row in rows], fontsize=8)
    for name in names:
        own = [i for i, row in enumerate(rows) if row.partition == name]
        label = f"{name}, K={rows[own[0]].num_experts}"
        below = axes.get_xaxis_transform()
        axes.text(np.mean(own), -0.12, label, ha="center", fontsize=9, transform=below)
    axes.set_ylim(1e-18, 1e3)
    axes.set_ylabel("largest |Σ r_k u_k − u| over states and bytes")
    axes.set_title("Counted: without a state (n = 1) static is exact")
    axes.legend(loc="upper right", ncols=3, fontsize=8, columnspacing=1)


def _draw_descent(axes: Any, steps: np.ndarray, curve: Distances) -> None:
    after = steps > 0  # a log axis has no step 0
    for name, label, color, style in (
        ("dense", "dense", _BLUE, "-"),
        ("mixture", "gated experts", _ORANGE, "-"),
        ("static_mixture", "the same experts, static gate", _GREY, "--"),
    ):
        values = np.maximum(getattr(curve, name)[after], _ROUNDING)
        axes.loglog(steps[after], values.mean(1), style, color=color, label=label)
        axes.fill_between(steps[after], values.min(1), values.max(1), color=color, alpha=0.25)
    bound = np.maximum((curve.experts + curve.router)[after].mean(1), _ROUNDING)
    axes.loglog(steps[after], bound, ":", color=_GREEN, label="D14: experts' + router's excess")
    axes.set_xlabel("full-batch Adam steps, the same for both")
    axes.set_ylabel("nats per byte above the counted optimum")
    axes.set_title(f"Learned: mean and range of {curve.dense.shape[1]} starts")
    axes.legend(fontsize=8)
