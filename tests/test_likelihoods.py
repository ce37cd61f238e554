"""Likelihoods and bounds of models on listed spaces, against enumeration and quadrature."""

import math
from functools import cache, partial
from itertools import pairwise, permutations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from dfm_jax import exact, likelihoods, schedules

V, N = 2, 3
S = V + 1
X_1 = np.array([1, 0, 1], np.int32)  # whatever the width of ints
FREE = np.zeros(N, bool)
GIVEN = np.array([False, True, False])
DATA = 0.02 + 0.84 * np.random.default_rng(3).dirichlet(np.full(V**N, 0.7))
TOKENS = exact.states(V, N).astype(np.int32)
HERE = int(X_1 @ V ** np.arange(N)[::-1])
SCHEDULES = {
    "linear": schedules.linear(),
    "polynomial": schedules.polynomial(2.0),
    "cosine": schedules.cosine(),
}
ORDERS = list(permutations(range(N)))
MASKS = np.array(list(product([False, True], repeat=N)))  # every way to mask x_1
KAPPA = {
    "linear": lambda t: t,
    "polynomial": lambda t: t**2,
    "cosine": lambda t: 1 - np.cos(np.pi * t / 2),
}
RATE = {
    "linear": lambda t: 1 / (1 - t),
    "polynomial": lambda t: 2 * t / (1 - t**2),
    "cosine": lambda t: np.pi / 2 * np.tan(np.pi * t / 2),
}
SIGMAS = 5


# ── models: a table of logits for every state, and the exact posterior of a uniform source ──────


def looked_up(table, x_t, t):
    return jnp.asarray(table)[jnp.sum(x_t * S ** jnp.arange(N, dtype=x_t.dtype)[::-1])]


def timed(table, x_t, t):
    """A model whose distribution depends on the time that it is told."""
    return (1 + t) * looked_up(table, x_t, t)


def posterior_table():
    """log p_{1|t}(· | z) of the all-mask source at each of the S^N states; −∞ off the support."""
    coupling = exact.FactoredCoupling(DATA, np.tile(np.eye(S)[V], (N, 1)), FREE)
    posterior, _, _ = exact.posteriors(coupling, exact.mixture_token_path(np.full(N, 0.5), V, S))
    with np.errstate(divide="ignore"):
        return np.log(posterior)


def any_table(seed=0):
    """A model whose orders disagree."""
    return np.random.default_rng(seed).normal(size=(S**N, N, V))


def position_table():
    """A model that reads nothing but the position."""
    return np.broadcast_to(any_table()[0], (S**N, N, V))


def uniform_posterior(log_data, x_t, t):
    """log p_{1|t}^i(v | z) for κ_t = t and X_0 uniform."""
    same = jnp.asarray(TOKENS) == x_t[None]
    joint = log_data + jnp.sum(jnp.log(jnp.where(same, (1 - t) / V + t, (1 - t) / V)), axis=1)
    ours = jnp.asarray(TOKENS)[:, :, None] == jnp.arange(V)[None, None]
    return jax.nn.logsumexp(jnp.where(ours, joint[:, None, None], -jnp.inf), axis=0)


# ── the oracle: NumPy, one state at a time ──────────────────────────────────────────────────────


def log_rows(table, x_t):
    logits = table[x_t @ S ** np.arange(N)[::-1]]
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def cost(table, masked):
    """Σ over masked positions of −log p̂^i(x_1^i | x_1 with these masked)."""
    rows = log_rows(table, np.where(masked, V, X_1))
    return -sum(rows[i, X_1[i]] for i in range(N) if masked[i])


def order_nlls(table, context=FREE):
    def one(order):
        masked, nats = ~context, 0.0
        for i in order:
            if masked[i]:
                nats -= log_rows(table, np.where(masked, V, X_1))[i, X_1[i]]
                masked = masked & (np.arange(N) != i)
        return nats

    return np.array([one(order) for order in ORDERS])


