"""Dense against experts on the same questions: values by hand, verdicts, and what is refused."""

import json

import numpy as np
import pytest

from dfm_jax import cli
from dfm_jax.scoring import Question, score
from dfm_jax.scoring.sides import difference, unit_values


def gqa(count):
    return [Question(str(i), ("red",)) for i in range(count)]


def texts_of(right):
    return ["red" if one else "blue" for one in right]


def test_a_difference_by_hand():
    """d = 0, 100, 0, 0: mean 25, s = 50, s/√4 = 25, and t with 3 degrees of freedom is 3.1824."""
    dense, experts = texts_of([1, 0, 1, 0]), texts_of([1, 1, 1, 0])
    found = difference("gqa", gqa(4), dense=dense, experts=experts)
    assert (found.score, found.questions, found.units, found.full) == ("accuracy", 4, 4, 100)
    assert (found.dense, found.experts, found.difference) == (50, 75, 25)
    assert (found.low, found.high) == pytest.approx((25 - 79.561, 25 + 79.561), abs=1e-2)
    assert found.verdict == "undecided"


@pytest.mark.parametrize(
    ("count", "margin", "verdict"),
    [(101, 3.0, "equivalent"), (101, 2.0, "undecided"), (1001, 0.5, "equivalent")],
)
def test_one_question_of_many(count, margin, verdict):
    """Mean and standard error are both 100/U: (margin − mean)/error is held against t = 1.66."""
    dense, experts = texts_of([0] * count), texts_of([1] + [0] * (count - 1))
    found = difference("gqa", gqa(count), dense=dense, experts=experts, margin=margin)
    assert found.difference == pytest.approx(100 / count)
    assert found.verdict == verdict
    ratio = (margin - 100 / count) / (100 / count)
    assert (found.p_equivalence < 0.05) == (ratio > 1.66)


def test_verdicts_are_about_the_experts():
    right, wrong = texts_of([1] * 3), texts_of([0] * 3)
    judged = lambda dense, experts: difference("gqa", gqa(3), dense=dense, experts=experts)  # noqa: E731
    assert judged(wrong, right).verdict == "better"
    assert judged(right, wrong).verdict == "worse"
    same = judged(right, right)
    assert (same.verdict, same.low, same.high, same.p_equivalence) == ("equivalent", 0, 0, 0)


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.5
    other = right ^ (rng.random(200) < 0.02)
    paired = difference("gqa", gqa(200), dense=texts_of(right), experts=texts_of(other))
    moved = texts_of(rng.permutation(other))
    apart = difference("gqa", gqa(200), dense=texts_of(right), experts=moved)
    assert paired.difference == pytest.approx(apart.difference)
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


# ── scores that are no means over questions ─────────────────────────────────────────────────────

POPE = [Question(str(i), (told,)) for i, told in enumerate(("yes", "yes", "no", "no"))]
MME = [
    Question(f"{task} {picture} {i}", ("yes",), category=task, picture=picture)
    for task, picture in (("count", "a"), ("count", "b"), ("code_reasoning", "c"))
    for i in range(2)
]
SAID = {"pope": ["Yes", "No", "Yes", "No"], "mme": ["yes", "yes", "yes", "no", "no", "no"]}


def test_values_of_f1_by_hand():
    """h = 1, s = t = 2: F = 1/2, and n/(s + t) = 1."""
    found = unit_values("pope", POPE, SAID["pope"])
    np.testing.assert_allclose(found.values, [150, 0, 0, 50])
    assert found.score == "f1"
    nobody = [Question(str(i), ("no",)) for i in range(3)]
    np.testing.assert_array_equal(unit_values("pope", nobody, ["No"] * 3).values, 0)


def test_values_of_pictures_by_hand():
    """Points 200 and 50 of two pictures, 0 of a third: 125 + 0 in all."""
    found = unit_values("mme", MME, SAID["mme"])
    np.testing.assert_allclose(found.values, [125 + 75 * 3 / 2, 125 - 75 * 3 / 2, 125])
    assert (found.score, found.full) == ("points", 400)


def headline(name, questions, texts):
    found = score(name, questions, texts)["scores"]
    return 100 * found["f1"] if name == "pope" else found["perception"] + found["cognition"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "questions", "size"), [("pope", POPE, 1), ("mme", MME, 2)])
def test_a_value_says_what_one_more_unit_of_its_kind_adds(name, questions, size):
    """The score of many copies of all units, and of one of them more: the slope of the score."""
    texts, copies = SAID[name], 2000
    values = unit_values(name, questions, texts).values
    assert np.mean(values) == pytest.approx(headline(name, questions, texts))
    many = [
        q._replace(number=f"{q.number} {c}", picture=f"{q.picture} {c}")
        for c in range(copies)
        for q in questions
    ]
    before = headline(name, many, texts * copies)
    for unit, value in enumerate(values):
        rows = slice(unit * size, (unit + 1) * size)
        more = [
            q._replace(number=f"{q.number} +", picture=f"{q.picture} +") for q in questions[rows]
        ]
        after = headline(name, many + more, texts * copies + texts[rows])
        slope = (after - before) * len(values) * copies
        assert slope == pytest.approx(value - before, abs=0.2)


