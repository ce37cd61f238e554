"""One contract for every schedule, against derivatives written by hand in NumPy; the tables."""

import re
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental import checkify

from dfm_jax import schedules

EXPONENTS = np.array([1.0, 2.0, 3.5])


class Family(NamedTuple):
    """A schedule, and κ, κ̇ and 1 − κ written a second time."""

    make: Callable[[], schedules.Schedule]
    kappa: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    complement: Callable[[np.ndarray], np.ndarray]


def power(make, a):
    """t^a, with one exponent or one per position."""
    return Family(
        make=make,
        kappa=lambda t: np.power(t, a),
        slope=lambda t: a * np.power(t, a - 1),
        complement=lambda t: -np.expm1(a * np.log(t)) if t > 0 else np.ones_like(a),
    )


FAMILIES = {
    "linear": power(schedules.linear, 1.0),
    "polynomial 1": power(lambda: schedules.polynomial(1.0), 1.0),
    "polynomial 2": power(lambda: schedules.polynomial(2.0), 2.0),
    "polynomial 3.5": power(lambda: schedules.polynomial(3.5), 3.5),
    "per position": power(lambda: schedules.polynomial(jnp.asarray(EXPONENTS)), EXPONENTS),
    "cosine": Family(
        make=schedules.cosine,
        kappa=lambda t: 1 - np.cos(np.pi * t / 2),
        slope=lambda t: np.pi / 2 * np.sin(np.pi * t / 2),
        complement=lambda t: np.sin(np.pi * (1 - t) / 2),
    ),
    "a user's function": Family(
        make=lambda: schedules.from_function(lambda t: t**2 * (3 - 2 * t)),
        kappa=lambda t: 3 * t**2 - 2 * t**3,
        slope=lambda t: 6 * t * (1 - t),
        complement=lambda t: (1 - t) ** 2 * (1 + 2 * t),
    ),
}
TIMES = np.linspace(0.0, 0.95, 20)

every_schedule = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def on_grid(fn, times):
    """The values at each time, one call per time."""
    return np.stack([np.asarray(fn(t)) for t in times])


# ── the contract ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@every_schedule
@pytest.mark.statement("P3")
@pytest.mark.usefixtures("strict")
def test_kappa_runs_from_0_to_1_and_never_back(family):
    kappa, log_complement = family.make()
    times = np.linspace(0.0, 1.0, 401)
    values = on_grid(kappa, times)
    np.testing.assert_allclose(values, on_grid(family.kappa, times), rtol=0, atol=1e-15)
    np.testing.assert_allclose(values[0], 0, atol=1e-15)
    np.testing.assert_allclose(values[-1], 1, atol=1e-15)
    assert np.all(np.diff(values, axis=0) >= 0)
    left = on_grid(log_complement, times[:-1])
    assert np.all(left[0] == 0)
    assert np.all(np.diff(left, axis=0) <= 0)


@every_schedule
@pytest.mark.usefixtures("strict")
def test_the_two_halves_of_a_schedule_are_one_schedule(family):
    kappa, log_complement = family.make()
    expected = on_grid(lambda t: np.log1p(-np.asarray(kappa(t))), TIMES)
    np.testing.assert_allclose(on_grid(log_complement, TIMES), expected, rtol=0, atol=1e-12)


@every_schedule
@pytest.mark.usefixtures("strict")
def test_the_logarithm_keeps_its_digits_near_1(family):
    if family is FAMILIES["a user's function"]:
        return  # its domain is stated in `from_function`, and tested below
    late = 1 - np.array([1e-3, 1e-6, 1e-9])
    expected = on_grid(lambda t: np.log(family.complement(t)), late)
    values = on_grid(family.make().log_complement, late)
    np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.slow
@every_schedule
@pytest.mark.statement("V3", "V5")
@pytest.mark.usefixtures("strict")
def test_the_rate_is_the_slope_over_the_complement(family):
    schedule = family.make()
    values = on_grid(lambda t: schedules.rate(t, schedule), TIMES)
    expected = on_grid(lambda t: family.slope(t) / family.complement(t), TIMES)
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-12)
    assert np.all(values >= 0)