def mass(masked, kappa):
    return np.prod(np.where(masked, 1 - kappa, kappa))


def quadrature(integrand, end, num_nodes=64):
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    times = end * (nodes + 1) / 2
    return end / 2 * sum(w * integrand(t) for w, t in zip(weights, times, strict=True))


def masked_bound(table, kappa, rate, end):
    """L2 up to `end` with the given weight, and S4 there."""

    def at(t):
        return sum(mass(masked, kappa(t)) * cost(table, masked) for masked in MASKS)

    return quadrature(lambda t: rate(t) * at(t), end) + at(end)


def uniform_bound(end, probs):
    """L2 as Σ_v [u log(u/û) − u + û], and S4, for κ_t = t; `probs(z, t)` gives p̂ [N, V]."""

    def over_states(t, term):
        total = 0.0
        for z in TOKENS:
            chance = np.prod((1 - t) / V + t * (z == X_1))
            total += chance * term(z, np.asarray(probs(z, t)), t)
        return total

    def jumps(z, p, t):
        nats = 0.0
        for i, v in product(range(N), range(V)):
            if v != z[i]:
                u, u_hat = float(v == X_1[i]) / (1 - t), p[i, v] / (1 - t)
                nats += (u * np.log(u / u_hat) if u > 0 else 0.0) - u + u_hat
        return nats

    def last(z, p, t):
        return -np.sum(np.log(p[np.arange(N), X_1]))

    return quadrature(lambda t: over_states(t, jumps), end) + over_states(end, last)


def grid_value(table, kappa):
    """L5 of a schedule table with one κ for all positions."""
    total = 0.0
    for now, then in pairwise(kappa):
        step = sum(mass(masked, now) * cost(table, masked) for masked in MASKS)
        total += (then - now) / (1 - now) * step
    return total


def assert_estimates(estimate, value):
    mean, error = map(float, estimate)
    assert abs(mean - value) <= SIGMAS * error + 1e-5, f"{mean:.5f} ± {error:.5f}, not {value:.5f}"


def jitted(bound, denoiser, **options):
    return jax.jit(lambda key, params, *args: bound(key, params, denoiser, *args, **options))


# ── exact: one order, left to right ─────────────────────────────────────────────────────────────


def next_logits(log_data, tokens):
    """A causal network: row i is the distribution of the token behind `tokens[1 … i]`, `tokens[0]`
    = V.
    """
    x = jnp.pad(tokens[1:], (0, N + 1 - tokens.shape[0])).astype(jnp.int32)

    def row(i):
        agrees = jnp.all((jnp.asarray(TOKENS) == x[None]) | (jnp.arange(N) >= i)[None], axis=1)
        ours = agrees[:, None] & (
            jnp.asarray(TOKENS)[:, i, None] == jnp.arange(V, dtype=jnp.int32)[None]
        )
        return jax.nn.logsumexp(jnp.where(ours, log_data[:, None], -jnp.inf), axis=0)

    return jnp.stack([row(i) for i in range(tokens.shape[0])])


def prefix_probs(length):
    return DATA[np.all(TOKENS[:, :length] == X_1[:length], axis=1)].sum()


@pytest.mark.slow
@pytest.mark.statement("S1", "A4")
@pytest.mark.parametrize("prompt_length", range(N + 1))
@pytest.mark.usefixtures("strict")
def test_a_causal_network_of_the_data_pays_what_the_data_do(prompt_length):
    nats = likelihoods.autoregressive_nll(
        jnp.log(DATA), next_logits, X_1, start=V, prompt_length=prompt_length
    )
    expected = -np.log(DATA[HERE] / prefix_probs(prompt_length))
    np.testing.assert_allclose(jnp.sum(nats), expected, atol=1e-12)
    assert np.all(nats[:prompt_length] == 0)


