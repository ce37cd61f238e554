"""Every statement of the theory: its residual vanishes, its falsifier does not."""

import importlib
import multiprocessing
import re
import sys
from collections.abc import Generator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import cli, exact, steps, velocities
from dfm_jax.theory import LEDGER, Shape, equations, runs, verify
from dfm_jax.theory.cases import draw_cases
from dfm_jax.theory.statement import excess, gap, in_order, statement, unbroken
from dfm_jax.theory.statements import cost

# The labels that the page lists; a statement that is lost leaves the page first, for all to see.
PAGE = (Path(__file__).parents[1] / "EQUATIONS.md").read_text("utf-8")
LABELS = re.findall(r"^\| \*\*([A-Z]\d+)\*\* \|", PAGE, re.MULTILINE)


def test_the_ledger_is_the_theory():
    assert sorted(LEDGER) == sorted(LABELS)


def test_no_label_of_a_section_is_missing():
    for letter in {label[0] for label in LABELS}:
        numbers = [int(label[1:]) for label in LABELS if label[0] == letter]
        assert numbers == list(range(1, len(numbers) + 1)), letter


# V, V + 1, N and K differ wherever an axis could be taken for another: a wrong number, or an error.
# Paths and velocities treat every position alike: two are enough. An order and its inverse are the
# same up to two positions; of three, V + 1 = N, which the kernels of discrete time would not see.
SHAPES = dict.fromkeys("PVC", Shape(3, 2, 5)) | dict.fromkeys("ALDBS", Shape(2, 3, 5))
SHAPES |= {"Q": Shape(2, 4, 5)}


def each_label(*, marks=lambda label: []):
    """Every label of the page is a case, under its own mark and those given."""
    of = lambda label: [pytest.mark.statement(label), *marks(label)]  # noqa: E731
    return pytest.mark.parametrize("label", [pytest.param(x, marks=of(x)) for x in LABELS])


@pytest.mark.sampled(8)
@each_label()
def test_statement_holds_and_its_falsifier_does_not(label):
    (row,) = verify([label], shape=SHAPES[label[0]], instances=48, seed=1)
    assert row.residual <= 1e-12
    assert row.falsifier >= 1e-9
    assert row.passed


@pytest.mark.slow
@each_label(marks=lambda label: [] if label[1:] == "1" else [pytest.mark.exhaustive])
def test_statement_holds_in_float32_on_8_devices(label):
    """The first of each section: the runs, which round and which split, are the same for all."""
    (row,) = verify(
        [label], precision="float32", num_devices=8, shape=Shape(3, 2, 5), instances=64, seed=3
    )
    assert row.passed


@pytest.mark.slow
def test_shapes_without_positions_or_experts_to_mix_hold_too():
    labels = ["P4", "D3"]
    assert all(row.passed for row in verify(labels, shapes="all", instances=96, seed=2))


@pytest.mark.slow
@pytest.mark.statement("D5")
def test_devices_do_not_change_a_residual():
    (one,) = verify(["D5"], instances=32, seed=5)
    (eight,) = verify(["D5"], instances=32, seed=5, num_devices=8)
    assert eight.passed
    assert abs(one.falsifier - eight.falsifier) <= 1e-12


@pytest.mark.slow
def test_processes_do_not_change_a_row(own_file, monkeypatch):
    """The order and every number; a statement of an own file stays in this process."""
    own_file("shared_own")
    monkeypatch.syspath_prepend(".")
    importlib.import_module("shared_own")
    labels = ["P3", "X1", "D13", "P6", "D3"]
    alone = list(verify(labels, instances=32, seed=5))
    assert [row.label for row in alone] == labels
    assert list(verify(labels, instances=32, seed=5, num_processes=3)) == alone
    assert list(verify(["X1"], instances=32, seed=5, num_processes=3)) == alone[1:2]


def test_processes_end_with_the_loop_that_reads_them():
    before = set(multiprocessing.active_children())
    rows = verify(["P3", "P6", "D3", "D13"], instances=32, num_processes=2)
    assert isinstance(rows, Generator)
    assert next(rows).passed
    assert set(multiprocessing.active_children()) - before
    rows.close()
    assert set(multiprocessing.active_children()) == before


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    known = {"xla_backend_optimization_level": 0}
    assert known.items() <= runs._options().items() <= runs._QUICK_TO_COMPILE.items()
    runs._options.cache_clear()
    strange = {"xla_no_such_option": 1, "xla_cpu_parallel_codegen_split_count": "many"}
    monkeypatch.setattr(runs, "_QUICK_TO_COMPILE", strange | known)
    assert runs._options() == known
    runs._options.cache_clear()


