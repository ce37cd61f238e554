"""`experiments.benchmarks`: its arithmetic, what it refuses, and that our forms do the same."""

import dataclasses
import os

import numpy as np
import pytest

from experiments.systems.benchmarks import __main__ as study
from experiments.systems.benchmarks import account, ours, report, serving, workloads

TINY = {
    "path sampling": {"batch": 8, "N": 64},
    "generalized KL": {"batch": 2, "N": 40, "V": 24},
    "cross-entropy": {"batch": 2, "N": 40, "V": 24},
    "Euler without its model": {"batch": 4, "N": 64, "T": 4, "V": 16},
    "Euler with a model": {"batch": 2, "N": 32, "T": 2, "V": 16},
    "AR sampling with cache": {"V": 16, "new": 3, "batch": 2},
    "balanced k-means": {"R": 60, "K": 3},
    "fine k-means": {"R": 100, "K": 3},
    "mixture of K experts": {"B": 2, "V": 1024, "K": 3},
    "a sample from the mixture": {"V": 64, "K": 2},
    "categorical draw": {"R": 512, "V": 20},
}


def blocks(*seconds):
    return [{"seconds": [one]} for one in seconds]


def cell_of(workload, size, forms):
    """A cell in which every form took as long as it says."""
    run = {"threads": 1, "allocator": account.DEFAULT}
    run["blocks"] = {form: blocks(*[seconds] * 4) for form, seconds in forms.items()}
    peaks = dict.fromkeys(forms, 12.0)
    return {"size": workloads.size_name(size), "shown": {}, "peaks": peaks, "runs": [run]}


def kl_rows():
    """Seconds as V for us and V² for the peer: 4 and 16 times as long."""
    workload, rows = workloads.BY_NAME["generalized KL"], []
    for size, peer in zip(workload.quick, (4.0, 64.0), strict=True):
        v = size["V"] / 512
        forms = {"clear": 2 * v, "fast": v, "flow_matching": peer}
        rows += account.rows_of(workload, cell_of(workload, size, forms), 0)
    return rows


def test_rows_hold_what_is_promised():
    rows = kl_rows()
    assert all(tuple(row) == account.COLUMNS for row in rows)
    assert [row["ratio"] for row in rows] == [2, 4, 8, 16]
    assert [row["form"] for row in rows] == ["clear", "fast"] * 2
    assert {row["goal"] for row in rows} == {8.0}
    assert all(row["low"] == row["ratio"] == row["high"] for row in rows)


def test_the_summary_has_ratios_slopes_and_whether_an_aim_is_met():
    rows = kl_rows()
    found = account.summary_of(rows)["generalized KL"]
    assert found["best"] == {"clear": 8, "fast": 16}
    (aim,) = found["goals"]
    assert (aim["least"], aim["size"], aim["met"]) == ({"clear": 2, "fast": 4}, None, True)
    slopes = found["slopes"]
    assert slopes == pytest.approx({"ours, clear": 1, "ours, fast": 1, "flow_matching": 2})
    slow = [row | {"ours_s": row["peer_s"] / 6.7} for row in rows]
    assert not account.summary_of(slow)["generalized KL"]["goals"][0]["met"]


def test_a_peer_that_stalls_under_some_threads_meets_no_aim():
    rows = [row | {"ours_s": row["peer_s"] / 2, "ratio": 2.0} for row in kl_rows()]
    stalled = [row | {"threads": 2, "peer_s": 30 * row["peer_s"], "ratio": 60.0} for row in rows]
    (aim,) = account.summary_of(rows + stalled)["generalized KL"]["goals"]
    assert aim["best"] == {"clear": 60, "fast": 60}
    assert aim["at_best"] == {"clear": 2, "fast": 2}
    assert not aim["met"]


def test_an_aim_of_one_size_is_judged_there():
    workload, rows = workloads.BY_NAME["AR sampling with cache"], []
    for size, seconds in zip(workload.sizes, (5.0, 100.0, 4.0), strict=True):
        forms = {"clear": 1.0, "fast": 1.0, "transformers GPT-2": seconds}
        rows += account.rows_of(workload, cell_of(workload, size, forms), 0)
    goals = account.summary_of(rows)[workload.name]["goals"]
    assert [(goal["goal"], goal["met"]) for goal in goals] == [(10.0, False), (3.5, True)]
    assert [row["goal"] for row in rows if row["form"] == "fast"] == [10.0, None, 3.5]


def test_training_has_an_aim_without_a_size():
    workload = workloads.BY_NAME[workloads.TRAINING]
    cell = cell_of(workload, {}, {"clear": 1.0, "torch": 1.1}) | {"size": "width 128, 4 layers"}
    rows = account.rows_of(workload, cell, 0)
    assert [row["goal"] for row in rows] == [1.2]
    found = account.summary_of(rows)[workload.name]
    assert found["goals"][0]["met"]
    assert found["slopes"] == {}


def test_a_verdict_fails_where_results_part():
    fine = [row | {"gap": 1e-6} for row in kl_rows()]
    assert [verdict.passed for verdict in account.verdicts_of(fine)] == [True]
    apart = [row | {"gap": 0.1} for row in fine]
    assert [verdict.passed for verdict in account.verdicts_of(apart)] == [False]


def test_memory_is_judged_at_the_largest_vocabulary():
    rows = kl_rows()
    found = account.memory_of([row | {"peak_mb": 4.0} for row in rows])
    assert found == {"size": rows[-1]["size"], "share": 1 / 3, "goal": 1 / 3, "met": True}
    found = account.memory_of([row | {"peak_mb": 12.0} for row in rows])
    assert found is not None
    assert not found["met"]
    assert account.memory_of([row | {"peak_mb": None} for row in rows]) is None


