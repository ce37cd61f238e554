"""The comparison of two variants: intervals over documents and seeds, equivalence, a verdict.

A difference is loss_a − loss_b, both in one unit (nats per byte); below 0, variant a is better. Two
intervals answer two questions, and neither includes the random variation of the other.
`document_interval` and `document_comparison` are for other documents and the same trained models.
`seed_interval` and `compare` are for other seeds and the same documents.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from dfm_jax.checks import check_count, check_interval, require

Outcome = Literal["equivalent", "better", "worse", "undecided"]
_Rule = tuple[bool, Outcome, str]  # whether it holds, the verdict, the reason
_MAX_CELLS = 2**20  # of the resampling weights held at once


class Interval(NamedTuple):
    """An estimate and the ends of its interval: floats, or arrays [C] over comparisons."""

    estimate: Any
    low: Any
    high: Any


@dataclass(frozen=True, kw_only=True)
class _Judged:
    mean: float
    low: float  # of the interval at `level`; −∞ if nothing shows a spread
    high: float
    level: float
    margin: float
    p_equivalence: float
    verdict: Outcome
    reason: str  # the rule that gave the verdict

    def as_record(self) -> dict[str, Any]:
        """The fields as JSON takes them: an infinite end is None."""
        ends = {"low": self.low, "high": self.high}
        return asdict(self) | {name: None for name, end in ends.items() if not np.isfinite(end)}


@dataclass(frozen=True, kw_only=True)
class Comparison(_Judged):
    """One variant compared with another over seeds, as `compare` does it."""

    per_seed: tuple[float, ...]

    def as_record(self) -> dict[str, Any]:
        """The fields as JSON takes them: an infinite end is None."""
        return super().as_record() | {"per_seed": list(self.per_seed)}


@dataclass(frozen=True, kw_only=True)
class DocumentComparison(_Judged):
    """One variant compared with another over documents, as `document_comparison` does it."""


def document_interval(
    differences: ArrayLike,
    sizes: ArrayLike,
    *,
    level: float = 0.95,
    num_draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Σ_d Δ_d / Σ_d s_d, and a two-sided percentile bootstrap interval over the documents d.

    Documents are drawn, since the bytes of one document are no independent draws; the mean is per
    byte, so a long document counts for more. The interval is too short for few documents (under
    about 50) or heavy tails, and too rough if `num_draws` leaves few draws in a tail. Calls with
    the same D and seed share their resamples, and so do the C comparisons of one call.

    Args:
        differences: Δ, [D] or [C, D]: loss_a − loss_b summed over each document's bytes, in nats.
        sizes: s, [D]: the bytes of each document.
        level: The level of the interval, in (0, 1).
        num_draws: The number of resamples.
        seed: The seed of `np.random.default_rng`.

    Returns:
        Nats per byte: floats for [D], arrays [C] for [C, D].

    Raises:
        ValueError: if a difference is not finite, a size not positive, a shape or an option wrong,
            or there are fewer than 2 documents.

    Source: Efron, Ann. Statist. 7 (1979).
    """
    differences, sizes = _paired(differences, sizes, at_least=2)
    check_interval("level", level, 0.0, 1.0, ends="()")
    means = _resampled(differences, sizes, num_draws, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    return Interval(differences.sum(-1) / sizes.sum(), low, high)


def document_comparison(
    differences: ArrayLike,
    sizes: ArrayLike,
    *,
    margin: float,
    level: float = 0.95,
    num_draws: int = 10_000,
    seed: int = 0,
) -> DocumentComparison:
    """The verdict on one difference per document, by the first rule that holds; α = 1 − level.

    1. One document: "undecided".
    2. `p_equivalence` < α: "equivalent". It is the larger of two one-sided tests by the bootstrap,
       (1 + #{mean ≥ margin}) / (1 + R) and (1 + #{mean ≤ −margin}) / (1 + R) over R resamples. The
       margin is the smallest difference that matters, stated before the run.
    3. `document_interval` at `level` below 0: "better"; above 0: "worse".
    4. "undecided".

    It speaks of other documents and these trained models, and says nothing about another seed.

    Args:
        differences: Δ, [D]: loss_a − loss_b summed over each document's bytes, in nats.
        sizes: s, [D]: the bytes of each document.
        margin: The margin, in nats per byte.
        level: The level of the interval, in (1/2, 1).
        num_draws: R.
        seed: The seed of `np.random.default_rng`.

    Raises:
        ValueError: as `document_interval`; if there is no document, `margin` is not positive, or
            `level` is not in (1/2, 1).
    """
    differences, sizes = _paired(differences, sizes, at_least=1)
    rule, shape = "The shape of `differences` must be [D]", differences.shape
    require(differences.ndim == 1, rule, shape, name="differences.shape")
    (found,) = document_comparisons(
        differences[None], sizes, margin=margin, level=level, num_draws=num_draws, seed=seed
    )
    return found


def document_comparisons(
    differences: ArrayLike,
    sizes: ArrayLike,
    *,
    margin: float,
    level: float = 0.95,
    num_draws: int = 10_000,
    seed: int = 0,
) -> list[DocumentComparison]:
    """`document_comparison` of C comparisons, [C, D], which share their resamples.

    Raises:
        ValueError: as `document_comparison`.
    """
    check_interval("level", level, 0.5, 1.0, ends="()")
    check_interval("margin", margin, 0.0, np.inf, ends="()")
    differences, sizes = _paired(differences, sizes, at_least=1)
    rule = f"The shape of `differences` must be [C, D], with D = {sizes.size}"
    require(differences.ndim == 2, rule, differences.shape, name="differences.shape")
    num = len(differences)
    ends, p_values = np.tile([-np.inf, np.inf], (num, 1)), np.ones(num)
    if sizes.size > 1:
        means = _resampled(differences, sizes, num_draws, seed)
        ends = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=-1).T
        beyond = np.maximum((means >= margin).sum(-1), (means <= -margin).sum(-1))
        p_values = (1 + beyond) / (1 + num_draws)
    first: _Rule = (sizes.size == 1, "undecided", "one document shows no spread")
    found = []
    for mean, (low, high), p_value in zip(
        (differences.sum(-1) / sizes.sum()).tolist(), ends.tolist(), p_values.tolist(), strict=True
    ):
        verdict, reason = _verdict(first, p_value, low, high, level)
        found.append(
            DocumentComparison(
                mean=mean,
                low=low,
                high=high,
                level=float(level),
                margin=float(margin),
                p_equivalence=p_value,
                verdict=verdict,
                reason=reason,
            )
        )
    return found