def test_refusals_name_argument_rule_and_value():
    with pytest.raises(ValueError, match=r"`labels` must name statements .*; got label = 'D99'"):
        list(verify(["D99"]))
    with pytest.raises(
        ValueError,
        match=r"got label = 'X9'. Your own statements join the ledger when their file is imported",
    ):
        list(verify(["X9"]))
    with pytest.raises(ValueError, match=r"`instances` must be at least 16; got instances = 3"):
        list(verify(["D4"], instances=3))
    with pytest.raises(ValueError, match=r"`num_processes` must be at least 1; got .* = 0"):
        list(verify(["D4"], num_processes=0))
    with pytest.raises(ValueError, match=r"`num_experts` must be at least 1; got num_experts = 0"):
        list(verify(["D4"], shape=Shape(2, 2, 0)))
    with pytest.raises(ValueError, match=r"bytes"):
        list(verify(["D4"], shape=Shape(9, 3, 2), instances=16))
    for label, broken, message in (
        (
            "D4",
            {"gate": None},
            "`label` must be new; got label = 'D4', which dfm_jax.theory",
        ),
        (
            "Y1",
            {"gate": None},
            "the letters P, V, C, Q, A, L, D, B, S, X, followed by a number .* 'Y1'",
        ),
        ("X", {"gate": None}, "followed by a number from 1 on; got label = 'X'"),
        ("X01", {"gate": None}, "followed by a number from 1 on; got label = 'X01'"),
        ("X1", {}, "`broken` must be a keyword of the residual, .*; got broken = {} for X1"),
    ):
        enter = statement(label, "", source="", kind="identity", falsifier="", **broken)
        with pytest.raises(ValueError, match=message):
            enter(lambda cases, run: None)
        assert label == "D4" or label not in LEDGER


