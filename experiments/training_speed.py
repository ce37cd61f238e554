"""One training step here and in PyTorch: the same network, batch, loss and update, side by side.

    python -m experiments.training_speed --torch-python PYTHON --preset standard

PYTHON is that of an environment with PyTorch. Every side is a process of its own that waits for
orders; blocks of steps go round the sides, A B C A B C …, so that all share the same minutes, and a
load that comes and goes falls on all. The ratio is that of the medians over blocks, its interval a
bootstrap over rounds. Each side runs twice, under glibc's allocator as it is, which hands large
buffers back to the kernel and faults them in anew at every step, and told to keep them.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from dfm_jax.checks import check_count, require
from dfm_jax.models import TransformerConfig, flops_per_token, num_parameters
from experiments import reporting, study, training_speed_report
from experiments.reporting import Verdict
from experiments.training_speed_sides import (
    ALLOCATORS,
    FIRST_STEPS,
    OURS,
    PHASES,
    SIZES,
    Plan,
    Size,
    measured,
    products,
)

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax")
_PROG = "python -m experiments.training_speed"
GOAL = 1.2  # PyTorch's time over ours
MET = 0.85  # of the goal: less is within what such timings are worth
AGREE = 1e-3  # nats per token, over the first steps: the two do the same work


@dataclass(frozen=True, kw_only=True)
class Config:
    """The time of a training step beside PyTorch's, float32 on this CPU."""

    preset: Literal["quick", "standard"] = "quick"
    """Where the other values start from: one size in two minutes, or three and torch.compile."""
    out: Path = Path("runs/training_speed")
    """Folder for result.json, metrics.jsonl and training_speed.png."""
    torch_python: str = ""
    """The Python of an environment with PyTorch and NumPy."""
    peers: tuple[str, ...] = ("torch",)
    """Of "torch", as it runs, and "torch.compile"."""
    sizes: int = 1
    """How many of the three sizes."""
    num_threads: int = 2
    """Of either side; each is held to as many processors."""
    num_blocks: int = 8
    """Rounds over the sides."""
    seed: int = 0
    """Of weights, tokens and resampling."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard", peers=("torch", "torch.compile"), sizes=len(SIZES), num_blocks=20
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: naming the first option that is, its rule and its value.
    """
    require(bool(config.torch_python), "`torch_python` must be given", repr(config.torch_python))
    known = {"torch", "torch.compile"}
    rule = "`peers` must be torch, torch.compile or both"
    require(bool(config.peers) and set(config.peers) <= known, rule, ", ".join(config.peers))
    check_count("sizes", config.sizes, at_most=len(SIZES))
    check_count("num_threads", config.num_threads, at_most=len(os.sched_getaffinity(0)))
    check_count("num_blocks", config.num_blocks, at_least=4)


# ── what follows from it ────────────────────────────────────────────────────────────────────────