@pytest.mark.slow
@pytest.mark.statement("S1")
@pytest.mark.usefixtures("strict")
def test_without_a_start_the_first_token_is_given():
    """And with one it pays: the sums differ by exactly its own term."""

    def unstarted(log_data, tokens):
        return next_logits(log_data, jnp.concatenate([jnp.full(1, V, tokens.dtype), tokens]))[1:]

    nats = likelihoods.autoregressive_nll(jnp.log(DATA), unstarted, X_1)
    np.testing.assert_allclose(jnp.sum(nats), -np.log(DATA[HERE] / prefix_probs(1)), atol=1e-12)
    assert nats[0] == 0
    assert abs(float(jnp.sum(nats)) + np.log(DATA[HERE])) > 0.1


@pytest.mark.statement("L3", "A1")
@pytest.mark.parametrize("context", [FREE, GIVEN], ids=["free", "given"])
@pytest.mark.usefixtures("strict")
def test_every_order_of_the_exact_posterior_gives_the_data(context):
    table, nll = jnp.asarray(posterior_table()), likelihoods.any_order_nll
    one = jax.jit(lambda order: nll(table, looked_up, X_1, order, context))
    nats = np.array([one(jnp.asarray(order)) for order in ORDERS])
    given = DATA[np.all((TOKENS == X_1) | ~context, axis=1)].sum()
    np.testing.assert_allclose(nats.sum(axis=1), -np.log(DATA[HERE] / given), atol=1e-12)
    assert np.all(nats[:, context] == 0)


@pytest.mark.statement("A1")
@pytest.mark.parametrize("context", [FREE, GIVEN], ids=["free", "given"])
@pytest.mark.usefixtures("strict")
def test_each_order_of_a_model_pays_its_own(context):
    """The sum over positions is the order's, and orders differ."""
    table, nll = jnp.asarray(any_table()), likelihoods.any_order_nll
    one = jax.jit(lambda order: nll(table, looked_up, X_1, order, context))
    nats = np.array([one(jnp.asarray(order)).sum() for order in ORDERS])
    np.testing.assert_allclose(nats, order_nlls(any_table(), context), atol=1e-12)
    assert np.ptp(nats) > 0.1


@pytest.mark.statement("A1")
def test_the_time_that_an_order_tells_is_the_share_of_the_free_that_are_shown():
    def schedule(params, x_t, t):
        """Token 0 at 0.2 + t/2: what it pays says what time it was."""
        here = 0.2 + t / 2
        rest = jnp.full(V - 1, (1 - here) / (V - 1))
        return jnp.broadcast_to(jnp.log(jnp.append(here, rest)), (x_t.shape[0], V))

    context, order = np.array([False, True, False, False]), np.array([1, 3, 0, 2])
    x_1 = jnp.zeros(4, int)
    nats = likelihoods.any_order_nll((), schedule, x_1, jnp.asarray(order), context)
    expected = -np.log(0.2 + np.array([1 / 3, 0, 2 / 3, 0]) / 2)
    expected[1] = 0.0
    np.testing.assert_allclose(nats, expected, rtol=1e-5)


# ── bounds: unbiased, and for which number ──────────────────────────────────────────────────────

COUNTS = {"num_strata": 8, "num_replicates": 400}


@pytest.mark.slow
@pytest.mark.statement("L3")
@pytest.mark.parametrize(
    ("context", "antithetic"), [(FREE, True), (GIVEN, False)], ids=["free", "given"]
)
def test_the_any_order_bound_is_the_mean_over_orders(key, context, antithetic):
    bound = jitted(likelihoods.any_order_bound, looked_up, antithetic=antithetic, **COUNTS)
    value = order_nlls(any_table(), context).mean()
    assert_estimates(bound(key, any_table(), X_1, context), value)


@pytest.mark.slow
@pytest.mark.statement("L3")
@pytest.mark.usefixtures("x64")
def test_the_any_order_bound_of_a_model_with_time_is_the_mean_over_its_orders(key):
    def nll(order):
        return likelihoods.any_order_nll(table, timed, X_1, order, FREE).sum()

    table = jnp.asarray(any_table())
    value = jax.jit(lambda orders: jnp.mean(jax.vmap(nll)(orders)))(np.array(ORDERS))
    bound = jitted(likelihoods.any_order_bound, timed, **COUNTS)
    assert_estimates(bound(key, table, X_1, FREE), float(value))
    assert abs(float(value) - order_nlls(any_table()).mean()) > 0.02


