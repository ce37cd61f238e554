"""S1: what is drawn is the stated distribution, with and without a cache, each row for itself."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from dfm_jax.interfaces import uncached_decoder
from dfm_jax.models import TransformerConfig, tabular, transformer, transformer_decoder
from dfm_jax.samplers import autoregressive_log_prob
from dfm_jax.sampling import (
    next_token_log_probs,
    sample_autoregressive,
    sample_next_token,
)

CONFIG = TransformerConfig(
    num_tokens=11, width=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=24
)
PROMPTS = np.array([[1, 2, 3, -1, -1], [4, 5, 6, 7, 8], [9, -1, -1, -1, -1]])
LENGTHS = np.array([3, 5, 1])
FALSE_ALARM = 1e-6


def params_of(config, sharpness=1.0):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(transformer(config).init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: (rng.standard_normal(leaf.shape) * sharpness).astype(np.float32), shapes
    )


# ── the distribution of one token ─────────────────────────────────────────────────────────────────


def plain_probs(logits, temperature=1.0, top_k=None, top_p=None):
    """In NumPy float64: sort, cut, cut, renormalize."""
    weights = np.exp(np.float64(logits) / temperature)
    order = np.argsort(-weights, kind="stable")
    kept = order if top_k is None else order[:top_k]
    probs = weights[kept] / weights[kept].sum()
    if top_p is not None:
        count = next(n for n in range(1, len(probs) + 1) if probs[:n].sum() >= top_p - 1e-12)
        kept, probs = kept[:count], probs[:count] / probs[:count].sum()
    out = np.zeros(len(logits))
    out[kept] = probs
    return out


LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2])) + 3.0


@pytest.mark.slow
@pytest.mark.statement("S1")
@pytest.mark.parametrize(
    "cut",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 5},
        {"top_p": 0.3},
        {"top_p": 0.6},
        {"top_p": 0.9},
        {"top_p": 1.0},
        {"temperature": 2.0, "top_k": 4, "top_p": 0.7},
    ],
    ids=str,
)
def test_the_distribution_is_cut_as_stated(cut):
    probs = np.exp(next_token_log_probs(jnp.float32(LOGITS), **cut))
    np.testing.assert_allclose(probs, plain_probs(LOGITS, **cut), atol=1e-6)


@pytest.mark.slow
def test_temperature_zero_is_the_limit_and_ties_go_to_the_lower_id():
    logits = jnp.array([1.0, 3.0, 3.0, -jnp.inf])
    for temperature in (0, 0.0, jnp.float32(0)):
        probs = np.exp(next_token_log_probs(logits, temperature=temperature))
        np.testing.assert_array_equal(probs, [0, 1, 0, 0])
    cold = np.exp(next_token_log_probs(logits[1:].at[0].set(3.5), temperature=1e-30))
    np.testing.assert_array_equal(cold, [1, 0, 0])  # and not NaN
    ties = np.exp(next_token_log_probs(logits, top_k=1))
    np.testing.assert_array_equal(ties, [0, 1, 0, 0])


def test_top_p_of_1_keeps_a_tail_that_rounding_would_cut():
    logits = jnp.array([0.0, -20.0, -21.0, -22.0])
    assert np.all(np.isfinite(next_token_log_probs(logits, top_p=1.0)))
    assert np.sum(np.isfinite(next_token_log_probs(logits, top_p=0.999))) == 1


def test_half_precision_logits_are_drawn_in_float32():
    probs = next_token_log_probs(jnp.zeros(4, jnp.bfloat16), temperature=0.7)
    assert probs.dtype == jnp.float32


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({"temperature": -1.0}, r"`temperature` must lie in \[0, inf\); got temperature = -1.0"),
        ({"top_k": 0}, r"`top_k` must lie in \[1, 5\]; got top_k = 0"),
        ({"top_k": 6}, r"`top_k` must lie in \[1, 5\]; got top_k = 6"),
        ({"top_p": 0.0}, r"`top_p` must lie in \(0, 1\]; got top_p = 0.0"),
        ({"top_p": 1.5}, r"`top_p` must lie in \(0, 1\]; got top_p = 1.5"),
    ],
)
def test_a_bad_cut_is_refused(cut, message):
    with pytest.raises(ValueError, match=message):
        next_token_log_probs(jnp.zeros(5), **cut)


@pytest.mark.parametrize("bad", [-jnp.inf, jnp.nan, jnp.inf])
def test_what_is_no_distribution_is_refused_not_drawn_from(bad):
    """Of −∞ everywhere, and of NaN, `categorical` and `argmax` make id 0."""
    logits = jnp.full(5, bad)
    for cut in ({}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5}):
        with pytest.raises(ValueError, match="`logits` must hold a finite number and no NaN"):
            next_token_log_probs(logits, **cut)
    with pytest.raises(ValueError, match=r"`(exp\()?log_probs\)?` must (sum to 1|hold log)"):
        sample_next_token(jax.random.key(0), logits)


@pytest.mark.slow
def test_the_tail_is_drawn_from_half_precision_logits():
    """1,000 tokens, a gap of 8: a quarter of the mass is tail; drawn in bfloat16 it is 1 %."""
    probs = next_token_log_probs(jnp.full(1000, -8.0, jnp.bfloat16).at[0].set(0.0))
    keys = jax.random.split(jax.random.key(0), 2000)
    tokens = jax.jit(jax.vmap(sample_next_token, in_axes=(0, None)))(keys, probs)
    tail = 999 * np.exp(-8.0) / (1 + 999 * np.exp(-8.0))
    # Five standard errors: a false alarm once in 1.7 million runs.
    assert np.mean(tokens != 0) == pytest.approx(tail, abs=5 * np.sqrt(tail * (1 - tail) / 2000))


@pytest.mark.slow
def test_the_far_tail_is_drawn():
    """Half a million tokens 18 nats down have 0.8 % of the mass; 4 of the keys 0 … 399 draw one.

    Two of the four are tried: the usual float32 draw gives the largest token for them, as it does
    for all 400, for its Gumbel noise ends at 16.
    """
    probs = next_token_log_probs(jnp.full(2**19, -18.0).at[0].set(0.0))
    for seed in (4, 7):
        assert sample_next_token(jax.random.key(seed), probs) > 0
        assert jax.random.categorical(jax.random.key(seed), probs) == 0


# ── whole rows ──────────────────────────────────────────────────────────────────────────────────

BIGRAM = uncached_decoder(tabular(11, order=2).apply, 11)  # one, so that it compiles once

NETWORK_CASES = {
    "grouped": {},
    "scanned, bounded, untied, a mask, by xla": {
        "scan_layers": True,
        "max_positions": 16,
        "tied": False,
        "num_states": 12,
        "attention": "xla",
    },
}
CUTS = (  # of one form, so that they share a program
    {"temperature": 1.0, "top_p": 1.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 0.0, "top_p": 1.0},
)


def drawn(key, params, decoder, prompts=PROMPTS, lengths=LENGTHS, **cut):
    return sample_autoregressive(
        jax.random.key(key), params, decoder, prompts, lengths, max_new=10, **cut
    )


@pytest.mark.slow
@pytest.mark.statement("S1")
@pytest.mark.parametrize("network", NETWORK_CASES)
def test_with_a_cache_is_without_token_for_token(network):
    config = dataclasses.replace(CONFIG, **NETWORK_CASES[network])
    params = params_of(config)
    cached = transformer_decoder(config)
    plain = uncached_decoder(transformer(config).apply, config.states)
    cuts = [cut | {"top_k": 6, "stop_tokens": (2, 7)} for cut in CUTS]
    ends = set()
    for cut, key in itertools.product(cuts, range(4)):
        ours, expected = drawn(key, params, cached, **cut), drawn(key, params, plain, **cut)
        for field in ours._fields:
            np.testing.assert_array_equal(getattr(ours, field), getattr(expected, field))
        ends |= set((ours.lengths - LENGTHS).tolist())
    assert len(ends) > 3  # rows that stop soon, late, and not at all


def bigram(seed=0):
    """A random table as a decoder, and its parameters: what rows hold is not the network's."""
    logits = np.random.default_rng(seed).standard_normal((12, 11)).astype(np.float32)
    logits[:, [2, 7]] -= 1.5  # they stop a row: some rows must go on
    return BIGRAM, {"logits": jnp.array(logits)}


