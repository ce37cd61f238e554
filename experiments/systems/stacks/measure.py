"""The measurements of `stacks`: both sides do the same, in turns."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dfm_jax.checks import require
from experiments.systems.benchmarks.serving import Side
from experiments.systems.benchmarks.workloads import inputs
from experiments.systems.stacks.config import TRAINING, WORKS, Config, Work
from experiments.systems.training_speed.sides import FIRST_STEPS, SIZES, Plan, write_work

ROOT = Path(__file__).parents[3]
LOWEST, NEWEST = "lowest", "newest"
# Nothing that was compiled before is read: it would be another version's, or hide the seconds.
ENVIRONMENT = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
BLOCK = 1.0  # seconds that a side works before it is the other's turn, where one work takes less


def pythons(config: Config) -> dict[str, str]:
    """The Python of either side."""
    found = {LOWEST: config.lowest_python, NEWEST: config.newest_python}
    return {name: os.path.abspath(path) for name, path in found.items()}  # a link stays a link


@contextmanager
def sides(config: Config, *program: str) -> Iterator[dict[str, Side]]:
    """A process of each side, which waits for commands."""
    started: dict[str, Side] = {}
    try:
        for name, python in pythons(config).items():
            command = [python, "-m", *program]
            started[name] = Side(name, command, config.num_threads, ENVIRONMENT)
        yield started
    finally:
        for side in started.values():
            side.end()


def in_turns(names: list[str], number: int) -> list[str]:
    """A B in even rounds, B A in odd ones."""
    return names if number % 2 == 0 else names[::-1]


def programs(config: Config) -> dict[str, Any]:
    """Versions, draws, and the compilation of the training step, by side."""
    found: dict[str, Any] = {}
    with sides(config, "experiments.stacks.side") as told:
        for name, side in told.items():
            found[name] = {do: side.told({"do": do}) for do in ("versions", "draw")}
            found[name]["compile"] = []
            side.told({"do": "compile"})  # the first also imports
        for number in range(config.num_rounds):
            for name in in_turns(list(told), number):
                found[name]["compile"].append(told[name].told({"do": "compile"}))
    for name, python in pythons(config).items():
        found[name]["isolation"] = isolation(python)
    return found


def isolation(python: str) -> list[dict[str, Any]]:
    """The rows of `experiments.isolation` there.

    Raises:
        ValueError: if it wrote none.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "isolation.json")
        command = [python, "-m", "experiments.isolation", "--json", str(path)]
        environment = {**os.environ, **ENVIRONMENT, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        last = (done.stderr.strip().splitlines() or [""])[-1]
        rule, then = "`experiments.isolation` must write its rows", f"It said: {last}"
        require(path.is_file(), rule, done.returncode, name="status", then=then)
        return json.loads(path.read_text())


def timed(work: Work, config: Config) -> dict[str, Any]:
    """The seconds of every repetition of a work, by side and round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if work.name == TRAINING:
            plan = Plan("", (), config.num_threads, config.num_rounds, config.seed)
            write_work(folder, SIZES[0], plan)
            program = ("experiments.training_speed.jax_side", str(folder))
            order: dict[str, Any] = {"phase": "step"}
            asked = "steps"
        else:
            data = folder / "inputs.npz"
            np.savez(data, allow_pickle=False, **inputs(work.workload, work.size, config.seed))
            program = ("experiments.benchmarks.ours", str(config.num_threads))
            order = {"do": "time", "workload": work.workload, "size": work.size}
            order |= {"data": str(data), "form": work.form}
            asked = "reps"
        with sides(config, *program) as told:
            return _rounds(told, order, asked, config.num_rounds)


def _rounds(
    told: Mapping[str, Side], order: Mapping[str, Any], asked: str, num_rounds: int
) -> dict[str, Any]:
    first = {name: side.told({**order, asked: FIRST_STEPS}) for name, side in told.items()}
    seconds = max(min(answer["seconds"]) for answer in first.values())
    repetitions = max(1, min(200, int(BLOCK / seconds)))  # the same on both sides
    found: dict[str, Any] = {"load": [os.getloadavg()[0]], "repetitions": repetitions}
    found["losses"] = {name: answer.get("losses") for name, answer in first.items()}
    found["rounds"] = {name: [] for name in told}
    for number in range(num_rounds):
        for name in in_turns(list(told), number):
            answer = told[name].told({**order, asked: repetitions})
            found["rounds"][name].append(answer["seconds"])
    found["load"].append(os.getloadavg()[0])
    return found


def all_works(config: Config) -> Iterator[tuple[Work, dict[str, Any]]]:
    """Every work that is asked for, and what was measured of it."""
    for work in WORKS[: config.works]:
        yield work, timed(work, config)
