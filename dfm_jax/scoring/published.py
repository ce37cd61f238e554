"""Questions as the benchmarks publish them, made the rows that `answer` and `score` read.

    vqa              the files of questions, and of annotations where they are public
    textvqa          TextVQA_0.5.1_val.json
    gqa              testdev_balanced_questions.json
    docvqa, infovqa  val_v1.0.json, infographicsVQA_val_v1.0.json
    chartqa          test_human.json, test_augmented.json
    scienceqa        problems.json, of which the questions with a picture are taken
    pope             coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json
    mme              the folder MME_Benchmark

A row has `question_id`, `image`, `text`, and the truth where the files have one. `text` ends with
the request for a short answer that LLaVA-1.5 and InternVL2.5 use.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dfm_jax.checks import require
from dfm_jax.json_text import read_json
from dfm_jax.scoring.answers import LETTERS
from dfm_jax.scoring.mme_folder import SUBTASKS
from dfm_jax.scoring.predictions import json_rows, question_of
from dfm_jax.scoring.truths import check_truth

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."

Row = dict[str, Any]


def published_questions(
    benchmark: str, files: Sequence[Path], *, split: str = "test", request: str | None = None
) -> list[Row]:
    """The rows of a benchmark's own files.

    Args:
        benchmark: The name of the benchmark.
        files: Its files, or MME's folder.
        split: The part of ScienceQA.
        request: The last line of each text; None takes that of LLaVA-1.5 and InternVL2.5, and ""
            leaves it out.

    Raises:
        ValueError: if the benchmark has no such files; if a file has another form; if an id occurs
            twice; if a truth does not have the form that `score` needs.
    """
    known = ", ".join(_READERS)
    require(benchmark in _READERS, f"`benchmark` must be one of {known}", benchmark)
    require(len(files) > 0, "`files` must name a file", list(files))
    last = (LETTER if benchmark == "scienceqa" else SHORT) if request is None else request
    found: dict[Any, Row] = {}
    for path, row in _READERS[benchmark](files, split):
        number = row["question_id"]
        rule = f"each `question_id` of {path} must come once"
        require(number not in found, rule, number)
        row["text"] = "\n".join(filter(None, (row["text"].strip(), last)))
        if "answer" in row or "answers" in row:
            try:
                check_truth(benchmark, question_of(str(number), row))
            except ValueError as error:
                raise ValueError(f"{path}, question {number}: {error}") from error
        found[number] = row
    rule = f"{', '.join(map(str, files))} must hold a question"
    require(bool(found), rule, 0, name="number of questions")
    return list(found.values())


Found = Iterator[tuple[Path, Row]]


def _vqa(files: Sequence[Path], _: str) -> Found:
    contents = {path: _object(path) for path in files}
    answers: dict[Any, list[str]] = {}
    for path, content in contents.items():
        for note in content.get("annotations", ()):
            people = _field(path, note, "answers")
            answers[_field(path, note, "question_id")] = [_field(path, p, "answer") for p in people]
    asked = [path for path, content in contents.items() if "questions" in content]
    rule = "`files` must hold `questions` in one file, and `annotations` in another"
    require(len(asked) == 1, rule, [path.name for path in files])
    (path,) = asked
    subtype = _field(path, contents[path], "data_subtype")
    for one in contents[path]["questions"]:
        number, picture = _field(path, one, "question_id"), _field(path, one, "image_id")
        require(type(picture) is int, f"`image_id` of {path} must be a whole number", picture)
        row = _row(path, one, number, f"COCO_{subtype}_{picture:012d}.jpg")
        rule = f"`annotations` must have an answer to each question of {path}"
        require(not answers or number in answers, rule, number, name="question without one")
        yield path, row | ({"answers": answers[number]} if answers else {})


def _textvqa(files: Sequence[Path], _: str) -> Found:
    for path, one in _of_data(files):
        number, picture = _field(path, one, "question_id"), _field(path, one, "image_id")
        yield path, _row(path, one, number, f"{picture}.jpg") | _answers(one)


def _gqa(files: Sequence[Path], _: str) -> Found:
    for path in files:
        for number, one in _object(path).items():
            row = _row(path, one, number, f"{_field(path, one, 'imageId')}.jpg")
            yield path, row | ({"answer": one["answer"]} if "answer" in one else {})


def _documents(picture: str) -> Callable[[Sequence[Path], str], Found]:
    def rows(files: Sequence[Path], _: str) -> Found:
        for path, one in _of_data(files):
            number = _field(path, one, "questionId")
            yield path, _row(path, one, number, _field(path, one, picture)) | _answers(one)

    return rows


def _chartqa(files: Sequence[Path], _: str) -> Found:
    for path in files:
        for line, one in json_rows(path):
            row = _row(path, one, f"{path.stem}-{line}", _field(path, one, "imgname"), "query")
            yield path, row | {"answer": _field(path, one, "label"), "category": path.stem}


def _scienceqa(files: Sequence[Path], split: str) -> Found:
    for path in files:
        for number, one in _object(path).items():
            picture = _field(path, one, "image")
            if picture is None or _field(path, one, "split") != split:
                continue
            choices = _field(path, one, "choices")
            rule = f"`choices` of {path} must be a list of at most {len(LETTERS)} texts"
            require(isinstance(choices, list) and len(choices) <= len(LETTERS), rule, choices)
            row = _row(path, one, number, f"{split}/{number}/{picture}")
            options = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False)]
            row["text"] = "\n".join(filter(None, (one.get("hint"), row["text"], *options)))
            place = _field(path, one, "answer")
            within = type(place) is int and 0 <= place < len(choices)
            places = f"in [0, {len(choices) - 1}]"
            require(within, f"`answer` of {path} must be the place of a choice, {places}", place)
            yield path, row | {"answer": LETTERS[place], "choices": choices}


def _pope(files: Sequence[Path], _: str) -> Found:
    for path in files:
        kind = path.stem.rpartition("_")[2]
        for _line, one in json_rows(path):
            number = f"{kind}-{_field(path, one, 'question_id')}"
            row = _row(path, one, number, _field(path, one, "image"), "text")
            yield path, row | {"answer": _field(path, one, "label"), "category": kind}


def _mme(files: Sequence[Path], _: str) -> Found:
    rule = "`files` must be one folder, which has a folder for each subtask of MME"
    (root, *others) = files
    require(root.is_dir() and not others, rule, list(map(str, files)))
    for task in (task for task in SUBTASKS if (root / task).is_dir()):
        pictures, texts = root / task / "images", root / task / "questions_answers_YN"
        if not pictures.is_dir():
            pictures = texts = root / task
        named = {path.stem: path for path in pictures.iterdir() if path.suffix != ".txt"}
        for path in sorted(texts.glob("*.txt")):
            rule = f"{path} must have a picture of the same name in {pictures}"
            require(path.stem in named, rule, path.stem, name="name")
            picture = named[path.stem].relative_to(root).as_posix()
            lines = path.read_text(encoding="utf-8").splitlines()
            for line, text in enumerate(filter(str.strip, lines), start=1):
                asked, tab, told = text.partition("\t")
                rule = f"each line of {path} must be a question, a tab, and Yes or No"
                require(bool(tab), rule, text, name="line")
                row = {"question_id": f"{task}/{path.stem}/{line}", "image": picture}
                yield path, row | {"text": asked, "answer": told.strip(), "category": task}


_READERS: Mapping[str, Callable[[Sequence[Path], str], Found]] = MappingProxyType(
    {
        "vqa": _vqa,
        "textvqa": _textvqa,
        "gqa": _gqa,
        "scienceqa": _scienceqa,
        "docvqa": _documents("image"),
        "infovqa": _documents("image_local_name"),
        "chartqa": _chartqa,
        "pope": _pope,
        "mme": _mme,
    }
)


# ── fields ────────────────────────────────────────────────────────────────────────────────────────


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    require(isinstance(content, dict), f"{path} must hold a JSON object", content, name="content")
    return content


def _of_data(files: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in files:
        for one in _field(path, _object(path), "data"):
            yield path, one


def _field(path: Path, row: Any, name: str) -> Any:
    rule = f"Each entry of {path} must have `{name}`"
    held = sorted(row) if isinstance(row, dict) else row
    require(isinstance(row, dict) and name in row, rule, held, name="entry")
    return row[name]


def _row(path: Path, one: Any, number: Any, picture: str, name: str = "question") -> Row:
    text = _field(path, one, name)
    require(isinstance(text, str), f"`{name}` of {path} must be a text", text)
    return {"question_id": number, "image": picture, "text": text}


def _answers(one: Mapping[str, Any]) -> Row:
    return {"answers": one["answers"]} if one.get("answers") else {}