@pytest.mark.slow
def test_rows_hold_prompt_draws_and_then_nothing():
    decoder, params = bigram()
    sample = drawn(0, params, decoder, stop_tokens=(2, 7))
    assert sample.tokens.shape == (3, 15)
    assert set(sample.stopped.tolist()) == {True, False}  # a row of each kind, or it says little
    assert np.all(sample.valid)
    for row, prompt, length, end, stopped in zip(
        np.array(sample.tokens), PROMPTS, LENGTHS, sample.lengths, sample.stopped, strict=True
    ):
        np.testing.assert_array_equal(row[:length], prompt[:length])
        np.testing.assert_array_equal(row[end:], -1)
        new = row[length:end]
        assert np.all(new >= 0)
        assert not np.isin(new[:-1], (2, 7)).any()
        assert np.isin(new[-1], (2, 7)) == stopped
        assert stopped or len(new) == 10


def test_a_row_does_not_depend_on_its_neighbors():
    decoder, params = bigram()
    one = drawn(0, params, decoder, stop_tokens=(2, 7))
    others = PROMPTS.copy()
    others[1], lengths = [10, 10, -1, -1, -1], np.array([3, 2, 1])
    two = drawn(0, params, decoder, others, lengths, stop_tokens=(2, 7))
    np.testing.assert_array_equal(one.tokens[::2], two.tokens[::2])
    assert not np.array_equal(one.tokens[1], two.tokens[1])
    assert not np.array_equal(one.tokens, drawn(1, params, decoder, stop_tokens=(2, 7)).tokens)


