"""Every fast form is its clear form: values, gradients, distributions, tails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from scipy.stats import binom
from test_paths import assert_drawn_from

from dfm_jax import boundary, fast, mixture, objectives, schedules

FALSE_ALARM = 1e-6


# Rows and tokens; none, one, and several of either.
SHAPES = pytest.mark.parametrize("shape", [(13, 7), (64, 50), (1, 3), (5, 1), (0, 4)], ids=str)


def drawn(rows, tokens, *, seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, tokens)) * scale
    x_1 = rng.integers(tokens, size=rows)
    x_t = np.where(rng.random(rows) < 0.3, x_1, rng.integers(tokens + 1, size=rows))
    wide = jnp.result_type(float)
    return logits.astype(wide), x_1, x_t, rng.random(rows).astype(wide)


def clear_cross_entropy(logits, x_1, weights):
    return jnp.sum(weights * objectives.cross_entropy_loss(logits, x_1))


def clear_generalized_kl(logits, x_1, x_t, weights):
    """At t = 0.3 of κ = t²; the rate is divided out, as the fast form's weights hold it."""
    schedule = schedules.polynomial(2.0)
    nats = objectives.generalized_kl_loss(logits, x_1, x_t, 0.3, schedule)
    return jnp.sum(weights / schedules.rate(0.3, schedule) * nats)


# ── losses ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.statement("L1")
@SHAPES
@pytest.mark.usefixtures("x64")
def test_the_cross_entropy_and_its_gradients(shape):
    @jax.jit
    def all_forms(logits, x_1, weights):
        clear = jax.value_and_grad(clear_cross_entropy, (0, 2))(logits, x_1, weights)
        quick = jax.value_and_grad(fast.cross_entropy, (0, 2))(logits, x_1, weights)
        return clear, quick, fast.cross_entropy(logits, x_1, weights)

    logits, x_1, _, weights = drawn(*shape)
    clear, quick, value = all_forms(logits, x_1, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), quick, clear)
    np.testing.assert_allclose(value, clear[0], rtol=1e-13)
    if logits.size and shape[1] > 1:
        wrong = all_forms(logits, (x_1 + 1) % shape[1], weights)[0][1][0]
        assert np.max(np.abs(wrong - quick[1][0])) > 1e-3