@pytest.mark.slow
@pytest.mark.statement("L3")
def test_the_any_order_bound_shows_one_share_of_the_free_at_a_time(key):
    """Of a model that reads how many are masked, with a stratum for each number, without noise."""

    def counting(params, x_t, t):
        """Token 0 at 0.2 + 0.2 M, M masks."""
        here = 0.2 + 0.2 * jnp.sum(x_t == V)
        rest = jnp.full(V - 1, (1 - here) / (V - 1))
        return jnp.broadcast_to(jnp.log(jnp.append(here, rest)), (x_t.shape[0], V))

    context, num_free = np.array([False, True, False, False]), 3
    counts = {"num_strata": num_free, "num_replicates": 64}
    bound = jitted(likelihoods.any_order_bound, counting, **counts)
    found = bound(key, (), jnp.zeros(4, int), context)
    expected = -np.log(0.2 + 0.2 * np.array([3, 2, 1])).sum()
    np.testing.assert_allclose(found.mean, expected, rtol=1e-5)
    assert found.standard_error < 1e-5


@pytest.mark.slow
@pytest.mark.statement("L2", "L3")
@pytest.mark.parametrize("name", ["polynomial", "cosine"])
def test_the_masked_bound_is_the_same_number_for_every_schedule(name):
    """The mean over orders; and of the exact posterior, whose orders agree, −log q."""
    bound = jitted(
        likelihoods.evidence_bound,
        looked_up,
        schedule=SCHEDULES[name],
        source="mask",
        antithetic=True,
        **COUNTS,
    )
    value = order_nlls(any_table()).mean()
    assert_estimates(bound(jax.random.key(0), jnp.asarray(any_table()), X_1), value)
    exact_table = jnp.asarray(posterior_table())
    assert_estimates(bound(jax.random.key(1), exact_table, X_1), -np.log(DATA[HERE]))


@pytest.mark.slow
@pytest.mark.statement("L2", "L3", "S4")
def test_the_masked_bound_of_a_process_that_is_left_early_is_another_number():
    name, table, bound = "cosine", any_table(), likelihoods.evidence_bound
    options = {"source": "mask", "antithetic": True, **COUNTS}
    early = jax.jit(
        lambda key: bound(key, table, looked_up, X_1, SCHEDULES[name], end=0.7, **options)
    )
    value = masked_bound(table, KAPPA[name], RATE[name], 0.7)
    assert_estimates(early(jax.random.key(1)), value)
    assert abs(value - order_nlls(table).mean()) > 0.02


@pytest.mark.slow
@pytest.mark.statement("L2", "A5")
def test_the_masked_bound_is_of_the_free_tokens_given_the_others(key):
    bound = jitted(
        likelihoods.evidence_bound,
        looked_up,
        schedule=SCHEDULES["cosine"],
        source="mask",
        context=GIVEN,
        **COUNTS,
    )
    assert_estimates(bound(key, any_table(), X_1), order_nlls(any_table(), GIVEN).mean())


