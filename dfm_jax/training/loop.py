"""The loop: steps until the last, saved, logged, evaluated; stopped by a signal or a NaN."""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from dfm_jax.training.batches import Batches
from dfm_jax.training.config import Watch
from dfm_jax.training.distributed import Onlooker, agree_to_stop, all_or_none, is_first
from dfm_jax.training.metrics import MetricsLog
from dfm_jax.training.retention import Resumed, Saver, resume_together, sole_writer
from dfm_jax.training.state import TrainState
from dfm_jax.training.step import StepMetrics, TrainStep
from dfm_jax.training.stopping import NonFiniteError, StopRequest
from dfm_jax.types import Key

METRICS = "metrics.jsonl"


class Run(NamedTuple):
    """A run as pure functions: what comes out depends on nothing else."""

    init: Callable[[], TrainState]
    update: Callable[[TrainState, int], tuple[TrainState, Any]]  # (state, s) → (state, metrics)
    evaluate: Callable[[TrainState], dict[str, float]] | None
    num_steps: int
    numbers: Callable[[Any], dict[str, float]]  # of metrics that have been fetched, to log
    placed: Any = None  # shardings of the state's leaves; None: the default device
    resumed: Callable[[Any], Any] = lambda state: state  # of a checkpoint of a shorter run


def keyed_run(
    init: Callable[[], TrainState],
    step: TrainStep,
    batches: Batches,
    batch_key: Key,
    step_key: Key,
    *,
    num_steps: int,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    placed: Any = None,
    resumed: Callable[[TrainState], TrainState] = lambda state: state,
) -> Run:
    """Update s takes `batches(batch_key, s)` and `fold_in(step_key, s)`; `step` is compiled."""

    def update(state: TrainState, index: int) -> tuple[TrainState, StepMetrics]:
        return step(state, batches(batch_key, index), jax.random.fold_in(step_key, index))

    def numbers(metrics: StepMetrics) -> dict[str, float]:
        values = {name: float(value) for name, value in metrics._asdict().items()}
        return values | {"num_tokens": int(metrics.num_tokens)}

    return Run(init, update, evaluate, num_steps, numbers, placed, resumed)


class Outcome(NamedTuple):
    """Where a run has got to, and how."""

    step: int
    began_at: int  # the step that it went on from; equal to `step` if nothing was left to do
    finished: bool
    metrics: dict[str, float]  # the last of each name


