"""Verify statements: the largest residual, the smallest falsifier, and whether they pass."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from difflib import get_close_matches
from importlib import import_module
from typing import Literal, NamedTuple

import jax
import numpy as np

from dfm_jax.checks import check_count, check_seed, require
from dfm_jax.exact import MAX_DENSE_STATES, RefusedError
from dfm_jax.theory.cases import Cases, Shape, draw_cases
from dfm_jax.theory.proofs import main_theorem
from dfm_jax.theory.runs import Precision, Run
from dfm_jax.theory.statement import LEDGER, Statement, in_order

MAIN_SHAPE = Shape(num_tokens=2, num_positions=3, num_experts=3)
EDGE_SHAPE = Shape(num_tokens=4, num_positions=1, num_experts=1)
MORE_SHAPES = (
    Shape(num_tokens=2, num_positions=1, num_experts=4),
    Shape(num_tokens=4, num_positions=2, num_experts=1),
    Shape(num_tokens=3, num_positions=2, num_experts=2),
    Shape(num_tokens=2, num_positions=4, num_experts=2),
)

# Error model. A residual is a difference of two numbers of size M ≤ 20 (rates near the end of
# time), one of them in the precision under test after n ≤ 100 roundings of ε/2 each, which have no
# common sign: M √n ε/2 = 100 ε, 1.2e-5 in float32. In float64 that is 2.2e-14; 1e-12 leaves room
# for the enumeration, whose sums are longer.
TOLERANCE: dict[Precision, float] = {
    "float64": 1e-12,
    "float32": 100 * float(np.finfo(np.float32).eps),
}
FALSIFIER_FACTOR: dict[Precision, float] = {"float64": 1e3, "float32": 10.0}


class Row(NamedTuple):
    """The result for one statement, as it is written to JSON."""

    label: str
    statement: str
    source: str
    kind: str
    residual: float
    tolerance: float
    falsifier: float
    instances: int
    falsifier_instances: int
    passed: bool
    proof: str = ""  # the theorem that Coq has checked, as `Experts.D4`, or ""


def verify(
    labels: Sequence[str] = (),
    *,
    seed: int = 0,
    instances: int = 240,
    shape: Shape = MAIN_SHAPE,
    shapes: Literal["default", "all"] = "default",
    precision: Precision = "float64",
    num_devices: int = 1,
    num_processes: int = 1,
) -> Iterator[Row]:
    """Verify the statements, by default all of them; rows come in the order of the labels.

    One case in eight has the edge shape (N = 1, K = 1); half of the others are generic. A statement
    passes if no residual exceeds the tolerance, and no falsifier on a generic case is below 1e3
    times it (10 times in float32). The tolerance is 1e-12 in float64. In float32 it is 1.2e-5, 100
    epsilons, for numbers up to 20 after 100 roundings.

    Args:
        labels: The labels of the statements; an unknown label is refused, with the nearest known
            one.
        seed: The seed of the random cases.
        instances: The number of cases, over all shapes.
        shape: V, N and K of the cases that are not on the edge.
        shapes: "all" spreads the cases over more shapes; each shape is compiled separately.
        precision: float64 on the host CPU, or float32 on the default device.
        num_devices: The number of devices over which the cases are mapped.
        num_processes: The number of processes that share the statements. All but this one are
            started for it, which takes a second; statements of your own stay in this one. In
            float32 on an accelerator there is one process in any case.

    Raises:
        ValueError: if a label is unknown; if there are fewer than 16 instances; if a space is too
            large to list.
    """
    check_count("instances", instances, at_least=16)
    check_shape(shape)
    _check_fit(instances, shape)
    chosen = [find_statement(label) for label in labels] or in_order()
    check_seed("seed", seed)
    check_count("num_processes", num_processes)
    work = _Work(shape, shapes, instances, seed, precision, num_devices)
    run = Run(precision, num_devices)
    shared = precision == "float64" or jax.default_backend() == "cpu"
    if num_processes > 1 and len(chosen) > 1 and shared:
        return _judged_together(chosen, work, run, min(num_processes, len(chosen)))
    batches = work.draw()
    return (_judge(statement, batches, run) for statement in chosen)


def import_statements(modules: Sequence[str]) -> list[str]:
    """Import modules that add statements to the ledger; return the labels of these statements.

    Raises:
        ValueError: if a module cannot be imported (the message has its error), or adds no
            statement.
    """
    labels: list[str] = []
    for module in modules:
        before = set(LEDGER)
        try:
            import_module(module)
        except Exception as error:  # whatever stops the file, it is the file's
            rule = "`modules` must name modules that import"
            said = f"`python -c 'import {module}'` says {type(error).__name__}: {error}"
            raise ValueError(f"{rule}; got module = {module!r}, where {said}") from error
        own = f"{module}."  # entered now, or by an earlier import
        entered = [
            label
            for label, statement in LEDGER.items()
            if label not in before or f"{statement.residual.__module__}.".startswith(own)
        ]
        rule = "Each of `modules` must enter a statement by `@statement`"
        require(bool(entered), rule, module, name="module")
        labels += [label for label in entered if label not in labels]
    return labels


def check_shape(shape: Shape) -> None:
    """Refuse shapes without positions, tokens or experts, and those too large to list.

    Raises:
        ValueError: if a shape is refused; if it is too large, the message has its size in bytes.
    """
    for name, value in shape._asdict().items():
        check_count(name, value)
    sources, data = shape.num_states**shape.num_positions, shape.num_tokens**shape.num_positions
    if sources > MAX_DENSE_STATES:
        raise ValueError(
            f"`shape` must have at most {MAX_DENSE_STATES} states, (V + 1)^N, because couplings "
            f"are listed pair by pair; got (V + 1)^N = {sources:,} for V = {shape.num_tokens} and "
            f"N = {shape.num_positions}. A case with K = {shape.num_experts} would take "
            f"{8 * shape.num_experts * sources * data:,} bytes."
        )


def find_statement(label: str) -> Statement:
    """The statement with a label.

    Raises:
        ValueError: if the ledger has none; the message has the nearest label.
    """
    if label not in LEDGER:
        near = get_close_matches(label.upper(), LEDGER, n=3, cutoff=0.0)
        rule = f"`labels` must name statements of the ledger, such as {', '.join(near)}"
        then = " Your own statements join the ledger when their file is imported."
        own = then if label[:1] == "X" else ""
        raise ValueError(f"{rule}; got label = {label!r}.{own}")
    return LEDGER[label]


def _check_fit(instances: int, shape: Shape) -> None:
    """Check that the experts' distributions of all cases fit in memory together."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    experts, token_probs = shape.num_experts, 8 * shape.num_tokens**shape.num_positions
    name, value = ("instances", instances) if instances >= experts else ("num_experts", experts)
    rule = f"`{name}` must be small enough for the memory of {memory:,} bytes"
    require(instances * experts * token_probs <= memory, rule, value)


