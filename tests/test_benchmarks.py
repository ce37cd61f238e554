"""`experiments.benchmarks`: its arithmetic, what it refuses, and that our forms do the same."""

import dataclasses
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.lib import builds
from experiments.systems.benchmarks import __main__ as study
from experiments.systems.benchmarks import (
    account,
    growth,
    kinds,
    ours,
    ours_clusters,
    report,
    serving,
    workloads,
)
from experiments.systems.training_speed.sides import AS_COMMANDS_START, BUFFERS_KEPT

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


def cell_of(workload, size, forms, allocator=account.DEFAULT):
    """A cell in which every form took as long as it says."""
    run = {"threads": 1, "allocator": allocator}
    run["blocks"] = {form: blocks(*[seconds] * 4) for form, seconds in forms.items()}
    peaks = dict.fromkeys(forms, 12.0)
    return {"size": kinds.size_name(size), "shown": {}, "peaks": peaks, "runs": [run]}


def kl_rows():
    """Seconds as V for us and V² for the peer: 4 and 16 times as long."""
    workload, rows = workloads.BY_NAME["generalized KL"], []
    for size, peer in zip(workload.sizes[2:], (4.0, 64.0), strict=True):
        v = size["V"] / 8192
        forms = {"clear": 2 * v, "fast": v, "flow_matching": peer}
        rows += account.rows_of(workload, cell_of(workload, size, forms), 0)
    return rows


def test_rows_hold_what_is_promised():
    rows = kl_rows()
    assert all(tuple(row) == account.COLUMNS for row in rows)
    assert [row["ratio"] for row in rows] == [2, 4, 8, 16]
    assert [row["form"] for row in rows] == ["clear", "fast"] * 2
    assert {row["goal"] for row in rows} == {5.0}
    assert all(row["low"] == row["ratio"] == row["high"] for row in rows)


def test_the_summary_has_ratios_slopes_and_whether_an_aim_is_met():
    rows = kl_rows()
    found = account.summary_of(rows)["generalized KL"]
    assert found["best"] == {"clear": 8, "fast": 16}
    sizes = [kinds.size_name(size) for size in workloads.BY_NAME["generalized KL"].sizes[2:]]
    assert [aim["size"] for aim in found["goals"]] == sizes
    assert [aim["least"] for aim in found["goals"]] == [
        {"clear": 2, "fast": 4},
        {"clear": 8, "fast": 16},
    ]
    assert [aim["met"] for aim in found["goals"]] == [False, True]
    slopes = found["slopes"]
    assert slopes == pytest.approx({"ours, clear": 1, "ours, fast": 1, "flow_matching": 2})
    for ratio, met in ((4.74, False), (4.76, True)):  # 95 % of 5 is 4.75
        slow = [row | {"ours_s": row["peer_s"] / ratio} for row in rows]
        assert account.summary_of(slow)["generalized KL"]["goals"][0]["met"] == met


def test_a_peer_that_stalls_under_some_threads_meets_no_aim():
    rows = [row | {"ours_s": row["peer_s"] / 2, "ratio": 2.0} for row in kl_rows()]
    stalled = [row | {"threads": 2, "peer_s": 30 * row["peer_s"], "ratio": 60.0} for row in rows]
    aim, _ = account.summary_of(rows + stalled)["generalized KL"]["goals"]
    assert aim["best"] == {"clear": 60, "fast": 60}
    assert aim["at_best"] == {"clear": 2, "fast": 2}
    assert not aim["met"]


def test_an_aim_of_one_size_is_judged_there():
    workload, rows = workloads.BY_NAME["AR sampling with cache"], []
    for size, seconds in zip(workload.sizes, (5.0, 100.0, 2.4), strict=True):
        forms = {"clear": 1.0, "fast": 1.0, "transformers GPT-2": seconds}
        rows += account.rows_of(workload, cell_of(workload, size, forms), 0)
    goals = account.summary_of(rows)[workload.name]["goals"]
    assert [(goal["goal"], goal["met"]) for goal in goals] == [(6.0, False), (2.5, True)]
    assert [row["goal"] for row in rows if row["form"] == "fast"] == [6.0, None, 2.5]


