"""`dfm_jax.exact` against sums written out with itertools.product."""

import ast
import itertools
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dfm_jax import exact

SEEDS = range(6)
# (V, S, N): one token, no mask, mask, more states than tokens and a mask
SPACES = [(2, 2, 3), (2, 3, 2), (3, 4, 2), (3, 3, 1), (1, 2, 3)]
TIGHT = {"rtol": 0.0, "atol": 1e-13}


def sequences(num_states, num_positions):
    return list(itertools.product(range(num_states), repeat=num_positions))


def random_probs(rng, *shape, zeros=0.3):
    """Distributions over the last axis, many of them with zeros."""
    weights = rng.exponential(size=shape) * (rng.random(shape) > zeros)
    weights[..., rng.integers(shape[-1])] += 0.1
    return weights / weights.sum(axis=-1, keepdims=True)


def random_token_path(rng, space):
    num_tokens, num_states, num_positions = space
    return random_probs(rng, num_positions, num_states, num_tokens, num_states)


def random_joint(rng, space):
    num_tokens, num_states, num_positions = space
    flat = random_probs(rng, (num_states * num_tokens) ** num_positions, zeros=0.7)
    return flat.reshape(num_states**num_positions, num_tokens**num_positions)


def random_factored(rng, space):
    num_tokens, num_states, num_positions = space
    context = rng.random(num_positions) < 0.4
    source_tokens = random_probs(rng, num_positions, num_states)
    source_tokens[context] = np.nan  # not read
    return exact.FactoredCoupling(
        random_probs(rng, num_tokens**num_positions), source_tokens, context
    )


def brute_joint(factored, space):
    num_tokens, num_states, num_positions = space
    joint = np.zeros((num_states**num_positions, num_tokens**num_positions))
    for row, x_0 in enumerate(sequences(num_states, num_positions)):
        for column, x_1 in enumerate(sequences(num_tokens, num_positions)):
            joint[row, column] = factored.data[column]
            for i in range(num_positions):
                joint[row, column] *= (
                    float(x_0[i] == x_1[i])
                    if factored.context[i]
                    else factored.source_tokens[i, x_0[i]]
                )
    return joint


def brute_triples(joint, token_path):
    """p_t(z | x_0, x_1) π(x_0, x_1) as [Z, Z0, Z1], term by term."""
    num_positions, num_states, num_tokens, _ = token_path.shape
    all_z = sequences(num_states, num_positions)
    triples = np.zeros((len(all_z), *joint.shape), dtype=token_path.dtype)
    for (row, z), (a, x_0), (b, x_1) in itertools.product(
        enumerate(all_z), enumerate(all_z), enumerate(sequences(num_tokens, num_positions))
    ):
        triples[row, a, b] = joint[a, b]
        for i in range(num_positions):
            triples[row, a, b] *= token_path[i, x_0[i], x_1[i], z[i]]
    return triples


def random_velocity(rng, num_states, num_positions):
    z = exact.states(num_states, num_positions)
    velocity = rng.exponential(size=(len(z), num_positions, num_states))
    velocity *= rng.random(velocity.shape) > 0.3
    np.put_along_axis(velocity, z[:, :, None], 0.0, axis=2)
    np.put_along_axis(velocity, z[:, :, None], -velocity.sum(axis=2, keepdims=True), axis=2)
    return velocity


# ── distributions ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("num_states", "num_positions"), [(2, 3), (3, 2), (1, 4), (5, 1)])
def test_states_are_lexicographic(num_states, num_positions):
    np.testing.assert_array_equal(
        exact.states(num_states, num_positions), sequences(num_states, num_positions)
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("num_states", "num_positions"), [(2, 3), (3, 2), (1, 2)])
def test_marginal_and_embed(seed, num_states, num_positions):
    rng = np.random.default_rng(seed)
    probs = random_probs(rng, num_states**num_positions)
    for size in range(num_positions + 1):
        for positions in itertools.combinations(range(num_positions), size):
            brute = dict.fromkeys(sequences(num_states, size), 0.0)
            for x, p in zip(sequences(num_states, num_positions), probs, strict=True):
                brute[tuple(x[i] for i in positions)] += p
            np.testing.assert_allclose(
                exact.marginal(probs, positions, num_states, num_positions),
                list(brute.values()),
                **TIGHT,
            )
    masked = dict.fromkeys(sequences(num_states + 1, num_positions), 0.0)
    masked.update(zip(sequences(num_states, num_positions), probs, strict=True))
    embedded = exact.embed(probs, num_states, num_states + 1, num_positions)
    np.testing.assert_array_equal(embedded, list(masked.values()))
    np.testing.assert_array_equal(exact.embed(probs, num_states, num_states, num_positions), probs)