@every_schedule
@pytest.mark.statement("V6")
@pytest.mark.usefixtures("strict")
def test_the_backward_rate_is_the_slope_over_kappa(family):
    schedule = family.make()
    times = np.linspace(0.05, 1.0, 20)
    values = on_grid(lambda t: schedules.backward_rate(t, schedule), times)
    expected = on_grid(lambda t: family.slope(t) / family.kappa(t), times)
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("strict")
def test_an_exponent_per_position_is_a_schedule_per_position():
    together = schedules.polynomial(jnp.asarray(EXPONENTS))
    apart = [schedules.polynomial(float(a)) for a in EXPONENTS]
    for t in TIMES:
        for of in (
            lambda s, t=t: s.kappa(t),
            lambda s, t=t: s.log_complement(t),
            lambda s, t=t: schedules.rate(t, s),
        ):
            np.testing.assert_allclose(of(together), [of(s) for s in apart], rtol=1e-14)


@pytest.mark.sampled(16)
@every_schedule
@pytest.mark.parametrize("name", ["kappa", "log_complement", "rate", "backward_rate"])
@pytest.mark.usefixtures("strict")
def test_jit_is_eager_and_vmap_is_a_loop(family, name):
    schedule = family.make()
    fn = {
        "kappa": schedule.kappa,
        "log_complement": schedule.log_complement,
        "rate": lambda t: schedules.rate(t, schedule),
        "backward_rate": lambda t: schedules.backward_rate(t, schedule),
    }[name]
    times = jnp.linspace(0.05, 0.95, 7)
    loop = on_grid(fn, times)
    np.testing.assert_allclose(on_grid(jax.jit(fn), times), loop, rtol=1e-13)
    np.testing.assert_allclose(jax.vmap(fn)(times), loop, rtol=1e-13)
    if family is FAMILIES["per position"]:
        np.testing.assert_allclose(jax.pmap(fn)(times), loop, rtol=1e-13)


@pytest.mark.slow
@every_schedule
def test_the_rate_compiles_once(family):
    schedule = family.make()
    fn = jax.jit(chex.assert_max_traces(lambda t: schedules.rate(t, schedule), n=1))
    for t in (0.1, 0.2, 0.3):
        assert np.all(np.isfinite(fn(t)))


@pytest.mark.slow
@every_schedule
@pytest.mark.usefixtures("strict")
def test_the_rate_has_a_derivative(family):
    schedule = family.make()
    step = 1e-5
    slope = jax.jit(jax.jacfwd(lambda t: schedules.rate(t, schedule)))(0.4)
    ahead, behind = (family.slope(t) / family.complement(t) for t in (0.4 + step, 0.4 - step))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-7)


@pytest.mark.sampled(8)
@every_schedule
@pytest.mark.parametrize("t", [0.0, 1 - 1e-3])
def test_float32_is_finite_at_both_ends(family, t):
    schedule = family.make()
    for value in (schedule.kappa(t), schedule.log_complement(t), schedules.rate(t, schedule)):
        assert value.dtype == jnp.float32
        assert np.all(np.isfinite(value))
    assert np.all(schedules.rate(t, schedule) >= 0)


@pytest.mark.parametrize("name", [name for name in FAMILIES if "user" not in name])
def test_the_float32_rate_is_good_close_to_1(name):
    family = FAMILIES[name]
    t = np.float32(1 - 1e-4)
    exact = np.float64(t)
    expected = family.slope(exact) / family.complement(exact)
    np.testing.assert_allclose(schedules.rate(t, family.make()), expected, rtol=1e-3)


def test_from_function_is_good_on_the_domain_that_it_states():
    """1 − κ ≥ 1e-4; beyond it, at 1 − κ = 1e-6, the digits are gone."""
    schedule = schedules.from_function(lambda t: 1 - jnp.cos(jnp.pi / 2 * t))

    def relative_error(complement):
        t = np.float32(1 - 2 / np.pi * np.arcsin(complement))
        expected = np.pi / 2 / np.tan(np.pi / 2 * (1 - np.float64(t)))
        return abs(schedules.rate(t, schedule) / expected - 1)

    assert relative_error(1e-4) < 1e-3
    assert relative_error(1e-6) > 1e-3


