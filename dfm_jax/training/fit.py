"""From a config and its data to a trained member: all steps, saved, logged and evaluated."""

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import check_seed, require
from dfm_jax.data.columns import Columns
from dfm_jax.interfaces import Params, Task
from dfm_jax.models.lora import with_adapters
from dfm_jax.models.pretrained import Checkpoint
from dfm_jax.parallel import state_shardings
from dfm_jax.storage.folders import Folder
from dfm_jax.training.batches import Batches
from dfm_jax.training.config import LogConfig, TrainConfig, config_digest, hyperparameters, shape_of
from dfm_jax.training.conversation_rows import conversation_examples, usual_places
from dfm_jax.training.distributed import (
    Layout,
    all_or_none,
    check_same,
    in_turn,
    is_first,
    sharded_init,
    sharded_update,
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
from dfm_jax.training.pretrained import Initial, initial_params
from dfm_jax.training.state import (
    TrainState,
    init_state,
    make_optimizer,
    state_of,
    state_options,
    with_hyperparameters,
)
from dfm_jax.training.step import StepMetrics, TrainStep, make_train_step, several_updates
from dfm_jax.training.stopping import StopRequest
from dfm_jax.training.tasks import task_of
from dfm_jax.training.trackers import Tracker
from dfm_jax.types import Array, Key


def train_member(
    config: TrainConfig,
    data: Path,
    run: Folder,
    *,
    expert: int | None = None,
    tokenizer: Path | None = None,
    log_config: LogConfig | None = None,
    stop: StopRequest | None = None,
    tracker: Tracker | None = None,
    tensorboard: bool = False,
    on_disk: bool = False,
    layout: Layout | None = None,
    text_only: bool = False,
    init: Checkpoint | None = None,
    images: Path | None = None,
    pixels: Path | None = None,
    say: Callable[[str], object] | None = None,
) -> Outcome:
    """Train a member from its present state to its end, or until a signal; see `train`.

    A larger `config.num_steps` makes a run longer. It must end with the same bits as a run that had
    this length from the start, so a cosine that would have ended at another step is refused. If
    `config.optimizer.decay_steps` stays that of the run so far, the run goes on at its last rate.

    With `on_disk` the tokens stay on the disk, in the member's folder, and are read ahead, for data
    that do not fit in memory. The batches and the result are the same.

    `tracker` is told each line of metrics.jsonl, see `train`.

    With `layout` the member uses many devices, and perhaps several processes, see `distributed`.
    The result is the same up to the order of sums, and the checkpoints can be exchanged.

    With `text_only` rows that have pictures are read without them; otherwise such rows are refused.
    `say` is called once, before the first step, with the columns of the rows that are not used.

    With `init` the run starts from the parameters of a checkpoint, see `models.pretrained`. Their
    digest is recorded: the run cannot go on from checkpoints that started from others.

    A config with `pictures` trains on conversations, see `conversation_examples`, with the pictures
    in the folder `images`, by default that in `data` or beside it. What a processor makes of them
    is kept in the folder `pixels`, by default in the member's own; members may share one. With
    `on_disk` batches are read ahead.

    Raises:
        ValueError: see `make_run`, `load_member_data`, and `initial_params`.
        CheckpointError: if the folder holds a run with another config or other data.
        NonFiniteError: see `train`.
    """
    log_config = LogConfig() if log_config is None else log_config
    folder, source = member_folder(run, expert), member_data_path(data, expert)
    rule = "`on_disk` must not be asked for if the run is on an object store"
    require(not on_disk or isinstance(folder, Path), rule, on_disk)
    tokens = folder / TOKENS if on_disk and isinstance(folder, Path) else None
    columns = Columns(text_only=text_only)
    initial = None if init is None else initial_params(config, init)
    places = None
    if config.pictures is None or config.task is not None:
        for name, given in {"images": images, "pixels": pixels}.items():
            rule = f"`{name}` must not be given, because the config has no `pictures`"
            require(given is None, rule, given)
    else:
        rule = "`text_only` must be False if the config has `pictures`"
        require(not text_only, rule, text_only)
        places = usual_places(data, folder, tokenizer, images=images, pixels=pixels)
    if places is not None:
        options = {"ahead": on_disk, "say": say if is_first() else None}
        read = partial(conversation_examples, source, config, places, **options)
        documents = in_turn(read, read)  # the others find the pixels
    elif (read_examples := task_of(config).read_examples) is not None:
        texts = {"tokenizer": tokenizer, "on_disk": on_disk, "text_only": text_only}
        for name, given in texts.items():
            rule = f"`{name}` must not be given, because the task reads its own data"
            require(not given, rule, given)
        documents = read_examples(config, source)
        rule, kind = "`read_examples` of the task must return Examples", type(documents).__name__
        require(isinstance(documents, Examples), rule, kind, name="type of the result")
    else:
        options = {"tokens": tokens, "columns": columns, "padded": init is not None}
        load = partial(load_member_data, source, config, tokenizer, **options)
        documents = in_turn(load, load) if on_disk else load()  # the others find what is written
    if say is not None and columns.unused and is_first():
        say(columns.text())
    record = member_record(config, documents, init=initial and initial.digest)
    with all_or_none():
        check_member(folder, record)
    check_same("the config and the data", config_digest(record))
    return train(
        make_run(config, documents, log_config, layout, initial=initial),
        folder,
        config=record,
        log_config=log_config,
        stop=stop,
        tracker=tracker,
        tensorboard=tensorboard,
        before_first=partial(
            write_member,
            folder,
            record,
            source,
            init_source=initial and initial.source,
            places=places,
        ),
    )


def make_run(
    config: TrainConfig,
    data: MemberData | Examples,
    log_config: LogConfig,
    layout: Layout | None = None,
    *,
    task: Task | None = None,
    initial: Initial | None = None,
) -> Run:
    """The run of a config on its data, as pure functions, on one device or over many.

    Runs with the same shape, see `shape_of`, and the same task share a compiled program. The task
    is that of the config unless another one is given. The first parameters are drawn, unless they
    are given: each run then copies them, so that it may donate its own.

    Raises:
        ValueError: if the run cannot fit in memory, see `check_fits`; if the number of devices does
            not divide the batch size; if there are several processes but no layout.
    """
    devices = None if layout is None else list(layout.mesh.devices.flat)
    check_fits(config, task=task, devices=devices)
    task = task_of(config) if task is None else task
    if layout is None:
        rule = "`layout` must be given if several processes train one run"
        require(jax.process_count() == 1, rule, layout)
    else:
        num = layout.mesh.size
        rule = f"`config.batch_size` must be a multiple of {num}, the number of devices"
        require(config.batch_size % num == 0, rule, config.batch_size)
    examples = examples_of(data, config)
    held_out = examples.held_out
    init_key, batch_key, step_key, evaluation_key = run_keys(config.seed)
    init_from, step, several, shardings = _compiled(shape_of(config), task, layout)
    values, init_data = hyperparameters(config), np.asarray(jax.random.key_data(init_key))

    template = state_template(config, task)

    def init() -> TrainState:
        if initial is None:
            return init_from(init_data, values)
        lie = None if shardings is None else shardings.params
        begin = _begin(shape_of(config), task, layout)
        return begin(initial.read(lie), init_data, values)

    def evaluate(state: TrainState) -> dict[str, float]:
        assert held_out is not None
        rows = held_out(log_config.evaluation_windows)
        mesh = None if layout is None else layout.mesh
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
        shardings=shardings,
        resumed=partial(with_hyperparameters, **values),
        # The host of a CPU program takes processors from it, an accelerator does not wait for it.
        several=several if jax.default_backend() == "cpu" else None,
    )._replace(template=template)


