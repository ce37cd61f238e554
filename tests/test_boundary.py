"""Zeros, infinities and kinks by name: what the contract of `test_gradients` does not reach."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_contracts import (
    INF,
    compiled,
    draw,
    floats,
    gradient,
    on_jax,
    public_function,
)
from test_gradients import INFINITE_TOO

from dfm_jax import boundary, mixture
from dfm_jax.mixture import GateState, top_experts_gate


def impossible(name: str) -> tuple[dict[str, Any], str, Any]:
    """Arrays of which the value is −∞, an argument, and the entries that alone are missing."""
    arrays = draw(name, 0)
    if name.startswith("mixture.fixed_share"):
        state = {"state": GateState(np.array([-INF, 0.0, -INF, -INF]), np.array(True))}
        rows = {"token_log_probs": np.array([[-INF, -1, -1, -1], [-1.0, -1, -1, -1]])}
        return (
            arrays | (state if "state" in arrays else rows) | {"alpha": np.array(0.0)},
            "alpha",
            (),
        )
    if name == "accounting.truncation_bound":
        return arrays | {"weights": np.eye(4)[3], "kept": np.eye(4)[0]}, "weights", (0,)
    (key,) = {"token_path", "token_paths", "step_probs"} & set(arrays)
    x = arrays["x_next" if key == "step_probs" else "x_t"]
    probs = arrays[key].copy()
    probs[..., 0, x[0]] = 0
    return arrays | {key: probs}, key, (..., 0, x[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", INFINITE_TOO)
@pytest.mark.usefixtures("strict")
def test_the_derivative_of_a_logarithm_at_0_is_infinite_if_it_is_read(name):
    arrays, key, entries = impossible(name)
    given = on_jax(arrays)
    leaves = floats(compiled(name)(given))
    first = [np.cumsum(np.isinf(leaf)).reshape(leaf.shape) == 1 for leaf in leaves]
    read = [mask & np.isinf(leaf) for mask, leaf in zip(first, leaves, strict=True)]
    assert any(np.any(mask) for mask in read)
    slopes = np.asarray(gradient(name, given, read=read)[key])
    assert np.all(np.isinf(slopes[entries]))
    assert not np.any(np.isnan(slopes))
    nothing = [np.zeros(leaf.shape, bool) for leaf in leaves]
    assert np.all(np.asarray(gradient(name, given, read=nothing)[key]) == 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["velocities.kinetic_optimal_velocity", "velocities.campbell_velocity"]
)
@pytest.mark.usefixtures("strict")
def test_at_a_kink_the_derivative_is_half(name):
    """Two tokens, p(z) = ½ ± 2(t − ½)²: the bracket is 0 at t = ½ and changes its sign there."""

    def outflow(t):
        bent = 2 * (t - 0.5) ** 2
        x_t = jnp.array([0])
        return public_function(name)(lambda t: token_path(t), x_t, t)[0, 1] + 0 * bent

    def token_path(t):
        bent = 2 * (t - 0.5) ** 2
        return jnp.stack([0.5 + bent, 0.5 - bent])[None]

    slope = jax.jit(jax.grad(outflow))
    below, above = (slope(0.5 + h) for h in (-1e-9, 1e-9))
    np.testing.assert_allclose(slope(0.5), (below + above) / 2, atol=1e-7)
    assert abs(below - above) > 1


@pytest.mark.slow
@pytest.mark.usefixtures("strict")
def test_a_cut_gate_has_a_gradient_in_log_space():
    """`log` of a weight of 0 moves with nothing, where nobody reads it."""
    log_probs = -np.abs(np.log(draw("accounting.part_information", 0)["log_probs"] ** 2))

    def slopes(log):
        def nats(weights):
            return mixture.mix_log_probs(log(top_experts_gate(weights, 2)), log_probs).sum()

        return jax.jit(jax.grad(nats))(draw("mixture.top_experts_gate", 0)["weights"])

    assert np.all(np.isfinite(slopes(boundary.log)))
    assert np.any(np.isnan(slopes(jnp.log)))


# ── the arithmetic itself ───────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("strict")
def test_a_slope_that_is_infinite_is_so_forwards_and_backwards_and_nowhere_else():
    x = jnp.array([0.0, 0.5, 0.0])

    def unread(x):
        return jnp.sum(jnp.where(jnp.array([True, True, False]), boundary.log(x), 0.0))

    np.testing.assert_array_equal(jax.grad(unread)(x), [INF, 2, 0])
    np.testing.assert_array_equal(jax.jit(jax.grad(unread))(x), [INF, 2, 0])
    still = jnp.array([0.0, 1.0, 0.0])
    assert jax.jvp(lambda x: boundary.log(x)[1], (x,), (still,))[1] == 2
    np.testing.assert_array_equal(jax.jvp(boundary.log, (x,), (still,))[1], [0, 2, 0])


@pytest.mark.usefixtures("strict")
def test_nothing_times_anything_is_nothing():
    x, y = jnp.array([0.0, 0.0, 2.0, jnp.nan, 3.0]), jnp.array([INF, jnp.nan, 0.0, 0.0, 5.0])
    np.testing.assert_array_equal(boundary.times(x, y), [0, 0, 0, 0, 15])
    slopes = jax.grad(lambda x, y: jnp.sum(boundary.times(x, y)), (0, 1))(x, y)
    np.testing.assert_array_equal(slopes[0], [INF, 0, 0, 0, 5])
    np.testing.assert_array_equal(slopes[1], [0, 0, 2, 0, 3])


@pytest.mark.slow
@pytest.mark.usefixtures("strict")
def test_a_nan_is_not_hidden():
    nan = jnp.array([jnp.nan, 1.0])
    values = (boundary.log(nan), boundary.x_log_ratio(nan, jnp.ones(2)), boundary.softmax(nan))
    sums = (boundary.log_sum_exp(nan), boundary.log_sum_of_products(nan, jnp.ones((2, 1))))
    assert all(np.any(np.isnan(value)) for value in (*values, *sums))


@pytest.mark.slow
@pytest.mark.usefixtures("strict")
def test_logits_become_logarithms_of_a_distribution_and_a_row_of_none_stays_none():
    rows = jnp.array([[0.0, 1000.0, -INF], [-INF, -INF, -INF], [1.0, 2.0, 3.0]])
    found, slopes = boundary.log_softmax(rows), jax.jacobian(boundary.log_softmax)(rows)
    np.testing.assert_array_equal(found[0], [-1000, 0, -INF])
    np.testing.assert_array_equal(found[1], -INF)
    np.testing.assert_array_equal(slopes[1], 0)  # −∞ moves with nothing
    for row in (0, 2):
        np.testing.assert_allclose(found[row], jax.nn.log_softmax(rows[row]), rtol=1e-15)
        own = np.eye(3) - np.exp(np.asarray(found[row]))[None]
        np.testing.assert_allclose(slopes[row, :, row], own, atol=1e-15)
    np.testing.assert_allclose(boundary.log_softmax(found), found, rtol=1e-15)
    assert np.all(np.isnan(boundary.log_softmax(jnp.array([[jnp.nan, 0.0], [INF, 0.0]]))))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.usefixtures("strict")
def test_logits_of_half_precision_become_float32(dtype):
    half = jnp.asarray([[0.0, 11.0, 3.0], [-INF, -INF, -INF]], dtype)
    found = boundary.log_softmax(half)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[0], jax.nn.log_softmax(half[0].astype(float)), atol=1e-6)
    slope = jax.grad(lambda z: boundary.log_softmax(z)[0, 0])(half)
    assert slope.dtype == dtype
    np.testing.assert_array_equal(slope[1].astype(float), 0)


@pytest.mark.slow
@pytest.mark.usefixtures("strict")
def test_the_sum_of_products_knows_the_product_of_the_others():
    factors = jnp.array([[0.0, 0.5, 0.25], [0.0, 0.0, 0.5], [0.5, 0.5, 0.5]])
    log_weights = jnp.log(jnp.array([0.5, 0.25, 0.25]))
    slopes = jax.jit(jax.grad(boundary.log_sum_of_products, 1))(log_weights, factors)
    total = 0.25 / 8
    np.testing.assert_allclose(slopes[0], [0.5 / 8 / total, 0, 0], rtol=1e-14)
    np.testing.assert_array_equal(slopes[1], [0, 0, 0])
    np.testing.assert_allclose(slopes[2], [2, 2, 2], rtol=1e-14)


@pytest.mark.slow
def test_a_thousand_factors_do_not_underflow():
    factors = np.full((2, 1000), 1e-3, np.float32)
    factors[0, 7] = 0
    value_and_slopes = jax.jit(jax.value_and_grad(boundary.log_sum_of_products, 1))
    value, slopes = value_and_slopes(np.log(np.float32([0.5, 0.5])), factors)
    np.testing.assert_allclose(value, np.log(0.5) + 1000 * np.log(1e-3), rtol=1e-5)
    np.testing.assert_allclose(slopes[0, 7], 1e3, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_state_of_mass_0_moves_the_push_forward_by_its_own_column():
    """∂(P p)(x)/∂p(z) is P(x, z), whatever p(z): it was 1 at p(z) = 0."""
    states = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    rows = jnp.asarray(np.random.default_rng(0).dirichlet([1, 1], size=(4, 2)))
    probs = jnp.array([0.25, 0.75, 0.0, 0.0])
    push, matrix = public_function("steps.push_forward"), public_function("steps.transition_matrix")
    jacobian = jax.jit(jax.jacobian(push))(probs, rows, states)
    np.testing.assert_allclose(jacobian, matrix(rows, states), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_both_mixtures_pass_over_a_token_that_no_expert_can_make():
    log_weights, logits = np.log([0.25, 0.75]), np.array([[[0.0, -INF, 1.0]]] * 2)

    def nats(mix, logits):
        return mix(log_weights, logits)[0, 0]

    clear = jax.jit(jax.grad(lambda z: nats(mixture.mix_log_probs, jax.nn.log_softmax(z))))(logits)
    quick = jax.jit(jax.grad(lambda z: nats(mixture.mix_logits, z)))(logits)
    np.testing.assert_allclose(clear, quick, atol=1e-15)
    assert np.all(np.isfinite(clear))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(6, 9), (3, 1), (0, 4), (1, 5)], ids=str)
def test_a_log_softmax_at_tokens_is_that_of_the_whole_row(shape):
    """Values and both derivatives, backward, forward and second, mapped too; large logits too."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=shape) * 4 + 1e4)
    tokens, change = rng.integers(shape[1], size=(2, shape[0])), jnp.asarray(rng.normal(size=shape))

    def whole(logits):
        rows = boundary.log_softmax(logits)
        return tuple(jnp.take_along_axis(rows, one[:, None], axis=-1)[:, 0] for one in tokens)

    def at(logits):
        return boundary.log_softmax_at(logits, *tokens)

    def mixed(form):
        return lambda logits: sum(
            jnp.sum(jnp.sin(one) * weight) for weight, one in enumerate(form(logits), 1)
        )

    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11)  # noqa: E731
    for found, expected in zip(at(logits), whole(logits), strict=True):
        np.testing.assert_array_equal(found, expected)
    batch = jnp.stack([logits, 2 * logits])

    def derivatives(form):  # as one program: operation by operation they take a hundred
        each = [of(mixed(form))(logits) for of in (jax.grad, jax.hessian, jax.jacfwd)]
        forward = jax.jvp(form, (logits,), (change,))
        return each, forward, jax.vmap(jax.grad(mixed(form)))(batch)

    jax.tree.map(close, jax.jit(lambda: derivatives(at))(), jax.jit(lambda: derivatives(whole))())


