"""The report of a sweep: seeds averaged, groups together, the best written and told with care."""

import csv
import itertools
import json
import sys
from pathlib import Path

import pytest

from dfm_jax import cli
from dfm_jax.cli.report import best_lines, report_lines
from dfm_jax.training import report_pictures
from dfm_jax.training.config import TrainConfig, to_json
from dfm_jax.training.members import read_member
from dfm_jax.training.presets import PRESETS, load_config, set_field
from dfm_jax.training.report import (
    SweepRun,
    read_report,
    report_of,
    shown_value,
    within_spread,
)

RATE, WIDTH = "optimizer.learning_rate", "model.width"


def config(**changes) -> dict:
    values = to_json(PRESETS["tiny"])
    for name, value in changes.items():
        set_field(values, {"rate": RATE, "width": WIDTH}.get(name, name), value)
    return values


def made(validation: float | None, *, state: str = "finished", kind="validation", **changes):
    """A run of the sweep; what is not named is that of the preset."""
    step = 100 if state == "finished" else 60
    return SweepRun("group_000", 0, config(**changes), step, state, validation, kind)


def by_rate(*losses: tuple[float, ...], state: str = "finished") -> list[SweepRun]:
    """Runs with the rates 1, 2, …, with the losses of their seeds."""
    return [
        made(loss, state=state, rate=float(rate), seed=seed)
        for rate, each in enumerate(losses, start=1)
        for seed, loss in enumerate(each)
    ]


# ── averages, and the best ──────────────────────────────────────────────────────────────────────


def test_seeds_are_averaged_before_the_best_is_chosen():
    """The lowest run is not in the best configuration."""
    found = report_of(by_rate((1.0, 3.0), (1.8, 1.9), (2.5, 2.5)))
    assert [one.values for one in found.configurations] == [{RATE: 2.0}, {RATE: 1.0}, {RATE: 3.0}]
    assert [one.mean for one in found.configurations] == pytest.approx([1.85, 2.0, 2.5])
    assert found.configurations[0].spread == pytest.approx(0.05 * 2**0.5)
    assert found.configurations[2].spread == 0
    assert found.best is found.configurations[0]
    assert found.best.seeds == (0, 1)
    assert found.best.config == config(rate=2.0, seed=0)
    assert [one.validation for one in found.runs] == [1.0, 1.8, 1.9, 2.5, 2.5, 3.0]
    assert found.fields == (RATE,)


def test_the_config_of_the_best_has_the_lowest_of_its_seeds():
    found = report_of([made(1.0, seed=7), made(1.5, seed=3), made(9.0, seed=3, rate=2.0)])
    assert found.best is not None
    assert found.best.config["seed"] == 3


@pytest.mark.parametrize(
    ("losses", "equal"),
    [
        (((1.0, 1.2), (1.2, 1.4)), 0),  # 0.2 apart, spreads of 0.14
        (((1.0, 1.3), (1.2, 1.5)), 1),  # 0.2 apart, spreads of 0.21
        (((1.0, 1.0), (1.2, 1.5), (1.2, 1.2)), 0),
        (((1.0, 1.0), (1.0, 1.5), (1.5, 1.5)), 1),  # the larger spread counts
        (((1.0,), (1.0001,)), 0),  # nothing is known of the spread
    ],
)
def test_a_mean_within_the_larger_spread_is_equal_to_the_best(losses, equal):
    assert len(within_spread(report_of(by_rate(*losses)))) == equal


def test_a_configuration_of_which_a_seed_failed_is_never_the_best():
    """The seeds that are left are those that went well."""
    failed = made(None, state="not finite", rate=2.0, seed=1)
    found = report_of([*by_rate((2.0, 2.1)), made(1.0, rate=2.0, seed=0), failed])
    assert [one.state for one in found.configurations] == ["finished", "not finite"]
    assert found.configurations[1].mean is None
    assert found.best is found.configurations[0]


def test_finished_configurations_are_not_compared_with_others():
    unfinished = by_rate((1.0,), (1.5,), state="unfinished")
    finished = made(2.0, rate=9.0, seed=0)
    assert report_of(unfinished).best == report_of(unfinished).configurations[0]
    found = report_of([*unfinished, finished])
    assert found.best is not None
    assert found.best.values == {RATE: 9.0}
    assert found.candidates == (found.best,)
    assert best_lines(found)[-1] == "Not compared: 2 configurations, not finished."