@pytest.mark.slow
@pytest.mark.statement("L2")
@pytest.mark.usefixtures("x64")
def test_a_weight_of_another_schedule_is_another_number():
    """κ̇/(1−κ) belongs to κ: under κ = t², 1/(1−t) is no bound of anything here."""
    kappa, right = schedules.polynomial(2.0)
    wrong = schedules.linear().log_complement
    probs = jnp.asarray(np.tile(np.eye(S)[V], (N, 1)))
    table, end, counts = posterior_table(), 0.9, {"num_strata": 8, "num_replicates": 500}

    @jax.jit
    def bound(key, is_right):
        schedule = schedules.Schedule(kappa, lambda t: jnp.where(is_right, right(t), wrong(t)))
        return likelihoods.evidence_bound(
            key, jnp.asarray(table), looked_up, X_1, schedule, source=probs, end=end, **counts
        )

    # The exact posterior carries over: revealed tokens pay 0, and this is the masked bound.
    value = masked_bound(table, KAPPA["polynomial"], RATE["polynomial"], end)
    assert_estimates(bound(jax.random.key(0), True), value)
    estimate = bound(jax.random.key(1), False)
    assert_estimates(estimate, masked_bound(table, KAPPA["polynomial"], RATE["linear"], end))
    with pytest.raises(AssertionError, match="not"):
        assert_estimates(estimate, value)


@pytest.mark.slow
@pytest.mark.statement("L2", "S4")
@pytest.mark.usefixtures("x64")
def test_a_uniform_source_leaves_slack():
    end, log_data = 0.9, jnp.log(DATA)
    source = jnp.full((N, V), 1 / V)
    probs = jax.jit(lambda z, t: jnp.exp(jax.nn.log_softmax(uniform_posterior(log_data, z, t))))
    value = uniform_bound(end, probs)
    coupling = exact.FactoredCoupling(DATA, np.full((N, V), 1 / V), FREE)
    posterior, _, _ = exact.posteriors(coupling, exact.mixture_token_path(np.full(N, 0.3), V, V))
    np.testing.assert_allclose(probs(TOKENS[5], 0.3), posterior[5], atol=1e-12)
    bound = jax.jit(
        lambda key: likelihoods.evidence_bound(
            key,
            log_data,
            uniform_posterior,
            X_1,
            schedules.linear(),
            source=source,
            end=end,
            num_strata=16,
            num_replicates=400,
            antithetic=True,
        )
    )
    assert_estimates(bound(jax.random.key(0)), value)
    assert value > -np.log(DATA[HERE]) + 0.1


@pytest.mark.slow
@pytest.mark.statement("L2")
def test_given_tokens_of_a_uniform_source_neither_move_nor_pay(key):
    """With everything given nothing is left to pay."""
    bound = jitted(
        likelihoods.evidence_bound,
        looked_up,
        schedule=schedules.linear(),
        source=jnp.full((N, V), 1 / V),
        context=np.ones(N, bool),
        end=0.9,
        num_strata=2,
        num_replicates=2,
    )
    assert tuple(map(float, bound(key, any_table(), X_1))) == (0.0, 0.0)


@pytest.mark.slow
@pytest.mark.statement("L5", "A4")
@pytest.mark.usefixtures("x64")
def test_the_grid_bound_of_a_left_to_right_table_is_the_next_token_nll(key):
    """With a stratum a step nothing is random."""
    table = any_table()
    bound = jitted(likelihoods.grid_bound, looked_up, num_strata=N, num_replicates=2)
    estimate = bound(key, jnp.asarray(table), X_1, schedules.left_to_right(N))
    np.testing.assert_allclose(estimate.mean, order_nlls(table)[0], atol=1e-12)
    assert float(estimate.standard_error) < 1e-12


@pytest.mark.slow
@pytest.mark.statement("L5")
@pytest.mark.parametrize(("num_strata", "antithetic"), [(1, False), (4, True)])
def test_the_grid_bound_is_the_sum_over_steps(key, num_strata, antithetic):
    kappa = KAPPA["polynomial"](np.linspace(0, 1, 9))
    bound = jitted(
        likelihoods.grid_bound,
        looked_up,
        num_strata=num_strata,
        num_replicates=400,
        antithetic=antithetic,
    )
    table = schedules.masked(SCHEDULES["polynomial"], 8, N)
    value = grid_value(any_table(), kappa)
    assert_estimates(bound(key, any_table(), X_1, table), value)
    assert abs(value - order_nlls(any_table()).mean()) > 0.02, "the cost of eight steps"


# ── standard errors ─────────────────────────────────────────────────────────────────────────────

