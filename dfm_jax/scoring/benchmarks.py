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


def mean_of(name: str, score: Callable[[str, Question], float]) -> Scorer:
    """The mean of one score over the questions."""

    def scorer(questions: Sequence[Question], texts: Sequence[str]) -> Scores:
        pairs = zip(texts, questions, strict=True)
        return {name: sum(score(text, question) for text, question in pairs) / len(questions)}

    return scorer


def scienceqa(questions: Sequence[Question], texts: Sequence[str]) -> Scores:
    """The share of right letters, and the share of texts without a letter."""
    pairs = zip(texts, questions, strict=True)
    letters = [answers.chosen_letter(text, question.choices or 0) for text, question in pairs]
    right = [own in q.answers for own, q in zip(letters, questions, strict=True)]
    return {
        "accuracy": sum(right) / len(right),
        "without_a_letter": letters.count(None) / len(letters),
    }


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
    hits, found = [], [boxes.read_box(text) for text in texts]
    for own, question in zip(found, questions, strict=True):
        told, of_truth = boxes.read_box(question.answers[0]), question.box_scale
        assert told is not None  # `check_truth` saw to both
        assert of_truth is not None
        if of_truth != scale:
            told = boxes.in_shares(told, of_truth, question.size)
            own = own and boxes.in_shares(own, scale, question.size)
        hits.append(own is not None and boxes.overlap(own, told) >= boxes.THRESHOLD)
    return {"accuracy": sum(hits) / len(hits), "without_a_box": found.count(None) / len(found)}


def pope(questions: Sequence[Question], texts: Sequence[str]) -> Scores:
    """Accuracy, precision, recall, F1 and the share of "yes"; `answer` is yes or no."""
    told = [_says_yes(question) for question in questions]
    return answers.yes_no_scores([answers.pope_says_yes(text) for text in texts], told)._asdict()


def mme(questions: Sequence[Question], texts: Sequence[str]) -> Scores:
    """Points of perception, of cognition and of each subtask, with two questions per picture.

    Each subtask has at most 200 points. `category` is the subtask, `image` the picture.
    """
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for question, text in zip(questions, texts, strict=True):
        told = "yes" if _says_yes(question) else "no"
        right[str(question.category)][str(question.picture)].append(answers.mme_says(text) == told)
    for task, pictures in right.items():
        for picture, both in pictures.items():
            rule = f"`image` {picture!r} must have two questions of `category` {task!r}"
            require(len(both) == 2, rule, len(both), name="number of questions")
    points = {task: answers.pair_scores(pictures).points for task, pictures in right.items()}
    cognition = sum(points[task] for task in points if task in COGNITION)
    return {
        "perception": sum(points.values()) - cognition,
        "cognition": cognition,
    } | points


BENCHMARKS: Mapping[str, Scorer] = MappingProxyType(
    {
        "vqa": mean_of("accuracy", lambda text, q: answers.vqa_accuracy(text, q.answers)),
        "textvqa": mean_of("accuracy", lambda text, q: answers.textvqa_accuracy(text, q.answers)),
        "gqa": mean_of("accuracy", lambda text, q: answers.exact_match(text, q.answers)),
        "ai2d": mean_of("accuracy", lambda text, q: answers.exact_match(text, q.answers)),
        "scienceqa": scienceqa,
        "docvqa": mean_of("anls", lambda text, q: answers.anls(text, q.answers)),
        "infovqa": mean_of("anls", lambda text, q: answers.anls(text, q.answers)),
        "chartqa": mean_of(
            "relaxed_accuracy",
            lambda text, q: max(answers.relaxed_match(text, told) for told in q.answers),
        ),
        "refcoco": refcoco,
        "pope": pope,
        "mme": mme,
    }
)


def score(
    name: str,
    questions: Sequence[Question],
    texts: Sequence[str],
    *,
    box_scale: boxes.Scale | None = None,
) -> dict[str, Any]:
    """The scores of a benchmark, over all questions and, except for MME, for each category.

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
    if name != "mme" and any(category is not None for category in categories):
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


def _says_yes(question: Question) -> bool:
    return question.answers[0].strip().lower() == "yes"
