"""`lib.kneser_ney` against the formula on strings, and its draws against its own distribution."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from experiments.lib import kneser_ney
from experiments.lib.ngrams import NUM_BYTES

pytestmark = pytest.mark.slow  # whole runs and large samples

TRAIN = (b"abracadabra", b"the cat sat on the mat", b"", b"a rat", b"bananas and cabbages", b"\0z")
# Bytes never seen, contexts never seen, zeros inside a text, empty texts, and the start of each.
ASKED = (b"", b"the cabbage ran", b"a", b"xyzzy \xff\xfe", b"\0\0\0ab\0z", b"", b"abracadabra")
ORDERS = tuple(range(1, 8))
FALSE_ALARM = 1e-4  # of a chi-square test, were its seed drawn anew


def _padded(texts, n):
    """Each n-gram of the texts, once for every time that it occurs."""
    for text in texts:
        padded = bytes(n - 1) + text
        yield from (padded[i : i + n] for i in range(len(text)))


def _by_hand(texts, order, discount):
    """The formula of the docstring, on strings: a function (context, byte) → probability."""
    seen = {n: Counter(_padded(texts, n)) for n in range(1, order + 1)}
    counts = {order: seen[order]}
    for n in range(1, order):
        counts[n] = Counter(longer[1:] for longer in set(seen[n + 1]))
    after = {
        n: {z: [g for g in counts[n] if g[:-1] == z] for z in {g[:-1] for g in counts[n]}}
        for n in counts
    }

    def prob(context, byte, n=order):
        if n == 0:
            return 1 / 256
        z = context[len(context) - (n - 1) :]
        shorter = prob(z[1:], byte, n - 1)
        if z not in after[n]:
            return shorter
        total = sum(counts[n][g] for g in after[n][z])
        kept = max(counts[n][z + bytes([byte])] - discount, 0) / total
        return kept + discount * len(after[n][z]) / total * shorter

    return prob


def _expected(texts, order, discount, asked):
    prob = _by_hand(texts, order, discount)
    return np.log(
        [prob(bytes(order - 1) + text[:i], byte) for text in asked for i, byte in enumerate(text)]
    )


def _scores(model, texts):
    return kneser_ney.log_probs(model, kneser_ney.queries(texts, model.order))


# ── the probabilities ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("discount", [0.25, 0.9, 1.0])
@pytest.mark.parametrize("order", ORDERS)
def test_probabilities_are_those_of_the_formula_on_strings(order, discount):
    found = _scores(kneser_ney.fit(TRAIN, order, discount=discount), ASKED)
    assert found.shape == (sum(map(len, ASKED)),)
    expected = _expected(TRAIN, order, discount, ASKED)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("change", ["order", "discount", "texts", "order of bytes"])
def test_another_formula_gives_other_probabilities(change):
    """The falsifier of the test above."""
    found = _scores(kneser_ney.fit(TRAIN, 3, discount=0.5), ASKED)
    texts = {"texts": TRAIN[:-1], "order of bytes": [text[::-1] for text in TRAIN]}
    order, discount = 2 if change == "order" else 3, 0.51 if change == "discount" else 0.5
    other = _expected(texts.get(change, TRAIN), order, discount, ASKED)
    assert np.abs(found - other).max() > 1e-3


def test_probabilities_of_one_word_by_hand():
    # n = 1 counts what came before: a after \0, b after a; n = 2 counts the text.
    found = np.exp(_scores(kneser_ney.fit([b"ab"], 2, discount=0.5), [b"ab", b"bb"]))
    one = 0.25 + 0.5 / 256  # (1 − ½)/2 + ½ · 2/2 · 1/256
    np.testing.assert_allclose(found, [0.5 + one / 2, 0.5 + one / 2, one / 2, one], atol=1e-15)


@pytest.mark.parametrize("discount", [0.25, 1.0])
@pytest.mark.parametrize("order", ORDERS)
def test_probabilities_sum_to_1_at_every_context(order, discount):
    model = kneser_ney.fit(TRAIN, order, discount=discount)
    contexts = (b"", b"a", b"ab", b"abrac", b"the cat", b"never", b"xyz the", b"\0", b"\xff" * 7)
    for context in contexts:
        texts = [context + bytes([byte]) for byte in range(NUM_BYTES)]
        probs = np.exp(_scores(model, texts)).reshape(NUM_BYTES, -1)[:, -1]
        assert (probs > 0).all()
        assert probs.sum() == pytest.approx(1, abs=1e-12)


def test_a_document_starts_where_it_starts():
    """What stands before a text, or beside it, says nothing about it."""
    model = kneser_ney.fit(TRAIN, 4, discount=0.7)
    together = _scores(model, ASKED)
    np.testing.assert_array_equal(together, np.concatenate([_scores(model, [t]) for t in ASKED]))
    joined = _scores(model, [b"".join(ASKED)])
    assert (joined != together).any()


def test_text_is_counted_document_by_document():
    apart, joined = (
        _scores(kneser_ney.fit(texts, 3, discount=0.5), ASKED)
        for texts in (TRAIN, [b"".join(TRAIN)])
    )
    shuffled = _scores(kneser_ney.fit((*TRAIN[::-1], b""), 3, discount=0.5), ASKED)
    np.testing.assert_array_equal(apart, shuffled)
    assert (apart != joined).any()


@pytest.mark.parametrize("asked_for", ORDERS)
def test_longer_questions_do_not_change_the_answer(asked_for):
    asked = kneser_ney.queries(ASKED, asked_for)
    for order in range(1, asked_for + 1):
        model = kneser_ney.fit(TRAIN, order, discount=0.5)
        np.testing.assert_array_equal(kneser_ney.log_probs(model, asked), _scores(model, ASKED))


def test_the_same_questions_are_asked_of_every_model():
    asked = kneser_ney.queries(ASKED, 3)
    before = [(ask.grams.copy(), ask.shorter.copy(), ask.at.copy()) for ask in asked]
    for texts in ((b"the cat",), (b"\xff",), TRAIN):
        found = kneser_ney.log_probs(kneser_ney.fit(texts, 3, discount=0.5), asked)
        np.testing.assert_allclose(found, _expected(texts, 3, 0.5, ASKED), rtol=0, atol=1e-12)
    for ask, arrays in zip(asked, before, strict=True):
        for array, was in zip((ask.grams, ask.shorter, ask.at), arrays, strict=True):
            np.testing.assert_array_equal(array, was)


def test_held_out_text_is_scored_best_by_a_model_of_its_kind():
    rng = np.random.default_rng(0)
    kinds = (b"ACGT", b"0123456789", b"abcdefghijklm")

    def text(alphabet, size):  # the next letter is a neighbor, mostly
        steps = rng.choice([1, 1, 1, 2, -1], size=size)
        return bytes(alphabet[i] for i in np.cumsum(steps) % len(alphabet))

    models = [kneser_ney.fit([text(a, 2000)], 3, discount=0.7) for a in kinds]
    held_out = [[text(a, 500)] for a in kinds]
    means = np.array([[_scores(model, texts).mean() for model in models] for texts in held_out])
    assert (means.argmax(1) == np.arange(3)).all()
    # The entropy of the steps is 0.95 nats a byte: their distribution is (0.6, 0.2, 0.2).
    assert (-means.diagonal() < 1.1).all()
    assert (-means[~np.eye(3, dtype=bool)] > 4).all()


# ── tuning ──────────────────────────────────────────────────────────────────────────────────────

DISCOUNTS = (0.2, 0.5, 0.95)


@pytest.mark.parametrize(
    "chosen",
    [slice(None), slice(0, 15), slice(17, 24), slice(30, None), slice(3, 4)],
    ids=["all", "the cabbage", "xyzzy", "abracadabra", "one byte"],
)
def test_the_tuned_model_is_the_best_of_those_fitted(chosen):
    asked = kneser_ney.queries(ASKED, 4)
    chosen_on = np.zeros(sum(map(len, ASKED)), bool)
    chosen_on[chosen] = True
    model = kneser_ney.tuned(TRAIN, asked, chosen_on, discounts=DISCOUNTS)
    losses = {
        (n, d): -_expected(TRAIN, n, d, ASKED)[chosen_on].mean()
        for n, d in itertools.product(range(1, 5), DISCOUNTS)
    }
    best = losses[model.order, model.discount]
    assert best == pytest.approx(min(losses.values()), abs=1e-12)
    fitted = kneser_ney.fit(TRAIN, model.order, discount=model.discount)
    np.testing.assert_array_equal(_scores(model, ASKED), _scores(fitted, ASKED))


def test_what_is_best_depends_on_the_bytes_chosen_on():
    asked = kneser_ney.queries(ASKED, 4)
    found = set()
    for chosen in np.array_split(np.arange(sum(map(len, ASKED))), 5):
        chosen_on = np.isin(np.arange(sum(map(len, ASKED))), chosen)
        model = kneser_ney.tuned(TRAIN, asked, chosen_on, discounts=DISCOUNTS)
        found.add((model.order, model.discount))
    assert len({n for n, _ in found}) > 1
    assert len({d for _, d in found}) > 1


# ── draws ───────────────────────────────────────────────────────────────────────────────────────

SMALL = (b"abab", b"abba", b"b", b"aab")
CLASSES = {b"a": 1, b"b": 1, b"\0": 1, b"z": 253}  # z stands for every byte that was not seen
NUM_DRAWS = 200_000


def _p_value(drawn, texts, order, discount):
    """Chi-square of the first three bytes, by class, against the exact distribution."""
    prob = _by_hand(texts, order, discount)
    expected = []
    for triple in itertools.product(CLASSES, repeat=3):
        text = bytes(order - 1) + b"".join(triple)
        chances = [prob(text[: order - 1 + i], text[order - 1 + i]) for i in range(3)]
        expected.append(np.prod(chances) * np.prod([CLASSES[byte] for byte in triple]))
    expected = len(drawn) * np.array(expected)
    assert expected.sum() == pytest.approx(len(drawn), rel=1e-12)
    kind = np.full(NUM_BYTES, len(CLASSES) - 1)
    kind[[byte[0] for byte in CLASSES]] = range(len(CLASSES))
    observed = np.bincount(kind[drawn[:, :3]] @ [16, 4, 1], minlength=64)
    common = expected >= 5
    if not common.all():  # the rare ones as one class
        observed, expected = (np.append(x[common], x[~common].sum()) for x in (observed, expected))
    return stats.chisquare(observed, expected, sum_check=False).pvalue


def _drawn(texts, order, discount, num=NUM_DRAWS):
    model = kneser_ney.fit(texts, order, discount=discount)
    return kneser_ney.sample(model, num, 3, np.random.default_rng(0))


@pytest.mark.parametrize("discount", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_draws_follow_the_distribution_of_the_model(order, discount):
    drawn = _drawn(SMALL, order, discount)
    assert _p_value(drawn, SMALL, order, discount) > FALSE_ALARM


@pytest.mark.parametrize(
    ("texts", "order", "discount"),
    [(SMALL, 2, 0.9), (SMALL, 4, 0.9), (SMALL, 3, 0.85), (SMALL[:-1], 3, 0.9)],
    ids=["shorter", "longer", "another discount", "another text"],
)
def test_draws_do_not_follow_the_distribution_of_another_model(texts, order, discount):
    """The falsifier of the test above."""
    assert _p_value(_drawn(SMALL, 3, 0.9), texts, order, discount) < 1e-9


def test_bytes_that_were_not_seen_are_equally_likely():
    drawn = _drawn(SMALL, 3, 1.0)
    unseen = np.bincount(drawn.ravel(), minlength=NUM_BYTES)[3:]
    unseen = np.delete(unseen, [ord("a") - 3, ord("b") - 3])
    assert stats.chisquare(unseen).pvalue > FALSE_ALARM


def test_draws_are_bytes_of_the_shape_asked_for_and_of_the_seed():
    model = kneser_ney.fit(SMALL, 3, discount=0.5)
    first, again, other = (
        kneser_ney.sample(model, 7, 11, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert first.shape == (7, 11)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("order", [1, 7])
def test_draws_of_one_byte_and_of_the_largest_order(order):
    model = kneser_ney.fit([b"\xff" * 50], order, discount=1e-9)
    drawn = kneser_ney.sample(model, 3, 20, np.random.default_rng(0))
    assert (drawn == 255).all()  # chance of any other byte: below 1e-6


def test_each_draw_goes_on_from_its_own_bytes():
    """The mean log-probability of long draws is that of the model: their own distribution scores
    best.
    """
    models = [kneser_ney.fit([text], 3, discount=0.2) for text in (b"abc" * 9, b"acb" * 9)]
    for model, other in (models, models[::-1]):
        rows = kneser_ney.sample(model, 50, 40, np.random.default_rng(0))
        texts = [row.tobytes() for row in rows]
        assert _scores(model, texts).mean() > _scores(other, texts).mean() + 1


# ── what is refused ─────────────────────────────────────────────────────────────────────────────

MODEL = kneser_ney.fit([b"ab"], 2, discount=0.5)
QUERIES = kneser_ney.queries([b"ab"], 2)
REFUSED = {
    "order 0": (
        lambda: kneser_ney.fit([b"a"], 0, discount=0.5),
        "`order` must lie in [1, 7]; got order = 0.",
    ),
    "order 8": (
        lambda: kneser_ney.fit([b"a"], 8, discount=0.5),
        "`order` must lie in [1, 7]; got order = 8.",
    ),
    "no text": (
        lambda: kneser_ney.fit([], 2, discount=0.5),
        "`the number of bytes` must be at least 1; got the number of bytes = 0.",
    ),
    "empty texts": (
        lambda: kneser_ney.fit([b"", b""], 2, discount=0.5),
        "`the number of bytes` must be at least 1; got the number of bytes = 0.",
    ),
    "no discount": (
        lambda: kneser_ney.fit([b"a"], 2, discount=0.0),
        "`discount` must lie in (0, 1]; got discount = 0.0.",
    ),
    "too large a discount": (
        lambda: kneser_ney.fit([b"a"], 2, discount=1.1),
        "`discount` must lie in (0, 1]; got discount = 1.1.",
    ),
    "not a number": (
        lambda: kneser_ney.fit([b"a"], 2, discount=float("nan")),
        "`discount` must lie in (0, 1]; got discount = nan.",
    ),
    "nothing to choose on": (
        lambda: kneser_ney.tuned([b"a"], QUERIES, np.zeros(2, bool), discounts=[0.5]),
        "`chosen_on` must choose a byte; got chosen_on.sum() = 0.",
    ),
    "no text to count": (
        lambda: kneser_ney.tuned([], QUERIES, np.ones(2, bool), discounts=[0.5]),
        "`the number of bytes` must be at least 1; got the number of bytes = 0.",
    ),
    "no draw": (
        lambda: kneser_ney.sample(MODEL, 0, 1, np.random.default_rng(0)),
        "`num` must be at least 1; got num = 0.",
    ),
    "no length": (
        lambda: kneser_ney.sample(MODEL, 1, 0, np.random.default_rng(0)),
        "`length` must be at least 1; got length = 0.",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_name_argument_rule_and_value(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()
