"""Every refusal names argument, rule and value; the same rule holds for traced values."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from dfm_jax import checks, schedules
from dfm_jax.types import Context, Number, Scalar, Time, Token, Tokens, Weights, as_ids, typed

NAN = float("nan")

# check, its arguments, and the whole message
REFUSED = {
    "count below": (
        lambda: checks.check_count("count", 0, at_most=3),
        "`count` must lie in [1, 3]; got count = 0.",
    ),
    "count above": (
        lambda: checks.check_count("count", 4, at_most=3),
        "`count` must lie in [1, 3]; got count = 4.",
    ),
    "count, no upper bound": (
        lambda: checks.check_count("grid_size", 1, at_least=2),
        "`grid_size` must be at least 2; got grid_size = 1.",
    ),
    "count, a truth": (
        lambda: checks.check_count("count", True),
        "`count` must be a whole number; got count = True.",
    ),
    "count, a float": (
        lambda: checks.check_count("count", 2.0),
        "`count` must be a whole number; got count = 2.0.",
    ),
    "interval below": (
        lambda: checks.check_interval("t", -0.5, 0.0, 1.0),
        "`t` must lie in [0, 1]; got t = -0.5.",
    ),
    "interval, an entry above": (
        lambda: checks.check_interval("alpha", np.array([0.5, 1.5]), 0.0, 1.0),
        "`alpha` must lie in [0, 1]; got alpha[1] = 1.5.",
    ),
    "interval, open above": (
        lambda: checks.check_interval("t", 1.0, 0.0, 1.0, ends="[)"),
        "`t` must lie in [0, 1); got t = 1.0.",
    ),
    "interval, open below": (
        lambda: checks.check_interval("t", 0.0, 0.0, 1.0, ends="(]"),
        "`t` must lie in (0, 1]; got t = 0.0.",
    ),
    "interval, NaN": (
        lambda: checks.check_interval("t", NAN, 0.0, 1.0),
        "`t` must lie in [0, 1]; got t = nan.",
    ),
    "distribution, negative": (
        lambda: checks.check_distribution("weights", np.array([1.5, -0.5])),
        "`weights` must be non-negative; got weights[1] = -0.5.",
    ),
    "distribution, sum": (
        lambda: checks.check_distribution("weights", np.array([0.5, 0.75])),
        "`weights` must sum to 1 over its last axis; got weights.sum(axis=-1) = 1.25.",
    ),
    "distribution, the sum of a row": (
        lambda: checks.check_distribution("q", np.array([[0.5, 0.5], [0.25, 0.25]])),
        "`q` must sum to 1 over its last axis; got q.sum(axis=-1)[1] = 0.5.",
    ),
    "distribution, NaN": (
        lambda: checks.check_distribution("weights", np.array([NAN, 1.0])),
        "`weights` must be non-negative; got weights[0] = nan.",
    ),
    "distribution, whole numbers": (
        lambda: checks.check_distribution("weights", np.array([1, 1])),
        "`weights` must sum to 1 over its last axis; got weights.sum(axis=-1) = 2.",
    ),
    "distribution, along the first axis": (
        lambda: checks.check_distribution("kappa", np.array([[0.5, 0.5], [0.5, 0.25]]), axis=0),
        "`kappa` must sum to 1 over its first axis; got kappa.sum(axis=0)[1] = 0.75.",
    ),
    "distribution, a row that is read": (
        lambda: checks.check_distribution(
            "q", np.array([[0.5], [NAN]]), read=np.array([True, False])
        ),
        "`q` must sum to 1 over its last axis; got q.sum(axis=-1)[0] = 0.5.",
    ),
    "distribution, a long row that misses 1 by half": (
        lambda: checks.check_distribution("q", np.full(2**16, 2.0**-17, np.float32)),
        "`q` must sum to 1 over its last axis; got q.sum(axis=-1) = 0.5.",
    ),
    "log distribution, sum": (
        lambda: checks.check_log_distribution("log_prior", np.zeros(2)),
        "`exp(log_prior)` must sum to 1 over its last axis; got exp(log_prior).sum(axis=-1) = 2.0.",
    ),
    "seed, another's last 32 bits": (
        lambda: checks.check_seed("seed", 2**32 + 5),
        (
            "`seed` must be an integer in [0, 4294967295], which a key can hold; got seed = "
            "4294967301."
        ),
    ),
    "seed, negative": (
        lambda: checks.check_seed("seed", -1),
        "`seed` must be an integer in [0, 4294967295], which a key can hold; got seed = -1.",
    ),
    "seed, no whole number": (
        lambda: checks.check_seed("seed", 1.0),  # type: ignore[arg-type]
        "`seed` must be an integer in [0, 4294967295], which a key can hold; got seed = 1.0.",
    ),
    "log distribution, probabilities": (
        lambda: checks.check_log_distribution("log_prior", np.array([0.5, 0.5])),
        (
            "`log_prior` must hold logarithms of probabilities, and none above 0; got "
            "log_prior[0] = 0.5."
        ),
    ),
    "log distribution, infinity": (
        lambda: checks.check_log_distribution("log_prior", np.array([np.inf, -np.inf])),
        (
            "`log_prior` must hold logarithms of probabilities, and none above 0; got "
            "log_prior[0] = inf."
        ),
    ),
    "log distribution, NaN": (
        lambda: checks.check_log_distribution("log_prior", np.array([NAN, 0.0])),
        "`exp(log_prior)` must sum to 1 over its last axis; got exp(log_prior).sum(axis=-1) = nan.",
    ),
    "logarithms, a probability": (
        lambda: checks.check_log_probs("log_q", np.array([-1.0, 0.5])),
        "`log_q` must hold logarithms of probabilities, and none above 0; got log_q[1] = 0.5.",
    ),
    "logarithms, a whole number": (
        lambda: checks.check_log_probs("log_q", np.array([0, 1])),
        "`log_q` must hold logarithms of probabilities, and none above 0; got log_q[1] = 1.",
    ),
    "tokens, a mask id of -1": (
        lambda: checks.check_tokens("x_t", np.array([0, -1]), 3),
        "`x_t` must hold ids in [0, 2]; got x_t[1] = -1.",
    ),
    "tokens, no bound above": (
        lambda: checks.check_tokens("x_t", np.array([9, -1])),
        "`x_t` must hold ids, and none below 0; got x_t[1] = -1.",
    ),
    "tokens, floats": (
        lambda: checks.check_tokens("x_t", np.array([0.0, 1.0]), 3),
        "`x_t` must hold whole numbers; got x_t.dtype = 'float64'.",
    ),
    "tokens, truths": (
        lambda: checks.check_tokens("x_t", jnp.array([True]), 3),
        "`x_t` must hold whole numbers; got x_t.dtype = 'bool'.",
    ),
    "tokens above": (
        lambda: checks.check_tokens("x_t", np.array([0, 3]), 3),
        "`x_t` must hold ids in [0, 2]; got x_t[1] = 3.",
    ),
    "num_states": (
        lambda: checks.check_num_states(5, 3),
        "`num_states` must be V = 3, or 4 with a mask; got num_states = 5.",
    ),
    "require": (
        lambda: checks.require(False, "`x` must rhyme", "orange"),
        "`x` must rhyme; got x = 'orange'.",
    ),
}

ACCEPTED = {
    "log distribution, a zero": lambda: checks.check_log_distribution(
        "log_prior", np.array([0.0, -np.inf])
    ),
    "distribution, a row that is not read": lambda: checks.check_distribution(
        "q", np.array([[1.0, 0.0], [NAN, -np.inf]]), read=np.array([True, False])
    ),
    "log distribution, a row that is not read": lambda: checks.check_log_distribution(
        "log_q", np.array([[0.0, -np.inf], [NAN, np.inf]]), read=np.array([True, False])
    ),
    "log distribution, bfloat16": lambda: checks.check_log_distribution(
        "log_q", jnp.full(50_257, -np.log(50_257), jnp.bfloat16)
    ),
    "distribution, a long row": lambda: checks.check_distribution(
        "q", np.full(50_257, 1 / 50_257, np.float32)
    ),
    "logarithms, rounding, and what is undefined": lambda: checks.check_log_probs(
        "log_q", np.array([1e-7, -np.inf, NAN], np.float32)
    ),
    "count": lambda: checks.check_count("count", 3, at_most=3),
    "seed": lambda: checks.check_seed("seed", 2**32 - 1),
    "seed, NumPy's": lambda: checks.check_seed("seed", np.int64(0)),
    "interval": lambda: checks.check_interval("t", np.array([0.0, 1.0]), 0.0, 1.0),
    "interval, half open": lambda: checks.check_interval("t", 0.0, 0.0, 1.0, ends="[)"),
    "probs": lambda: checks.check_distribution("weights", jnp.full((4, 3), 1 / 3)),
    "distribution, one point": lambda: checks.check_distribution("weights", np.array([0, 1])),
    "tokens": lambda: checks.check_tokens("x_t", jnp.array([0, 2]), 3),
    "no tokens": lambda: checks.check_tokens("x_t", np.zeros(0, int), 3),
    "states": lambda: checks.check_num_states(3, 3),
    "states with a mask": lambda: checks.check_num_states(4, 3),
}

# check of a traced value, a bad value, a good one, and the message
TRACED = {
    "interval": (
        lambda t: checks.check_interval("t", t, 0.0, 1.0, ends="[)"),
        1.0,
        0.5,
        "`t` must lie in [0, 1); got t = 1.0.",
    ),
    "probs": (
        lambda q: checks.check_distribution("q", q),
        [0.5, 0.75],
        [0.5, 0.5],
        "`q` must sum to 1 over its last axis; got q.sum(axis=-1) = 1.25.",
    ),
    "distribution, negative": (
        lambda q: checks.check_distribution("q", q),
        [-0.5, 1.5],
        [0.0, 1.0],
        "`q` must be non-negative; got q = [-0.5  1.5].",
    ),
    "log distribution": (
        lambda q: checks.check_log_distribution("log_q", q),
        [-1.0, -1.0],
        [0.0, -np.inf],
        "`exp(log_q)` must sum to 1 over its last axis; got exp(log_q).sum(axis=-1) = 0.73575",
    ),
    "logarithms": (
        lambda q: checks.check_log_probs("log_q", q),
        [-1.0, 0.5],
        [-1.0, 0.0],
        "`log_q` must hold logarithms of probabilities, and none above 0; got log_q = [-1.   0.5].",
    ),
    "tokens": (
        lambda x: checks.check_tokens("x_t", x, 3),
        [-1, 2],
        [0, 2],
        "`x_t` must hold ids in [0, 2]; got x_t = [-1  2].",
    ),
}


@pytest.mark.parametrize(("check", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_value_is_refused_by_name_rule_and_value(check, message):
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        check()


@pytest.mark.parametrize("check", ACCEPTED.values(), ids=ACCEPTED)
def test_a_good_value_passes(check):
    check()


def test_every_check_is_refused_and_accepted_here():
    public = {name for name in vars(checks) if name.startswith("check_")}
    for cases in (REFUSED, ACCEPTED):
        used = {
            name
            for case in cases.values()
            for name in (case[0] if isinstance(case, tuple) else case).__code__.co_names
        }
        assert public <= used


@pytest.mark.parametrize(("check", "bad", "good", "message"), TRACED.values(), ids=TRACED)
def test_a_traced_value_is_refused_through_checkify(check, bad, good, message):
    checked = jax.jit(checkify.checkify(check))
    error, _ = checked(jnp.asarray(bad))
    with pytest.raises(checkify.JaxRuntimeError, match=re.escape(message)):
        error.throw()
    error, _ = checked(jnp.asarray(good))
    error.throw()


def test_traced_checks_can_be_left_out_of_a_program_and_concrete_ones_cannot():
    def both(t):
        checks.check_interval("t", t, 0.0, 1.0)
        return t

    with checks.without_traced_checks():
        assert "check[" not in str(jax.make_jaxpr(lambda t: both(t))(2.0))
        with pytest.raises(ValueError, match="`t` must lie in"):
            both(2.0)
    assert "check[" in str(jax.make_jaxpr(lambda t: both(t))(2.0))
    error, _ = jax.jit(checkify.checkify(lambda t: both(t)))(2.0)
    with pytest.raises(checkify.JaxRuntimeError, match="`t` must lie in"):
        error.throw()


@pytest.mark.parametrize(("check", "bad", "good", "message"), TRACED.values(), ids=TRACED)
def test_without_checkify_a_traced_value_costs_nothing(check, bad, good, message):
    compiled = jax.jit(lambda value: (check(value), value)[1]).lower(jnp.asarray(bad)).compile()
    untouched = jax.jit(lambda value: value).lower(jnp.asarray(bad)).compile()
    assert compiled.as_text().count(" = ") == untouched.as_text().count(" = ")


def test_a_traced_value_is_checked_example_by_example_under_vmap():
    check = jax.vmap(lambda t: checks.check_interval("t", t, 0.0, 1.0))
    error, _ = jax.jit(checkify.checkify(check))(jnp.array([0.5, 2.0]))
    with pytest.raises(checkify.JaxRuntimeError, match=r"`t` must lie in \[0, 1\]; got t = 2\.0\."):
        error.throw()


def test_a_concrete_value_is_refused_inside_a_trace():
    def fn(x):
        checks.check_interval("alpha", 2.0, 0.0, 1.0)
        return x

    with pytest.raises(ValueError, match=r"`alpha` must lie in \[0, 1\]; got alpha = 2\.0\."):
        jax.jit(fn)(1.0)


def test_a_long_value_is_shown_in_short():
    with pytest.raises(ValueError, match=r"\.\.\.") as refusal:
        checks.require(False, "`x_t` must rhyme", np.full(1000, 7))
    assert len(str(refusal.value)) < 120


@pytest.mark.usefixtures("x64")
def test_the_slack_of_a_sum_follows_the_dtype():
    off = 1e-6
    checks.check_distribution("q", jnp.array([0.5, 0.5 + off], jnp.float32))
    with pytest.raises(ValueError, match="`q` must sum to 1"):
        checks.check_distribution("q", jnp.array([0.5, 0.5 + off], jnp.float64))


def test_a_type_error_says_once_how_a_batch_is_mapped():
    @typed
    def outer(weights: Weights) -> Weights:
        return inner(jnp.stack([weights, weights]))

    @typed
    def inner(weights: Weights) -> Weights:
        return weights

    for call in (lambda: inner(jnp.zeros((2, 3))), lambda: outer(jnp.zeros(3))):
        with pytest.raises(TypeError) as refused:
            call()
        message = str(refused.value)
        assert message.startswith("Functions of dfm_jax are written for one example: `jax.vmap`")
        assert message.count("`jax.vmap`") == 1


# ── what comes in at the doors ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "uint32", "uint64", "int64"])
def test_whole_numbers_of_every_type_come_in_as_int32(dtype):
    ids = np.array([0, 1, 127], dtype)
    for value in (ids, ids.astype(jax.dtypes.canonicalize_dtype(dtype)), jnp.asarray(ids)):
        taken = as_ids(value)
        assert taken.dtype == np.int32
        assert isinstance(taken, np.ndarray) == isinstance(value, np.ndarray)
        np.testing.assert_array_equal(taken, ids)


def test_what_holds_no_whole_numbers_is_left():
    for value in (None, 3, 0.5, np.zeros(2), jnp.zeros(2, bool), jax.random.key(0)):
        assert as_ids(value) is value


@pytest.mark.parametrize(
    "value", [np.array([0, 2**31]), np.array([2**31], np.uint32), np.array([2**40], np.uint64)]
)
def test_a_whole_number_that_does_not_fit_is_refused(value):
    @typed
    def fn(x_t: Tokens) -> Tokens:
        return x_t

    at = "[1]" if value.size > 1 else "[0]"
    message = f"`x_t` must hold whole numbers that int32 can hold; got x_t{at} = {value[-1]}."
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        fn(value)


def test_a_traced_number_that_wrapped_is_no_id():
    def fn(tokens):
        checks.check_tokens("x_t", tokens, 3)
        return as_ids(tokens)

    error, _ = jax.jit(checkify.checkify(fn))(jnp.array([2**31], jnp.uint32))
    with pytest.raises(checkify.JaxRuntimeError, match=r"`x_t` must hold ids in \[0, 2\]"):
        error.throw()


@typed
def doors(
    t: Time = 0, number: Number = 0, real: Scalar = 0.5, token: Token = 0, count: int = 1,
    flag: bool = False, ids: tuple[int, ...] = (), context: Context | None = None,
) -> dict:  # fmt: skip
    return locals()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("t", np.int64(1), 1),
        ("t", np.uint8(1), 1),
        ("t", np.float32(0.5), np.float32(0.5)),
        ("t", np.float64(0.5), 0.5),
        ("number", np.int32(1), 1),
        ("real", np.float32(0.25), np.float32(0.25)),
        ("token", np.uint8(200), 200),
        ("count", np.int64(3), 3),
        ("flag", np.bool_(True), True),
        ("ids", (np.int64(3), 4), (3, 4)),
    ],
)
def test_numpy_scalars_stand_for_python_numbers(name, value, expected):
    taken = doors(**{name: value})[name]
    assert taken == expected
    assert isinstance(taken, type(expected))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("t", True),
        ("t", np.bool_(True)),
        ("number", False),
        ("real", True),
        ("real", np.int64(1)),
        ("token", True),
        ("token", np.float32(1.0)),
        ("token", np.float64(1.0)),
        ("count", True),
        ("count", np.float64(2.0)),
        ("flag", np.int64(1)),
        ("ids", (True,)),
        ("context", np.zeros(3, int)),
    ],
)
def test_a_scalar_of_another_kind_is_refused(name, value):
    with pytest.raises(TypeError, match=f"parameter '{name}'"):
        doors(**{name: value})


def test_a_numpy_whole_number_is_a_time():
    assert schedules.rate(np.int64(0), schedules.linear()) == 1