def test_a_bound_is_not_compared_with_a_likelihood():
    bound = made(1.0, kind="validation_bound", rate=5.0)
    found = report_of([bound, made(2.0), made(3.0, rate=2.0)])
    assert found.best is not None
    assert [one.mean for one in found.candidates] == [2.0, 3.0]
    assert best_lines(found)[-1].startswith(
        "1 configuration with another kind of validation cannot"
    )
    assert report_of([bound]).best is not None


def test_only_seeds_make_one_configuration():
    found = report_of(by_rate((1.0, 2.0)))
    assert found.fields == ()
    assert best_lines(found) == [
        "best: the only configuration: 1.5000 nats per token, the mean of 2 seeds, spread 0.7071"
    ]


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (
            by_rate((1.0, 1.2), (1.2, 1.4)),
            ["The next lies 0.2000 above it, which is more than the spread of either."],
        ),
        (
            by_rate((1.0, 1.3), (1.2, 1.5)),
            ["Within the spread is 1 other: optimizer.learning_rate=2."],
        ),
        (
            by_rate((1.0,), (1.5,)),
            ["The next lies 0.5000 above it. With one seed each, this may be chance."],
        ),
        (
            by_rate((1.0,), state="unfinished"),
            ["None is finished; this is the best so far, at step 60."],
        ),
    ],
)
def test_how_sure_it_is(runs, words):
    assert best_lines(report_of(runs))[1:] == words


def test_when_held_out_varies_it_says_that_the_documents_do():
    found = report_of([made(1.0, held_out=0.2), made(2.0, held_out=0.3)])
    assert best_lines(found)[-1].startswith("`held_out` varies")


def test_no_run_that_was_judged_is_no_best_one():
    found = report_of([made(None, state="unfinished")])
    assert found.best is None
    assert best_lines(found) == ["No run was judged yet, so there is no best one."]


@pytest.mark.parametrize("value", [1e-3, 0.1, 0.0, 1e6, 1 / 3, 5, True, None, "stream"])
def test_a_value_is_shown_so_that_set_reads_it(value):
    assert load_config("tiny", [f"held_out={shown_value(0.25)}"]).held_out == 0.25
    text = shown_value(value)
    assert text == value if isinstance(value, str) else json.loads(text) == value


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


def write_finished(folder: Path, *rows: tuple[dict, float | None]) -> None:
    """As `train_sweep` writes it; a run without a loss was not finite, and was judged before."""
    folder.mkdir(parents=True)
    content = [
        {
            "config": values,
            "step": 100 if loss is not None else 7,
            "finished": loss is not None,
            "validation": 0.1 if loss is None else loss,
            "measure": "exact",
            "standard_error": None,
        }
        for values, loss in rows
    ]
    (folder / "sweep.json").write_text(json.dumps(content))


def write_unfinished(folder: Path, configs: list[dict], *lines: dict, cut: str = "") -> None:
    (folder / "40").mkdir(parents=True)
    record = {"step": 40, "config": {"configs": configs, "data": {}}, "metrics": {}, "leaves": {}}
    (folder / "40" / "checkpoint.json").write_text(json.dumps(record))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + cut)


def test_groups_of_one_grid_are_read_together(tmp_path):
    write_finished(tmp_path / "group_000", (config(width=16), 2.0), (config(width=16, seed=1), 2.2))
    write_finished(
        tmp_path / "group_001", (config(width=64), 1.0), (config(width=64, seed=1), None)
    )
    (tmp_path / "group_002").mkdir()
    found = read_report(tmp_path)
    assert found.fields == (WIDTH,)
    assert [one.values for one in found.configurations] == [{WIDTH: 16}, {WIDTH: 64}]
    assert [one.state for one in found.configurations] == ["finished", "not finite"]
    assert found.waiting == ("group_002",)
    assert [(one.group, one.number) for one in found.runs] == [
        ("group_001", 0),
        ("group_000", 0),
        ("group_000", 1),
        ("group_001", 1),
    ]


def test_of_a_group_that_goes_on_the_last_evaluation_counts(tmp_path):
    configs = [config(rate=0.1), config(rate=0.2), config(rate=0.3, num_steps=30)]
    write_unfinished(
        tmp_path / "group_000",
        configs,
        {"step": 20, "validation/0": 9.0, "validation/1": 9.0, "validation/2": 9.0},
        {"step": 40, "validation/0": 2.0, "validation/2": 3.0},
        {"step": 50, "loss": 1.0},
        cut='{"step": 60, "validation/0"',
    )
    found = {
        one.number: (one.state, one.step, one.validation) for one in read_report(tmp_path).runs
    }
    assert found == {
        0: ("unfinished", 40, 2.0),
        1: ("not finite", 40, None),
        2: ("unfinished", 30, 3.0),
    }


