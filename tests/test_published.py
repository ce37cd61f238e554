"""Questions from the files that benchmarks publish: one small file of each form, and bad ones."""

import json

import pytest

from dfm_jax import cli
from dfm_jax.data.packages import pillow
from dfm_jax.scoring import read_questions
from dfm_jax.scoring.published import LETTER, SHORT, published_questions
from dfm_jax.training.questions import read_picture_questions

TEN = ["red"] * 9 + ["blue"]
VQA = {
    "v2_questions.json": {
        "data_subtype": "val2014",
        "questions": [{"question_id": 7001, "image_id": 7, "question": "What color? "}],
    },
    "v2_annotations.json": {
        "data_subtype": "val2014",
        "annotations": [{"question_id": 7001, "answers": [{"answer": a} for a in TEN]}],
    },
}
# The files of each benchmark, and the rows that they give, without the request at the end.
PUBLISHED = {
    "vqa": (
        VQA,
        {"question_id": 7001, "image": "COCO_val2014_000000000007.jpg", "answers": TEN},
        "What color?",
    ),
    "textvqa": (
        {
            "TextVQA_0.5.1_val.json": {
                "data": [
                    {"question_id": 1, "image_id": "0a", "question": "Brand?", "answers": TEN},
                ]
            }
        },
        {"question_id": 1, "image": "0a.jpg", "answers": TEN},
        "Brand?",
    ),
    "gqa": (
        {"balanced.json": {"201": {"imageId": "n1", "question": "Is it red?", "answer": "no"}}},
        {"question_id": "201", "image": "n1.jpg", "answer": "no"},
        "Is it red?",
    ),
    "docvqa": (
        {
            "val.json": {
                "data": [
                    {"questionId": 3, "image": "documents/a.png", "question": "Who?"}
                    | {"answers": ["Ann", "ann"]}
                ]
            }
        },
        {"question_id": 3, "image": "documents/a.png", "answers": ["Ann", "ann"]},
        "Who?",
    ),
    "infovqa": (
        {
            "val.json": {
                "data": [
                    {"questionId": 3, "image_local_name": "a.jpeg", "question": "Who?"}
                    | {"answers": ["Ann"]}
                ]
            }
        },
        {"question_id": 3, "image": "a.jpeg", "answers": ["Ann"]},
        "Who?",
    ),
    "chartqa": (
        {"test_human.json": [{"imgname": "a.png", "query": "How many?", "label": "14"}]},
        {"question_id": "test_human-1", "image": "a.png", "answer": "14", "category": "test_human"},
        "How many?",
    ),
    "scienceqa": (
        {
            "problems.json": {
                "1": {"image": None, "split": "test", "question": "", "choices": [], "answer": 0},
                "2": {"image": "image.png", "split": "val"},
                "3": {
                    "image": "image.png",
                    "split": "test",
                    "question": "Which?",
                    "hint": "Look at it.",
                    "choices": ["leaf", "root"],
                    "answer": 1,
                },
            }
        },
        {"question_id": "3", "image": "test/3/image.png", "answer": "B"}
        | {"choices": ["leaf", "root"]},
        "Look at it.\nWhich?\nA. leaf\nB. root",
    ),
    "pope": (
        {
            "coco_pope_random.json": '{"question_id": 1, "image": "a.jpg", "text": "Is there a dog '
            'in the image?", "label": "no"}\n'
        },
        {"question_id": "random-1", "image": "a.jpg", "answer": "no", "category": "random"},
        "Is there a dog in the image?",
    ),
}


