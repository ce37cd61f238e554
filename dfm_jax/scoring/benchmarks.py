"""The benchmarks by name, and the scores that each reports."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from dfm_jax.checks import require
from dfm_jax.scoring import answers, boxes
from dfm_jax.scoring.truths import COGNITION, Question, check_truth

Scores = dict[str, float]
Scorer = Callable[[Sequence[Question], Sequence[str]], Scores]
QuestionScore = Callable[[str, Question], float]
"""The score of one answer, in [0, 1]."""


def mean_of(name: str, score: QuestionScore) -> Scorer:
    """The mean of one score over the questions."""

    def scorer(questions: Sequence[Question], texts: Sequence[str]) -> Scores:
        pairs = zip(texts, questions, strict=True)
        return {name: sum(score(text, question) for text, question in pairs) / len(questions)}

    return scorer


def scienceqa(questions: Sequence[Question], texts: Sequence[str]) -> Scores:
    """The share of right letters, and the share of texts without a letter."""
    pairs = list(zip(texts, questions, strict=True))
    letters = [answers.chosen_letter(text, question.choices or 0) for text, question in pairs]
    return {
        "accuracy": sum(has_right_letter(*pair) for pair in pairs) / len(pairs),
        "without_a_letter": letters.count(None) / len(letters),
    }


def has_right_letter(text: str, question: Question) -> float:
    """1 if the letter that ScienceQA reads in a text is the right one."""
    return float(answers.chosen_letter(text, question.choices or 0) in question.answers)


def refcoco(
    questions: Sequence[Question], texts: Sequence[str], *, scale: boxes.Scale = "pixels"
) -> Scores:
    """The share of boxes that overlap the true one by half or more, and of texts without a box.

    Args:
        questions: The questions, with the scale of each true box.
        texts: The answers; the first box in each text is used.
        scale: The scale of the boxes in the texts. If it differs from that of the true box, both
            are converted to shares of the picture.
    """
    pairs = list(zip(texts, questions, strict=True))
    hits = [has_right_box(*pair, scale=scale) for pair in pairs]
    without = sum(boxes.read_box(text) is None for text in texts)
    return {"accuracy": sum(hits) / len(hits), "without_a_box": without / len(texts)}


def has_right_box(text: str, question: Question, *, scale: boxes.Scale) -> float:
    """1 if the first box of a text, in this scale, overlaps the true one by half or more."""
    own, of_truth = boxes.read_box(text), question.box_scale
    told = boxes.read_box(question.answers[0])
    assert told is not None  # `check_truth` saw to both
    assert of_truth is not None
    if own is not None and of_truth != scale:
        told = boxes.in_shares(told, of_truth, question.size)
        own = boxes.in_shares(own, scale, question.size)
    return float(own is not None and boxes.overlap(own, told) >= boxes.THRESHOLD)


def pope(questions: Sequence[Question], texts: Sequence[str]) -> Scores:
    """Accuracy, precision, recall, F1 and the share of "yes"; `answer` is yes or no."""
    told = [says_yes(question) for question in questions]
    return answers.yes_no_scores([answers.pope_says_yes(text) for text in texts], told)._asdict()


def mme(questions: Sequence[Question], texts: Sequence[str]) -> Scores:
    """Points of perception, of cognition and of each subtask, with two questions per picture.

    Each subtask has at most 200 points. `category` is the subtask, `image` the picture.
    """
    points = {task: of.points for task, of in mme_subtasks(questions, texts).items()}
    cognition = sum(points[task] for task in points if task in COGNITION)
    return {
        "perception": sum(points.values()) - cognition,
        "cognition": cognition,
    } | points


def mme_subtasks(
    questions: Sequence[Question], texts: Sequence[str]
) -> dict[str, answers.PairScores]:
    """The accuracy and accuracy+ of each subtask of MME, in points of 100.

    Raises:
        ValueError: if a picture does not have two questions of a subtask.
    """
    right = mme_pairs(questions, texts)
    return {task: answers.pair_scores(pictures) for task, pictures in right.items()}


def mme_pairs(
    questions: Sequence[Question], texts: Sequence[str]
) -> dict[str, dict[str, list[bool]]]:
    """Whether the two answers about each picture are right, by subtask and picture.

    Raises:
        ValueError: if a picture does not have two questions of a subtask.
    """
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for question, text in zip(questions, texts, strict=True):
        is_right = answers.mme_says(text) == ("yes" if says_yes(question) else "no")
        right[str(question.category)][str(question.picture)].append(is_right)
    for task, pictures in right.items():
        for picture, both in pictures.items():
            rule = f"`image` {picture!r} must have two questions of `category` {task!r}"
            require(len(both) == 2, rule, len(both), name="number of questions")
    return {task: dict(pictures) for task, pictures in right.items()}


MEANS: Mapping[str, tuple[str, QuestionScore]] = MappingProxyType(
    {
        "vqa": ("accuracy", lambda text, q: answers.vqa_accuracy(text, q.answers)),
        "textvqa": ("accuracy", lambda text, q: answers.textvqa_accuracy(text, q.answers)),
        "gqa": ("accuracy", lambda text, q: answers.exact_match(text, q.answers)),
        "ai2d": ("accuracy", lambda text, q: answers.exact_match(text, q.answers)),
        "scienceqa": ("accuracy", has_right_letter),
        "docvqa": ("anls", lambda text, q: answers.anls(text, q.answers)),
        "infovqa": ("anls", lambda text, q: answers.anls(text, q.answers)),
        "chartqa": (
            "relaxed_accuracy",
            lambda text, q: max(answers.relaxed_match(text, told) for told in q.answers),
        ),
    }
)
"""The benchmarks whose score is a mean over questions: its name, and that of one question."""

BENCHMARKS: Mapping[str, Scorer] = MappingProxyType(
    {name: mean_of(*mean) for name, mean in MEANS.items()}
    | {"scienceqa": scienceqa, "refcoco": refcoco, "pope": pope, "mme": mme}
)


def score(
    name: str,
    questions: Sequence[Question],
    texts: Sequence[str],
    *,
    box_scale: boxes.Scale | None = None,
) -> dict[str, Any]:
    """The scores of a benchmark, over all questions and for each category.

    Args:
        name: The name of the benchmark.
        questions: The questions, with the true answers.
        texts: One answer to each question, in the order of the questions.
        box_scale: The scale of the boxes in the answers; only RefCOCO takes it, and needs it.

    Raises:
        ValueError: if there is no such benchmark; if a true answer does not have the form that it
            needs; if the boxes in the answers cannot have the given scale.
    """
    require(name in BENCHMARKS, f"`benchmark` must be one of {', '.join(BENCHMARKS)}", name)
    for question in questions:
        try:
            check_truth(name, question)
        except ValueError as error:
            raise ValueError(f"Question {question.number}: {error}") from error
    scorer = BENCHMARKS[name]
    rule = f"`box_scale` of the answers must be one of {', '.join(boxes.SCALES)}"
    require(name != "refcoco" or box_scale in boxes.SCALES, rule, box_scale)
    rule = f"`box_scale` must be None, because {name} has no boxes"
    require(name == "refcoco" or box_scale is None, rule, box_scale)
    if box_scale is not None:
        _check_scale(questions, texts, box_scale)
        scorer = partial(refcoco, scale=box_scale)
    found: dict[str, Any] = {"scores": scorer(questions, texts)}
    categories = [q.category for q in questions]
    if name == "mme":
        found["categories"] = {
            task: {"questions": categories.count(task)} | of._asdict() | {"points": of.points}
            for task, of in mme_subtasks(questions, texts).items()
        }
    elif any(category is not None for category in categories):
        found["categories"] = {}
        for category in dict.fromkeys(categories):
            rows = [i for i, own in enumerate(categories) if own == category]
            own = scorer([questions[i] for i in rows], [texts[i] for i in rows])
            found["categories"][str(category)] = {"questions": len(rows)} | own
    return found


def _check_scale(questions: Sequence[Question], texts: Sequence[str], scale: boxes.Scale) -> None:
    """Check the scale of boxes: some may lie outside the picture, but not all of them."""
    for question in questions:
        bare = question.size is None and question.box_scale != scale
        known = not bare or "pixels" not in (question.box_scale, scale)
        rule = (
            f"Question {question.number}: `width` and `height` must be given, because a box in "
            "pixels is compared with one in another scale"
        )
        require(known, rule, question.size, name="(width, height)")
    named = [(text, boxes.read_box(text), q) for text, q in zip(texts, questions, strict=True)]
    named = [(text, box, q) for text, box, q in named if box is not None]
    fits = not named or any(boxes.fits_scale(box, scale, q.size) for _, box, q in named)
    rule = f"At least one box in the answers must lie in {scale}, as `box_scale` says"
    require(fits, rule, named[0][0] if named else None, name="the first box")


def says_yes(question: Question) -> bool:
    """Whether the true answer is yes."""
    return question.answers[0].strip().lower() == "yes"
