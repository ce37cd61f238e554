"""Scores of benchmarks against cases worked by hand, and experts' answers merged."""

import json
import re
from pathlib import Path

import pytest

from dfm_jax import cli, scoring
from dfm_jax.cli.score import Score
from dfm_jax.scoring import (
    BENCHMARKS,
    Box,
    Question,
    anls,
    chosen_letter,
    edit_distance,
    exact_match,
    merge_predictions,
    mme_says,
    normalized_answer,
    overlap,
    pair_scores,
    pope_says_yes,
    read_box,
    read_questions,
    relaxed_match,
    score,
    textvqa_accuracy,
    textvqa_answer,
    vqa_accuracy,
    yes_no_scores,
)

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "scores.md"
OPTIONS = {"refcoco": {"box_scale": "pixels"}}

# ── the page ────────────────────────────────────────────────────────────────────────────────────


def cases():
    """The rows of the page's first table: benchmark, truths, answers, the score that it says."""
    table = PAGE.read_text("utf-8").split("\n## ")[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if found := re.fullmatch(r"`(\w+)`", cells[0].strip()):
            truth, answer = (json.loads(cell.strip("`"), strict=False) for cell in cells[2:4])
            truths, answers = (v if isinstance(v, list) else [v] for v in (truth, answer))
            yield pytest.param(found[1], truths, answers, float(cells[4]), id=line[:60])


def people(answers):
    """`9 × cat + 1 × dog` written out."""
    if isinstance(answers, list):
        return answers
    counts = [part.split(" × ") for part in answers.split(" + ")]
    return [text for count, text in counts for _ in range(int(count))]


@pytest.mark.parametrize(("benchmark", "truths", "answers", "expected"), list(cases()))
def test_the_page_says_what_is_computed(benchmark, truths, answers, expected, tmp_path):
    rows = []
    for number, truth in enumerate(truths):
        row = {"question_id": number, **truth}
        row |= {"answers": people(truth["answers"])} if "answers" in truth else {}
        row |= {"category": "count", "image": "a"} if benchmark == "mme" else {}
        rows.append(row)
    questions = read_questions(_write(tmp_path / "q.jsonl", rows), benchmark)
    options = {k: v for a in answers if isinstance(a, dict) for k, v in a.items() if k != "text"}
    texts = [a["text"] if isinstance(a, dict) else a for a in answers]
    found = score(benchmark, questions, texts, **options)["scores"]
    assert next(iter(found.values())) == pytest.approx(expected, abs=1e-7)


def test_the_page_has_cases_of_every_benchmark():
    assert {case.values[0] for case in cases()} == set(BENCHMARKS)


# ── short answers ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("people", "expected"),
    [
        (0, 0.0),
        (1, 0.3),  # 1 of 10 subsets lacks them: 9 · 1/3 / 10
        (2, 0.6),  # (2 · 1/3 + 8 · 2/3) / 10
        (3, 0.9),  # (3 · 2/3 + 7 · 1) / 10
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_vqa_accuracy_with_ten_people(people, expected):
    answers = ["red"] * people + [f"other {i}" for i in range(10 - people)]
    assert vqa_accuracy("red", answers) == pytest.approx(expected)


def test_vqa_normalizes_only_where_people_disagree():
    assert vqa_accuracy("The  cat!", ["cat"] * 9 + ["a dog"]) == 1
    assert vqa_accuracy("The cat!", ["cat"] * 10) == 0
    assert vqa_accuracy(" cat\n", ["cat\t"] * 10) == 1
    with pytest.raises(ValueError, match="`answers` must hold the answers of at least two people"):
        vqa_accuracy("cat", ["cat"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Cat", "cat"),
        ("two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("red/blue", "red blue"),  # no blank beside it: a blank
        ("red / blue", "red blue"),
        ("yes!", "yes"),
        ("1,000", "1000"),  # a comma between digits: every mark is taken out
        ("3.5", "3.5"),
        ("St. John.", "st john"),
        ("5 p.m.", "5 pm"),
        ("it's", "it's"),  # the apostrophe is no mark
        ("", ""),
    ],
)
def test_answers_are_normalized_as_officially(text, expected):
    assert normalized_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Boston,MA", "bostonma"),  # the comma leaves nothing
        ("boston, ma", "boston ma"),
        ("McDonald's", "mcdonald 's"),
        ("1,000", "1000"),
        ("What?", "what"),
        ("what?no", "whatno"),
        ("The two\ncats", "2 cats"),
        ("red/blue", "red blue"),
        ("it's", "it 's"),
        ("dont", "don't"),
    ],
)
def test_answers_of_textvqa_are_cut_first(text, expected):
    assert textvqa_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "told"),
    [("Dakota Digital", "dakota digital"), ("bostonma", "boston,ma"), ("McDonald's", "mcdonald's")],
)
def test_textvqa_normalizes_where_all_agree_and_vqa_does_not(prediction, told):
    assert textvqa_accuracy(prediction, [told] * 10) == 1
    assert vqa_accuracy(prediction, [told] * 10) == 0
    with pytest.raises(ValueError, match="`answers` must hold the answers of at least two people"):
        textvqa_accuracy("cat", ["cat"])