@pytest.mark.slow
@given(a=st.floats(1.0, 6.0), t=st.floats(0.0, 0.99))
def test_any_exponent_keeps_the_two_halves_together(a, t):
    with jax.enable_x64(True):
        kappa, log_complement = schedules.polynomial(a)
        assert abs(log_complement(t) - np.log1p(-(t**a))) <= 1e-12
        assert kappa(t) == pytest.approx(t**a, abs=1e-15)


# ── what is refused ─────────────────────────────────────────────────────────────────────────────

REFUSED = {
    "an infinite rate at 0": (
        lambda: schedules.polynomial(0.5),
        "`exponent` must lie in [1, inf); got exponent = 0.5.",
    ),
    "one exponent of three": (
        lambda: schedules.polynomial(np.array([1.0, 0.5, 2.0])),
        "`exponent` must lie in [1, inf); got exponent[1] = 0.5.",
    ),
    "the rate at 1": (
        lambda: schedules.rate(1.0, schedules.linear()),
        "`t` must lie where κ_t < 1; got t = 1.0.",
    ),
    "the rate before 0": (
        lambda: schedules.rate(-0.25, schedules.linear()),
        "`t` must lie in [0, 1]; got t = -0.25.",
    ),
    "the backward rate at 0": (
        lambda: schedules.backward_rate(0.0, schedules.linear()),
        "`t` must lie where κ_t > 0; got t = 0.0.",
    ),
    "a κ that starts late": (
        lambda: schedules.from_function(lambda t: (1 + t) / 2),
        "`kappa` must start at κ = 0; got kappa[0] = 0.5.",
    ),
    "a κ that never arrives": (
        lambda: schedules.from_function(lambda t: t / 2),
        "`kappa` must end at κ = 1; got kappa[-1] = 0.5.",
    ),
    "a κ that decreases": (
        lambda: schedules.from_function(
            lambda t: jnp.array([0.0, 0.75, 0.5, 1.0])[jnp.round(3 * t).astype(int)], grid_size=4
        ),
        "`kappa` must not decrease; got kappa[1:3] = [0.75 0.5 ].",
    ),
    "a κ that is not a number": (
        lambda: schedules.from_function(lambda t: jnp.where(t == 0.5, jnp.nan, t), grid_size=3),
        "`kappa` must not decrease; got kappa[0:2] = [ 0. nan].",
    ),
    "a grid of one time": (
        lambda: schedules.from_function(lambda t: t, grid_size=1),
        "`grid_size` must be at least 2; got grid_size = 1.",
    ),
    "an order in two axes": (
        lambda: schedules.any_order([[0, 1]]),
        "`order` must have one axis, [N]; got order.shape = (1, 2).",
    ),
    "an order that repeats": (
        lambda: schedules.any_order([0, 2, 2]),
        "`order` must hold each of 0 … N − 1 once; got order = [0 2 2].",
    ),
    "no position": (
        lambda: schedules.left_to_right(0),
        "`num_positions` must be at least 1; got num_positions = 0.",
    ),
    "half a position": (
        lambda: schedules.left_to_right(2.5),
        "`num_positions` must be a whole number; got num_positions = 2.5.",
    ),
    "an order of floats": (
        lambda: schedules.any_order([1.0, 0.0]),
        "`order` must hold whole numbers; got order.dtype = 'float64'.",
    ),
    "an order without a position": (
        lambda: schedules.any_order([]),
        "`the number of positions` must be at least 1; got the number of positions = 0.",
    ),
    "blocks of truths": (
        lambda: schedules.blocks([True, False]),
        "`block_of` must hold whole numbers; got block_of.dtype = 'bool'.",
    ),
    "a context of whole numbers": (
        lambda: schedules.check_table(np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([0, 1])),
        "`context` must hold truth values; got context.dtype = 'int64'.",
    ),
    "a block without a position": (
        lambda: schedules.blocks([0, 2, 2]),
        "`block_of` must use every block 0, 1, … at least once; got unique(block_of) = [0 2].",
    ),
    "blocks in two axes": (
        lambda: schedules.blocks([[0, 1]]),
        "`block_of` must have one axis, [N]; got block_of.shape = (1, 2).",
    ),
    "no step": (
        lambda: schedules.masked(schedules.linear(), 0, 3),
        "`num_steps` must be at least 1; got num_steps = 0.",
    ),
    "positions that the schedule does not have": (
        lambda: schedules.masked(schedules.polynomial(EXPONENTS), 4, 2),
        (
            "`num_positions` must be 3, the number of positions of the schedule; got "
            "num_positions = 2."
        ),
    ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_schedule_is_refused(call, message):
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        call()


@pytest.mark.slow
def test_a_traced_time_outside_the_domain_is_refused_through_checkify():
    rate = jax.jit(checkify.checkify(lambda t: schedules.rate(t, schedules.cosine())))
    with pytest.raises(
        checkify.JaxRuntimeError, match=r"`t` must lie where κ_t < 1; got t = 1\.0\."
    ):
        rate(1.0)[0].throw()
    rate(0.5)[0].throw()


@pytest.mark.parametrize("t", [jnp.ones(3) / 2, jnp.array(0), "0.5"])
def test_a_time_of_another_kind_is_refused(t):
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 't'"):
        schedules.rate(t, schedules.linear())


# ── tables ──────────────────────────────────────────────────────────────────────────────────────

TABLES = {
    "left to right": (
        lambda: schedules.left_to_right(3),
        [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]],
    ),
    "any order": (
        lambda: schedules.any_order([2, 0, 1]),
        [[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]],
    ),
    "blocks": (
        lambda: schedules.blocks([0, 1, 0, 1]),
        [[0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]],
    ),
    "masked": (
        lambda: schedules.masked(schedules.polynomial(2.0), 4, 2),
        [[0, 0], [1 / 16, 1 / 16], [1 / 4, 1 / 4], [9 / 16, 9 / 16], [1, 1]],
    ),
    "masked, a schedule per position": (
        lambda: schedules.masked(schedules.polynomial(np.array([1.0, 2.0])), 2, 2),
        [[0, 0], [1 / 2, 1 / 4], [1, 1]],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "expected"), TABLES.values(), ids=TABLES)
@pytest.mark.statement("A1")
@pytest.mark.usefixtures("strict")
def test_a_table_is_what_its_name_says(make, expected):
    table = make()
    assert table.dtype == jnp.float64
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-15)
    schedules.check_table(table)
    np.testing.assert_array_equal(jax.jit(make)(), table)


