"""Scores of short answers: VQA accuracy, exact match, ANLS, relaxed numbers, yes or no.

Each score follows the definition that its benchmark publishes, with its peculiarities, because only
then can a number be compared with those in papers. A score lies in [0, 1].
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dfm_jax.checks import check_interval, require

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Of choices."""

_DIGITS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4"}
_DIGITS |= {"five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOPS = 32  # as many as the official script takes out of an answer
_SHORTENED = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
    how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
    oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
    something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
    wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
    who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_SHORTENED_TWICE = """
    couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've
    someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll
    y'all'd've you'd've
"""


def _without_one(word: str) -> list[str]:
    """The word with each apostrophe left out in turn."""
    places = [mark.start() for mark in re.finditer("'", word)]
    return [word[:place] + word[place + 1 :] for place in places]


_APOSTROPHES = (
    {word.replace("'", ""): word for word in _SHORTENED.split()}
    | {form: word for word in _SHORTENED_TWICE.split() for form in _without_one(word)}
    | {"somebody'd": "somebodyd"}  # so the official table
)


def normalized_answer(text: str) -> str:
    """An answer as the VQA script compares it if the people disagree.

    The text becomes lower case. Articles are removed; none, zero … ten become digits; apostrophes
    are put back (dont → don't). A punctuation mark becomes a space; it is removed instead if a
    space is beside a mark of its kind, or the answer has a comma between digits. Full stops are
    removed unless a digit follows.

    Source: Goyal et al. (2017), evaluation code of VQA v2.0.
    """
    found = text
    number = re.search(r"\d,\d", text) is not None
    for mark in _PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside or number else " ")
    found = re.sub(r"\.(?!\d)", "", found, count=_FULL_STOPS)
    words = (_DIGITS.get(word, word) for word in found.lower().split())
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def textvqa_answer(text: str) -> str:
    """An answer as TextVQA compares it: `normalized_answer` after a step of its own.

    In this step the text becomes lower case, commas and question marks are removed, and every `'s`
    gets a space before it: "Boston,MA" becomes "bostonma", "McDonald's" "mcdonald 's".

    Source: Singh et al. (2019), the EvalAI answer processor of Pythia and M4C, which LLaVA uses.
    """
    cut = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalized_answer(_one_line(cut))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The mean over people i of min(1, #{j ≠ i : answer_j = prediction} / 3).

    If all people agree, the texts are compared as they are, without spaces at the ends; otherwise
    after `normalized_answer`. With ten people the score is 0.3, 0.6, 0.9 or 1 if one, two, three or
    more of them gave the prediction. This is the score of VQA v2.0; that of TextVQA is
    `textvqa_accuracy`.

    Raises:
        ValueError: if there are fewer than two answers.

    Source: Goyal et al. (2017), evaluation code of VQA v2.0.
    """
    told, own = [_one_line(answer) for answer in answers], _one_line(prediction)
    if len(set(told)) > 1:
        told, own = [normalized_answer(answer) for answer in told], normalized_answer(own)
    return _agreement(own, told)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The mean of `vqa_accuracy`, with all texts compared after `textvqa_answer`.

    Raises:
        ValueError: if there are fewer than two answers.

    Source: Singh et al. (2019); the evaluator of M4C, which LLaVA uses.
    """
    return _agreement(textvqa_answer(prediction), [textvqa_answer(answer) for answer in answers])


def _agreement(own: str, told: Sequence[str]) -> float:
    rule = "`answers` must hold the answers of at least two people"
    require(len(told) >= 2, rule, len(told), name="len(answers)")
    agree = [answer == own for answer in told]
    return sum(min(1.0, (sum(agree) - one) / 3) for one in agree) / len(agree)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers; case and stops at the ends do not count.

    Spaces and full stops are stripped. This is the score of GQA, whose script compares the stripped
    texts, and of AI2D, which has no script of its own.

    Source: Hudson & Manning (2019); predictions are stripped as in LLaVA.
    """
    own = _bare(prediction)
    return float(any(own == _bare(answer) for answer in answers))


def chosen_letter(text: str, num_choices: int) -> str | None:
    """The letter of a choice: `B`, `B. …`, or the only `The answer is B.`; None if there is none.

    In a sentence, at least one more character, of any kind, must follow the letter: "The answer is
    B, since" has an answer, "The answer is B" at the end of a text has none, and "The answer is
    Blue" is B. The first two forms are recognized for A to E even if there are fewer choices, and
    then name none.

    Raises:
        ValueError: if there are fewer than two choices or more than 26.

    Source: the ScienceQA evaluation of LLaVA, in which a letter that is not a choice is wrong.
    """
    rule = "`num_choices` must lie in [2, 26]"
    require(2 <= num_choices <= 26, rule, num_choices)
    options = tuple(LETTERS[: max(5, num_choices)])
    text = text.strip()
    if text in options:
        letter = text
    elif text[:1] in options and text[1:3] == ". ":
        letter = text[0]
    else:
        found = re.findall(r"The answer is ([A-Z]).", text)
        letter = found[0] if len(found) == 1 else None
    return letter if letter in tuple(LETTERS[:num_choices]) else None


def edit_distance(a: str, b: str) -> int:
    """The smallest number of insertions, deletions and replacements. Source: Levenshtein (1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def anls(prediction: str, answers: Sequence[str], *, threshold: float = 0.5) -> float:
    """1 − the smallest distance / longer length over answers; 0 if that is below the threshold.

    Distances ignore case and treat several spaces as one. Lengths are those of the original texts
    with all spaces, in capitals (ß is two letters). This is the score of DocVQA and InfographicVQA.
    If the value equals the threshold, the paper says 0; the official script says 0.5, and so does
    this one.

    Raises:
        ValueError: if there is no answer, or the threshold lies outside [0, 1].

    Source: Biten et al. (2019); the script of the Robust Reading Competition.
    """
    require(len(answers) > 0, "`answers` must not be empty", answers)
    check_interval("threshold", threshold, 0.0, 1.0)
    own, distances = _spaced(prediction), []
    for answer in answers:
        longer = max(len(prediction.upper()), len(answer.upper()))
        distances.append(edit_distance(own, _spaced(answer)) / longer if longer else 0.0)
    score = 1 - min(distances)
    return score if score >= threshold else 0.0


def relaxed_match(prediction: str, answer: str, *, tolerance: float = 0.05) -> float:
    """1 if two numbers differ by at most a share of the answer; other texts must be equal.

    `7%` is 0.07, and case does not count. An answer of 0 is compared as text, since a share of it
    is 0. This is the score of ChartQA.

    Raises:
        ValueError: if the tolerance is negative.

    Source: Masry et al. (2022), §5.1, as the metric of Pix2Struct computes it.
    """
    require(tolerance >= 0, "`tolerance` must not be negative", tolerance)
    own, told = number_in(prediction), number_in(answer)
    if own is not None and told:
        return float(abs(own - told) / abs(told) <= tolerance)
    return float(prediction.strip().lower() == answer.strip().lower())


def number_in(text: str) -> float | None:
    """The number that ChartQA reads in a text, with `7%` as 0.07; None if there is none."""
    text = text.strip()
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


# ── yes or no: POPE, which asks for objects that are not there, and MME, in pairs ────────────────


class YesNoScores(NamedTuple):
    """Scores of yes-or-no answers, with "yes" as the positive class; 0 where the divisor is 0."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_rate: float


def pope_says_yes(text: str) -> bool:
    """Whether the first sentence has none of the words `No`, `no` and `not`; this counts as yes.

    Source: the evaluation of POPE, Li et al. (2023).
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def yes_no_scores(predicted: Sequence[bool], answers: Sequence[bool]) -> YesNoScores:
    """Accuracy, precision, recall and F1 of "yes", and the share of "yes" among the answers.

    Raises:
        ValueError: if there is no answer, or the numbers of predictions and answers differ.
    """
    rule = "`predicted` must hold one prediction for each answer, and at least one"
    lengths, name = (len(predicted), len(answers)), "(len(predicted), len(answers))"
    require(0 < len(answers) == len(predicted), rule, lengths, name=name)
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
    """Scores of one subtask of MME: points out of 100 for questions, and for pictures."""

    accuracy: float
    accuracy_plus: float

    @property
    def points(self) -> float:
        """The points out of 200."""
        return self.accuracy + self.accuracy_plus


def mme_says(text: str) -> str:
    """`yes`, `no` or `other`, by the first four characters; `yes` if they contain both.

    Source: the evaluation of MME, Fu et al. (2023).
    """
    head = text.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in head), "other")


def pair_scores(right: Mapping[str, Sequence[bool]]) -> PairScores:
    """The scores of a subtask: right questions, and pictures with both questions right.

    Raises:
        ValueError: if there is no picture, or a picture does not have exactly two questions.
    """
    require(len(right) > 0, "`right` must hold a picture", right)
    for picture, both in right.items():
        rule = "`right` must hold two answers for each picture"
        require(len(both) == 2, rule, len(both), name=f"len(right[{picture!r}])")
    answers = [one for both in right.values() for one in both]
    return PairScores(
        accuracy=100 * sum(answers) / len(answers),
        accuracy_plus=100 * sum(all(both) for both in right.values()) / len(right),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _bare(text: str) -> str:
    return text.strip().rstrip(".").lower()


def _spaced(text: str) -> str:
    return " ".join(text.strip().lower().split())