def test_the_official_script_takes_out_no_more_than_32_full_stops():
    assert normalized_answer("a." * 33 + "b") == "a" * 33 + ".b"


def test_exact_match():
    assert exact_match("Red.", ["red"]) == 1
    assert exact_match(" red ", ["blue", "Red"]) == 1
    assert exact_match("dark red", ["red"]) == 0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. blue", "B"),
        ("The answer is B.", "B"),
        ("I think. The answer is C. Yes.", "C"),
        ("The answer is A. The answer is B.", None),
        ("The answer is B, since", "B"),  # any character may stand behind the letter,
        ("The answer is B", None),  # and one must
        ("The answer is Blue", "B"),
        ("The answer is B\nsince", None),  # a line break is none
        ("E. The answer is B.", None),  # the first form that fits decides
        ("F. The answer is B.", "B"),  # its letters are A to E
        ("E", None),  # of four
        ("b", None),
        ("Blue", None),
        ("", None),
    ],
)
def test_letters(text, letter):
    assert chosen_letter(text, 4) == letter


def test_letters_of_too_few_choices_are_refused():
    with pytest.raises(
        ValueError, match=r"`num_choices` must lie in \[2, 26\]; got num_choices = 1"
    ):
        chosen_letter("A", 1)


def test_edit_distance():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    assert edit_distance("same", "same") == 0
    assert edit_distance("flaw", "lawn") == 2


def test_anls():
    assert anls("Hello  World", ["hello world"]) == 1
    assert anls("hello wrld", ["hello world"]) == pytest.approx(1 - 1 / 11)
    assert anls("abcd", ["abxy"]) == 0.5  # at the threshold: the script keeps it
    assert anls("abc", ["axyz"]) == 0  # ¼, below it
    assert anls("10 \n\ng", ["10 mg"]) == pytest.approx(1 - 1 / 6)  # lengths count all blanks
    assert anls("strase", ["straße"]) == pytest.approx(1 - 1 / 7)  # in capitals: STRASSE
    assert anls("15", ["fifteen", "15"]) == 1
    assert anls("", [""]) == 1
    assert anls("abcd", ["abxy"], threshold=0.6) == 0
    with pytest.raises(ValueError, match="`answers` must not be empty"):
        anls("a", [])


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("105", "100", 1),  # 5 %, the bound itself
        ("105.1", "100", 0),
        ("95", "100", 1),
        ("-100", "100", 0),
        ("7%", "0.07", 1),
        ("7", "7%", 0),
        ("0.0", "0", 0),  # a share of nothing: compared as text
        ("0", "0", 1),
        ("Blue ", "blue", 1),
        ("about 100", "100", 0),
    ],
)
def test_relaxed_match(prediction, answer, expected):
    assert relaxed_match(prediction, answer) == expected


# ── boxes ───────────────────────────────────────────────────────────────────────────────────────


