"""`comparison.paired` on data whose truth is known: coverage, error rates, verdicts, refusals.

A check of a frequency takes a binomial band that a right procedure leaves with probability
`FALSE_ALARM` per side; the seeds are fixed, so it fails always or never.
"""

import json
import warnings

import numpy as np
import pytest
from scipy import stats

from dfm_jax.comparison import (
    compare,
    document_comparison,
    document_comparisons,
    document_interval,
    equivalence_p_value,
    paired,
    seed_interval,
)

FALSE_ALARM = 1e-4
ALPHA = 0.05


def _band(trials, *probs):
    """Counts among the trials that go with the smallest and the largest of the probabilities."""
    low = stats.binom.ppf(FALSE_ALARM, trials, min(probs))
    return low, stats.binom.isf(FALSE_ALARM, trials, max(probs))


# ── over documents ──────────────────────────────────────────────────────────────────────────────

SIZES = np.array([20, 60, 150, 400])  # equally likely
MEAN = 0.02


def _documents(rng, count):
    """Δ_d = s_d (a + b s_d + document's effect + its bytes' noise), E Δ / E s = `MEAN`."""
    sizes = rng.choice(SIZES, count)
    slope = 1e-4  # long documents differ more: the mean over documents is not the one over bytes
    per_byte = MEAN + slope * (sizes - (SIZES**2).sum() / SIZES.sum())
    noise = 0.05 * rng.standard_normal(count) + rng.standard_normal(count) / sizes**0.5
    return sizes * (per_byte + noise), sizes


def test_document_interval_covers_the_truth_as_often_as_it_says():
    """Nominal 0.9; a percentile bootstrap of 100 documents may fall short of it by 0.02."""
    sets, level, covered, over_documents = 400, 0.9, 0, 0
    for seed in range(sets):
        differences, sizes = _documents(np.random.default_rng([1, seed]), 100)
        found = document_interval(differences, sizes, level=level, num_draws=500, seed=seed)
        assert found.low < found.estimate < found.high
        covered += found.low <= MEAN <= found.high
        found = document_interval(
            differences / sizes, np.ones(100), level=level, num_draws=500, seed=seed
        )
        over_documents += found.low <= MEAN <= found.high
    low, high = _band(sets, level - 0.02, level)
    assert low <= covered <= high
    assert over_documents < low  # the falsifier: each document counts the same


def test_bytes_drawn_as_if_independent_cover_too_seldom():
    """40 bytes share their document's effect: ρ = 0.2, so s²/n is 1 + 39 ρ = 8.8 times too small.

    The byte interval is √8.8 times too short: it covers with probability 2Φ(1.96/√8.8) − 1 = 0.49,
    and less with as few as 100 draws.
    """
    sets, count, size = 150, 60, 40
    by_documents = by_bytes = 0
    for seed in range(sets):
        rng = np.random.default_rng([2, seed])
        effect = 0.5 * rng.standard_normal((count, 1))
        values = MEAN + effect + rng.standard_normal((count, size))
        found = document_interval(values.sum(1), np.full(count, size), num_draws=300, seed=seed)
        by_documents += found.low <= MEAN <= found.high
        found = document_interval(values.ravel(), np.ones(values.size), num_draws=100, seed=seed)
        by_bytes += found.low <= MEAN <= found.high
    low, high = _band(sets, 0.92, 0.95)
    assert low <= by_documents <= high  # 60 documents and 300 draws fall a little short
    assert by_bytes <= _band(sets, 0.49)[1]


def test_document_interval_is_the_bootstrap_written_out():
    differences, sizes = _documents(np.random.default_rng(3), 12)
    rng = np.random.default_rng(7)
    means = []
    for _ in range(200):
        drawn = rng.integers(12, size=12)
        means.append(sum(differences[drawn]) / sum(sizes[drawn]))
    found = document_interval(differences, sizes, level=0.8, num_draws=200, seed=7)
    assert found.estimate == pytest.approx(sum(differences) / sum(sizes), rel=1e-12)
    assert found.low == pytest.approx(np.percentile(means, 10), rel=1e-12)
    assert found.high == pytest.approx(np.percentile(means, 90), rel=1e-12)