BOUNDS = {
    "any order": (likelihoods.any_order_bound, (FREE,), {}),
    "masks, early": (
        likelihoods.evidence_bound,
        (),
        {"schedule": schedules.linear(), "source": "mask", "end": 0.5},
    ),
    "grid": (likelihoods.grid_bound, (schedules.masked(schedules.linear(), 4, N),), {}),
}
VALUES = {
    "any order": order_nlls(any_table()).mean(),
    "masks, early": masked_bound(any_table(), KAPPA["linear"], RATE["linear"], 0.5),
    "grid": grid_value(any_table(), np.linspace(0, 1, 5)),
}
KEYS = 2000


@cache
def over_keys(name, num_replicates, num_strata=4, antithetic=False, table=any_table):
    bound, args, options = BOUNDS[name]
    one = partial(
        bound,
        params=table(),
        denoiser=looked_up,
        x_1=X_1,
        num_strata=num_strata,
        num_replicates=num_replicates,
        antithetic=antithetic,
        **dict(zip(["context" if name == "any order" else "table"], args, strict=False)),
        **options,
    )
    means, errors = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), KEYS))
    return np.asarray(means, np.float64), np.asarray(errors, np.float64)


@pytest.mark.slow
@pytest.mark.statement("L2", "L3", "L5")
@pytest.mark.parametrize(
    ("name", "antithetic"), [("any order", False), ("masks, early", True), ("grid", False)]
)
def test_over_many_keys_estimates_are_unbiased_and_as_spread_as_they_say(name, antithetic):
    """The variance reported is that of the means, to 20 %: five standard errors of 2,000 of them,
    √(2/2000) = 3.2 % each, and a little for tails.
    """
    means, errors = over_keys(name, 4, antithetic=antithetic)
    assert abs(means.mean() - VALUES[name]) <= SIGMAS * means.std() / math.sqrt(KEYS)
    np.testing.assert_allclose(np.mean(errors**2), means.var(), rtol=0.2)


@pytest.mark.slow
@pytest.mark.statement("L2", "L3", "L5")
@pytest.mark.parametrize("name", [pytest.param("any order", marks=pytest.mark.exhaustive), "grid"])
def test_at_equal_evaluations_strata_are_no_worse(name):
    """4 strata × 4 replicates against 1 × 16. Not with a last draw, which is one a replicate."""
    strata, naive = over_keys(name, 4)[0], over_keys(name, 16, num_strata=1)[0]
    assert strata.var() <= naive.var() * 1.1  # a ratio of variances is known to 4.5 %


@pytest.mark.slow
@pytest.mark.statement("L3")
def test_at_equal_evaluations_mirrored_pairs_are_better():
    """4 pairs against 8 single draws: what one shows, the other masks, so costs that differ by
    position are balanced.
    """
    pairs = over_keys("any order", 4, num_strata=1, antithetic=True, table=position_table)[0]
    single = over_keys("any order", 8, num_strata=1, table=position_table)[0]
    assert pairs.var() <= 0.95 * single.var()


# ── contracts and refusals ──────────────────────────────────────────────────────────────────────


def test_the_error_of_two_replicates_is_half_their_distance():
    """std / √R with Bessel's correction: √2 · 1.5 / √2."""
    found = likelihoods._estimate(jnp.array([1.0, 4.0]))
    np.testing.assert_allclose(found, (2.5, 1.5), rtol=1e-6)


@pytest.mark.slow
def test_mapped_is_one_by_one():
    def one(key, x_1):
        args = (key, any_table(), looked_up, x_1, schedules.masked(schedules.linear(), 2, N))
        return likelihoods.grid_bound(*args, num_strata=2, num_replicates=2)

    x_1 = jnp.asarray(TOKENS[[3, 5]])
    mapped = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 2), x_1)
    keys = jax.random.split(jax.random.key(0), 2)
    single = jax.jit(one)
    each = [single(key, x) for key, x in zip(keys, x_1, strict=True)]
    np.testing.assert_allclose(mapped.mean, [e.mean for e in each], rtol=1e-5)
    errors = [e.standard_error for e in each]
    np.testing.assert_allclose(mapped.standard_error, errors, rtol=1e-4, atol=1e-6)


