"""Paths beyond their statements: drawn samples against distributions, limits, edges; step sizes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from test_precision import program

from dfm_jax import exact, paths, schedules, steps, velocities

# The chance that a chi-square test of this project fails though the distribution is right. Keys are
# fixed: a test that passes once passes always, and one that is new is wrong once in a million
# times.
FALSE_ALARM = 1e-6


def assert_drawn_from(probs, counts):
    """Pearson's chi-square test at rate `FALSE_ALARM`; a value of probability 0 is never drawn."""
    probs, counts = np.asarray(probs, np.float64).ravel(), np.asarray(counts).ravel()
    assert np.all(counts[probs == 0] == 0), "a value of probability 0 was drawn"
    expected = counts.sum() * probs[probs > 0] / probs.sum()
    assert expected.min() >= 5, "too few draws for a chi-square test"
    statistic = np.sum((counts[probs > 0] - expected) ** 2 / expected)
    limit = stats.chi2.isf(FALSE_ALARM, expected.size - 1)
    assert statistic <= limit, f"chi-square {statistic:.1f} is above {limit:.1f}"


def draw(token_path, count, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: paths.sample_path(key, token_path)))(keys))


# ── samples ─────────────────────────────────────────────────────────────────────────────────────

TOKEN_PATH = np.array([[0.5, 0.3, 0.2, 0.0], [0.05, 0.0, 0.15, 0.8]])


@pytest.mark.statement("P3")
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_states_of_a_mixture_path_are_independent(count):
    """The joint distribution, of even and of odd numbers of positions."""
    kappa = jnp.array([0.5, 0.3, 0.75, 0.1])[:count]
    keys = jax.random.split(jax.random.key(count), 20_000)
    zeros, ones = jnp.zeros(count, int), jnp.ones(count, int)
    drawn = jax.jit(jax.vmap(lambda key: paths.sample_mixture(key, zeros, ones, kappa)))(keys)
    joint = np.ones(1)
    for share in np.asarray(kappa):
        joint = np.outer(joint, [1 - share, share]).ravel()
    assert_drawn_from(joint, np.bincount(drawn @ 2 ** np.arange(count)[::-1], minlength=2**count))


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_state_of_a_mixture_path_at_the_ends_and_of_any_generator(impl):
    """κ = 0 never arrives and κ = 1 always; between them, as often as κ says; no position."""
    key = lambda n: jax.random.key(n, impl=impl)  # noqa: E731
    zeros, ones = jnp.zeros(100_001, int), jnp.ones(100_001, int)
    assert not paths.sample_mixture(key(0), zeros, ones, 0.0).any()
    assert paths.sample_mixture(key(1), zeros, ones, 1.0).all()
    arrived = int(paths.sample_mixture(key(2), zeros, ones, 0.25).sum())
    assert_drawn_from([0.75, 0.25], [zeros.size - arrived, arrived])
    assert paths.sample_mixture(key(3), zeros[:0], ones[:0], 0.5).shape == (0,)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
@pytest.mark.parametrize("partitionable", [True, False])
def test_a_state_of_a_mixture_path_has_the_numbers_of_jax(count, partitionable):
    """Bit for bit, alone and mapped over keys, in either mode of threefry."""
    zeros, ones, kappa = jnp.zeros(count, int), jnp.ones(count, int), jnp.linspace(0, 1, count)
    keys = lambda: jax.random.split(jax.random.key(count), 50)  # noqa: E731
    with jax.threefry_partitionable(partitionable):
        uniforms = jax.jit(jax.vmap(lambda key: jax.random.uniform(key, (count,))))(keys())
        drawn = jax.jit(jax.vmap(lambda key: paths.sample_mixture(key, zeros, ones, kappa)))(keys())
        np.testing.assert_array_equal(drawn, uniforms < kappa[None])
        alone = paths.sample_mixture(keys()[3], zeros, ones, kappa)
    np.testing.assert_array_equal(alone, drawn[3])
    assert count < 1000 or 0 < np.mean(drawn) < 1


@pytest.mark.parametrize("compiled", [False, True])
def test_a_key_that_drew_a_state_of_a_mixture_path_is_used(compiled):
    key, zeros = jax.random.key(0), jnp.zeros(3, int)
    sample = jax.jit(paths.sample_mixture) if compiled else paths.sample_mixture
    sample(key, zeros, zeros + 1, 0.5)
    with pytest.raises(jax.errors.KeyReuseError):
        jax.random.uniform(key)