def test_boxes():
    assert read_box("at [1, 2.5,3 , 4] or [0,0,1,1]") == Box(1, 2.5, 3, 4)
    assert read_box("[1, 2, 3]") is None
    assert read_box("[.1, 1e-1, +2., 3]") == Box(0.1, 0.1, 2, 3)
    assert overlap(Box(0, 0, 2, 2), Box(1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap(Box(0, 0, 1, 1), Box(2, 2, 3, 3)) == 0
    assert overlap(Box(0, 0, 0, 0), Box(0, 0, 0, 0)) == 0
    assert overlap(Box(3, 0, 1, 2), Box(0, 0, 4, 2)) == 0  # corners the wrong way round


def test_a_box_counts_from_one_half_on():
    told = [Question("7", ("[0, 0, 10, 10]",), box_scale="pixels")] * 3
    texts = ["[0, 0, 20, 10]", "[0, 0, 20.1, 10]", "nowhere"]
    found = score("refcoco", told, texts, box_scale="pixels")["scores"]
    assert found == pytest.approx({"accuracy": 1 / 3, "without_a_box": 1 / 3})


# ── yes or no ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes, there is.", True),
        ("No, there is none.", False),
        ("There is not. Yes.", False),  # the first sentence alone
        ("Sure. There is no doubt.", True),
        ("Nothing", True),  # no word of its own
        ("", True),
    ],
)
def test_pope_reads_the_first_sentence(text, yes):
    assert pope_says_yes(text) == yes


def test_yes_no_scores():
    predicted = [True, True, True, False, False, False, False]
    answers = [True, False, False, True, False, False, False]
    found = yes_no_scores(predicted, answers)
    assert found == pytest.approx((4 / 7, 1 / 3, 1 / 2, 2 / 5, 3 / 7))
    assert yes_no_scores([False], [False]) == (1, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="`predicted` must hold one prediction for each answer"):
        yes_no_scores([True], [True, False])


def test_mme():
    words = ("Yes.", "no", "None", " YES", "It is", "I say yes")
    assert [mme_says(word) for word in words] == ["yes", "no", "no", "yes", "other", "other"]
    found = pair_scores({"a": [True, True], "b": [True, False], "c": [False, False]})
    assert found == pytest.approx((50, 100 / 3))
    assert found.points == pytest.approx(50 + 100 / 3)
    with pytest.raises(
        ValueError, match=r"two answers for each picture; got len\(right\['a'\]\) = 1"
    ):
        pair_scores({"a": [True]})


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"question_id": i, "answer": "yes" if i % 3 else "no", "category": f"part {i % 2}"}
        for i in range(9)
    ]
    return _write(tmp_path / "questions.jsonl", rows)


def _answers(path, numbers):
    return _write(path, [{"question_id": i, "text": "Yes." if i < 6 else "No."} for i in numbers])


def test_the_merged_score_is_that_of_the_union(questions, tmp_path):
    parts = [_answers(tmp_path / f"{k}.jsonl", range(k, 9, 3)) for k in range(3)]
    whole = _answers(tmp_path / "whole.jsonl", range(9))
    found = []
    for number, paths in enumerate((parts, [whole])):
        out = tmp_path / f"{number}.json"
        command = Score(benchmark="pope", questions=questions, predictions=tuple(paths), json=out)
        assert command.run() == 0
        found.append(json.loads(out.read_text()))
    files = [one.pop("files") for one in found]
    assert found[0] == found[1]
    assert list(files[0].values()) == [3, 3, 3]
    assert found[0]["scores"]["accuracy"] == pytest.approx(5 / 9)
    assert found[0]["scores"]["yes_rate"] == pytest.approx(6 / 9)
    assert found[0]["categories"]["part 1"]["questions"] == 4