def test_rows_of_one_prompt_differ():
    decoder, params = bigram()
    prompts, lengths = np.full((3, 5), 3), np.full(3, 5)
    sample = drawn(0, params, decoder, prompts, lengths, stop_tokens=(2, 7))
    assert len({tuple(row[5:8]) for row in np.array(sample.tokens)}) == 3


@pytest.mark.slow
@pytest.mark.statement("S1")
@pytest.mark.parametrize(
    "cut",
    [{}, pytest.param({"temperature": 0.6, "top_k": 3, "top_p": 0.9}, marks=pytest.mark.slow)],
    ids=str,
)
def test_the_distribution_of_what_is_drawn_is_the_product_of_next_token_distributions(cut):
    """χ² over all continuations of three tokens, two prompts; false alarm: 1 in a million each."""
    rng = np.random.default_rng(3)
    table = rng.standard_normal(((4 + 1) ** 2, 4)).astype(np.float32)
    decoder = uncached_decoder(tabular(4, order=3).apply, 4)
    rows = 4000
    prompts = np.array([[1, 2], [3, -1]] * rows)
    sample = sample_autoregressive(
        jax.random.key(1),
        {"logits": jnp.array(table)},
        decoder,
        prompts,
        np.array([2, 1] * rows),
        max_new=3,
        **cut,
    )
    probs = [plain_probs(row, **cut) for row in table]
    for start, prompt in enumerate(([1, 2], [3])):
        at = len(prompt)
        new = np.array(sample.tokens[start::2, at : at + 3])
        counts = np.bincount(new @ [16, 4, 1], minlength=64)
        exact = []
        for x in itertools.product(range(4), repeat=3):
            seen, log_prob = [4, 4, *prompt], 0.0
            for v in x:
                with np.errstate(divide="ignore"):
                    log_prob += np.log(probs[seen[-1] + 5 * seen[-2]][v])
                seen.append(v)
            exact.append(np.exp(log_prob))
        exact = np.array(exact)
        assert np.all(counts[exact == 0] == 0)
        live = exact > 0
        statistic = np.sum((counts - rows * exact)[live] ** 2 / (rows * exact[live]))
        assert statistic < chi2.isf(FALSE_ALARM, live.sum() - 1)
        wrong = np.roll(exact[live], 1)  # the same numbers, one place on
        falsified = np.sum((counts[live] - rows * wrong) ** 2 / (rows * wrong))
        assert falsified > chi2.isf(FALSE_ALARM, live.sum() - 1)


@pytest.mark.slow
@pytest.mark.statement("S1")
def test_the_log_probability_of_a_row_is_that_of_the_sampler_distribution():
    """Extending by the whole row gives the distributions that `autoregressive_log_prob` scores it
    by.
    """
    params, decoder = params_of(CONFIG, 0.5), transformer_decoder(CONFIG)
    x = jnp.array([1, 2, 3, 4, 5])
    extend = jax.jit(decoder.extend)  # always by five tokens, most of them padding

    def read(cache, tokens):
        padded = jnp.array([*tokens, *[9] * (5 - len(tokens))])
        return extend(params, cache, padded, jnp.array(len(tokens)))

    whole, cache = read(decoder.init_cache(12), x)
    assert cache.count == 5
    logits, cache = read(decoder.init_cache(12), [1, 2])
    rows = [logits[1]]
    for token in (3, 4):
        logits, cache = read(cache, [token])
        rows.append(logits[0])
        logits, cache = read(cache, [])  # a frozen row's step
    assert cache.count == 4
    np.testing.assert_allclose(rows, whole[1:4], atol=1e-5)
    total = autoregressive_log_prob(x[2:], jax.nn.log_softmax(jnp.stack(rows)))
    assert total == pytest.approx(
        float(sum(jax.nn.log_softmax(whole)[i, x[i + 1]] for i in (1, 2, 3))), abs=1e-5
    )