@pytest.mark.statement("A3", "S1")
@pytest.mark.parametrize("seed", SEEDS)
def test_conditionals_and_sequence_distribution(seed):
    rng = np.random.default_rng(seed)
    probs = random_probs(rng, 27, zeros=0.6)
    rows, support = exact.conditionals(probs, 3, 3)
    xs = sequences(3, 3)
    for row, x in enumerate(xs):
        for t in range(3):
            prefix = sum(p for y, p in zip(xs, probs, strict=True) if y[:t] == x[:t])
            assert support[row, t] == (prefix > 0)
            for v in range(3):
                both = sum(p for y, p in zip(xs, probs, strict=True) if y[: t + 1] == (*x[:t], v))
                assert rows[row, t, v] == pytest.approx(both / prefix if prefix else 0, abs=1e-13)
    np.testing.assert_allclose(exact.sequence_probs(rows), probs, **TIGHT)
    rows[~support] = np.nan  # not read
    np.testing.assert_allclose(exact.sequence_probs(rows), probs, **TIGHT)


@pytest.mark.statement("P7")
@pytest.mark.parametrize("seed", SEEDS)
def test_token_conditionals(seed):
    rng = np.random.default_rng(seed)
    probs = random_probs(rng, 8, zeros=0.5)
    xs = sequences(2, 3)
    for known in itertools.product([False, True], repeat=3):
        rows, support = exact.token_conditionals(probs, np.array(known), 2, 3)
        for row, x in enumerate(xs):
            match = [all(y[j] == x[j] for j in range(3) if known[j]) for y in xs]
            total = probs[match].sum()
            assert support[row] == (total > 0)
            for i, v in itertools.product(range(3), range(2)):
                both = sum(probs[n] for n, y in enumerate(xs) if match[n] and y[i] == v)
                assert rows[row, i, v] == pytest.approx(both / total if total else 0, abs=1e-13)


@pytest.mark.parametrize("seed", SEEDS)
def test_entropy_kl_and_total_variation(seed):
    rng = np.random.default_rng(seed)
    p, q = random_probs(rng, 2, 4, 5)
    p[0], q[1] = 0.0, 0.0  # off the support
    for row in range(4):
        pairs = list(zip(p[row].tolist(), q[row].tolist(), strict=True))
        assert exact.entropy(p)[row] == pytest.approx(
            -sum(a * math.log(a) for a, _ in pairs if a > 0), abs=1e-13
        )
        brute = 0.0
        for a, b in pairs:
            brute += 0.0 if a == 0 else math.inf if b == 0 else a * math.log(a / b)
        assert exact.kl(p, q)[row] == pytest.approx(brute, abs=1e-13)
        assert exact.total_variation(p, q)[row] == pytest.approx(
            sum(abs(a - b) for a, b in pairs) / 2, abs=1e-13
        )
    assert exact.kl(q[0], q[0]) == 0.0


def test_kl_never_forms_infinity_minus_infinity():
    point, other = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert exact.kl(point, other) == math.inf
    assert exact.kl(point, point) == 0.0
    assert exact.kl(point, np.array([0.5, 0.5])) == pytest.approx(math.log(2))
    tiny = np.array([1.0, 1e-300])
    assert np.isfinite(exact.kl(tiny, tiny[::-1]))
    assert np.isscalar(exact.kl(point, other))


@pytest.mark.parametrize("rare", [1e-10, 1e-20, 1e-200])
def test_kl_sees_a_mass_however_small(rare):
    probs, without = np.array([1.0 - rare, rare]), np.array([1.0, 0.0])
    assert exact.kl(probs, without) == math.inf
    rows = exact.kl(np.stack([probs, probs]), np.stack([probs, without]))
    np.testing.assert_array_equal(rows, [0, math.inf])


def test_kl_counts_a_mass_however_small():
    rare = 1e-10
    probs, more = np.array([1 - rare, rare]), np.array([1 - 2 * rare, 2 * rare])
    assert exact.kl(probs, more) == pytest.approx(rare * (1 - math.log(2)), rel=1e-5)