def run_keys(seed: int) -> Key:
    """The keys of the parameters, the batches, the steps and the evaluation. [4]"""
    check_seed("seed", seed)
    return jax.random.split(jax.random.key(seed), 4)


def init_and_step(
    shape: TrainConfig, task: Task | None = None
) -> tuple[Callable[[Key, Mapping[str, Array]], TrainState], TrainStep]:
    """(key, hyperparameters) → state, and the step, for all configs of that shape; not compiled."""
    task = task_of(shape) if task is None else task
    optimizer = make_optimizer(shape.optimizer, shape.num_steps)
    step = make_train_step(
        task.losses,
        optimizer,
        num_micro_batches=shape.num_micro_batches,
        ema_decay=shape.ema_decay,
        freeze=shape.optimizer.freeze,
        lora=shape.lora,
    )

    def init(key: Key, values: Mapping[str, Array]) -> TrainState:
        state = init_state(key, task, optimizer, **state_options(shape))
        return with_hyperparameters(state, **values)

    return init, step


def begin_from(
    shape: TrainConfig,
) -> Callable[[Params, Key, Mapping[str, Array]], TrainState]:
    """(params, key, hyperparameters) → state at step 0, whose buffers are its own; not compiled.

    The key draws adapters, if there are any: the same as in a run whose parameters are drawn too.
    """
    optimizer = make_optimizer(shape.optimizer, shape.num_steps)

    def begin(params: Params, key: Key, values: Mapping[str, Array]) -> TrainState:
        params = jax.tree.map(jnp.copy, params)
        if shape.lora.adapts:
            params = with_adapters(key, params, shape.lora)
        state = state_of(params, optimizer, **state_options(shape))
        return with_hyperparameters(state, **values)

    return begin


@cache
def _begin(shape: TrainConfig, task: Task, layout: Layout | None) -> Callable[..., TrainState]:
    """`begin_from` of the data of a key, compiled."""
    begin = begin_from(shape)

    def from_data(params: Params, data: Array, values: Mapping[str, Array]) -> TrainState:
        return begin(params, jax.random.wrap_key_data(data), values)

    if layout is None:
        return jax.jit(from_data)
    template = state_template(shape, task)
    return jax.jit(from_data, out_shardings=state_shardings(template, *layout))


@cache  # members that one process trains share what was compiled
def _compiled(shape: TrainConfig, task: Task, layout: Layout | None) -> tuple[Any, Any, Any, Any]:
    init, step = init_and_step(shape, task)
    if layout is None:
        from_data = jax.jit(lambda data, values: init(jax.random.wrap_key_data(data), values))

        def several(batches: Batches, *args: Any) -> tuple[TrainState, StepMetrics]:
            return several_updates(lambda *given: step(*given[:3]), batches, *args)

        return (
            from_data,
            jax.jit(step, donate_argnums=0),
            jax.jit(several, donate_argnums=3),
            None,
        )
    template = state_template(shape, task)
    shardings = state_shardings(template, *layout)
    return sharded_init(init, shardings), sharded_update(step, template, layout), None, shardings
