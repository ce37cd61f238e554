"""S3–S5, V7: sampling in continuous time: orders of convergence, distributions, draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_distributions import (
    SOURCES,
    STATES,
    N,
    S,
    V,
    counts,
    embedded,
    evaluation_set,
    exact_denoiser,
    probs_of_run,
    run_of,
)
from test_paths import assert_drawn_from
from test_table_sampling import METHODS, restless

from dfm_jax import exact, paths, schedules, steps, velocities
from dfm_jax.sampling import (
    jumps,
    sample_adaptive,
    sample_corrected,
    sample_euler,
    sample_velocity,
)
from dfm_jax.sampling.corrected import corrected_rows
from dfm_jax.sampling.euler import euler_jump_probs

FREE = np.zeros(N, bool)
SCHEDULES = {
    "cosine": schedules.cosine(),
    "quadratic": schedules.polynomial(2.0),
    "linear": schedules.linear(),
}
END = 0.8
SIZES = np.array([64, 128])


def kappas(schedule, times):
    values = np.asarray(jax.jit(jax.vmap(schedule.kappa))(np.asarray(times, float)))
    return np.repeat(values[:, None], N, axis=1)


@partial(jax.jit, static_argnames="schedule")
def jump_probs_of(times, *, schedule):
    return euler_jump_probs(schedule, times, FREE)


def euler_probs(here, schedule, times, *, carry_over):
    """The distribution of `sample_euler` at every time of its grid, and p_t there."""
    at = kappas(schedule, times)
    params = here.lookup(times[:-1], at[:-1])
    jump_probs = jump_probs_of(np.asarray(times), schedule=schedule)
    run = run_of(exact_denoiser, carry_over=carry_over)
    truth = np.array([here.probs(kappa) for kappa in at])
    return probs_of_run(truth[0], params, jump_probs, times[:-1], run), truth


def slope(errors):
    return np.log(errors[1] / errors[0]) / np.log(SIZES[0] / SIZES[1])


@pytest.mark.slow
@pytest.mark.statement("S3")
@pytest.mark.parametrize(
    ("source", "schedule"),
    [
        ("all masks", "cosine"),
        ("any distribution", "quadratic"),
        pytest.param("uniform", "cosine", marks=pytest.mark.exhaustive),
        pytest.param("all masks", "linear", marks=pytest.mark.exhaustive),
        pytest.param("uniform", "quadratic", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.usefixtures("x64")
def test_a_run_of_euler_is_off_by_the_size_of_its_steps(source, schedule):
    errors, schedule = [], SCHEDULES[schedule]
    for count in SIZES:
        times = np.linspace(0, END, count + 1)
        probs, truth = euler_probs(
            evaluation_set(source), schedule, times, carry_over=source == "all masks"
        )
        errors.append(exact.total_variation(probs[-1], truth[-1]))
    np.testing.assert_allclose(slope(errors), 1, atol=0.06)


@pytest.mark.slow
@pytest.mark.statement("S3")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.usefixtures("x64")
def test_a_step_of_euler_is_off_by_the_square_of_its_size(source):
    errors, schedule, here = [], SCHEDULES["cosine"], evaluation_set(source)
    for count in SIZES:
        times = np.array([0.4, 0.4 + 1 / count])
        probs, truth = euler_probs(here, schedule, times, carry_over=source == "all masks")
        errors.append(exact.total_variation(probs[-1], truth[-1]))
    np.testing.assert_allclose(slope(errors), 2, atol=0.1)


@pytest.mark.slow
@pytest.mark.statement("S3", "S2")
@pytest.mark.usefixtures("x64")
def test_for_a_linear_schedule_the_jump_probs_are_those_of_the_table():
    times = np.linspace(0, 1, 9)
    table = jnp.asarray(schedules.masked(schedules.linear(), 8, N), float)
    exactly = jax.jit(jax.vmap(steps.step_size, (None, 0)))(table, np.arange(8))
    jump_probs = jump_probs_of(times, schedule=schedules.linear())
    np.testing.assert_allclose(jump_probs, exactly, atol=1e-14)
    other = jump_probs_of(times[:-1], schedule=schedules.cosine())
    assert np.max(np.abs(other - np.asarray(exactly)[:-1])) > 0.05


def euler_draws(here, schedule, times, *, method, carry_over, count, seed=0):
    params = here.lookup(times[:-1], kappas(schedule, times)[:-1])

    def one(key):
        source_key, key = jax.random.split(key)
        x_0 = jax.random.categorical(source_key, jnp.log(jnp.asarray(here.source)), mode="high")
        return sample_euler(
            key,
            params,
            exact_denoiser,
            x_0,
            schedule,
            jnp.asarray(times, jnp.float32),
            source="mask",
            carry_over=carry_over,
            method=method,
        )

    return counts(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), count)))


@pytest.mark.slow
@pytest.mark.statement("S3", "S4")
@pytest.mark.parametrize(
    ("source", "method"), [("all masks", "sparse"), ("any distribution", "clear")]
)
def test_draws_have_the_distribution_of_euler_and_its_last_step(source, method):
    """Chi-square at 1e-6; so coarse that neither the path's distribution nor the data's would
    pass.
    """
    schedule, times = SCHEDULES["quadratic"], np.array([0.0, 0.4, 0.7, 1.0])
    here, carry_over = evaluation_set(source), source == "all masks"
    with jax.enable_x64(True):
        probs = euler_probs(here, schedule, times, carry_over=carry_over)[0][-1]
    seen = euler_draws(here, schedule, times, method=method, carry_over=carry_over, count=60_000)
    assert_drawn_from(probs, seen)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(embedded(here.data), seen)


def velocity_draws(velocity, params, x_0_probs, times, count, **options):
    def one(key):
        source_key, key = jax.random.split(key)
        x_0 = jax.random.categorical(source_key, jnp.log(jnp.asarray(x_0_probs)), mode="high")
        return sample_velocity(key, params, velocity, x_0, jnp.float32(times), **options)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(5), count))


@pytest.mark.slow
@pytest.mark.statement("S3", "V5")
def test_draws_by_the_velocity_of_a_mixture_path_have_the_distribution_of_euler():
    """Chi-square at 1e-6, against the distribution of `sample_euler` by enumeration; not the path's
    own.
    """
    here, schedule, times = (
        evaluation_set("any distribution"),
        SCHEDULES["quadratic"],
        np.array([0.0, 0.4, 0.7]),
    )
    with jax.enable_x64(True):
        probs, truth = euler_probs(here, schedule, times, carry_over=False)

    def velocity(params, x_t, t):
        posterior = jnp.exp(exact_denoiser(params, x_t, t))
        return velocities.posterior_to_velocity(posterior, x_t, t, schedule, num_states=S)

    params = here.lookup(times[:-1], kappas(schedule, times)[:-1])
    seen = counts(velocity_draws(velocity, params, here.source, times, 60_000))
    assert_drawn_from(probs[-1], seen)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(truth[-1], seen)


TARGET, DISTANCES = jnp.array([2, 0]), np.array([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]], np.float32)


def metric_velocity(params, x_t, t):
    return velocities.metric_velocity(TARGET, x_t, t, jnp.asarray(DISTANCES), lambda t: t)


@pytest.mark.slow
@pytest.mark.statement("S3", "V8")
def test_draws_by_a_metric_velocity_have_the_distribution_of_its_frozen_rates():
    """Each position alone, pushed through δ + h u in NumPy: chi-square at 1e-6."""
    times = np.array([0.0, 0.3, 0.6, 0.9])
    probs = np.full((2, 3), 1 / 3)
    for t, h in zip(times, np.diff(times), strict=False):
        for i, target in enumerate([2, 0]):
            weights = np.exp(-t * DISTANCES[:, target].astype(float))
            path = weights / weights.sum()
            step = np.zeros((3, 3))  # [v, z]
            for z in range(3):
                nearer = np.maximum(DISTANCES[z, target] - DISTANCES[:, target], 0)
                step[:, z] = h * path * nearer
                step[z, z] = 1 - step[:, z].sum()
            probs[i] = step @ probs[i]
    found = velocity_draws(metric_velocity, (), np.full((2, 3), 1 / 3), times, 40_000)
    seen = np.bincount(np.asarray(found) @ [3, 1], minlength=9)
    assert_drawn_from(np.outer(*probs), seen)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(np.full(9, 1 / 9), seen)


def test_a_velocity_leaves_the_context_and_is_refused_where_a_step_is_no_distribution(key):
    x_0, times = jnp.array([0, 1]), jnp.array([0.0, 0.5])
    fast, context = lambda params, x_t, t: 100 * metric_velocity(params, x_t, t), jnp.ones(2, bool)
    found = sample_velocity(key, (), fast, x_0, times, context=context)
    np.testing.assert_array_equal(found, x_0)
    message = "`velocity` must make δ \\+ h u a distribution: .*; got valid = False"
    with pytest.raises(ValueError, match=message):
        sample_velocity(key, (), fast, x_0, times)
    with pytest.raises(ValueError, match=r"`x_0` must hold ids in \[0, 2\]"):
        sample_velocity(key, (), metric_velocity, jnp.array([0, 3]), times)
    with pytest.raises(ValueError, match=r"with N = 2, the number of positions; got velocity.* = "):
        sample_velocity(key, (), lambda params, x_t, t: jnp.zeros((1, 2, 3)), x_0, times)


@pytest.mark.slow
@pytest.mark.statement("S3", "P4")
def test_a_run_that_ends_early_is_nearly_a_draw_of_the_path_there():
    here, schedule, times = (
        evaluation_set("any distribution"),
        SCHEDULES["cosine"],
        np.linspace(0, 0.5, 65),
    )
    seen = euler_draws(here, schedule, times, method="sparse", carry_over=False, count=20_000)
    truth = here.probs(kappas(schedule, times)[-1])
    assert exact.total_variation(seen / seen.sum(), truth) < 0.02
    assert exact.total_variation(seen / seen.sum(), embedded(here.data)) > 0.1


@pytest.mark.slow
@pytest.mark.statement("S4")
@pytest.mark.parametrize("method", METHODS)
def test_revealed_tokens_and_context_never_change(method, key):
    context, x_0 = jnp.array([False, True, False]), jnp.array([V, 1, 0])

    @jax.jit
    def draw(key):
        return sample_euler(
            key,
            (),
            restless,
            x_0,
            schedules.linear(),
            jnp.linspace(0, 1, 6),
            source="mask",
            context=context,
            method=method,
        )

    for index in range(20):
        x = draw(jax.random.fold_in(key, index))
        assert x[0] != V
        np.testing.assert_array_equal(x[1:], x_0[1:])


@pytest.mark.slow
@pytest.mark.statement("S4")
def test_a_mask_is_drawn_at_the_end_though_its_schedule_has_ended(key):
    """κ reaches 1 at t = ½ with a rate that Euler's steps fall short of."""
    ended = schedules.Schedule(
        lambda t: jnp.minimum(2 * jnp.asarray(t), 1.0) ** 2,
        lambda t: jnp.log1p(-(jnp.minimum(2 * jnp.asarray(t), 1.0) ** 2)),
    )
    times = jnp.array([0.0, 0.25, 0.5, 1.0])

    def draw(key):
        return sample_euler(key, (), restless, jnp.full(N, V), ended, times, source="mask")

    rows = jax.jit(jax.vmap(draw))(jax.random.split(key, 50))
    assert not np.any(np.asarray(rows) == V)


