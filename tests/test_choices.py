"""S8–S11: which masks a step reveals: what each choice selects, and the samples of whole runs."""

import math
import re
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_distributions import (
    STATES,
    TOKENS,
    N,
    V,
    counts,
    evaluation_set,
    exact_denoiser,
)
from test_paths import assert_drawn_from

from dfm_jax import exact
from dfm_jax.sampling import (
    Choice,
    StepView,
    choice_log_prob,
    choices,
    sample_by_choice,
    sample_redraws,
)
from dfm_jax.theory.cases import Shape, draw_cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statements.choices import one_position_by_choice
from dfm_jax.theory.whole_runs import selected, whole_run

DRAWS = 20_000
MASKS = jnp.full(N, V)
HALF = np.full(N, 0.5)
ONE_A_STEP = {
    "first": choices.first(),
    "confident": choices.most_confident(),
    "margin": choices.largest_margin(),
    "entropy": choices.lowest_entropy(),
    "random": choices.random_order(),
    "blocks": choices.in_blocks(choices.lowest_entropy(), 2),
}
SEVERAL = {
    "two": choices.most_confident(2),
    "bound": choices.entropy_bound(0.6),
    "threshold": choices.confidence_threshold(0.7),
    "middles": choices.middles(),
    "strided": choices.strided(2),
    "sizes": choices.first((2, 1)),
}


def lookup(seed=0):
    return evaluation_set("all masks", seed).lookup([0.5], [HALF])


def view_of(rows, pending=None, draws=None, ranks=None, step=0):
    rows = jnp.asarray(rows, float)
    n = len(rows)
    pending = jnp.ones(n, bool) if pending is None else jnp.asarray(pending, bool)
    draws = jnp.zeros(n, int) if draws is None else jnp.asarray(draws)
    ranks = jnp.arange(n) if ranks is None else jnp.asarray(ranks)
    return StepView(jnp.log(rows), draws, pending, ranks, jnp.array(step))


# ── what is selected ────────────────────────────────────────────────────────────────────────────

ROWS = [[0.5, 0.3, 0.2], [0.6, 0.39, 0.01], [0.58, 0.21, 0.21], [0.9, 0.05, 0.05]]
OPEN = [True, True, True, False]
SELECTED = {
    "first": (choices.first(2), {}, [1, 1, 0, 0]),
    "the largest probability": (choices.most_confident(), {}, [0, 1, 0, 0]),
    "the largest margin": (choices.largest_margin(), {}, [0, 0, 1, 0]),
    "the smallest entropy": (choices.lowest_entropy(), {}, [0, 1, 0, 0]),
    "ties by rank": (choices.random_order(), {"ranks": [2, 1, 0, 3]}, [0, 0, 1, 0]),
    "more than there are": (choices.first(9), {}, [1, 1, 1, 0]),
    "a size for each step": (choices.first((2, 1)), {"step": 1}, [1, 0, 0, 0]),
    "the last size goes on": (choices.first((2, 1)), {"step": 7}, [1, 0, 0, 0]),
    "a bound of 0": (choices.entropy_bound(0.0), {}, [0, 1, 0, 0]),
    # entropies 1.030, 0.720, 0.971: 0.720 ≤ γ lets the second in, 0.720 + 0.971 the third
    "a bound of 0.73": (choices.entropy_bound(0.73), {}, [0, 1, 1, 0]),
    "a bound of 1.7": (choices.entropy_bound(1.7), {}, [1, 1, 1, 0]),
    "all above a threshold": (choices.confidence_threshold(0.55), {}, [0, 1, 1, 0]),
    "one where none is above": (choices.confidence_threshold(0.95), {}, [0, 1, 0, 0]),
    "the middle of a run": (choices.middles(), {}, [0, 1, 0, 0]),
    "the likeliest draw": (choices.most_confident_draw(), {"draws": [0, 1, 2, 0]}, [1, 0, 0, 0]),
    "inside a block": (choices.in_blocks(choices.most_confident(), 1), {}, [1, 0, 0, 0]),
    "every second": (choices.strided(2), {}, [1, 0, 1, 0]),
}