@pytest.mark.parametrize(
    ("numbers", "more", "words"),
    [
        (range(1, 8), [], r"got questions without an answer = \['0', '8'\]"),
        (range(1), [], r"got questions without an answer \(8 in all\) = "),
        (range(9), [4], "line 1: each question must be answered once; got question_id = 4, which"),
        (range(9), [77], r"got answers to unknown questions = \['77'\]"),
    ],
)
def test_every_question_is_answered_once(questions, tmp_path, numbers, more, words):
    paths = [_answers(tmp_path / "0.jsonl", numbers), _answers(tmp_path / "1.jsonl", more)]
    with pytest.raises(ValueError, match=words):
        merge_predictions(read_questions(questions, "pope"), paths)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "line 1: the text must be JSON"),
        ('{"question_id": 1, "answer": "A", "answer": "B"}', "the key 'answer' comes twice"),
        ("[1]", "row 1: the row must be an object; got row = 1"),
        ("1", "line 1: the row must be an object; got row = 1"),
        (
            '{"answer": "a"}',
            "line 1: `question_id` must be a number or a text; got question_id = None",
        ),
        (
            '{"question_id": 1}',
            (
                "line 1: The row must have either `answers`, a list of texts, or `answer`, a "
                "text; got {}"
            ),
        ),
        ('{"question_id": 1, "answers": []}', "`answers` must hold at least one text"),
        (
            '{"question_id": 1, "answer": "a", "answers": ["b"]}',
            "The row must have either `answers`, a list of texts, or",
        ),
        (
            '{"question_id": 1, "answer": "A", "choices": "3"}',
            "line 1: `choices` must be a list, or the number of choices; got choices = '3'",
        ),
        ('{"question_id": 1, "answer": "a", "category": [1]}', "`category` must be a text"),
        ('{"question_id": 1, "answer": "a", "width": 5}', "`width` and `height` must be whole"),
        ('{"question_id": 1, "answer": "a", "answer": "b"}', "line 1: .*'answer' comes twice"),
    ],
)
def test_bad_questions_are_named(tmp_path, row, words):
    (tmp_path / "q.jsonl").write_text(f"{row}\n")
    with pytest.raises(ValueError, match=words):
        read_questions(tmp_path / "q.jsonl", "gqa")


def test_an_answer_has_one_text(questions, tmp_path):
    _write(tmp_path / "a.jsonl", [{"question_id": 0, "text": "a", "answer": "b"}])
    with pytest.raises(ValueError, match="the row must have one text, `text`, `answer` or"):
        merge_predictions(read_questions(questions, "pope"), [tmp_path / "a.jsonl"])


def test_every_benchmark_by_hand(tmp_path):
    """Two questions, the first answered rightly, by each definition."""
    rows = {
        "vqa": (["red"] * 9 + ["blue"], "red", "green"),
        "textvqa": (["stop"] * 8 + ["shop"] * 2, "Stop", "go"),
        "gqa": ("red", "Red.", "blue"),
        "ai2d": ("B", "b", "A"),
        "scienceqa": ("B", "The answer is B.", "C"),
        "docvqa": (["march 3"], "March 3", "july"),
        "infovqa": (["march 3"], "March 3", "july"),
        "chartqa": ("100", "104", "106"),
        "refcoco": ("[0, 0, 2, 2]", "[[0, 0, 2, 2]]", "[5, 5, 6, 6]"),
        "pope": ("yes", "Yes", "No"),
        "mme": ("yes", "Yes", "No"),
    }
    assert set(rows) == set(BENCHMARKS)
    for name, (told, right, wrong) in rows.items():
        _write(
            tmp_path / "q.jsonl",
            [
                {"question_id": i, "answers": told if isinstance(told, list) else [told]}
                | {"category": "count", "image": "a", "choices": ["w", "x", "y"]}
                | {"box_scale": "pixels"}
                for i in range(2)
            ],
        )
        found = score(
            name,
            read_questions(tmp_path / "q.jsonl", name),
            [right, wrong],
            **OPTIONS.get(name, {}),
        )["scores"]
        if name == "mme":  # 50 for the questions, 0 for the picture
            assert found == {"perception": 50, "cognition": 0, "count": 50}
        else:
            assert next(iter(found.values())) == 0.5, name


def test_mme_sums_its_two_halves(tmp_path):
    tasks = ("count", "code_reasoning")
    rows = [
        {"question_id": f"{task} {i}", "answer": "yes", "category": task, "image": f"{i // 2}"}
        for task in tasks
        for i in range(4)
    ]
    questions = read_questions(_write(tmp_path / "q.jsonl", rows), "mme")
    found = score("mme", questions, ["yes"] * 4 + ["yes", "yes", "yes", "no"])
    assert found["scores"] == {
        "perception": 200,
        "cognition": 75 + 50,
        "count": 200,
        "code_reasoning": 125,
    }
    assert found["categories"] == {
        "count": {"questions": 4, "accuracy": 100, "accuracy_plus": 100, "points": 200},
        "code_reasoning": {"questions": 4, "accuracy": 75, "accuracy_plus": 50, "points": 125},
    }


