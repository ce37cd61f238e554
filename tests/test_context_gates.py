"""Gates that read contexts: their distributions, temperatures tuned where they are not judged, and
B9.
"""

import numpy as np
import pytest

from dfm_jax.comparison import evaluation_sets
from experiments.lib import context_gates, contexts
from experiments.lib.context_gates import NAMES, TEMPERATURES
from experiments.lib.contexts import Contexts, Pieces

K, F, WINDOW = 3, 2, 4
LOG_PRIOR = np.log([0.5, 0.3, 0.2])


def _logsumexp(x, axis=-1):
    top = x.max(axis, keepdims=True)
    return (np.log(np.exp(x - top).sum(axis, keepdims=True)) + top).squeeze(axis)


# ── what stands before ──────────────────────────────────────────────────────────────────────────


@pytest.mark.statement("B9")
def test_a_context_ends_where_its_sequence_begins_and_stays_in_its_document():
    sizes = np.array([5, 0, 3, 9])
    rng = np.random.default_rng(0)
    num = int(sizes.sum())
    scores, dense = -rng.random((num, K)), -rng.random(num)
    reset, carried = evaluation_sets.held_out(scores, dense, sizes, np.array([0, 1, 1, 2]), WINDOW)
    begins = [0, 0, 5, 8, 8, 12]  # the document's start, or a window's bytes back
    ends = [0, 4, 5, 8, 12, 16]
    assert reset.context.tolist() == [list(pair) for pair in zip(begins, ends, strict=True)]
    assert carried.context is None  # a gate that is carried has read all that stands before
    np.testing.assert_array_equal(reset.context[:, 1], reset.sequences.starts)


@pytest.mark.statement("B9")
def test_the_context_of_a_spliced_sequence_is_that_of_its_first_half():
    sizes, parts = np.array([9, 12, 6, 30, 7, 8]), np.array([0, 1, 0, 1, 0, 1])
    num = int(sizes.sum())
    marked = -np.arange(1.0, num + 1)[:, None] * np.ones(2)  # so that a byte is known again
    _, carried = evaluation_sets.held_out(marked, marked[:, 0], sizes, parts, 6)
    evaluation_set = evaluation_sets.spliced(carried, 6, seed=0)
    first = (-evaluation_set.log_probs[evaluation_set.sequences.starts, 0] - 1).astype(int)
    starts = np.r_[0, np.cumsum(sizes)[:-1]]
    document = starts[np.searchsorted(starts, first, side="right") - 1]
    np.testing.assert_array_equal(evaluation_set.context[:, 1], first)
    np.testing.assert_array_equal(evaluation_set.context[:, 0], np.maximum(document, first - 6))
    assert (evaluation_set.context[:, 0] < evaluation_set.context[:, 1]).any()


@pytest.mark.statement("B9")
def test_a_feature_is_of_the_bytes_of_its_span_alone():
    texts = ["the cat sat on the mat", "a dog lay in a bed", "the dog and the cat"]
    encode = contexts.encoder([text.encode() for text in texts], 2, seed=0)
    flat = "née the cat sat; a dog".encode()
    spans = np.array([[5, 12], [2, 12], [0, 0], [18, 23]])
    found = contexts.contexts(encode, flat, spans)
    np.testing.assert_array_equal(found.known, [True, True, False, True])
    np.testing.assert_array_equal(found.empty, [False, False, True, False])
    np.testing.assert_array_equal(found.features[0], encode(["the cat"])[0])
    np.testing.assert_array_equal(found.features[1], encode(["e the cat"])[0])  # half a letter
    np.testing.assert_allclose(np.linalg.norm(found.features[[0, 1, 3]], axis=1), 1, rtol=1e-6)
    after = contexts.contexts(encode, flat[:12] + b"." * 10, spans[:2])
    np.testing.assert_array_equal(after.features, found.features[:2])


