"""The output of `clustering`: claims with their bounds, tables, a picture."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dfm_jax.clustering import capacities
from experiments.lib.reporting import Verdict

Row = Mapping[str, Any]
# Stated before the runs: the agreement with the truth that is asked of each set of features.
NMI = {"text domains": 0.80, "BBC topics": 0.85}
TIMES_PIXELS = 3.0
WITHIN = 0.99  # of the exact or the peer's objective
MEMORY = 6.0  # GiB beside the features


def verdicts_of(real: Sequence[Row], exact: Row, sizes: Sequence[Row]) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only above."""
    by_name = {row["data"]: row["nmi_none"] for row in real}
    balanced = [row for row in sizes if "ours" in row["methods"]]
    found = [
        Verdict(f"NMI with the truth: {name}", "", by_name[name], "≥", bound)
        for name, bound in NMI.items()
    ]
    if "scenes, pixels" in by_name:
        times = by_name["scenes, EfficientNet-Lite0"] / by_name["scenes, pixels"]
        found.append(Verdict("NMI of scenes, times that of pixels", "", times, "≥", TIMES_PIXELS))
    found += [
        Verdict("assignment / the exact one", "", exact["to_exact"], "≥", WITHIN),
        Verdict("NMI under another order of rows", "", exact["other_order_nmi"], "≥", 0.99),
        Verdict(
            "labels that 8 devices change beyond rounding",
            "",
            float(exact["differ_beyond_rounding"]),
            "≤",
            0.0,
        ),
        Verdict("rows off ⌊R/K⌋ or ⌈R/K⌉", "", _worst_size(balanced), "≤", 0.0),
        Verdict("memory beside the features, GiB", "", _most_memory(balanced), "≤", MEMORY),
        Verdict("(max load − mean)/heaviest row", "", _worst_load(balanced), "≤", 1.0),
    ]
    for row in balanced:
        peer = row["methods"].get("k-means-constrained")
        if peer is not None:
            ratio = row["methods"]["ours"]["objective"] / peer["objective"]
            found.append(Verdict("objective / k-means-constrained's", "", ratio, "≥", WITHIN))
    return tuple(found)


def _worst_size(sizes: Sequence[Row]) -> float:
    """The largest difference from the capacities, of ours by rows."""
    off = [
        np.abs(
            np.sort(row["methods"]["ours"]["sizes"])[::-1]
            - np.array(capacities(row["rows"], row["num_clusters"]))
        ).max()
        for row in sizes
    ]
    return float(max(off))


def _most_memory(sizes: Sequence[Row]) -> float:
    return max(row["methods"]["ours"]["added_gib"] for row in sizes)


def _worst_load(sizes: Sequence[Row]) -> float:
    rows = [row for row in sizes if "ours by tokens" in row["methods"]]
    return max(r["methods"]["ours by tokens"]["load_over_mean"] / r["heaviest"] for r in rows)


def records(real: Sequence[Row], sizes: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """One line per set of features, and per method of a comparison."""
    yield from map(dict, real)
    for row in sizes:
        for method, found in row["methods"].items():
            yield {
                "rows": row["rows"],
                "num_clusters": row["num_clusters"],
                "method": method,
            } | found


def print_tables(
    console: Console, real: Sequence[Row], exact: Row, sizes: Sequence[Row], missing: Sequence[str]
) -> None:
    """Print the clusters compared with the truth, and the methods side by side."""
    table = Table(title="Clusters against the truth", box=SIMPLE_HEAD, padding=0)
    for name in ("features", "rows", "K", "NMI", "balanced", "starts agree", "cost of balance"):
        table.add_column(name, no_wrap=True)
    for row in real:
        table.add_row(
            *(row["data"], f"{row['rows']:,}", str(row["num_clusters"])),
            *(f"{row[name]:.3f}" for name in ("nmi_none", "nmi_rows", "agreement_none")),
            f"{row['cost_of_balance']:.4f} of {row['mean_cosine_none']:.4f}",
        )
    console.print(table)
    console.print(
        f"{exact['rows']:,} rows: assignment {exact['to_exact']:.6f} of the exact one; another "
        f"order of rows, NMI {exact['other_order_nmi']:.3f}; {exact['differ_on_8_devices']} labels "
        f"differ on 8 devices, {exact['differ_beyond_rounding']} beyond rounding.",
        highlight=False,
    )
    table = Table(title="Side by side, on unit rows", box=SIMPLE_HEAD, padding=0)
    for name in ("rows", "K", "method", "seconds", "ours is", "GiB", "objective", "sizes"):
        table.add_column(name, no_wrap=True)
    for row in sizes:
        ours = float(np.median(next(iter(row["methods"].values()))["seconds"]))
        for method, found in row["methods"].items():
            seconds = float(np.median(found["seconds"]))
            lost = f", {found['unassigned']:,} lost" if found["unassigned"] else ""
            table.add_row(
                *(f"{row['rows']:,}", str(row["num_clusters"]), method, f"{seconds:.2f}"),
                f"{seconds / ours:.1f}×",
                f"{found['added_gib']:.2f}",
                f"{found['objective']:.5f}",
                f"{min(found['sizes']):,}–{max(found['sizes']):,}{lost}",
                end_section=method == list(row["methods"])[-1],
            )
    console.print(table)
    for name in missing:
        console.print(f"not installed, so not measured: {name} (`make install-peers`)")


def draw(path: Path, real: Sequence[Row], sizes: Sequence[Row]) -> Path:
    """Left, NMI with the truth; right, seconds of each method."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    place = np.arange(len(real))
    for shift, (name, label) in enumerate((("nmi_none", "not balanced"), ("nmi_rows", "balanced"))):
        left.barh(place + 0.4 * shift - 0.2, [row[name] for row in real], 0.38, label=label)
    left.set_yticks(place, [f"{row['data']}, K = {row['num_clusters']}" for row in real])
    left.set(xlim=(0, 1), xlabel="NMI with the true classes", title="Clusters against the truth")
    left.invert_yaxis()
    left.legend(loc="lower right")
    bars = [
        (f"{row['rows']:,}, K = {row['num_clusters']}: {method}", float(np.median(f["seconds"])))
        for row in sizes
        for method, f in row["methods"].items()
    ]
    ours = ["ours" in name for name, _ in bars]
    colors = ["#0072B2" if own else "#999999" for own in ours]
    right.barh([name for name, _ in bars], [seconds for _, seconds in bars], color=colors)
    right.set(xscale="log", xlabel="seconds, median", title="Side by side, 768 features")
    right.invert_yaxis()
    figure.savefig(path, dpi=100)
    return path