def train(
    run: Run,
    folder: Path,
    *,
    config: dict[str, Any],
    watch: Watch | None = None,
    stop: StopRequest | None = None,
    tensorboard: bool = False,
    before_first: Callable[[], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Go on with a run from its last good checkpoint in `folder` to its end, or to a signal.

    Update s is a function of the state and s, so a run that was killed at any moment and resumed
    ends with the same bits as one that was not. The state may be given up to it. One that is
    finished goes on if `run` is longer than it was, where the updates made are those of the longer
    run: see `differences_until`.

    Of several processes, see `distributed`, the first alone writes. A signal to any of them is
    acted on by all at the next step that is logged, saved or evaluated, for only there do they ask
    each other.

    Args:
        run: see `Run`.
        folder: of this member of the run; made if it is not there.
        config: goes with every checkpoint, and must be that of those found, but for its length.
        watch: how often to log, evaluate and save.
        stop: asked after every step, or see above.
        tensorboard: write event files too, to `folder/tensorboard`.
        before_first: called before this start writes its first checkpoint, by the first process.
        say: what tells the user; by default stderr.

    Raises:
        NonFiniteError: naming step, folder and last good checkpoint.
        CheckpointError: if the folder holds another run, or no checkpoint in it is good.
        TemporaryError: if another process is training there.
    """
    watch = Watch() if watch is None else watch
    stop = StopRequest() if stop is None else stop
    say = (lambda text: print(text, file=sys.stderr)) if say is None else say
    with contextlib.ExitStack() as stack:
        with all_or_none():
            if is_first():
                stack.enter_context(sole_writer(folder))
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
        log = saver = Onlooker()
        with all_or_none():
            if is_first():
                events = folder / "tensorboard" if tensorboard else None
                log = MetricsLog(folder / METRICS, tensorboard=events)
                log.begin(found.step)
                stack.callback(log.close)
                saver = stack.enter_context(Saver(folder, config=config, keep_last=watch.keep_last))
        with stop.between_steps():
            return _Loop(run, folder, watch, log, saver, before_first).steps(found, stop)


def _template(run: Run) -> Any:
    """The shapes of a state, and where each leaf lies."""
    shapes = jax.eval_shape(run.init)
    if run.placed is None:
        return shapes
    return jax.tree.map(
        lambda leaf, lies: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=lies),
        shapes,
        run.placed,
    )


class _Loop:
    """The steps of one process; the metrics of the last few wait on the device."""

    def __init__(
        self,
        run: Run,
        folder: Path,
        watch: Watch,
        log: MetricsLog | Onlooker,
        saver: Saver | Onlooker,
        before_first: Callable[[], None] | None,
    ) -> None:
        self.run, self.folder, self.watch, self.before_first = run, folder, watch, before_first
        self.log, self.saver = log, saver
        self.pending: list[tuple[int, Any]] = []
        self.values: dict[str, float] = {}
        self.saved = 0

    def steps(self, found: Resumed, stop: StopRequest) -> Outcome:
        """From the step found to the last, or to a signal."""
        run, watch = self.run, self.watch
        state, self.saved = found.state, found.step
        bar = tqdm(
            total=run.num_steps,
            initial=found.step,
            unit="step",
            disable=None if is_first() else True,
            dynamic_ncols=True,
        )
        with bar:
            self.bar, self.clock = bar, time.perf_counter()
            for step in range(found.step, run.num_steps):
                state, metrics = run.update(state, step)
                done = step + 1
                self.pending.append((done, metrics))
                last = done == run.num_steps
                evaluates = run.evaluate and (done % watch.evaluate_every == 0 or last)
                looks = done % watch.log_every == 0 or done % watch.save_every == 0
                looks = looks or evaluates or last
                # Once: a signal may come between two questions.
                asked = (looks or jax.process_count() == 1) and agree_to_stop(stop)
                ends = last or asked
                if looks or asked:
                    self.look()
                measured = self.evaluation(done, state) if evaluates else {}
                if done % watch.save_every == 0 or ends:
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

    def look(self) -> None:
        """Fetch the metrics that wait; judge each, log those of the steps that are logged."""
        fetched, self.pending = jax.device_get(self.pending), []
        waiting = [(step, self.run.numbers(metrics)) for step, metrics in fetched]
        tokens = sum(values["num_tokens"] for _, values in waiting)
        now = time.perf_counter()
        speed, self.clock = tokens / max(now - self.clock, 1e-9), now
        for step, values in waiting:
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            if bad:
                self.log.flush()
                raise NonFiniteError(self.complaint(step, bad[0], values[bad[0]]))
            self.values |= values
            if step % self.watch.log_every == 0 or step == self.run.num_steps:
                self.log.write(step, **values, tokens_per_second=speed)
        self.bar.update(len(waiting))
        loss = f"{self.values['loss']:.4f} nats, " if "loss" in self.values else ""
        self.bar.set_postfix_str(f"{loss}{speed:,.0f} tokens/s")

    def evaluation(self, step: int, state: TrainState) -> dict[str, float]:
        """Measure, log, and leave the time that it took out of the speed."""
        assert self.run.evaluate is not None
        measured = self.run.evaluate(state)
        for name, value in measured.items():
            if not math.isfinite(value):
                raise NonFiniteError(self.complaint(step, name, value))
        self.log.write(step, **measured)
        self.values |= measured
        self.clock = time.perf_counter()
        return measured

    def complaint(self, step: int, name: str, value: float) -> str:
        """What stopped the run, where, and what is left."""
        self.saver.wait()
        good = f"{self.folder / str(self.saved)}" if self.saved else "none; nothing was saved yet"
        return (
            f"{name} is {value} at step {step} of the run {self.folder}; the last good checkpoint "
            f"is {good}."
        )
