"""MME's own form of answers: a folder with a text file for each subtask, such as count.txt.

    picture ⇥ question ⇥ truth ⇥ answer

A line is one question, its four parts are separated by tabs, and the two lines about a picture
follow one another. The folder holds the truths, so that it can be scored alone.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dfm_jax.checks import require
from dfm_jax.durable import NewFolder
from dfm_jax.scoring.truths import COGNITION, PERCEPTION, Question, check_truth

SUBTASKS = (*PERCEPTION, *COGNITION)
_PARTS = 4


class Answered(NamedTuple):
    """The questions of a folder, and one answer to each."""

    questions: list[Question]
    texts: list[str]


def mme_files(
    questions: Sequence[Question], asked: Sequence[str], texts: Sequence[str]
) -> dict[str, str]:
    """The name and the content of each file of the folder.

    A picture has the last part of its path as its name. Tabs and line ends inside a text become
    blanks.

    Args:
        questions: The questions, with `category`, `picture` and the true answer.
        asked: The text of each question.
        texts: One answer to each.

    Raises:
        ValueError: if the numbers differ; if a question does not have the form that MME needs; if a
            subtask does not have two questions about each name of a picture.
    """
    rule = f"`texts` must hold an answer to each of {len(questions)} questions"
    require(len(texts) == len(questions) == len(asked), rule, len(texts), name="len(texts)")
    lines: dict[str, dict[str, list[str]]] = {}
    for question, text, answer in zip(questions, asked, texts, strict=True):
        check_truth("mme", question)
        name = PurePosixPath(str(question.picture)).name
        parts = (name, text, question.answers[0], answer)
        line = "\t".join(" ".join(part.split()) for part in parts)
        lines.setdefault(str(question.category), {}).setdefault(name, []).append(line)
    for task, pictures in lines.items():
        for name, both in pictures.items():
            rule = f"The subtask {task} must have two questions about the picture {name!r}"
            require(len(both) == 2, rule, len(both), name="number of questions")
    return {
        f"{task}.txt": "".join(f"{line}\n" for both in lines[task].values() for line in both)
        for task in SUBTASKS
        if task in lines
    }


def write_mme_folder(
    folder: Path, questions: Sequence[Question], asked: Sequence[str], texts: Sequence[str]
) -> None:
    """Write `mme_files` as a new folder, which appears completely or not at all.

    Raises:
        ValueError: as `mme_files`; if something has this name.
    """
    require(not folder.exists(), "`folder` must not exist yet", folder)
    files = mme_files(questions, asked, texts)
    with NewFolder(folder) as new:
        for name, content in files.items():
            new.write(name, content.encode())
        new.finish()


def read_mme_folder(folder: Path) -> Answered:
    """Read the files of a folder; the number of a question is its subtask, picture and text.

    Raises:
        ValueError: if a file is not named after a subtask, or none is; if a line does not have four
            parts, or its truth is not yes or no; if a question comes twice. The message names the
            file and the line.
    """
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    rule = f"{folder} must hold only files that are named after subtasks of MME, such as count.txt"
    known = [f"{task}.txt" for task in SUBTASKS]
    strange = [path.name for path in paths if path.name not in known]
    require(not strange, rule, strange[:5], name="others")
    require(bool(paths), rule, 0, name="number of files")
    answered = Answered([], [])
    for path in paths:
        seen: set[str] = set()
        for line, question, text in _lines(path):
            rule = f"{path}, line {line}: each question must come once"
            require(question.number not in seen, rule, question.number, name="question")
            seen.add(question.number)
            answered.questions.append(question)
            answered.texts.append(text)
    return answered


def _lines(path: Path) -> Iterator[tuple[int, Question, str]]:
    rows = path.read_text(encoding="utf-8").split("\n")
    for line, row in enumerate(rows[:-1] if rows[-1] == "" else rows, start=1):
        parts = row.split("\t")
        rule = f"{path}, line {line}: picture, question, truth and answer must be parted by tabs"
        require(len(parts) == _PARTS, rule, row, name="line")
        picture, asked, told, text = parts
        question = Question(
            f"{path.stem}/{picture}: {asked}", (told,), category=path.stem, picture=picture
        )
        try:
            check_truth("mme", question)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        yield line, question, text