def test_the_margin_of_mme_has_the_unit_of_its_points():
    found = difference("mme", MME, dense=SAID["mme"], experts=["yes"] * 6, margin=1.0)
    assert (found.margin, found.full, found.units, found.questions) == (4, 400, 3, 6)
    assert (found.dense, found.experts) == pytest.approx((125, 400))


@pytest.mark.parametrize(
    ("name", "questions", "texts", "points"),
    [
        ("vqa", [Question("0", ("red",) * 2 + ("blue",) * 8)] * 2, ["red", "blue"], [60, 100]),
        ("textvqa", [Question("0", ("stop",) * 10)] * 2, ["Stop", "go"], [100, 0]),
        ("ai2d", [Question("0", ("B",), choices=4)] * 2, ["b.", "C"], [100, 0]),
        ("scienceqa", [Question("0", ("B",), choices=4)] * 2, ["B", "none"], [100, 0]),
        ("docvqa", [Question("0", ("abxy",))] * 2, ["abcd", "abxy"], [50, 100]),
        ("infovqa", [Question("0", ("15",))] * 2, ["15", "25"], [100, 50]),
        ("chartqa", [Question("0", ("100",))] * 2, ["105", "106"], [100, 0]),
    ],
)
def test_values_are_the_scores_of_questions(name, questions, texts, points):
    np.testing.assert_allclose(unit_values(name, questions, texts).values, points)


def test_boxes_need_their_scale():
    told = [Question(str(i), ("[0, 0, 2, 2]",), box_scale="pixels") for i in range(2)]
    texts = ["[[0, 0, 2, 2]]", "[5, 5, 6, 6]"]
    np.testing.assert_array_equal(
        unit_values("refcoco", told, texts, box_scale="pixels").values, [100, 0]
    )
    with pytest.raises(ValueError, match="`box_scale` of the answers must be one of"):
        difference("refcoco", told, dense=texts, experts=texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 0.0}, r"`margin` must lie in \(0, inf\); got margin = 0\.0"),
        ({"level": 0.4}, r"`level` must lie in \(0\.5, 1\); got level = 0\.4"),
    ],
)
def test_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        difference("gqa", gqa(2), dense=["red"] * 2, experts=["red"] * 2, **options)


def test_one_question_has_no_interval():
    with pytest.raises(ValueError, match=r"at least two units, .* got number of units = 1"):
        difference("gqa", gqa(1), dense=["red"], experts=["red"])


# ── the command ─────────────────────────────────────────────────────────────────────────────────


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Four questions of GQA and of POPE, and the answers of two sides, in other orders."""
    told = {"gqa": ["red"] * 4, "pope": ["yes", "yes", "no", "no"]}
    said = {
        "gqa": {"dense": texts_of([1, 0, 1, 0]), "experts": texts_of([1, 1, 1, 0])},
        "pope": {"dense": SAID["pope"], "experts": ["Yes", "Yes", "No", "No"]},
    }
    words = ["compare-answers", "--benchmarks", "gqa", "pope", "--questions"]
    words += [
        written(
            tmp_path / f"{name}.jsonl", [{"question_id": i, "answer": a} for i, a in enumerate(of)]
        )
        for name, of in told.items()
    ]
    for side in ("dense", "experts"):
        words.append(f"--{side}")
        for name in told:
            rows = [{"question_id": i, "text": text} for i, text in enumerate(said[name][side])]
            rows = rows[::-1] if side == "experts" else rows
            words.append(written(tmp_path / f"{name}.{side}.jsonl", rows))
    return words


def test_the_command_prints_one_table(files, tmp_path, capsys):
    out = tmp_path / "table.json"
    assert cli.main([*files, "--margin", "2", "--json", str(out)]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == [
        *("questions", "of", "score", "questions", "dense", "experts", "difference"),
        *("95", "%", "interval", "margin", "verdict"),
    ]
    assert first.split() == [
        *("gqa", "gqa", "accuracy", "4", "50.00", "75.00", "+25.00", "[-54.56,", "+104.56]"),
        *("2", "undecided"),
    ]
    assert second.split()[:7] == ["pope", "pope", "f1", "4", "50.00", "100.00", "+50.00"]
    found = json.loads(out.read_text())
    assert (found["level"], found["margin"]) == (0.95, 2)
    assert [row["name"] for row in found["rows"]] == ["gqa", "pope"]
    assert found["rows"][0]["difference"] == 25
    assert set(found["rows"][0]) >= {"low", "high", "verdict", "units", "p_equivalence"}


def test_what_is_missing_on_one_side_is_named_with_its_file(files, tmp_path, capsys):
    path = tmp_path / "pope.experts.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))  # without question 3
    assert cli.main(files) == 2
    said = capsys.readouterr().err
    rule = f"Each question must have an answer in {path}; got questions without an answer = ['3']"
    assert rule in said
    assert len(said.splitlines()) == 1


def test_lists_of_other_lengths_are_refused(files, capsys):
    place = files.index("--experts")
    assert cli.main(files[: place + 2]) == 2
    rule = "`experts` must name a file for each of the 2 benchmarks; got number of experts = 1"
    assert rule in capsys.readouterr().err
