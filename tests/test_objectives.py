"""Objectives beyond their statements: the grid bound's limit, exact weights, edges, gradients."""

import math
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import fast, objectives, schedules, steps, velocities

V, N = 3, 3


# ── L5 tends to L3 as the grid is refined ───────────────────────────────────────────────────────

MASKS = np.array(list(product([False, True], repeat=N)))  # every way to mask x_1
X_1 = np.array([2, 0, 1])
STATES = np.where(MASKS, V, X_1)
FREE = np.zeros(N, bool)


@pytest.fixture
def log_posterior():
    """A time-free model at every masked state: [2^N, N, V]."""
    logits = np.random.default_rng(0).normal(size=(2**N, N, V))
    return jax.nn.log_softmax(jnp.asarray(logits))


@jax.jit
def any_order_nll(log_posterior):
    def at(rows, x_t):
        return objectives.any_order_loss(rows, X_1, x_t, FREE)

    return jnp.sum(jax.vmap(at)(log_posterior, jnp.asarray(STATES)))


@jax.jit
def grid_bound(log_posterior, table):
    """Σ_t Σ_i λ_t^i E[1[X_t^i = m] (−log p̂^i(x_1^i | X_t))], the average over all masks."""

    def at_step(t):
        size = steps.step_size(table, t)

        def at(rows, x_t):
            return jnp.sum(objectives.step_loss(rows, X_1, x_t, size))

        mass = jnp.prod(jnp.where(MASKS, 1 - table[t], table[t]), axis=-1)
        return jnp.sum(mass * jax.vmap(at)(log_posterior, jnp.asarray(STATES)))

    return jnp.sum(jax.vmap(at_step)(jnp.arange(table.shape[0] - 1)))


SCHEDULES = {
    "linear": schedules.linear(),
    "polynomial": schedules.polynomial(2.0),
    "cosine": schedules.cosine(),
}
GRIDS = np.array([64, 128, 256, 512])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.statement("L5", "L3")
@pytest.mark.usefixtures("strict")
def test_the_grid_bound_tends_to_the_any_order_loss_for_every_schedule(schedule, log_posterior):
    """The distance falls like 1/T."""
    limit = any_order_nll(log_posterior)
    gaps = [
        abs(grid_bound(log_posterior, schedules.masked(schedule, int(T), N)) - limit) for T in GRIDS
    ]
    slopes = np.diff(np.log(gaps)) / np.diff(np.log(GRIDS))
    np.testing.assert_allclose(slopes, -1, atol=0.05)


@pytest.mark.statement("L3")
@pytest.mark.usefixtures("strict")
def test_the_weights_of_all_masks_over_a_position_sum_to_one():
    """A model that is sure of nothing pays log V per position, whatever the order."""
    flat = jnp.full((2**N, N, V), -math.log(V))
    np.testing.assert_allclose(any_order_nll(flat), N * math.log(V), rtol=1e-14)


@pytest.mark.statement("L3")
@pytest.mark.usefixtures("strict")
def test_the_any_order_weight_is_a_ratio_of_factorials():
    for n in range(1, 8):
        for a in range(n):
            expected = math.factorial(a) * math.factorial(n - a - 1) / math.factorial(n)
            weight = objectives.any_order_log_weight(a, n - a)
            assert weight.dtype == jnp.float64
            np.testing.assert_allclose(np.exp(weight), expected, rtol=1e-13)


@pytest.mark.statement("L3")
def test_the_any_order_weight_of_a_long_sequence_does_not_underflow():
    """a! (M−1)!/N! at a = N/2 is near 2^−N/…: only its logarithm is a float32."""
    expected = 2 * math.lgamma(50_001) - math.log(50_000) - math.lgamma(100_001)
    weight = objectives.any_order_log_weight(50_000, 50_000)
    assert np.exp(weight) == 0
    np.testing.assert_allclose(weight, expected, rtol=1e-5)


# ── losses take logits ──────────────────────────────────────────────────────────────────────────

LOGITS = 3 * np.random.default_rng(21).normal(size=(5, 5))
DATA, NOW = np.array([0, 3, 1, 4, 2]), np.array([5, 2, 1, 5, 0])  # masks, one arrived, two others
GIVEN = np.arange(5) == 2
SIZES = np.linspace(0.1, 0.9, 5)


def log_probs(logits):
    """By its definition, in float64."""
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def kl_integrand(log_p):
    p, rows = np.append(np.exp(log_p), np.zeros((5, 1)), axis=1), np.arange(5)
    arrived = NOW == DATA
    return -(p[rows, NOW] - arrived + ~arrived * log_p[rows, DATA]) / 0.7