@pytest.mark.slow
def test_a_row_without_a_distribution_is_refused_and_its_neighbors_go_on():
    """Behind token 3 nothing is possible; −∞ everywhere would be drawn as id 0."""
    table = jnp.zeros((12, 11)).at[3].set(-jnp.inf).at[:, 3].set(-jnp.inf)
    with pytest.raises(
        ValueError,
        match=r"The logits of a decoder must hold a finite number.*; got valid\[0\] = False",
    ):
        drawn(0, {"logits": table}, BIGRAM, stop_tokens=(2, 7))
    outer = jax.jit(lambda table: drawn(0, {"logits": table}, BIGRAM, stop_tokens=(2, 7)))
    sample = outer(table)
    np.testing.assert_array_equal(sample.tokens[0], [1, 2, 3, *[-1] * 12])
    assert sample.valid.tolist() == [False, True, True]
    assert sample.lengths[0] == 3
    assert sample.lengths[1] > 5
    with pytest.raises(ValueError, match="must hold a finite number and no NaN"):
        drawn(0, {"logits": jnp.zeros((12, 11)).at[8, 2].set(jnp.nan)}, BIGRAM, stop_tokens=(2, 7))


def test_behind_its_stop_token_a_row_needs_no_distribution():
    """3 is followed by 2, which stops, and has nothing behind it; 8 and 9 by 0 for ever."""
    chain = np.full((12, 11), -np.inf, np.float32)
    chain[[3, 8, 9, 0], [2, 0, 0, 0]] = 0
    sample = drawn(0, {"logits": jnp.array(chain)}, BIGRAM, stop_tokens=(2, 7))
    np.testing.assert_array_equal(sample.tokens[0], [1, 2, 3, 2, *[-1] * 11])
    np.testing.assert_array_equal(sample.tokens[2], [9, *[0] * 10, *[-1] * 4])
    assert sample.stopped.tolist() == [True, False, False]
    assert sample.valid.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": np.array([3, 6, 1])}, r"`lengths` must lie in \[1, 5\]"),
        ({"lengths": np.array([3, 0, 1])}, r"`lengths` must lie in \[1, 5\]"),
        ({"lengths": np.array([4, 5, 1])}, r"`prompts` must hold ids in \[0, 10\]"),  # a −1
        ({"prompts": PROMPTS + 3}, r"`prompts` must hold ids in \[0, 10\]"),
        ({"max_new": 0}, "`max_new` must be at least 1; got max_new = 0"),
        ({"max_new": 13}, r"`length` must lie in \[1, 16\]; got length = 17"),
        ({"stop_tokens": (11,)}, r"`stop_tokens` must hold ids in \[0, 10\]"),
        ({"top_p": 1.1}, r"`top_p` must lie in \(0, 1\]; got top_p = 1.1"),
        ({"top_k": 12}, r"`top_k` must lie in \[1, 11\]; got top_k = 12"),
    ],
)
def test_bad_prompts_and_options_are_refused(change, message):
    config = dataclasses.replace(CONFIG, max_positions=16)
    given = {"prompts": PROMPTS, "lengths": LENGTHS, "max_new": 4} | change
    with pytest.raises(ValueError, match=message):
        sample_autoregressive(
            jax.random.key(0), params_of(config), transformer_decoder(config), **given
        )


def test_a_cache_refuses_what_it_cannot_hold():
    decoder, params = transformer_decoder(CONFIG), params_of(CONFIG)
    _, cache = jax.eval_shape(decoder.extend, params, decoder.init_cache(3), jnp.array([1, 2]))
    full = decoder.init_cache(3)._replace(count=jnp.array(2))
    with pytest.raises(ValueError, match="at most its `length`, 3; got the number of tokens = 4"):
        decoder.extend(params, full, jnp.array([1, 2]))
    assert cache.count.shape == ()
    for change in ({"causal": False}, {"time_conditioned": True}):
        with pytest.raises(ValueError, match=r"`causal` must be True|`time_conditioned` must be"):
            transformer_decoder(dataclasses.replace(CONFIG, **change))


def test_sampling_compiles_once_per_decoder():
    counted = []

    def apply(params, x_t):
        counted.append(x_t.shape)
        return jnp.zeros((x_t.shape[0], 11)) + params

    decoder = uncached_decoder(apply, 11)
    drawn(0, jnp.float32(0), decoder, temperature=1.0)
    first = len(counted)
    drawn(1, jnp.float32(1), decoder, temperature=0.5)
    assert len(counted) == first  # the shape of the logits and the compiled program are found