def _paired(
    differences: ArrayLike, sizes: ArrayLike, *, at_least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Differences [D] or [C, D] and sizes [D], checked."""
    differences, sizes = np.asarray(differences, dtype=float), np.asarray(sizes, dtype=float)
    require(sizes.ndim == 1, "The shape of `sizes` must be [D]", sizes.shape, name="sizes.shape")
    check_count("the number of documents", sizes.size, at_least=at_least)
    rule = f"The shape of `differences` must be [D] or [C, D] with C ≥ 1 and D = {sizes.size}"
    shape = differences.shape
    fits = differences.ndim in (1, 2) and shape[-1] == sizes.size
    require(fits and differences.size > 0, rule, shape, name="differences.shape")
    require(np.isfinite(differences), "`differences` must be finite", differences)
    check_interval("sizes", sizes, 0.0, np.inf, ends="()")
    return differences, sizes


def _resampled(differences: np.ndarray, sizes: np.ndarray, num_draws: int, seed: int) -> np.ndarray:
    """Σ_d Δ_d / Σ_d s_d over the documents of each resample: [R] or [C, R]."""
    check_count("num_draws", num_draws)
    # [r] or [C, r] per block: transposed, so that one comparison and many are one expression.
    blocks = _weights(sizes.size, num_draws, seed)
    return np.concatenate([(w @ differences.T).T / (w @ sizes) for w in blocks], axis=-1)


def _weights(num_documents: int, num_draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often a resample holds each document: blocks [r, D] of the [`num_draws`, D]."""
    rng = np.random.default_rng(seed)
    rows = max(1, _MAX_CELLS // num_documents)
    for first in range(0, num_draws, rows):
        shape = (min(rows, num_draws - first), num_documents)
        drawn = rng.integers(num_documents, size=shape)
        drawn += num_documents * np.arange(shape[0])[:, None]  # one histogram for all rows
        counts = np.bincount(drawn.ravel(), minlength=drawn.size)
        yield counts.reshape(shape).astype(float)


def seed_interval(per_seed: ArrayLike, *, level: float = 0.95) -> Interval:
    """d̄ ± t_{S−1, (1+level)/2} s/√S: the mean of one difference per seed, [S], and its t interval.

    Equal differences give an interval of width 0. One seed gives (−∞, ∞): it shows no spread, and
    so excludes nothing.

    Raises:
        ValueError: if a difference is not finite, there is none, or `level` is not in (0, 1).
    """
    check_interval("level", level, 0.0, 1.0, ends="()")
    mean, error, freedom = _moments(per_seed)
    if freedom == 0:
        return Interval(mean, -np.inf, np.inf)
    half = float(stats.t.isf((1 - level) / 2, freedom)) * error
    return Interval(mean, mean - half, mean + half)


def equivalence_p_value(per_seed: ArrayLike, *, margin: float) -> float:
    """max of P(t > (margin + d̄)√S/s) and P(t > (margin − d̄)√S/s): two one-sided t tests (TOST).

    What they may reject is a difference of the margin or more, on either side. For α < 1/2 the
    value is below α if and only if `seed_interval` at level 1 − 2α lies inside (−margin, margin).
    One seed rejects nothing: its value is 1. The margin has the unit of the differences [S], and is
    stated before the run.

    Raises:
        ValueError: if a difference is not finite, there is none, or `margin` is not positive.

    Source: Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987).
    """
    check_interval("margin", margin, 0.0, np.inf, ends="()")
    mean, error, freedom = _moments(per_seed)
    room = float(margin) - abs(mean)  # to the nearer bound: its test has the larger value
    if freedom == 0 or error == 0:
        return 0.0 if freedom and room > 0 else 1.0
    return float(stats.t.sf(room / error, freedom))


def _moments(per_seed: ArrayLike) -> tuple[float, float, int]:
    """Mean, its standard error (NaN for one seed), degrees of freedom."""
    per_seed = np.asarray(per_seed, dtype=float)
    rule = "The shape of `per_seed` must be [S]"
    require(per_seed.ndim == 1, rule, per_seed.shape, name="per_seed.shape")
    check_count("the number of seeds", per_seed.size)
    require(np.isfinite(per_seed), "`per_seed` must be finite", per_seed)
    shifted = per_seed - per_seed[0]  # equal seeds have variance 0, not that of their rounding
    mean, freedom = float(per_seed[0] + shifted.mean()), per_seed.size - 1
    error = float(shifted.std(ddof=1)) / per_seed.size**0.5 if freedom else float("nan")
    return mean, error, freedom


def compare(per_seed: ArrayLike, *, margin: float, level: float = 0.95) -> Comparison:
    """The verdict on one difference per seed, [S], by the first rule that holds; α = 1 − level.

    1. One seed: "undecided". The spread over documents says nothing about another seed.
    2. `equivalence_p_value` < α: "equivalent". The margin is the smallest difference that matters,
       stated before the run; a smaller one is equivalent even if it is significantly not 0.
    3. `seed_interval` at `level` below 0: "better"; above 0: "worse".
    4. "undecided".

    For independent normal seeds, "equivalent" has probability at most α if the true difference is
    the margin or more, and "better" or "worse" at most α if it is 0. Rule 2 reads the interval at 2
    level − 1, which is shorter than [low, high].

    Raises:
        ValueError: if a difference is not finite, there is none, `margin` is not positive, or
            `level` is not in (1/2, 1).
    """
    check_interval("level", level, 0.5, 1.0, ends="()")
    p_value = equivalence_p_value(per_seed, margin=margin)
    mean, low, high = seed_interval(per_seed, level=level)
    values = tuple(np.asarray(per_seed, dtype=float).tolist())
    first: _Rule = (len(values) == 1, "undecided", "one seed shows no spread")
    verdict, reason = _verdict(first, p_value, low, high, level)
    return Comparison(
        per_seed=values,
        mean=mean,
        low=low,
        high=high,
        level=float(level),
        margin=float(margin),
        p_equivalence=p_value,
        verdict=verdict,
        reason=reason,
    )


def _verdict(
    first: _Rule, p_value: float, low: float, high: float, level: float
) -> tuple[Outcome, str]:
    """The verdict and reason of the first rule that holds; α = 1 − level."""
    rules: tuple[_Rule, ...] = (
        first,
        (p_value < 1 - level, "equivalent", "a difference of the margin or more is rejected"),
        (high < 0, "better", "the interval lies below 0"),
        (low > 0, "worse", "the interval lies above 0"),
        (True, "undecided", "neither 0 nor a difference of the margin is rejected"),
    )
    _, verdict, reason = next(rule for rule in rules if rule[0])
    return verdict, reason