@pytest.mark.statement("D10")
@pytest.mark.parametrize("seed", SEEDS)
def test_information_of_a_joint(seed):
    joint = random_probs(np.random.default_rng(seed), 12, zeros=0.5).reshape(3, 4)
    p_a, p_b = joint.sum(1), joint.sum(0)
    cells = [(a, b) for a in range(3) for b in range(4) if joint[a, b] > 0]
    information = sum(joint[a, b] * math.log(joint[a, b] / (p_a[a] * p_b[b])) for a, b in cells)
    left = -sum(joint[a, b] * math.log(joint[a, b] / p_b[b]) for a, b in cells)
    assert exact.mutual_information(joint) == pytest.approx(information, abs=1e-13)
    assert exact.conditional_entropy(joint) == pytest.approx(left, abs=1e-13)
    assert exact.entropy(p_a) - left == pytest.approx(information, abs=1e-13)


@pytest.mark.statement("Q6")
@pytest.mark.parametrize("seed", SEEDS)
def test_total_correlation(seed):
    rng = np.random.default_rng(seed)
    probs = random_probs(rng, 16, zeros=0.4)
    xs = sequences(2, 4)

    def probability(x, positions):
        return sum(
            p
            for y, p in zip(xs, probs, strict=True)
            if all(y[i] == x[i] for i in positions)
        )  # fmt: skip

    for block, given in [((0, 1, 2, 3), ()), ((1, 3), (0,)), ((0, 2), (1, 3)), ((2,), (0,)),
                         ((0, 1), ())]:  # fmt: skip
        brute = 0.0
        for x, p in zip(xs, probs, strict=True):
            if p > 0:
                at_given = probability(x, given)
                brute += p * math.log(probability(x, given + block) / at_given)
                for i in block:
                    brute -= p * math.log(probability(x, (*given, i)) / at_given)
        value = exact.conditional_total_correlation(probs, block, given, 2, 4)
        assert value == pytest.approx(brute, abs=1e-12)
    whole = exact.conditional_total_correlation(probs, (0, 1, 2, 3), (), 2, 4)
    assert exact.total_correlation(probs, 2, 4) == whole
    product = np.kron(np.kron([0.2, 0.8], [0.5, 0.5]), [1.0, 0.0])
    assert exact.total_correlation(product, 2, 3) == pytest.approx(0, abs=1e-14)


# ── paths ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.statement("P2", "P3")
@pytest.mark.parametrize("space", SPACES)
def test_mixture_and_convex_token_paths(space):
    num_tokens, num_states, num_positions = space
    rng = np.random.default_rng(0)
    kappa = rng.random(num_positions)
    kappa[0] = 1.0
    path = exact.mixture_token_path(kappa, num_tokens, num_states)
    for i, a, b, v in np.ndindex(path.shape):
        assert path[i, a, b, v] == (1 - kappa[i]) * (v == a) + kappa[i] * (v == b)
    at_ends = [
        exact.mixture_token_path(np.full(num_positions, end), num_tokens, num_states)
        for end in (0.0, 1.0)
    ]
    convex = exact.convex_token_path(np.stack(at_ends), np.stack([1 - kappa, kappa]))
    np.testing.assert_allclose(convex, path, **TIGHT)
    stepped = exact.convex_token_path(np.stack(at_ends), np.stack([1 - kappa, kappa + 1e-30j]))
    np.testing.assert_allclose(stepped.imag / 1e-30, at_ends[1], **TIGHT)  # pyright: ignore


@pytest.mark.statement("P6")
def test_metric_token_path():
    distances = np.array([[0.0, 1.0, 2.5], [1.2, 0.0, 1.0], [3.0, 0.5, 0.0]])
    path = exact.metric_token_path(0.7, distances, 2, 3)
    for i, a, b, v in np.ndindex(2, 3, 3, 3):
        powers = [math.exp(-0.7 * distances[y, b]) for y in range(3)]
        assert path[i, a, b, v] == pytest.approx(powers[v] / sum(powers), abs=1e-14)
    np.testing.assert_allclose(exact.metric_token_path(0.0, distances, 2, 3), 1 / 3, **TIGHT)
    at_data = exact.metric_token_path(np.inf, distances, 2, 3)
    np.testing.assert_array_equal(at_data, np.broadcast_to(np.eye(3), (2, 3, 3, 3)))
    np.testing.assert_allclose(
        exact.metric_token_path(2000.0, distances, 2, 3), at_data, rtol=0, atol=1e-300
    )
    slope = exact.metric_token_path(0.7 + 1e-30j, distances, 2, 3).imag / 1e-30  # pyright: ignore
    near = [exact.metric_token_path(0.7 + h, distances, 2, 3) for h in (1e-5, -1e-5)]
    np.testing.assert_allclose(slope, (near[0] - near[1]) / 2e-5, rtol=0, atol=1e-9)