@pytest.mark.usefixtures("x64")
def test_a_state_of_a_mixture_path_in_float64_is_drawn_in_float64():
    zeros, ones, kappa = jnp.zeros(50, int), jnp.ones(50, int), jnp.linspace(0.0, 1.0, 50)
    np.testing.assert_array_equal(
        paths.sample_mixture(jax.random.key(0), zeros, ones, kappa),
        jax.random.uniform(jax.random.key(0), (50,), float) < kappa,
    )


@pytest.mark.statement("P1")
def test_samples_have_the_product_distribution_of_the_token_paths():
    x = draw(jnp.asarray(TOKEN_PATH), 20_000)
    counts = np.bincount(4 * x[:, 0] + x[:, 1], minlength=16)
    joint = np.outer(*TOKEN_PATH)
    assert_drawn_from(joint, counts)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(np.outer(TOKEN_PATH[0] + [0.03, -0.03, 0, 0], TOKEN_PATH[1]), counts)


@pytest.mark.statement("P1")
def test_positions_are_drawn_independently():
    x = draw(jnp.full((2, 2), 0.5), 10_000, seed=1)
    assert_drawn_from(np.full(4, 0.25), np.bincount(2 * x[:, 0] + x[:, 1], minlength=4))


@pytest.mark.slow
@pytest.mark.statement("P1", "P3")
@pytest.mark.usefixtures("x64")
def test_samples_of_a_float64_path_have_its_distribution():
    source, data = np.array([2, 2, 2]), np.array([0, 1, 1])
    kappa = jnp.array([0.25, 0.5, 1.0])
    x = draw(paths.mixture_path(source, data, kappa, num_states=3), 10_000, seed=2)
    assert np.all(x[:, 2] == 1)
    revealed = np.bincount(2 * (x[:, 0] == 0) + (x[:, 1] == 1), minlength=4)
    assert_drawn_from(np.outer([0.75, 0.25], [0.5, 0.5]), revealed)


HEAD, NUM_TOKENS, GAP = 137, 1000, 8.0  # 999 tokens, each exp(−8) of the head: together 0.251


def tail_path():
    probs = np.full(NUM_TOKENS, np.exp(-GAP))
    probs[HEAD] = 1.0
    return probs / probs.sum()


