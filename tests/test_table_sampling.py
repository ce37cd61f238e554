"""S2, S4: sampling by a schedule table, its distribution against enumeration and its draws against
it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_distributions import (
    SOURCES,
    STATES,
    TOKENS,
    N,
    S,
    V,
    counts,
    embedded,
    evaluation_set,
    exact_denoiser,
    probs_of_run,
    rank,
    run_of,
)
from test_paths import assert_drawn_from

from dfm_jax import exact, schedules, steps
from dfm_jax.models import TransformerConfig, transformer, transformer_denoiser
from dfm_jax.sampling import HeadedDenoiser, sample_infilling, sample_on_table
from dfm_jax.sampling.denoisers import whole
from dfm_jax.sampling.jumps import checked_run, jumped, start
from dfm_jax.sampling.tables import whole_table

DRAWS = 20_000
ORDERS = {
    "left to right": schedules.left_to_right(N),
    "any order": schedules.any_order([2, 0, 1]),
    "one position a step, halfway first": jnp.asarray(
        [[0, 0, 0], [0, 0.4, 0], [0, 1, 0], [0.7, 1, 0], [1, 1, 0], [1, 1, 1]], float
    ),
}
TOGETHER = {
    "blocks": schedules.blocks([0, 0, 1]),
    "all at once": schedules.blocks([0, 0, 0]),
    "masked": schedules.masked(schedules.cosine(), 4, N),
}
METHODS = ("clear", "sparse")


def plan(table):
    num_steps = len(table) - 1
    jump_probs = [steps.step_size(table, t) for t in range(num_steps)]
    return jump_probs, np.arange(num_steps) / num_steps


def lookup_of(here, table):
    return here.lookup(plan(table)[1], np.asarray(table)[:-1])


def drawn(here, table, *, seed=0, count=DRAWS, **options):
    """[count, N] draws, their sources drawn too."""
    params = lookup_of(here, table)
    log_source = jnp.log(jnp.asarray(here.source))

    def one(key):
        source_key, key = jax.random.split(key)
        x_0 = jax.random.categorical(source_key, log_source, mode="high")
        return sample_on_table(key, params, exact_denoiser, x_0, table, source="mask", **options)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), count))


# ── the distribution ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.statement("S2", "S1")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("table", ORDERS.values(), ids=ORDERS)
@pytest.mark.usefixtures("x64")
def test_one_position_a_step_has_the_distribution_of_the_path_at_every_row(source, table):
    here, table = evaluation_set(source), jnp.asarray(table, float)
    run = run_of(exact_denoiser, carry_over=source == "all masks")
    truth = np.array([here.probs(row) for row in np.asarray(table)])
    probs = probs_of_run(truth[0], lookup_of(here, table), *plan(table), run)
    assert np.max(np.abs(probs - truth)) < 1e-12
    assert exact.total_variation(probs[-1], embedded(here.data)) < 1e-12


@pytest.mark.slow
@pytest.mark.statement("Q6", "S2")
@pytest.mark.parametrize("blocks", [[0, 0, 1], [0, 1, 0], [0, 0, 0], [0, 1, 2]], ids=str)
@pytest.mark.usefixtures("x64")
def test_the_price_of_blocks_is_the_kl_of_what_they_draw(blocks):
    here, table = evaluation_set("all masks"), jnp.asarray(schedules.blocks(blocks), float)
    start = here.probs(np.zeros(N))
    run = run_of(exact_denoiser, carry_over=True)
    probs = probs_of_run(start, lookup_of(here, table), *plan(table), run)[-1]
    cost, before = 0.0, ()
    for block in range(max(blocks) + 1):
        these = tuple(i for i in range(N) if blocks[i] == block)
        cost += exact.conditional_total_correlation(here.data, these, before, V, N)
        before = (*before, *these)
    measured = exact.kl(embedded(here.data), probs)
    assert measured == pytest.approx(cost, abs=1e-12)
    assert (cost > 1e-3) == (len(set(blocks)) < N)
    stated = [
        steps.parallel_log_prob(x, jnp.asarray(blocks), jnp.asarray(TOKENS), jnp.log(here.data))
        for x in jnp.asarray(TOKENS)
    ]
    np.testing.assert_allclose(embedded(np.exp(stated)), probs, atol=1e-12)


# ── draws ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.statement("S2")
@pytest.mark.parametrize(
    ("source", "method"),
    [("all masks", "clear"), ("all masks", "sparse"), ("any distribution", "sparse")],
)
def test_draws_are_of_the_data_in_any_order(source, method):
    """Chi-square, false alarms once in a million."""
    here, table = evaluation_set(source), ORDERS["any order"]
    rows = drawn(here, table, method=method, carry_over=source == "all masks", rows_at_once=2)
    assert_drawn_from(embedded(here.data), counts(rows))


@pytest.mark.slow
@pytest.mark.statement("S2")
@pytest.mark.parametrize(
    ("table", "method"),
    [("blocks", "clear"), ("all at once", "sparse"), ("masked", "sparse")],
)
def test_parallel_draws_have_the_distribution_of_the_steps_and_not_of_the_data(table, method):
    here, table = evaluation_set("all masks"), TOGETHER[table]
    with jax.enable_x64(True):
        wide = jnp.asarray(table, float)
        start = here.probs(np.zeros(N))
        run = run_of(exact_denoiser, carry_over=True)
        probs = probs_of_run(start, lookup_of(here, wide), *plan(wide), run)[-1]
    found = counts(drawn(here, table, method=method, count=40_000))
    assert_drawn_from(probs, found)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(embedded(here.data), found)


@pytest.mark.slow
@pytest.mark.statement("S2", "P4")
@pytest.mark.parametrize(
    ("source", "method"), [("all masks", "sparse"), ("any distribution", "clear")]
)
def test_a_run_that_stops_early_is_a_draw_of_the_path_there(source, method):
    here, table, stop = evaluation_set(source), ORDERS["one position a step, halfway first"], 3
    carry_over = source == "all masks"
    rows = drawn(here, table, method=method, stop=stop, carry_over=carry_over, count=80_000)
    probs = here.probs(np.asarray(table[stop], np.float64))
    seen = counts(rows)
    rare = len(rows) * probs < 6  # pooled, so that a chi-square test may be made
    pooled = np.append(probs[~rare], probs[rare].sum())
    assert_drawn_from(pooled[pooled > 0], np.append(seen[~rare], seen[rare].sum())[pooled > 0])
    assert np.all(seen[probs == 0] == 0)


@pytest.mark.slow
def test_a_run_in_two_parts_goes_on_from_the_row_where_it_stopped(key):
    here, table = evaluation_set("all masks"), schedules.left_to_right(N)
    params, run = lookup_of(here, table), partial(sample_on_table, source="mask")
    masks = jnp.full(N, V)
    half = jax.jit(lambda key: run(key, params, exact_denoiser, masks, table, stop=2))(key)
    whole = jax.jit(lambda key, x: run(key, params, exact_denoiser, x, table, start=2))(
        jax.random.key(1), half
    )
    assert half[2] == V
    assert whole[2] != V
    np.testing.assert_array_equal(half[:2], whole[:2])


# ── revealed tokens, contexts ───────────────────────────────────────────────────────────────────


def restless(params, x_t, t):
    """A network that would rather have every token changed."""
    return 5.0 * (jnp.arange(V)[None] != x_t[:, None]).astype(float)


@pytest.mark.slow
@pytest.mark.statement("S4")
@pytest.mark.parametrize("method", METHODS)
def test_a_revealed_token_never_changes(method):
    """Of a table that moves one position in part, and then all three at once."""
    table = jnp.asarray([[0, 0, 0], [0.6, 0, 0], [1, 1, 1]], float)
    options = {"source": "mask", "method": method}

    @jax.jit
    @jax.vmap
    def run(key):
        first_key, second_key = jax.random.split(key)
        half = sample_on_table(first_key, (), restless, masks, table, stop=1, **options)
        return half, sample_on_table(second_key, (), restless, half, table, start=1, **options)

    masks = jnp.full(N, V)
    half, x = map(np.asarray, run(jax.random.split(jax.random.key(0), 200)))
    assert 80 < np.sum(half[:, 0] != V) < 160
    assert np.all(half[:, 1:] == V)
    np.testing.assert_array_equal(x[half != V], half[half != V])
    assert np.all(x != V)


@pytest.mark.slow
def test_a_token_of_another_source_is_drawn_anew():
    """The twin: without carrying over the same network changes nearly all of them."""
    x_0 = jnp.array([0, 1, 0])
    table = schedules.blocks([0, 0, 0])
    keys = jax.random.split(jax.random.key(0), 100)
    draw = jax.vmap(
        lambda key: sample_on_table(key, (), restless, x_0, table, source="mask", carry_over=False)
    )
    rows = jax.jit(draw)(keys)
    assert np.mean(np.asarray(rows) != np.asarray(x_0)) > 0.95


@pytest.mark.slow
@pytest.mark.statement("A5", "S2")
@pytest.mark.parametrize(("given", "method"), [([1], "sparse"), ([0, 2], "clear")], ids=str)
def test_infilling_draws_from_the_data_given_the_context(given, method):
    context = np.isin(np.arange(N), given)
    here = evaluation_set("all masks", seed=4, context=context)
    x = np.array([1, 0, 1])
    free = [i for i in range(N) if i not in given]
    table = schedules.any_order([*given, *free[::-1]])
    moved = schedules.with_context(table, jnp.asarray(context))
    params = here.lookup(plan(table)[1], np.asarray(moved)[:-1])

    def one(key):
        return sample_infilling(
            key,
            params,
            exact_denoiser,
            jnp.where(context, x, -1),
            jnp.asarray(context),
            table,
            method=method,
        )

    rows = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), DRAWS)))
    assert np.all(rows[:, given] == x[given])
    probs = np.where(np.all(TOKENS[:, given] == x[given], axis=1), here.data, 0.0)
    assert_drawn_from(probs / probs.sum(), counts(rows, V))


# ── both halves of a denoiser ───────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_only_rows_that_jump_meet_the_head():
    """A head that spoils whatever row it should not see."""
    width = 40
    table = schedules.left_to_right(width)

    def hidden(params, x_t, t):
        return jnp.stack([jnp.arange(width), jnp.full(width, jnp.round(t * width))], axis=1)

    def head(params, rows):
        due = rows[:, :1] == rows[:, 1:]
        return jnp.where(due, 0.0, jnp.nan) + jnp.zeros((1, V))

    denoiser, x_0 = HeadedDenoiser(hidden, head), jnp.full(width, V)
    options = {"source": "mask", "method": "sparse", "rows_at_once": 1}
    x = sample_on_table(jax.random.key(0), (), denoiser, x_0, table, **options)
    assert np.all(np.asarray(x) < V)
    late = schedules.any_order(np.arange(width)[::-1])
    with pytest.raises(
        ValueError, match="must hold a finite number and no NaN where a token moves"
    ):
        sample_on_table(jax.random.key(0), (), denoiser, x_0, late, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("tied", "conditioned"), [(True, False), (False, True)])
def test_both_halves_of_a_transformer_are_its_logits(tied, conditioned, key):
    config = TransformerConfig(
        num_tokens=7,
        num_states=8,
        width=16,
        num_layers=1,
        num_heads=2,
        ffn_width=16,
        causal=False,
        tied=tied,
        time_conditioned=conditioned,
    )
    network, t = transformer(config), 0.3

    @jax.jit
    def both(key, x_t):
        params = network.init(key)
        logits = network.apply(params, x_t, t if conditioned else None)
        return whole(transformer_denoiser(config))(params, x_t, t), logits

    halves, logits = both(key, np.array([7, 3, 7, 0]))
    np.testing.assert_allclose(halves, logits, atol=1e-6)


# ── refusals ────────────────────────────────────────────────────────────────────────────────────

GOOD = {"x_0": jnp.full(N, V), "table": schedules.left_to_right(N), "source": "mask"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x_0": jnp.array([0, -1, V])},
            r"`x_0` must hold ids in \[0, 2\]; got x_0\[1\] = -1",
        ),
        (
            {"source": "tokens", "x_0": jnp.zeros(N, int), "carry_over": True},
            "`carry_over` must be",
        ),
        ({"table": schedules.left_to_right(N)[::-1]}, "`table` must not move a finished token"),
        ({"stop": 4}, r"`stop` must lie in \[0, 3\]; got stop = 4"),
        ({"start": 2, "stop": 1}, r"`start` must lie in \[0, 1\]; got start = 2"),
        ({"method": "sparse", "rows_at_once": 0}, r"`rows_at_once` must lie in \[1, 3\]"),
        (
            {"x_0": jnp.full(2, V), "table": jnp.eye(3, 2)},
            r"`denoiser` must return \[N, V\] with",
        ),
    ],
)
def test_a_bad_request_is_refused(change, message, key):
    options = GOOD | change
    fixed = partial(lambda params, x_t, t: jnp.zeros((N, V)))
    with pytest.raises(ValueError, match=message):
        sample_on_table(key, (), fixed, options.pop("x_0"), options.pop("table"), **options)


def test_a_mask_that_no_step_would_draw_is_refused(key):
    table, masks = schedules.left_to_right(N), jnp.full(N, V)
    fixed = partial(lambda params, x_t, t: jnp.zeros((N, V)))
    message = "`x_0` must hold no mask where κ = 1 in the first row"
    with pytest.raises(ValueError, match=message):
        sample_on_table(key, (), fixed, masks, table, source="mask", start=2)
    context = jnp.array([True, False, False])
    other = schedules.with_context(table, jnp.array([False, True, False]))
    with pytest.raises(ValueError, match="`table` must start at κ = 0"):
        sample_infilling(key, (), fixed, jnp.ones(N, int), context, other)


@pytest.mark.slow
def test_no_step_gives_the_state_back_and_two_runs_are_one():
    here, table = evaluation_set("all masks"), ORDERS["any order"]
    run = partial(sample_on_table, params=lookup_of(here, table), denoiser=exact_denoiser)
    masks, options = jnp.full(N, V), {"table": table, "source": "mask"}
    np.testing.assert_array_equal(run(jax.random.key(0), x_0=masks, stop=0, **options), masks)

    @jax.jit
    @jax.vmap
    def both(data):
        """A key each: one that was consumed may not be consumed again."""
        keys = (jax.random.wrap_key_data(data) for _ in range(3))
        first = run(next(keys), x_0=masks, stop=2, **options)
        second = run(next(keys), x_0=first, start=2, **options)
        return second, run(next(keys), x_0=masks, **options)

    np.testing.assert_array_equal(*both(np.arange(20, dtype=np.uint32).reshape(10, 2)))


def test_a_last_row_that_is_1_to_rounding_is_1():
    table = np.float32([[0, 0, 0], [1, 1, 1]])
    table[1] -= np.float32(9e-7)
    np.testing.assert_array_equal(whole_table(table)[-1], 1)
    with pytest.raises(ValueError, match="`table` must end at κ = 1"):
        whole_table(0.999 * table)


def test_a_causal_network_is_no_denoiser():
    config = TransformerConfig(num_tokens=7, width=16, num_layers=1, num_heads=2, ffn_width=16)
    with pytest.raises(
        ValueError,
        match="`causal` must be False, because row i of a causal network is the distribution of",
    ):
        transformer_denoiser(config)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_what_is_said_of_a_revealed_token_is_not_read(method, key):
    def silent(params, x_t, t):
        """No distribution at all where a token stands."""
        return jnp.where((x_t == V)[:, None], jnp.zeros((N, V)), jnp.nan)

    table, masks = schedules.left_to_right(N), jnp.full(N, V)
    x = sample_on_table(key, (), silent, masks, table, source="mask", method=method)
    assert np.all(np.asarray(x) < V)


def spoilt(params, x_t, t):
    """What its parameter says, everywhere."""
    return jnp.full((N, V), params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "method"), [(np.nan, "clear"), (-np.inf, "clear"), (np.inf, "sparse")]
)
def test_logits_that_are_no_distribution_are_refused(bad, method, key):
    arguments = (np.float32(bad), spoilt, jnp.full(N, V), GOOD["table"])
    with pytest.raises(
        ValueError, match="must hold a finite number and no NaN where a token moves"
    ):
        sample_on_table(key, *arguments, source="mask", method=method)


def test_the_states_are_listed_as_ranked():
    assert [int(rank(z, S)) for z in STATES] == list(range(S**N))


@pytest.mark.parametrize("source", ["mask", pytest.param("tokens", marks=pytest.mark.slow)])
def test_steps_that_move_nobody_are_skipped_and_change_nothing(source):
    """Bit by bit the run of every step; the network meets only the steps that move somebody."""
    num_steps, width, met = 24, 3, []
    table = schedules.masked(schedules.linear(), num_steps, width)

    def denoiser(params, x_t, t):
        jax.debug.callback(lambda t: met.append(float(t)), t)
        rows = jnp.asarray(np.random.default_rng(0).normal(size=(V + 1, V)), jnp.float32)
        return rows[x_t] + t

    x_0 = jnp.full(width, V if source == "mask" else 0)
    options = {"source": source, "carry_over": None, "method": "sparse"}
    run = checked_run((), denoiser, x_0, **options)

    @jax.jit
    def every(key):
        def step(state, t):
            own = jax.random.fold_in(key, t)
            jump_prob = steps.step_size(table, t)
            return jumped(own, (), state, jump_prob, t / num_steps, run), None

        return jax.lax.scan(step, start(x_0), jnp.arange(num_steps))[0].x_t

    def sparse(key, denoiser):
        return sample_on_table(key, (), denoiser, x_0, table, **options)

    sample = jax.jit(lambda key: sparse(key, denoiser))
    for seed in range(4):
        key = jax.random.key(seed)
        expected = every(key)
        jax.effects_barrier()
        met.clear()
        found = sample(key)
        jax.effects_barrier()
        np.testing.assert_array_equal(found, expected)
        if source == "mask":  # each position moves once
            assert 1 <= len(met) <= width
        else:
            assert 1 <= len(met) < num_steps
        assert met == sorted(met)
    rows = jax.jit(jax.vmap(lambda key: sparse(key, quiet)))
    keys = jax.random.split(jax.random.key(9), 5)
    one = jax.jit(lambda key: sparse(key, quiet))
    one_by_one = [one(key) for key in keys]
    np.testing.assert_array_equal(rows(keys), one_by_one)


def quiet(params, x_t, t):
    """A denoiser of which a batch can be made."""
    return jnp.cos(jnp.arange(V)[None] * (x_t[:, None] + 1.0) + t)