@pytest.mark.slow
@pytest.mark.statement("S3")
def test_a_run_that_ends_before_the_end_leaves_its_masks(key):
    """In a step of 1e-6 no token has come: the last step of a run is the last only at t = 1."""
    times, masks = jnp.array([0.0, 1e-6]), jnp.full(N, V)

    def draw(key):
        return sample_euler(key, (), restless, masks, schedules.linear(), times, source="mask")

    np.testing.assert_array_equal(jax.jit(draw)(key), masks)


# ── steps back ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.statement("P5")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.usefixtures("strict")
def test_the_posterior_of_the_source_follows_from_that_of_the_data(source):
    here, kappa = evaluation_set(source), np.array([0.3, 0.6, 0.9])
    token_path = exact.mixture_token_path(kappa, V, S)
    data, origin, support = exact.posteriors(here.coupling, token_path)
    posterior = jax.jit(jax.vmap(paths.source_posterior, (0, None, 0, None)))
    found = posterior(np.where(support[:, None, None], data, 0.5), here.source, STATES, kappa)
    np.testing.assert_allclose(np.asarray(found)[support], origin[support], atol=1e-13)


@partial(jax.jit, static_argnames="schedule")
def corrected_rows_of_step(params, source, size, t, inner, beta, *, schedule):
    """The step distributions at every state: one program of a schedule, for all sources and
    steps.
    """
    run = run_of(exact_denoiser, carry_over=False)

    def at(z):
        row = (size, t, inner, beta, jnp.array(False))
        return corrected_rows(params, jumps.start(z), source, FREE, row, schedule=schedule, run=run)

    return jax.vmap(lambda z: at(z)[0])(jnp.asarray(STATES))