def training_rows(**seconds):
    """Rows of two networks: what each side needs at either, with kept buffers and as started."""
    workload, rows = workloads.BY_NAME[workloads.TRAINING], []
    for allocator in (BUFFERS_KEPT, AS_COMMANDS_START):
        for place in range(2):
            forms = {"clear": 1.0, "torch": seconds["torch"][place]}
            if "before" in seconds:
                forms["before: clear"] = seconds["before"][place]
            cell = cell_of(workload, {}, forms, allocator) | {"size": f"width {place}, 4 layers"}
            rows += account.rows_of(workload, cell, 0)
    return rows


def test_training_has_aims_at_every_size_by_allocator_and_an_earlier_build():
    found = account.summary_of(training_rows(torch=(1.0, 0.9), before=(1.7, 1.7)))
    goals = found[workloads.TRAINING]["goals"]
    assert [(goal["peer"], goal["goal"], goal["met"]) for goal in goals] == [
        ("torch", 1.0, False),  # 0.9 at one size
        ("before", 1.7, True),
        ("torch", 0.85, True),
        ("torch", 0.95, True),  # 1.0 at one size is enough
    ]
    assert goals[0]["at_best"] == {"clear": 0.9}
    assert goals[3]["at_best"] == {"clear": 1.0}
    assert [goal["allocator"] for goal in goals] == [AS_COMMANDS_START] * 2 + [BUFFERS_KEPT] * 2
    assert found[workloads.TRAINING]["slopes"] == {}
    without = account.summary_of(training_rows(torch=(1.0, 1.0)))[workloads.TRAINING]["goals"]
    assert [goal["peer"] for goal in without] == ["torch"] * 3


def test_an_earlier_build_is_compared_form_by_form():
    workload = workloads.BY_NAME["generalized KL"]
    forms = {"clear": 1.0, "fast": 0.5, "flow_matching": 3.0}
    forms |= {"before: clear": 2.0, "before: fast": 1.5}
    rows = account.rows_of(workload, cell_of(workload, workload.sizes[0], forms), 0)
    found = {(row["peer"], row["form"]): row["ratio"] for row in rows}
    assert found == {
        ("flow_matching", "clear"): 3,
        ("flow_matching", "fast"): 6,
        ("before", "clear"): 2,
        ("before", "fast"): 3,
    }


def test_a_verdict_fails_where_results_part():
    fine = [row | {"gap": 1e-6} for row in kl_rows()]
    assert [verdict.passed for verdict in account.verdicts_of(fine)] == [True]
    apart = [row | {"gap": 0.1} for row in fine]
    assert [verdict.passed for verdict in account.verdicts_of(apart)] == [False]


def test_memory_is_judged_at_large_vocabularies():
    rows = kl_rows()
    found = account.memory_of([row | {"peak_mb": 4.0} for row in rows])
    assert [(one["size"], one["share"], one["met"]) for one in found] == [
        (rows[0]["size"], 1 / 3, True),
        (rows[-1]["size"], 1 / 3, True),
    ]
    found = account.memory_of([row | {"peak_mb": 12.0} for row in rows])
    assert [one["met"] for one in found] == [False, False]
    assert account.memory_of([row | {"peak_mb": None} for row in rows]) == []


def test_one_distribution_is_told_from_two():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(32))
    one, two = rng.multinomial(5000, probs), rng.multinomial(5000, probs)
    assert account.same_probs(one, two) > 1e-3
    other = rng.multinomial(5000, 0.8 * probs + 0.2 / 32)
    assert account.same_probs(one, other) < account.PROBS
    assert account.same_probs(np.array([5, 0]), np.array([3, 0])) == 1


def test_a_size_without_an_aim_has_one_setting_and_a_slow_work_few():
    config = study.Config()
    slow, quick = workloads.BY_NAME["fine k-means"], workloads.BY_NAME["generalized KL"]
    last = (2, AS_COMMANDS_START)
    assert study.settings(slow, slow.sizes[-1], config) == [(2, BUFFERS_KEPT), last]
    assert study.settings(slow, slow.sizes[0], config) == [last]
    assert study.settings(quick, quick.sizes[0], config) == [(1, account.DEFAULT)]
    assert len(study.settings(quick, quick.sizes[-1], config)) == 6
    one = dataclasses.replace(config, threads=(1,), allocators=(account.DEFAULT,))
    assert study.settings(slow, slow.sizes[-1], one) == [(1, account.DEFAULT)]


