"""P7, S12: posteriors of Markov sources by messages against enumeration, in NumPy and in jax."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import exact, markov
from dfm_jax.exact import HiddenMarkovSource, MarkovSource
from dfm_jax.sampling import least_step_costs, step_cost, step_sizes


def hidden_source(num_hidden=3, num_tokens=2, seed=0):
    rng = np.random.default_rng(seed)
    rows = lambda size, count: rng.dirichlet(np.ones(size), count)  # noqa: E731
    return HiddenMarkovSource(
        rows(num_hidden, 1)[0], rows(num_hidden, num_hidden), rows(num_tokens, num_hidden)
    )


def chain_of_order(order, num_tokens=2, seed=0):
    rng = np.random.default_rng(seed)
    initial = rng.dirichlet(np.ones(num_tokens**order)).reshape((num_tokens,) * order)
    return MarkovSource(initial, rng.dirichlet(np.ones(num_tokens), (num_tokens,) * order))


SOURCES = {
    "hidden": hidden_source(),
    "no noise": HiddenMarkovSource(*hidden_source(3, 3)[:2], np.eye(3)),
    "order 1": chain_of_order(1, 3),
    "order 2": chain_of_order(2),
    "order 3": chain_of_order(3),
    "zeros": HiddenMarkovSource(
        np.array([1.0, 0.0]), np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.2, 0.8]])
    ),
}


def num_tokens_of(source):
    return source[-1].shape[-1]


def enumerated(source, num_positions):
    """q by its definition: a sum over all hidden paths, or a product of conditionals."""
    v = num_tokens_of(source)
    x = exact.states(v, num_positions)
    if isinstance(source, HiddenMarkovSource):
        paths = exact.states(len(source.initial), num_positions)
        probs = source.initial[paths[:, 0]]
        for i in range(1, num_positions):
            probs = probs * source.transition[paths[:, i - 1], paths[:, i]]
        shown = np.prod([source.emission[paths[:, i]][:, x[:, i]] for i in range(num_positions)], 0)
        return probs @ shown
    order = source.initial.ndim
    before = exact.states(v, order - 1) if order > 1 else np.zeros((1, 0), int)
    total = np.zeros(len(x))
    for past in before:
        tokens = np.concatenate([np.tile(past, (len(x), 1)), x], axis=1)
        probs = source.initial[tuple(tokens[:, :order].T)]
        for i in range(order, tokens.shape[1]):
            probs = probs * source.transition[tuple(tokens[:, i - order : i + 1].T)]
        total += probs
    return total


@pytest.mark.statement("P7")
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_messages_are_enumeration(source):
    n, v = 5, num_tokens_of(source)
    probs = enumerated(source, n)
    np.testing.assert_allclose(exact.sequence_distribution(source, n), probs, atol=1e-15)
    x = exact.states(v, n)
    for known in exact.states(2, n).astype(bool)[::3]:
        rows, support = exact.token_conditionals(probs, known, v, n)
        found = exact.token_posteriors(source, x, np.tile(known, (len(x), 1)))
        np.testing.assert_allclose(found.probs, rows, atol=1e-14)
        np.testing.assert_array_equal(found.log_prob > -np.inf, support)
        given = exact.marginal(probs, tuple(np.flatnonzero(known)), v, n)
        place = x[:, known] @ v ** np.arange(known.sum())[::-1]
        np.testing.assert_allclose(np.exp(found.log_prob), given[place], atol=1e-15)


@pytest.mark.statement("P7")
def test_messages_are_enumeration_at_8_positions():
    source, n, v = hidden_source(4, 3, seed=3), 8, 3
    probs = exact.sequence_distribution(source, n)
    x, rng = exact.states(v, n), np.random.default_rng(0)
    for _ in range(4):
        known = rng.random(n) < 0.5
        rows, _ = exact.token_conditionals(probs, known, v, n)
        here = rng.choice(len(x), 50, replace=False)
        found = exact.token_posteriors(source, x[here], np.tile(known, (50, 1)))
        np.testing.assert_allclose(found.probs, rows[here], atol=1e-12, rtol=0)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_jax_form_is_the_numpy_form(source, x64):
    n, v = 7, num_tokens_of(source)
    x = exact.draw_sequences(source, np.random.default_rng(1), 6, n)
    known = np.random.default_rng(2).random(x.shape) < 0.5
    hidden = isinstance(source, HiddenMarkovSource)
    posterior = markov.hidden_markov_posterior if hidden else markov.markov_posterior
    each = jax.jit(jax.vmap(posterior, (0, *[None] * len(source))))
    found = each(jnp.asarray(np.where(known, x, v)), *map(jnp.asarray, source))
    np.testing.assert_allclose(found, exact.token_posteriors(source, x, known).probs, atol=1e-13)


def test_long_sequences_do_not_underflow():
    source, n = hidden_source(64, 64, seed=5), 1024
    x = exact.draw_sequences(source, np.random.default_rng(0), 1, n)[0]
    known = np.arange(n) % 3 == 0
    found = exact.token_posteriors(source, x, known)
    assert np.isfinite(found.log_prob)
    np.testing.assert_allclose(found.probs.sum(axis=-1), 1.0, atol=1e-12)
    row = markov.hidden_markov_posterior(
        jnp.asarray(np.where(known, x, 64)), *(jnp.asarray(part, jnp.float32) for part in source)
    )
    np.testing.assert_allclose(row, found.probs, atol=1e-5)


def test_what_cannot_be_is_said():
    source = SOURCES["zeros"]  # a run of it begins with token 0
    found = exact.token_posteriors(source, np.array([1, 0]), np.array([True, False]))
    assert found.log_prob == -np.inf
    assert not found.probs.any()
    row = markov.hidden_markov_posterior(jnp.array([1, 2]), *map(jnp.asarray, source))
    assert np.isnan(row[1]).all()
    np.testing.assert_array_equal(row[0], [0, 1])


def test_parts_of_different_types_are_made_alike(x64):
    source = [jnp.asarray(part) for part in SOURCES["hidden"]]
    x_t = jnp.array([0, 2, 2])
    whole = markov.hidden_markov_posterior(x_t, *source)
    mixed = markov.hidden_markov_posterior(x_t, source[0].astype(jnp.float32), *source[1:])
    assert mixed.dtype == jnp.float64
    np.testing.assert_allclose(mixed, whole, atol=1e-6)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_draws_have_the_distribution(source):
    n, v, count = 3, num_tokens_of(source), 40_000
    x = exact.draw_sequences(source, np.random.default_rng(4), count, n)
    found = np.bincount(x @ v ** np.arange(n)[::-1], minlength=v**n)
    expected = exact.sequence_distribution(source, n) * count
    live = expected > 0
    assert not found[~live].any()
    # χ² of at most 26 degrees of freedom: above 70 once in 10^5 runs.
    assert np.sum((found - expected)[live] ** 2 / expected[live]) < 70


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_entropy_of_a_chain_is_that_of_its_distribution(order):
    source = chain_of_order(order, 2, seed=order)
    for n in (1, 2, 6):
        entropy = exact.entropy(exact.sequence_distribution(source, n))
        assert exact.sequence_entropy(source, n) == pytest.approx(entropy, abs=1e-12)


REFUSED = {
    "a row that is no distribution": (
        lambda: exact.log_prob(SOURCES["hidden"]._replace(transition=np.ones((3, 3))), [0]),
        "`transition` must sum to 1 along its last axis",
    ),
    "a token that is none": (
        lambda: exact.log_prob(SOURCES["hidden"], np.array([0, 2])),
        "`x` must lie in [0, 2) where it is known; got x from 0 to 2",
    ),
    "another kind of source": (
        lambda: exact.log_prob((1, 2), np.array([0])),
        "`source` must be a HiddenMarkovSource or a MarkovSource; got source = tuple",
    ),
    "known positions of another shape": (
        lambda: exact.token_posteriors(SOURCES["hidden"], np.array([0, 1]), np.array([True])),
        "`known` must have shape [2]; got known.shape = [1]",
    ),
    "a negative count": (
        lambda: exact.draw_sequences(SOURCES["hidden"], np.random.default_rng(0), -1, 3),
        "`count` must be a whole number from 1 on; got count = -1",
    ),
    "half a position": (
        lambda: exact.sequence_entropy(SOURCES["order 1"], 2.5),
        "`num_positions` must be a whole number from 1 on; got num_positions = 2.5",
    ),
    "a hidden source's entropy": (
        lambda: exact.sequence_entropy(SOURCES["hidden"], 3),
        "`source` must be a MarkovSource; got source = HiddenMarkovSource",
    ),
    "a chain whose axes differ": (
        lambda: markov.markov_posterior(
            jnp.array([0]), jnp.ones((2, 3)) / 6, jnp.ones((2, 3, 2)) / 2
        ),
        "`initial` must have one axis or more, each of V = 2 entries",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


# ── step sizes ──────────────────────────────────────────────────────────────────────────────────


def information(probs, v, n):
    """h(a) by enumeration over all sets of positions."""
    h = np.zeros(n)
    for a in range(n):
        values = []
        for known in exact.states(2, n).astype(bool):
            if known.sum() == a:
                given = tuple(int(i) for i in np.flatnonzero(known))
                at = exact.entropy(exact.marginal(probs, given, v, n))
                for i in np.flatnonzero(~known):
                    both = tuple(sorted((*given, int(i))))
                    values.append(exact.entropy(exact.marginal(probs, both, v, n)) - at)
        h[a] = np.mean(values)
    return h


@pytest.mark.statement("S10")
def test_the_cost_of_steps_is_the_expected_total_correlation():
    n, v = 5, 2
    probs = exact.sequence_distribution(hidden_source(3, 2, seed=8), n)
    h = information(probs, v, n)
    sizes = (1, 3, 1)
    costs = []
    for order in np.random.default_rng(0).permuted(np.tile(np.arange(n), (4000, 1)), axis=1):
        ends = np.cumsum(sizes)
        cost = 0.0
        for start, end in zip(ends - sizes, ends, strict=True):
            block, given = sorted(order[start:end].tolist()), sorted(order[:start].tolist())
            cost += _correlations(probs, tuple(block), tuple(given), v, n)
        costs.append(cost)
    assert step_cost(jnp.asarray(h), sizes) == pytest.approx(np.mean(costs), rel=0.02)


_KNOWN = {}


def _correlations(probs, block, given, v, n):
    if (block, given) not in _KNOWN:
        _KNOWN[block, given] = exact.conditional_total_correlation(probs, block, given, v, n)
    return _KNOWN[block, given]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 6])
def test_the_sizes_are_the_best_of_all(num_steps):
    h = np.sort(np.random.default_rng(3).random(6))[::-1]
    every = [sizes for sizes in np.ndindex(*(7,) * num_steps) if sum(sizes) == 6 and min(sizes) > 0]
    best = min(step_cost(h, tuple(int(b) for b in sizes)) for sizes in every)
    assert step_cost(h, step_sizes(h, num_steps)) == pytest.approx(best, abs=1e-12)
    assert least_step_costs(h)[num_steps - 1] == pytest.approx(best, abs=1e-12)
    assert sum(step_sizes(h, num_steps)) == 6
    assert len(step_sizes(h, num_steps)) == num_steps


def test_step_sizes_refuse_what_they_cannot_use():
    with pytest.raises(ValueError, match=r"`num_steps` must .*got num_steps = 4"):
        step_sizes(np.ones(3), 4)
    with pytest.raises(ValueError, match=r"`sizes` must sum to N = 3; got sum\(sizes\) = 2"):
        step_cost(np.ones(3), (1, 1))
    with pytest.raises(ValueError, match=r"`information` must be finite"):
        step_sizes(np.array([1.0, np.nan]), 1)
    with pytest.raises(ValueError, match=r"`sizes` must be at least 1; got sizes = -1"):
        step_cost(np.ones(3), (-1, 4))
    with pytest.raises(ValueError, match=r"`information` must hold at least one number"):
        step_sizes(np.ones(0), 1)