def corrected_probs(here, schedule, times, beta, *, alpha_gap=0.0):
    at = kappas(schedule, times)
    params, probs = here.lookup(times[:-1], at[:-1]), here.probs(at[0])
    source = jnp.asarray(here.source)
    for size, t, b in zip(np.diff(times) * (1 + alpha_gap), times[:-1], beta, strict=True):
        row = (float(size), float(t), float(t) if b > 0 else 0.5, float(b))
        rows = corrected_rows_of_step(params.at(t), source, *row, schedule=schedule)
        probs = exact.push_forward(probs, np.asarray(rows))
    return probs, here.probs(at[-1])


@pytest.mark.slow
@pytest.mark.statement("V7", "S3", "S5")
@pytest.mark.parametrize(
    "source",
    [
        "all masks",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("uniform", "any distribution")),
    ],
)
@pytest.mark.usefixtures("x64")
def test_steps_back_keep_the_path_to_the_first_order(source):
    errors = []
    for count in SIZES:
        times = np.linspace(0, END, count + 1)
        beta = np.where(times[:-1] > 0.1, 0.5, 0.0)
        errors.append(
            exact.total_variation(
                *corrected_probs(evaluation_set(source), SCHEDULES["quadratic"], times, beta)
            )
        )
    np.testing.assert_allclose(slope(errors), 1, atol=0.12)
    # The falsifier: α and β of another flow do not converge.
    falsified = corrected_probs(
        evaluation_set(source), SCHEDULES["quadratic"], times, beta, alpha_gap=0.1
    )
    assert exact.total_variation(*falsified) > 3 * errors[-1]


