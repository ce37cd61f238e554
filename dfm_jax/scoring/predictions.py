"""The questions of a benchmark, and files of answers, in which each question occurs once."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dfm_jax.checks import require
from dfm_jax.json_text import read_json, read_json_lines
from dfm_jax.scoring.truths import Question, check_truth

_NAMED = 5  # of what is missing or superfluous, in an error


class Merged(NamedTuple):
    """An answer to every question, in the order of the questions, and the number from each file."""

    texts: list[str]
    files: dict[str, int]


def read_questions(path: Path, benchmark: str) -> list[Question]:
    """Read JSONL of `question_id` and `answers`, a list of texts, or `answer`, a single text.

    If the benchmark needs them, rows also have `category`, `image`, `choices` (a list, or their
    number), `box_scale`, `width` and `height` (of the picture, in pixels).

    Raises:
        ValueError: if a row does not have this form; if an id occurs twice; if a true answer does
            not have the form that the benchmark needs. The message names the file, the line and the
            rule.
    """
    found: dict[str, Question] = {}
    for line, row in json_rows(path):
        number = _number(path, line, row)
        if number in found:
            rule = "each `question_id` must come once"
            raise ValueError(f"{path}, line {line}: {rule}; got question_id = {number} again.")
        try:
            question = question_of(number, row)
            check_truth(benchmark, question)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        found[number] = question
    require(len(found) > 0, f"{path} must hold a question", 0, name="number of questions")
    return list(found.values())


def question_of(number: str, row: dict[str, Any]) -> Question:
    """A row as a question, see `read_questions`.

    Raises:
        ValueError: if it does not have the form of one.
    """
    given = [row[name] for name in ("answers", "answer") if row.get(name) is not None]
    answers = [given[0]] if len(given) == 1 and _is_text(given[0]) else given[0] if given else None
    if len(given) != 1 or not isinstance(answers, list) or not all(map(_is_text, answers)):
        held = {name: row[name] for name in ("answers", "answer") if name in row}
        rule = "The row must have either `answers`, a list of texts, or `answer`, a text"
        raise ValueError(f"{rule}; got {held}.")
    if not answers:
        raise ValueError("`answers` must hold at least one text; got answers = [].")
    choices = row.get("choices")
    choices = len(choices) if isinstance(choices, list) else choices
    if choices is not None and type(choices) is not int:
        rule = "`choices` must be a list, or the number of choices"
        raise ValueError(f"{rule}; got choices = {choices!r}.")
    for name in ("category", "image", "box_scale"):
        if row.get(name) is not None and not _is_text(row[name]):
            raise ValueError(f"`{name}` must be a text; got {name} = {row[name]!r}.")
    size: Any = (row.get("width"), row.get("height"))
    if size != (None, None) and not all(type(side) is int and side > 0 for side in size):
        rule = "`width` and `height` must be whole numbers above 0"
        raise ValueError(f"{rule}; got (width, height) = {size!r}.")
    return Question(
        number=number,
        answers=tuple(answers),
        category=row.get("category"),
        picture=row.get("image"),
        choices=choices,
        box_scale=row.get("box_scale"),
        size=None if size == (None, None) else size,
    )


def merge_predictions(questions: Sequence[Question], paths: Sequence[Path]) -> Merged:
    """Merge the answers of several files; every question must be answered exactly once.

    A file is JSONL, or a JSON array, of `question_id` (or `questionId`) and `text` (or `answer`, or
    `prediction`): what `submission` writes can be read.

    Raises:
        ValueError: if a question is answered twice or not at all, or an answer has no question; the
            message names them.
    """
    asked = {question.number for question in questions}
    found: dict[str, tuple[str, Path]] = {}
    counts, strange = {}, []
    for path in paths:
        counts[str(path)] = 0
        for line, row in json_rows(path):
            number, text = _number(path, line, row), _text(path, line, row)
            if number in found:
                raise ValueError(
                    f"{path}, line {line}: each question must be answered once; got question_id = "
                    f"{number}, which {found[number][1]} has answered."
                )
            found[number] = text, path
            counts[str(path)] += 1
            if number not in asked:
                strange.append(number)
    files = ", ".join(counts)
    rule = f"Each answer in {files} must belong to a question"
    _refuse(rule, "answers to unknown questions", strange)
    missing = [q.number for q in questions if q.number not in found]
    rule = f"Each question must have an answer in {files}"
    _refuse(rule, "questions without an answer", missing)
    return Merged([found[question.number][0] for question in questions], counts)


def _refuse(rule: str, name: str, numbers: Sequence[str]) -> None:
    more = f" ({len(numbers)} in all)" if len(numbers) > _NAMED else ""
    require(not numbers, rule, list(numbers[:_NAMED]), name=f"{name}{more}")


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file of JSONL, by line; those of an array by their number, from 1.

    Raises:
        ValueError: if the file is no JSON, or a row no object.
    """
    with path.open("rb") as file:
        array = file.read(1) == b"["
    for line, row in enumerate(read_json(path), start=1) if array else read_json_lines(path):
        if not isinstance(row, dict):
            place = f"{path}, {'row' if array else 'line'} {line}"
            raise ValueError(f"{place}: the row must be an object; got row = {row!r}.")
        yield line, row


