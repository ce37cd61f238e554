"""Runs of one shape as one program, with an axis over seeds, rates, decays and lengths.

The runs share only the data, so their axis is split over devices that never communicate. A device
of an accelerator computes its runs together, by `vmap`, and a CPU one after the other. One call of
the program makes several updates of each run, up to the next one after which something is written.
All runs are logged and saved together. A sweep of R runs has the files of one run:

    metrics.jsonl   loss/0 … loss/R−1, of the runs that go on
    200/ 400/ …     checkpoints, in which every leaf has a leading axis R
    sweep.json      the result of each run, written at the end
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dfm_jax.checks import check_count, require
from dfm_jax.interfaces import Losses, Task
from dfm_jax.json_text import read_json
from dfm_jax.json_types import as_type
from dfm_jax.parallel import faster_in_turn, independent
from dfm_jax.storage.folders import Folder, write_whole
from dfm_jax.training.batches import ArrayBatches, Batches
from dfm_jax.training.checkpoint import read_checkpoint
from dfm_jax.training.config import (
    LogConfig,
    TrainConfig,
    all_fields,
    check_objective,
    from_json,
    hyperparameters,
    shape_of,
    to_json,
)
from dfm_jax.training.evaluation import ratio_with_interval
from dfm_jax.training.examples import Examples, HeldOut, MemberData, examples_of
from dfm_jax.training.fit import begin_from, init_and_step, run_keys
from dfm_jax.training.loop import Outcome, Run, train
from dfm_jax.training.memory import check_fits
from dfm_jax.training.metrics import Measure, metric_name
from dfm_jax.training.presets import MAX_RUNS, set_field
from dfm_jax.training.pretrained import Initial
from dfm_jax.training.state import TrainState, with_hyperparameters
from dfm_jax.training.step import (
    StepMetrics,
    batch_size_of,
    make_evaluation,
    several_updates,
    until_its_end,
)
from dfm_jax.training.stopping import StopRequest
from dfm_jax.training.tasks import task_of
from dfm_jax.training.trackers import Tracker
from dfm_jax.types import Array, Key

RESULT = "sweep.json"


class RunResult(NamedTuple):
    """The result of one run of a sweep."""

    config: TrainConfig
    step: int  # updates made
    finished: bool  # if not, the next update was not finite
    validation: float | None  # nats per token; None if nothing is held out, or it is not finite
    measure: Measure  # exact: −log p; bound: an upper bound on it, of one draw a window
    standard_error: float | None  # of a bound, over documents and draws


def grid(config: TrainConfig, axes: Mapping[str, Sequence[Any]]) -> tuple[TrainConfig, ...]:
    """All combinations of the values of fields; the last axis changes fastest.

    Raises:
        ValueError: if the config has no such field; if a value is not allowed; if two runs are
            equal.
    """
    num_runs = math.prod(map(len, axes.values()))
    check_count("the number of runs of `axes`", num_runs, at_most=MAX_RUNS)
    configs = []
    for values in product(*axes.values()):
        fields = all_fields(config)
        for name, value in zip(axes, values, strict=True):
            set_field(fields, name, value)
        configs.append(from_json(TrainConfig, fields))
        check_objective(configs[-1])
    rule, counts = "`axes` must give runs that differ", (len(configs), len(set(configs)))
    require(counts[0] == counts[1], rule, counts, name="numbers of (runs, different runs)")
    return tuple(configs)


def by_shape(configs: Sequence[TrainConfig]) -> tuple[tuple[TrainConfig, ...], ...]:
    """Groups of configs that share one program, in the order in which they first occur."""
    groups: dict[TrainConfig, list[TrainConfig]] = {}
    for config in configs:
        groups.setdefault(shape_of(config), []).append(config)
    return tuple(tuple(group) for group in groups.values())


def train_sweep(
    configs: Sequence[TrainConfig],
    data: MemberData | Examples,
    folder: Folder,
    mesh: Mesh,
    *,
    log_config: LogConfig | None = None,
    stop: StopRequest | None = None,
    tracker: Tracker | None = None,
    initial: Initial | None = None,
) -> Outcome:
    """Train runs of one shape from their present states to their ends, or until a signal.

    A run whose loss, gradient or update is not finite stops at its last state, and `sweep.json`
    says so; the others go on. The folder belongs to the sweep: another grid or other data are
    refused. Runs can be made longer by the rule for single runs, unless they ended before others.
    `tracker` is told each line of metrics.jsonl, as in `loop.train`. With `initial`, see
    `initial_params`, all runs start from these parameters, whose digest is recorded.

    Raises:
        ValueError: if the configs differ in shape.
        CheckpointError: as `loop.train`.
    """
    log_config = LogConfig() if log_config is None else log_config
    record = {"configs": [to_json(config) for config in configs], "data": data.description}
    record |= {} if initial is None else {"init": initial.digest}
    run, results = make_sweep(configs, data, log_config, mesh, initial=initial)
    path = folder / RESULT
    # Of checkpoints that have been taken away since, perhaps: results go with what is here.
    stale = partial(path.unlink, missing_ok=True)
    outcome = train(
        run,
        folder,
        config=record,
        log_config=log_config,
        stop=stop,
        tracker=tracker,
        before_first=stale,
    )
    if outcome.finished and not path.is_file():
        last = folder / str(outcome.step)
        found = results(read_checkpoint(last, run.template, config=record))
        rows = [row._asdict() | {"config": to_json(row.config)} for row in found]
        write_whole(path, json.dumps(rows, indent=1) + "\n")
    return outcome


def read_results(folder: Folder) -> tuple[RunResult, ...]:
    """The results of the runs of a finished sweep.

    Raises:
        ValueError: if the file does not have the form that `train_sweep` writes; the message names
            it.
    """
    path = folder / RESULT
    try:
        return as_type(tuple[RunResult, ...], read_json(path), "runs")
    except ValueError as error:
        raise ValueError(
            f"{path} must be as `sweep` writes it; got another content: {error} Remove the file: "
            "the same command writes it anew."
        ) from error


def make_sweep(
    configs: Sequence[TrainConfig],
    data: MemberData | Examples,
    log_config: LogConfig,
    mesh: Mesh,
    *,
    task: Task | None = None,
    initial: Initial | None = None,
) -> tuple[Run, Callable[[TrainState], list[RunResult]]]:
    """All runs as one, and a function that gives the result of each; the task is as in `make_run`.

    Run r has the same keys, batches and hyperparameters as `make_run` gives to it alone. The first
    parameters of each run are drawn, unless they are given: then all runs start from them.

    Raises:
        ValueError: if the configs differ in shape, or the tokens stay on the disk.
    """
    shape, lengths = shape_of(configs[0]), jnp.array([config.num_steps for config in configs])
    for config in configs[1:]:
        rule = "All of `configs` must have the shape of the first one"
        require(shape_of(config) == shape, rule, config)
    examples = examples_of(data, shape)
    require(
        not examples.on_disk, "`data` must be in memory if it is of a sweep", examples.description
    )
    check_fits(shape, task=task, num_runs=len(configs), devices=list(mesh.devices.flat))
    rows = [tuple(run_keys(config.seed)) for config in configs]
    init_keys, batch_keys, step_keys, judging_keys = map(jnp.stack, zip(*rows, strict=True))
    columns = [hyperparameters(config) for config in configs]
    values = {name: jnp.array([one[name] for one in columns]) for name in columns[0]}
    task = task_of(shape) if task is None else task
    begin, begin_all_from, several = _compiled(shape, task, mesh)
    batches = examples.batches
    if not isinstance(batches, ArrayBatches):  # of the caller: what it closes over is a constant
        batches = jax.tree_util.Partial(batches)
    batches = jax.device_put(batches, NamedSharding(mesh, PartitionSpec()))

    def drawn() -> TrainState:
        return begin(jax.random.clone(init_keys), values)

    def init() -> TrainState:
        if initial is None:
            return drawn()
        return begin_all_from(initial.read(None), jax.random.clone(init_keys), values)

    def updates(state: TrainState, start: int, count: int) -> tuple[TrainState, _Moved]:
        return several(batches, start, count, state, batch_keys, step_keys, lengths)

    def update(state: TrainState, index: int) -> tuple[TrainState, _Moved]:
        state, metrics = updates(state, index, 1)
        return state, jax.tree.map(lambda leaf: leaf[..., 0], metrics)

    def losses(state: TrainState, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
        assert examples.held_out is not None
        return _validation(state, task, mesh, examples.held_out(limit), judging_keys)

    def evaluate(state: TrainState) -> dict[str, float]:
        found, _ = losses(state, log_config.evaluation_windows)
        good = np.flatnonzero(np.isfinite(found)).tolist()
        return {f"{metric_name(task.measure)}/{r}": float(found[r]) for r in good}

    def results(state: TrainState) -> list[RunResult]:
        judged = examples.held_out is not None
        none = [None] * len(configs)
        found, errors = (x.tolist() for x in losses(state, None)) if judged else (none, none)

        def finite(value: float | None) -> float | None:
            return value if value is not None and math.isfinite(value) else None

        return [
            RunResult(
                config,
                int(made),
                int(made) == config.num_steps,
                finite(loss),
                task.measure,
                finite(error) if task.draws else None,
            )
            for config, made, loss, error in zip(configs, state.step, found, errors, strict=True)
        ]

    measured = None if examples.held_out is None else evaluate
    resumed = partial(with_hyperparameters, **values)
    run = Run(
        init,
        update,
        measured,
        int(lengths.max()),
        _scalars,
        resumed=resumed,
        updates=updates,
        template=jax.eval_shape(drawn),
    )
    return run, results


class _Moved(NamedTuple):
    """The metrics of every run in one update, and which runs made it."""

    metrics: StepMetrics
    moved: Array


@cache
def _compiled(shape: TrainConfig, task: Task, mesh: Mesh) -> tuple[Any, Any, Any]:
    init, train_step = init_and_step(shape, task)
    limited = until_its_end(train_step)

    def several(
        batches: Batches,
        start: Array,
        count: Array,
        state: TrainState,
        batch_key: Key,
        step_key: Key,
        num_steps: Array,
    ) -> tuple[TrainState, _Moved]:
        def step(state: TrainState, batch: Any, key: Key, s: Array) -> tuple[TrainState, _Moved]:
            state, metrics, moved = limited(state, batch, key, s, num_steps)
            return state, _Moved(metrics, moved)

        return several_updates(step, batches, start, count, state, batch_key, step_key)

    return (
        independent(init, mesh, pad=True),
        independent(begin_from(shape), mesh, pad=True, shared_args=(0,)),
        independent(
            several,
            mesh,
            pad=True,
            in_turn=faster_in_turn(mesh),
            shared_args=(0, 1, 2),
            donate_args=(3,),
        ),
    )


_folded = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(0, None)))


@cache
def _compiled_evaluation(losses: Callable[..., Losses], mesh: Mesh) -> Any:
    return independent(make_evaluation(losses), mesh, pad=True, in_turn=faster_in_turn(mesh))


def _validation(
    state: TrainState,
    task: Task,
    mesh: Mesh,
    windows: HeldOut,
    keys: Key,
) -> tuple[np.ndarray, np.ndarray]:
    """Nats per token of every run on the held-out documents, with standard errors: [R] each."""
    params = state.params if state.ema is None else state.ema
    evaluation, num_runs = _compiled_evaluation(task.losses, mesh), keys.shape[0]
    rows = []
    for number, batch in enumerate(windows.batches):
        every = jax.tree.map(lambda x: np.broadcast_to(x[None], (num_runs, *x.shape)), batch)
        # As `evaluated` draws them.
        drawn = (_folded(keys, number * batch_size_of(batch)),) if task.draws else ()
        rows.append(jax.device_get(evaluation(params, every, *drawn)))
    losses = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *rows)
    each = zip(losses.nats, losses.counts, strict=True)
    found = [windows.by_document(*one) for one in each]
    rows_of = np.array([ratio_with_interval(one.nats, one.counts) for one in found])
    return rows_of[:, 0], rows_of[:, 1] / 1.96


def _scalars(found: _Moved) -> dict[str, float]:
    """The numbers that are logged for one update: the loss of each run that made it."""
    runs = np.flatnonzero(found.moved).tolist()
    losses = {f"loss/{r}": float(found.metrics.loss[r]) for r in runs}
    tokens = int(found.metrics.num_tokens[runs].sum())
    mean = {"loss": sum(losses.values()) / len(runs)} if runs else {}
    return mean | {"num_tokens": tokens, "num_running": len(runs)} | losses
