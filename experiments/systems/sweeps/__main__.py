"""A sweep as one program and the same runs one by one: equal results, and the ratio of times.

    python -m experiments.sweeps --preset standard

On one side, seeds and learning rates are a mapped axis. The other side trains the same configs one
after the other in one process, with one program for all of them that is compiled once. The study
measures what one mapped program saves beyond that. The sides take turns, A B C A B C …, so that
they share the load of the machine; the first round of each compiles, and is reported separately.
Results are those of the last round.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from dfm_jax.parallel import make_mesh
from dfm_jax.training.config import LogConfig, TrainConfig
from dfm_jax.training.examples import MemberData
from dfm_jax.training.fit import make_run
from dfm_jax.training.loop import Run
from dfm_jax.training.members import load_member_data
from dfm_jax.training.presets import PRESETS as CONFIGS
from dfm_jax.training.state import TrainState
from dfm_jax.training.sweep import grid, make_sweep
from experiments.lib import reporting, study
from experiments.lib.corpora import write_texts
from experiments.lib.reporting import Verdict
from experiments.systems.sweeps.config import PRESETS, Config, check_config

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax")
_PROG = "python -m experiments.sweeps"
_ONE, _ALONE = "one program", "one by one"
GAP = 1e-4  # nats per token, of float32 sums in another order over all the steps
_LOG_CONFIG = LogConfig(evaluation_windows=10**6)


def runs_of(config: Config) -> tuple[TrainConfig, ...]:
    """The grid over the smallest preset, at the width asked for."""
    tiny = CONFIGS["tiny"]
    model = replace(tiny.model, width=config.width, ffn_width=8 * (config.width // 3))
    base = replace(tiny, model=model, num_steps=config.num_steps, held_out=0.2)
    axes = {
        "seed": range(config.num_seeds),
        "optimizer.learning_rate": config.learning_rates,
    }
    return grid(base, axes)


def trained(run: Run) -> TrainState:
    """The state at the end of a run, on the host."""
    state, done = run.init(), 0
    while done < run.num_steps:
        if run.updates is None:
            state, _ = run.update(state, done)
            done += 1
        else:  # as `loop.train`, which stops to log
            count = min(run.num_steps - done, _LOG_CONFIG.log_every)
            state, _ = run.updates(state, done, count)
            done += count
    return jax.device_get(state)


def one_program(
    configs: Sequence[TrainConfig], data: MemberData, *, num_devices: int
) -> TrainState:
    """All runs along a leading axis, which is split over devices."""
    return trained(make_sweep(configs, data, _LOG_CONFIG, make_mesh(num_devices))[0])


def one_by_one(configs: Sequence[TrainConfig], data: MemberData) -> TrainState:
    """Each run by itself, stacked at the end."""
    states = [trained(make_run(config, data, _LOG_CONFIG)) for config in configs]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


def timed(side: Callable[..., TrainState], *args: Any) -> tuple[float, TrainState]:
    """The seconds and the result of a side."""
    start = time.perf_counter()
    state = side(*args)
    return time.perf_counter() - start, state


def run(config: Config, console: Console) -> bool:
    """Run all sides in turn, show the table, write the files; return whether results are equal."""
    configs = runs_of(config)
    with tempfile.TemporaryDirectory() as name:
        write_texts(Path(name) / "texts")
        data = load_member_data(Path(name) / "texts", configs[0], None)
    sides: dict[str, Callable[..., TrainState]] = {_ONE: partial(one_program, num_devices=1)}
    if config.num_devices > 1:
        name = f"{_ONE}, {config.num_devices} devices"
        sides[name] = partial(one_program, num_devices=config.num_devices)
    sides[_ALONE] = one_by_one
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    states: dict[str, TrainState] = {}
    for number in range(1 + config.num_rounds):
        for name, side in sides.items():
            taken, states[name] = timed(side, configs, data)
            seconds[name].append(taken)
            console.print(f"round {number}, {name}: {taken:.2f} s", highlight=False)
    _, results = make_sweep(configs, data, _LOG_CONFIG, make_mesh(1))
    losses = {
        name: np.array([row.validation for row in results(state)]) for name, state in states.items()
    }
    alone = jax.tree.leaves(states[_ALONE].params)
    size = sum(leaf[0].size for leaf in alone)
    together = [jax.tree.leaves(state.params) for name, state in states.items() if name != _ALONE]
    gap = max(float(np.abs(found - losses[_ALONE]).max()) for found in losses.values())
    apart = max(
        float(np.abs(a - b).max()) for one in together for a, b in zip(one, alone, strict=True)
    )
    steady = {name: float(np.median(taken[1:])) for name, taken in seconds.items()}
    rows = [
        {
            "side": name,
            "parameters": size,
            "runs": len(configs),
            "steps": config.num_steps,
            "first_s": seconds[name][0],
            "seconds": steady[name],
            "ratio": steady[_ALONE] / steady[name],
        }
        for name in sides
    ]
    spread = float(losses[_ALONE].max() - losses[_ALONE].min())
    verdicts = (
        Verdict("largest gap of a run's validation loss, nats per token", "–", gap, "≤", GAP),
        Verdict("spread of the runs, nats per token: they are not one run", "–", spread, "≥", 0.01),
    )
    records = [{"side": name, "seconds": taken} for name, taken in seconds.items()]
    return reporting.conclude(
        console,
        config,
        versions=reporting.installed(PACKAGES),
        seeds=list(range(config.num_seeds)),
        rows=rows,
        summary={"parameters_apart": apart, "loss_gap": gap, "loss_spread": spread},
        verdicts=verdicts,
        records=records,
        tables=lambda: console.print(_table(rows)),
    )


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=f"The same runs of {rows[0]['parameters']:,} parameters, seconds")
    for name in ("side", "runs", "first", "then, median", "one by one / this"):
        table.add_column(name, justify="left" if name == "side" else "right")
    for row in rows:
        table.add_row(
            row["side"],
            str(row["runs"]),
            f"{row['first_s']:.1f}",
            f"{row['seconds']:.2f}",
            f"{row['ratio']:.2f}",
        )
    return table


def whole(config: Config, console: Console) -> bool:
    """Run the study on its data."""
    study.have_cpu_devices(config.num_devices)
    return run(config, console)


main = study.main_of(_PROG, PRESETS, whole, check_config)


if __name__ == "__main__":
    sys.exit(main())
