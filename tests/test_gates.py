"""Gates beyond their statements: limits, dead prefixes, streaming, underflow, small exact cases."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import optimize

from dfm_jax import mixture

N, K = 6, 3


@pytest.fixture
def sequence():
    """A prior with an expert of mass 0, and what each expert says of each token: [K], [N, K]."""
    rng = np.random.default_rng(0)
    prior = np.array([0.6, 0.0, 0.4])
    with np.errstate(divide="ignore"):
        log_prior = jnp.asarray(np.log(prior))
    return log_prior, jnp.asarray(np.log(rng.uniform(0.05, 1.0, (N, K))))


def streamed(update, log_prior, token_log_probs):
    """Every state of a gate that is fed one token after the other."""
    states, update = [mixture.gate_init(log_prior)], jax.jit(update)
    for row in token_log_probs:
        states.append(update(states[-1], row))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


def assert_same_gate(one, other):
    np.testing.assert_allclose(one.log_weights, other.log_weights, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(one.valid, other.valid)


# ── fixed share, streaming ──────────────────────────────────────────────────────────────────────


@pytest.mark.statement("D7", "S7")
@pytest.mark.usefixtures("strict")
def test_a_share_of_0_is_the_bayes_gate(sequence):
    assert_same_gate(mixture.fixed_share_gate(*sequence, 0.0), mixture.bayes_gate(*sequence))


@pytest.mark.statement("S7")
@pytest.mark.usefixtures("strict")
def test_a_share_of_1_is_the_static_gate(sequence):
    assert_same_gate(mixture.fixed_share_gate(*sequence, 1.0), mixture.static_gate(sequence[0], N))


@pytest.mark.statement("S7")
@pytest.mark.usefixtures("strict")
def test_a_share_between_is_the_recursion_written_in_probabilities(sequence):
    alpha, prior, probs = 0.3, np.exp(sequence[0]), np.exp(sequence[1])
    rows = [prior]
    for row in probs:
        posterior = rows[-1] * row
        rows.append((1 - alpha) * posterior / posterior.sum() + alpha * prior)
    gate = mixture.fixed_share_gate(*sequence, alpha)
    np.testing.assert_allclose(np.exp(gate.log_weights), rows, rtol=1e-13)
    for other in (mixture.bayes_gate(*sequence), mixture.static_gate(sequence[0], N)):
        assert np.max(np.abs(np.exp(gate.log_weights) - np.exp(other.log_weights))) > 1e-2


@pytest.mark.statement("D7")
@pytest.mark.usefixtures("strict")
def test_the_streaming_bayes_gate_is_the_gate_of_the_whole_sequence(sequence):
    assert_same_gate(streamed(mixture.bayes_gate_update, *sequence), mixture.bayes_gate(*sequence))


@pytest.mark.slow
@pytest.mark.statement("S7")
@pytest.mark.usefixtures("strict")
def test_the_streaming_fixed_share_gate_is_the_gate_of_the_whole_sequence(sequence):
    def update(state, row):
        return mixture.fixed_share_update(state, row, sequence[0], 0.2)

    assert_same_gate(streamed(update, *sequence), mixture.fixed_share_gate(*sequence, 0.2))


@pytest.mark.statement("D7")
@pytest.mark.usefixtures("strict")
def test_a_gate_of_any_update_is_that_update_token_by_token(sequence):
    def tempered(state, row):
        return mixture.bayes_gate_update(state, 0.5 * row)

    own = mixture.run_gate(tempered, *sequence)
    assert_same_gate(own, streamed(tempered, *sequence))
    assert np.max(np.abs(np.exp(own.log_weights) - np.exp(mixture.bayes_gate(*sequence)[0]))) > 1e-2
    assert_same_gate(
        mixture.run_gate(mixture.bayes_gate_update, *sequence), mixture.bayes_gate(*sequence)
    )


@pytest.mark.usefixtures("strict")
def test_an_update_that_gives_no_distribution_is_refused(sequence):
    def forgotten(state, row):
        return state._replace(log_weights=state.log_weights + row)  # not normalized

    with pytest.raises(ValueError, match=r"`exp\(log_weights\)` must sum to 1 over its last axis"):
        mixture.run_gate(forgotten, *sequence)


@pytest.mark.usefixtures("strict")
def test_a_gate_begins_at_a_distribution(sequence):
    """Its logarithms plus 5, or weights in their place, were normalized without a word."""
    log_prior, rows = sequence
    for gate in (mixture.bayes_gate, mixture.last_token_gate):
        with pytest.raises(ValueError, match=r"`log_prior` must hold logarithms"):
            gate(log_prior + 5.0, rows)
        with pytest.raises(ValueError, match=r"`exp\(log_prior\)` must sum to 1"):
            gate(log_prior - 5.0, rows)


# ── prefixes that no expert could have made ─────────────────────────────────────────────────────

IMPOSSIBLE = 3  # the token that no live expert could say; the dead one could


@pytest.fixture
def dead(sequence):
    log_prior, rows = sequence
    rows = np.array(rows)
    rows[IMPOSSIBLE] = [-np.inf, 0.0, -np.inf]
    return log_prior, jnp.asarray(rows)


GATES_WITH_MEMORY = {
    "bayes": mixture.bayes_gate,
    "fixed share": lambda log_prior, rows: mixture.fixed_share_gate(log_prior, rows, 0.2),
}


@pytest.mark.slow
@pytest.mark.parametrize("gate", GATES_WITH_MEMORY.values(), ids=GATES_WITH_MEMORY)
@pytest.mark.statement("D7")
@pytest.mark.usefixtures("strict")
def test_a_dead_prefix_keeps_the_last_value_and_says_so_for_good(gate, sequence, dead):
    whole, cut = gate(*sequence), gate(*dead)
    np.testing.assert_array_equal(cut.valid, np.arange(N + 1) <= IMPOSSIBLE)
    before = slice(None, IMPOSSIBLE + 1)
    np.testing.assert_array_equal(cut.log_weights[before], whole.log_weights[before])
    after = cut.log_weights[IMPOSSIBLE + 1 :]
    kept = np.broadcast_to(whole.log_weights[IMPOSSIBLE], after.shape)
    np.testing.assert_array_equal(after, kept)
    assert np.all(whole.valid)


@pytest.mark.slow
@pytest.mark.statement("B10")
@pytest.mark.usefixtures("strict")
def test_the_last_token_gate_says_that_a_prefix_is_dead_for_good(dead):
    gate = mixture.last_token_gate(*dead)
    np.testing.assert_array_equal(gate.valid, np.arange(N + 1) <= IMPOSSIBLE)
    np.testing.assert_allclose(np.exp(gate.log_weights).sum(axis=-1), 1, rtol=1e-14)


@pytest.mark.statement("D7")
@pytest.mark.usefixtures("strict")
def test_an_expert_that_could_not_say_a_token_is_out_for_good(sequence):
    log_prior, rows = sequence
    gate = mixture.bayes_gate(log_prior, rows.at[1, 0].set(-jnp.inf))
    np.testing.assert_array_equal(np.exp(gate.log_weights[2:]), [[0, 0, 1]] * (N - 1))
    assert np.all(gate.valid)


# ── long sequences ──────────────────────────────────────────────────────────────────────────────

LONG = 2000


@pytest.fixture
def long_sequence():
    rng = np.random.default_rng(1)
    return np.log([0.7, 0.2, 0.1]), np.log(rng.uniform(1e-3, 0.3, (LONG, K)))


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-10), (False, 2e-2)])
@pytest.mark.statement("D7")
def test_the_log_of_a_gate_is_right_after_2000_tokens(x64, tolerance, long_sequence):
    log_prior, rows = long_sequence
    with jax.enable_x64(x64):
        gate = mixture.bayes_gate(jnp.asarray(log_prior), jnp.asarray(rows))
        got = np.asarray(gate.log_weights, np.float64)
    joint = log_prior + np.concatenate([np.zeros((1, K)), np.cumsum(rows, axis=0)])
    assert np.all(np.exp(joint[-1]) == 0), "probabilities themselves underflow"
    expected = joint - np.logaddexp.reduce(joint, axis=-1, keepdims=True)
    np.testing.assert_allclose(got, expected, atol=tolerance, rtol=1e-5)
    assert np.all(gate.valid)


@pytest.mark.statement("D7")
def test_an_expert_given_up_for_a_thousand_nats_comes_back():
    first, second = jnp.array([-1.0, -2.0]), jnp.array([-2.0, -1.0])
    rows = jnp.concatenate([jnp.tile(first, (1000, 1)), jnp.tile(second, (1001, 1))])
    gate = mixture.bayes_gate(jnp.log(jnp.array([0.5, 0.5])), rows)
    assert np.exp(gate.log_weights[1000, 1]) == 0
    np.testing.assert_allclose(
        gate.log_weights[-1], jax.nn.log_softmax(jnp.array([0.0, 1.0])), atol=1e-2
    )


# ── centroids ───────────────────────────────────────────────────────────────────────────────────

CENTROIDS = np.array([[3.0, 0.0], [0.0, 0.5], [-1.0, -1.0]])
FEATURES = np.array([2.0, 1.0])
COSINES = np.array([2.0, 1.0, -3.0 / np.sqrt(2)]) / np.sqrt(5)


@pytest.mark.usefixtures("strict")
def test_the_centroid_gate_is_the_softmax_of_cosines():
    for temperature in (0.1, 1.0, 10.0):
        weights = np.exp(COSINES / temperature)
        gate = mixture.centroid_gate(jnp.asarray(FEATURES), jnp.asarray(CENTROIDS), temperature)
        np.testing.assert_allclose(gate, weights / weights.sum(), rtol=1e-12)


@pytest.mark.usefixtures("strict")
def test_the_length_of_a_vector_does_not_matter():
    gate = mixture.centroid_gate(jnp.asarray(FEATURES), jnp.asarray(CENTROIDS), 0.5)
    scaled = jnp.asarray(CENTROIDS * np.array([[7.0], [0.1], [30.0]]))
    np.testing.assert_allclose(
        mixture.centroid_gate(jnp.asarray(9 * FEATURES), scaled, 0.5), gate, rtol=1e-13
    )


@pytest.mark.statement("D8")
@pytest.mark.usefixtures("strict")
def test_as_the_temperature_falls_the_nearest_centroid_takes_all():
    """What the others keep falls like exp(−gap/τ): its logarithm over 1/τ has slope −gap."""
    inverse = np.array([20.0, 30.0, 40.0])
    rest = [
        1 - mixture.centroid_gate(jnp.asarray(FEATURES), jnp.asarray(CENTROIDS), 1 / b)[0]
        for b in inverse
    ]
    slope = np.polyfit(inverse, np.log(rest), 1)[0]
    np.testing.assert_allclose(slope, COSINES[1] - COSINES[0], rtol=1e-3)
    cold = mixture.centroid_gate(jnp.asarray(FEATURES), jnp.asarray(CENTROIDS), 1e-3)
    np.testing.assert_allclose(cold, [1, 0, 0], atol=1e-100)
    warm = mixture.centroid_gate(jnp.asarray(FEATURES), jnp.asarray(CENTROIDS), 0.7)
    np.testing.assert_array_equal(mixture.hard_gate(warm), [1, 0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_compiled_centroid_gate_is_the_nearest_at_any_small_temperature(dtype):
    """Compiled, a quotient may be made twice, with another last bit: times 1 / τ that was a NaN."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == np.float64):
        features, centroids = rng.normal(size=(9, 64)), rng.normal(size=(8, 64))
        nearest = np.argmax(features @ centroids.T / np.linalg.norm(centroids, axis=1), axis=1)
        gate = jax.jit(jax.vmap(mixture.centroid_gate, (0, None, None)))
        for temperature in (1e-10, 1e-20, 1e-30, 1e-37):
            found = gate(features.astype(dtype), centroids.astype(dtype), temperature)
            np.testing.assert_array_equal(found, np.eye(8)[nearest])


