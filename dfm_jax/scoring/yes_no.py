"""Questions of yes or no: POPE, which asks for objects that are not there, and MME, in pairs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dfm_jax.checks import require


class YesNoScores(NamedTuple):
    """Shares of the answers; "yes" is what is looked for. 0 where there is nothing to divide by."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_rate: float


def pope_says_yes(text: str) -> bool:
    """Whether the first sentence is without a word `No`, `no` or `not`: anything else is a yes.

    Source: the evaluation of POPE, Li et al. (2023).
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def yes_no_scores(predicted: Sequence[bool], answers: Sequence[bool]) -> YesNoScores:
    """Accuracy, precision, recall and F1 of "yes", and how often it is said.

    Raises:
        ValueError: if there is no answer, or there are not as many of one as of the other.
    """
    rule = "`predicted` must hold one for each of the answers, at least one; their numbers"
    require(0 < len(answers) == len(predicted), rule, (len(predicted), len(answers)))
    pairs = list(zip(predicted, answers, strict=True))
    hits, said, true = pairs.count((True, True)), sum(predicted), sum(answers)
    precision, recall = _share(hits, said), _share(hits, true)
    return YesNoScores(
        accuracy=sum(a == b for a, b in pairs) / len(pairs),
        precision=precision,
        recall=recall,
        f1=_share(2 * precision * recall, precision + recall),
        yes_rate=said / len(pairs),
    )


class PairScores(NamedTuple):
    """Of one subtask of MME: points out of 100 for questions, and for pictures."""

    accuracy: float
    accuracy_plus: float

    @property
    def points(self) -> float:
        """Out of 200."""
        return self.accuracy + self.accuracy_plus


def mme_says(text: str) -> str:
    """`yes`, `no` or `other`, by the first four characters; yes, if they hold both.

    Source: the evaluation of MME, Fu et al. (2023).
    """
    head = text.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in head), "other")


def pair_scores(right: Mapping[str, Sequence[bool]]) -> PairScores:
    """Right answers of a subtask, by picture: the share of questions, and of pictures all right.

    Raises:
        ValueError: if there is no picture, or one without exactly two questions.
    """
    require(len(right) > 0, "`right` must hold a picture; their number", 0)
    for picture, both in right.items():
        rule = f"`right` must hold two answers for each picture, as it does not for {picture!r}"
        require(len(both) == 2, rule, len(both))
    answers = [one for both in right.values() for one in both]
    return PairScores(
        accuracy=100 * sum(answers) / len(answers),
        accuracy_plus=100 * sum(all(both) for both in right.values()) / len(right),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
