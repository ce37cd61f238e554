"""The script of hostile and unlucky inputs, case by case: `python tests/hostile_inputs.py`."""

import hostile_inputs
import pytest


@pytest.mark.parametrize("case", hostile_inputs.CASES, ids=lambda case: case.what)
def test_a_hostile_input_is_refused_in_one_line_and_writes_nothing(case):
    assert hostile_inputs.fault(case) == (False, False, False, "")


def test_a_fault_is_seen():
    """Of a case that expects the wrong words, and of one that is no fault at all."""
    case = hostile_inputs.CASES[0]
    assert "does not say 'moon'" in hostile_inputs.fault(case._replace(words="moon"))[3]
    good = hostile_inputs.Case(
        "nothing",
        "score --benchmark gqa --questions q.jsonl --predictions p.jsonl --json out",
        "",
        hostile_inputs.scored({"answer": "x"}),
    )
    silent, _, _, amiss = hostile_inputs.fault(good)
    assert silent
    assert "status 0, not 2" in amiss
    assert "wrote out" in amiss
