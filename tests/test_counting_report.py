"""What is shown of `experiments.counting`: the tables of the README, and of the screen."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from experiments.counting import __main__ as counting
from experiments.counting import report as counting_report
from experiments.counting import screen as counting_screen_report
from experiments.lib import gate_comparison_report

RESULT = Path(counting.__file__).parents[1] / "results" / "counting.json"
README = (RESULT.parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def committed():
    return json.loads(RESULT.read_text(encoding="utf-8"))


def test_the_readme_shows_what_was_committed(committed, capsys):
    tables = counting_report.markdown(committed)
    assert len(tables) >= 3
    for table in tables:
        assert table in README
    claims = {v["statement"]: v["value"] for v in committed["verdicts"][::-1]}
    assert f"**{claims['B1']:.1e}**" in README
    assert counting_report.main([str(RESULT)]) == 0
    assert capsys.readouterr().out == "\n\n".join(tables) + "\n"


def test_another_number_is_not_in_the_readme(committed):
    """The falsifier of the test above: a digit of each table."""
    for evaluation_set, field in (("reset", "dense"), ("spliced", "bayes")):
        changed = json.loads(json.dumps(committed))
        (row,) = gate_comparison_report.select(
            changed["rows"],
            evaluation_set=evaluation_set,
            partition="file",
            gate="static",
            top="full",
        )
        row["minus"][field]["mean"] += 0.001
        assert not all(table in README for table in counting_report.markdown(changed))


@pytest.fixture
def informed(committed):
    """As if gates had read contexts, and the documents were partitioned in a fifth way."""
    changed = json.loads(json.dumps(committed))
    static = [
        row
        for row in changed["rows"]
        if row["gate"] == "static" and row["evaluation_set"] in ("reset", "spliced")
    ]
    for gate in ("likelihood", "likelihood × Bayes"):
        changed["rows"] += [row | {"gate": gate} for row in static]
    changed["rows"] += [
        row | {"partition": "likelihood"}
        for row in gate_comparison_report.select(changed["rows"], partition="random")
    ]
    partitions = changed["summary"]["partitions"]
    partitions["likelihood"] = partitions["random"]
    for k, found in enumerate(partitions.values()):
        uses = {
            "fixed": {"temperature": 2.0 + k, "at_bound": k == 1},
            "prior": {"temperature": 3.0, "at_bound": False},
        }
        tuned = {"temperatures": {"likelihood": uses}, "empty": 3, "sequences": 12}
        found["evaluation_sets"]["reset"]["contexts"] = [tuned, tuned]
        found["router"] = [{"decay": 1e-4}, {"decay": 1e-3}]
    return changed


def test_gates_of_contexts_join_the_tables(informed):
    gate_comparison, account, evaluation_sets, fitted = counting_report.markdown(informed)
    assert "| likelihood × Bayes, top-1 | " in gate_comparison
    assert gate_comparison.startswith(
        "| ensemble − dense | domain | file | cluster | random | likelihood |"
    )
    assert "| domain: likelihood | " in account
    assert "| held out: likelihood × Bayes | " in evaluation_sets
    assert "| generated: likelihood | " not in evaluation_sets
    assert "| τ of likelihood | 2 | 3 (2 of 2 at the end searched) | " in fitted
    assert "| τ of likelihood × Bayes | 3 | 3 | 3 | " in fitted
    assert "| decay of router | 0.0001 to 0.001 | " in fitted
    assert "| windows without a context | 25% | 25% | 25% | " in fitted
    for table in (gate_comparison, account, evaluation_sets, fitted):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_tables_fit_a_narrow_screen(informed, capsys):
    console = Console(width=80)
    counting_screen_report.print_tables(console, informed["rows"], informed["summary"])
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("likelihood × Bayes") > 10
    for partition in ("domain", "file", "cluster", "random", "likelihood"):
        assert f"{partition}, K=" in shown


@pytest.mark.parametrize("name", ["equality.json", "nowhere.json", "counting.png"])
def test_another_file_is_refused(name, capsys):
    assert counting_report.main([str(RESULT.parent / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m experiments.counting.report: ")
    assert name in error
