"""Two sides that answered the same questions: the difference of their scores, and a verdict.

    Δ = (1/U) Σ_u d_u,   d_u = v_u(experts) − v_u(dense)

Its interval is Δ ± t s/√U, of Student's t with U − 1 degrees of freedom. Units u are the questions,
and for MME the pictures, whose two questions are not independent. The values v_u of one side are
those of `unit_values`. Pairing matters: what makes a question easy for both sides cancels in d_u,
and so does not widen the interval.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from typing import Any, NamedTuple

from dfm_jax.checks import check_interval, require
from dfm_jax.comparison import Outcome, compare
from dfm_jax.scoring import answers, benchmarks
from dfm_jax.scoring.boxes import Scale
from dfm_jax.scoring.truths import Question


class UnitValues(NamedTuple):
    """One value for each unit, whose mean is the score."""

    score: str  # its name
    values: list[float]  # [U], in points
    full: float  # the largest score in points: 100; of MME 200 for each subtask

    @property
    def mean(self) -> float:
        """The score, in points."""
        return sum(self.values) / len(self.values)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The score of two sides on one benchmark, and their difference, experts − dense."""

    benchmark: str
    score: str
    questions: int
    units: int
    full: float
    dense: float  # points, as all below
    experts: float
    difference: float
    low: float
    high: float
    margin: float
    p_equivalence: float
    verdict: Outcome  # about the experts

    def as_record(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return asdict(self)


def unit_values(
    name: str,
    questions: Sequence[Question],
    texts: Sequence[str],
    *,
    box_scale: Scale | None = None,
) -> UnitValues:
    """The value of each unit, such that their mean is the headline score of the benchmark.

    Of most benchmarks it is the score of the question, times 100. Two scores are no means over
    questions. Their values are linearized at the score, so that the spread of the values gives its
    standard error (the delta method):

        F = 2h/(s + t),     v_i = 100 [F + (2h_i − F (s_i + t_i)) n/(s + t)]
        P = Σ_tasks P_task, v_u = P + (x_u − P_task(u)) U/U_task(u)

    The first line is POPE's F1: s_i, t_i and h_i are 1 if the answer, the truth, or both say yes,
    and s, t, h their sums over n questions. The second is MME's points: x_u are those of a picture,
    50 for each right answer and 100 if both are right; U counts pictures.

    Args:
        name: The name of the benchmark.
        questions: The questions, which must be of the form that the benchmark needs.
        texts: One answer to each, in their order.
        box_scale: The scale of the boxes in the answers, for RefCOCO.

    Raises:
        ValueError: as `score`.
    """
    benchmarks.score(name, questions, texts, box_scale=box_scale)  # which refuses what is bad
    pairs = list(zip(texts, questions, strict=True))
    if name == "mme":
        return _of_pictures(questions, texts)
    if name == "pope":
        return UnitValues("f1", _of_f1(questions, texts), 100.0)
    if name == "refcoco":
        assert box_scale is not None
        of_question = partial(benchmarks.has_right_box, scale=box_scale)
        return UnitValues("accuracy", [100 * of_question(*pair) for pair in pairs], 100.0)
    score, of_question = benchmarks.MEANS[name]
    return UnitValues(score, [100 * of_question(*pair) for pair in pairs], 100.0)


def _of_f1(questions: Sequence[Question], texts: Sequence[str]) -> list[float]:
    said = [answers.pope_says_yes(text) for text in texts]
    told = [benchmarks.says_yes(question) for question in questions]
    whole = sum(said) + sum(told)
    if whole == 0:  # nobody says yes: the score is 0, as `yes_no_scores` has it
        return [0.0] * len(said)
    pairs = list(zip(said, told, strict=True))
    f1 = 2 * sum(s and t for s, t in pairs) / whole
    share = len(pairs) / whole
    return [100 * (f1 + (2 * (s and t) - f1 * (s + t)) * share) for s, t in pairs]


def _of_pictures(questions: Sequence[Question], texts: Sequence[str]) -> UnitValues:
    points = {
        task: [50.0 * sum(both) + 100.0 * all(both) for both in pictures.values()]
        for task, pictures in benchmarks.mme_pairs(questions, texts).items()
    }
    means = {task: sum(of) / len(of) for task, of in points.items()}
    total, count = sum(means.values()), sum(map(len, points.values()))
    values = [
        total + (one - means[task]) * count / len(of) for task, of in points.items() for one in of
    ]
    return UnitValues("points", values, 200.0 * len(points))


def difference(
    name: str,
    questions: Sequence[Question],
    *,
    dense: Sequence[str],
    experts: Sequence[str],
    margin: float = 1.0,
    level: float = 0.95,
    box_scale: Scale | None = None,
) -> Difference:
    """The difference of two sides' scores with its paired interval, and the verdict of `compare`.

    "equivalent" means that two one-sided t tests reject a difference of the margin or more, on
    either side; "better" and "worse" are about the experts. The interval is for other questions of
    the same kind; it says nothing about other seeds of the training.

    Args:
        name: The name of the benchmark.
        questions: The questions.
        dense: The answers of the dense model, in the order of the questions.
        experts: The answers of the experts.
        margin: The smallest difference that matters, in points out of 100, stated before the run;
            for MME it is multiplied by its full points over 100.
        level: The level of the interval; the tests are made at 1 − level.
        box_scale: The scale of the boxes in the answers, for RefCOCO.

    Raises:
        ValueError: as `score`, for either side; if there are fewer than two units; if the margin is
            not positive, or the level not in (1/2, 1).

    Source: Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987), for the two tests.
    """
    check_interval("margin", margin, 0.0, inf, ends="()")
    of_dense, of_experts = (
        unit_values(name, questions, texts, box_scale=box_scale) for texts in (dense, experts)
    )
    count = len(of_dense.values)
    rule = "`questions` must hold at least two units, because one shows no spread"
    require(count >= 2, rule, count, name="number of units")
    own_margin = margin * of_dense.full / 100
    # `compare` is about losses, of which less is better: points that the experts lack are one.
    lost = [a - b for a, b in zip(of_dense.values, of_experts.values, strict=True)]
    found = compare(lost, margin=own_margin, level=level)
    return Difference(
        benchmark=name,
        score=of_dense.score,
        questions=len(questions),
        units=count,
        full=of_dense.full,
        dense=of_dense.mean,
        experts=of_experts.mean,
        difference=0.0 - found.mean,
        low=0.0 - found.high,
        high=0.0 - found.low,
        margin=own_margin,
        p_equivalence=found.p_equivalence,
        verdict=found.verdict,
    )