def block_times(answers: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Seconds per step, the median of each block."""
    return np.array([np.median(answer["seconds"]) for answer in answers])


def ratio(theirs: np.ndarray, ours: np.ndarray, *, seed: int) -> tuple[float, float, float]:
    """median(theirs) / median(ours) over rounds, and the ends of its 95 % interval.

    Rounds are resampled whole, since both sides share a round's load.
    """
    rng = np.random.default_rng(seed)
    rounds = rng.integers(len(ours), size=(10_000, len(ours)))
    drawn = np.median(theirs[rounds], axis=1) / np.median(ours[rounds], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.median(theirs) / np.median(ours)), float(low), float(high)


def cpu_seconds(side: Mapping[str, Any]) -> float:
    """Of all blocks, on all processors; threads that wait by spinning count."""
    return sum(answer["cpu"] for answer in side["step"])


def row_of(size: Size, found: Mapping[str, Any], side: Mapping[str, Any], seed: int) -> dict:
    """One line of the table: a side under an allocator, and the ratio to ours under the same."""
    same = [s for s in found["sides"] if s["allocator"] == side["allocator"]]
    (ours,) = (s for s in same if s["side"] == OURS)
    times = {phase: float(np.median(block_times(side[phase]))) for phase in ("step", *PHASES)}
    estimate, low, high = ratio(block_times(side["step"]), block_times(ours["step"]), seed=seed)
    tokens = size.batch_size * size.num_positions
    model = TransformerConfig(**size.model)
    flops = 3 * tokens * flops_per_token(model, size.num_positions)
    of_products = sum(2 * m * k * n for m, k, n in products(model, size))
    steps = sum(len(answer["seconds"]) for answer in side["step"])
    gap = float(np.abs(np.subtract(side["losses"], ours["losses"])).max())
    return {
        "size": size.name,
        "parameters": num_parameters(model),
        "side": side["side"],
        "allocator": side["allocator"],
        "step_ms": 1e3 * times["step"],
        "tokens_per_s": tokens / times["step"],
        "ratio": estimate,
        "low": low,
        "high": high,
        "forward_ms": 1e3 * times["forward"],
        "backward_ms": 1e3 * (times["gradient"] - times["forward"]),
        "update_ms": 1e3 * (times["step"] - times["gradient"]),
        "products_ms": 1e3 * times["products"],
        "products_share": times["products"] / times["step"],
        "products_gflops": of_products / times["products"] / 1e9,
        "step_gflops": flops / times["step"] / 1e9,
        "cpu_ms": 1e3 * cpu_seconds(side) / steps,
        "cpu_ratio": cpu_seconds(side) / cpu_seconds(ours),
        "faults": sum(answer["faults"] for answer in side["step"]) / steps,
        "loss_gap": gap,
    }


def verdicts_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """The claims, their bounds stated here and nowhere else."""
    gap = max(row["loss_gap"] for row in rows)
    same_work = f"largest gap of the first {FIRST_STEPS} losses, nats per token"
    speed = [
        Verdict(f"PyTorch's step over ours, {allocator}, least size", "–", least, "≥", GOAL * MET)
        for allocator in ALLOCATORS
        for peers in [[r for r in rows if (r["side"], r["allocator"]) == ("torch", allocator)]]
        if peers
        for least in [min(row["ratio"] for row in peers)]
    ]
    return (Verdict(same_work, "–", gap, "≤", AGREE), *speed)


def run(config: Config, console: Console) -> bool:
    """The whole study: tables, files into the folder `config.out`, whether every claim holds."""
    start = time.perf_counter()
    versions = reporting.versions(PACKAGES) | peer_versions(config.torch_python)
    plan = Plan(
        config.torch_python, config.peers, config.num_threads, config.num_blocks, config.seed
    )
    rows, records = [], []
    for size in SIZES[: config.sizes]:
        console.print(f"{size.name} …", highlight=False)
        found = measured(size, plan)
        rows += [row_of(size, found, side, config.seed) for side in found["sides"]]
        records.append(found)
    verdicts = verdicts_of(rows)
    picture = training_speed_report.draw(config.out / "training_speed.png", rows)
    metrics = reporting.write_metrics(config.out, records)
    result = reporting.write_result(
        config.out,
        config=asdict(config) | {"out": str(config.out), "torch_python": "PYTHON"},
        versions=versions,
        seeds=[config.seed],
        rows=rows,
        summary={
            "load": {found["size"]: found["load"] for found in records},
            "allocators": ALLOCATORS,
            "goal": GOAL,
            "seconds": round(time.perf_counter() - start, 1),
        },
        verdicts=verdicts,
    )
    training_speed_report.print_table(console, rows)
    reporting.print_verdicts(console, verdicts)
    for what, path in (("picture", picture), ("numbers", result), ("blocks", metrics)):
        console.print(f"{what}: {path}", highlight=False, soft_wrap=True)
    return all(verdict.passed for verdict in verdicts)


def peer_versions(python: str) -> dict[str, str]:
    """Of PyTorch over there.

    Raises:
        ValueError: if it cannot be imported.
    """
    program = "import torch; print(torch.__version__)"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    require(done.returncode == 0, "`torch_python` must be a Python that can import torch", last)
    return {"torch": done.stdout.strip()}


def main(args: Sequence[str] | None = None) -> int:
    """0 if every claim holds, 1 if one fails, 2 for input that cannot be used, 130 if stopped."""
    config = study.parsed(PRESETS, _PROG, args)

    def whole() -> bool:
        check_config(config)
        config.out.mkdir(parents=True, exist_ok=True)
        return run(config, Console())

    return study.exit_status(_PROG, whole)


if __name__ == "__main__":
    sys.exit(main())