OWN = """
import numpy as np
from dfm_jax import exact
from dfm_jax.theory.statement import gap, statement

def uniform(case): return np.full_like(case.data, 1 / case.data.size)
def own(case): return case.data

@statement("{label}", "KL(q, q) = 0", source="own", kind="identity", falsifier="u", probs={broken})
def a_probs_is_its_own(cases, run, *, probs=own):
    return gap(cases.each(lambda c: exact.kl(c.data, probs(c))), 0.0)
"""


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """Write a module into the working folder; what it enters is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    page, before, names = equations(), LEDGER.copy(), []

    def write(name, label="X1", broken="uniform", *, text=OWN):
        names.append(name)
        (tmp_path / f"{name}.py").write_text(text.format(label=label, broken=broken))
        importlib.invalidate_caches()

    yield write
    for name in names:
        sys.modules.pop(name, None)
    LEDGER.clear()
    LEDGER.update(before)
    assert equations() == page


def test_a_statement_of_an_own_file_is_judged_alone_or_by_label(own_file, capsys):
    own_file("one_own")
    own_file("two_own", label="X12")
    for args, labels in (
        (["--modules", "one_own"], ["X1"]),
        (["--modules", "one_own", "two_own"], ["X1", "X12"]),
        (["--labels", "X12", "D13", "--modules", "one_own", "two_own"], ["X12", "D13"]),
    ):
        assert cli.main(["verify", "--instances", "32", *args]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[1:-2]] == labels
        assert "all hold, and every falsifier fails" in lines[-1]
    assert [row.label for row in in_order()][-2:] == ["X1", "X12"]
    assert "## Your own" in equations()


def test_a_falsifier_of_an_own_file_that_holds_is_a_failure(own_file, capsys):
    own_file("no_falsifier", broken="own")
    assert cli.main(["verify", "--instances", "32", "--modules", "no_falsifier"]) == 1
    assert "FAILED: X1" in capsys.readouterr().out


def test_a_cell_that_is_run_twice_enters_its_statement_twice(own_file):
    cell = OWN.format(label="X1", broken="uniform")
    for _ in range(2):
        exec(cell, {"__name__": "__main__"})
    (row,) = verify(["X1"], instances=32)
    assert row.passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (None, "`python -c 'import own_file'` says ModuleNotFoundError: No module named"),
        ({"text": "1 +"}, "says SyntaxError: invalid syntax"),
        (
            {"text": "x = 1"},
            "Each of `modules` must enter a statement by `@statement`; got module =",
        ),
        ({"label": "D4"}, "`label` must be new; got label = 'D4', which"),
        ({"label": "Z1"}, "`label` must be one of the letters P, V, C, Q, A, L, D, B, S, X"),
    ],
)
def test_an_own_file_that_enters_nothing_is_one_line(own_file, options, message, capsys):
    if options is not None:
        own_file("own_file", **options)
    assert cli.main(["verify", "--modules", "own_file"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


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


def test_what_a_falsifier_leaves_as_it_is_comes_from_the_residual():
    """It sees as many cases, all of them generic, and those of the residual in their places."""
    cases, run, counted = draw_cases(Shape(2, 3, 3), 16, seed=0), runs.Run(), []
    alone = cases.with_generic_alone()
    assert len(alone) == 16
    assert alone.generic.all()

    @unbroken
    def first_probs(cases, run, number):
        counted.append(len(cases))
        return cases.each(lambda c: c.data[number])

    of_all, of_generic = (first_probs(some, run, 0) for some in (cases, alone))
    np.testing.assert_array_equal(of_all[cases.generic], of_generic[cases.generic])
    np.testing.assert_array_equal(of_generic, alone.each(lambda c: c.data[0]))
    assert set(of_generic) == set(of_all[cases.generic])
    np.testing.assert_array_equal(
        first_probs(alone, run, 1), cases.each(lambda c: c.data[1])[alone._rows]
    )
    assert counted == [16, 16]
    numbers = []
    alone.each_numbered(lambda number, case: numbers.append(number) or case.data)
    assert len(numbers) == cases.generic.sum()


def test_each_function_is_compiled_for_two_shapes_at_most(monkeypatch):
    made = []

    def recorded(fn, **options):
        made.append(plain(fn, **options))
        return made[-1]

    plain = jax.jit
    runs.compiled.cache_clear()
    monkeypatch.setattr(runs.jax, "jit", recorded)
    assert all(row.passed for row in verify(["P4", "D3"], instances=32))
    assert made
    assert max(fn._cache_size() for fn in made) <= 2
    runs.compiled.cache_clear()


@pytest.mark.statement("Q6")
def test_the_bound_of_any_grid_has_a_falsifier_of_its_own():
    """The row's falsifier breaks the identity: here the bound's right side is left out."""
    cases, run = draw_cases(Shape(2, 3, 3), 48, 0), runs.Run("float64", 1)
    assert np.all(cost.any_grid_bound(cases, run) <= 1e-12)
    broken = cost.any_grid_bound(cases, run, correlation_of=cost.nothing)
    assert np.all(broken[cases.generic] > 1e-3)


@pytest.mark.slow
@pytest.mark.statement("Q4", "Q5")
@pytest.mark.usefixtures("x64")
def test_one_position_a_pair_is_enough_for_continuity_and_not_for_the_kernel():
    """x_0 = (0, 0), x_1 = (1, 0) or (0, 1) with mass ½ each, κ from (0, 0) to (½, ½)."""
    states, table = exact.states(2, 2), jnp.array([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]])
    now, then = np.array([1.0, 0, 0, 0]), np.array([0.5, 0.25, 0.25, 0])
    size = steps.step_size(table, 0)
    posterior = jnp.full((2, 2), 0.5)  # of either token, at (0, 0): the only state there is
    velocity = np.zeros((4, 2, 2))
    velocity[0] = steps.exact_step_velocity(posterior, states[0], size, num_states=2)
    np.testing.assert_array_equal(now - velocities.divergence(now, velocity, states), then)
    probs = np.stack([steps.step_probs(u, z) for u, z in zip(velocity, states, strict=True)])
    pushed = steps.push_forward(now, probs, states)
    np.testing.assert_allclose(pushed - then, np.array([1, -1, -1, 1]) / 16, atol=1e-15)
