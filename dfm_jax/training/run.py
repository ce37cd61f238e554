"""From a config and a folder of text to a trained member."""

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dfm_jax.checks import check_seed, require
from dfm_jax.data.columns import Columns
from dfm_jax.interfaces import Task
from dfm_jax.parallel import place_state
from dfm_jax.training.config import (
    TrainConfig,
    Watch,
    config_digest,
    hyperparameters,
    shape_of,
)
from dfm_jax.training.distributed import (
    Spread,
    all_or_none,
    check_same,
    in_turn,
    is_first,
    spread_init,
    spread_update,
)
from dfm_jax.training.evaluation import evaluated, ratio_with_interval
from dfm_jax.training.examples import Examples, MemberData, examples_of
from dfm_jax.training.loop import Outcome, Run, keyed_run, train
from dfm_jax.training.members import (
    TOKENS,
    check_member,
    load_member_data,
    member_data_path,
    member_folder,
    member_record,
    state_template,
    write_member,
)
from dfm_jax.training.memory import check_fits
from dfm_jax.training.metrics import metric_name
from dfm_jax.training.state import (
    TrainState,
    init_state,
    make_optimiser,
    with_hyperparameters,
)
from dfm_jax.training.step import TrainStep, make_train_step
from dfm_jax.training.stopping import StopRequest
from dfm_jax.training.tasks import task_of
from dfm_jax.types import Array, Key


def train_member(
    config: TrainConfig,
    data: Path,
    run: Path,
    *,
    expert: int | None = None,
    tokenizer: Path | None = None,
    watch: Watch | None = None,
    stop: StopRequest | None = None,
    tensorboard: bool = False,
    on_disk: bool = False,
    spread: Spread | None = None,
    text_only: bool = False,
    say: Callable[[str], object] | None = None,
) -> Outcome:
    """Train a member to its end, or to a signal, from wherever it is; see `loop.train`.

    A run is lengthened by a larger `config.num_steps`. It ends with the same bits as one that began
    with it, so what is refused is a cosine that would have ended elsewhere: with
    `config.optimiser.decay_steps` that of the run so far, it goes on at its last rate.

    With `on_disk` the tokens stay on the disk, in the member's folder, and are read ahead: for data
    that outgrow memory. The batches are the same, and so is what comes out.

    With `spread` the member lies over many devices, and may lie over several processes, see
    `distributed`. What comes out is the same up to the order of sums, and goes on from the same
    checkpoints.

    With `text_only` rows with pictures are read without them, which are refused otherwise. `say`
    is told, once and before a step is made, which columns of the rows are not used.

    Raises:
        ValueError: see `make_run`, and `load_member_data`.
        CheckpointError: if the folder holds a run of another config or other data.
        NonFiniteError: see `loop.train`.
    """
    watch = Watch() if watch is None else watch
    folder, source = member_folder(run, expert), member_data_path(data, expert)
    tokens = folder / TOKENS if on_disk else None
    columns = Columns(text_only=text_only)
    if (read_examples := task_of(config).read_examples) is not None:
        texts = {"tokenizer": tokenizer, "on_disk": on_disk, "text_only": text_only}
        for name, given in texts.items():
            rule = f"`{name}` must not be given: the task reads its own data"
            require(not given, rule, str(given))
        documents = read_examples(config, source)
        rule = "`read_examples` of the task must give Examples; it gives"
        require(isinstance(documents, Examples), rule, type(documents).__name__)
    else:
        load = partial(load_member_data, source, config, tokenizer, tokens=tokens, columns=columns)
        documents = in_turn(load, load) if on_disk else load()  # the others find what is written
    if say is not None and columns.unused and is_first():
        say(columns.text())
    record = member_record(config, documents)
    with all_or_none():
        check_member(folder, record)
    check_same("the config and the data", config_digest(record))
    return train(
        make_run(config, documents, watch, spread),
        folder,
        config=record,
        watch=watch,
        stop=stop,
        tensorboard=tensorboard,
        before_first=partial(write_member, folder, record, source),
    )


def make_run(
    config: TrainConfig,
    data: MemberData | Examples,
    watch: Watch,
    spread: Spread | None = None,
    *,
    task: Task | None = None,
) -> Run:
    """The run of a config on its data, as pure functions: on one device, or spread over many.

    Runs of one shape, see `shape_of`, and one task share what was compiled; the task is that of the
    config unless another is given.

    Raises:
        ValueError: if the run cannot fit the memory, see `check_fits`; if the devices do not divide
            the batch, or a run on one is asked for in several processes.
    """
    devices = None if spread is None else list(spread.mesh.devices.flat)
    check_fits(config, task=task, devices=devices)
    task = task_of(config) if task is None else task
    if spread is None:
        rule = "`spread` must say where a run of several processes lies; their number"
        require(jax.process_count() == 1, rule, jax.process_count())
    else:
        num = spread.mesh.size
        rule = f"`config.batch_size` must be a multiple of the {num} devices"
        require(config.batch_size % num == 0, rule, config.batch_size)
    examples = examples_of(data, config)
    held_out = examples.held_out
    init_key, batch_key, step_key, evaluation_key = run_keys(config.seed)
    init_from, step, placed = _compiled(shape_of(config), task, spread)
    values, init_data = hyperparameters(config), np.asarray(jax.random.key_data(init_key))

    def init() -> TrainState:
        return init_from(init_data, values)

    def evaluate(state: TrainState) -> dict[str, float]:
        assert held_out is not None
        rows, mesh = held_out(watch.evaluation_windows), None if spread is None else spread.mesh
        documents = evaluated(state, config, rows, evaluation_key, mesh=mesh, task=task)
        mean, half = ratio_with_interval(documents.nats, documents.counts)
        name = metric_name(task.measure)
        # Of one draw a window: over documents and draws. One document has no standard error.
        told = task.draws and math.isfinite(half)
        return {name: mean} | ({f"{name}_se": half / 1.96} if told else {})

    return keyed_run(
        init,
        step,
        examples.batches,
        batch_key,
        step_key,
        num_steps=config.num_steps,
        evaluate=None if held_out is None else evaluate,
        placed=placed,
        resumed=partial(with_hyperparameters, **values),
    )


def run_keys(seed: int) -> Key:
    """Of the parameters, the batches, the steps and the evaluation. [4]"""
    check_seed("seed", seed)
    return jax.random.split(jax.random.key(seed), 4)


def init_and_step(
    shape: TrainConfig, task: Task | None = None
) -> tuple[Callable[[Key, Mapping[str, Array]], TrainState], TrainStep]:
    """(key, hyperparameters) → state, and the step, of all configs of that shape; not compiled."""
    task = task_of(shape) if task is None else task
    optimiser = make_optimiser(shape.optimiser, shape.num_steps)
    step = make_train_step(
        task.losses,
        optimiser,
        num_micro_batches=shape.num_micro_batches,
        ema_decay=shape.ema_decay,
    )

    def init(key: Key, values: Mapping[str, Array]) -> TrainState:
        state = init_state(key, task, optimiser, ema=shape.ema_decay is not None)
        return with_hyperparameters(state, **values)

    return init, step


@cache  # members that one process trains share what was compiled
def _compiled(shape: TrainConfig, task: Task, spread: Spread | None) -> tuple[Any, Any, Any]:
    init, step = init_and_step(shape, task)
    if spread is None:
        from_data = jax.jit(lambda data, values: init(jax.random.wrap_key_data(data), values))
        return from_data, jax.jit(step, donate_argnums=0), None
    template = state_template(shape, task)
    placed = place_state(template, *spread)
    return spread_init(init, placed), spread_update(step, template, spread), placed
