"""Every statement of the theory: its residual vanishes, its falsifier does not."""

import jax
import numpy as np
import pytest

from dfm_jax.theory import LEDGER, Shape, runs, verify
from dfm_jax.theory.draws import draw_cases
from dfm_jax.theory.statement import excess, gap, statement

# The labels of THEORY that this project verifies by enumeration, written out by hand.
LABELS = [
    "P1",
    "P2",
    "P3",
    "P4",
    "P5",
    "P6",
    "P7",
    "V1",
    "V2",
    "V3",
    "V4",
    "V5",
    "V6",
    "V7",
    "V8",
    "V9",
    "C1",
    "Q1",
    "Q2",
    "Q3",
    "Q4",
    "Q5",
    "Q6",
    "A1",
    "A2",
    "A3",
    "A4",
    "A5",
    "L1",
    "L2",
    "L3",
    "L4",
    "L5",
    "D1",
    "D2",
    "D3",
    "D4",
    "D5",
    "D6",
    "D7",
    "D8",
    "D9",
    "D10",
    "D11",
    "D12",
    "D13",
    "D14",
    "B1",
    "B2",
    "B3",
    "B4",
    "B5",
    "B6",
    "B7",
    "B8",
    "B9",
    "B10",
    "B11",
    "S1",
    "S2",
    "S3",
    "S4",
    "S5",
    "S6",
    "S7",
]


def test_the_ledger_is_the_theory():
    assert sorted(LEDGER) == sorted(LABELS)


@pytest.mark.parametrize(
    "label", [pytest.param(label, marks=pytest.mark.statement(label)) for label in LABELS]
)
def test_statement_holds_and_its_falsifier_does_not(label):
    (row,) = verify([label], instances=48, seed=1)
    assert row.residual <= 1e-12
    assert row.falsifier >= 1e-9
    assert row.passed


@pytest.mark.slow
def test_all_statements_on_many_shapes():
    failed = [row for row in verify(shapes="all", instances=224, seed=2) if not row.passed]
    assert not failed


@pytest.mark.slow
def test_all_statements_in_float32():
    failed = [row for row in verify(precision="float32", seed=3) if not row.passed]
    assert not failed


@pytest.mark.slow
def test_all_statements_mapped_over_8_devices():
    failed = [row for row in verify(num_devices=8, instances=64, seed=4) if not row.passed]
    assert not failed


@pytest.mark.statement("D5")
def test_devices_do_not_change_a_residual():
    (one,) = verify(["D5"], instances=32, seed=5)
    (eight,) = verify(["D5"], instances=32, seed=5, num_devices=8)
    assert eight.passed
    assert abs(one.falsifier - eight.falsifier) <= 1e-12


def test_refusals_name_argument_rule_and_value():
    with pytest.raises(ValueError, match=r"`labels` must name statements .* it names 'D99'"):
        list(verify(["D99"]))
    with pytest.raises(ValueError, match=r"`instances` must be at least 16; it is 3"):
        list(verify(["D4"], instances=3))
    with pytest.raises(ValueError, match=r"`num_experts` must be at least 1; it is 0"):
        list(verify(["D4"], shape=Shape(2, 2, 0)))
    with pytest.raises(ValueError, match=r"bytes"):
        list(verify(["D4"], shape=Shape(9, 3, 2), instances=16))
    with pytest.raises(ValueError, match="`label` must be new"):
        statement("D4", "", source="", kind="identity", falsifier="")(lambda cases, run: None)


def test_gap_and_excess_never_hide_a_nan():
    nan, one = np.array([[np.nan]]), np.array([[1.0]])
    assert gap(nan, one) == np.inf
    assert excess(nan, one) == np.inf
    assert gap(nan, one, np.array([False])) == 0
    assert gap(np.array([[np.inf]]), np.array([[np.inf]])) == 0
    assert excess(one, one + 1) == 0
    assert excess(one + 1, one) == 1


def test_hard_cases_are_hard_and_generic_ones_generic():
    cases = draw_cases(Shape(2, 3, 3), 112, seed=0)._cases
    generic = [case for case in cases if case.generic]
    hard = [case for case in cases if not case.generic]
    assert len(generic) == len(hard) == 56
    assert all((case.parts > 0).all() and 0 < case.kappa("late").max() < 1 for case in generic)
    assert any((case.parts == 0).any() for case in hard)
    assert any(np.ptp(case.parts, axis=0).max() == 0 for case in hard)
    disjoint = [((case.parts > 0).sum(axis=0) <= 1).all() for case in hard]
    assert any(disjoint)
    assert any(case.context.any() for case in hard)
    assert any((case.kappa("early") == 0).all() for case in hard)
    assert any((case.kappa("late") == 1).all() for case in hard)
    assert {case.family for case in hard} == {"linear", "polynomial", "cosine"}


def test_each_function_is_compiled_for_two_shapes_at_most(monkeypatch):
    made = []

    def recorded(fn):
        made.append(plain(fn))
        return made[-1]

    plain = jax.jit
    runs.compiled.cache_clear()
    monkeypatch.setattr(runs.jax, "jit", recorded)
    assert all(row.passed for row in verify(["P4", "D3"], instances=32))
    assert made
    assert max(fn._cache_size() for fn in made) <= 2
    runs.compiled.cache_clear()