@pytest.mark.statement("A5")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("space", SPACES)
def test_couplings(seed, space):
    factored = random_factored(np.random.default_rng(seed), space)
    joint = brute_joint(factored, space)
    np.testing.assert_allclose(exact.dense(factored), joint, **TIGHT)
    assert joint.sum() == pytest.approx(1.0, abs=1e-12)
    for coupling in (factored, joint):
        np.testing.assert_allclose(exact.source_probs(coupling), joint.sum(1), **TIGHT)
        np.testing.assert_allclose(exact.data_probs(coupling), joint.sum(0), **TIGHT)
    np.testing.assert_array_equal(exact.dense(joint), joint)


@pytest.mark.statement("P1", "P4", "P5")
@pytest.mark.parametrize("kind", ["dense", "factored"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("space", SPACES)
def test_marginal_path_and_posteriors(seed, space, kind):
    num_tokens, num_states, num_positions = space
    rng = np.random.default_rng(seed)
    if kind == "dense":
        coupling = joint = random_joint(rng, space)
    else:
        coupling = random_factored(rng, space)
        joint = brute_joint(coupling, space)
    token_path = random_token_path(rng, space)
    if seed % 2:
        kappa = rng.choice([0.0, 0.3, 1.0], size=num_positions)
        token_path = exact.mixture_token_path(kappa, num_tokens, num_states)
    triples = brute_triples(joint, token_path)
    path = triples.sum(axis=(1, 2))
    np.testing.assert_allclose(exact.marginal_path(coupling, token_path), path, **TIGHT)

    brute = np.zeros((len(path), num_positions, num_states, num_tokens))
    for a, x_0 in enumerate(sequences(num_states, num_positions)):
        for b, x_1 in enumerate(sequences(num_tokens, num_positions)):
            for i in range(num_positions):
                brute[:, i, x_0[i], x_1[i]] += triples[:, a, b]
    for row in range(len(path)):
        brute[row] = brute[row] / path[row] if path[row] > 0 else 0.0
    pair, support = exact.pair_posterior(coupling, token_path)
    np.testing.assert_array_equal(support, path > 0)
    np.testing.assert_allclose(pair, brute, **TIGHT)
    posterior_1, posterior_0, same = exact.posteriors(coupling, token_path)
    np.testing.assert_array_equal(same, support)
    np.testing.assert_allclose(posterior_1, brute.sum(axis=2), **TIGHT)
    np.testing.assert_allclose(posterior_0, brute.sum(axis=3), **TIGHT)
    np.testing.assert_allclose(posterior_1[support].sum(axis=-1), 1.0, rtol=0, atol=1e-12)


@pytest.mark.statement("P4")
@pytest.mark.parametrize("space", SPACES)
def test_path_starts_at_the_source_and_ends_at_the_data(space):
    num_tokens, num_states, num_positions = space
    rng = np.random.default_rng(1)
    for coupling in (random_joint(rng, space), random_factored(rng, space)):
        ends = [
            exact.mixture_token_path(np.full(num_positions, end), num_tokens, num_states)
            for end in (0.0, 1.0)
        ]
        np.testing.assert_allclose(
            exact.marginal_path(coupling, ends[0]), exact.source_probs(coupling), **TIGHT
        )
        data = exact.embed(exact.data_probs(coupling), num_tokens, num_states, num_positions)
        np.testing.assert_allclose(exact.marginal_path(coupling, ends[1]), data, **TIGHT)


@pytest.mark.statement("C1")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("space", SPACES)
def test_path_derivative(seed, space):
    num_positions = space[2]
    rng = np.random.default_rng(seed)
    coupling = random_joint(rng, space) if seed % 2 else random_factored(rng, space)
    joint = exact.dense(coupling)
    path = random_token_path(rng, space)
    rate = rng.normal(size=path.shape)
    rate -= rate.mean(axis=-1, keepdims=True)
    brute = 0.0  # the product rule, position by position
    for i in range(num_positions):
        one = path.copy()
        one[i] = rate[i]
        brute = brute + brute_triples(joint, one).sum(axis=(1, 2))
    np.testing.assert_allclose(exact.path_derivative(coupling, path, rate), brute, **TIGHT)


@pytest.mark.statement("C1", "V3", "V4")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("space", SPACES)
def test_marginal_velocity_and_continuity(seed, space):
    num_tokens, num_states, num_positions = space
    rng = np.random.default_rng(seed)
    coupling = random_joint(rng, space) if seed % 2 else random_factored(rng, space)
    kappa, slope = rng.uniform(0.0, 0.9, num_positions), rng.random(num_positions)
    path = exact.mixture_token_path(kappa, num_tokens, num_states)
    rate = (exact.mixture_token_path(kappa + 1e-30j * slope, num_tokens, num_states) / 1e-30).imag
    pair, support = exact.pair_posterior(coupling, path)
    token_velocity = np.zeros((num_positions, num_states, num_tokens, num_states, num_states))
    for i, a, b, s, v in np.ndindex(token_velocity.shape):
        token_velocity[i, a, b, s, v] = slope[i] / (1 - kappa[i]) * (int(v == b) - int(v == s))
        if path[i, a, b, s] == 0:
            token_velocity[i, a, b, s, v] = np.nan  # never read
    velocity = exact.marginal_velocity(pair, token_velocity)

    brute = np.zeros_like(velocity)
    for row, z in enumerate(sequences(num_states, num_positions)):
        for i, a, b, v in np.ndindex(num_positions, num_states, num_tokens, num_states):
            if pair[row, i, a, b] > 0:
                brute[row, i, v] += pair[row, i, a, b] * token_velocity[i, a, b, z[i], v]
    np.testing.assert_allclose(velocity, brute, **TIGHT)
    assert not np.any(velocity[~support])

    probs = exact.marginal_path(coupling, path)
    change = exact.path_derivative(coupling, path, rate)
    np.testing.assert_allclose(change + exact.divergence(probs, velocity), 0.0, rtol=0, atol=1e-12)
    if np.max(np.abs(change)) > 1e-3:  # the falsifier: twice the velocity
        assert np.max(np.abs(change + exact.divergence(probs, 2 * velocity))) > 1e-4


@pytest.mark.statement("D2", "D3")
@pytest.mark.parametrize("seed", SEEDS)
def test_parts(seed):
    rng = np.random.default_rng(seed)
    weights, paths = random_probs(rng, 3, zeros=0), random_probs(rng, 3, 9, zeros=0.7)
    mixed = exact.mixed_path(weights, paths)
    posterior, support = exact.expert_posterior(weights, paths)
    for z in range(9):
        total = sum(weights[k] * paths[k, z] for k in range(3))
        assert mixed[z] == pytest.approx(total, abs=1e-14)
        assert support[z] == (total > 0)
        for k in range(3):
            part = weights[k] * paths[k, z] / total if total > 0 else 0.0
            assert posterior[z, k] == pytest.approx(part, abs=1e-13)


# ── chains ────────────────────────────────────────────────────────────────────────────────────


def brute_generator(velocity):
    total, num_positions, num_states = velocity.shape
    zs = sequences(num_states, num_positions)
    field = np.zeros((total, total))
    for (row, x), (column, z) in itertools.product(enumerate(zs), enumerate(zs)):
        for i in range(num_positions):
            if all(x[j] == z[j] for j in range(num_positions) if j != i):
                field[row, column] += velocity[column, i, x[i]]
    return field


@pytest.mark.statement("C1", "V1")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("num_states", "num_positions"), [(2, 3), (3, 2), (4, 1), (1, 3)])
def test_divergence_and_generator(seed, num_states, num_positions):
    rng = np.random.default_rng(seed)
    velocity = random_velocity(rng, num_states, num_positions) * rng.choice([1, -1])
    probs = random_probs(rng, num_states**num_positions, zeros=0.5)
    field = brute_generator(velocity)
    np.testing.assert_allclose(exact.generator(velocity), field, **TIGHT)
    np.testing.assert_allclose(exact.generator(velocity).sum(axis=0), 0.0, **TIGHT)
    brute = np.zeros(len(probs))
    for x, z in itertools.permutations(range(len(probs)), 2):
        brute[x] += probs[x] * field[z, x] - probs[z] * field[x, z]
    np.testing.assert_allclose(exact.divergence(probs, velocity), brute, **TIGHT)
    np.testing.assert_allclose(-field @ probs, brute, **TIGHT)
    velocity[probs == 0] = np.nan  # not read
    np.testing.assert_allclose(exact.divergence(probs, velocity), brute, **TIGHT)


@pytest.mark.statement("Q1", "Q5")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("num_states", "num_positions"), [(2, 3), (3, 2), (4, 1), (2, 5)])
def test_kernel_and_push_forward(seed, num_states, num_positions):
    rng = np.random.default_rng(seed)
    total = num_states**num_positions
    step_probs = random_probs(rng, total, num_positions, num_states)
    probs = random_probs(rng, total, zeros=0.5)
    brute = np.ones((total, total))
    zs = sequences(num_states, num_positions)
    for (row, x), (column, _), i in itertools.product(
        enumerate(zs), enumerate(zs), range(num_positions)
    ):
        brute[row, column] *= step_probs[column, i, x[i]]
    np.testing.assert_allclose(exact.kernel(step_probs), brute, **TIGHT)
    np.testing.assert_allclose(exact.kernel(step_probs).sum(axis=0), 1.0, **TIGHT)
    np.testing.assert_allclose(exact.push_forward(probs, step_probs), brute @ probs, **TIGHT)
    step_probs[probs == 0] = np.nan  # not read
    np.testing.assert_allclose(exact.push_forward(probs, step_probs), brute @ probs, **TIGHT)