@pytest.mark.slow
@pytest.mark.statement("L2")
@SHAPES
@pytest.mark.usefixtures("x64")
def test_the_generalized_kl_and_its_gradients(shape):
    """Masks, tokens that have arrived, and others among the states."""

    @jax.jit
    def all_forms(*arguments):
        clear = jax.value_and_grad(clear_generalized_kl, (0, 3))(*arguments)
        quick = jax.value_and_grad(fast.generalized_kl, (0, 3))(*arguments)
        return clear, quick, fast.generalized_kl(*arguments)

    clear, quick, value = all_forms(*drawn(*shape))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), quick, clear)
    np.testing.assert_allclose(value, clear[0], rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_a_token_that_has_arrived_never_pays_for_an_impossible_one():
    """p̂(x_1) = 0 at z = x_1: the clear form pays p̂(z) − 1, not 0 · ∞; both of its gradients too."""
    logits = jnp.array([[0.0, -jnp.inf, 1.0]])
    at = (jnp.array([1]), jnp.array([1]), jnp.ones(1))
    value, slope = jax.value_and_grad(fast.generalized_kl)(logits, *at)
    assert value == 1
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.usefixtures("x64")
def test_a_row_without_weight_pays_nothing_though_it_is_impossible():
    logits = jnp.array([[-jnp.inf, 0.0, 1.0]])
    at = (jnp.array([0]), jnp.array([1]), jnp.zeros(1))
    assert fast.generalized_kl(logits, *at) == 0
    assert jax.value_and_grad(fast.generalized_kl)(logits, *at)[0] == 0
    assert fast.cross_entropy(logits, at[0], at[2]) == 0


@pytest.mark.slow
def test_the_gradient_has_the_type_of_the_logits():
    logits, x_1, _, weights = drawn(32, 40)
    half = logits.astype(jnp.bfloat16)
    value, slope = jax.jit(jax.value_and_grad(fast.cross_entropy))(half, x_1, weights)
    assert value.dtype == jnp.float32
    assert slope.dtype == jnp.bfloat16
    wide = jax.jit(clear_cross_entropy)(half.astype(np.float32), x_1, weights)
    np.testing.assert_allclose(value, wide, rtol=1e-5)


@pytest.mark.slow
def test_the_gradient_of_half_precision_is_rounded_once():
    """It is that of the copy in float32, rounded, also where p̂ rounded first would be 1."""
    logits, x_1, x_t, weights = drawn(32, 40)
    logits[np.arange(32), x_1] += 12
    half = logits.astype(jnp.bfloat16)
    gradient = jax.jit(jax.grad(fast.generalized_kl))
    wide = gradient(half.astype(jnp.float32), x_1, x_t, weights)
    found = gradient(half, x_1, x_t, weights)
    np.testing.assert_allclose(found.astype(jnp.float32), wide, rtol=2**-8, atol=0)
    probs = jax.nn.softmax(half.astype(jnp.float32)).astype(jnp.bfloat16).astype(jnp.float32)
    rough = weights[:, None] * (probs - jax.nn.one_hot(x_1, 40))
    exact = jax.jit(jax.grad(fast.cross_entropy))(half.astype(jnp.float32), x_1, weights)
    assert np.max(np.abs(rough - exact) / np.abs(exact)) > 0.5


@pytest.mark.parametrize(("dtype", "wide"), [(jnp.float32, 0), (jnp.bfloat16, 1)])
def test_one_wide_array_is_all_that_a_gradient_needs(dtype, wide):
    """Temporary memory of the compiled programs: a whole log-softmax keeps one more [N, V].

    The exponentials of half-precision logits are in float32, so they do not fit where the gradient
    will lie.
    """
    rows, tokens = 512, 4096
    logits, x_1 = drawn(rows, tokens)[:2]
    logits = logits.astype(dtype)

    def temporary(loss):
        program = jax.jit(
            jax.value_and_grad(lambda logits, x: loss(logits, x, jnp.full(rows, 1 / rows)))
        )
        memory = program.lower(logits, x_1).compile().memory_analysis()
        return memory.temp_size_in_bytes / (4 * rows * tokens)

    def whole_rows(logits, x_1, weights):
        log_probs = boundary.log_softmax(logits)
        return -jnp.sum(weights * jnp.take_along_axis(log_probs, x_1[:, None], axis=-1)[:, 0])

    assert temporary(fast.cross_entropy) < wide + 0.1
    assert temporary(clear_cross_entropy) < wide + 0.1
    assert temporary(whole_rows) > wide + 0.9


@pytest.mark.parametrize(
    ("x_1", "x_t", "message"),
    [
        ([0, 3], [0, 0], r"`x_1` must hold ids in \[0, 2\]; got x_1\[1\] = 3\."),
        ([0, -1], [0, 0], r"`x_1` must hold ids in \[0, 2\]; got x_1\[1\] = -1\."),
        ([0, 1], [0, 4], r"`x_t` must hold ids in \[0, 3\]; got x_t\[1\] = 4\."),
    ],
)
def test_ids_that_are_none_are_refused(x_1, x_t, message):
    with pytest.raises(ValueError, match=message):
        fast.generalized_kl(jnp.zeros((2, 3)), jnp.array(x_1), jnp.array(x_t), jnp.ones(2))


# ── mixtures ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.statement("D5", "D6")
@pytest.mark.parametrize("num_experts", [1, 5])
@pytest.mark.usefixtures("x64")
def test_the_mixture_and_its_gradients(num_experts):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(num_experts, 6, 11)) * 4
    log_weights = np.log(rng.dirichlet(np.ones(num_experts)))
    factors = rng.normal(size=(6, 11))

    def clear(log_weights, logits):
        probs = jax.nn.log_softmax(logits)
        return jnp.sum(factors * mixture.mix_log_probs(log_weights, probs))

    def quick(log_weights, logits):
        return jnp.sum(factors * mixture.mix_logits(log_weights, logits))

    @jax.jit
    def all_forms(log_weights, logits):
        stated = jax.value_and_grad(clear, (0, 1))(log_weights, logits)
        found = jax.value_and_grad(quick, (0, 1))(log_weights, logits)
        each = mixture.mix_logits(jnp.tile(log_weights[:, None], (1, 6)), logits)
        return stated, found, each, mixture.mix_logits(log_weights, logits)

    stated, found, each, once = all_forms(log_weights, logits)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), found, stated)
    np.testing.assert_allclose(each, once, atol=1e-13)


@pytest.mark.slow
def test_a_dead_expert_may_say_anything_and_an_impossible_token_stays_one():
    logits = np.float32([[[0.0, 1.0, -np.inf]], [[np.nan] * 3]])

    @jax.jit
    def value_and_slope(log_weights, rows):
        mixed = mixture.mix_logits(log_weights, rows)
        return mixed, jax.grad(lambda rows: mixture.mix_logits(log_weights, rows)[0, 0])(rows)

    mixed, slope = value_and_slope(np.float32([0, -np.inf]), logits)
    np.testing.assert_allclose(mixed, log_softmax(logits[0], axis=-1), atol=1e-6)
    assert np.all(np.isfinite(slope))
    np.testing.assert_array_equal(slope[1], 0)
    # below what float32 can hold
    far = np.float32([[[0.0, -300.0, -np.inf]], [[0.0, -310.0, -np.inf]]])
    mixed, _ = value_and_slope(np.log(np.float32([0.5, 0.5])), far)
    assert mixed[0, 1] == pytest.approx(-300.69, abs=0.01)