# ── temperature ─────────────────────────────────────────────────────────────────────────────────


class Routed:
    """Sequences of known experts, whose parts their features only suggest; losses of a gate."""

    def __init__(self, seed: int, *, num: int = 40, length: int = 5) -> None:
        rng = np.random.default_rng(seed)
        part = rng.integers(K, size=num)
        self.features = jnp.asarray(CENTROIDS[part] + rng.normal(size=(num, 2)))
        probs = rng.dirichlet(np.ones(4), size=(num, length, K))[..., 0]
        probs[np.arange(num), :, part] += 0.2  # the own expert is better
        self.log_probs = jnp.asarray(np.log(probs))

    def log_distributions(self, temperature):
        gate = jax.vmap(mixture.centroid_gate, (0, None, None))
        return jnp.log(gate(self.features, jnp.asarray(CENTROIDS), temperature))

    def token_by_token(self, temperature):
        joint = self.log_distributions(temperature)[:, None] + self.log_probs
        return -jax.nn.logsumexp(joint, axis=-1).sum(1).mean()

    def sequence_mixture(self, temperature):
        joint = self.log_distributions(temperature) + self.log_probs.sum(1)
        return -jax.nn.logsumexp(joint, axis=-1).mean()


LOSSES = (Routed.token_by_token, Routed.sequence_mixture)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.usefixtures("x64")
def test_the_temperature_is_the_best_of_a_dense_grid_and_of_brent(loss):
    data = Routed(1)
    value = jax.jit(lambda temperature: loss(data, temperature))
    found = jax.jit(lambda: mixture.fit_temperature(lambda tau: loss(data, tau), 0.01, 100.0))()
    grid = np.geomspace(0.01, 100.0, 4001)
    losses = np.array([float(value(tau)) for tau in grid])
    np.testing.assert_allclose(found.loss, value(found.temperature), rtol=1e-14)
    assert found.loss <= losses.min() + 1e-14
    step = grid[1] / grid[0]
    assert grid[losses.argmin()] / step < found.temperature < grid[losses.argmin()] * step
    brent = optimize.minimize_scalar(
        lambda x: float(value(np.exp(x))), bounds=np.log([0.01, 100]), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    np.testing.assert_allclose(found.loss, brent.fun, rtol=1e-13)
    np.testing.assert_allclose(found.temperature, np.exp(brent.x), rtol=1e-5)
    assert not found.at_bound
    assert losses.max() - losses.min() > 1e-2  # it matters


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_each_way_to_decode_has_its_own_temperature():
    data = Routed(1)
    found = jax.jit(
        lambda: [
            mixture.fit_temperature(lambda tau, f=f: f(data, tau), 0.01, 100.0) for f in LOSSES
        ]
    )()
    for own, other in (found, found[::-1]):
        assert abs(np.log(own.temperature / other.temperature)) > 0.05
    losses = jax.jit(lambda tau: [loss(data, tau) for loss in LOSSES])
    for number, (own, other) in enumerate(zip(found, found[::-1], strict=True)):
        assert losses(other.temperature)[number] > own.loss + 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("end", [0.5, 4.0])
@pytest.mark.usefixtures("x64")
def test_a_temperature_at_a_bound_says_so(end):
    """A loss that falls all the way: the end itself, to the last bit."""
    sign = 1.0 if end == 0.5 else -1.0
    found = mixture.fit_temperature(lambda tau: sign * jnp.log(tau), 0.5, 4.0)
    assert found.at_bound
    assert found.temperature == end
    assert found.loss == sign * np.log(end)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_better_of_two_valleys_is_found():
    """Golden sections alone, without a start, end in the other."""

    def loss(tau):
        x = jnp.log(tau)
        return -jnp.exp(-((x - 2) ** 2) / 0.02) - 0.5 * jnp.exp(-((x + 1) ** 2))

    many = mixture.fit_temperature(loss, 0.01, 100.0, num_starts=64)
    few = mixture.fit_temperature(loss, 0.01, 100.0, num_starts=1)
    np.testing.assert_allclose(np.log(many.temperature), 2, atol=1e-3)
    np.testing.assert_allclose(np.log(few.temperature), -1, atol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_place_that_was_tried_is_not_lost_to_the_golden_sections():
    """A loss that is low at one of the places tried at first, and nowhere near it."""
    place = jnp.exp(jnp.linspace(jnp.log(0.01), jnp.log(100.0), 17))[5]
    needle = lambda tau: jnp.where(jnp.abs(tau / place - 1) < 1e-9, 0.0, 1.0)  # noqa: E731
    found = mixture.fit_temperature(needle, 0.01, 100.0)
    assert found.loss == 0
    np.testing.assert_allclose(found.temperature, place, rtol=1e-12)
    assert not found.at_bound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0.0, 1.0), "`low` must lie in (0, inf); got low = 0.0."),
        ((1.0, np.inf), "`high` must lie in (0, inf); got high = inf."),
        ((2.0, 1.0), "`high` must be above `low`; got high = 1.0."),
    ],
)
def test_an_interval_that_is_none_is_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        mixture.fit_temperature(jnp.log, *options)