def corrected_draws(here, schedule, times, beta, *, count, **options):
    params = here.lookup(times[:-1], kappas(schedule, times)[:-1])

    def one(key):
        x_0 = jnp.full(N, V)
        return sample_corrected(
            key,
            params,
            exact_denoiser,
            x_0,
            schedule,
            jnp.asarray(times, jnp.float32),
            jnp.asarray(here.source, jnp.float32),
            jnp.asarray(beta, jnp.float32),
            **options,
        )

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count))


@pytest.mark.slow
@pytest.mark.statement("V7", "S4")
def test_corrected_draws_have_the_distribution_of_their_steps():
    here, schedule = evaluation_set("all masks"), SCHEDULES["linear"]
    times, beta = np.array([0.0, 0.25, 0.5, 0.7]), np.array([0.0, 0.3, 0.3])
    with jax.enable_x64(True):
        probs, _ = corrected_probs(here, schedule, times, beta)
    assert_drawn_from(probs, counts(corrected_draws(here, schedule, times, beta, count=60_000)))


@pytest.mark.slow
@pytest.mark.statement("V7", "S4")
def test_a_step_back_masks_a_token_and_the_last_step_fills_it():
    here, schedule = evaluation_set("all masks"), SCHEDULES["linear"]
    times, beta = np.linspace(0, 1, 21), np.r_[0.0, np.full(19, 0.4)]
    beta[times[:-1] > 0.9] = 0.0
    rows = np.asarray(corrected_draws(here, schedule, times, beta, count=2_000))
    assert np.all(rows != V)
    # From a finished sequence, one step back and no step on: some tokens are masks again.
    params = here.lookup([0.5], kappas(schedule, [0.5]))

    def again(key):
        return sample_corrected(
            key,
            params,
            exact_denoiser,
            jnp.array([0, 1, 0]),
            schedule,
            jnp.array([0.5, 0.75]),
            jnp.asarray(here.source, jnp.float32),
            jnp.array([0.45]),
            context=jnp.array([True, False, False]),
        )

    keys = jax.random.split(jax.random.key(0), 400)
    rows = np.asarray(jax.jit(jax.vmap(again))(keys))
    assert np.all(rows[:, 0] == 0)
    # β h κ̇/κ = 0.225 of the others; five standard errors.
    assert np.mean(rows[:, 1:] == V) == pytest.approx(0.225, abs=5 * np.sqrt(0.225 * 0.775 / 800))


