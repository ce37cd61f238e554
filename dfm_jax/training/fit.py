"""From a config and its data to a trained member: all steps, saved, logged and evaluated."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dfm_jax.checks import check_seed, require
from dfm_jax.data.columns import Columns
from dfm_jax.interfaces import Params, Task
from dfm_jax.models.pretrained import Checkpoint
from dfm_jax.parallel import state_shardings
from dfm_jax.storage.folders import Folder, StorePath
from dfm_jax.training.batches import ArrayBatches, Batches, whole_batch
from dfm_jax.training.checkpoint import Resumed, Saver, resume_together, sole_writer
from dfm_jax.training.config import (
    LogConfig,
    TrainConfig,
    config_digest,
    hyperparameters,
    shape_of,
)
from dfm_jax.training.conversation_rows import conversation_examples, usual_places
from dfm_jax.training.distributed import (
    Layout,
    NullLogger,
    agree_to_stop,
    all_or_none,
    check_same,
    in_turn,
    is_first,
    sharded_init,
    sharded_update,
)
from dfm_jax.training.evaluation import evaluated, ratio_with_interval
from dfm_jax.training.examples import Examples, MemberData, examples_of
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
from dfm_jax.training.metrics import MetricsLog, metric_name
from dfm_jax.training.pretrained import Initial, initial_params
from dfm_jax.training.state import (
    TrainState,
    init_state,
    make_optimizer,
    state_of,
    with_hyperparameters,
)
from dfm_jax.training.step import (
    MOST_UPDATES,
    StepMetrics,
    TrainStep,
    make_train_step,
    several_updates,
)
from dfm_jax.training.stopping import NonFiniteError, StopRequest
from dfm_jax.training.tasks import task_of
from dfm_jax.training.trackers import Tracker, open_tracker, warn_of_tensorboard
from dfm_jax.types import Array, Key

METRICS = "metrics.jsonl"


class Run(NamedTuple):
    """A run as pure functions, on which alone the result depends."""

    init: Callable[[], TrainState]
    update: Callable[[TrainState, int], tuple[TrainState, Any]]  # (state, s) → (state, metrics)
    evaluate: Callable[[TrainState], dict[str, float]] | None
    num_steps: int
    scalars: Callable[[Any], dict[str, float]]  # of metrics that have been fetched, to log
    shardings: Any = None  # shardings of the state's leaves; None: the default device
    resumed: Callable[[Any], Any] = lambda state: state  # of a checkpoint of a shorter run
    # (state, s, n) → the state after updates s … s + n − 1, with the bits of `update`, and their
    # metrics along a last axis, n ≤ `MOST_UPDATES`; None: updates are made one at a time.
    updates: Callable[[TrainState, int, int], tuple[TrainState, Any]] | None = None
    template: Any = None  # the shapes of the state; None: a trace of `init` finds them


def keyed_run(
    init: Callable[[], TrainState],
    step: TrainStep,
    batches: Batches,
    batch_key: Key,
    step_key: Key,
    *,
    num_steps: int,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    shardings: Any = None,
    resumed: Callable[[TrainState], TrainState] = lambda state: state,
    several: Callable[..., tuple[TrainState, StepMetrics]] | None = None,
) -> Run:
    """A run whose update s takes `batches(batch_key, s)` and `fold_in(step_key, s)`.

    `step` is compiled already. So is `several`, which is `several_updates` of it: if it is given,
    it makes all updates, and batches out of arrays are made inside its program.
    """
    inside = isinstance(batches, ArrayBatches)

    def one(state: TrainState, index: int) -> tuple[TrainState, StepMetrics]:
        return step(state, batches(batch_key, index), jax.random.fold_in(step_key, index))

    def updates(state: TrainState, start: int, count: int) -> tuple[TrainState, StepMetrics]:
        assert several is not None
        from_here = batches if inside else ArrayBatches(whole_batch, batches(batch_key, start), ())
        return several(from_here, start, count, state, batch_key, step_key)

    def one_of_several(state: TrainState, index: int) -> tuple[TrainState, StepMetrics]:
        state, metrics = updates(state, index, 1)
        return state, jax.tree.map(itemgetter(0), metrics)

    def scalars(metrics: StepMetrics) -> dict[str, float]:
        values = {name: float(value) for name, value in metrics._asdict().items()}
        return values | {"num_tokens": int(metrics.num_tokens)}

    if several is None:
        return Run(init, one, evaluate, num_steps, scalars, shardings, resumed)
    many = updates if inside else None
    return Run(init, one_of_several, evaluate, num_steps, scalars, shardings, resumed, many)


class Outcome(NamedTuple):
    """The step that a run has reached, and its result."""

    step: int
    began_at: int  # the step that it went on from; equal to `step` if nothing was left to do
    finished: bool
    metrics: dict[str, float]  # the last of each name


def train(
    run: Run,
    folder: Folder,
    *,
    config: dict[str, Any],
    log_config: LogConfig | None = None,
    stop: StopRequest | None = None,
    tracker: Tracker | None = None,
    tensorboard: bool = False,
    before_first: Callable[[], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Continue a run from its last good checkpoint in `folder` to its end, or until a signal.

    Update s is a function of the state and s. So a run that was killed at any moment and resumed
    ends with the same bits as a run that was never stopped. The state may be donated to the update.
    A finished run goes on if `run` is longer now and its updates so far are those of the longer
    run: see `differences_until`.

    With several processes, see `distributed`, only the first one writes. If one of them gets a
    signal, all stop at the next step that is logged, saved or evaluated, because only there do they
    communicate about signals.

    Args:
        run: The run, see `Run`.
        folder: The folder of this member of the run, on this disk or on an object store; it is made
            if it does not exist.
        config: The config, stored in every checkpoint; it must be that of the checkpoints found,
            except for its length.
        log_config: How often to log, evaluate and save.
        stop: The request to stop, checked after every call of the run's program, which makes one
            update, or as many as take about half a second if there is `Run.updates`; with several
            processes, see above.
        tracker: A function that the first process calls with the step and the numbers of each line
            of metrics.jsonl, in order; from the step that the run goes on from, see `trackers`.
            What it raises is told once, and the run goes on.
        tensorboard: The old way to ask for the tracker tensorboard, until version 0.3.
        before_first: A function that the first process calls before it writes its first checkpoint.
        say: A function that prints a message for the user; by default it prints to stderr.

    Raises:
        NonFiniteError: if a loss, a gradient or an update is not finite; the message names the
            step, the folder and the last good checkpoint.
        CheckpointError: if the folder holds another run, or none of its checkpoints is good.
        TemporaryError: if another process is training in the folder.
    """
    log_config = LogConfig() if log_config is None else log_config
    stop = StopRequest() if stop is None else stop
    say = (lambda text: print(text, file=sys.stderr)) if say is None else say
    with contextlib.ExitStack() as stack:
        if tensorboard:
            warn_of_tensorboard("tensorboard=True", "tracker=")
            tracker = stack.enter_context(open_tracker("tensorboard", folder, say=say))
        files = None
        with all_or_none():
            if is_first():
                files = stack.enter_context(sole_writer(folder, num_steps=run.num_steps))
        found = resume_together(folder, _template(run), config)
        for words in found.damaged if found else ():
            say(f"DAMAGED: {words}")
        if found is None:
            found = Resumed(0, run.init(), ())
        elif found.step < run.num_steps:
            found = found._replace(state=run.resumed(found.state))
            if is_first():
                say(f"{folder}: going on from step {found.step} of {run.num_steps}.")
        if found.step >= run.num_steps:
            return Outcome(found.step, found.step, True, {})
        log = saver = NullLogger()
        with all_or_none():
            if files is not None:
                path = files / METRICS
                if isinstance(folder, StorePath) and (folder / METRICS).is_file():
                    path.write_bytes((folder / METRICS).read_bytes())
                log = MetricsLog(path, tracker=tracker, say=say)
                log.begin(found.step)
                if isinstance(folder, StorePath):
                    folder.follow(path)
                stack.callback(log.close)
                saver = stack.enter_context(
                    Saver(folder, config=config, keep_last=log_config.keep_last, log=path)
                )
        with stop.between_steps():
            return _Loop(run, folder, log_config, log, saver, before_first).steps(found, stop)