def test_pieces_are_windows_that_know_whether_another_follows():
    texts = [b"the cat sat", b"", b"the dog", b"a cat"]
    encode = contexts.encoder(texts, 2, seed=0)
    found = contexts.pieces(encode, texts, 6)
    assert found.document.tolist() == [0, 0, 2, 2, 3]
    assert found.precedes.tolist() == [True, False, True, False, False]
    expected = encode(["the ca", "t sat", "the do", "g", "a cat"])
    np.testing.assert_array_equal(found.features, expected)


def test_sums_over_spans():
    log_probs = -np.random.default_rng(0).random((9, K))
    spans = np.array([[0, 9], [2, 5], [4, 4]])
    expected = [log_probs[a:b].sum(0) for a, b in spans]
    found = context_gates.span_scores(log_probs, spans)
    np.testing.assert_allclose(found, expected, atol=1e-14)


# ── distributions and what is tuned ───────────────────────────────────────────────────────────────


def _planted(seed: int, num: int = 120):
    """Sequences of a window each whose part their context suggests; one without, one unknown."""
    rng = np.random.default_rng(seed)
    part = rng.choice(K, p=np.exp(LOG_PRIOR), size=num)
    directions = np.array([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]])
    features = directions[part] + rng.normal(size=(num, F))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    spans = np.stack([np.arange(num), np.arange(num) + 1], axis=1)
    features[:2], spans[0] = np.nan, 0
    own = np.arange(K) == part[:, None]
    probs = rng.uniform(0.1, 0.6, size=(num, WINDOW, K)) + 0.3 * own[:, None]
    scores = rng.normal(size=(num, K)) * 8 + 6 * own  # of the context, by short models
    scores[0] = 0
    evaluation_set, _ = evaluation_sets.held_out(
        np.log(probs).reshape(-1, K),
        np.zeros(num * WINDOW),
        np.full(num, WINDOW),
        part,
        WINDOW,
    )
    return evaluation_set, Contexts(spans=spans, features=features), scores, part


@pytest.fixture(scope="module")
def fitted():
    _, train, _, part = _planted(0, 300)
    pieces = Pieces(
        features=train.features, document=np.arange(300), precedes=np.arange(300) % 7 > 0
    )
    evaluation_set, held_out, scores, held_part = _planted(1)
    models = context_gates.fitted(
        pieces, part, held_out, held_part, LOG_PRIOR, decays=(1e-4, 1e-2, 1.0)
    )
    return pieces, part, models, (evaluation_set, held_out, scores), held_part


@pytest.fixture(scope="module")
def judged(fitted):
    *_, models, tuned_on, _ = fitted
    _, there, scores, _ = _planted(2, 90)
    return there, scores, *context_gates.token_probs(models, tuned_on, (there, scores))


def _probs(name, models, found, scores, temperature):
    """The equation of each gate, in NumPy: [Q, K]."""
    if name == "router":
        (layer,) = models.router.layers
        logits = found.features @ np.asarray(layer.weights).T + np.asarray(layer.bias)
    elif name == "centroid":
        lengths = np.linalg.norm(models.centroids, axis=1)
        logits = found.features @ (models.centroids.T / lengths) / temperature
    else:
        logits = LOG_PRIOR + scores / temperature
    probs = logits - _logsumexp(logits)[:, None]
    read = ~found.empty if name == "likelihood" else found.known
    return np.where(read[:, None], probs, LOG_PRIOR)


@pytest.mark.slow
def test_every_distribution_is_its_equation_and_without_a_context_the_prior(fitted, judged):
    *_, models, _, _ = fitted
    there, scores, probs, record = judged
    assert probs.names == NAMES == ("centroid", "router", "likelihood")
    for c, name in enumerate(NAMES):
        for use, found in (("fixed", probs.fixed), ("prior", probs.prior)):
            temperature = record[name][use]["temperature"] if name in record else None
            expected = _probs(name, models, there, scores, temperature)
            np.testing.assert_allclose(found[:, c], expected, atol=1e-9, err_msg=name)
            np.testing.assert_array_equal(found[0, c], LOG_PRIOR)
            if name != "likelihood":  # no known word: only likelihood reads it
                np.testing.assert_array_equal(found[1, c], LOG_PRIOR)
    assert np.abs(probs.prior[1, 2] - LOG_PRIOR).max() > 1e-2


