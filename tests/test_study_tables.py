"""The README of the experiments shows what was committed, table by table, and nothing else."""

import json
from pathlib import Path

import pytest

import experiments
from experiments.generation import report as generation_report
from experiments.language import report as language_report
from experiments.multimodal import report as multimodal_report
from experiments.regimes import report as regimes_report
from experiments.synthetic import report as synthetic_report
from experiments.systems.benchmarks import report as benchmarks_report
from experiments.systems.stacks import report as stacks_report

RESULTS = Path(experiments.__file__).parent / "results"
README = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
REPORTS = {
    "language": language_report,
    "regimes": regimes_report,
    "multimodal": multimodal_report,
    "synthetic": synthetic_report,
    "generation": generation_report,
    "benchmarks": benchmarks_report,
    "stacks": stacks_report,
}
NUM_TABLES = {
    "language": 4,
    "regimes": 4,
    "multimodal": 10,
    "synthetic": 5,
    "generation": 3,
    "benchmarks": 3,
    "stacks": 4,
}


def _committed(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _tables(name, result):
    """All but the terms of every cell of `regimes`, and single rows of `benchmarks`: too many."""
    tables = REPORTS[name].markdown(result)
    if name == "benchmarks":
        return tables[:3]
    return [table for table in tables if not table.startswith("| variant | bytes | own |")]


@pytest.mark.parametrize("name", REPORTS)
def test_the_readme_shows_what_was_committed(name, capsys):
    result = _committed(name)
    tables = _tables(name, result)
    assert len(tables) == NUM_TABLES[name]
    for table in tables:
        assert table in README
    assert REPORTS[name].main([str(RESULTS / f"{name}.json")]) == 0
    assert capsys.readouterr().out == "\n\n".join(REPORTS[name].markdown(result)) + "\n"


@pytest.mark.parametrize("name", REPORTS)
def test_another_number_is_not_in_the_readme(name):
    """The falsifier of the test above: a thousandth of one difference."""
    changed = _committed(name)
    if name == "benchmarks":
        slopes = changed["summary"]["workloads"]["generalized KL"]["slopes"]
        slopes["ours, fast"] += 0.01
        assert not all(table in README for table in _tables(name, changed))
        return
    if name == "stacks":
        changed["summary"]["training_step"]["newest"]["compile_s"] += 0.01
        assert not all(table in README for table in _tables(name, changed))
        return
    row = (changed["rows"] if name == "generation" else changed["summary"]["comparisons"])[0]
    if name == "generation":
        row["tv"] *= 1.1
    elif name in ("multimodal", "synthetic"):
        row["accuracy"] += 0.001
    else:
        judged = row["minus"]["dense"] if name == "language" else row
        judged["mean"] += 0.001
    assert not all(table in README for table in _tables(name, changed))


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("other", ["equality.json", "nowhere.json", "counting.png"])
def test_another_file_is_refused(name, other, capsys):
    assert REPORTS[name].main([str(RESULTS / other)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m experiments.{name}.report: ")
    assert other in error
