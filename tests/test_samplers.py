"""Samplers beyond their statements: drawn samples against distributions, and orders of
convergence.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_paths import assert_drawn_from

from dfm_jax import exact, paths, samplers, schedules, steps, velocities

V, N = 2, 3
S = V + 1


def random_probs(seed, size):
    weights = np.random.default_rng(seed).dirichlet(np.full(size, 0.7))
    return 0.05 / size + 0.95 * weights


# ── correctors: the order of the product step ───────────────────────────────────────────────────


def corrector_errors(sizes, source, *, beta):
    """max_x |p_t after one step of all positions − p_t| at frozen t, for u − β ǔ, step by step."""
    t, schedule = 0.6, schedules.polynomial(2.0)
    coupling = exact.FactoredCoupling(
        data=random_probs(0, V**N), source_tokens=source, context=np.zeros(N, bool)
    )
    token_path = exact.mixture_token_path(np.full(N, t**2), V, S)
    probs = exact.marginal_path(coupling, token_path)
    data, start, support = exact.posteriors(coupling, token_path)
    states = exact.states(S, N)

    @jax.vmap
    def velocity(p_1, p_0, z):
        forward = velocities.posterior_to_velocity(p_1, z, t, schedule, num_states=S)
        backward = velocities.backward_velocity(p_0, z, t, schedule)
        return velocities.corrected_velocity(forward, backward, 1.0, beta)

    u = jax.jit(velocity)(jnp.asarray(data), jnp.asarray(start), jnp.asarray(states))
    u = jnp.where(jnp.asarray(support)[:, None, None], u, 0.0)
    step = jax.jit(jax.vmap(steps.step_probs))
    after = [exact.push_forward(probs, step(h * u, jnp.asarray(states))) for h in sizes]
    return np.array([np.max(np.abs(p - probs)) for p in after])


SOURCES = {
    "all masks": np.tile(np.eye(S)[V], (N, 1)),
    "uniform over the data tokens": np.tile([0.5, 0.5, 0.0], (N, 1)),
    "any distribution": np.array([random_probs(i, S) for i in range(N)]),
}
SIZES = 2.0 ** -np.arange(6, 12)


def slopes(errors):
    return np.diff(np.log(errors)) / np.diff(np.log(SIZES))


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.statement("S5")
@pytest.mark.usefixtures("strict")
def test_a_corrector_step_of_all_positions_is_off_by_the_square_of_its_size(source):
    np.testing.assert_allclose(slopes(corrector_errors(SIZES, source, beta=1.0)), 2, atol=0.05)


@pytest.mark.statement("S5")
@pytest.mark.usefixtures("strict")
def test_a_corrector_out_of_balance_is_off_by_its_size():
    """The twin of the test above: α ≠ β moves p_t to first order."""
    errors = corrector_errors(SIZES, SOURCES["any distribution"], beta=0.9)
    np.testing.assert_allclose(slopes(errors), 1, atol=0.05)


# ── samples of whole runs ───────────────────────────────────────────────────────────────────────

DATA = random_probs(3, V**N)
TOKENS = exact.states(V, N)
DRAWS = 10_000


def drawn_by(table, *, final=False, seed=0):
    """Sequences from exact posteriors of an all-mask source, one exact step per row of a table."""
    log_data, x_1 = jnp.log(jnp.asarray(DATA)), jnp.asarray(TOKENS)

    def one(key):
        x_t = jnp.full(N, V)
        for t in range(table.shape[0] - 1):
            posterior = paths.revealed_posterior(x_t, x_1, log_data, mask_id=V)
            if final and t == table.shape[0] - 2:
                probs = samplers.final_step_probs(posterior, x_t, x_t == V, num_states=S)
            else:
                size = steps.step_size(table, t)
                velocity = steps.exact_step_velocity(posterior, x_t, size, num_states=S)
                probs = steps.step_probs(velocity, x_t)
            x_t = paths.sample_path(jax.random.fold_in(key, t), probs)
        return x_t

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), DRAWS)))


def counts(sequences):
    assert sequences.max() < V, "a mask is left"
    return np.bincount(sequences @ V ** np.arange(N)[::-1], minlength=V**N)


ORDERS = {
    "left to right": schedules.left_to_right(N),
    "any order": schedules.any_order([2, 0, 1]),
}


@pytest.mark.slow
@pytest.mark.parametrize("table", ORDERS.values(), ids=ORDERS)
@pytest.mark.statement("S1", "S2")
def test_one_position_at_a_time_draws_from_the_data(table):
    assert_drawn_from(DATA, counts(drawn_by(table)))


@pytest.mark.slow
@pytest.mark.statement("S4")
def test_a_last_step_for_one_pending_position_draws_from_the_data():
    assert_drawn_from(DATA, counts(drawn_by(schedules.left_to_right(N), final=True, seed=1)))


@pytest.mark.statement("S2", "Q6")
def test_all_positions_at_once_draw_from_the_product_of_their_marginals():
    """And not from the data: the same test then sees the difference."""
    marginals = [exact.marginal(DATA, (i,), V, N) for i in range(N)]
    product = np.prod([row[TOKENS[:, i]] for i, row in enumerate(marginals)], axis=0)
    sampled = counts(drawn_by(schedules.blocks([0] * N), seed=2))
    assert_drawn_from(product, sampled)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(DATA, sampled)