# ── distributions cut down ────────────────────────────────────────────────────────────────────────

PROBS = [0.1, 0.4, 0.2, 0.3]
TIED = [0.25, 0.25, 0.25, 0.25]

CUT = {
    "top 1": (lambda w: mixture.top_experts_gate(w, 1), PROBS, [0, 1, 0, 0]),
    "top 2": (lambda w: mixture.top_experts_gate(w, 2), PROBS, [0, 4 / 7, 0, 3 / 7]),
    "top 3": (lambda w: mixture.top_experts_gate(w, 3), PROBS, [0, 4 / 9, 2 / 9, 3 / 9]),
    "top 2 of equals": (lambda w: mixture.top_experts_gate(w, 2), TIED, [0.5, 0.5, 0, 0]),
    "top 2, the second tied": (
        lambda w: mixture.top_experts_gate(w, 2),
        [0.2, 0.2, 0.4, 0.2],
        [1 / 3, 0, 2 / 3, 0],
    ),
    "hard": (mixture.hard_gate, PROBS, [0, 1, 0, 0]),
    "hard, tied": (mixture.hard_gate, [0.2, 0.4, 0.4], [0, 1, 0]),
    "hard of a point": (mixture.hard_gate, [0, 0, 1], [0, 0, 1]),
    "nucleus below the largest": (lambda w: mixture.nucleus_gate(w, 0.3), PROBS, [0, 1, 0, 0]),
    "nucleus of two": (lambda w: mixture.nucleus_gate(w, 0.5), PROBS, [0, 4 / 7, 0, 3 / 7]),
    "nucleus of three": (lambda w: mixture.nucleus_gate(w, 0.75), PROBS, [0, 4 / 9, 2 / 9, 3 / 9]),
    "nucleus of equals": (lambda w: mixture.nucleus_gate(w, 0.5), TIED, [0.5, 0.5, 0, 0]),
    "nucleus just above": (lambda w: mixture.nucleus_gate(w, 0.51), TIED, [1 / 3, 1 / 3, 1 / 3, 0]),
    "nucleus of all": (lambda w: mixture.nucleus_gate(w, 1.0), PROBS, PROBS),
    "nucleus of a point": (lambda w: mixture.nucleus_gate(w, 1.0), [0, 1, 0], [0, 1, 0]),
    # 0.4 + 0.3 − 0.3 is below 0.4: the mass must not be found by subtraction
    "nucleus reached exactly": (lambda w: mixture.nucleus_gate(w, 0.4), [0.4, 0.3, 0.3], [1, 0, 0]),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("gate", "weights", "expected"), CUT.values(), ids=CUT)