def _template(run: Run) -> Any:
    """The shapes of a state, and the place of each leaf."""
    shapes = jax.eval_shape(run.init) if run.template is None else run.template
    if run.shardings is None:
        return shapes
    return jax.tree.map(
        lambda leaf, lies: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=lies),
        shapes,
        run.shardings,
    )


class _Loop:
    """The steps of one process; the metrics of the last few steps wait on the device."""

    def __init__(
        self,
        run: Run,
        folder: Folder,
        log_config: LogConfig,
        log: MetricsLog | NullLogger,
        saver: Saver | NullLogger,
        before_first: Callable[[], None] | None,
    ) -> None:
        self.run, self.folder, self.log_config = run, folder, log_config
        self.before_first = before_first
        self.log, self.saver = log, saver
        self.pending: list[tuple[int, Any]] = []
        self.values: dict[str, float] = {}
        self.saved = 0

    def steps(self, found: Resumed, stop: StopRequest) -> Outcome:
        """Run from the step found to the last one, or until a signal."""
        run, log_config = self.run, self.log_config
        state, self.saved = found.state, found.step
        bar = tqdm(
            total=run.num_steps,
            initial=found.step,
            unit="step",
            disable=None if is_first() else True,
            dynamic_ncols=True,
        )
        with bar:
            self.bar, self.last_logged = bar, time.perf_counter()
            done, pace = found.step, _Pace()
            while done < run.num_steps:
                if run.updates is None:
                    state, metrics = run.update(state, done)
                    done += 1
                    self.pending.append((done, metrics))
                else:
                    count = min(pace.count, self.until_event(done))
                    state, metrics = pace.timed(run.updates, state, done, count)
                    self.pending += [
                        (done + 1 + i, jax.tree.map(itemgetter((..., i)), metrics))
                        for i in range(count)
                    ]
                    done += count
                last = done == run.num_steps
                evaluates = run.evaluate and (done % log_config.evaluate_every == 0 or last)
                looks = done % log_config.log_every == 0 or done % log_config.save_every == 0
                looks = looks or evaluates or last
                # Once: a signal may come between two questions.
                asked = (looks or jax.process_count() == 1) and agree_to_stop(stop)
                ends = last or asked
                if looks or asked:
                    self.look()
                measured = self.evaluation(done, state) if evaluates else {}
                if done % log_config.save_every == 0 or ends:
                    with all_or_none():  # a disk that is full is full for all
                        self.log.flush()
                        self.saver.wait()
                        if self.before_first is not None and is_first():
                            self.before_first()
                        self.before_first = None
                    self.saver.save(done, state, measured)
                    self.saved = done
                if asked:
                    break
            with all_or_none():  # who ends before the last checkpoint is whole may take it along
                self.saver.wait()
        return Outcome(done, found.step, done == run.num_steps, self.values)

    def until_event(self, done: int) -> int:
        """The number of updates after which something is logged, evaluated or saved next."""
        told = self.log_config
        periods = (told.log_every, told.evaluate_every, told.save_every)
        return min(self.run.num_steps - done, *(every - done % every for every in periods))

    def look(self) -> None:
        """Fetch the metrics that wait, check that all are finite, and log those to be logged."""
        fetched, self.pending = jax.device_get(self.pending), []
        waiting = [(step, self.run.scalars(metrics)) for step, metrics in fetched]
        tokens = sum(values["num_tokens"] for _, values in waiting)
        now = time.perf_counter()
        speed, self.last_logged = tokens / max(now - self.last_logged, 1e-9), now
        for step, values in waiting:
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            if bad:
                self.log.flush()
                raise NonFiniteError(self.complaint(step, bad[0], values[bad[0]]))
            self.values |= values
            if step % self.log_config.log_every == 0 or step == self.run.num_steps:
                self.log.write(step, **values, tokens_per_second=speed)
        self.bar.update(len(waiting))
        loss = f"{self.values['loss']:.4f} nats, " if "loss" in self.values else ""
        self.bar.set_postfix_str(f"{loss}{speed:,.0f} tokens/s")

    def evaluation(self, step: int, state: TrainState) -> dict[str, float]:
        """Evaluate and log; the time for this does not count in the speed."""
        assert self.run.evaluate is not None
        measured = self.run.evaluate(state)
        for name, value in measured.items():
            if not math.isfinite(value):
                raise NonFiniteError(self.complaint(step, name, value))
        self.log.write(step, **measured)
        self.values |= measured
        self.last_logged = time.perf_counter()
        return measured

    def complaint(self, step: int, name: str, value: float) -> str:
        """The message that says what stopped the run, at which step, and what is left."""
        self.saver.wait()
        last = f"The last good checkpoint is {self.folder / str(self.saved)}."
        good = last if self.saved else "No checkpoint was saved yet."
        return (
            f"`{name}` must be finite; got {name} = {value} at step {step} of the run "
            f"{self.folder}. {good}"
        )


