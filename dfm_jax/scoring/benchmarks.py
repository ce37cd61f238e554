"""The benchmarks by name, and what each reports of questions and answers."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from dfm_jax.checks import require
from dfm_jax.scoring import answers, boxes, yes_no
from dfm_jax.scoring.predictions import Question

Scores = dict[str, float]
Scorer = Callable[[Sequence[Question], Sequence[str]], Scores]

MME_COGNITION = (
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)
"""The subtasks of MME that are summed as cognition; all others are perception."""


def mean_of(name: str, score: Callable[[str, Question], float]) -> Scorer:
    """The mean of one score over the questions; one that cannot be scored is named."""

    def scorer(questions: Sequence[Question], texts: Sequence[str]) -> Scores:
        total = 0.0
        for text, question in zip(texts, questions, strict=True):
            try:
                total += score(text, question)
            except ValueError as error:
                raise ValueError(f"question {question.number}: {error}") from error
        return {name: total / len(questions)}

    return scorer


def of_choice(text: str, question: Question) -> float:
    """1 if the letter that is chosen is the answer's; of ScienceQA.

    Raises:
        ValueError: if the question says nothing of its choices.
    """
    require(question.choices is not None, "`choices` must be given", question.choices)
    assert question.choices is not None
    letter = answers.chosen_letter(text, question.choices)
    return float(letter is not None and letter in question.answers)


def pope(questions: Sequence[Question], texts: Sequence[str]) -> Scores:
    """Accuracy, precision, recall, F1 and the rate of "yes"; `answer` is yes or no."""
    told = [_says_yes(question) for question in questions]
    return yes_no.yes_no_scores([yes_no.pope_says_yes(text) for text in texts], told)._asdict()


def mme(questions: Sequence[Question], texts: Sequence[str]) -> Scores:
    """Points of perception, of cognition and of each subtask, two questions a picture.

    Each subtask has at most 200 points. `category` is the subtask, `image` the picture.
    """
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for question, text in zip(questions, texts, strict=True):
        where = (question.category, question.picture)
        rule = f"`category` and `image` must stand with question {question.number}"
        require(None not in where, rule, where)
        told = "yes" if _says_yes(question) else "no"
        right[str(question.category)][str(question.picture)].append(yes_no.mme_says(text) == told)
    points = {task: yes_no.pair_scores(pictures).points for task, pictures in right.items()}
    cognition = sum(points[task] for task in points if task in MME_COGNITION)
    return {
        "perception": sum(points.values()) - cognition,
        "cognition": cognition,
    } | points


BENCHMARKS: Mapping[str, Scorer] = MappingProxyType(
    {
        "vqa": mean_of("accuracy", lambda text, q: answers.vqa_accuracy(text, q.answers)),
        "textvqa": mean_of("accuracy", lambda text, q: answers.vqa_accuracy(text, q.answers)),
        "gqa": mean_of("accuracy", lambda text, q: answers.exact_match(text, q.answers)),
        "ai2d": mean_of("accuracy", lambda text, q: answers.exact_match(text, q.answers)),
        "scienceqa": mean_of("accuracy", of_choice),
        "docvqa": mean_of("anls", lambda text, q: answers.anls(text, q.answers)),
        "infovqa": mean_of("anls", lambda text, q: answers.anls(text, q.answers)),
        "chartqa": mean_of(
            "relaxed_accuracy",
            lambda text, q: max(answers.relaxed_match(text, told) for told in q.answers),
        ),
        "refcoco": mean_of(
            "accuracy", lambda text, q: max(boxes.box_match(text, told) for told in q.answers)
        ),
        "pope": pope,
        "mme": mme,
    }
)


def score(name: str, questions: Sequence[Question], texts: Sequence[str]) -> dict[str, Any]:
    """What a benchmark reports: over all questions and, but for MME, for each category.

    Raises:
        ValueError: if there is no such benchmark, or a question lacks what it needs.
    """
    require(name in BENCHMARKS, f"`benchmark` must be one of {', '.join(BENCHMARKS)}", name)
    scorer = BENCHMARKS[name]
    found: dict[str, Any] = {"scores": scorer(questions, texts)}
    categories = [q.category for q in questions]
    if name != "mme" and any(category is not None for category in categories):
        found["categories"] = {}
        for category in dict.fromkeys(categories):
            rows = [i for i, own in enumerate(categories) if own == category]
            own = scorer([questions[i] for i in rows], [texts[i] for i in rows])
            found["categories"][str(category)] = {"questions": len(rows)} | own
    return found


def _says_yes(question: Question) -> bool:
    told = question.answers[0].strip().lower()
    rule = f"the answer of question {question.number} must be yes or no"
    require(told in ("yes", "no"), rule, told)
    return told == "yes"
