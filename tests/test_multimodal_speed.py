"""`experiments.multimodal_speed`: its arithmetic, and that our two sides do the same work.

The study itself compares both with transformers, in the environment of the peers.
"""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from dfm_jax.models.multimodal import multimodal, num_multimodal_parameters
from experiments.systems.benchmarks import serving
from experiments.systems.multimodal_speed import __main__ as study
from experiments.systems.multimodal_speed import ours, plain, report, work
from experiments.systems.multimodal_speed.config import PRESETS, Config, check_config
from experiments.systems.training_speed.sides import AS_COMMANDS_START, BUFFERS_KEPT, OURS

TINY = dataclasses.replace(work.SIZES["tiny"], num_layers=1, num_rows=4, batch_size=2, new=5)
PEER = study.peer_name("sdpa")


# ── the work ──────────────────────────────────────────────────────────────────────────────────────


def test_a_row_is_a_picture_a_question_and_an_answer():
    size = work.SIZES["28M"]
    rows, network = work.drawn_rows(size, 0), size.network
    image = network.features_per_picture
    assert rows.tokens.shape == (64, size.num_positions)
    assert (rows.tokens[:, 1 : 1 + image] == network.image_token).all()
    assert ((rows.tokens == network.image_token).sum(axis=1) == image).all()
    inside = np.arange(size.num_positions)[None] < rows.lengths[:, None]
    assert (rows.tokens > 0).sum() == inside.sum()  # behind a row there are zeros alone
    for words in (rows.prompts - 1 - image, rows.lengths - rows.prompts, rows.learnt.sum(axis=1)):
        assert words.min() == size.least
        assert words.max() == size.most
    assert len(np.unique(rows.pixels.reshape(64, -1), axis=0)) == 64
    np.testing.assert_array_equal(rows.batch(9, 8).lengths, rows.lengths[8:16])  # of 8 batches


def test_the_aims_are_for_a_network_of_28_million_parameters():
    count = num_multimodal_parameters(work.SIZES[PRESETS["standard"].size].network)
    assert round(count / 1e6) == 28
    assert study._AIMED_SIZE == PRESETS["standard"].size != PRESETS["quick"].size


@pytest.mark.slow
def test_the_picture_and_the_question_decide_the_plain_answer():
    network, rows = TINY.network, work.drawn_rows(TINY, 0)
    params = jax.tree.map(lambda leaf: 2 * leaf, multimodal(network).init(jax.random.key(1)))
    pictures = ours.pictures_of(rows, work.color_table(network))
    draw = jax.jit(lambda *given: plain.answers(params, *given, num_new=5, config=network))
    found = draw(rows.tokens, rows.prompts, pictures)
    assert (np.asarray(found) < network.image_token).all()
    changed = rows.tokens.copy()
    changed[np.arange(4), rows.prompts] = 3  # behind the prompt: not read
    np.testing.assert_array_equal(draw(changed, rows.prompts, pictures), found)
    assert (draw(rows.tokens, rows.prompts, pictures[::-1]) != found).any()
    changed[np.arange(4), rows.prompts - 1] = 3
    assert (draw(changed, rows.prompts, pictures) != found).any()


def results(folder, form, workload, reps):
    """What a side tells of its first batches, in this process."""
    with np.load(work.data_file(folder, workload)) as arrays:
        sizes = {"batch": TINY.batch_size, "new": TINY.new}
        cases = ours.prepare(folder, form, workload, sizes, dict(arrays))
    return serving.obeyed(cases[form], {"do": "check", "reps": reps})["shown"]


@pytest.mark.slow
@pytest.mark.parametrize("workload", work.WORKLOADS)
def test_the_package_does_what_the_plain_version_does(workload, tmp_path):
    work.write_work(tmp_path, TINY, 0)
    shown = {form: results(tmp_path, form, workload, 3) for form in (OURS, work.FIRST)}
    gap = study.apart(workload, shown, work.FIRST)
    assert gap <= (0 if workload == work.ANSWERS else 1e-5)
    if workload != work.ANSWERS:
        first, *_, last = shown[OURS]
        assert abs(first - np.log(TINY.num_tokens)) < 3
        assert last != first


# ── what follows from it ──────────────────────────────────────────────────────────────────────────


def found_of(workload, *, peer=1.0, first=1.0, peaks=None, shown=None, allocator=None):
    """Measurements in which our side takes a second a batch."""
    seconds = {OURS: 1.0, work.FIRST: first, PEER: peer}
    blocks = {form: [{"seconds": [one]}] * 4 for form, one in seconds.items()}
    same = [0.5] if workload != work.ANSWERS else [[[1, 2], [3, 4]]]
    shown = dict.fromkeys(seconds, same) | (shown or {})
    run = {"allocator": allocator or AS_COMMANDS_START, "load": 0.0}
    runs = [run | {"shown": shown, "blocks": blocks}]
    return {"workload": workload, "peaks": peaks or {}, "runs": runs}


def test_rows_compare_every_side_with_ours():
    peaks = {OURS: 80.0, work.FIRST: 200.0, PEER: 100.0}
    rows = study.rows_of(found_of(work.STEP, peer=0.8, first=1.6, peaks=peaks), 0)
    assert [(row["side"], row["ratio"], row["peak_mb"]) for row in rows] == [
        (work.FIRST, 1.6, 200.0),
        (PEER, 0.8, 100.0),
    ]
    assert {row["our_peak_mb"] for row in rows} == {80.0}
    assert all(row["low"] == row["ratio"] == row["high"] for row in rows)