def test_one_distribution_is_told_from_two():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(32))
    one, two = rng.multinomial(5000, probs), rng.multinomial(5000, probs)
    assert account.same_probs(one, two) > 1e-3
    other = rng.multinomial(5000, 0.8 * probs + 0.2 / 32)
    assert account.same_probs(one, other) < account.PROBS
    assert account.same_probs(np.array([5, 0]), np.array([3, 0])) == 1


def test_of_a_slow_work_two_settings_are_measured():
    config = study.Config()
    first, last = (1, "glibc's default"), (2, "buffers kept")
    assert study.settings(workloads.BY_NAME["fine k-means"], config) == [first, last]
    every = study.settings(workloads.BY_NAME["path sampling"], config)
    assert len(every) == 4
    assert {first, last} < set(every)


def test_a_size_is_read_back():
    for workload in workloads.WORKLOADS:
        for size in (*workload.sizes, *workload.quick):
            assert workloads.size_of(workloads.size_name(size)) == size
            assert workload.axis in size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peers_python": ""}, "`peers_python` must be the Python of an environment with PyTorch"),
        (
            {"workloads": ("sorting",)},
            r"`workloads` must hold at least one of path sampling, .*; got workloads = .*sorting",
        ),
        (
            {"allocators": ()},
            "`allocators` must hold at least one of glibc's default, buffers kept",
        ),
        ({"num_blocks": 2}, "`num_blocks` must be at least 3; got num_blocks = 2"),
        ({"threads": (1, 10**6)}, "`threads` must lie in"),
    ],
)
def test_a_bad_option_is_refused(change, message):
    config = dataclasses.replace(study.Config(peers_python="python", threads=(1,)), **change)
    with pytest.raises(ValueError, match=message):
        study.check_config(config)


def test_a_python_without_peers_is_refused():
    with pytest.raises(ValueError, match="`peers_python` must be a Python with torch"):
        study.peer_versions("false")


def test_a_side_that_ends_is_named_and_processors_are_given_back():
    before = os.sched_getaffinity(0)
    side = serving.Side("peers", ["true"], 1, {})
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ValueError, match="The side `peers` has ended with status 0"):
        side.told({"do": "time"})


def test_orders_are_obeyed():
    case = serving.Case(lambda: np.ones(2**22), lambda result: len(result))
    assert len(serving.obeyed(case, {"do": "time", "reps": 3})["seconds"]) == 3
    assert serving.obeyed(case, {"do": "check", "reps": 2}) == {"shown": [2**22] * 2}
    peak = serving.obeyed(case, {"do": "memory"})["peak_mb"]
    assert peak is None or 28 < peak < 60  # of 32 MB


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_our_forms_do_the_same(name):
    workload, size = workloads.BY_NAME[name], TINY[name]
    cases = ours.prepare(name, size, workloads.inputs(name, size, 0))
    assert set(cases) >= set(workload.forms)
    draws = 200 if name == "a sample from the mixture" else 3
    shown = {
        form: None if case.shown is None else [case.shown(case.run()) for _ in range(draws)]
        for form, case in cases.items()
    }
    if workload.check == "none":
        tokens = np.asarray(cases["clear"].run())
        assert tokens.shape == (2, 4)
        assert tokens.min() >= 0
        return
    other = next((form for form in shown if form not in workload.forms), "clear")
    gap = account.gap_of(workload, shown, workload.forms[-1], other)
    if workload.check == "probs":
        assert gap is not None
        assert gap > 1e-3
    elif workload.check == "values":
        assert gap is not None
        assert gap < 1e-5
    else:
        features = workloads.inputs(name, size, 0)["features"]
        at_random = ours.mean_cosine(features, np.arange(size["R"]) % size["K"])
        assert all(1.2 * at_random < value < 1 for value in shown["clear"] or [])


def test_inputs_are_the_same_for_a_seed():
    size = TINY["generalized KL"]
    first, again = (workloads.inputs("generalized KL", size, 3) for _ in range(2))
    assert all((first[name] == again[name]).all() for name in first)
    assert (workloads.inputs("generalized KL", size, 4)["t"] != first["t"]).all()


def test_a_result_is_shown(tmp_path, capsys):
    rows = kl_rows()
    memory = account.memory_of([row | {"peak_mb": 4.0} for row in rows])
    result = {"rows": rows, "summary": {"workloads": account.summary_of(rows), "memory": memory}}
    aims, growth, table = report.markdown(result)
    assert "| generalized KL | all | flow_matching | clear 8.00 / fast 16.00 | clear 8.00" in aims
    assert "our peak memory over flow_matching's: 0.33 (aim 0.33, met)" in aims
    assert "| generalized KL | V | flow_matching | 2.00 |" in growth
    assert table.count("\n") == 1 + len(rows)
    assert "| batch 8, N 128, V 512 | 1 | glibc's default | clear | 2 s |" in table
    assert report.draw(tmp_path / "growth.png", rows).stat().st_size > 1000
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert report.main([str(other)]) == 2
    assert "must be a file that `experiments.benchmarks` wrote" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "shown"), [(1.5, "1.5 s"), (0.0123, "12.3 ms"), (4.5e-6, "4.5 µs")]
)
def test_seconds_are_shown_in_the_unit_that_fits(seconds, shown):
    assert report.seconds_shown(seconds) == shown
