"""The comparison of gates and its account: against the library's gates, and where experts are
exact.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import mixture
from dfm_jax.comparison import gates, loss_account
from dfm_jax.comparison.evaluation_sets import EvaluationSet
from dfm_jax.comparison.gates import (
    TOPS,
    ContextProbs,
    Sequences,
    TokenProbs,
    gate_names,
    losses,
    score,
)
from dfm_jax.comparison.loss_account import account, evaluations, exact_sums
from dfm_jax.comparison.record import gate_comparison_record
from dfm_jax.mixture import mix_log_probs
from experiments.lib.fixed_share import fixed_share_losses

PREFIXES, ALPHAS = (2, 5), (0.1, 0.7)
HONEST = 1e-12  # what rounding may take from an expected loss


@pytest.fixture
def text():
    """[N, K] log-probabilities of 3 experts, and spans of unequal length, cut in windows of 4."""
    rng = np.random.default_rng(0)
    starts = np.array([0, 1, 9, 10, 33])
    windows = np.concatenate(
        [np.arange(a, b, 4) for a, b in zip(starts, [1, 9, 10, 33, 50], strict=True)]
    )
    log_probs = np.log(rng.dirichlet(np.ones(5), size=(50, 3))[..., 0])
    return log_probs, Sequences(starts=starts, windows=windows, num_bytes=50)


LOG_PRIOR = np.log([0.2, 0.5, 0.3])
# Compiled once for all gates: they are called for each of them, and each number of experts.
_MIXED = jax.jit(jax.vmap(mix_log_probs))
_CUT = jax.jit(jax.vmap(mixture.top_experts_gate, (0, None)), static_argnums=1)


def _probs(log_probs: np.ndarray) -> dict[str, np.ndarray]:
    """The public gates along one sequence, [N, K]: what each has before it sees the byte."""
    num_bytes = len(log_probs)
    states = {
        "static": mixture.static_gate(LOG_PRIOR, num_bytes),
        "last token": mixture.last_token_gate(LOG_PRIOR, log_probs),
        "Bayes": mixture.bayes_gate(LOG_PRIOR, log_probs),
    }
    for a, alpha in enumerate(ALPHAS):
        states[f"fixed share {a}"] = mixture.fixed_share_gate(LOG_PRIOR, log_probs, alpha)
    token_probs = {name: np.exp(state.log_weights)[:-1] for name, state in states.items()}
    for length in PREFIXES:
        token_probs[f"prefix {length}"] = token_probs["Bayes"][
            np.minimum(np.arange(num_bytes), length)
        ]
    return token_probs


def _nll(token_probs: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -np.asarray(_MIXED(np.log(token_probs), log_probs))


def _cut(token_probs: np.ndarray, top: str) -> np.ndarray:
    count = dict(zip(TOPS, (1, 2, token_probs.shape[1]), strict=True))[top]
    return np.array(_CUT(token_probs, count))


def _in_windows(values: np.ndarray, windows: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values, windows)


@pytest.mark.slow
def test_every_gate_variant_is_the_library_gate(text, x64):
    log_probs, spans = text
    scores = score(log_probs, spans, LOG_PRIOR, prefixes=PREFIXES, alphas=ALPHAS)
    names = gate_names(PREFIXES, num_alphas=2)
    assert names == (
        *("static", "last token", "prefix 2", "prefix 5"),
        *("fixed share", "fixed share", "Bayes"),
    )
    ends = [*spans.starts[1:], spans.num_bytes]
    pieces = [log_probs[a:b] for a, b in zip(spans.starts, ends, strict=True)]
    longest = max(map(len, pieces))  # all of one length: no gate sees what comes after
    each = [_probs(np.pad(piece, ((0, longest - len(piece)), (0, 0)))) for piece in pieces]
    token_probs = {
        name: np.concatenate([probs[name][: len(p)] for probs, p in zip(each, pieces, strict=True)])
        for name in each[0]
    }
    numbered = [*names[:4], "fixed share 0", "fixed share 1", "Bayes"]
    for (g, name), (c, top) in itertools.product(enumerate(numbered), enumerate(TOPS)):
        expected = _in_windows(_nll(_cut(token_probs[name], top), log_probs), spans.windows)
        np.testing.assert_allclose(scores.soft[:, g, c], expected, atol=1e-12, err_msg=name)
    seen = np.concatenate([np.arange(len(piece)) for piece in pieces])[:, None]
    for m, length in enumerate(PREFIXES):
        hard = np.where(
            seen < length, token_probs["Bayes"], _cut(token_probs[f"prefix {length}"], "top-1")
        )
        expected = _in_windows(_nll(hard, log_probs), spans.windows)
        np.testing.assert_allclose(scores.hard_after[:, m], expected, atol=1e-12)


def _contexts(num_sequences, seed=3):
    """Two gates that read contexts, each with a distribution to stay at and one to start from."""
    rng = np.random.default_rng(seed)
    fixed, prior = np.log(rng.dirichlet(np.ones(3), size=(2, num_sequences, 2)))
    return ContextProbs(names=("near", "far"), fixed=fixed, prior=prior)


@pytest.mark.slow
@pytest.mark.statement("D7")
def test_distributions_of_contexts_stay_or_are_priors_of_the_library_gate(text, x64):
    log_probs, spans = text
    contexts = _contexts(spans.starts.size)
    options = {"prefixes": PREFIXES, "alphas": ALPHAS}
    scores = score(log_probs, spans, LOG_PRIOR, contexts=contexts, **options)
    names = gate_names(PREFIXES, num_alphas=2, contexts=contexts.names)
    assert names[-5:] == ("near", "far", "near × Bayes", "far × Bayes", "Bayes")
    ends = [*spans.starts[1:], spans.num_bytes]
    behind = np.concatenate([log_probs, np.zeros((max(np.subtract(ends, spans.starts)), 3))])
    of_longest = jax.jit(mixture.bayes_gate)  # of one length: no weight sees what comes after it
    for c, name in enumerate(contexts.names):
        stays, informed = [], []
        for q, (a, b) in enumerate(zip(spans.starts, ends, strict=True)):
            stays.append(np.broadcast_to(np.exp(contexts.fixed[q, c]), (b - a, 3)))
            gate = of_longest(contexts.prior[q, c], behind[a : a + len(behind) - len(log_probs)])
            informed.append(np.exp(gate.log_weights)[: b - a])
        for label, token_probs in ((name, stays), (f"{name} × Bayes", informed)):
            for t, top in enumerate(TOPS):
                nll = _nll(_cut(np.concatenate(token_probs), top), log_probs)
                found = scores.soft[:, names.index(label), t]
                np.testing.assert_allclose(
                    found, _in_windows(nll, spans.windows), atol=1e-12, err_msg=label
                )
    without = score(log_probs, spans, LOG_PRIOR, **options)
    kept = [names.index(name) for name in ("static", "last token", "prefix 2", "Bayes")]
    np.testing.assert_allclose(scores.soft[:, kept], without.soft[:, [0, 1, 2, -1]], atol=1e-12)


@pytest.mark.slow
@pytest.mark.statement("D12")
def test_distributions_of_tokens_mix_as_they_stand(text, x64):
    log_probs, spans = text
    token_probs = np.random.default_rng(5).dirichlet(np.ones(3), size=(spans.num_bytes, 2))
    running = TokenProbs(names=("one", "two"), log_probs=np.log(token_probs))
    options = {"prefixes": PREFIXES, "alphas": ALPHAS, "contexts": _contexts(spans.starts.size)}
    scores = score(log_probs, spans, LOG_PRIOR, running=running, **options)
    of_probs = {"contexts": ("near", "far"), "running": running.names}
    names = gate_names(PREFIXES, num_alphas=2, **of_probs)
    assert names[-3:] == ("one", "two", "Bayes")
    for e, name in enumerate(running.names):
        for t, top in enumerate(TOPS):
            nll = _nll(_cut(token_probs[:, e], top), log_probs)
            found = scores.soft[:, names.index(name), t]
            np.testing.assert_allclose(found, _in_windows(nll, spans.windows), atol=1e-12)
    without = score(log_probs, spans, LOG_PRIOR, **options)
    kept = [place for place, name in enumerate(names) if name not in running.names]
    np.testing.assert_allclose(scores.soft[:, kept], without.soft, atol=1e-12)
    wrong = TokenProbs(names=running.names, log_probs=running.log_probs - 0.1)
    with pytest.raises(ValueError, match=r"`exp\(running\.log_probs\)` must sum to 1"):
        score(log_probs, spans, LOG_PRIOR, running=wrong, **options)


def test_a_context_distribution_that_is_none_is_refused(text, x64):
    log_probs, spans = text
    contexts = _contexts(spans.starts.size)
    for field in ("fixed", "prior"):
        wrong = {"fixed": contexts.fixed, "prior": contexts.prior} | {
            field: getattr(contexts, field) + 0.1
        }
        with pytest.raises(ValueError, match=rf"`exp\(contexts\.{field}\)` must sum to 1"):
            score(
                *(log_probs, spans, LOG_PRIOR),
                prefixes=PREFIXES,
                alphas=ALPHAS,
                contexts=ContextProbs(names=contexts.names, **wrong),
            )


@pytest.mark.slow
def test_a_gate_starts_again_with_its_sequence_alone(text, x64):
    """The same bytes, started again with every window: another table for gates with a memory."""
    log_probs, spans = text
    again = Sequences(starts=spans.windows, windows=spans.windows, num_bytes=spans.num_bytes)
    options = {"prefixes": PREFIXES, "alphas": ALPHAS}
    carried = score(log_probs, spans, LOG_PRIOR, **options).soft
    reset = score(log_probs, again, LOG_PRIOR, **options).soft
    begun = np.isin(spans.windows, spans.starts)
    np.testing.assert_allclose(carried[begun], reset[begun], atol=1e-12)
    changed = np.abs(carried - reset)[~begun].max(axis=(0, 2))
    assert changed[0] == 0  # static
    assert (changed[1:] > 1e-3).all()


def test_lanes_hold_every_byte_once(text):
    _, spans = text
    places = gates.lanes(spans)
    assert sorted(places[places >= 0]) == list(range(spans.num_bytes))
    for lane in places.T:
        held = lane[lane >= 0]
        assert (lane[: held.size] >= 0).all()
        jumps = held[1:][np.diff(held) != 1]
        assert set(jumps) <= set(spans.starts)


@pytest.mark.slow
def test_long_texts_go_through_in_pieces(monkeypatch, text, x64):
    log_probs, spans = text
    options = {"prefixes": PREFIXES, "alphas": ALPHAS}
    whole = score(log_probs, spans, LOG_PRIOR, **options)
    monkeypatch.setattr(gates, "_STEPS", 3)
    monkeypatch.setattr(gates, "_LANES", 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),
        whole,
        score(log_probs, spans, LOG_PRIOR, **options),
    )


@pytest.mark.slow
def test_many_short_sequences_go_through_side_by_side(monkeypatch, text, x64):
    """Of 4 bytes each: the lanes change, and no loss does."""
    log_probs, _ = text
    starts = np.arange(0, 48, 4)
    spans = Sequences(starts=starts, windows=starts, num_bytes=48)
    options = {"prefixes": PREFIXES, "alphas": ALPHAS}
    monkeypatch.setattr(gates, "_STEPS", 5)
    narrow = score(log_probs[:48], spans, LOG_PRIOR, **options)
    assert gates.chunks(spans).shape == (2, 5, 8)
    monkeypatch.setattr(gates, "_WIDE", 12)
    assert gates.chunks(spans).shape == (2, 3, 12)
    wide = score(log_probs[:48], spans, LOG_PRIOR, **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), narrow, wide)
    alone = fixed_share_losses(log_probs[:48], spans, LOG_PRIOR, ALPHAS)
    at = [i for i, name in enumerate(gate_names(PREFIXES, num_alphas=2)) if name == "fixed share"]
    np.testing.assert_allclose(alone, wide.soft[:, at, -1].sum(0), rtol=1e-12)


@pytest.mark.slow
def test_fixed_share_alone_loses_what_it_loses_in_the_gate_comparison(text, x64):
    log_probs, spans = text
    alone = fixed_share_losses(log_probs, spans, LOG_PRIOR, ALPHAS)
    whole = score(log_probs, spans, LOG_PRIOR, prefixes=(), alphas=ALPHAS).soft[..., -1].sum(0)
    at = [i for i, name in enumerate(gate_names((), num_alphas=2)) if name == "fixed share"]
    np.testing.assert_allclose(alone, whole[at], rtol=1e-12)
    assert abs(alone[0] - alone[1]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("num_experts", [1, 2, 3, 8])
def test_losses_without_a_sort_are_those_of_top_k(num_experts, x64):
    rng = np.random.default_rng(num_experts)
    probs = rng.dirichlet(np.ones(num_experts))
    if num_experts > 2:
        probs[1] = probs[2] = (probs[1] + probs[2]) / 2  # a tie goes to the lower index
    log_probs = np.log(rng.random(num_experts))
    found, margin = losses(jnp.log(probs), jnp.asarray(log_probs))
    for count, value in zip((1, 2, num_experts), found, strict=True):
        cut = mixture.top_experts_gate(probs, min(count, num_experts))
        assert float(value) == pytest.approx(-float(mix_log_probs(jnp.log(cut), log_probs)))
    largest = np.sort(np.r_[0.0, probs])[::-1]
    assert float(margin) == pytest.approx(largest[0] - largest[1])


@pytest.mark.slow
def test_margins_count_every_byte_and_their_gaps_are_the_price_of_top_1(text, x64):
    log_probs, spans = text
    scores = score(log_probs, spans, LOG_PRIOR, prefixes=PREFIXES, alphas=ALPHAS)
    np.testing.assert_array_equal(scores.margin_bytes.sum(1), spans.num_bytes)
    gap = (scores.soft[..., 0] - scores.soft[..., -1]).sum(0)
    np.testing.assert_allclose(scores.margin_gap.sum(1), gap, atol=1e-12)
    assert scores.margin_bytes[0].tolist() == [0, 0, *[spans.num_bytes], *[0] * 7]  # 0.5 − 0.3


# ── exact experts: the distribution is known, every sequence is listed ────────────────────────────


class _Exact:
    """K distributions over all sequences of `length` out of 2 tokens, their conditionals, their
    mixture.
    """

    def __init__(self, *, length: int = 8, num_experts: int = 3, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.weights = rng.dirichlet(np.full(num_experts, 3.0))
        token_probs = rng.dirichlet(np.full(2**length, 0.5), size=num_experts)
        self.probs = self.weights @ token_probs
        tree = token_probs.reshape(num_experts, *[2] * length)
        prefixes = [tree.reshape(num_experts, 2**t, -1).sum(-1) for t in range(length + 1)]
        codes = np.arange(2**length)
        steps = [
            np.log(prefixes[t + 1][:, codes >> (length - t - 1)])
            - np.log(prefixes[t][:, codes >> (length - t)])
            for t in range(length)
        ]
        self.log_probs = np.stack(steps, axis=-1).transpose(1, 2, 0).reshape(-1, num_experts)
        starts = np.arange(2**length) * length
        self.spans = Sequences(starts=starts, windows=starts, num_bytes=starts.size * length)
        self.posterior = (self.weights[:, None] * token_probs / self.probs).T

    def expected(self, nll: np.ndarray) -> np.ndarray:
        """E_q of losses per sequence, [Q, …]."""
        return np.tensordot(self.probs, nll, 1)


@pytest.mark.statement("D7", "B10")
@pytest.mark.parametrize("seed", range(3))
def test_with_exact_experts_cumulative_bayes_is_optimal(seed, x64):
    evaluation_set = _Exact(seed=seed)
    log_prior = np.log(evaluation_set.weights)
    scores = score(
        evaluation_set.log_probs, evaluation_set.spans, log_prior, prefixes=PREFIXES, alphas=ALPHAS
    )
    entropy = -float(evaluation_set.probs @ np.log(evaluation_set.probs))
    expected = evaluation_set.expected(scores.soft)
    assert expected[-1, -1] == pytest.approx(entropy, abs=HONEST)  # Bayes, full
    assert (expected >= entropy - HONEST).all()
    assert (evaluation_set.expected(scores.hard_after) >= entropy - HONEST).all()
    others = np.delete(expected.ravel(), expected.size - 1)
    assert others.min() > entropy + 1e-4  # every other gate variant pays


@pytest.mark.statement("B9")
def test_an_oracle_that_has_read_the_sequence_is_flattered_by_the_information(x64):
    evaluation_set = _Exact()
    of_part = evaluation_set.log_probs.reshape(len(evaluation_set.probs), -1, 3).sum(
        1
    )  # log q_k(x)
    oracle = -float(evaluation_set.probs @ (evaluation_set.posterior * of_part).sum(1))
    entropy = -float(evaluation_set.probs @ np.log(evaluation_set.probs))
    ratio = np.log(evaluation_set.posterior) - np.log(evaluation_set.weights)
    information = float(evaluation_set.probs @ (evaluation_set.posterior * ratio).sum(1))
    assert information > 0.05
    assert entropy - oracle == pytest.approx(information, abs=HONEST)


# ── the account ─────────────────────────────────────────────────────────────────────────────────


def _scored(evaluation_set, **options):
    """Every gate on the sequences of an evaluation set, with one α."""
    found, spans = evaluation_set.log_probs, evaluation_set.sequences
    return score(found, spans, LOG_PRIOR, alphas=[0.1], **options)


def _evaluation_set(
    text, *, changes: bool = False, units: Sequence[int] | None = None
) -> EvaluationSet:
    log_probs, spans = text
    rng = np.random.default_rng(1)
    sequence = np.searchsorted(spans.starts, np.arange(spans.num_bytes), side="right") - 1
    part = rng.integers(3, size=spans.starts.size)[sequence]
    if changes:
        part = rng.integers(3, size=spans.num_bytes)
    unit = np.searchsorted(spans.starts, spans.windows, side="right") - 1
    return EvaluationSet(
        name="evaluation_set",
        log_probs=log_probs,
        dense=np.log(rng.random(spans.num_bytes)),
        part=part,
        sequences=spans,
        unit=unit if units is None else np.asarray(units),
        changes=changes,
    )


@pytest.mark.slow
@pytest.mark.statement("B1", "B11")
@pytest.mark.parametrize("changes", [False, True])
def test_terms_sum_to_the_difference_from_the_dense_model(text, changes, x64):
    evaluation_set = _evaluation_set(text, changes=changes)
    scores = _scored(evaluation_set, prefixes=PREFIXES)
    found = account(evaluation_set, scores, LOG_PRIOR, prefixes=PREFIXES)
    gate_variants = [
        gate_variant for gate_variant in found.gate_variants if gate_variant[0] != "oracle"
    ]
    assert len(gate_variants) == len(gate_names(PREFIXES, num_alphas=1)) * 3 + len(PREFIXES)
    assert found.sum_residual() < 1e-12
    assert found.b1_residual < 1e-12
    assert found.b11_slack > -1e-12
    for v, (gate, top) in enumerate(found.gate_variants):
        terms = {name: term[v] for name, term in found.terms().items()}
        np.testing.assert_allclose(sum(terms.values()), found.nll[v] - found.dense, atol=1e-12)
        if top == "full":
            assert not terms["truncation"].any()
        if gate == "Bayes":
            assert not terms["gate"].any()
        if gate == "oracle":
            np.testing.assert_allclose(terms["gate"], -found.cost, atol=1e-12)
    np.testing.assert_array_equal(found.sizes, np.diff(np.r_[evaluation_set.sequences.starts, 50]))


@pytest.mark.slow
@pytest.mark.statement("B1", "B11")
def test_terms_sum_and_b1_holds_with_a_prior_of_the_context(text, x64):
    """Σ_k P̂(k | c) p_k is another mixture: B1 is checked for it, and sees another prior."""
    evaluation_set = _evaluation_set(text)
    contexts = _contexts(evaluation_set.sequences.starts.size)
    options = {"prefixes": PREFIXES, "contexts": contexts}
    scores = _scored(evaluation_set, **options)
    found = account(evaluation_set, scores, LOG_PRIOR, **options)
    assert {"near", "far × Bayes"} <= {gate for gate, _ in found.gate_variants}
    assert found.sum_residual() < 1e-12
    assert found.b1_residual < 1e-12
    assert found.b11_slack > -1e-12
    v = found.gate_variants.index(("near × Bayes", "full"))
    ends = [*evaluation_set.sequences.starts[1:], 50]
    pairs = zip(evaluation_set.sequences.starts, ends, contexts.prior[:, 0], strict=True)
    mixed = [
        -np.log(np.exp(probs + evaluation_set.log_probs[a:b].sum(0)).sum()) for a, b, probs in pairs
    ]
    np.testing.assert_allclose(found.nll[v], mixed, atol=1e-12)
    np.testing.assert_allclose(found.terms()["gate"][v], mixed - found.bayes, atol=1e-12)
    evaluations = dict(zip(found.gate_variants, found.evaluations, strict=True))
    assert evaluations["near", "top-1"] == 1
    assert evaluations["near × Bayes", "top-1"] == 3
    other = {"prefixes": PREFIXES, "contexts": _contexts(len(mixed), seed=4)}
    broken = account(evaluation_set, scores, LOG_PRIOR, **other)
    assert broken.b1_residual > 1e-3


@pytest.mark.slow
def test_a_margin_adds_verdicts_and_changes_no_interval(text, x64):
    options = {"prefixes": PREFIXES, "num_draws": 50, "seed": 3, "level": 0.9}
    evaluation_set = _evaluation_set(text)
    plain = gate_comparison_record(evaluation_set, LOG_PRIOR, 0.1, None, **options)
    judged = gate_comparison_record(evaluation_set, LOG_PRIOR, 0.1, None, margin=0.1, **options)
    for without, row in zip(plain["rows"], judged["rows"], strict=True):
        verdict = row.pop("verdict")
        for name in ("dense", "bayes"):
            assert row["minus"].pop(name) == pytest.approx(without["minus"].pop(name), rel=1e-12)
        assert row == without
        assert (verdict["level"], verdict["margin"]) == (0.9, 0.1)
        assert verdict["verdict"] in ("equivalent", "better", "worse", "undecided")
    one = replace(evaluation_set, unit=np.zeros_like(evaluation_set.unit))
    alone = gate_comparison_record(one, LOG_PRIOR, 0.1, None, margin=0.1, **options)
    assert alone["rows"][0]["minus"]["dense"][1:] == [None, None]
    assert alone["rows"][0]["verdict"]["reason"] == "one document shows no spread"


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["prior", "scores"])
def test_the_residuals_see_a_broken_account(text, broken, x64):
    evaluation_set = _evaluation_set(text)
    scores = _scored(evaluation_set, prefixes=PREFIXES)
    if broken == "scores":
        scores = scores._replace(soft=scores.soft * (1 + 1e-6))
    prior = LOG_PRIOR[::-1].copy() if broken == "prior" else LOG_PRIOR
    found = account(evaluation_set, scores, prior, prefixes=PREFIXES)
    assert found.b1_residual > 1e-6
    assert found.sum_residual() > 1e-6


def test_oracles_gain_at_most_the_prior_of_their_expert(text, x64):
    evaluation_set = _evaluation_set(text)
    scores = _scored(evaluation_set, prefixes=PREFIXES)
    gains = account(evaluation_set, scores, LOG_PRIOR, prefixes=PREFIXES).flattery
    assert gains["sequences"] == 5
    assert gains["part"] <= gains["part_ceiling"]
    assert gains["part"] <= gains["best"] <= gains["best_ceiling"]
    ends = [*evaluation_set.sequences.starts[1:], 50]
    by_hand = []
    for a, b in zip(evaluation_set.sequences.starts, ends, strict=True):
        whole = evaluation_set.log_probs[a:b].sum(0)
        by_hand.append(whole.max() - np.log(np.exp(LOG_PRIOR + whole).sum()))
    assert gains["best"] == pytest.approx(np.mean(by_hand), abs=1e-12)


def test_expert_evaluations_by_hand():
    spans = Sequences(starts=np.array([0, 3]), windows=np.array([0, 3]), num_bytes=13)  # 3 and 10
    read = (3 + 5) / 13  # bytes within the first 5 of their sequence
    by_hand = {
        ("static", "top-1"): 1,
        ("static", "top-2"): 2,
        ("static", "full"): 4,
        ("last token", "top-1"): 4,
        ("Bayes", "top-1"): 4,
        ("fixed share", "top-2"): 4,
        ("prefix 5", "top-1"): read * 4 + (1 - read),
        ("prefix 5", "full"): 4,
        ("prefix 5", "top-2"): read * 4 + (1 - read) * 2,
        ("hard after 5", "top-1"): read * 4 + (1 - read),
        ("oracle", "top-1"): 1,
    }
    found = evaluations(list(by_hand), spans, 4)
    assert found == pytest.approx(tuple(by_hand.values()))
    assert evaluations([("static", "top-2")], spans, 1) == (1.0,)


def test_exact_sums_lose_nothing():
    values = np.array([[1e16, 1.0], [1.0, 2.0], [-1e16, 3.0], [0.1, 4.0], [0.2, 5.0]])
    found = exact_sums(values, np.array([0, 0, 0, 1, 1]))
    np.testing.assert_array_equal(found, [[1.0, 6.0], [math.fsum([0.1, 0.2]), 9.0]])
    np.testing.assert_array_equal(exact_sums(values[:, 1], np.array([0, 1, 2, 3, 4])), values[:, 1])


def test_routing_goes_through_in_blocks(monkeypatch, x64):
    log_probs = -np.random.default_rng(0).random((7, 3))
    priors = np.broadcast_to(LOG_PRIOR, log_probs.shape)
    whole = loss_account._routing(priors, log_probs)
    monkeypatch.setattr(loss_account, "_BLOCK", 2)
    for a, b in zip(whole, loss_account._routing(priors, log_probs), strict=True):
        np.testing.assert_array_equal(a, b)
        assert len(a) == 7