@pytest.mark.parametrize(("choice", "options", "expected"), SELECTED.values(), ids=SELECTED)
def test_a_choice_selects(choice, options, expected):
    chosen = choice.select(view_of(ROWS, OPEN, **options)) & jnp.asarray(OPEN)
    np.testing.assert_array_equal(chosen, np.array(expected, bool))


def test_middles_halve_every_run():
    pending = np.array([1, 1, 1, 0, 1, 1, 0, 1], bool)
    chosen = choices.middles().select(view_of(np.full((8, 2), 0.5), pending))
    np.testing.assert_array_equal(np.flatnonzero(chosen), [1, 4, 7])


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 30])
def test_bisection_takes_the_logarithm_of_the_length(length):
    pending, steps = np.ones(length, bool), 0
    while pending.any():
        pending &= ~np.asarray(
            choices.middles().select(view_of(np.full((length, 2), 0.5), pending))
        )
        steps += 1
    assert steps == math.ceil(math.log2(length + 1))


def test_offsets_of_strides_lie_far_apart():
    pending, turns = np.ones(8, bool), []
    while pending.any():
        now = np.asarray(choices.strided(8).select(view_of(np.full((8, 2), 0.5), pending)))
        turns += np.flatnonzero(now).tolist()
        pending &= ~now
    assert turns == [0, 4, 2, 6, 1, 5, 3, 7]


def test_the_factories_give_the_same_choice_again():
    assert choices.most_confident(2) is choices.most_confident(2)
    assert choices.in_blocks(choices.first(), 4) is choices.in_blocks(choices.first(), 4)
    one = choices.random_order()
    assert one is choices.random_order(1) is choices.random_order(count=np.int64(1))
    assert choices.first([2, 1]) is choices.first(np.array([2, 1])) is choices.first((2, 1))
    assert choices.entropy_bound(0.5) is choices.entropy_bound(jnp.float32(0.5))


@pytest.mark.parametrize(
    ("choice", "exact_one"),
    [
        (choices.most_confident(), True),
        (choices.in_blocks(choices.middles(), 1), True),
        (choices.most_confident(2), False),
        (choices.most_confident_draw(), False),
        (choices.entropy_bound(0.1), False),
    ],
)
def test_a_choice_says_whether_it_is_exact(choice, exact_one):
    assert choice.is_exact == exact_one


# ── whole runs ──────────────────────────────────────────────────────────────────────────────────


def distribution(choice, params, steps=N):
    """The distribution of whole runs on the V^N sequences, by enumeration, with all ties."""
    posterior = np.exp(np.asarray(params.log_posterior[0], np.float64))
    draws = TOKENS[:1] if choice.blind else TOKENS
    ranks = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    probs = (STATES == V).all(axis=1).astype(float)
    for step in range(steps):
        kept = np.asarray(selected(posterior, STATES, draws, ranks, np.array(step), choice=choice))
        probs = np.mean([exact.choice_step(probs, posterior, one) for one in kept], axis=0)
    assert probs.sum() == pytest.approx(1.0)
    return probs[(STATES < V).all(axis=1)]


def drawn(choice, params, x_0=MASKS, seed=0):
    one = lambda key: sample_by_choice(key, params, exact_denoiser, x_0, choice)  # noqa: E731
    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), DRAWS))


@pytest.mark.sampled(3)
@pytest.mark.statement("S8")
@pytest.mark.parametrize("choice", ONE_A_STEP.values(), ids=ONE_A_STEP)
def test_one_a_step_draws_from_the_data(choice):
    here = evaluation_set("all masks")
    found = drawn(choice, lookup())
    assert_drawn_from(here.data, counts(found.tokens, V))
    assert (np.asarray(found.num_steps) == N).all()
    assert (np.sort(np.asarray(found.revealed_at), axis=1) == np.arange(N)).all()