def call(bound, *args, **options):
    counts = {"num_strata": 2, "num_replicates": 2}
    key = jax.random.key(0)
    return bound(key, any_table(), looked_up, X_1, *args, **{**counts, **options})


PROBS = np.full((N, V), 1 / V)
ANY, ELBO, GRID = likelihoods.any_order_bound, likelihoods.evidence_bound, likelihoods.grid_bound
LINEAR, TABLE = schedules.linear(), schedules.left_to_right(N)
PER_POSITION = schedules.polynomial(jnp.array([1.0, 2.0, 3.0]))
NLL, NEXT = likelihoods.any_order_nll, likelihoods.autoregressive_nll
REFUSALS = [
    (
        lambda: call(ANY, FREE, num_replicates=1),
        "`num_replicates` must be at least 2; got num_replicates = 1",
    ),
    (lambda: call(ANY, FREE, num_strata=0), "`num_strata` must be at least 1; got num_strata = 0"),
    (lambda: call(ELBO, LINEAR, source=PROBS), "`end` must lie where κ < 1 .*; got end = 1.0"),
    (
        lambda: call(ELBO, LINEAR, source=PROBS, end=0.0),
        r"`end` must lie in \(0, 1\]; got end = 0.0",
    ),
    (lambda: call(ELBO, LINEAR, source=PROBS / 2, end=0.5), "`source` must sum to 1"),
    (
        lambda: call(ELBO, LINEAR, source=np.eye(5)[:N], end=0.5),
        "`num_states` must be V = 2, or 3 with a mask; got num_states = 5",
    ),
    (
        lambda: call(ELBO, PER_POSITION, source="mask"),
        r"`schedule` must have one κ for all positions; got schedule.kappa\(0.5\).shape = \(3,\)",
    ),
    (
        lambda: call(GRID, TABLE, num_strata=2),
        "`num_strata` must divide T = 3; got num_strata = 2",
    ),
    (lambda: call(GRID, TABLE[:3]), "`table` must end at κ = 1"),
    (
        lambda: NEXT(jnp.log(DATA), next_logits, X_1, start=-1),
        "`start` must lie in .0, 2.*got start = -1",
    ),
    (
        lambda: NEXT(jnp.log(DATA), next_logits, X_1, start=S),
        "`start` must lie in .0, 2.*got start = 3",
    ),
    (
        lambda: NEXT(jnp.log(DATA), next_logits, X_1, start=V, prompt_length=4),
        "`prompt_length` must lie in .0, 3.*got prompt_length = 4",
    ),
    (
        lambda: NEXT(jnp.log(DATA), next_logits, X_1[:1]),
        "`x` must hold two tokens if `start` is None",
    ),
    (
        lambda: NLL(any_table(), looked_up, X_1, np.array([0, 0, 1]), FREE),
        "`order` must hold each of 0 … N − 1 once",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("refused", "message"), REFUSALS, ids=[m for _, m in REFUSALS])
def test_what_makes_no_sense_is_refused_by_name(refused, message):
    with pytest.raises(ValueError, match=message):
        refused()


@pytest.mark.parametrize(
    "refused",
    [
        lambda: call(ANY, FREE[:2]),
        lambda: call(ELBO, LINEAR, source="mask", context=FREE[:2]),
        lambda: call(ELBO, LINEAR, source=PROBS[:2], end=0.5),
        lambda: call(GRID, TABLE, num_strata=3, context=FREE[:2]),
        lambda: NLL(any_table(), looked_up, X_1, np.arange(N), FREE[:2]),
    ],
)
def test_a_context_or_a_source_of_another_length_is_refused(refused):
    with pytest.raises(TypeCheckError, match=r"context|source"):
        refused()