def tail_counts(x):
    """The head, and the tail in nine equal parts."""
    ranks = np.where(x < HEAD, x, x - 1)
    return np.bincount(np.where(x == HEAD, 0, 1 + ranks * 9 // (NUM_TOKENS - 1)), minlength=10)


def tail_probs():
    head = tail_path()[HEAD]
    return np.concatenate([[head], np.full(9, (1 - head) / 9)])


@pytest.mark.slow
@pytest.mark.statement("P1")
def test_a_long_tail_far_below_the_head_is_drawn_as_often_as_it_should_be():
    probs = tail_path()
    assert 1 - probs[HEAD] == pytest.approx(0.251, abs=1e-3)
    x = draw(jnp.asarray(probs)[None], 10_000, seed=3)[:, 0]
    assert_drawn_from(tail_probs(), tail_counts(x))


def test_a_tail_drawn_from_bfloat16_logits_is_seen_to_be_lost():
    """The twin of the test above: logits in bfloat16 fail it."""
    logits = jnp.log(jnp.asarray(tail_path())).astype(jnp.bfloat16)
    keys = jax.random.split(jax.random.key(4), 10_000)
    x = np.asarray(jax.jit(jax.vmap(lambda key: jax.random.categorical(key, logits)))(keys))
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(tail_probs(), tail_counts(x))


def test_probabilities_taken_for_logits_are_seen():
    keys = jax.random.split(jax.random.key(5), 10_000)
    probs = jnp.asarray(TOKEN_PATH[0, :3])
    x = np.asarray(jax.jit(jax.vmap(lambda key: jax.random.categorical(key, probs)))(keys))
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(probs, np.bincount(x, minlength=3))


def primitives(fn, *args):
    return [equation.primitive.name for equation in program(fn, *args)]


def test_the_draw_is_the_one_that_keeps_a_tail_of_more_than_16_nats():
    """Seen in the program, since samples would have to be billions: float32 and `mode="high"`."""

    def written_out(mode):
        def draw(key, token_path):
            logits = jnp.log(token_path).astype(jnp.float32)
            return jax.random.categorical(key, logits, axis=-1, mode=mode)

        return primitives(draw, jax.random.key(0), jnp.asarray(TOKEN_PATH))

    drawn = primitives(paths.sample_path, jax.random.key(0), jnp.asarray(TOKEN_PATH))
    for mode, same in (("high", True), ("low", False)):
        expected = written_out(mode)  # after the checks
        assert (drawn[-len(expected) :] == expected) is same


# ── limits and edges ────────────────────────────────────────────────────────────────────────────

# d[v, w] is not d[w, v]: on a symmetric table the one passes for the other.
DISTANCES = np.array([[0.0, 1.0, 2.5], [2.0, 0.0, 1.5], [3.0, 1.8, 0.0]])


@pytest.mark.statement("P6")
@pytest.mark.usefixtures("strict")
def test_a_metric_path_leaves_for_its_target_at_the_rate_of_the_nearest_token():
    """1 − p(x_1) falls like exp(−β d): its logarithm over β has slope −d(v, x_1), v the nearest."""
    beta = np.array([12.0, 16.0, 20.0])
    x_1 = np.array([0, 1, 2])
    probs = np.stack([paths.metric_path(x_1, jnp.asarray(DISTANCES), b) for b in beta])
    away = probs * (1 - np.eye(3))
    slope = np.polyfit(beta, np.log(away.sum(axis=-1)), 1)[0]
    np.testing.assert_allclose(slope, [-2.0, -1.0, -1.5], rtol=2e-3)


@pytest.mark.statement("P6")
@pytest.mark.usefixtures("strict")
def test_a_metric_path_begins_uniform_and_ends_at_its_target():
    x_1 = np.array([0, 1, 2])
    distances = jnp.asarray(DISTANCES)
    np.testing.assert_allclose(paths.metric_path(x_1, distances, 0.0), 1 / 3, rtol=1e-15)
    np.testing.assert_array_equal(paths.metric_path(x_1, distances, jnp.inf), np.eye(3))
    np.testing.assert_array_equal(paths.metric_path(x_1, distances, 1e4), np.eye(3))


@pytest.mark.statement("V8")
@pytest.mark.usefixtures("strict")
def test_the_metric_velocity_dies_as_beta_grows():
    """At its target a token has nowhere nearer to go; elsewhere all flow runs to nearer tokens."""
    x_1, beta = np.array([0, 0, 0]), 30.0
    u = velocities.metric_velocity(
        x_1, np.array([0, 1, 2]), 1.0, jnp.asarray(DISTANCES), lambda t: beta * t
    )
    np.testing.assert_allclose(u[0], 0, atol=1e-15)
    np.testing.assert_allclose(u[1], [2 * beta, -2 * beta, 0], atol=1e-10)
    np.testing.assert_allclose(u[2], [3 * beta, 0, -3 * beta], atol=1e-10)


@pytest.mark.slow
@pytest.mark.statement("P7")
@pytest.mark.usefixtures("strict")
def test_the_revealed_posterior_of_an_impossible_prefix_is_not_a_number():
    x_1 = jnp.array([[0, 1], [1, 0]])
    log_data = jnp.log(jnp.array([0.5, 0.5]))
    posterior = jax.jit(lambda z: paths.revealed_posterior(z, x_1, log_data, mask_id=2))
    np.testing.assert_allclose(posterior(np.array([2, 2])), 0.5)
    assert np.all(np.isnan(posterior(np.array([1, 1]))))
    assert paths.revealed_log_prob(np.array([1, 1]), x_1, log_data, mask_id=2) == -np.inf


def test_a_mask_is_a_state_of_its_own():
    np.testing.assert_array_equal(paths.point_mass(np.array([0, 2]), 3), [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(paths.pad_to_states(np.array([[0.5, 0.5]]), 3), [[0.5, 0.5, 0]])


@pytest.mark.usefixtures("strict")
def test_a_point_mass_has_the_dtype_asked_for():
    tokens = np.array([0, 1])
    assert paths.point_mass(tokens, 2).dtype == jnp.float64
    assert paths.point_mass(tokens, 2, dtype=jnp.float32).dtype == jnp.float32


@pytest.mark.statement("A2", "A5")
def test_the_mask_source_keeps_the_context():
    x_0 = paths.mask_source(np.array([1, 0, 1]), np.array([True, False, False]), mask_id=2)
    np.testing.assert_array_equal(x_0, [1, 2, 2])


@pytest.mark.slow
@pytest.mark.statement("P4")
@pytest.mark.usefixtures("strict")
def test_a_path_of_three_hundred_positions_does_not_underflow():
    """2 pairs whose probabilities are far below the smallest float64."""
    num_positions = 300
    token_paths = jnp.stack(
        [jnp.full((num_positions, 1000), 1e-3), jnp.full((num_positions, 1000), 1e-3)]
    )
    x_t = np.zeros(num_positions, int)
    log_coupling = jnp.log(jnp.array([0.25, 0.75]))
    log_prob = paths.marginal_log_prob(x_t, token_paths, log_coupling)
    np.testing.assert_allclose(log_prob, num_positions * np.log(1e-3), rtol=1e-13)
    np.testing.assert_allclose(
        paths.pair_posterior(x_t, token_paths, log_coupling), [0.25, 0.75], rtol=1e-11
    )


@pytest.mark.slow
@pytest.mark.statement("P5")
@pytest.mark.usefixtures("strict")
def test_the_token_posterior_agrees_with_counting():
    tokens = np.array([[0, 1], [0, 0], [1, 1]])
    weights = jnp.array([0.5, 0.2, 0.3])
    posterior = paths.token_posterior(weights, jnp.asarray(tokens), num_tokens=2)
    np.testing.assert_allclose(posterior, [[0.7, 0.3], [0.2, 0.8]], rtol=1e-15)


# ── a prompt in continuous time ─────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.statement("A5")
@pytest.mark.usefixtures("strict")
def test_a_prompt_never_moves_in_continuous_time():
    context = np.array([True, False])
    schedule = schedules.schedule_with_context(schedules.polynomial(2.0), context)
    for t in (0.0, 0.3, 0.9):
        np.testing.assert_allclose(schedule.kappa(t), [1.0, t**2], rtol=1e-15)
        np.testing.assert_allclose(schedules.rate(t, schedule)[0], 0)
        np.testing.assert_allclose(
            schedules.rate(t, schedule)[1], schedules.rate(t, schedules.polynomial(2.0))
        )
    moving = velocities.mixture_velocity(
        np.array([0, 1]), np.array([0, 2]), 0.3, schedule, num_states=3
    )
    np.testing.assert_array_equal(moving[0], 0)
    assert moving[1, 1] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("strict")
def test_a_prompted_schedule_under_jit_vmap_pmap_and_grad():
    schedule = schedules.schedule_with_context(schedules.cosine(), np.array([True, False]))

    def rate(t):
        return schedules.rate(t, schedule)

    times = jnp.linspace(0.1, 0.8, 8)
    once = jax.jit(chex.assert_max_traces(rate, n=1))
    loop = np.stack([once(t) for t in times])
    np.testing.assert_allclose(rate(times[3]), loop[3], rtol=1e-13)
    np.testing.assert_allclose(jax.jit(jax.vmap(rate))(times), loop, rtol=1e-13)
    np.testing.assert_allclose(jax.pmap(rate)(times), loop, rtol=1e-13)
    slope = jax.jit(jax.jacfwd(rate))(0.4)
    ahead, behind = (once(np.float64(0.4 + h)) for h in (1e-6, -1e-6))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-6)


# ── step sizes of any table ─────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.statement("Q2", "Q3")
@given(
    steps_taken=arrays(
        float, (4, 3), elements=st.sampled_from([0.0, 1e-12, 0.1, 1 / 3, 1.0]) | st.floats(0, 1)
    )
)
def test_the_step_size_of_any_table_lies_between_0_and_1(steps_taken):
    """κ from any steps, finished tokens and steps of length 0 among them."""
    total = np.cumsum(steps_taken, axis=0)
    inner = np.divide(total, total[-1], out=np.zeros_like(total), where=total[-1] > 0)
    table = np.concatenate([np.zeros((1, 3)), np.minimum(inner, 1.0), np.ones((1, 3))])
    with jax.enable_x64(True):
        schedules.check_table(table)
        for t in range(5):
            size = np.asarray(steps.step_size(table, t))
            assert np.all((size >= 0) & (size <= 1))
            assert np.all(size[table[t] == 1] == 0)
            now_and_then = (1 - table[t]) * (1 - size)
            np.testing.assert_allclose(now_and_then, 1 - table[t + 1], atol=1e-15)


@pytest.mark.statement("P3", "P4")
@pytest.mark.usefixtures("strict")
def test_the_path_of_a_listed_coupling_is_the_one_enumerated():
    """A coupling in which source and data hang together, at one κ per position."""
    rng = np.random.default_rng(0)
    joint = rng.dirichlet(np.ones(9 * 4)).reshape(9, 4)
    kappa = np.array([0.3, 0.8])
    x_0, x_1 = np.repeat(exact.states(3, 2), 4, axis=0), np.tile(exact.states(2, 2), (9, 1))

    @jax.jit
    def listed(states):
        token_paths = jax.vmap(lambda a, b: paths.mixture_path(a, b, kappa, num_states=3))(x_0, x_1)
        at = jax.vmap(paths.marginal_log_prob, in_axes=(0, None, None))
        return jnp.exp(at(states, token_paths, jnp.log(joint.ravel())))

    probs = exact.marginal_path(joint, exact.mixture_token_path(kappa, 2, 3))
    np.testing.assert_allclose(listed(exact.states(3, 2)), probs, atol=1e-15)