# Each loss of one array of logits, and its definition from log p̂.
LOSSES = {
    "cross_entropy_loss": (
        lambda z: objectives.cross_entropy_loss(z, DATA),
        lambda log_p: -log_p[np.arange(5), DATA],
    ),
    "generalized_kl_loss": (
        lambda z: objectives.generalized_kl_loss(z, DATA, NOW, 0.3, schedules.linear()),
        kl_integrand,
    ),
    "any_order_loss": (  # a = 2 of four free positions are revealed, M = 2 masked: 2! 1!/4!
        lambda z: objectives.any_order_loss(z, DATA, NOW, GIVEN),
        lambda log_p: -log_p[np.arange(5), DATA] * (NOW == 5) / 12,
    ),
    "step_loss": (
        lambda z: objectives.step_loss(z, DATA, NOW, SIZES),
        lambda log_p: -log_p[np.arange(5), DATA] * (NOW == 5) * SIZES,
    ),
    "router_loss": (
        lambda z: jax.vmap(objectives.router_loss)(z, jnp.asarray(DATA)),
        lambda log_p: -log_p[np.arange(5), DATA],
    ),
    "fast.cross_entropy": (
        lambda z: fast.cross_entropy(z, DATA, jnp.float32(SIZES)),
        lambda log_p: -log_p[np.arange(5), DATA] @ SIZES,
    ),
    "fast.generalized_kl": (
        lambda z: fast.generalized_kl(z, DATA, NOW, jnp.full(5, 1 / 0.7, jnp.float32)),
        lambda log_p: np.sum(kl_integrand(log_p)),
    ),
}


def test_every_loss_is_in_the_table():
    """What is named a loss and takes what a network gives."""
    named = {name for name in vars(objectives) if name.endswith("_loss")}
    assert named - set(LOSSES) == {"decentralized_loss"}  # of losses


@pytest.mark.parametrize(("loss", "definition"), LOSSES.values(), ids=LOSSES)
def test_a_loss_normalizes_its_logits(loss, definition):
    """Under jit raw logits once gave a plausible number, even a negative one."""
    loss = jax.jit(loss)
    value = loss(jnp.float32(LOGITS))
    np.testing.assert_allclose(value, definition(log_probs(LOGITS)), rtol=2e-6)
    moved = LOGITS + 10 * np.arange(-2.0, 3.0)[:, None]
    np.testing.assert_allclose(loss(jnp.float32(moved)), value, rtol=2e-6)
    np.testing.assert_allclose(loss(jax.nn.log_softmax(jnp.float32(LOGITS))), value, rtol=2e-6)
    wrong = definition(LOGITS)  # the falsifier
    assert np.max(np.abs(wrong - value)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "definition"), LOSSES.values(), ids=LOSSES)
def test_of_half_precision_logits_a_loss_is_computed_in_float32(loss, definition):
    half = jnp.bfloat16(LOGITS)
    value = loss(half)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, definition(log_probs(np.float64(half))), rtol=2e-6)


@pytest.mark.slow
def test_a_row_of_impossible_tokens_costs_infinitely_much_and_is_never_nan():
    never = jnp.full((5, 5), -jnp.inf)
    for name, pays in {
        "cross_entropy_loss": np.ones(5, bool),
        "generalized_kl_loss": NOW != DATA,
        "any_order_loss": NOW == 5,
        "step_loss": NOW == 5,
    }.items():
        loss = LOSSES[name][0]
        value, slopes = loss(never), jax.jacobian(loss)(never)
        np.testing.assert_array_equal(value == jnp.inf, pays)
        assert not np.any(np.isnan(value))
        np.testing.assert_array_equal(slopes, 0)


# ── edges ───────────────────────────────────────────────────────────────────────────────────────

ROWS = np.log(
    np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]),
    where=[[1, 1, 1], [1, 0, 0]],
    out=np.full((2, 3), -np.inf),
)


@pytest.mark.statement("L5", "A4")
@pytest.mark.usefixtures("strict")
def test_a_revealed_token_costs_nothing_though_the_model_calls_it_impossible():
    x_1, x_t = np.array([1, 2]), np.array([V, 2])
    for loss in (
        objectives.step_loss(jnp.asarray(ROWS), x_1, x_t, jnp.full(2, 0.5)),
        objectives.any_order_loss(jnp.asarray(ROWS), x_1, x_t, FREE[:2]),
    ):
        assert loss[0] > 0
        assert loss[1] == 0


