"""Verify statements: the largest residual, the smallest falsifier, and whether they pass."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Literal, NamedTuple

import numpy as np

from dfm_jax.checks import check_count, check_seed, require
from dfm_jax.exact import MAX_DENSE_STATES, RefusedError
from dfm_jax.theory.cases import Cases, Shape, draw_cases
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


def verify(
    labels: Sequence[str] = (),
    *,
    seed: int = 0,
    instances: int = 240,
    shape: Shape = MAIN_SHAPE,
    shapes: Literal["default", "all"] = "default",
    precision: Precision = "float64",
    num_devices: int = 1,
) -> Iterator[Row]:
    """Verify the statements one after another, by default all of them.

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

    Raises:
        ValueError: if a label is unknown; if there are fewer than 16 instances; if a space is too
            large to list.
    """
    check_count("instances", instances, at_least=16)
    check_shape(shape)
    _check_fit(instances, shape)
    chosen = [find_statement(label) for label in labels] or in_order()
    check_seed("seed", seed)
    run = Run(precision, num_devices)
    batches = _draw(shape, shapes, instances, seed)
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


def _draw(shape: Shape, shapes: str, instances: int, seed: int) -> list[Cases]:
    on_the_edge = instances // 8
    others = [shape] if shapes == "default" else [shape, *MORE_SHAPES]
    share, rest = divmod(instances - on_the_edge, len(others))
    counts = [share + (i < rest) for i in range(len(others))]
    batches = [draw_cases(s, count, seed) for s, count in zip(others, counts, strict=True)]
    return [*batches, draw_cases(EDGE_SHAPE, on_the_edge, seed)]


def _judge(statement: Statement, batches: list[Cases], run: Run) -> Row:
    tolerance = TOLERANCE[run.precision]
    generic = [cases for cases in batches if cases.generic.any()]
    residuals = [_measured(statement.residual, cases, run, np.inf) for cases in batches]
    falsifiers = [
        _measured(statement.falsifier, cases, run, 0.0)[cases.generic] for cases in generic
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
    )


def _measured(measure: Callable, cases: Cases, run: Run, if_refused: float) -> np.ndarray:
    """One number per case; a value that the oracle refuses, such as no distribution, fails."""
    try:
        with np.errstate(divide="ignore", invalid="ignore"):  # falsifiers may leave the domain
            return measure(cases, run)
    except RefusedError as refusal:
        logging.getLogger(__name__).warning("refused by the oracle: %s", refusal)
        return np.full(len(cases), if_refused)