def test_what_a_benchmark_needs_is_asked_for(tmp_path, capsys):
    _write(tmp_path / "q.jsonl", [{"question_id": 1, "answer": "B"}])
    _write(tmp_path / "a.jsonl", [{"question_id": 1, "text": "B"}])
    options = ["--questions", str(tmp_path / "q.jsonl"), "--predictions", str(tmp_path / "a.jsonl")]
    for name, words in (
        ("scienceqa", "line 1: `choices` must be given; got choices = None"),
        ("vqa", "line 1: `answers` must hold the answers of 10 people; got len(answers) = 1"),
        ("refcoco", "line 1: `answer` must name a box [x_1, y_1, x_2, y_2]; got answer = 'B'"),
        ("mme", "line 1: `answer` must be yes or no; got answer = 'B'"),
        ("pope", "line 1: `answer` must be yes or no; got answer = 'B'"),
    ):
        assert cli.main(["score", "--benchmark", name, *options]) == 2
        assert words in capsys.readouterr().err
    assert cli.main(["score", "--benchmark", "gqa", *options]) == 0
    assert "accuracy                     1.0000" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`benchmark` must be one of vqa, textvqa"):
        score("chess", [], [])


BOX = {"answer": "[10, 10, 50, 60]", "box_scale": "pixels"}


@pytest.mark.parametrize(
    ("benchmark", "fields", "words"),
    [
        ("vqa", {"answers": ["a"] * 9}, "`answers` must hold the answers of 10 people; got"),
        ("textvqa", {"answers": ["a"] * 11}, "`answers` must hold the answers of 10 people"),
        ("gqa", {"answers": ["a", "b"]}, "`answers` must hold one answer; got answers = "),
        ("gqa", {"answer": " "}, "`answer` must not be blank"),
        ("docvqa", {"answers": ["a", ""]}, "`answer` must not be blank"),
        (
            "chartqa",
            {"answer": "nan"},
            "`answer` must be a text or a finite number; got answer = 'nan'",
        ),
        ("ai2d", {"answer": "1"}, "`answer` must be the capital letter of a choice, A to Z"),
        ("scienceqa", {"answer": "b", "choices": 3}, "of a choice, A to C; got answer = 'b'"),
        ("scienceqa", {"answer": "1", "choices": 3}, "of a choice, A to C; got answer = '1'"),
        ("scienceqa", {"answer": "D", "choices": 3}, "of a choice, A to C; got answer = 'D'"),
        ("scienceqa", {"answer": "AB", "choices": 3}, "of a choice, A to C; got answer = 'AB'"),
        ("scienceqa", {"answer": "A", "choices": 1}, r"`choices` must lie in \[2, 26\]"),
        ("refcoco", {"answer": BOX["answer"]}, "`box_scale` must be one of pixels, 0-1, 0-1000"),
        ("refcoco", BOX | {"box_scale": "px"}, "`box_scale` must be one of"),
        ("refcoco", BOX | {"answer": "[10, 10, 5, 60]"}, "a box .* with x_1 < x_2"),
        ("refcoco", BOX | {"box_scale": "0-1"}, "a box in 0-1, as `box_scale` says"),
        ("refcoco", BOX | {"answer": "[0, 0, 1, 1]"}, "a box in pixels, as"),
        ("refcoco", BOX | {"answer": "[-1, 0, 9, 9]"}, "a box in pixels, as"),
        ("refcoco", BOX | {"width": 40, "height": 80}, "in a picture of 40 × 80 pixels"),
        (
            "refcoco",
            {"answer": "[0, 0, 9, 1001]", "box_scale": "0-1000"},
            "a box in 0-1000, as",
        ),
        ("pope", {"answer": "maybe"}, "`answer` must be yes or no; got answer = 'maybe'"),
        ("pope", {"answers": ["yes", "no"]}, "`answers` must hold one answer"),
        ("mme", {"answer": "yes", "image": "a"}, "`category` must be a subtask of MME"),
        ("mme", {"answer": "yes", "image": "a", "category": "Count"}, "`category` must be a subt"),
        ("mme", {"answer": "yes", "category": "count"}, "`image` must be given; got image = None"),
    ],
)
def test_a_truth_of_another_form_is_refused_by_file_line_and_rule(
    benchmark, fields, words, tmp_path
):
    """Before, it counted as 0."""
    path = _write(tmp_path / "q.jsonl", [{"question_id": 1, **fields}])
    with pytest.raises(ValueError, match=f"q.jsonl, line 1: .*{words}"):
        read_questions(path, benchmark)