def test_document_interval_is_that_of_scipy():
    """Both ends, within 5 standard errors of the quantiles of 4,000 draws of a normal mean."""
    differences, sizes = _documents(np.random.default_rng(4), 200)
    found = document_interval(differences, sizes, num_draws=4000)
    other = stats.bootstrap(
        (differences, sizes),
        lambda d, s, axis: d.sum(axis) / s.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        batch=500,
        rng=np.random.default_rng(0),
    )
    # The standard error of a p-quantile is √(p (1 − p)/R) / density, twice in a difference.
    density = stats.norm.pdf(stats.norm.ppf(0.025)) / other.standard_error
    error = (2 * 0.025 * 0.975 / 4000) ** 0.5 / density
    ends = other.confidence_interval
    assert abs(found.low - ends.low) < 5 * error
    assert abs(found.high - ends.high) < 5 * error
    assert found.high - found.low > 20 * error


@pytest.mark.parametrize("max_cells", [1, 40, 2**20])
def test_comparisons_share_their_resamples(monkeypatch, max_cells):
    monkeypatch.setattr(paired, "_MAX_CELLS", max_cells)
    rng = np.random.default_rng(5)
    first, sizes = _documents(rng, 30)
    gate_comparison = np.stack([first, -first, first + 0.5 * sizes, rng.standard_normal(30)])
    found = document_interval(gate_comparison, sizes, num_draws=99, seed=3)
    for c, differences in enumerate(gate_comparison):
        alone = document_interval(differences, sizes, num_draws=99, seed=3)
        for of_gate_comparison, of_row in zip(found, alone, strict=True):
            assert of_gate_comparison.shape == (4,)
            assert np.ndim(of_row) == 0
            assert of_gate_comparison[c] == pytest.approx(of_row, rel=1e-12, abs=1e-15)
    # A negative is mirrored and a constant per byte moves the interval: only with shared draws.
    assert found.low[1] == pytest.approx(-found.high[0], rel=1e-12)
    assert found.low[2] == pytest.approx(found.low[0] + 0.5, rel=1e-12)
    other = document_interval(gate_comparison, sizes, num_draws=99, seed=4)
    assert (other.low != found.low).all()


def test_the_resamples_do_not_depend_on_the_block(monkeypatch):
    args = _documents(np.random.default_rng(6), 30)
    whole = document_interval(*args, num_draws=50)
    monkeypatch.setattr(paired, "_MAX_CELLS", 70)
    np.testing.assert_allclose(document_interval(*args, num_draws=50), whole, rtol=1e-12)


def test_the_order_of_the_documents_does_not_matter():
    differences, sizes = _documents(np.random.default_rng(8), 50)
    order = np.random.default_rng(9).permutation(50)
    found = document_interval(differences, sizes, num_draws=10)
    moved = document_interval(differences[order], sizes[order], num_draws=10)
    assert moved.estimate == pytest.approx(found.estimate, rel=1e-13)
    apart = document_interval(differences[order], sizes, num_draws=10)
    assert apart.estimate == moved.estimate
    assert apart.low != pytest.approx(moved.low)  # sizes must move along


def test_a_wider_level_holds_the_narrower():
    args = _documents(np.random.default_rng(10), 40)
    ends = [document_interval(*args, level=level, num_draws=400) for level in (0.5, 0.9, 0.99)]
    assert sorted(ends, key=lambda e: e.low, reverse=True) == ends
    assert sorted(ends, key=lambda e: e.high) == ends


# ── over seeds ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 20])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_seed_interval_is_that_of_scipy(num_seeds, level):
    values = np.random.default_rng(num_seeds).normal(0.3, 2.0, num_seeds)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    found = seed_interval(values, level=level)
    assert found.estimate == pytest.approx(values.mean(), rel=1e-12)
    assert found.low == pytest.approx(expected.low, rel=1e-9)
    assert found.high == pytest.approx(expected.high, rel=1e-9)


def test_tost_is_two_one_sided_tests_and_an_interval_inside_the_margin():
    rng = np.random.default_rng(11)
    equivalent = 0
    for _ in range(200):
        values = rng.normal(rng.normal(0, 0.5), rng.uniform(0.1, 1.0), rng.integers(2, 9))
        margin = float(rng.uniform(0.1, 2.0))
        found = equivalence_p_value(values, margin=margin)
        above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue  # pyright: ignore
        below = stats.ttest_1samp(values, margin, alternative="less").pvalue  # pyright: ignore
        assert found == pytest.approx(max(above, below), rel=1e-9)
        assert equivalence_p_value(-values, margin=margin) == pytest.approx(found, rel=1e-12)
        for alpha in (0.01, 0.05, 0.2):
            _, low, high = seed_interval(values, level=1 - 2 * alpha)
            assert (found < alpha) == (-margin < low and high < margin)
        equivalent += found < ALPHA
    assert 20 < equivalent < 180  # both happen