@pytest.mark.statement("B6", "B7")
@pytest.mark.usefixtures("strict")
def test_a_cut_gate_is_what_its_name_says(gate, weights, expected):
    np.testing.assert_allclose(gate(jnp.array(weights, float)), expected, rtol=1e-14, atol=0)


def probs(size):
    """Distributions over `size` experts, zeros and ties among them."""
    counts = arrays(np.int64, size, elements=st.integers(0, 8)).filter(lambda a: a.sum() > 0)
    return counts.map(lambda a: a / a.sum())


top_k = jax.jit(mixture.top_experts_gate, static_argnums=1)
nucleus = jax.jit(mixture.nucleus_gate)


@pytest.mark.slow
@pytest.mark.statement("B6")
@given(weights=probs(5), mass=st.floats(0.01, 1.0), count=st.sampled_from([1, 3]))
def test_a_cut_gate_is_a_distribution_that_keeps_the_largest(weights, mass, count):
    with jax.enable_x64(True):
        for gate in map(np.asarray, (top_k(weights, count), nucleus(weights, mass))):
            kept = gate > 0
            assert np.all(gate >= 0)
            np.testing.assert_allclose(np.sum(gate), 1, rtol=1e-14)
            np.testing.assert_allclose(gate[kept] * weights[kept].sum(), weights[kept], rtol=1e-13)
            if not np.all(kept):
                assert weights[kept].min() >= weights[~kept].max()