def _decoded(name, models, held, temperature, use):
    """−log p of what is decoded, summed: token by token, or of the sequence mixture."""
    evaluation_set, found, scores = held
    probs, log_probs = _probs(name, models, found, scores, temperature), evaluation_set.log_probs
    sequences = log_probs.reshape(len(probs), WINDOW, K)
    if use == "prior":
        return -_logsumexp(probs + sequences.sum(1)).sum()
    return -_logsumexp(probs[:, None] + sequences).sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPERATURES)
@pytest.mark.parametrize("use", ["fixed", "prior"])
def test_a_temperature_is_the_best_for_what_is_decoded_on_validation(fitted, judged, name, use):
    *_, models, tuned_on, _ = fitted
    *_, record = judged
    found = record[name][use]
    grid = np.geomspace(*TEMPERATURES[name], 400)
    losses = np.array([_decoded(name, models, tuned_on, t, use) for t in grid])
    own = _decoded(name, models, tuned_on, found["temperature"], use)
    assert own <= losses.min() + 1e-3
    assert not found["at_bound"]
    assert losses.max() > own + 0.5  # it matters
    elsewhere = _planted(2, 90)[:3]  # where it is judged, another would be better
    best = min(_decoded(name, models, elsewhere, t, use) for t in grid)
    assert _decoded(name, models, elsewhere, found["temperature"], use) > best + 1e-6


@pytest.mark.slow
def test_a_use_has_a_temperature_of_its_own(judged):
    *_, record = judged
    for uses in record.values():
        fixed, prior = (uses[use]["temperature"] for use in ("fixed", "prior"))
        assert abs(np.log(fixed / prior)) > 0.05


@pytest.mark.slow
def test_the_router_is_fitted_on_contexts_and_its_decay_chosen_on_validation(fitted):
    pieces, part, models, (_, held_out, _), held_part = fitted
    known = ~np.isnan(pieces.features[:, 0])
    assert models.num_rows == (known & pieces.precedes).sum() < known.sum()
    np.testing.assert_allclose(
        models.centroids, [pieces.features[known & (part == k)].sum(0) for k in range(K)]
    )
    losses = models.router_losses
    assert models.decay == min(losses, key=losses.__getitem__)
    assert len(set(losses.values())) == 3
    probs = _probs("router", models, held_out, None, None)[held_out.known]
    own = -probs[np.arange(len(probs)), held_part[held_out.known]].mean()
    assert own == pytest.approx(losses[models.decay], abs=1e-9)
    rows = known & pieces.precedes  # the minimum: no gradient is left
    (layer,) = models.router.layers
    logits = pieces.features[rows] @ np.asarray(layer.weights).T + np.asarray(layer.bias)
    probs = np.exp(logits - _logsumexp(logits)[:, None])
    wrong = probs - (np.arange(K) == part[rows, None])
    slope = wrong.T @ pieces.features[rows] / rows.sum() + models.decay * np.asarray(layer.weights)
    assert np.abs(slope).max() < 1e-4


@pytest.mark.slow
def test_text_without_a_context_is_refused(fitted):
    pieces, part, _, (_, held_out, _), held_part = fitted
    none = Pieces(features=pieces.features, document=pieces.document, precedes=np.zeros(300, bool))
    with pytest.raises(
        ValueError, match="`window` must leave a context with a known word in the training text"
    ):
        context_gates.fitted(none, part, held_out, held_part, LOG_PRIOR, decays=(1.0,))
    unknown = Contexts(spans=held_out.spans, features=np.full((120, F), np.nan))
    with pytest.raises(
        ValueError, match="`window` must leave a context with a known word in the validation text"
    ):
        context_gates.fitted(pieces, part, unknown, held_part, LOG_PRIOR, decays=(1.0,))
