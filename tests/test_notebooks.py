"""The notebooks: sources and executed twins are one, small, and hide nothing in long functions.

That they run is the stage `notebooks` of `.ci/run` (`make notebooks`).
"""

import ast
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]*.py"))
MAX_BYTES = 400_000
MAX_FUNCTION_LINES = 10


def executed(source):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def cells(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def long_functions(text):
    """Functions of more than ten lines, docstring and decorators aside."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = 1 + node.body[-1].end_lineno - (body[0].lineno if body else node.lineno)
            if lines >= MAX_FUNCTION_LINES:
                yield f"{node.name}: {lines + 1} lines"


def test_there_are_seven():
    assert [source.name[0] for source in SOURCES] == list("1234567")
    assert sorted(p.stem for p in FOLDER.glob("*.ipynb")) == [p.stem for p in SOURCES]


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_source_and_executed_notebook_are_one(source):
    assert cells(jupytext.read(source)) == cells(executed(source)), "run: make notebooks-anew"


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_it_was_executed_from_top_to_bottom_and_is_small(source):
    code = [cell for cell in executed(source).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs), "no picture"
    assert source.with_suffix(".ipynb").stat().st_size < MAX_BYTES


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_no_function_is_longer_than_ten_lines(source):
    assert not list(long_functions(source.read_text("utf-8")))


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_it_imports_the_package_and_no_study_but_text(source):
    text = source.read_text("utf-8")
    assert re.search(r"^(from|import) dfm_jax", text, flags=re.MULTILINE) or source.name[0] == "6"
    imported = re.findall(r"^\s*(?:from|import) (experiments\S*)", text, flags=re.MULTILINE)
    assert set(imported) <= {"experiments.lib.domains"}


def test_a_long_function_is_seen():
    body = "\n".join(["    x = 1"] * 10)
    assert list(long_functions(f"def f():\n{body}")) == ["f: 11 lines"]
    assert not list(long_functions("def f():\n    '''What.'''\n" + "\n".join(["    x = 1"] * 9)))