# ── draws ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.statement("S1", "S2")
@pytest.mark.parametrize(
    ("num_tokens", "block_bytes"), [(2, 2**21), (17, 2**12), (64, 2**19)], ids=str
)
def test_draws_in_two_levels_have_the_distribution(num_tokens, block_bytes, monkeypatch):
    """All rows in one block; in 333 blocks and a rest; in 14 and a rest."""
    monkeypatch.setattr(fast, "BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(num_tokens)
    probs = rng.dirichlet(np.ones(num_tokens)) + 0.2 / num_tokens
    logits = np.broadcast_to(np.log(np.float32(probs)), (30_000, num_tokens))
    tokens = jax.jit(lambda key, rows: fast.sample_categorical(key, rows))(
        jax.random.key(0), logits
    )
    assert tokens.shape == (30_000,)
    assert_drawn_from(probs, np.bincount(tokens, minlength=num_tokens))


@pytest.mark.slow
def test_rows_are_drawn_apart_and_keep_their_shape(monkeypatch):
    monkeypatch.setattr(fast, "BLOCK_BYTES", 5 * 4 * 7)  # two blocks of five rows, and two more
    sure = np.arange(12).reshape(3, 4) % 7
    logits = np.where(np.eye(7)[sure] == 1, 0, -np.inf).astype(np.float32)
    tokens = jax.jit(lambda key, rows: fast.sample_categorical(key, rows))(
        jax.random.key(0), logits
    )
    np.testing.assert_array_equal(tokens, sure)


def tail(gap, num_tokens):
    """The mass of all tokens but one that lies `gap` nats above each of them."""
    rest = (num_tokens - 1) * np.exp(-gap)
    return rest / (1 + rest)


@pytest.mark.slow
@pytest.mark.statement("S1")
@pytest.mark.parametrize(
    ("num_tokens", "gap", "dtype"), [(1000, 8.0, jnp.float32), (8192, 10.0, jnp.bfloat16)]
)
def test_the_tail_of_a_vocabulary_is_drawn(num_tokens, gap, dtype):
    """Both forms: the mass of the tail, and that it is drawn all over."""
    rows = 512
    logits = np.where(np.arange(num_tokens) == 0, 0, -gap) * np.ones((rows, 1))
    logits = logits.astype(dtype)
    mass = tail(gap, num_tokens)
    low, high = binom.interval(1 - FALSE_ALARM, rows, mass)

    @jax.jit
    def draws(key, logits):
        keys = jax.random.split(key, 3)
        return {
            "two_level": fast.sample_categorical(keys[0], logits),
            "clear": jax.random.categorical(keys[1], logits.astype(jnp.float32), mode="high"),
        }, jax.random.categorical(keys[2], logits)

    drawn, default = draws(jax.random.key(0), logits)
    for name, tokens in drawn.items():
        seen = np.asarray(tokens)[np.asarray(tokens) > 0]
        assert low <= len(seen) <= high, name
        assert np.ptp(seen) > num_tokens // 2, name
    # the falsifier: half-precision noise, as the default draw makes it of half-precision logits
    if dtype == jnp.bfloat16:
        blunt = np.mean(np.asarray(default) > 0)
        assert not low / rows <= blunt <= high / rows


@pytest.mark.slow
@pytest.mark.statement("S1")
def test_the_far_tail_of_50257_tokens_is_drawn():
    """18.5 nats below the first: 5e-4 of the mass. Of a token at a time the default draw's noise,
    at most 15.9 nats, would reach 4e-5 of that; here 7.6 draws of it are expected.
    """
    rows, num_tokens, gap, repeats = 64, 50_257, 18.5, 256
    logits = np.where(np.arange(num_tokens) == 0, np.float32(0), np.float32(-gap))
    logits = np.broadcast_to(logits, (rows, num_tokens))
    draw = jax.jit(lambda keys, rows: jax.lax.map(lambda k: fast.sample_categorical(k, rows), keys))
    found = np.sum(np.asarray(draw(jax.random.split(jax.random.key(3), repeats), logits)) > 0)
    low, high = binom.interval(1 - FALSE_ALARM, rows * repeats, tail(gap, num_tokens))
    assert max(1, low) <= found <= high


@pytest.mark.slow
def test_a_token_of_probability_0_is_never_drawn():
    logits = np.where(np.arange(300) % 7 == 3, np.float32(0), np.float32(-np.inf))
    tokens = jax.jit(fast.sample_categorical)(
        jax.random.key(0), np.broadcast_to(logits, (2_000, 300))
    )
    assert set(np.unique(np.asarray(tokens) % 7)) == {3}


@pytest.mark.slow
def test_a_row_that_is_no_distribution_stays_one():
    """−∞ throughout, where an expert that has a weight gives no distribution; never NaN."""
    logits = np.float32([[[-np.inf] * 3, [0, 1, 2]], [[5, 3, -np.inf]] * 2])
    mix = jax.jit(mixture.mix_logits)
    mixed = np.asarray(mix(np.log(np.float32([0.25, 0.75])), logits))
    assert np.all(mixed[0] == -np.inf)
    assert logsumexp(mixed[1]) == pytest.approx(0, abs=1e-6)
    alone = mix(np.float32([-np.inf, 0]), logits)
    np.testing.assert_allclose(alone, log_softmax(logits[1], axis=-1), atol=1e-6)
