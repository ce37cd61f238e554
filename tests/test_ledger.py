"""The labels are one list: in the theory's ledger, in docstrings, in tests, in EQUATIONS.md."""

import ast
import inspect
import types
from pathlib import Path

import pytest

from dfm_jax.theory import LEDGER, equations
from dfm_jax.theory.ledger import citations, cited_labels

ROOT = Path(__file__).parents[1]
KINDS = {"definition", "identity", "inequality", "limit"}
SOURCES = {"DAG", "DFM", "FMG", "KO", "DFM-C", "DDM", "cBTM", "SmallTalk", "own", "known"}
SOURCES |= {"MD4", "RADD", "OeMDM", "CCL", "EB"}


def labels_marked_in(source: str) -> set[str]:
    """The literal labels of `@pytest.mark.statement(...)`."""
    return {
        argument.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "statement"
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }


def test_every_statement_is_cited_by_a_public_function():
    assert set(LEDGER) - set(citations()) == set()


def test_every_cited_label_is_in_the_ledger():
    assert set(citations()) - set(LEDGER) == set()


def test_every_marked_label_is_a_statement():
    marked = set().union(*(labels_marked_in(p.read_text("utf-8")) for p in ROOT.glob("tests/*.py")))
    assert marked - set(LEDGER) == set()
    assert marked


def named_in(code):
    """Every global or attribute that a code object speaks of, functions inside it included."""
    inside = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(named_in, inside))


def reached_from(function):
    """The functions that a function may call, by the names in its code and its defaults."""
    todo, seen = [function], set()
    while todo:
        one = inspect.unwrap(todo.pop()) if callable(todo[-1]) else todo.pop()
        if not isinstance(one, types.FunctionType) or one in seen:
            continue
        seen.add(one)
        names = named_in(one.__code__)
        held = [one.__globals__[name] for name in names if name in one.__globals__]
        for value in held:
            if isinstance(value, types.ModuleType) and value.__name__.startswith("dfm_jax"):
                todo += [getattr(value, name) for name in names if hasattr(value, name)]
        todo += held + list(one.__defaults__ or ()) + list((one.__kwdefaults__ or {}).values())
        todo += [cell.cell_contents for cell in one.__closure__ or ()]
    return seen


def test_every_row_calls_the_functions_that_cite_it():
    """A row that never calls what it claims to judge holds whatever that function does.

    Draws are another matter: their distributions are judged by counting (`tests/test_paths.py`).
    """
    missed = set()
    for label, names in citations().items():
        calls = {(f.__module__, f.__name__) for f in reached_from(LEDGER[label].residual)}
        for module, name in (full.split(".") for full in names):
            called = any(m.startswith(f"dfm_jax.{module}") and n == name for m, n in calls)
            if not called and not name.startswith("sample_"):
                missed.add((label, name))
    assert missed == set()


def test_equations_page_is_in_step():
    page = (ROOT / "EQUATIONS.md").read_text("utf-8")
    assert page == equations(), "run: python -m dfm_jax equations --out EQUATIONS.md"


@pytest.mark.parametrize("label", LEDGER)
def test_rows_are_complete(label):
    row = LEDGER[label]
    assert row.kind in KINDS
    assert {part.split()[0] for part in row.source.split(", ")} <= SOURCES
    assert row.words
    assert row.falsifier_words
    assert row.broken, "a falsifier breaks something"
    assert row.residual.__doc__


def test_the_letter_x_is_left_to_the_users():
    assert [label for label in LEDGER if label[0] == "X"] == []


def test_citations_are_read_as_written():
    assert cited_labels("u = 1   [D4, D13]") == {"D4", "D13"}
    assert cited_labels("see [S7b] and [S7a]") == {"S7"}
    assert cited_labels("a caption   [P1–P7]") == set()
    assert cited_labels("an axis [K, N] and x[0]") == set()


def test_marks_are_read_as_written():
    assert labels_marked_in("@pytest.mark.statement('D4', 'B1')\ndef test(): ...") == {"D4", "B1"}