def test_only_settings_at_which_a_form_is_at_its_best_are_measured_in_turns():
    first, kept = (1, account.DEFAULT), (2, BUFFERS_KEPT)
    once = {
        first: {"clear": 3.0, "torch": 2.5},
        (1, BUFFERS_KEPT): {"clear": 2.5, "torch": 2.2},
        (2, account.DEFAULT): {"clear": 2.0, "torch": 1.5},
        kept: {"clear": 1.0, "torch": 2.0},
    }
    assert study.best_settings(once) == [first, (2, account.DEFAULT), kept]
    assert study.best_settings({first: once[first]}) == [first]


def test_a_block_has_as_many_repetitions_as_its_seconds_allow():
    """The first repetition compiles: what it takes does not decide."""
    asked = []

    def tell(do, reps):
        asked.append(reps)
        return {"seconds": [0.25 * study.BLOCK if len(asked) > 1 else 4.0] * reps}

    once = study.once_of({"clear": tell})
    assert asked == [1, 1, 4]
    assert once == {"clear": pytest.approx(0.25 * study.BLOCK)}
    assert len(study.run_of({"clear": tell}, once, 7, 3)["blocks"]["clear"]) == 7
    assert asked[3:] == [4] * 7


def test_growth_is_along_the_axis_alone_in_one_setting():
    workload, rows = workloads.BY_NAME["fine k-means"], []
    for size in workload.sizes:
        seconds = {"clear": size["K"] * size["R"], "faiss": 1.0}
        rows += account.rows_of(workload, cell_of(workload, size, seconds, AS_COMMANDS_START), 0)
    rows += [row | {"allocator": BUFFERS_KEPT, "ours_s": 9.0} for row in rows[-2:]]
    sizes, _ = account.curves(workload, rows)["ours, clear"]
    assert sizes.tolist() == [64, 256, 1024]
    assert account.summary_of(rows)[workload.name]["slopes"]["ours, clear"] == pytest.approx(1)


# Small sizes of every curve, and what they fix.
FEW = {
    "fine k-means": {"R": 100, "D": 8, "K": 3},
    "AR sampling with cache": {"V": 16, "new": 3, "batch": 2},
    "mixture of K with cache": {"V": 16, "new": 3, "batch": 2, "K": 2},
    growth.STEP: {"batch": 2, "N": 16},
    growth.ATTENTION: {"batch": 1, "N": 16},
    "categorical draw": {"R": 8, "V": 20},
    "masked diffusion with a model": {"V": 16, "batch": 1, "N": 8, "T": 4},
}


@pytest.mark.slow
def test_a_curve_has_the_exponent_of_its_seconds(monkeypatch):
    """Seconds as size², of which 8, 32 and 128 ms are made by waiting."""
    made = lambda curve, size, seed: serving.Case(lambda: time.sleep(5e-4 * size["N"] ** 2))  # noqa: E731
    monkeypatch.setattr(growth, "case_of", made)
    curve = growth.Curve("any", "clear", "N", kinds.grown("N", (4, 8, 16), batch=1), 2)
    found = growth.measured(curve, 0)
    assert found["exponent"] == pytest.approx(2, abs=0.2)
    assert (found["sizes"], found["fixed"]) == ([4, 8, 16], "batch 1")
    table = report.growth_table([found])
    assert "| any, clear | batch 1 | N | 8" in table
    assert table.endswith("| 2 |")


def test_curves_differ_by_name_and_grow_along_one_axis():
    assert len({curve.name for curve in growth.CURVES}) == len(growth.CURVES)
    for curve in growth.CURVES:
        others = {kinds.size_name(size | {curve.axis: 0}) for size in curve.sizes}
        along = [size[curve.axis] for size in curve.sizes]
        assert len(others) == 1
        assert along == sorted(set(along))
        assert set(FEW[curve.workload]) == set(curve.sizes[0])