def test_a_group_that_was_not_judged_yet_has_no_losses(tmp_path):
    write_unfinished(tmp_path / "group_000", [config()], {"step": 10, "loss": 1.0})
    (one,) = read_report(tmp_path).runs
    assert (one.state, one.validation) == ("unfinished", None)


@pytest.mark.parametrize("name", ["dense", "expert_000"])
def test_a_run_that_is_no_sweep_is_refused(name, tmp_path, capsys):
    (tmp_path / name).mkdir()
    assert cli.main(["report", "--run", str(tmp_path)]) == 2
    message = "`run` must be the folder of a sweep, which holds group_000; got run = "
    assert message in capsys.readouterr().err


# ── the command ─────────────────────────────────────────────────────────────────────────────────

TABLES = """\
run: 6 runs of 3 configurations in 1 group
best: optimizer.learning_rate=0.01: 1.1000 nats per token, the mean of 2 seeds, spread 0.1414
The next lies 0.9000 above it, which is more than the spread of either.

optimizer.learning_rate  seeds  step  validation  spread
                   0.01      2   100      1.1000  0.1414
                  0.001      2   100      2.0000  0.0000
                  1e+06      2     7                      not finite

    group  run  optimizer.learning_rate  seed  step  validation
group_000    2                     0.01     0   100      1.0000
group_000    3                     0.01     1   100      1.2000
group_000    0                    0.001     0   100      2.0000
group_000    1                    0.001     1   100      2.0000
group_000    4                    1e+06     0     7              not finite
group_000    5                    1e+06     1     7              not finite
"""


def write_small(run: Path) -> None:
    losses = {1e-3: (2.0, 2.0), 1e-2: (1.0, 1.2), 1e6: (None, None)}
    rows = [
        (config(rate=rate, seed=seed), loss)
        for rate, each in losses.items()
        for seed, loss in enumerate(each)
    ]
    write_finished(run / "group_000", *rows)


def test_the_tables(tmp_path):
    write_small(tmp_path)
    assert "\n".join(report_lines(Path("run"), read_report(tmp_path))) + "\n" == TABLES


def test_one_seed_needs_one_table():
    lines = report_lines(Path("run"), report_of(by_rate((1.0,), (2.0,))))
    assert sum("optimizer.learning_rate  " in line for line in lines) == 1
    assert lines[2] == "The next lies 1.0000 above it. With one seed each, this may be chance."


def test_the_best_config_is_written_as_train_takes_it(tmp_path, capsys):
    write_small(tmp_path / "run")
    path = tmp_path / "new" / "best.json"
    assert cli.main(["report", "--run", str(tmp_path / "run"), "--best", str(path)]) == 0
    assert capsys.readouterr().out.endswith(f"\n\nwritten: {path}\n")
    assert load_config(str(path)) == load_config("tiny", [f"{RATE}=0.01"])


def test_no_best_config_is_written_if_there_is_none(tmp_path, capsys):
    write_unfinished(tmp_path / "run" / "group_000", [config()])
    words = ["report", "--run", str(tmp_path / "run"), "--best", str(tmp_path / "best.json")]
    assert cli.main(words) == 2
    assert "`run` must hold a run that was judged, or there is no" in capsys.readouterr().err
    assert not (tmp_path / "best.json").exists()