def test_a_log_softmax_at_tokens_at_the_boundary():
    """−∞ at the token, a row of −∞, NaN, +∞; an id that nobody could check; half precision."""
    rows = jnp.array([[0, -INF, 1], [-INF] * 3, [jnp.nan, 0, 0], [INF, 0, 1], [0, 1, 2.0]])
    at = jax.jit(lambda rows, tokens: boundary.log_softmax_at(rows, tokens)[0])
    slope = jax.jit(jax.grad(lambda rows, tokens: jnp.sum(at(rows, tokens))))
    tokens = jnp.array([1, 0, 1, 1, 0])
    whole = jnp.take_along_axis(boundary.log_softmax(rows), tokens[:, None], axis=-1)[:, 0]
    np.testing.assert_array_equal(at(rows, tokens), whole)
    slopes = slope(rows, tokens)
    np.testing.assert_allclose(slopes[0], [-1 / (1 + jnp.e), 1, -jnp.e / (1 + jnp.e)], rtol=1e-6)
    np.testing.assert_array_equal(slopes[1], 0)
    unknown = jnp.array([3, -1, -100, 2, 7])
    np.testing.assert_array_equal(
        np.isnan(at(jnp.ones((5, 3)), unknown)), [True, True, True, False, True]
    )
    np.testing.assert_array_equal(
        np.abs(slope(jnp.ones((5, 3)), unknown)).sum(axis=1) > 0, [False, False, False, True, False]
    )
    half = rows[4:].astype(jnp.bfloat16)
    assert at(half, tokens[4:]).dtype == jnp.float32
    assert slope(half, tokens[4:]).dtype == jnp.bfloat16