@pytest.mark.slow
@pytest.mark.parametrize("curve", growth.CURVES, ids=lambda curve: curve.name)
def test_the_form_of_every_curve_runs(curve):
    growth.case_of(curve, FEW[curve.workload], 0).run()


def test_a_size_is_read_back():
    for workload in workloads.WORKLOADS:
        for size in (*workload.sizes, *workload.quick):
            assert kinds.size_of(kinds.size_name(size)) == size
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
        ({"before": "no-such-commit"}, "`before` must be a commit of this checkout; got before ="),
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
        study.reporting.installed_in("false", study.PEERS)


def test_a_side_that_ends_is_named_and_processors_are_given_back():
    before = os.sched_getaffinity(0)
    side = serving.Side("peers", ["true"], 1, {})
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ValueError, match="The side `peers` has ended with status 0"):
        side.told({"do": "time"})


def test_an_earlier_build_is_unpacked_and_runs_its_own_program(tmp_path, monkeypatch):
    """A checkout of its own, because that of the tests may be shallow."""

    def git(*arguments):
        who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    package, program = tmp_path / "dfm_jax", tmp_path / "experiments" / "benchmarks_ours.py"
    for file in (package / "__init__.py", program):
        file.parent.mkdir()
        file.write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    monkeypatch.setattr(builds, "CHECKOUT", tmp_path)
    with builds.unpacked("HEAD") as build:
        assert build is not None
        assert len(build.commit) == 40
        command = build.command("benchmarks", "1")
        assert command[1:] == ["-m", "experiments.benchmarks_ours", "1"]
        today = build.command("training_speed", "here")
        assert today[1:] == ["-m", "experiments.training_speed.jax_side", "here"]
        folder = build.folder
        assert (folder / "dfm_jax" / "__init__.py").is_file()
    assert not folder.exists()
    package.joinpath("__init__.py").write_text("__file__ = '/elsewhere/dfm_jax/__init__.py'")
    git("commit", "-q", "-a", "-m", "two")
    with pytest.raises(ValueError, match="must be imported from where"), builds.unpacked("HEAD"):
        pass
    with builds.unpacked("") as none:
        assert none is None


def test_an_order_names_the_work_as_the_earlier_build_does():
    config = study.Config(peers_python="python")
    sides = study.Sides(workloads.BY_NAME["generalized KL"], config, builds.Build("c", Path("/b")))
    size, data = {"V": 8}, Path("inputs.npz")
    assert sides.forms == ("clear", "fast", "before: clear", "before: fast", "flow_matching")
    order = sides.order("before: fast", size, data)
    assert (order["work"], order["form"]) == ("generalised KL", "fast")
    assert sides.order("fast", size, data)["workload"] == "generalized KL"
    new = dataclasses.replace(workloads.BY_NAME["path sampling"], before=None)
    assert study.Sides(new, config, builds.Build("c", Path("/b"))).forms == (
        "clear",
        "flow_matching",
    )


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
        at_random = ours_clusters.mean_cosine(features, np.arange(size["R"]) % size["K"])
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
    size = "batch 8, N 128, V 32768"
    assert f"| generalized KL | {size} | flow_matching | clear 8.00 / fast 16.00 | clear 8" in aims
    assert "our peak memory over flow_matching's: 0.33 (aim 0.33, met)" in aims
    assert "| generalized KL | V | flow_matching | 2.00 |" in growth
    assert table.count("\n") == 1 + len(rows)
    assert "| batch 8, N 128, V 8192 | 1 | glibc's default | clear | 2 s |" in table
    earlier = [row | {"peer": "before"} for row in rows]
    assert report.draw(tmp_path / "growth.png", rows + earlier).stat().st_size > 1000
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert report.main([str(other)]) == 2
    assert "must be a file that `experiments.benchmarks` wrote" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "shown"), [(1.5, "1.5 s"), (0.0123, "12.3 ms"), (4.5e-6, "4.5 µs")]
)
def test_seconds_are_shown_in_the_unit_that_fits(seconds, shown):
    assert report.seconds_shown(seconds) == shown
