"""All steps of a run, saved, logged and evaluated, from its last good checkpoint to its end."""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from dfm_jax.storage.folders import Folder, StorePath
from dfm_jax.training.batches import ArrayBatches, Batches, whole_batch
from dfm_jax.training.checkpoint import Resumed, Saver, resume_together, sole_writer
from dfm_jax.training.config import LogConfig
from dfm_jax.training.distributed import NullLogger, agree_to_stop, all_or_none, is_first
from dfm_jax.training.metrics import MetricsLog
from dfm_jax.training.state import TrainState
from dfm_jax.training.step import MOST_UPDATES, StepMetrics, TrainStep
from dfm_jax.training.stopping import NonFiniteError, StopRequest
from dfm_jax.training.trackers import Tracker, open_tracker, warn_of_tensorboard
from dfm_jax.types import Key

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