# ── What the evaluation servers of the benchmarks take ────────────────────────────────────────────

# The names of the id and of the answer, in an array of JSON; the others are JSONL, as here.
_ARRAYS = {
    "vqa": ("question_id", "answer"),
    "textvqa": ("question_id", "answer"),
    "gqa": ("questionId", "prediction"),
    "docvqa": ("questionId", "answer"),
    "infovqa": ("questionId", "answer"),
}


def submission(benchmark: str, numbers: Sequence[int | str], texts: Sequence[str]) -> str:
    """The content of a file in the form that a benchmark's own evaluation reads.

    VQA v2 and TextVQA take an array of `question_id` and `answer`, GQA one of `questionId` (a text)
    and `prediction`, DocVQA and InfoVQA one of `questionId` and `answer`. MME takes a folder, see
    `mme_files`. The others have no server that takes a file; they get JSONL of `question_id` and
    `text`.

    Raises:
        ValueError: if the benchmark is MME; if the numbers of ids and texts differ.
    """
    rule = "`benchmark` must not be mme, because that takes a folder: see `mme_files`"
    require(benchmark != "mme", rule, benchmark)
    rule = f"`texts` must hold an answer for each of {len(numbers)} questions"
    require(len(texts) == len(numbers), rule, len(texts), name="len(texts)")
    pairs = list(zip(numbers, texts, strict=True))
    if benchmark not in _ARRAYS:
        rows = ({"question_id": number, "text": text} for number, text in pairs)
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    name, answer = _ARRAYS[benchmark]
    ids = [str(number) if benchmark == "gqa" else number for number, _ in pairs]
    rows = [{name: i, answer: text} for i, (_, text) in zip(ids, pairs, strict=True)]
    return json.dumps(rows, ensure_ascii=False, indent=0) + "\n"


def _number(path: Path, line: int, row: dict[str, Any]) -> str:
    number = row.get("question_id", row.get("questionId"))
    if not isinstance(number, int | str) or isinstance(number, bool):
        raise ValueError(
            f"{path}, line {line}: `question_id` must be a number or a text; got question_id = "
            f"{number!r}."
        )
    return str(number)


def _text(path: Path, line: int, row: dict[str, Any]) -> str:
    given = [name for name in ("text", "answer", "prediction") if name in row]
    if len(given) != 1 or not _is_text(row[given[0]]):
        raise ValueError(
            f"{path}, line {line}: the row must have one text, `text`, `answer` or `prediction`; "
            f"got { {name: row[name] for name in given} }."
        )
    return row[given[0]]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
