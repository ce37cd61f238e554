"""Short answers against people's: VQA accuracy, exact match, ANLS, relaxed numbers, yes or no.

Each is the definition that its benchmark publishes, quirks included: a number is compared with
other papers' numbers or with none. A score lies in [0, 1].
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
    """Each apostrophe left out in turn."""
    places = [mark.start() for mark in re.finditer("'", word)]
    return [word[:place] + word[place + 1 :] for place in places]


_APOSTROPHES = (
    {word.replace("'", ""): word for word in _SHORTENED.split()}
    | {form: word for word in _SHORTENED_TWICE.split() for form in _without_one(word)}
    | {"somebody'd": "somebodyd"}  # so the official table
)


def normalized_answer(text: str) -> str:
    """An answer as the VQA script compares it, where the people disagree.

    Lower case; no articles; digits for none, zero … ten; apostrophes put back (dont → don't);
    punctuation out (a mark becomes a space, unless a space is beside one of its kind or the answer
    holds a comma between digits); full stops out, unless a digit follows.

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
    """An answer as TextVQA compares it: `normalized_answer` after a cut of its own.

    The cut: lower case; commas and question marks out, with nothing in their place; a blank before
    every `'s`. So "Boston,MA" becomes "bostonma", and "McDonald's" "mcdonald 's".

    Source: Singh et al. (2019), the EvalAI answer processor of Pythia and M4C, which LLaVA uses.
    """
    cut = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalized_answer(_one_line(cut))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Mean over people i of min(1, #{j ≠ i : answer_j = prediction} / 3).

    Where all people agree, the texts are compared as they are, but for blanks at the ends; else
    after `normalized_answer`. With ten people: 0.3, 0.6, 0.9 and 1 for one, two, three and more. Of
    VQA v2.0; TextVQA's is `textvqa_accuracy`.

    Raises:
        ValueError: if there are fewer than two answers.

    Source: Goyal et al. (2017), evaluation code of VQA v2.0.
    """
    told, own = [_one_line(answer) for answer in answers], _one_line(prediction)
    if len(set(told)) > 1:
        told, own = [normalized_answer(answer) for answer in told], normalized_answer(own)
    return _agreement(own, told)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The mean of `vqa_accuracy` after `textvqa_answer`, whether the people agree or not.

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
    """1 if the prediction is one of the answers, without case, and blanks and full stops at an end.

    Of GQA, whose own script compares what is left, and of AI2D, which has no script of its own.

    Source: Hudson & Manning (2019); how predictions are stripped is what LLaVA does to them.
    """
    own = _bare(prediction)
    return float(any(own == _bare(answer) for answer in answers))


def chosen_letter(text: str, num_choices: int) -> str | None:
    """The letter of a choice: `B`, `B. …`, or the only `The answer is B.`; None if there is none.

    After the letter of a sentence any character may stand, and one must: "The answer is B, since"
    has an answer, "The answer is B" at the end of a text has none, and "The answer is Blue" is B.
    The first two forms count for A to E even where there are fewer choices, and then name none.

    Raises:
        ValueError: if there are fewer than two choices or more than 26.

    Source: the ScienceQA evaluation of LLaVA, which calls a letter of no choice wrong.
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
    """The least number of characters to insert, delete or replace. Source: Levenshtein (1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def anls(prediction: str, answers: Sequence[str], *, threshold: float = 0.5) -> float:
    """1 − min over answers of distance / longer length; 0 if that is below the threshold.

    Distances are without case, and runs of blanks as one; lengths are those of the texts as they
    were, blanks and all, in capitals (ß is two letters). Of DocVQA and InfographicVQA. At the
    threshold itself the paper says 0 and the official script, as here, 0.5.

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
    """1 if two numbers differ by at most a share of the answer's; of what is no number, if equal.

    `7%` is 0.07. Without case. An answer of 0 is compared as text, since it has no share. Of
    ChartQA.

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
    """What ChartQA takes for a number, `7%` as 0.07; None if it is none."""
    text = text.strip()
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


# ── yes or no: POPE, which asks for objects that are not there, and MME, in pairs ────────────────


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