@pytest.mark.slow
@pytest.mark.statement("S4")
def test_steps_back_leave_no_mask_though_its_schedule_has_ended(key):
    """Where κ has reached 1 a mask is pending still; a token is not, nor what is given."""
    ended = schedules.Schedule(
        lambda t: jnp.minimum(2 * jnp.asarray(t), 1.0) ** 2,
        lambda t: jnp.log1p(-(jnp.minimum(2 * jnp.asarray(t), 1.0) ** 2)),
    )
    run, fixed = run_of(restless, carry_over=True), np.array([False, False, True])
    state = jumps.start(jnp.array([V, 1, 0]))
    size, t, inner, beta, ends = 0.25, 0.75, 0.5, 0.0, True
    row = [jnp.asarray(value) for value in (size, t, inner, beta, ends)]
    source = jnp.asarray(SOURCES["all masks"])

    @jax.jit
    def rows(state, row):
        probs, valid = corrected_rows((), state, source, fixed, row, schedule=ended, run=run)
        return probs, valid, jax.nn.softmax(restless((), state.x_t, 0.5))

    probs, valid, drawn = rows(state, row)
    drawn = np.pad(drawn, ((0, 0), (0, 1)))
    assert valid
    np.testing.assert_allclose(probs[0], drawn[0], rtol=1e-6)
    np.testing.assert_array_equal(probs[1:], np.eye(S)[[1, 0]])


# ── steps of their own size ─────────────────────────────────────────────────────────────────────


def adaptive_draws(source, jumps_a_step, *, end, finish, count):
    here, schedule = evaluation_set(source), SCHEDULES["cosine"]
    times = np.linspace(0, end, 400)
    params = here.lookup(times, kappas(schedule, times))

    def one(key):
        source_key, key = jax.random.split(key)
        x_0 = jax.random.categorical(source_key, jnp.log(jnp.asarray(here.source)), mode="high")
        return sample_adaptive(
            key,
            params,
            exact_denoiser,
            x_0,
            schedule,
            source="mask",
            jumps=jumps_a_step,
            largest_step=0.05,
            end=end,
            finish=finish,
            max_steps=2_000,
            carry_over=source == "all masks",
        )

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count))
    return here, counts(found.tokens), np.asarray(found.num_steps)


@pytest.mark.slow
@pytest.mark.statement("S3", "P4")
@pytest.mark.parametrize("source", ["all masks", "uniform"])
def test_steps_of_their_own_size_draw_from_the_path(source):
    end = 0.7
    here, fine, many = adaptive_draws(source, 0.03, end=end, finish=False, count=20_000)
    truth = here.probs(kappas(SCHEDULES["cosine"], [end])[0])
    assert exact.total_variation(fine / fine.sum(), truth) < 0.02
    assert np.ptp(many) > 0  # the size follows the state
    if source == "all masks":
        _, coarse, few = adaptive_draws(source, 1.0, end=end, finish=False, count=20_000)
        assert exact.total_variation(coarse / coarse.sum(), truth) > 0.025
        assert np.mean(few) < 0.5 * np.mean(many)


@pytest.mark.slow
@pytest.mark.statement("S3")
def test_no_step_is_longer_than_the_rate_of_a_token_allows(key):
    """Where no jump is expected ε asks for steps without end, and h κ̇/(1 − κ) ≤ 1 holds them."""

    def content(params, x_t, t):
        return jnp.where(jnp.arange(V)[None] == x_t[:, None], 0.0, -jnp.inf)

    early = schedules.Schedule(lambda t: 1 - (1 - t) ** 2, lambda t: 2 * jnp.log1p(-t))
    found = sample_adaptive(
        *(key, (), content, jnp.zeros(N, int), early),
        source="tokens",
        jumps=1.0,
        largest_step=1.0,
        end=0.9,
        finish=False,
        max_steps=9,
    )
    assert found.num_steps == 4  # h = (1 − t)/2: to 0.5, 0.75, 0.875 and the end
    np.testing.assert_array_equal(found.tokens, 0)


