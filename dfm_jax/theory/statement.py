"""A statement has a label, words, a residual and a falsifier; the ledger lists all statements."""

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Literal

import numpy as np

from dfm_jax.checks import require
from dfm_jax.theory.cases import Cases
from dfm_jax.theory.runs import Run

Kind = Literal["definition", "identity", "inequality", "limit"]
Residual = Callable[..., np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One labeled statement of the theory, as code.

    `residual(cases, run)` must vanish. It is one number per case: the largest gap of an identity,
    or the largest violation of an inequality. `residual(cases, run, **broken)` is the falsifier:
    the same with one hypothesis replaced, which must not vanish on generic cases.
    """

    label: str
    words: str
    source: str
    kind: Kind
    falsifier_words: str
    residual: Residual
    broken: dict[str, Any] = field(default_factory=dict)

    def falsifier(self, cases: Cases, run: Run) -> np.ndarray:
        """The residual with one hypothesis broken."""
        return self.residual(cases, run, **self.broken)


LEDGER: dict[str, Statement] = {}

SECTIONS = {
    "P": "Paths",
    "V": "Velocities in continuous time",
    "C": "Continuity",
    "Q": "Discrete time",
    "A": "Autoregression is a flow",
    "L": "Objectives",
    "D": "Decentralization",
    "B": "Accounting",
    "S": "Samplers",
    "X": "Your own",  # of files outside the package
}


def in_order() -> list[Statement]:
    """The ledger in the order of the theory."""
    sections = list(SECTIONS)
    return sorted(LEDGER.values(), key=lambda s: (sections.index(s.label[0]), int(s.label[1:])))


def statement(
    label: str, words: str, *, source: str, kind: Kind, falsifier: str, **broken: Any
) -> Callable[[Residual], Residual]:
    """Add a residual to the ledger; `broken` are the keywords that make it a falsifier.

        @statement("D4", "u_t = Σ_k r_k u_t^k", source="DAG", kind="identity",
                   falsifier="a static gate", gate=static)
        def mixed_velocity(cases, run, *, gate=bayes): ...

    Statements in a file of your own have the letter X. If the same function is added again, for
    example because the cell of a notebook is run twice, it replaces itself.

    Raises:
        ValueError: if the label is not a letter of `SECTIONS` followed by a number; if another
            residual has this label; if `broken` is empty.
    """

    def enter(residual: Residual) -> Residual:
        letters = ", ".join(SECTIONS)
        rule = f"`label` must be one of the letters {letters}, followed by a number from 1 on"
        known = re.fullmatch(f"[{''.join(SECTIONS)}][1-9][0-9]*", label)
        require(known is not None, rule, label)
        if label in LEDGER and _home(LEDGER[label].residual) != _home(residual):
            rule = "`label` must be new"
            owner = ".".join(_home(LEDGER[label].residual))
            raise ValueError(f"{rule}; got label = {label!r}, which {owner} has in the ledger.")
        if not broken:
            rule = "`broken` must be a keyword of the residual, with a value that makes it fail"
            raise ValueError(f"{rule}; got broken = {{}} for {label}.")
        LEDGER[label] = Statement(
            label=label,
            words=words,
            source=source,
            kind=kind,
            falsifier_words=falsifier,
            residual=residual,
            broken=broken,
        )
        return residual

    return enter


def unbroken(part: Residual) -> Residual:
    """Mark a part of a residual that depends on its arguments alone, so it is computed once.

    The falsifier of a statement breaks one hypothesis. What it leaves as it is, it takes from the
    residual of the same cases. The arguments after `cases` and `run` are a key: they are hashable.
    """

    @wraps(part)
    def once(cases: Cases, run: Run, *args: Hashable) -> np.ndarray:
        return cases.remembered((part, run, *args), lambda drawn: part(drawn, run, *args))

    return once


def gap(left: np.ndarray, right: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """max |left − right| per case: [I]. Equal infinities have gap 0; a NaN inside `where` is +∞."""
    left, right = np.broadcast_arrays(left, right)
    with np.errstate(invalid="ignore"):
        apart = np.where(left == right, 0.0, np.abs(left - right))
    if where is not None:
        apart = np.where(_expand(where, apart.ndim), apart, 0.0)
    apart = np.where(np.isnan(apart), np.inf, apart)
    return apart.reshape(len(apart), -1).max(axis=1)


def excess(smaller: np.ndarray, larger: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """max of smaller − larger per case, or 0 if the inequality holds: [I]. A NaN is +∞."""
    smaller, larger = np.broadcast_arrays(smaller, larger)
    with np.errstate(invalid="ignore"):
        over = np.where(smaller == larger, 0.0, smaller - larger)
    if where is not None:
        over = np.where(_expand(where, over.ndim), over, 0.0)
    over = np.where(np.isnan(over), np.inf, np.maximum(over, 0.0))
    return over.reshape(len(over), -1).max(axis=1)


def worst(*residuals: np.ndarray) -> np.ndarray:
    """The largest of several residuals, for each case."""
    return np.max(np.stack(residuals), axis=0)


def _home(residual: Residual) -> tuple[str, str]:
    return residual.__module__, residual.__qualname__


def _expand(where: np.ndarray, ndim: int) -> np.ndarray:
    return where.reshape(where.shape + (1,) * (ndim - where.ndim))