class _Pace:
    """The number of updates in a call: as many as take `SECONDS`, after which a signal is heard."""

    SECONDS = 0.5

    def __init__(self) -> None:
        self.count, self.compiled = 1, False

    def timed(self, updates: Any, state: TrainState, start: int, count: int) -> Any:
        """Make the updates, and learn from the time that they took."""
        begun = time.perf_counter()
        state, metrics = updates(state, start, count)
        metrics = jax.device_get(metrics)
        if self.compiled:
            each = (time.perf_counter() - begun) / count
            self.count = max(1, min(MOST_UPDATES, int(self.SECONDS / each)))
        self.compiled = True
        return state, metrics


# ── of a config and a folder of data ──────────────────────────────────────────────────────────────


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
        return _begin(shape_of(config), task, layout)(initial.read(lie), values)

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
    )

    def init(key: Key, values: Mapping[str, Array]) -> TrainState:
        options = {"ema": shape.ema_decay is not None, "freeze": shape.optimizer.freeze}
        state = init_state(key, task, optimizer, **options)
        return with_hyperparameters(state, **values)

    return init, step


@cache
def _begin(shape: TrainConfig, task: Task, layout: Layout | None) -> Callable[..., TrainState]:
    """(params, hyperparameters) → state, whose buffers are its own: the step donates them."""
    optimizer = make_optimizer(shape.optimizer, shape.num_steps)

    def begin(params: Params, values: Mapping[str, Array]) -> TrainState:
        copied = jax.tree.map(jnp.copy, params)
        options = {"ema": shape.ema_decay is not None, "freeze": shape.optimizer.freeze}
        state = state_of(copied, optimizer, **options)
        return with_hyperparameters(state, **values)

    if layout is None:
        return jax.jit(begin)
    template = state_template(shape, task)
    return jax.jit(begin, out_shardings=state_shardings(template, *layout))


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