@pytest.mark.sampled(3)
@pytest.mark.statement("S10")
@pytest.mark.parametrize("choice", SEVERAL.values(), ids=SEVERAL)
def test_several_a_step_draw_from_the_enumerated_distribution(choice):
    params = lookup()
    probs = distribution(choice, params)
    assert_drawn_from(probs, counts(drawn(choice, params).tokens, V))
    assert probs.sum() == pytest.approx(1.0)


@pytest.mark.statement("S9")
def test_the_most_confident_draw_has_the_enumerated_distribution_and_not_the_data():
    params, choice = lookup(), choices.most_confident_draw()
    probs = distribution(choice, params)
    assert_drawn_from(probs, counts(drawn(choice, params).tokens, V))
    assert exact.total_variation(probs, evaluation_set("all masks").data) > 0.05


@pytest.mark.statement("S9")
@pytest.mark.parametrize(
    ("n", "p", "distance"), [(2, 0.9, 0.0810), (3, 0.7, 0.2768), (5, 0.9, 0.2995)]
)
def test_coins_lie_as_far_apart_as_the_formula_says(n, p, distance):
    states, draws = exact.states(3, n), exact.states(2, n)
    posterior = np.broadcast_to([p, 1 - p], (len(states), n, 2))
    every = np.array(list(permutations(range(n))))
    kept = np.asarray(
        selected(posterior, states, draws, every, np.array(0), choice=choices.most_confident_draw())
    )
    end = whole_run((states == 2).all(axis=1).astype(float), posterior, kept)
    data = np.prod(np.where(draws == 0, p, 1 - p), axis=1)
    assert exact.total_variation(end, exact.embed(data, 2, 3, n)) == pytest.approx(
        distance, abs=5e-5
    )


@pytest.mark.sampled(4)
@pytest.mark.statement("S10")
@pytest.mark.parametrize("choice", (ONE_A_STEP | SEVERAL).values(), ids=ONE_A_STEP | SEVERAL)
def test_the_log_probability_is_that_of_the_sampler(choice, x64):
    params = lookup()
    key = jax.random.key(1)
    one = lambda x: choice_log_prob(key, params, exact_denoiser, x, MASKS, choice)  # noqa: E731
    found = jax.jit(jax.vmap(one))(jnp.asarray(TOKENS))
    if choice is choices.random_order():  # another order in each run, of the same joint here
        expected = evaluation_set("all masks").data
    else:
        expected = distribution(choice, params)
    np.testing.assert_allclose(np.exp(found.log_prob), expected, atol=1e-6)


def test_a_sequence_that_cannot_be_drawn_has_probability_0():
    """The second token is impossible after the first: what follows has no posterior."""

    def denoiser(params, x_t, t):
        after_0 = jnp.where(x_t[0] == 0, jnp.array([0.0, -jnp.inf]), jnp.zeros(2))
        impossible = (x_t[0] == 0) & (x_t[1] == 1)
        rows = jnp.stack([jnp.zeros(2), after_0, jnp.zeros(2)])
        return jnp.where(impossible, jnp.nan, rows)

    x = jnp.array([0, 1, 0])
    found = choice_log_prob(jax.random.key(0), None, denoiser, x, MASKS, choices.first())
    assert found.log_prob == -jnp.inf


def test_half_precision_of_a_denoiser_is_widened():
    params = lookup()._replace(log_posterior=lookup().log_posterior.astype(jnp.bfloat16))
    found = sample_by_choice(jax.random.key(0), params, exact_denoiser, MASKS, choices.first())
    assert found.num_steps == N
    x = found.tokens
    path = choice_log_prob(jax.random.key(0), params, exact_denoiser, x, MASKS, choices.first())
    assert path.log_prob.dtype == jnp.float32


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 8, 9])
def test_strides_reveal_everything_in_so_many_steps(stride):
    pending, turns = np.ones(20, bool), []
    while pending.any():
        now = np.asarray(choices.strided(stride).select(view_of(np.full((20, 2), 0.5), pending)))
        turns.append(np.flatnonzero(now)[0] % stride)
        pending &= ~now
    assert sorted(turns) == list(range(stride))
    if stride > 2:  # the second set lies about halfway between the first
        assert turns[1] == stride // 2