@pytest.mark.statement("V1")
@pytest.mark.parametrize("duration", [0.0, 1e-3, 0.7, 40.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_evolve(seed, duration):
    rng = np.random.default_rng(seed)
    velocity = random_velocity(rng, 3, 2)
    probs = random_probs(rng, 9, zeros=0.5)
    field = brute_generator(velocity)
    halvings = 16
    step = field * duration / 2**halvings
    series, term = np.eye(9), np.eye(9)
    for n in range(1, 8):
        term = term @ step / n
        series = series + term
    brute = np.linalg.matrix_power(series, 2**halvings) @ probs
    result = exact.evolve(probs, velocity, duration)
    np.testing.assert_allclose(result, brute, rtol=0, atol=1e-10)
    assert result.sum() == pytest.approx(1.0, abs=1e-12)
    assert np.min(result) >= 0.0
    halves = exact.evolve(exact.evolve(probs, velocity, duration / 2), velocity, duration / 2)
    np.testing.assert_allclose(halves, result, **TIGHT)


def test_evolve_of_one_token_in_closed_form():
    velocity = np.array([[[-2.0, 2.0]], [[1.0, -1.0]]])
    for duration in (0.0, 0.1, 1.0, 300.0):
        first = 1 / 3 + 2 / 3 * math.exp(-3 * duration)
        result = exact.evolve(np.array([1.0, 0.0]), velocity, duration)
        np.testing.assert_allclose(result, [first, 1 - first], **TIGHT)
    several = exact.evolve(np.array([1.0, 0.0]), velocity, np.array([0.0, 0.1, 0.1, 1.0, 300.0]))
    first = 1 / 3 + 2 / 3 * np.exp(-3 * np.array([0.0, 0.1, 0.1, 1.0, 300.0]))
    np.testing.assert_allclose(several, np.stack([first, 1 - first], axis=1), **TIGHT)
    coarse = exact.evolve(np.array([1.0, 0.0]), velocity, 1.0, tail=1e-3)
    assert 1e-7 < 1.0 - coarse.sum() <= 1e-3  # what is cut is not put back


# ── large spaces ──────────────────────────────────────────────────────────────────────────────


def test_large_space_by_factored_contraction():
    start = time.monotonic()
    rng = np.random.default_rng(0)
    num_positions, total = 14, 2**14
    context = np.arange(num_positions) < 3
    coupling = exact.FactoredCoupling(
        random_probs(rng, total), random_probs(rng, num_positions, 2), context
    )
    kappa = rng.random(num_positions)
    token_path = exact.mixture_token_path(kappa, 2, 2)
    path = exact.marginal_path(coupling, token_path)
    assert path.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(exact.source_probs(coupling).sum(), 1.0, **TIGHT)

    few = (1, 6, 13)  # positions' marginal path is the path of their marginal
    small = exact.FactoredCoupling(
        exact.marginal(coupling.data, few, 2, num_positions),
        coupling.source_tokens[list(few)],
        context[list(few)],
    )
    triples = brute_triples(brute_joint(small, (2, 2, 3)), token_path[list(few)])
    np.testing.assert_allclose(
        exact.marginal(path, few, 2, num_positions), triples.sum(axis=(1, 2)), **TIGHT
    )
    pair, support = exact.pair_posterior(coupling, token_path)
    slope = np.ones(num_positions)
    factor = (slope / (1 - kappa))[:, None, None, None, None]
    eye = np.eye(2)
    token_velocity = factor * (eye[None, None, :, None, :] - eye[None, None, None, :, :])
    token_velocity = np.broadcast_to(token_velocity, (num_positions, 2, 2, 2, 2))
    velocity = exact.marginal_velocity(pair, token_velocity)
    rate = np.broadcast_to(eye[None, None, :, :] - eye[None, :, None, :], token_path.shape)
    change = exact.path_derivative(coupling, token_path, rate)
    np.testing.assert_allclose(change, -exact.divergence(path, velocity), **TIGHT)
    assert support.all()

    step_probs = 0.01 * velocity + eye[exact.states(2, num_positions)]
    pushed = exact.push_forward(path, step_probs)
    assert pushed.sum() == pytest.approx(1.0, abs=1e-12)
    evolved = exact.evolve(path, velocity, 0.01)
    assert evolved.sum() == pytest.approx(1.0, abs=1e-12)
    assert exact.total_variation(pushed, evolved) < 0.01
    assert time.monotonic() - start < 10.0


def test_largest_dense_coupling():
    space = (2, 2, 9)
    joint = random_joint(np.random.default_rng(0), space)
    token_path = exact.mixture_token_path(np.linspace(0, 1, 9), 2, 2)
    assert exact.marginal_path(joint, token_path).sum() == pytest.approx(1.0, abs=1e-12)


# ── refusals ──────────────────────────────────────────────────────────────────────────────────

HALF = np.array([0.5, 0.5])
RATE = np.array([[[-1.0, 1.0]], [[1.0, -1.0]]])
MIXTURE = exact.mixture_token_path(np.array([0.5]), 2, 2)
REFUSALS = [
    (lambda: exact.states(2, 15), r"at most 20,000; got .* = 32,768.* 3,932,160 bytes"),
    (lambda: exact.states(2, 0), r"`num_positions` must be at least 1; got num_positions = 0"),
    (lambda: exact.marginal(HALF, (1,), 2, 1), r"`positions` must be strictly increasing in \[0"),
    (
        lambda: exact.marginal(HALF, (), 3, 1),
        r"`probs` must have shape \[3\]; got probs.shape = \[2\]",
    ),
    (lambda: exact.entropy(np.array([0.5, 0.6])), r"`p` must sum to 1 .*; got a sum = 1.1"),
    (lambda: exact.entropy(np.array([1.5, -0.5])), r"`p` must be non-negative; .* -0.5"),
    (lambda: exact.entropy(np.array([1.0, np.nan])), r"`p` must be finite"),
    (lambda: exact.entropy(HALF + 0j), r"`p` must be real; got p.dtype = complex128"),
    (lambda: exact.kl(HALF, np.array([0.5, 0.4])), r"`q` must sum to 1"),
    (lambda: exact.mutual_information(HALF), r"`joint` must have two axes"),
    (lambda: exact.embed(HALF, 2, 1, 1), r"`num_states` must be at least 2; got num_states = 1"),
    (
        lambda: exact.token_conditionals(HALF, np.array([1]), 2, 1),
        r"`known` must be bool; got known.dtype = int",
    ),
    (
        lambda: exact.conditional_total_correlation(np.full(4, 0.25), (0, 1), (1,), 2, 2),
        r"`block` and `given` must be disjoint; got block = \(0, 1\) and given = \(1,\)",
    ),
    (
        lambda: exact.mixture_token_path(np.array([0.1, 1.2]), 2, 2),
        r"`kappa` must lie in \[0, 1\]; got kappa = 1.2",
    ),
    (lambda: exact.mixture_token_path(np.array(0.1), 2, 2), r"`kappa` must have one axis \[N\]"),
    (
        lambda: exact.convex_token_path(MIXTURE[None], np.array([[0.9]])),
        r"`kappa \(over its first axis\)` must sum to 1",
    ),
    (lambda: exact.metric_token_path(-1.0, 1 - np.eye(2), 1, 2), r"`beta` .* got beta = -1.0"),
    (lambda: exact.metric_token_path(1.0, np.eye(2), 1, 2), r"`distances` must be 0 on"),
    (lambda: exact.marginal_path(np.ones((2, 2)), MIXTURE), r"`coupling .*` must sum to 1"),
    (lambda: exact.marginal_path(np.eye(3) / 3, MIXTURE), r"`coupling` must have shape \[2, 2\]"),
    (lambda: exact.marginal_path(np.eye(2) / 2, 2 * MIXTURE), r"`token_path` must sum to 1"),
    (lambda: exact.pair_posterior(np.eye(2) / 2, MIXTURE + 0j), r"`token_path` must be real"),
    (
        lambda: exact.path_derivative(np.eye(2) / 2, MIXTURE, MIXTURE),
        r"must sum to 0 .*; got the largest \|sum\| = 1",
    ),
    (
        lambda: exact.dense(
            exact.FactoredCoupling(
                np.full(1024, 1 / 1024), np.full((10, 2), 0.5), np.zeros(10, bool)
            )
        ),
        r"at most 512 sequences x_0; .* 1,024 x 1,024 pairs would take 8,388,608 bytes",
    ),
    (
        lambda: exact.data_probs(
            exact.FactoredCoupling(np.full(3, 1 / 3), np.full((2, 2), 0.5), np.zeros(2, bool))
        ),
        r"`data` must have V \*\* 2 entries with V <= 2; got data.size = 3",
    ),
    (
        lambda: exact.marginal_velocity(
            np.full((2, 1, 2, 2), 0.25), np.full((1, 2, 2, 2, 2), np.nan)
        ),
        r"`token_velocity` must be finite .* at position 0 with the current value 0",
    ),
    (
        lambda: exact.pair_posterior(
            exact.FactoredCoupling(np.ones(1), np.full((1, 10_001), 1 / 10_001), np.zeros(1, bool)),
            np.ones((1, 2, 1, 2)) / 2,
        ),
        r"`source_tokens` must have shape \[1, 2\]; got source_tokens.shape = \[1, 10001\]",
    ),
    (lambda: exact.mixture_token_path(np.zeros(2), 900, 900), r"would take 11,664,000,000"),
    (
        lambda: exact.mixed_path(HALF, np.eye(3)),
        r"shapes \[K\] and \[K, Z\]; got weights.shape = \[2\]",
    ),
    (
        lambda: exact.divergence(HALF, RATE * np.nan),
        r"`velocity` must be finite where `probs`",
    ),
    (lambda: exact.divergence(HALF, np.ones((3, 1, 2))), r"`velocity` must have shape \[2, 1, 2\]"),
    (
        lambda: exact.generator(np.ones((2, 1, 2))),
        r"`velocity` must sum to 0 .*; got the largest \|sum\| = 2.0",
    ),
    (
        lambda: exact.generator(np.zeros((2**11, 11, 2))),
        r"at most 1,024 states; got states = 2,048, which would take 33,554,432 bytes",
    ),
    (lambda: exact.kernel(np.full((2**11, 11, 2), 0.5)), r"A kernel must have .* 33,554,432"),
    (lambda: exact.kernel(RATE), r"`step_probs` must be non-negative; got min step_probs = -1.0"),
    (lambda: exact.push_forward(HALF, RATE + 1), r"`step_probs` must sum to 1 .*; got a sum = 2.0"),
    (
        lambda: exact.evolve(HALF, -RATE, 1.0),
        r"`velocity` must be non-negative .* got min velocity = -1.0",
    ),
    (
        lambda: exact.evolve(HALF, RATE, -1.0),
        r"`duration` must lie in \[0, inf\); got duration = -1.0",
    ),
    (
        lambda: exact.evolve(HALF, RATE, np.array([0.5, 0.25])),
        r"`duration` must not fall; got duration = \[0.5 +0.25\]",
    ),
    (lambda: exact.evolve(HALF, RATE, 1e7), r"must be at most 1e\+06; got .* = 10000000.0"),
    (
        lambda: exact.evolve(HALF, RATE, 1.0, tail=0.0),
        r"`tail` must lie in \(0, 1\); got tail = 0.0",
    ),
    (
        lambda: exact.sequence_probs(np.eye(2)[exact.states(2, 2)]),
        r"`conditionals` must depend on the tokens before t alone; got a difference of .* at t = 0",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rounding_is_no_reason_to_refuse():
    rounded = np.array([1.0 + 2e-16, -2e-16])
    assert exact.entropy(rounded) == pytest.approx(0.0, abs=1e-15)
    step_probs = np.broadcast_to(rounded, (2, 1, 2))
    np.testing.assert_allclose(exact.push_forward(HALF, step_probs), [1.0, 0.0], **TIGHT)


# ── the house ─────────────────────────────────────────────────────────────────────────────────


def test_arguments_are_left_as_they_were():
    rng = np.random.default_rng(0)
    space = (2, 3, 2)
    coupling, path = random_joint(rng, space), random_token_path(rng, space)
    probs, velocity = exact.source_probs(coupling), random_velocity(rng, 3, 2)
    for array in (coupling, path, probs, velocity):
        array.setflags(write=False)
    exact.posteriors(coupling, path)
    exact.divergence(probs, velocity)
    exact.evolve(probs, velocity, 1.0)
    assert exact.evolve(probs, velocity, 0.0) is not probs


@pytest.mark.parametrize(
    "source", sorted(Path(exact.__file__).parent.glob("*.py")), ids=lambda source: source.name
)
def test_exact_imports_numpy_and_the_standard_library_alone(source):
    allowed = {"numpy", *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module]
        for name in names:
            assert name.split(".")[0] in allowed or name.startswith("dfm_jax.exact."), name
    assert len(source.read_text(encoding="utf-8").splitlines()) < 300


def test_public_names_are_documented():
    for name in dir(exact):
        value = getattr(exact, name)
        if callable(value) and getattr(value, "__module__", "").startswith("dfm_jax.exact"):
            assert value.__doc__, name