@pytest.mark.statement("L5")
@pytest.mark.usefixtures("strict")
def test_an_impossible_masked_token_costs_infinitely_much():
    x_1, x_t = np.array([1, 2]), np.array([V, V])
    loss = objectives.step_loss(jnp.asarray(ROWS), x_1, x_t, jnp.full(2, 0.5))
    np.testing.assert_allclose(loss, [0.5 * math.log(4), np.inf])


@pytest.mark.statement("L5")
@pytest.mark.usefixtures("strict")
def test_what_does_not_move_costs_nothing():
    """A token the model calls impossible, at λ = 0 or revealed: 0, not 0 · ∞; the first's cost is
    ∞ for any λ > 0, and so is its derivative.
    """
    x_1, x_t = np.array([2, 2]), np.array([V, 2])

    def loss(size):
        rows = jnp.asarray(ROWS[[1, 1]])
        return jnp.sum(objectives.step_loss(rows, x_1, x_t, size))

    assert loss(jnp.array([0.0, 0.5])) == 0
    np.testing.assert_array_equal(jax.grad(loss)(jnp.array([0.0, 0.5])), [np.inf, 0])


@pytest.mark.statement("L2", "B8")
@pytest.mark.usefixtures("strict")
def test_the_generalized_kl_at_its_edges():
    """0 at equal rates, +∞ where a jump is not allowed for, û where none happens."""
    x_t = np.array([0, 0, 0])
    rate = jnp.array([[-1.0, 1.0, 0.0]] * 3)
    model = jnp.array([[-1.0, 1.0, 0.0], [-0.5, 0.0, 0.5], [-1.5, 1.0, 0.5]])
    np.testing.assert_array_equal(objectives.generalized_kl(rate, model, x_t), [0, np.inf, 0.5])

    def total(u_hat):
        return jnp.sum(objectives.generalized_kl(rate, u_hat, x_t))

    slopes = np.asarray(jax.jit(jax.grad(total))(model))
    np.testing.assert_array_equal(slopes[[0, 2]], [[0, 0, 1], [0, 0, 1]])


@pytest.mark.slow
@pytest.mark.statement("L2")
@pytest.mark.usefixtures("strict")
def test_a_learned_rate_that_is_right_is_a_stationary_point():
    t, schedule, x_t = 0.3, schedules.polynomial(2.0), np.array([0, V])
    truth = jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    rate = velocities.posterior_to_velocity(truth, x_t, t, schedule, num_states=V + 1)

    def total(logits):
        model = velocities.posterior_to_velocity(
            jax.nn.softmax(logits), x_t, t, schedule, num_states=V + 1
        )
        return jnp.sum(objectives.generalized_kl(rate, model, x_t))

    slope = jax.jit(jax.grad(total))
    np.testing.assert_allclose(slope(jnp.log(truth)), 0, atol=1e-14)
    assert np.max(np.abs(slope(jnp.log(truth) + jnp.eye(2, V)))) > 1e-2


@pytest.mark.statement("L4")
@pytest.mark.usefixtures("strict")
def test_bregman_divergences_that_have_a_name():
    a, b = jnp.array([0.2, 1.5, 0.3]), jnp.array([0.7, 0.1, 0.2])
    squared = objectives.bregman_divergence(lambda x: jnp.sum(x**2), a, b)
    np.testing.assert_allclose(squared, np.sum((a - b) ** 2), rtol=1e-14)
    entropy = objectives.bregman_divergence(lambda x: jnp.sum(x * jnp.log(x)), a, b)
    np.testing.assert_allclose(entropy, np.sum(a * np.log(a / b) - a + b), rtol=1e-13)
    assert objectives.bregman_divergence(lambda x: jnp.sum(x**2), a, a) == 0


@pytest.mark.statement("L1", "L2")
@pytest.mark.usefixtures("strict")
def test_losses_are_one_term_per_position():
    """A term depends on its own row alone; the reduction is the caller's."""
    rows = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(1).normal(size=(N, V))))
    x_t = np.array([V, 1, V])

    def terms(rows):
        return {
            "L1": objectives.cross_entropy_loss(rows, X_1),
            "L2": objectives.generalized_kl_loss(rows, X_1, x_t, 0.4, schedules.linear()),
            "L3": objectives.any_order_loss(rows, X_1, x_t, FREE),
            "L5": objectives.step_loss(rows, X_1, x_t, jnp.full(N, 0.5)),
        }

    for name, slopes in jax.jit(jax.jacobian(terms))(rows).items():
        assert slopes.shape == (N, N, V), name
        np.testing.assert_array_equal(slopes[~np.eye(N, dtype=bool)], 0, err_msg=name)