@pytest.mark.slow
@every_schedule
@pytest.mark.parametrize("num_steps", [1, 7])
def test_a_masked_table_of_every_schedule_passes_in_float32(family, num_steps):
    table = schedules.masked(family.make(), num_steps, EXPONENTS.size)
    assert table.dtype == jnp.float32
    schedules.check_table(table)


def test_a_masked_table_ends_at_1_where_kappa_rounds_below():
    almost = schedules.from_function(lambda t: t * np.float32(1 - 2**-24))
    assert almost.kappa(1.0) < 1
    np.testing.assert_array_equal(schedules.masked(almost, 4, 2)[-1], 1)


@pytest.mark.statement("A5")
def test_a_prompt_never_moves():
    context = np.array([True, False, True])
    table = schedules.with_context(schedules.left_to_right(3), context)
    np.testing.assert_array_equal(table, [[1, 0, 1], [1, 0, 1], [1, 1, 1], [1, 1, 1]])
    schedules.check_table(table, context)
    given = schedules.schedule_with_context(schedules.linear(), context)
    np.testing.assert_array_equal(given.kappa(0.5), [1, 0.5, 1])
    np.testing.assert_allclose(np.exp(given.log_complement(0.5)), [0, 0.5, 0])


def test_with_context_under_jit_and_vmap():
    contexts = np.array([[True, False, True], [False, False, False]])
    table = schedules.left_to_right(3)
    loop = np.stack([schedules.with_context(table, context) for context in contexts])
    mapped = jax.jit(jax.vmap(schedules.with_context, in_axes=(None, 0)))
    np.testing.assert_array_equal(mapped(table, contexts), loop)