def test_questions_that_nobody_read_are_checked_too():
    with pytest.raises(
        ValueError, match="Question 7: `answer` must be yes or no; got answer = 'B'"
    ):
        score("pope", [Question("7", ("B",))], ["yes"])


def test_the_scale_of_boxes_is_asked_for_and_held_against_them():
    told = Question("7", ("[0, 0, 320, 480]",), box_scale="pixels")
    sized = told._replace(size=(640, 480))
    with pytest.raises(ValueError, match="`box_scale` of the answers must be one of pixels, 0-1"):
        score("refcoco", [told], ["[0, 0, 320, 480]"])
    with pytest.raises(
        ValueError,
        match="`box_scale` must be None, because gqa has no boxes; got box_scale = 'pixels'",
    ):
        score("gqa", [Question("7", ("a",))], ["a"], box_scale="pixels")
    with pytest.raises(ValueError, match="Question 7: `width` and `height` must be given"):
        score("refcoco", [told], ["[0, 0, 500, 1000]"], box_scale="0-1000")
    for text, scale in (("[0, 0, 0.5, 1]", "0-1000"), ("[0, 0, 500, 1000]", "0-1")):
        with pytest.raises(
            ValueError, match=f"At least one box in the answers must lie in {scale}"
        ):
            score("refcoco", [sized], [text], box_scale=scale)
    for text, scale in (("[0, 0, 0.5, 1]", "0-1"), ("[0, 0, 500, 1000]", "0-1000")):
        found = score("refcoco", [sized] * 2, [text, "there"], box_scale=scale)["scores"]
        assert found == {"accuracy": 0.5, "without_a_box": 0.5}


# ── what the evaluation servers take ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("benchmark", [name for name in scoring.BENCHMARKS if name != "mme"])
def test_a_submission_is_read_back(benchmark, tmp_path):
    questions = [scoring.Question(number=str(n), answers=("a",)) for n in (7, 3)]
    path = tmp_path / "submission"
    path.write_text(scoring.submission(benchmark, [7, 3], ["über", "two\nlines"]))
    merged = scoring.merge_predictions(questions, [path])
    assert merged.texts == ["über", "two\nlines"]
    with pytest.raises(ValueError, match="`texts` must hold an answer for each of 2 questions"):
        scoring.submission(benchmark, [7, 3], ["one"])


def test_a_submission_has_the_names_of_its_benchmark():
    names = ("vqa", "gqa", "docvqa", "pope")
    found = {name: scoring.submission(name, [7], ["red"]) for name in names}
    assert json.loads(found["vqa"]) == [{"question_id": 7, "answer": "red"}]
    assert json.loads(found["gqa"]) == [{"questionId": "7", "prediction": "red"}]
    assert json.loads(found["docvqa"]) == [{"questionId": 7, "answer": "red"}]
    assert json.loads(found["pope"]) == {"question_id": 7, "text": "red"}
    with pytest.raises(ValueError, match="`benchmark` must not be mme"):
        scoring.submission("mme", [7], ["red"])


def test_a_row_of_an_array_that_is_none_is_named(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"question_id": 7, "text": "a"}, 3]')
    question = scoring.Question(number="7", answers=("a",))
    with pytest.raises(ValueError, match="row 2: the row must be an object; got row = 3"):
        scoring.merge_predictions([question], [path])