def _frequencies(truth, *, margin, runs=3000, num_seeds=4):
    values = np.random.default_rng(12).normal(truth, 1.0, (runs, num_seeds))
    verdicts = [compare(row, margin=margin).verdict for row in values]
    return {word: verdicts.count(word) for word in ("equivalent", "better", "worse", "undecided")}


def test_equivalent_is_wrong_at_the_margin_as_seldom_as_it_says():
    """TOST is exact there if the other bound is far, and conservative if it is near."""
    runs = 2000
    for sign in (-1, 1):
        found = _frequencies(sign * 50.0, margin=50.0, runs=runs)
        low, high = _band(runs, ALPHA)
        assert low <= found["equivalent"] <= high
        assert found["better" if sign < 0 else "worse"] == runs - found["equivalent"]
    found = _frequencies(0.5, margin=0.5, runs=runs // 4)
    assert found["equivalent"] <= _band(runs // 4, ALPHA)[1]


def test_better_and_worse_are_wrong_at_zero_as_seldom_as_they_say():
    found = _frequencies(0.0, margin=1e-9)
    for word in ("better", "worse"):
        low, high = _band(3000, ALPHA / 2)
        assert low <= found[word] <= high
    assert found["equivalent"] == 0


def test_a_clear_difference_is_found():
    """The bound is 98 standard errors away or more: a miss has a probability below 1e-100."""
    for truth, margin, word in (
        (-50.0, 1.0, "better"),
        (50.0, 1.0, "worse"),
        (0.0, 50.0, "equivalent"),
    ):
        assert _frequencies(truth, margin=margin, runs=200)[word] == 200


# ── the verdict ─────────────────────────────────────────────────────────────────────────────────

VERDICTS = {
    "small": ((-0.001, 0.002, 0.0), 0.05, "equivalent", "margin or more is rejected"),
    "small, but surely not 0": ((0.010, 0.011, 0.012), 0.05, "equivalent", "margin or more"),
    "below": ((-0.20, -0.22, -0.21), 0.05, "better", "below 0"),
    "above": ((0.20, 0.22, 0.21), 0.05, "worse", "above 0"),
    "wide": ((-0.3, 0.2, 0.4), 0.05, "undecided", "neither 0 nor"),
    "surely above 0, across the margin": ((0.04, 0.05, 0.06), 0.05, "worse", "above 0"),
    "one seed, at 0": ((0.0,), 0.05, "undecided", "one seed"),
    "one seed, far off": ((-9.0,), 0.05, "undecided", "one seed"),
    "equal seeds at 0": ((0.0, 0.0), 0.05, "equivalent", "margin or more"),
    "equal seeds inside": ((0.049, 0.049, 0.049), 0.05, "equivalent", "margin or more"),
    "equal seeds at the margin": ((0.1, 0.1, 0.1), 0.1, "worse", "above 0"),
    "equal seeds at minus the margin": ((-0.1, -0.1, -0.1), 0.1, "better", "below 0"),
    "equal seeds outside": ((-0.3, -0.3), 0.1, "better", "below 0"),
    "two seeds": ((-0.2, -0.3), 0.05, "undecided", "neither 0 nor"),
}


@pytest.mark.parametrize(("values", "margin", "word", "reason"), VERDICTS.values(), ids=VERDICTS)
def test_the_verdict_follows_the_rule(values, margin, word, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare(values, margin=margin)
    assert found.verdict == word
    assert reason in found.reason
    assert found.mean == pytest.approx(np.mean(values), abs=1e-15)
    assert (found.low, found.high) == seed_interval(values)[1:]
    assert found.p_equivalence == equivalence_p_value(values, margin=margin)
    mirrored = compare([-value for value in values], margin=margin)
    assert mirrored.verdict == {"better": "worse", "worse": "better"}.get(word, word)


def test_equal_seeds_have_an_interval_of_width_0():
    """0.1 three times has a mean and a deviation of its own in floating point."""
    assert np.std([0.1] * 3, ddof=1) > 0
    assert seed_interval([0.1] * 3) == (0.1, 0.1, 0.1)
    assert [equivalence_p_value([0.1] * 3, margin=m) for m in (0.2, 0.1, 0.05)] == [0.0, 1.0, 1.0]


def test_one_seed_excludes_nothing():
    assert seed_interval([0.3]) == (0.3, -np.inf, np.inf)
    assert equivalence_p_value([0.3], margin=1e9) == 1.0


@pytest.mark.parametrize("values", [(-0.1, 0.2, 0.1), (0.4,), (0.1, 0.1), np.float32([1, 2])])
def test_a_comparison_goes_through_json(values):
    found = compare(values, margin=np.float64(0.05), level=0.9)
    record = found.as_record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["per_seed"] == list(values)
    assert record["level"] == 0.9
    assert (record["low"] is None) == (len(values) == 1)
    assert (record["high"] is None) == (len(values) == 1)
    if len(values) > 1:
        assert (record["low"], record["high"]) == (found.low, found.high)


# ── over documents ──────────────────────────────────────────────────────────────────────────────


def _noise(rng, truth, spread=0.04, count=80):
    sizes = rng.choice(SIZES, count)
    return sizes * (truth + spread * rng.standard_normal(count)), sizes


DOCUMENT_VERDICTS = {
    "small": (0.0, 0.05, "equivalent", "margin or more is rejected"),
    "small, but surely not 0": (0.05, 0.1, "equivalent", "margin or more is rejected"),
    "below": (-0.2, 0.05, "better", "below 0"),
    "above": (0.2, 0.05, "worse", "above 0"),
    "wide": (0.0, 0.001, "undecided", "neither 0 nor"),
}


@pytest.mark.parametrize(
    ("truth", "margin", "word", "reason"), DOCUMENT_VERDICTS.values(), ids=DOCUMENT_VERDICTS
)
def test_the_verdict_over_documents_follows_the_rule(truth, margin, word, reason):
    differences, sizes = _noise(np.random.default_rng(20), truth)
    found = document_comparison(differences, sizes, margin=margin, num_draws=2000)
    assert found.verdict == word
    assert reason in found.reason
    interval = document_interval(differences, sizes, num_draws=2000)
    assert (found.mean, found.low, found.high) == pytest.approx(interval, rel=1e-12)
    mirrored = document_comparison(-differences, sizes, margin=margin, num_draws=2000)
    assert mirrored.verdict == {"better": "worse", "worse": "better"}.get(word, word)
    assert mirrored.p_equivalence == found.p_equivalence
    record = found.as_record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_equivalence_over_documents_is_an_interval_inside_the_margin():
    """Up to the one resample that the tests add: both words come up."""
    rng, words = np.random.default_rng(21), []
    for _ in range(60):
        differences, sizes = _noise(rng, rng.normal(0, 0.03), count=30)
        found = document_comparison(differences, sizes, margin=0.05, num_draws=999)
        _, low, high = document_interval(differences, sizes, level=0.9, num_draws=999)
        if abs(found.p_equivalence - 0.05) > 0.002:
            assert (found.verdict == "equivalent") == (low > -0.05 and high < 0.05)
        words.append(found.verdict)
    assert 10 < words.count("equivalent") < 55


def test_equivalent_over_documents_is_wrong_at_the_margin_about_as_seldom_as_it_says():
    """A percentile bootstrap of 100 documents may exceed its level by 0.02."""
    sets, wrong = 300, 0
    for seed in range(sets):
        differences, sizes = _documents(np.random.default_rng([22, seed]), 100)
        found = document_comparison(differences, sizes, margin=MEAN, num_draws=400, seed=seed)
        wrong += found.verdict == "equivalent"
    assert wrong <= _band(sets, ALPHA + 0.02)[1]


def test_comparisons_of_one_call_are_those_of_each():
    rng = np.random.default_rng(23)
    first, sizes = _noise(rng, 0.0)
    rows = np.stack([first, -first, first + 0.3 * sizes])
    options = {"margin": 0.05, "num_draws": 300, "seed": 2}
    found = document_comparisons(rows, sizes, **options)
    for row, one in zip(rows, found, strict=True):
        alone = document_comparison(row, sizes, **options)
        ends = (alone.mean, alone.low, alone.high, alone.p_equivalence)
        assert (one.mean, one.low, one.high, one.p_equivalence) == pytest.approx(ends, rel=1e-12)
        assert (one.verdict, one.reason) == (alone.verdict, alone.reason)
    assert found[2].verdict == "worse"


def test_one_document_excludes_nothing():
    found = document_comparison([3.0], [10], margin=1e9)
    assert (found.mean, found.low, found.high) == (0.3, -np.inf, np.inf)
    assert (found.verdict, found.p_equivalence) == ("undecided", 1.0)
    assert found.as_record()["low"] is None


@pytest.mark.parametrize(
    ("differences", "options", "message"),
    [
        ([], {}, "the number of documents` must be at least 1; got the number of documents = 0"),
        ([1, float("nan")], {}, r"`differences` must be finite; got differences\[1\] = nan\."),
        ([[1, 2]], {}, r"The shape of `differences` must be \[D\]; got"),
        ([1, 2], {"margin": 0.0}, r"`margin` must lie in \(0, inf\); got"),
        ([1, 2], {"level": 0.5}, r"`level` must lie in \(0\.5, 1\); got"),
        ([1, 2], {"num_draws": 0}, "`num_draws` must be at least 1; got num_draws = 0"),
    ],
)
def test_document_comparison_refuses(differences, options, message):
    sizes = np.ones(np.shape(differences)[-1])
    with pytest.raises(ValueError, match=message):
        document_comparison(differences, sizes, **{"margin": 1.0} | options)


# ── refusals ────────────────────────────────────────────────────────────────────────────────────

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("differences", "sizes", "options", "message"),
    [
        ([1, NAN], [1, 1], {}, r"`differences` must be finite; got differences\[1\] = nan\."),
        ([[1, 2], [INF, 0]], [1, 1], {}, "`differences` must be finite"),
        ([1, 2], [1, 0], {}, r"`sizes` must lie in \(0, inf\); got sizes\[1\] = 0.0\."),
        ([1, 2], [1, -3], {}, r"`sizes` must lie in \(0, inf\)"),
        ([1, 2], [1, NAN], {}, r"`sizes` must lie in \(0, inf\)"),
        ([1, 2], [1, INF], {}, r"`sizes` must lie in \(0, inf\)"),
        (
            [1],
            [1],
            {},
            "the number of documents` must be at least 2; got the number of documents = 1",
        ),
        (
            [],
            [],
            {},
            "the number of documents` must be at least 2; got the number of documents = 0",
        ),
        ([1, 2, 3], [1, 1], {}, r"\[C, D\] with C ≥ 1 and D = 2; got differences.shape = \(3,\)\."),
        (
            [[1], [2]],
            [1, 1],
            {},
            r"\[C, D\] with C ≥ 1 and D = 2; got differences.shape = \(2, 1\)\.",
        ),
        (np.ones((0, 2)), [1, 1], {}, r"with C ≥ 1 and D = 2; got differences.shape = \(0, 2\)\."),
        (np.ones((1, 1, 2)), [1, 1], {}, r"must be \[D\] or \[C, D\]"),
        (1.0, [1, 1], {}, r"The shape of `differences` must be \[D\] or \[C, D\]"),
        ([1, 2], [[1, 1]], {}, r"The shape of `sizes` must be \[D\]; got sizes.shape = \(1, 2\)\."),
        ([1, 2], [1, 1], {"level": 0.0}, r"`level` must lie in \(0, 1\); got level = 0.0\."),
        ([1, 2], [1, 1], {"level": 1.0}, r"`level` must lie in \(0, 1\); got level = 1.0\."),
        ([1, 2], [1, 1], {"level": NAN}, r"`level` must lie in \(0, 1\); got level = nan\."),
        ([1, 2], [1, 1], {"num_draws": 0}, "`num_draws` must be at least 1; got num_draws = 0"),
    ],
)
def test_document_interval_refuses(differences, sizes, options, message):
    with pytest.raises(ValueError, match=message):
        document_interval(differences, sizes, **options)


@pytest.mark.parametrize(
    ("per_seed", "message"),
    [
        ([], "the number of seeds` must be at least 1; got the number of seeds = 0"),
        ([1, NAN], r"`per_seed` must be finite; got per_seed\[1\] = nan\."),
        ([-INF], "`per_seed` must be finite"),
        ([[1, 2]], r"The shape of `per_seed` must be \[S\]; got per_seed.shape = \(1, 2\)\."),
        (1.0, r"The shape of `per_seed` must be \[S\]"),
    ],
)
def test_differences_per_seed_are_refused_by_name(per_seed, message):
    for judge in (
        seed_interval,
        lambda values: equivalence_p_value(values, margin=1.0),
        lambda values: compare(values, margin=1.0),
    ):
        with pytest.raises(ValueError, match=message):
            judge(per_seed)


@pytest.mark.parametrize("margin", [0.0, -1.0, NAN, INF])
def test_a_margin_that_is_none_is_refused(margin):
    for judge in (equivalence_p_value, compare):
        with pytest.raises(ValueError, match=r"`margin` must lie in \(0, inf\); got"):
            judge([1.0, 2.0], margin=margin)


def test_levels_are_refused_by_name():
    for level in (0.0, 1.0, -0.5, 95.0, NAN):
        with pytest.raises(ValueError, match=r"`level` must lie in \(0, 1\); got"):
            seed_interval([1.0, 2.0], level=level)
    for level in (0.5, 1.0, 95.0):  # at 1/2 the interval of the equivalence test has level 0
        with pytest.raises(ValueError, match=r"`level` must lie in \(0\.5, 1\); got"):
            compare([1.0, 2.0], margin=1.0, level=level)