@pytest.mark.statement("B6")
@given(weights=probs(5))
def test_the_top_k_of_all_k_is_the_identity(weights):
    with jax.enable_x64(True):
        np.testing.assert_allclose(top_k(weights, 5), weights, rtol=1e-14, atol=0)
        np.testing.assert_allclose(nucleus(weights, 1.0), weights, rtol=1e-14, atol=0)


@jax.jit
def all_gates(log_prior, rows, alpha):
    return (
        mixture.bayes_gate(log_prior, rows),
        mixture.fixed_share_gate(log_prior, rows, alpha),
        mixture.last_token_gate(log_prior, rows),
        mixture.static_gate(log_prior, rows.shape[0]),
    )


@pytest.mark.statement("D7", "S7", "B10")
@given(
    prior=probs(K),
    rows=arrays(float, (4, K), elements=st.sampled_from([-np.inf, -50.0, -3.0, -0.5, 0.0])),
    alpha=st.floats(0.0, 1.0),
)
def test_every_row_of_every_gate_is_a_distribution(prior, rows, alpha):
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        for gate in all_gates(jnp.asarray(np.log(prior)), jnp.asarray(rows), alpha):
            weights = np.exp(gate.log_weights)
            assert weights.shape == (5, K)
            np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-13)
            assert np.all(weights[:, prior == 0] == 0)