class _Work(NamedTuple):
    """What every process needs to judge a statement on the same cases."""

    shape: Shape
    shapes: str
    instances: int
    seed: int
    precision: Precision
    num_devices: int

    def draw(self) -> list[Cases]:
        """The cases, the same in each process."""
        on_the_edge = self.instances // 8
        others = [self.shape] if self.shapes == "default" else [self.shape, *MORE_SHAPES]
        share, rest = divmod(self.instances - on_the_edge, len(others))
        counts = [share + (i < rest) for i in range(len(others))]
        batches = [draw_cases(s, count, self.seed) for s, count in zip(others, counts, strict=True)]
        return [*batches, draw_cases(EDGE_SHAPE, on_the_edge, self.seed)]


# ── several processes: the others judge from the front, this one from the end ─────────────────────


def _judged_together(
    chosen: Sequence[Statement], work: _Work, run: Run, num_processes: int
) -> Iterator[Row]:
    """The row of each statement, in order; programs are compiled in all processes at once."""
    before, started = set(multiprocessing.active_children()), set()
    spawn = multiprocessing.get_context("spawn")  # jax has threads, which a fork would lose
    others = ProcessPoolExecutor(num_processes - 1, spawn, _start, (work,))
    try:
        with _signals_stay_here():
            rows: list[Future[Row] | None] = [
                others.submit(_judge_by_label, statement.label) if _is_ours(statement) else None
                for statement in chosen
            ]
        started = set(multiprocessing.active_children()) - before
        mine: dict[int, Row] = {}
        batches = work.draw()
        for number, row in enumerate(rows):
            while number not in mine and not (row is not None and row.done()):
                last = _last_to_take(rows, mine)
                if last is None:
                    break
                mine[last] = _judge(chosen[last], batches, run)
            yield mine[number] if row is None or number in mine else row.result()
    except BaseException:
        for process in started:
            process.terminate()
        raise
    finally:
        others.shutdown(cancel_futures=True)


def _last_to_take(rows: Sequence[Future[Row] | None], mine: dict[int, Row]) -> int | None:
    """The number of the last statement that no process has begun; it is taken from the others."""
    for number in reversed(range(len(rows))):
        row = rows[number]
        if number not in mine and (row is None or row.cancel()):
            return number
    return None


def _is_ours(statement: Statement) -> bool:
    return statement.residual.__module__.startswith("dfm_jax.theory.statements.")


@contextlib.contextmanager
def _signals_stay_here() -> Iterator[None]:
    """In this context processes are started that ignore Ctrl-C; this one ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


_started: tuple[list[Cases], Run] | None = None  # of a process that `_start` made


def _start(work: _Work) -> None:
    """Draw the cases in a new process, and let it end when the process that started it ends."""
    global _started
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    if work.num_devices > 1:
        jax.config.update("jax_num_cpu_devices", work.num_devices)
    _started = work.draw(), Run(work.precision, work.num_devices)


def _judge_by_label(label: str) -> Row:
    assert _started is not None
    return _judge(LEDGER[label], *_started)


def _judge(statement: Statement, batches: list[Cases], run: Run) -> Row:
    tolerance = TOLERANCE[run.precision]
    generic = [cases for cases in batches if cases.generic.any()]
    residuals = [_measured(statement.residual, cases, run, np.inf) for cases in batches]
    falsifiers = [
        _measured(statement.falsifier, cases.with_generic_alone(), run, 0.0)[cases.generic]
        for cases in generic
    ]
    residual = float(np.max(np.concatenate(residuals)))
    broken = np.concatenate(falsifiers) if falsifiers else np.array([])
    falsifier = float(np.min(broken)) if broken.size else float("nan")
    return Row(
        label=statement.label,
        statement=statement.words,
        source=statement.source,
        kind=statement.kind,
        residual=residual,
        tolerance=tolerance,
        falsifier=falsifier,
        instances=sum(len(cases) for cases in batches),
        falsifier_instances=int(broken.size),
        passed=residual <= tolerance
        and (not broken.size or falsifier >= FALSIFIER_FACTOR[run.precision] * tolerance),
        proof=main_theorem(statement.label),
    )


def _measured(measure: Callable, cases: Cases, run: Run, if_refused: float) -> np.ndarray:
    """One number per case; a value that the oracle refuses, such as no distribution, fails."""
    try:
        with np.errstate(divide="ignore", invalid="ignore"):  # falsifiers may leave the domain
            return measure(cases, run)
    except RefusedError as refusal:
        logging.getLogger(__name__).warning("refused by the oracle: %s", refusal)
        return np.full(len(cases), if_refused)
