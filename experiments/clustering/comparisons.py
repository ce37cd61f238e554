"""Methods of clustering that take turns on the same synthetic rows, each in its own process."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.clustering import data as clustering_data
from experiments.clustering.methods import objective
from experiments.lib.builds import Build

PEERS = {"faiss": "faiss", "auction": "torch", "k-means-constrained": "k_means_constrained"}
BEFORE = "ours before"  # an earlier build
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods that take turns on the same rows."""

    rows: int
    num_clusters: int
    methods: tuple[str, ...]
    num_starts: int = 1


def comparisons(
    *, sub_sample: int, medium: int, large: int, num_fine: int
) -> tuple[Comparison, ...]:
    """All sizes with their methods; a peer takes part if it is installed."""
    here = {name for name, module in PEERS.items() if importlib.util.find_spec(module)} | {"ours"}
    everyone = tuple(name for name in ("ours", "faiss", "auction") if name in here)
    lean = tuple(name for name in everyone if name != "auction")  # its N × K × D would not fit
    fine = tuple({"ours": "ours not balanced"}.get(name, name) for name in lean)
    exact = tuple(name for name in ("ours", "k-means-constrained") if name in here)
    return (
        Comparison(rows=2 * sub_sample, num_clusters=8, methods=exact, num_starts=4),
        Comparison(rows=medium, num_clusters=2, methods=everyone),
        Comparison(rows=medium, num_clusters=8, methods=everyone),
        Comparison(rows=medium, num_clusters=num_fine, methods=fine),
        Comparison(rows=large, num_clusters=8, methods=(*lean, "ours by tokens")),
        Comparison(rows=large, num_clusters=7, methods=("ours",)),
    )


def measured(
    comparison: Comparison,
    folder: Path,
    *,
    num_features: int,
    num_rounds: int,
    build: Build | None = None,
) -> dict[str, Any]:
    """Time, memory, objective, sizes and loads of each method of a comparison."""
    first, *others = comparison.methods
    methods = comparison.methods if build is None else (first, BEFORE, *others)
    folder.mkdir(parents=True, exist_ok=True)
    rows = clustering_data.synthetic_rows(
        comparison.rows, num_features, num_groups=40, noise=1.5, seed=0
    )
    tokens = clustering_data.synthetic_tokens(comparison.rows, seed=0)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "tokens.npy", tokens)
    taken: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for _ in range(num_rounds):
        for method in methods:
            taken[method].append(_turn(method, comparison, folder, build))
    found = {}
    for method, turns in taken.items():
        labels = np.load(folder / f"{method}.npy")
        own = labels[labels >= 0]
        loads = np.bincount(own, tokens[labels >= 0], comparison.num_clusters)
        found[method] = {
            "seconds": [turn["seconds"][-1] for turn in turns],
            "first_seconds": [turn["seconds"][0] for turn in turns],
            "added_gib": max(turn["added_bytes"] for turn in turns) / _GIB,
            "objective": objective(rows, labels),
            "sizes": np.bincount(own, minlength=comparison.num_clusters).tolist(),
            "unassigned": int((labels < 0).sum()),
            "load_over_mean": float(loads.max() - loads.mean()),
        }
    for path in folder.iterdir():
        path.unlink()
    return {
        "rows": comparison.rows,
        "num_clusters": comparison.num_clusters,
        "heaviest": float(tokens.max()),
        "methods": found,
    }


def _turn(method: str, comparison: Comparison, folder: Path, build: Build | None) -> dict[str, Any]:
    files = [str((folder / name).resolve()) for name in ("rows.npy", f"{method}.npy")]
    options = ["--num-clusters", str(comparison.num_clusters)]
    options += ["--num-starts", str(comparison.num_starts)]
    options += ["--num-runs", "2" if method.startswith("ours") else "1"]
    if method == "ours by tokens":
        options += ["--tokens", str(folder / "tokens.npy")]
    program, place = [sys.executable, "-m", "experiments.clustering.methods"], None
    run = method
    if method == BEFORE:
        assert build is not None
        program, place, run = build.command("clustering"), build.folder, comparison.methods[0]
    command = [*program, run, *files, *options]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        rule = f"`{method}` must run on {comparison.rows} rows"
        status = f"got status = {done.returncode}"
        raise ValueError(f"{rule}; {status}. It said: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