def test_losses_are_compared_in_nats_and_answers_are_counted():
    losses = {OURS: [2.0, 1.0], PEER: [2.0, 1.25], work.FIRST: [2.0, 1.0]}
    assert [study.apart(work.STEP, losses, form) for form in (work.FIRST, PEER)] == [0, 0.25]
    answers = {OURS: [[[1, 2], [3, 4]]], PEER: [[[1, 2], [3, 5]]]}
    assert study.apart(work.ANSWERS, answers, PEER) == 1
    assert study.apart(work.ANSWERS, answers, OURS) == 0


GOOD = (
    {"workload": work.STEP, "peer": 0.76, "first": 1.6, "peaks": {OURS: 90.0, PEER: 100.0}},
    {"workload": work.ANSWERS, "peer": 1.3, "first": 1.6, "peaks": {OURS: 90.0, PEER: 100.0}},
)


def failed(*changes, aimed=True):
    rows = [
        row
        for good, change in zip(GOOD, changes, strict=True)
        for row in study.rows_of(found_of(**good | change), 0)
    ]
    return [v.claim for v in study.verdicts_of(rows, aimed=aimed) if not v.passed]


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        (({"peer": 0.74}, {}), "training step: time of the faster transformers over ours"),
        (({"first": 1.4}, {}), "training step: time of the plain first version over ours"),
        (({}, {"peer": 1.1}), "greedy answers: time of the faster transformers over ours"),
        (({}, {"first": 1.4}), "greedy answers: time of the plain first version over ours"),
        (
            ({"peaks": {OURS: 101.0, PEER: 100.0}}, {}),
            "training step: our peak of memory over transformers'",
        ),
    ],
)
def test_each_aim_can_fail_where_it_is_stated(changes, claim):
    assert failed({}, {}) == []
    assert failed(*changes) == [claim]
    assert failed(*changes, aimed=False) == []
    kept = [change | {"allocator": BUFFERS_KEPT} for change in changes]
    assert failed(*kept) == []


def test_other_losses_or_answers_fail_at_every_size():
    shown = {PEER: [0.6]}, {PEER: [[[1, 2], [4, 4]]]}
    found = failed(*({"shown": one} for one in shown), aimed=False)
    assert found == [
        "largest gap of the first 3 losses, nats per token",
        "greedy answers that differ",
    ]


def test_the_tables_and_the_figure(tmp_path):
    rows = [row for good in GOOD for row in study.rows_of(found_of(**good), 0)]
    console = Console(record=True, width=120)
    report.print_table(console, rows)
    text = console.export_text()
    assert "greedy answers; as a command starts it" in text
    assert "1300" in text  # milliseconds of the peer
    assert report.draw(tmp_path / "m.png", rows).stat().st_size > 1000


# ── the driver ────────────────────────────────────────────────────────────────────────────────────


class AllSides:
    """Every side at once: it answers as told, and remembers its orders."""

    def __init__(self):
        self.orders = []

    def told(self, form, workload, do, reps):
        self.orders.append((form, do, reps))
        shown = [[[1, 2]] * 4] * reps if workload == work.ANSWERS else [0.5] * reps
        return {"time": {"seconds": [1.0]}, "check": {"shown": shown}}.get(do, {"peak_mb": 5.0})


def test_sides_take_turns_with_a_batch_each():
    sides, config = AllSides(), Config(num_blocks=4)
    blocks = study.rounds(work.STEP, sides, config)
    one, two, three = study.forms_of(config)
    assert [form for form, _, _ in sides.orders] == [
        *(one, two, three),
        *(two, three, one),
        *(three, one, two),
        *(one, two, three),
    ]
    assert {order[1:] for order in sides.orders} == {("time", 1)}
    assert {form: len(some) for form, some in blocks.items()} == {one: 4, two: 4, three: 4}


@pytest.mark.slow
def test_the_whole_study_writes_what_was_measured(tmp_path, monkeypatch):
    sides, allocators = AllSides(), []

    @contextlib.contextmanager
    def started(allocator, folder, config):
        assert (folder / "model" / "config.json").is_file()
        allocators.append(allocator)
        yield sides

    monkeypatch.setattr(study, "started", started)
    monkeypatch.setattr(study.reporting, "installed_in", lambda python, packages: {"torch": "1"})
    config = Config(peers_python="a-python", memory=True, out=tmp_path)
    assert study.run(config, Console(quiet=True))
    assert allocators == [AS_COMMANDS_START, study.UNMAPPED] * 2
    checks = [reps for form, do, reps in sides.orders if do == "check" and form == OURS]
    assert checks == [study.FIRST_STEPS, 4]  # all 16 answers, of 4 a batch
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["config"]["peers_python"] == "PYTHON"
    assert {(row["workload"], row["side"]) for row in result["rows"]} == {
        (workload, side) for workload in (work.STEP, work.ANSWERS) for side in (work.FIRST, PEER)
    }
    assert {row["peak_mb"] for row in result["rows"]} == {5.0}
    assert [verdict["passed"] for verdict in result["verdicts"]] == [True, True]
    assert study.run(config, Console(quiet=True))
    assert len(allocators) == 4  # what was measured is kept


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peers_python": ""}, "`peers_python` must be the Python of an environment with PyTorch"),
        ({"workloads": ("sorting",)}, "`workloads` must hold at least one of training step, .*"),
        ({"attention": ()}, r"`attention` must hold at least one of sdpa, eager, and no other"),
        ({"allocators": ("none",)}, "`allocators` must hold at least one of glibc's default"),
        ({"num_blocks": 3}, "`num_blocks` must be at least 4; got num_blocks = 3"),
        ({"num_threads": 10**6}, "`num_threads` must lie in"),
    ],
)
def test_a_bad_option_is_refused(change, message):
    config = dataclasses.replace(Config(peers_python="python"), **change)
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_a_python_without_peers_is_refused():
    with pytest.raises(ValueError, match="`peers_python` must be a Python with torch and"):
        study.reporting.installed_in("false", study.PEERS)
