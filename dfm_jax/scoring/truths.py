"""The form of true answers that each benchmark needs; other forms would silently score 0."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from dfm_jax.checks import require
from dfm_jax.scoring.answers import LETTERS, number_in
from dfm_jax.scoring.boxes import SCALES, Scale, fits_scale, read_box

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark"),
    *("artwork", "OCR"),
)
"""The subtasks of MME that are summed as perception."""

COGNITION = (
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)
"""Those that are summed as cognition."""

_PEOPLE = 10  # who answered each question of VQA v2 and TextVQA


class Question(NamedTuple):
    """One question and its true answers."""

    number: str
    answers: tuple[str, ...]
    category: str | None = None
    picture: str | None = None
    choices: int | None = None  # of how many letters
    box_scale: Scale | None = None  # of the answer, where it is a box
    size: tuple[int, int] | None = None  # of the picture: width and height in pixels


def check_truth(benchmark: str, question: Question) -> None:
    """Refuse a question whose true answer does not have the type, range and form of the benchmark.

    Raises:
        ValueError: if it does not; the message names the field, the rule and the value, but not the
            question.
    """
    _CHECKS[benchmark](question)


def _of_ten_people(question: Question) -> None:
    rule = f"`answers` must hold the answers of {_PEOPLE} people"
    require(len(question.answers) == _PEOPLE, rule, len(question.answers), name="len(answers)")


def _of_words(question: Question) -> None:
    for answer in question.answers:
        require(answer.strip() != "", "`answer` must not be blank", answer)


def _of_one_word(question: Question) -> None:
    require(len(question.answers) == 1, "`answers` must hold one answer", list(question.answers))
    _of_words(question)


def _of_numbers(question: Question) -> None:
    _of_words(question)
    for answer in question.answers:
        number = number_in(answer)
        rule = "`answer` must be a text or a finite number"
        require(number is None or math.isfinite(number), rule, answer)


def _of_letters(question: Question) -> None:
    _of_one_word(question)
    known = LETTERS[: question.choices]
    if question.choices is not None:
        require(2 <= question.choices <= 26, "`choices` must lie in [2, 26]", question.choices)
    rule = f"`answer` must be the capital letter of a choice, {known[0]} to {known[-1]}"
    require(question.answers[0] in tuple(known), rule, question.answers[0])


def _of_choices(question: Question) -> None:
    require(question.choices is not None, "`choices` must be given", question.choices)
    _of_letters(question)


def _of_boxes(question: Question) -> None:
    _of_one_word(question)
    (answer,), scale = question.answers, question.box_scale
    box = read_box(answer)
    require(box is not None, "`answer` must name a box [x_1, y_1, x_2, y_2]", answer)
    assert box is not None
    rule = "`answer` must be a box [x_1, y_1, x_2, y_2] with x_1 < x_2 and y_1 < y_2"
    require(box.x_1 < box.x_2 and box.y_1 < box.y_2, rule, answer)
    require(scale in SCALES, f"`box_scale` must be one of {', '.join(SCALES)}", scale)
    assert scale is not None
    where = "in" if question.size is None else "in a picture of {} × {}".format(*question.size)
    where = f"`answer` must be a box {where} {scale}, as `box_scale` says"
    require(fits_scale(box, scale, question.size), where, answer)


def _of_yes_and_no(question: Question) -> None:
    _of_one_word(question)
    told = question.answers[0]
    require(told.strip().lower() in ("yes", "no"), "`answer` must be yes or no", told)


def _of_pairs(question: Question) -> None:
    _of_yes_and_no(question)
    known = (*PERCEPTION, *COGNITION)
    rule = f"`category` must be a subtask of MME, one of {', '.join(known)}"
    require(question.category in known, rule, question.category)
    require(question.picture is not None, "`image` must be given", question.picture)


_CHECKS: Mapping[str, Callable[[Question], None]] = MappingProxyType(
    {
        "vqa": _of_ten_people,
        "textvqa": _of_ten_people,
        "gqa": _of_one_word,
        "ai2d": _of_letters,
        "scienceqa": _of_choices,
        "docvqa": _of_words,
        "infovqa": _of_words,
        "chartqa": _of_numbers,
        "refcoco": _of_boxes,
        "pope": _of_yes_and_no,
        "mme": _of_pairs,
    }
)