def saved(folder, files):
    """The paths of the files, written."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
    return [folder / name for name in files]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_has_the_question_its_picture_and_its_truth(name, tmp_path):
    files, row, text = PUBLISHED[name]
    paths = saved(tmp_path, files)
    last = LETTER if name == "scienceqa" else SHORT
    (found,) = published_questions(name, paths)
    assert found == row | {"text": f"{text}\n{last}"}
    (bare,) = published_questions(name, paths, request="")
    assert bare["text"] == text
    out = tmp_path / "out.jsonl"
    words = ["questions", "--benchmark", name, "--out", str(out), "--files", *map(str, paths)]
    assert cli.main(words) == 0
    (question,) = read_questions(out, name)
    assert question.number == str(row["question_id"])
    picture = tmp_path / "images" / row["image"]
    picture.parent.mkdir(parents=True)
    picture.touch()
    (asked,) = read_picture_questions(out, tmp_path / "images")
    assert (asked.picture, asked.text) == (picture, found["text"])


def test_a_test_set_has_no_truths(tmp_path):
    (path, _) = saved(tmp_path, VQA)
    (found,) = published_questions("vqa", [path])
    assert "answers" not in found


def test_another_split_of_scienceqa(tmp_path):
    files = {
        "problems.json": {"2": PUBLISHED["scienceqa"][0]["problems.json"]["3"] | {"split": "val"}}
    }
    paths = saved(tmp_path, files)
    (found,) = published_questions("scienceqa", paths, split="val")
    assert found["image"] == "val/2/image.png"
    with pytest.raises(ValueError, match=r"problems\.json must hold a question; got number of"):
        published_questions("scienceqa", paths)


def test_mme_has_two_layouts(tmp_path, capsys):
    """Some subtasks keep pictures and texts together, the others in two folders."""
    both = "Is it {}? Please answer yes or no.\tYes\nIs it {}? Please answer yes or no.\tNo\n"
    flat, parted = tmp_path / "mme" / "OCR", tmp_path / "mme" / "posters"
    for folder in (flat, parted / "images", parted / "questions_answers_YN"):
        folder.mkdir(parents=True)
    pillow().new("RGB", (9, 9)).save(flat / "1.png")
    (flat / "1.txt").write_text(both.format("a", "b") + "\n")
    pillow().new("RGB", (9, 9)).save(parted / "images" / "tt1.jpg")
    (parted / "questions_answers_YN" / "tt1.txt").write_text(both.format("c", "d"))
    found = published_questions("mme", [tmp_path / "mme"], request="")
    assert [row["image"] for row in found] == ["posters/images/tt1.jpg"] * 2 + ["OCR/1.png"] * 2
    assert [row["answer"] for row in found] == ["Yes", "No"] * 2
    assert found[0]["question_id"] == "posters/tt1/1"
    assert found[3]["text"] == "Is it b? Please answer yes or no."
    out = tmp_path / "mme.jsonl"
    words = ["questions", "--benchmark", "mme", "--files", str(tmp_path / "mme")]
    assert cli.main([*words, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 4 questions about 2 pictures.\n"
    assert len(read_questions(out, "mme")) == 4
    (flat / "1.png").unlink()
    with pytest.raises(ValueError, match=r"1\.txt must have a picture of the same name in .*OCR"):
        published_questions("mme", [tmp_path / "mme"])


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("vqa", {"a.json": {"annotations": []}}, "`files` must hold `questions` in one file"),
        (
            "vqa",
            VQA | {"v2_annotations.json": {"annotations": [{"question_id": 1, "answers": []}]}},
            r"`annotations` must have an answer to each .*; got question without one = 7001",
        ),
        ("gqa", {"a.json": []}, r"a\.json must hold a JSON object; got content = \[\]"),
        ("gqa", {"a.json": {"1": {"question": "?"}}}, "Each entry of .* must have `imageId`"),
        ("textvqa", {"a.json": {}}, "Each entry of .* must have `data`"),
        (
            "textvqa",
            {
                "a.json": {
                    "data": [{"question_id": 1, "image_id": "a", "question": "?", "answers": ["a"]}]
                }
            },
            r"question 1: `answers` must hold the answers of 10 people; got len\(answers\) = 1",
        ),
        (
            "scienceqa",
            {
                "p.json": {
                    "1": {"image": "a.png", "split": "test", "question": "?"}
                    | {"choices": ["a", "b"], "answer": 2}
                }
            },
            r"`answer` of .* must be the place of a choice, in \[0, 1\]; got answer = 2",
        ),
        ("mme", {"a.json": {}}, "`files` must be one folder, which has a folder for each subtask"),
    ],
)
def test_files_of_another_form_are_refused_by_name(name, files, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        published_questions(name, saved(tmp_path, files))


def test_a_benchmark_without_such_files_is_refused():
    with pytest.raises(ValueError, match="`benchmark` must be one of vqa, textvqa, gqa"):
        published_questions("refcoco", [])