def test_json_has_all_of_it(tmp_path, capsys):
    write_small(tmp_path)
    assert cli.main(["report", "--run", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == found["configurations"][0]
    assert found["best"]["values"] == {RATE: 0.01}
    assert (len(found["runs"]), len(found["configurations"])) == (6, 3)


@pytest.mark.slow
def test_the_best_of_a_sweep_is_trained_by_its_file(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for number in range(6):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number} is a number. " * 40)
    data = ["--data", str(tmp_path / "texts")]
    words = ["--config", "tiny", *data, "--run", str(tmp_path / "sweep"), "--set", "num_steps=1"]
    words += ["held_out=0.4", "model.num_layers=1", "--grid", "seed=0:2", "model.width=16,32"]
    assert cli.main(["sweep", "--devices", "1", *words, f"{RATE}=1e-3,1e-2"]) == 0
    best = tmp_path / "best.json"
    assert cli.main(["report", "--run", str(tmp_path / "sweep"), "--best", str(best)]) == 0
    found = read_report(tmp_path / "sweep")
    assert found.fields == (WIDTH, RATE)
    assert [len(one.seeds) for one in found.configurations] == [2] * 4
    words = ["train", "--config", str(best), *data, "--run", str(tmp_path / "run")]
    assert cli.main(words) == 0
    assert found.best is not None
    assert read_member(tmp_path / "run" / "dense")["config"] == found.best.config
    assert isinstance(load_config(str(best)), TrainConfig)
    assert "finished at step 1" in capsys.readouterr().out


# ── pictures ────────────────────────────────────────────────────────────────────────────────────


def of_two_fields(*, seeds: int = 2):
    """Rates from 1e-4 to 1, widths of 16 and 64; the largest rate is not finite."""
    runs = []
    for rate in (1e-4, 1e-3, 1e-2, 1.0):
        for width in (16, 64):
            for seed in range(seeds):
                lost = rate == 1.0
                loss = None if lost else 2 + 100 * rate - width / 100 + seed / 100
                state = "not finite" if lost else "finished"
                runs.append(made(loss, state=state, rate=rate, width=width, seed=seed))
    return report_of(runs)


@pytest.mark.parametrize(
    ("name", "values", "scale", "places"),
    [
        (RATE, [4e-3, 1e-3, 2e-3], "log", {1e-3: 0, 2e-3: 0.5, 4e-3: 1}),
        ("optimizer.weight_decay", [0.0, 0.1], "categories", {0.0: 0.25, 0.1: 0.75}),
        (WIDTH, [16, 64, 32], "linear", {16: 0, 32: 1 / 3, 64: 1}),
        ("num_steps", [10, 1000], "log", {10: 0, 1000: 1}),
        ("windows", ["stream", "documents"], "categories", {"documents": 0.25, "stream": 0.75}),
        ("ema_decay", [None, 0.9], "categories", {0.9: 0.25, None: 0.75}),
        ("model.causal", [True, False], "categories", {False: 0.25, True: 0.75}),
    ],
)
def test_the_scale_of_an_axis(name, values, scale, places):
    axis = report_pictures._Axis(name, values)
    assert axis.scale == scale
    assert ("log scale" in axis.label) == (scale == "log")
    for value, place in places.items():
        assert axis.place(value) == pytest.approx(place)


def test_an_axis_of_many_values_names_some_of_them_and_both_ends():
    axis = report_pictures._Axis("seed", range(100))
    words = [word for _, word in axis.ticks()]
    assert len(words) <= 10
    assert (words[0], words[-1]) == ("0", "99")


def test_a_few_that_went_astray_do_not_press_the_others_together():
    assert report_pictures._highest([1.0, 1.1, 1.2, 50.0]) == pytest.approx(1 + 4 * 0.15)
    assert report_pictures._highest([1.0, 1.1, 1.2, 1.3]) == 1.3
    assert report_pictures._highest([1.0, 1.0, 1.0, 50.0]) == 50.0
    assert report_pictures._highest([2.0]) == 2.0


def test_the_heat_map_is_of_the_fields_that_move_the_mean_most():
    runs = [
        made(loss, rate=rate, width=width, num_steps=steps)
        for rate, a in ((1.0, 0), (2.0, 5))
        for width, b in ((16, 0), (32, 1))
        for steps, c in ((10, 0), (20, 2))
        for loss in [1.0 + a + b + c]
    ]
    assert report_pictures._strongest(report_of(runs)) == (RATE, "num_steps")


@pytest.mark.slow
def test_the_parallel_coordinates_name_axes_units_and_values():
    pytest.importorskip("matplotlib")
    (axes,) = report_pictures._parallel(of_two_fields()).axes
    names = [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()]
    assert names == [
        "model. width (channels)",
        "optimizer. learning_rate (peak) log scale",
        "validation (nats per token)",
    ]
    words = [text.get_text() for text in axes.texts]
    for word in ("16", "64", "0.0001", "0.001", "0.01", "1", "not finite"):
        assert word in words
    red = [line for line in axes.lines if line.get_color() == "crimson" and line.get_lw() == 3]
    (best,) = red
    assert best.get_ydata()[:2] == pytest.approx([1.0, 0.0])  # width 64, rate 1e-4
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 2


@pytest.mark.slow
def test_the_heat_map_has_a_number_in_each_cell_and_a_frame_around_the_best():
    pytest.importorskip("matplotlib")
    axes, bar = report_pictures._heat_map(of_two_fields(), (RATE, WIDTH)).axes
    assert axes.get_xlabel() == "optimizer.learning_rate (peak)"
    assert axes.get_ylabel() == "model.width (channels)"
    assert bar.get_ylabel() == "validation (nats per token)"
    assert [text.get_text() for text in axes.texts] == [
        *("1.855", "1.945", "2.845", "not\nfinite"),
        *("1.375", "1.465", "2.365", "not\nfinite"),
    ]
    assert axes.images[0].origin == "lower"
    (frame,) = axes.patches
    assert frame.get_xy() == (-0.5, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("num_fields", [1, 2, 4])
def test_all_words_lie_inside_the_picture(num_fields):
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    names = (RATE, "optimizer.weight_decay", "num_steps", "batch_size")[:num_fields]
    runs = [
        made(
            1.0 + sum(map(float, values)) + seed / 10,
            seed=seed,
            **dict(zip(names, values, strict=True)),
        )
        for values in itertools.product((1, 2), repeat=num_fields)
        for seed in (0, 1)
    ]
    report = report_of([one._replace(state="unfinished") for one in runs])
    figures = [report_pictures._parallel(report)]
    if num_fields > 1:
        figures.append(report_pictures._heat_map(report, names[:2]))
    for figure in figures:
        FigureCanvasAgg(figure).draw()
        width, height = figure.canvas.get_width_height()
        first, *_ = figure.axes
        shown = [*first.texts, *first.get_xticklabels(), *first.get_yticklabels()]
        for axes in figure.axes:
            shown += [axes.title, axes.xaxis.label, axes.yaxis.label]
        assert len(shown) > 6
        for text in (text for text in shown if text.get_text()):
            box = text.get_window_extent()
            inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
            assert inside, text.get_text()


@pytest.mark.slow
def test_pictures_and_a_table_are_written(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    write_small(tmp_path / "run")
    out = tmp_path / "deep" / "out"
    words = ["report", "--run", str(tmp_path / "run"), "--out", str(out)]
    assert cli.main(words) == 0
    assert sorted(path.name for path in out.iterdir()) == ["parallel.png", "runs.csv"]
    rows = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
    assert rows[0] == {
        "group": "group_000",
        "run": "2",
        RATE: "0.01",
        "seed": "0",
        "step": "100",
        "state": "finished",
        "measure": "validation",
        "validation": "1.0",
    }
    assert (out / "parallel.png").read_bytes().startswith(b"\x89PNG")
    written = report_pictures.write_pictures(of_two_fields(), tmp_path / "two")
    assert [path.name for path in written] == ["parallel.png", "heat_map.png"]
    assert capsys.readouterr().out.endswith(f"{out / 'parallel.png'}, {out / 'runs.csv'}\n")


def test_without_matplotlib_the_refusal_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_small(tmp_path / "run")
    words = ["report", "--run", str(tmp_path / "run")]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert told.err == (
        "python -m dfm_jax report: The pictures of a report need the package `matplotlib`, which "
        "is not installed: `pip install 'dfm_jax[plots]'`.\n"
    )
    assert told.out == ""
    assert not (tmp_path / "out").exists()
    assert cli.main(words) == 0


@pytest.mark.parametrize(
    ("report", "fields", "message"),
    [
        (report_of(by_rate((1.0, 2.0))), None, "`run` must hold runs that differ in a field other"),
        (
            report_of([made(None, state="unfinished")]),
            None,
            "`run` must hold a run that was judged",
        ),
        (
            of_two_fields(),
            (RATE, "seed"),
            rf"`fields` must be two of {WIDTH}, {RATE}; got fields =",
        ),
        (of_two_fields(), (RATE, RATE), "`fields` must be two different fields; got fields ="),
    ],
)
def test_what_cannot_be_drawn_is_refused(report, fields, message):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=message):
        report_pictures.check_pictures(report, fields)


def test_fields_without_a_folder_are_refused(tmp_path, capsys):
    assert cli.main(["report", "--run", str(tmp_path), "--fields", "a", "b"]) == 2
    assert "`fields` must be given together with `out`; got" in capsys.readouterr().err