@pytest.mark.slow
@pytest.mark.statement("S4")
def test_a_finished_run_has_no_mask_left():
    here, seen, _ = adaptive_draws("all masks", 0.1, end=0.95, finish=True, count=20_000)
    assert exact.total_variation(seen / seen.sum(), embedded(here.data)) < 0.02


def test_a_source_of_tokens_is_not_carried_over(key):
    source = jnp.asarray(SOURCES["uniform"], jnp.float32)
    arguments = (restless, jnp.zeros(N, int), schedules.linear(), jnp.array([0.2, 0.4]), source)
    message = "`carry_over` must be False if the source holds tokens; got carry_over = True"
    with pytest.raises(ValueError, match=message):
        sample_corrected(key, (), *arguments, jnp.zeros(1))


# ── refusals ────────────────────────────────────────────────────────────────────────────────────


SINE = schedules.from_function(lambda t: jnp.sin(jnp.pi / 2 * t))  # concave: its rate is the larger


def euler(key, **change):
    options = {"x_0": jnp.full(N, V), "schedule": schedules.linear(), "source": "mask"}
    options |= {"times": jnp.linspace(0, 1, 5)} | change
    x_0, schedule, times = (options.pop(name) for name in ("x_0", "schedule", "times"))
    return sample_euler(key, (), restless, x_0, schedule, times, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": jnp.array([0.5, 0.2])}, r"`times` must increase; got diff\(times\)"),
        ({"times": jnp.array([0.5, 1.2])}, r"`times` must lie in \[0, 1\]"),
        (
            {"times": jnp.array([0.5])},
            "`the number of times` must be at least 2; got the number of times = 1",
        ),
        (
            {"times": jnp.array([0.5, 0.99]), "schedule": SINE},
            r"`times` must have steps h ≤ \(1 − κ\)/κ̇; got max h κ̇/\(1 − κ\) = ",
        ),
        ({"x_0": jnp.array([0, -1, 1])}, r"`x_0` must hold ids in \[0, 2\]"),
    ],
)
def test_a_bad_run_of_euler_is_refused(change, message, key):
    with pytest.raises(ValueError, match=message):
        euler(key, **change)


@pytest.mark.parametrize(
    ("times", "beta", "message"),
    [
        ([0.2, 0.4], [-0.1], r"`beta` must lie in \[0, inf\); got beta\[0\] = -0.1"),
        (
            [0.2, 0.4],
            [0.1, 0.1],
            r"`beta` must have 1 entries, one for each step; got beta.shape = \(2,\)",
        ),
        ([0.0, 0.4], [0.1], "`beta` must be 0 where κ_t = 0"),
        ([0.01, 0.4], [2.0], r"`times` must have steps h with h \[\(1 \+ β\)"),
    ],
)
def test_bad_steps_back_are_refused(times, beta, message, key):
    source = jnp.asarray(SOURCES["all masks"], jnp.float32)
    with pytest.raises(ValueError, match=message):
        sample_corrected(
            key,
            (),
            restless,
            jnp.full(N, V),
            schedules.linear(),
            jnp.array(times),
            source,
            jnp.array(beta),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jumps": 0.0}, r"`jumps` must lie in \(0, 1\]; got jumps = 0.0"),
        ({"end": 1.0}, r"`end` must lie in \(0, 1\); got end = 1.0"),
        ({"start": 0.9}, "`end` must be larger than `start`; got end = 0.8"),
        ({"max_steps": 3}, "The sampler must reach `end` within `max_steps` = 3 steps; got t = "),
    ],
)
def test_a_bad_adaptive_run_is_refused(change, message, key):
    options = {"jumps": 0.1, "largest_step": 0.1, "end": 0.8, "finish": False, "max_steps": 99}
    with pytest.raises(ValueError, match=message):
        sample_adaptive(
            key,
            (),
            restless,
            jnp.full(N, V),
            schedules.linear(),
            source="mask",
            **options | change,
        )