def test_given_tokens_stay_and_cost_no_step():
    found = sample_by_choice(
        jax.random.key(0), lookup(), exact_denoiser, jnp.array([1, V, V]), choices.first()
    )
    assert found.tokens[0] == 1
    assert found.num_steps == 2
    assert found.revealed_at.tolist() == [-1, 0, 1]
    whole = sample_by_choice(
        jax.random.key(0), lookup(), exact_denoiser, jnp.array([1, 0, 1]), choices.first()
    )
    assert whole.num_steps == 0


# ── redraws ─────────────────────────────────────────────────────────────────────────────────────


def unsure(row):
    """A function of the other tokens."""
    return 1 - jnp.exp(jnp.max(row))


@pytest.mark.statement("S11")
@pytest.mark.parametrize("probability", [None, unsure], ids=["always", "the less sure"])
def test_redraws_keep_the_data(probability):
    here, params = evaluation_set("all masks"), lookup()
    start_key, key = jax.random.split(jax.random.key(3))
    x = jax.random.categorical(start_key, jnp.log(here.data), shape=(DRAWS,), mode="high")
    one = lambda key, x: sample_redraws(  # noqa: E731
        key, params, exact_denoiser, x, 6, probability=probability
    )
    found = jax.jit(jax.vmap(one))(jax.random.split(key, DRAWS), jnp.asarray(TOKENS)[x])
    assert_drawn_from(here.data, counts(found, V))


@pytest.mark.statement("S11")
def test_redraws_forget_where_they_start():
    here, params = evaluation_set("all masks"), lookup()
    x = jnp.tile(jnp.zeros(N, int), (DRAWS, 1))
    one = lambda key, x: sample_redraws(key, params, exact_denoiser, x, 60)  # noqa: E731
    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(4), DRAWS), x)
    assert_drawn_from(here.data, counts(found, V))


def test_masks_and_the_context_stay():
    context = jnp.array([True, False, False])
    x = jnp.array([1, V, 0])
    one = lambda key: sample_redraws(  # noqa: E731
        key, lookup(), exact_denoiser, x, 4, context=context
    )
    found = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(5), 50)))
    assert (found[:, 0] == 1).all()
    assert (found[:, 1] == V).all()
    assert set(found[:, 2]) == {0, 1}


# ── refusals ────────────────────────────────────────────────────────────────────────────────────

NOTHING = Choice(lambda view: jnp.zeros(view.pending.shape, bool), True, 1)


def call(choice=None, x_0=MASKS, denoiser=exact_denoiser):
    choice = choices.first() if choice is None else choice
    return sample_by_choice(jax.random.key(0), lookup(), denoiser, x_0, choice)


