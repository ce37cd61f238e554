"""One training step here and in PyTorch: the same network, batch, loss and update, side by side.

    python -m experiments.training_speed --torch-python PYTHON --preset standard --before 1b2cef9

PYTHON is the Python of an environment with PyTorch. Every side is a process of its own that waits
for commands. The sides take turns in blocks of steps, A B C A B C …, so that other load on the
machine affects all of them. The ratio is that of the medians over blocks; its interval is a
bootstrap over rounds. Each side runs with the default of glibc's allocator, which returns large
buffers to the kernel and faults them in again at every step, and with an allocator that keeps them.
A third row has our side as a command of the package starts it, which keeps the buffers without any
variable, beside a peer with the default. With `--before COMMIT` the build of that commit is a
further side.
"""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from dfm_jax.checks import require
from dfm_jax.models import TransformerConfig, flops_per_token, num_parameters
from experiments.lib import reporting, study
from experiments.lib.builds import unpacked
from experiments.lib.reporting import Verdict
from experiments.systems.benchmarks.kinds import BEFORE
from experiments.systems.training_speed import report as training_speed_report
from experiments.systems.training_speed.config import PRESETS, Config, check_config
from experiments.systems.training_speed.sides import (
    ALLOCATORS,
    AS_COMMANDS_START,
    BUFFERS_KEPT,
    FIRST_STEPS,
    OURS,
    PHASES,
    SIZES,
    Plan,
    Size,
    measured,
    products,
)
from experiments.systems.training_speed.times import MET, block_times, ratio

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax")
_PROG = "python -m experiments.training_speed"
GOALS = {  # the time of another side over ours, at each size
    ("torch", AS_COMMANDS_START): 1.0,
    ("torch", BUFFERS_KEPT): 0.85,
    (BEFORE, AS_COMMANDS_START): 1.7,
}
AGREE = 1e-3  # nats per token, over the first steps: the two do the same work


# ── what follows from it ────────────────────────────────────────────────────────────────────────


def cpu_seconds(side: Mapping[str, Any]) -> float:
    """The seconds of all blocks on all processors; threads that spin while they wait count too."""
    return sum(answer["cpu"] for answer in side["step"])


def row_of(size: Size, found: Mapping[str, Any], side: Mapping[str, Any], seed: int) -> dict:
    """One row: a side with an allocator, and its ratio to ours with the same allocator."""
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
    """The claims, whose bounds are stated only here."""
    gap = max(row["loss_gap"] for row in rows)
    same_work = f"largest gap of the first {FIRST_STEPS} losses, nats per token"
    speed = []
    for (side, allocator), goal in GOALS.items():
        ratios = [r["ratio"] for r in rows if (r["side"], r["allocator"]) == (side, allocator)]
        if ratios:
            claim = f"time of {side} over ours, {allocator}, least size"
            speed.append(Verdict(claim, "–", min(ratios), "≥", goal * MET))
    return (Verdict(same_work, "–", gap, "≤", AGREE), *speed)


def run(config: Config, console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    start = time.perf_counter()
    versions = reporting.installed(PACKAGES) | peer_versions(config.torch_python)
    rows, records = [], []
    with unpacked(config.before) as before:
        commit = None if before is None else before.commit
        plan = Plan(
            config.torch_python,
            config.peers,
            config.num_threads,
            config.num_blocks,
            config.seed,
            before,
        )
        for size in SIZES[: config.sizes]:
            console.print(f"{size.name} …", highlight=False)
            found = measured(size, plan)
            rows += [row_of(size, found, side, config.seed) for side in found["sides"]]
            records.append(found)
    verdicts = verdicts_of(rows)
    picture = training_speed_report.draw(config.out / "training_speed.png", rows)
    return reporting.conclude(
        console,
        config,
        versions=versions,
        seeds=[config.seed],
        rows=rows,
        summary={
            "load": {found["size"]: found["load"] for found in records},
            "allocators": ALLOCATORS,
            "goals": {", ".join(names): goal for names, goal in GOALS.items()},
            "before": commit,
            "seconds": round(time.perf_counter() - start, 1),
        },
        verdicts=verdicts,
        records=records,
        pictures=[picture],
        shown_as={"torch_python": "PYTHON"},
        tables=lambda: training_speed_report.print_table(console, rows),
    )


def peer_versions(python: str) -> dict[str, str]:
    """The version of PyTorch in the other environment.

    Raises:
        ValueError: if it cannot be imported there.
    """
    program = "import torch; print(torch.__version__)"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    rule, then = "`torch_python` must be a Python that can import torch", f"It said: {last}"
    require(done.returncode == 0, rule, python, then=then)
    return {"torch": done.stdout.strip()}


main = study.main_of(_PROG, PRESETS, run, check_config)


if __name__ == "__main__":
    sys.exit(main())
