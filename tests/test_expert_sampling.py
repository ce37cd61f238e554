"""D7, S6, S7: drawing from K experts, and from one that is drawn and kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_distributions import (
    SOURCES,
    TOKENS,
    EvaluationSet,
    N,
    S,
    V,
    counts,
    exact_denoiser,
    probs_of_run,
    random_probs,
    rank,
    run_of,
)
from test_paths import assert_drawn_from
from test_table_sampling import plan

from dfm_jax import exact, schedules
from dfm_jax.interfaces import uncached_decoder
from dfm_jax.mixture import (
    MixtureDenoiserParams,
    mixture_decoder,
    mixture_denoiser,
    mixture_params,
    prompt_log_posterior,
    sample_mixed_step,
    sample_mixture_by_choice,
    sample_mixture_on_table,
    sample_one_expert,
    sample_one_expert_on_table,
)
from dfm_jax.sampling import (
    choices,
    guided_denoiser,
    next_token_log_probs,
    sample_autoregressive,
    sample_on_table,
    truncated_denoiser,
)
from dfm_jax.sampling.denoisers import log_probs, whole

K = 3
WEIGHTS = np.array([0.5, 0.3, 0.2])
PARTS = np.array([random_probs(20 + k) for k in range(K)])
DATA = WEIGHTS @ PARTS
FREE = np.zeros(N, bool)
DRAWS = 20_000
TABLES = {
    "any order": schedules.any_order([1, 2, 0]),
    "masked": schedules.masked(schedules.cosine(), 3, N),
}


def evaluation_sets(source):
    return [EvaluationSet(part, SOURCES[source], FREE) for part in PARTS]


def router(params, x_t, t):
    """log r_k(z, t) at the time that is nearest."""
    row = jnp.argmin(jnp.abs(params.times - t))
    return params.log_posterior[row, rank(x_t, S)]


def ensemble_params(source, table):
    times, kappas = plan(table)[1], np.asarray(table)[:-1]
    lookups = [here.lookup(times, kappas) for here in evaluation_sets(source)]
    posterior = []
    for kappa in kappas:
        paths = np.array([here.probs(kappa) for here in evaluation_sets(source)])
        posterior.append(exact.expert_posterior(WEIGHTS, paths)[0])
    with np.errstate(divide="ignore"):
        gate = lookups[0]._replace(log_posterior=jnp.log(jnp.asarray(np.array(posterior), float)))
    experts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lookups)
    return MixtureDenoiserParams(experts, gate)


def ensemble_probs(source, table, denoiser):
    table = jnp.asarray(table, float)
    start = EvaluationSet(DATA, SOURCES[source], FREE).probs(np.zeros(N))
    run = run_of(denoiser, carry_over=source == "all masks")
    return probs_of_run(start, ensemble_params(source, table), *plan(table), run)[-1]


@pytest.mark.slow
@pytest.mark.statement("D4", "D5", "S2")
@pytest.mark.parametrize(
    ("source", "table"),
    [("all masks", "any order"), ("uniform", "masked"), ("any distribution", "masked")],
)
@pytest.mark.usefixtures("x64")
def test_experts_under_the_true_gate_draw_as_the_dense_model_does(source, table):
    """Parallel steps too: step for step they are the same steps."""
    table = jnp.asarray(TABLES[table], float)
    dense, start = EvaluationSet(DATA, SOURCES[source], FREE), None
    start = dense.probs(np.zeros(N))
    params = dense.lookup(plan(table)[1], np.asarray(table)[:-1])
    run = run_of(exact_denoiser, carry_over=source == "all masks")
    truth = probs_of_run(start, params, *plan(table), run)[-1]
    full = ensemble_probs(source, table, mixture_denoiser(exact_denoiser, router))
    np.testing.assert_allclose(full, truth, atol=1e-12)
    every = ensemble_probs(source, table, mixture_denoiser(exact_denoiser, router, top_experts=K))
    np.testing.assert_allclose(every, truth, atol=1e-12)
    # the falsifiers: a gate that never looks, and one cut to its largest
    static = mixture_denoiser(exact_denoiser, lambda params, x, t: jnp.log(jnp.asarray(WEIGHTS)))
    assert exact.total_variation(ensemble_probs(source, table, static), truth) > 0.005
    cut = mixture_denoiser(exact_denoiser, router, top_experts=1)
    assert exact.total_variation(ensemble_probs(source, table, cut), truth) > 0.005


@pytest.mark.slow
@pytest.mark.statement("S6", "S7")
def test_an_expert_for_each_position_then_its_token_is_the_mixed_step():
    rng = np.random.default_rng(0)
    token_probs, weights = rng.dirichlet(np.ones(S), (K, 2)), rng.dirichlet(np.ones(K), 2)

    def rows(weights):
        keys = jax.random.split(jax.random.key(0), 40_000)
        draw = jax.vmap(
            lambda key: sample_mixed_step(
                key, jnp.float32(weights), jnp.log(jnp.float32(token_probs))
            )
        )
        return np.asarray(jax.jit(draw)(keys))

    for given in (weights, weights[0]):
        mixed = np.einsum("nk,kns->ns", np.broadcast_to(given, (2, K)), token_probs)
        x = rows(given)
        seen = np.bincount(x[:, 0] * S + x[:, 1], minlength=S * S)
        assert_drawn_from(np.outer(mixed[0], mixed[1]), seen)
        first = np.broadcast_to(given, (2, K))[0]
        shared = np.einsum("k,ks,kr->sr", first, token_probs[:, 0], token_probs[:, 1])
        with pytest.raises(AssertionError, match="chi-square"):
            assert_drawn_from(shared, seen)


# ── the Bayes gate in any order, and one expert in its place ────────────────────────────────────


def rough(params, x_t, t):
    """Experts that are no posterior of anything: a bilinear net of what is revealed."""
    seen = jax.nn.one_hot(x_t, S, dtype=params.dtype).reshape(-1)
    return (seen @ params).reshape(N, V)


ROUGH = np.random.default_rng(5).normal(size=(K, N * S, N * V)) * 1.2


def sequence_probs(order):
    """q̂_k in one order, by enumeration: [K, V^N]."""
    token_probs = np.ones((K, len(TOKENS)))
    for k in range(K):
        for index, x in enumerate(TOKENS):
            state = np.full(N, V)
            for position in order:
                seen = np.eye(S)[state].reshape(-1)
                logits = (seen @ ROUGH[k]).reshape(N, V)[position]
                probs = np.exp(logits - logits.max())
                token_probs[k, index] *= probs[x[position]] / probs.sum()
                state[position] = x[position]
    return token_probs


ORDER = [2, 0, 1]


def table_draws(sample, **options):
    table, x_0 = schedules.any_order(ORDER), jnp.full(N, V)
    prior = jnp.log(jnp.float32(WEIGHTS))

    def one(key):
        return sample(key, jnp.float32(ROUGH), rough, prior, x_0, table, **options)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), DRAWS))


@pytest.mark.slow
@pytest.mark.statement("D7", "S7")
def test_all_experts_and_one_that_is_kept_have_the_same_distribution_whatever_they_are():
    """Chi-square at 1e-6 for each, against Σ_k w_k q̂_k by enumeration."""
    token_probs = sequence_probs(ORDER)
    mixture = WEIGHTS @ token_probs
    full = table_draws(sample_mixture_on_table)
    assert_drawn_from(mixture, counts(full.tokens, V))
    # The gate at the end is r_k(x) ∝ w_k q̂_k(x).
    index = np.asarray(full.tokens) @ V ** np.arange(N)[::-1]
    posterior = (WEIGHTS[:, None] * token_probs / mixture)[:, index].T
    np.testing.assert_allclose(np.exp(full.log_weights), posterior, atol=1e-5)
    for method in ("clear", "sparse"):
        one, expert = table_draws(sample_one_expert_on_table, method=method)
        assert_drawn_from(mixture, counts(one, V))
        assert_drawn_from(WEIGHTS, np.bincount(expert, minlength=K))
    # the falsifier: a gate cut at every step is another distribution
    cut = table_draws(sample_mixture_on_table, top_experts=1)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(mixture, counts(cut.tokens, V))


@pytest.mark.slow
@pytest.mark.statement("D7", "S8")
@pytest.mark.parametrize("choice", [choices.lowest_entropy(), choices.random_order()])
def test_exact_experts_in_a_chosen_order_draw_the_mixture(choice):
    prior, x_0 = jnp.log(jnp.float32(WEIGHTS)), jnp.full(N, V)
    half = [np.full(N, 0.5)]
    rows = [here.lookup([0.5], half) for here in evaluation_sets("all masks")]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

    def one(key):
        return sample_mixture_by_choice(key, params, exact_denoiser, prior, x_0, choice)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(6), DRAWS))
    assert_drawn_from(DATA, counts(found.tokens, V))
    index = np.asarray(found.tokens) @ V ** np.arange(N)[::-1]
    posterior = (WEIGHTS[:, None] * PARTS / DATA)[:, index].T
    np.testing.assert_allclose(np.exp(found.log_weights), posterior, atol=1e-5)


@pytest.mark.statement("D7", "S7", "S8")
def test_any_experts_in_the_order_of_a_table_are_those_of_the_table():
    """The choice "first" is left to right: the same mixture, whatever the experts are."""
    prior, x_0 = jnp.log(jnp.float32(WEIGHTS)), jnp.full(N, V)
    mixture = WEIGHTS @ sequence_probs(range(N))

    def one(key):
        return sample_mixture_by_choice(key, jnp.float32(ROUGH), rough, prior, x_0, choices.first())

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), DRAWS))
    assert_drawn_from(mixture, counts(found.tokens, V))


@pytest.mark.parametrize("choice", [choices.first(2), choices.most_confident_draw()])
def test_choices_that_are_not_exact_are_refused(key, choice):
    prior, x_0 = jnp.log(jnp.float32(WEIGHTS)), jnp.full(N, V)
    message = "`choice` must be blind to the draws and reveal one position in each step"
    with pytest.raises(ValueError, match=message):
        sample_mixture_by_choice(key, jnp.float32(ROUGH), rough, prior, x_0, choice)


def test_two_positions_at_once_are_refused(key):
    table, x_0 = schedules.blocks([0, 0, 1]), jnp.full(N, V)
    prior = jnp.log(jnp.float32(WEIGHTS))
    message = r"`table` must reveal at most one position in each step; got revealed\[0\] = 2"
    for sample in (sample_mixture_on_table, sample_one_expert_on_table):
        with pytest.raises(ValueError, match=message):
            sample(key, jnp.float32(ROUGH), rough, prior, x_0, table)
    half = jnp.asarray([[0, 0, 0], [0.5, 0, 0], [1, 1, 1]], float)
    with pytest.raises(ValueError, match="`table` must hold only 0 and 1"):
        sample_mixture_on_table(key, jnp.float32(ROUGH), rough, prior, x_0, half)


def test_experts_that_are_not_as_many_as_the_prior_says_are_refused(key):
    """A missing one would silently be the last."""
    prior, x_0, table = jnp.log(jnp.float32(WEIGHTS)), jnp.full(N, V), schedules.any_order(ORDER)
    message = "Every leaf of `params` must have 3 rows"
    for sample in (sample_mixture_on_table, sample_one_expert_on_table):
        with pytest.raises(ValueError, match=message):
            sample(key, jnp.float32(ROUGH[:2]), rough, prior, x_0, table)
    arguments = (DECODER, prior[None], jnp.ones((1, 1), int), jnp.ones(1, int))
    with pytest.raises(ValueError, match=message):
        sample_one_expert(key, jnp.float32(MARKOV[:2]), *arguments, max_new=1)


def test_an_expert_that_is_cut_now_but_alive_must_have_a_distribution(key):
    def sick(params, x_t, t):
        third = params[0, 0] == jnp.float32(ROUGH[2, 0, 0])
        return jnp.where((t == 0) & third, jnp.nan, rough(params, x_t, t))

    prior, x_0 = jnp.log(jnp.float32([0.6, 0.3, 0.1])), jnp.full(N, V)
    table, options = schedules.any_order(ORDER), {"top_experts": 1}
    with pytest.raises(ValueError, match="must hold a finite number and no NaN"):
        sample_mixture_on_table(key, jnp.float32(ROUGH), sick, prior, x_0, table, **options)


def test_an_expert_that_the_prior_excludes_may_say_anything(key):
    """What it says is not read: the draw is that of any other expert in its place."""
    prior, x_0 = jnp.log(jnp.float32([0.6, 0.4, 0])), jnp.full(N, V)
    silent, table = np.float32(ROUGH), schedules.any_order(ORDER)
    silent[2] = np.nan
    found, expected = (
        sample_mixture_on_table(key, jnp.asarray(each), rough, prior, x_0, table)
        for each in (silent, np.float32(ROUGH))
    )
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.log_weights, expected.log_weights)
    assert found.log_weights[2] == -np.inf


@pytest.mark.parametrize(
    ("weights", "token_probs", "message"),
    [
        ([-1.0, 2.0], np.zeros((2, 1, 2)), "`weights` must be non-negative"),
        ([0.5, 0.5], np.full((2, 1, 2), -np.inf), r"`exp\(log_probs\)` must sum to 1"),
    ],
)
def test_a_mixed_step_of_what_is_no_distribution_is_refused(weights, token_probs, message, key):
    with pytest.raises(ValueError, match=message):
        sample_mixed_step(key, jnp.array(weights), jnp.asarray(token_probs))


@pytest.mark.slow
@pytest.mark.statement("S7")
def test_the_work_of_one_expert_does_not_grow_with_their_number():
    """FLOPs of the compiled programs; the other way they grow with K."""

    def flops(sample, count):
        prior = jnp.full(count, -jnp.log(count))
        params = jnp.ones((count, 64, 64), jnp.float32)

        def wide(params, x_t, t):
            hidden = jnp.ones((N, 64)) * x_t[:, None]
            return (hidden @ params @ params)[:, :V]

        def run(key, params):
            x_0, table = jnp.full(N, V), schedules.any_order(ORDER)
            return sample(key, params, wide, prior, x_0, table)

        compiled = jax.jit(run).lower(jax.random.key(0), params).compile()
        return compiled.cost_analysis()["flops"]

    few, many = (flops(sample_one_expert_on_table, count) for count in (2, 64))
    assert many < 1.35 * few  # the draw of k
    few, many = (flops(sample_mixture_on_table, count) for count in (2, 64))
    assert many > 10 * few


@pytest.mark.slow
@pytest.mark.statement("D7")
def test_a_step_that_moves_nothing_tells_the_gate_nothing(key):
    logits = jnp.float32(np.random.default_rng(0).normal(size=(K, V)))
    table = np.repeat(np.asarray(schedules.any_order([1, 2, 0])), [3, 1, 2, 1], axis=0)

    def blind(params, x_t, t):
        return jnp.broadcast_to(params, (N, V))

    prior, masks = jnp.log(jnp.float32(WEIGHTS)), jnp.full(N, V)
    found = sample_mixture_on_table(key, logits, blind, prior, masks, table)
    told = prior + jax.nn.log_softmax(logits)[:, found.tokens].sum(axis=1)
    np.testing.assert_allclose(found.log_weights, jax.nn.log_softmax(told), atol=1e-5)


# ── left to right ───────────────────────────────────────────────────────────────────────────────

STATES = 4  # V = 4 tokens, no mask
LENGTH = 3  # new tokens
MARKOV = np.random.default_rng(7).normal(size=(K, STATES, STATES)) * 1.5


def markov(params, tokens):
    return params[tokens]


def decoders():
    return (uncached_decoder(markov, STATES),) * K


DECODER = uncached_decoder(markov, STATES)
PROMPT = np.array([1, 3, 0])


def markov_probs(logits, first, length, **cut):
    """The distribution of `length` tokens behind `first`: [V^length]."""
    rows = np.array([np.exp(next_token_log_probs(jnp.float32(row), **cut)) for row in logits])
    probs = np.ones(1)
    last = np.array([first])
    for _ in range(length):
        probs = (probs[:, None] * rows[last]).reshape(-1)
        last = np.tile(np.arange(STATES), len(last))
    return probs


def posterior_of_prompt():
    log_rows = np.log([np.exp(m) / np.exp(m).sum(axis=1, keepdims=True) for m in MARKOV])
    told = log_rows[:, PROMPT[0], PROMPT[1]] + log_rows[:, PROMPT[1], PROMPT[2]]
    joint = WEIGHTS * np.exp(told)
    return joint / joint.sum()


def rows_drawn(sample):
    """Counts of the new tokens of many rows."""
    new = np.asarray(sample.tokens)[:, len(PROMPT) :]
    return np.bincount(new @ STATES ** np.arange(LENGTH)[::-1], minlength=STATES**LENGTH)


@pytest.fixture(scope="module")
def parts():
    params = [jnp.float32(m) for m in MARKOV]
    decoder = mixture_decoder((DECODER,) * K)
    mixed = mixture_params((DECODER,) * K, jnp.log(jnp.float32(WEIGHTS)), params)
    prompts = jnp.tile(jnp.asarray(PROMPT), (DRAWS, 1))
    return decoder, mixed, prompts, jnp.full(DRAWS, len(PROMPT))


@pytest.mark.slow
@pytest.mark.statement("S7")
def test_a_row_is_drawn_apart_from_the_others_whoever_writes_it():
    """Copies of one expert: rows assigned to all of them are the rows that one writes."""
    params, num_rows = jnp.stack([jnp.float32(MARKOV[0])] * K), 12
    prompts, lengths = np.tile(PROMPT, (num_rows, 1)), np.full(num_rows, len(PROMPT))

    def rows(experts):
        sure = jnp.log(jnp.eye(K)[experts])
        options = {"max_new": LENGTH}
        found = sample_one_expert(
            jax.random.key(3), params, DECODER, sure, prompts, lengths, **options
        )
        np.testing.assert_array_equal(found.experts, experts)
        return found.sample.tokens

    np.testing.assert_array_equal(rows(np.arange(num_rows) % K), rows(np.zeros(num_rows, int)))


@pytest.mark.slow
@pytest.mark.statement("S7", "D7")
def test_one_expert_drawn_after_the_prompt_writes_as_all_of_them_do(parts):
    decoder, params, prompts, lengths = parts
    posterior = posterior_of_prompt()
    found = prompt_log_posterior(params, decoder, prompts[:2], lengths[:2])
    np.testing.assert_allclose(np.exp(found), np.tile(posterior, (2, 1)), atol=1e-6)
    token_probs = np.array([markov_probs(m, PROMPT[-1], LENGTH) for m in MARKOV])
    probs = posterior @ token_probs
    for seed, draw in enumerate(("clear", "two_level")):
        full = jax.jit(
            lambda key, draw=draw: sample_autoregressive(
                key, params, decoder, prompts, lengths, max_new=LENGTH, draw=draw
            )
        )(jax.random.key(2 * seed))
        assert_drawn_from(probs, rows_drawn(full))
    rows = jnp.broadcast_to(found[:1], (DRAWS, K))
    one = sample_one_expert(
        jax.random.key(1), params.stacks[0], DECODER, rows, prompts, lengths, max_new=LENGTH
    )
    assert_drawn_from(probs, rows_drawn(one.sample))
    assert_drawn_from(posterior, np.bincount(one.experts, minlength=K))
    np.testing.assert_array_equal(one.sample.tokens[:, :3], prompts)
    # the falsifier: the distribution of experts drawn from the prior in the place of the posterior
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(WEIGHTS @ token_probs, rows_drawn(one.sample))


@pytest.mark.slow
def test_a_prompt_that_no_expert_could_have_made_has_no_posterior():
    impossible = np.zeros((2, STATES, STATES), np.float32)
    impossible[:, :, 3] = -np.inf
    decoder = mixture_decoder((DECODER,) * 2)
    params = mixture_params((DECODER,) * 2, np.log(np.float32([0.9, 0.1])), list(impossible))
    prompts, lengths = np.array([[1, 3, 0], [1, 2, 0]]), np.array([3, 3])
    posterior = jax.jit(lambda *given: prompt_log_posterior(params, decoder, *given))
    rows = np.asarray(posterior(prompts, lengths))
    assert np.all(np.isnan(rows[0]))
    np.testing.assert_allclose(np.exp(rows[1]), [0.9, 0.1], atol=1e-6)
    with pytest.raises(ValueError, match=r"`lengths` must lie in \[1, 3\]; got lengths\[0\] = 0"):
        prompt_log_posterior(params, decoder, prompts, np.array([0, 3]))
    with pytest.raises(ValueError, match=r"`prompts` must hold ids in \[0, 3\]"):
        prompt_log_posterior(params, decoder, prompts - 2, lengths)


@pytest.mark.slow
@pytest.mark.statement("S7")
def test_with_a_temperature_the_two_distributions_differ_and_one_expert_is_refused(parts):
    decoder, params, prompts, lengths = parts
    posterior = np.log(posterior_of_prompt())
    rows = jnp.broadcast_to(jnp.float32(posterior)[None], (DRAWS, K))
    common = (params.stacks[0], DECODER, rows, prompts, lengths)
    for cut in ({"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.9}):
        with pytest.raises(
            ValueError, match="`temperature` must be 1 and `top_k` and `top_p` must be None"
        ):
            sample_one_expert(jax.random.key(0), *common, max_new=LENGTH, **cut)
    cold = {"temperature": 0.7, "max_new": LENGTH}
    each = sample_one_expert(jax.random.key(0), *common, truncate="expert", **cold)
    token_probs = [markov_probs(m, PROMPT[-1], LENGTH, temperature=0.7) for m in MARKOV]
    probs = np.exp(posterior) @ np.array(token_probs)
    common_ones = DRAWS * probs > 20  # the others are pooled
    seen = rows_drawn(each.sample)
    pooled = np.append(seen[common_ones], seen[~common_ones].sum())
    assert_drawn_from(np.append(probs[common_ones], probs[~common_ones].sum()), pooled)
    full = sample_autoregressive(jax.random.key(1), params, decoder, prompts, lengths, **cold)
    seen = rows_drawn(full)
    assert exact.total_variation(seen / seen.sum(), probs) > 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truncate": "neither"}, "parameter 'truncate'"),
        ({"log_posterior": jnp.zeros((2, K))}, r"`exp\(log_posterior\)` must sum to 1"),
        ({"max_new": 0}, "`max_new` must be at least 1; got max_new = 0"),
        ({"prompts": jnp.array([[1, -1], [2, 3]])}, r"`prompts` must hold ids in \[0, 3\]"),
    ],
)
def test_a_bad_request_is_refused(change, message, key):
    options = {
        "log_posterior": jnp.log(jnp.full((2, K), 1 / K)),
        "prompts": jnp.array([[1, 2], [2, 3]]),
        "lengths": jnp.array([2, 2]),
        "max_new": 2,
    } | change
    names = ("log_posterior", "prompts", "lengths")
    arrays = [options.pop(name) for name in names]
    with pytest.raises((ValueError, TypeError), match=message):
        sample_one_expert(key, jnp.float32(MARKOV), DECODER, *arrays, **options)


# ── guidance and temperature ────────────────────────────────────────────────────────────────────


def test_guidance_is_the_conditional_at_0_the_other_at_minus_1_and_their_ratio_beyond():
    rng = np.random.default_rng(0)
    told, untold = jnp.float32(rng.normal(size=(2, N, V)))
    params, x = (told, untold), jnp.full(N, V)

    def plain(params, x_t, t):
        return params

    at = {w: guided_denoiser(plain, plain, w)(params, x, 0.5) for w in (-1.0, 0.0, 2.0)}
    np.testing.assert_allclose(at[0.0], jax.nn.log_softmax(told), atol=1e-6)
    np.testing.assert_allclose(at[-1.0], jax.nn.log_softmax(untold), atol=1e-6)
    stated = np.exp(3 * jax.nn.log_softmax(told) - 2 * jax.nn.log_softmax(untold))
    np.testing.assert_allclose(np.exp(at[2.0]), stated / stated.sum(-1, keepdims=True), atol=1e-6)
    lone = (told, untold.at[:, 0].set(-jnp.inf))
    assert np.all(np.isnan(guided_denoiser(plain, plain, 2.0)(lone, x, 0.5)))
    half = np.asarray(guided_denoiser(plain, plain, -0.5)(lone, x, 0.5))
    assert np.all(half[:, 0] == -np.inf)
    dead = (told.at[:, 0].set(-jnp.inf), untold.at[:, 0].set(-jnp.inf))
    assert np.all(np.asarray(guided_denoiser(plain, plain, 2.0)(dead, x, 0.5))[:, 0] == -np.inf)
    with pytest.raises(ValueError, match=r"`weight` must lie in \[-1, inf\); got weight = -2"):
        guided_denoiser(plain, plain, -2.0)


@pytest.mark.slow
def test_a_guided_sample_draws_from_the_guided_distribution():
    rng = np.random.default_rng(1)
    params = tuple(jnp.float32(rng.normal(size=(2, N, V))))

    def plain(params, x_t, t):
        return params

    guided = guided_denoiser(plain, plain, 1.5)
    table, x_0 = schedules.blocks([0] * N), jnp.full(N, V)
    rows = jax.jit(
        jax.vmap(lambda key: sample_on_table(key, params, guided, x_0, table, source="mask"))
    )(jax.random.split(jax.random.key(0), DRAWS))
    probs = np.exp(guided(params, x_0, 0.0))
    joint = np.prod(probs[np.arange(N), TOKENS], axis=1)
    assert_drawn_from(joint, counts(rows, V))


@pytest.mark.slow
def test_a_cut_denoiser_is_cut_as_next_tokens_are():
    logits = jnp.float32(np.random.default_rng(0).normal(size=(N, 5)))
    cut = truncated_denoiser(lambda params, x, t: params, temperature=0.7, top_k=3, top_p=0.8)

    @jax.jit
    def token_probs(logits):
        probs = whole(cut)(logits, jnp.zeros(N, int), 0.0)
        expected = jax.vmap(
            lambda row: next_token_log_probs(row, temperature=0.7, top_k=3, top_p=0.8)
        )(logits)
        return probs, expected, log_probs(probs)

    probs, expected, log_rows = token_probs(logits)
    np.testing.assert_allclose(probs, expected, atol=1e-6)
    np.testing.assert_allclose(np.exp(log_rows).sum(-1), 1, atol=1e-6)
    nothing = jnp.full((N, 5), -jnp.inf)
    cold = truncated_denoiser(lambda params, x, t: params, temperature=0.0)
    assert np.all(np.isnan(jax.jit(whole(cold))(nothing, jnp.zeros(N, int), 0.0)))
    with pytest.raises(ValueError, match="`temperature` must lie in"):
        truncated_denoiser(lambda params, x, t: params, temperature=-1.0)