REFUSED = {
    "a choice of nothing": (
        lambda: call(NOTHING),
        "must reveal at least one position in each step",
    ),
    "an id above the mask": (lambda: call(x_0=jnp.array([0, 4, V])), "`x_0` must"),
    "logits that are none": (
        lambda: call(denoiser=_nan_denoiser),
        "The logits of a denoiser must hold a finite number",
    ),
    "a count of 0": (lambda: choices.first(0), "`count` must be at least 1; got count = 0"),
    "a count that is no whole number": (
        lambda: choices.first(1.5),
        "`count` must be a whole number; got count = 1.5",
    ),
    "a truth as a count": (lambda: choices.first((True, 2)), "`count` must be a whole number"),
    "a stride that is too large": (
        lambda: choices.strided(10**6),
        "`stride` must lie in [1, 65536]",
    ),
    "a probability for every token": (
        lambda: redraw(lambda row: row),
        "`probability` must give one number for the row of a position; got probability(row).shape",
    ),
    "a probability above 1": (
        lambda: redraw(lambda row: 0 * row[0] + 1.5),
        "and `probability` must lie in [0, 1]",
    ),
    "no count": (
        lambda: choices.first(()),
        "`count` must hold at least one number; got count = ()",
    ),
    "a negative bound": (lambda: choices.entropy_bound(-1.0), "`bound` must"),
    "a threshold above 1": (lambda: choices.confidence_threshold(1.5), "`threshold` must"),
    "a stride of 0": (
        lambda: choices.strided(0),
        "`stride` must lie in [1, 65536]; got stride = 0",
    ),
    "the likelihood of a choice that reads draws": (
        lambda: choice_log_prob(
            jax.random.key(0),
            lookup(),
            exact_denoiser,
            jnp.zeros(N, int),
            MASKS,
            choices.most_confident_draw(),
        ),
        "`choice` must be blind to the draws",
    ),
    "another token than the given one": (
        lambda: choice_log_prob(
            jax.random.key(0),
            lookup(),
            exact_denoiser,
            jnp.zeros(N, int),
            jnp.array([1, V, V]),
            choices.first(),
        ),
        "`x` must have the tokens that `x_0` has; got x[0] = 0",
    ),
    "nothing to redraw": (
        lambda: sample_redraws(jax.random.key(0), lookup(), exact_denoiser, MASKS, 1),
        "`x` must have at least one token outside the context that is no mask",
    ),
}


def redraw(probability):
    x = jnp.zeros(N, int)
    return sample_redraws(
        jax.random.key(0), lookup(), exact_denoiser, x, 1, probability=probability
    )


def _nan_denoiser(params, x_t, t):
    return jnp.full((N, V), jnp.nan)


@pytest.mark.parametrize(("refused", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused(refused, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        refused()


# ── a step, by enumeration ──────────────────────────────────────────────────────────────────────


def test_a_blind_step_is_a_product_kernel():
    """`exact.choice_step` without a look at the draws, against `exact.push_forward`."""
    posterior = np.exp(np.asarray(lookup().log_posterior[0], np.float64))
    probs = exact.marginal_path(
        evaluation_set("all masks").coupling, exact.mixture_token_path(HALF, V, V + 1)
    )
    kept = np.random.default_rng(0).random((len(STATES), 1, N)) < 0.5
    moves = kept[:, 0] & (STATES == V)
    rows = np.where(
        moves[:, :, None], np.pad(posterior, ((0, 0), (0, 0), (0, 1))), np.eye(V + 1)[STATES]
    )
    expected = exact.push_forward(probs, rows)
    np.testing.assert_allclose(exact.choice_step(probs, posterior, kept), expected, atol=1e-15)
    wide = np.broadcast_to(kept, (len(STATES), len(TOKENS), N))
    np.testing.assert_allclose(exact.choice_step(probs, posterior, wide), expected, atol=1e-15)


STEP_REFUSED = {
    "another shape of what is kept": (
        {"kept": np.ones((27, 3, 3), bool)},
        "`kept` must have shape [27, 8, 3]",
    ),
    "posteriors of another rank": (
        {"posteriors": np.ones((27, 2))},
        "`posteriors` must have axes [Z, N, V]",
    ),
    "rows that are none": ({"posteriors": np.ones((27, 3, 2))}, "`posteriors` must sum to 1"),
    "too few states": ({"probs": np.ones(8) / 8}, "`probs` must have shape [27]"),
}


@pytest.mark.parametrize(("change", "message"), STEP_REFUSED.values(), ids=STEP_REFUSED)
def test_a_step_refuses_what_it_cannot_list(change, message):
    good = {
        "probs": np.eye(27)[-1],
        "posteriors": np.full((27, 3, 2), 0.5),
        "kept": np.ones((27, 1, 3), bool),
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        exact.choice_step(**good | change)


def test_a_choice_that_breaks_its_promise_is_seen_by_the_ledger():
    cases = draw_cases(Shape(2, 3, 2), 4, 0)
    liar = choices.most_confident_draw()._replace(blind=True)
    assert one_position_by_choice(cases, Run(), chosen_by=(liar,)).min() > 0.05
    assert one_position_by_choice(cases, Run()).max() < 1e-12