# ── MME's own folder ────────────────────────────────────────────────────────────────────────────

OF_MME = [
    Question("1", ("Yes",), category="count", picture="count/a.jpg"),
    Question("2", ("yes",), category="OCR", picture="a.jpg"),
    Question("3", ("No",), category="count", picture="count/b.jpg"),
    Question("4", ("No",), category="count", picture="count/a.jpg"),
    Question("5", ("no",), category="OCR", picture="a.jpg"),
    Question("6", ("Yes",), category="count", picture="count/b.jpg"),
]
ASKED = [f"Is it {i}? Please answer yes or no." for i in range(6)]
SAID = ["Yes", "Yes,\tit\nis.", "Yes", "no", "No.", "Yes"]


def test_the_folder_of_mme_has_a_file_a_subtask_and_a_pair_a_picture():
    found = scoring.mme_files(OF_MME, ASKED, SAID)
    assert list(found) == ["count.txt", "OCR.txt"]
    assert found["OCR.txt"] == (
        f"a.jpg\t{ASKED[1]}\tyes\tYes, it is.\na.jpg\t{ASKED[4]}\tno\tNo.\n"
    )
    lines = [line.split("\t") for line in found["count.txt"].splitlines()]
    assert [line[0] for line in lines] == ["a.jpg", "a.jpg", "b.jpg", "b.jpg"]
    assert [line[2] for line in lines] == ["Yes", "No", "No", "Yes"]
    with pytest.raises(ValueError, match=r"OCR must have two questions about the picture 'a\.jpg'"):
        scoring.mme_files(OF_MME[:4] + OF_MME[5:], ASKED[1:], SAID[1:])
    with pytest.raises(ValueError, match="`texts` must hold an answer to each of 6 questions"):
        scoring.mme_files(OF_MME, ASKED, SAID[:-1])


def test_the_command_scores_the_folder_of_mme(tmp_path, capsys):
    folder = tmp_path / "mme"
    scoring.write_mme_folder(folder, OF_MME, ASKED, SAID)
    with pytest.raises(ValueError, match="`folder` must not exist yet; got folder = "):
        scoring.write_mme_folder(folder, OF_MME, ASKED, SAID)
    out = tmp_path / "mme.json"
    words = ["score", "--benchmark", "mme", "--predictions", str(folder)]
    assert cli.main([*words, "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "  count (4): accuracy 75.0000, accuracy_plus 50.0000, points 125.0000" in said
    found = json.loads(out.read_text())
    assert found["scores"] == {"perception": 325, "cognition": 0, "count": 125, "OCR": 200}
    assert found["scores"] == score("mme", OF_MME, SAID)["scores"]
    assert found["files"] == {str(folder): 6}
    assert cli.main([*words, "--questions", str(tmp_path / "q.jsonl")]) == 2
    assert "`questions` must not be given" in capsys.readouterr().err
    assert cli.main(["score", "--benchmark", "pope", "--predictions", str(folder)]) == 2
    assert "`predictions` must be files; got predictions = " in capsys.readouterr().err
    assert cli.main(["score", "--benchmark", "pope", "--predictions", str(out)]) == 2
    assert "`questions` must be given, unless the answers are" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "Count.txt",
            "a\tb\tyes\tno\n",
            r"named after subtasks of MME.*got others = \['Count.txt'",
        ),
        ("count.txt", "a\tb\tyes\n", r"count\.txt, line 1: .* must be parted by tabs; got line ="),
        ("count.txt", "a\tb\tyes\tno\n\n", "line 2: picture, question, truth and answer must be"),
        ("count.txt", "a\tb\tmaybe\tno\n", "line 1: `answer` must be yes or no; got answer = 'ma"),
        ("count.txt", "a\tb\tyes\tno\na\tb\tyes\tno\n", "line 2: each question must come once"),
    ],
)
def test_a_bad_folder_of_mme_is_refused_by_file_and_line(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        scoring.read_mme_folder(tmp_path)


def test_a_folder_of_mme_without_a_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"such as count\.txt; got number of files = 0"):
        scoring.read_mme_folder(tmp_path)