def test_a_context_of_another_length_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'context'"):
        schedules.with_context(schedules.left_to_right(3), np.array([True, False]))


BAD_TABLES = {
    "a row that moves a finished token": (
        [[0, 0], [1, 0], [0.5, 1], [1, 1]],
        (
            "`table` must not move a finished token: table[1, 0] is 1, so the entry below must be "
            "1; got table[2, 0] = 0.5."
        ),
    ),
    "a κ that decreases": (
        [[0, 0], [0.75, 0], [0.5, 1], [1, 1]],
        "`table` must not decrease; got table[1:3] = [[0.75 0.  ]\n [0.5  1.  ]].",
    ),
    "a κ that is not a number": (
        [[0, 0], [np.nan, 0], [1, 1]],
        "`table` must not decrease; got table[0:2] = [[ 0.  0.]\n [nan  0.]].",
    ),
    "a start above 0": (
        [[0.5, 0], [1, 1]],
        "`table` must start at κ = 0; got table[0][0] = 0.5.",
    ),
    "an end below 1": (
        [[0, 0], [1, 0.5]],
        "`table` must end at κ = 1; got table[-1][1] = 0.5.",
    ),
    "one row": (
        [[0, 0]],
        "`table` must have two axes, [T + 1, N], with T at least 1; got table.shape = (1, 2).",
    ),
    "one axis": (
        [0, 1],
        "`table` must have two axes, [T + 1, N], with T at least 1; got table.shape = (2,).",
    ),
}


@pytest.mark.parametrize(("table", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_bad_table_is_refused(table, message):
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        schedules.check_table(np.array(table))


@pytest.mark.parametrize("miss", [1e-3, 1e-5])
def test_an_end_that_is_nearly_right_is_refused(miss):
    start, end = "must start at κ = 0", "must end at κ = 1"
    for message, low, high in ((start, miss, 1.0), (end, 0.0, 1 - miss)):
        with pytest.raises(ValueError, match=f"`table` {message}"):
            schedules.check_table(np.array([[low, 0.0], [1.0, high]]))
        with pytest.raises(ValueError, match=f"`kappa` {message}"):
            schedules.from_function(lambda t, a=low, b=high: a + (b - a) * t)


def test_the_cosine_keeps_its_digits_at_a_small_time():
    """1 − cos(πt/2) is 0 there in float32; its series begins with (πt/2)²/2."""
    t = np.float32(1e-4)
    small = schedules.cosine().kappa(t)
    assert small.dtype == np.float32
    np.testing.assert_allclose(small, (np.pi * 1e-4 / 2) ** 2 / 2, rtol=1e-5)


def test_a_context_that_starts_at_the_source_is_refused():
    with pytest.raises(
        ValueError,
        match=r"`table` must be 1 at every position of the context; got table\[0, 0\] = 0.0",
    ):
        schedules.check_table(schedules.left_to_right(2), np.array([True, False]))


@pytest.mark.slow
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_a_schedule_that_keeps_its_word_passes(make):
    schedules.check_schedule(make())
    schedules.check_schedule(schedules.polynomial(EXPONENTS))


def test_a_complement_of_another_schedule_is_refused():
    liar = schedules.linear()._replace(log_complement=schedules.cosine().log_complement)
    with pytest.raises(
        ValueError,
        match=r"`log_complement` must be log\(1 − κ\), up to rounding; got the largest difference",
    ):
        schedules.check_schedule(liar)


@pytest.mark.slow
@pytest.mark.statement("A1")
def test_an_order_may_be_traced_and_its_rule_then_speaks_under_checkify():
    orders = jnp.array([[2, 0, 1], [0, 1, 2]])
    expected = jnp.stack([schedules.any_order(np.asarray(order)) for order in orders])
    np.testing.assert_array_equal(jax.vmap(schedules.any_order)(orders), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(schedules.any_order))(orders), expected)
    error, _ = jax.jit(checkify.checkify(schedules.any_order))(jnp.array([0, 2, 2]))
    with pytest.raises(checkify.JaxRuntimeError, match="`order` must hold each of 0 … N − 1 once"):
        error.throw()
