"""Bad input to the mathematics: one clear error that names argument, rule and value.

The functions are those of `test_contracts.FUNCTIONS`: a case is an example of theirs with one
argument spoilt. Values that are traced cannot be read: there the same rule speaks under checkify.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from test_contracts import FUNCTIONS, SMALL, caller, compiled, draw, example, mathematics, on_jax

from dfm_jax import schedules
from dfm_jax.mixture import GateState

N, V, S, K = SMALL.N, SMALL.V, SMALL.S, SMALL.K
OFF = np.array([0.5, 0.25, 0.25, 0.25])
NEGATIVE = np.array([0.75, 0.5, -0.25, 0.0])
NO_ID = np.array([0, -1])  # −1 would silently be the last row


def states_with(bad: int) -> np.ndarray:
    states = np.zeros((SMALL.Z, N), int)
    states[1, 1] = bad
    return states


def ids(name: str, bound: int, got: str = "[1] = -1") -> str:
    return f"`{name}` must hold ids in [0, {bound - 1}]; got {name}{got}."


def probs(name: str, values: np.ndarray = OFF) -> str:
    if np.any(values < 0):
        first = int(np.argmax(values < 0))
        return f"`{name}` must be non-negative; got {name}[{first}] = {values[first]}."
    return f"`{name}` must sum to 1 over its last axis; got {name}.sum(axis=-1) = {values.sum()}."


PROBS = np.full((N, 4), 0.25)  # probabilities where logarithms belong


def logs(name: str, values: np.ndarray = OFF) -> str:
    first = np.argwhere(values > 0)[0].tolist()
    rule = f"`{name}` must hold logarithms of probabilities, and none above 0"
    return f"{rule}; got {name}{first} = {values[tuple(first)]}."


# ── arrays: function, argument, bad value, message ──────────────────────────────────────────────

ARRAYS = [
    ("schedules.rate", "t", 1.0, "`t` must lie where κ_t < 1; got t = 1.0."),
    ("schedules.rate", "t", -0.1, "`t` must lie in [0, 1]; got t = -0.1."),
    ("schedules.rate", "t", np.nan, "`t` must lie in [0, 1]; got t = nan."),
    ("schedules.backward_rate", "t", 0.0, "`t` must lie where κ_t > 0; got t = 0.0."),
    ("schedules.backward_rate", "t", 1.1, "`t` must lie in [0, 1]; got t = 1.1."),
    ("paths.point_mass", "tokens", NO_ID, ids("x_t", S)),
    ("paths.point_mass", "tokens", np.array([0, S]), ids("x_t", S, "[1] = 4")),
    ("paths.mask_source", "x_1", np.array([0, V]), ids("x_1", V, "[1] = 3")),
    ("paths.mixture_path", "x_0", NO_ID, ids("x_0", S)),
    ("paths.mixture_path", "x_1", NO_ID, ids("x_1", S)),
    (
        "paths.mixture_path",
        "kappa_t",
        np.array([0.5, 1.2]),
        "`kappa_t` must lie in [0, 1]; got kappa_t[1] = 1.2.",
    ),
    (
        "paths.convex_path",
        "kappa_t",
        np.array([[0.5, 0.5], [0.5, 0.25], [0.0, 0.0], [0.0, 0.0]]),
        "`kappa_t` must sum to 1 over its first axis; got kappa_t.sum(axis=0)[1] = 0.75.",
    ),
    ("paths.metric_path", "x_1", np.array([0, V]), ids("x_1", V, "[1] = 3")),
    ("paths.metric_path", "beta_t", -1.0, "`beta_t` must lie in [0, inf]; got beta_t = -1.0."),
    ("paths.product_log_prob", "x_t", NO_ID, ids("x_t", S)),
    (
        "paths.sample_path",
        "token_path",
        np.array([np.zeros(S), np.full(S, 0.25)]),
        "`token_path` must sum to 1 over its last axis; got token_path.sum(axis=-1)[0] = 0.0.",
    ),
    (
        "paths.sample_path",
        "token_path",
        np.array([np.eye(S)[0], np.full(S, np.nan)]),
        "`token_path` must be non-negative; got token_path[1, 0] = nan.",
    ),
    ("paths.marginal_log_prob", "x_t", NO_ID, ids("x_t", S)),
    ("paths.pair_posterior", "x_t", NO_ID, ids("x_t", S)),
    (
        "paths.token_posterior",
        "tokens",
        states_with(-1),
        ids("tokens", V, "[1, 1] = -1"),
    ),
    ("paths.revealed_log_prob", "x_t", np.array([0, S]), ids("x_t", S, "[1] = 4")),
    ("paths.revealed_posterior", "x_t", NO_ID, ids("x_t", S)),
    ("velocities.rate_violation", "x_t", NO_ID, ids("x_t", S)),
    ("velocities.mixture_velocity", "t", 1.0, "`t` must lie where κ_t < 1; got t = 1.0."),
    ("velocities.mixture_velocity", "x_t", NO_ID, ids("x_t", S)),
    ("velocities.mixture_velocity", "x_1", NO_ID, ids("x_1", S)),
    ("velocities.posterior_to_velocity", "t", 1.0, "`t` must lie where κ_t < 1; got t = 1.0."),
    ("velocities.posterior_to_velocity", "x_t", NO_ID, ids("x_t", S)),
    ("velocities.velocity_to_posterior", "t", 1.0, "`t` must lie where κ_t < 1; got t = 1.0."),
    ("velocities.backward_velocity", "t", 0.0, "`t` must lie where κ_t > 0; got t = 0.0."),
    ("velocities.backward_velocity", "x_t", NO_ID, ids("x_t", S)),
    (
        "velocities.corrected_velocity",
        "beta",
        -1.0,
        "`beta` must lie in [0, inf); got beta = -1.0.",
    ),
    ("velocities.convex_velocity", "x_t", NO_ID, ids("x_t", S)),
    ("velocities.convex_velocity", "t", 1.5, "`t` must lie in [0, 1); got t = 1.5."),
    ("velocities.kinetic_optimal_velocity", "t", 1.0, "`t` must lie in [0, 1); got t = 1.0."),
    ("velocities.metric_velocity", "t", -0.5, "`t` must lie in [0, 1]; got t = -0.5."),
    ("velocities.campbell_velocity", "t", 0.0, "`t` must lie in (0, 1); got t = 0.0."),
    (
        "velocities.posterior_to_velocity",
        "posterior",
        np.full((N, V), 1.0),
        "`posterior` must sum to 1 over its last axis; got posterior.sum(axis=-1)[0] = 3.0.",
    ),
    ("velocities.kinetic_optimal_velocity", "x_t", NO_ID, ids("x_t", S)),
    ("velocities.metric_velocity", "x_t", np.array([0, V]), ids("x_t", V, "[1] = 3")),
    ("velocities.metric_velocity", "x_1", NO_ID, ids("x_1", V)),
    ("velocities.campbell_velocity", "x_t", NO_ID, ids("x_t", S)),
    (
        "velocities.divergence",
        "states",
        states_with(-1),
        ids("states", S, "[1, 1] = -1"),
    ),
    ("steps.step_size", "t", 3, "`t` must lie in [0, 2]; got t = 3."),
    ("steps.step_size", "t", -1, "`t` must lie in [0, 2]; got t = -1."),
    ("steps.exact_step_velocity", "x_t", NO_ID, ids("x_t", S)),
    (
        "steps.exact_step_velocity",
        "step_size",
        np.array([0.5, 1.5]),
        "`step_size` must lie in [0, 1]; got step_size[1] = 1.5.",
    ),
    ("steps.step_probs", "x_t", NO_ID, ids("x_t", S)),
    ("steps.step_violation", "x_t", NO_ID, ids("x_t", S)),
    (
        "steps.transition_matrix",
        "states",
        states_with(S),
        ids("states", S, "[1, 1] = 4"),
    ),
    (
        "steps.push_forward",
        "states",
        states_with(S),
        ids("states", S, "[1, 1] = 4"),
    ),
    ("steps.next_token_velocity", "t", N, "`t` must lie in [0, 1]; got t = 2."),
    ("steps.next_token_velocity", "t", -1, "`t` must lie in [0, 1]; got t = -1."),
    ("steps.next_token_velocity", "x_t", NO_ID, ids("x_t", S)),
    (
        "steps.total_correlation",
        "states",
        states_with(V),
        ids("states", V, "[1, 1] = 3"),
    ),
    ("mixture.mix", "weights", OFF, probs("weights")),
    ("mixture.mix", "weights", NEGATIVE, probs("weights", NEGATIVE)),
    ("mixture.mix_probs", "weights", OFF, probs("weights")),
    (
        "mixture.mix_probs",
        "probs",
        np.full((K, N, V), 1.0),
        "`probs` must sum to 1 over its last axis; got probs.sum(axis=-1)[0, 0] = 3.0.",
    ),
    (
        "mixture.mix_logits",
        "log_weights",
        np.zeros(K),
        (
            "`exp(log_weights)` must sum to 1 over its first axis; got "
            "exp(log_weights).sum(axis=0) = 4.0."
        ),
    ),
    ("mixture.mix_logits", "log_weights", PROBS[0], logs("log_weights", PROBS[0])),
    ("mixture.mix_log_probs", "log_weights", PROBS[0], logs("log_weights", PROBS[0])),
    ("mixture.context_posterior", "part", -1, "`part` must lie in [0, 3]; got part = -1."),
    ("mixture.context_posterior", "part", K, "`part` must lie in [0, 3]; got part = 4."),
    ("mixture.fixed_share_update", "alpha", 1.5, "`alpha` must lie in [0, 1]; got alpha = 1.5."),
    ("mixture.fixed_share_update", "alpha", -0.5, "`alpha` must lie in [0, 1]; got alpha = -0.5."),
    ("mixture.fixed_share_gate", "alpha", 1.5, "`alpha` must lie in [0, 1]; got alpha = 1.5."),
    (
        "mixture.centroid_gate",
        "temperature",
        0.0,
        "`temperature` must lie in (0, inf); got temperature = 0.0.",
    ),
    (
        "mixture.centroid_gate",
        "temperature",
        -1.0,
        "`temperature` must lie in (0, inf); got temperature = -1.0.",
    ),
    (
        "mixture.centroid_gate",
        "features",
        np.zeros(SMALL.D),
        (
            "The length of `features` must lie in (0, inf), because a direction is needed; got "
            "the length of features = 0.0."
        ),
    ),
    (
        "mixture.centroid_gate",
        "centroids",
        np.eye(K, SMALL.D, 1),
        (
            "The length of `centroids` must lie in (0, inf), because a direction is needed; got "
            "the length of centroids[3] = 0.0."
        ),
    ),
    ("steps.parallel_log_prob", "log_probs", OFF, logs("log_probs")),
    ("steps.total_correlation", "probs", OFF, probs("probs")),
    ("paths.revealed_log_prob", "log_data", OFF, logs("log_data")),
    ("paths.revealed_posterior", "log_data", OFF, logs("log_data")),
    ("mixture.expert_posterior", "log_p_t", OFF, logs("log_p_t")),
    ("mixture.bayes_gate_update", "log_probs", OFF, logs("log_probs")),
    ("mixture.bayes_gate", "token_log_probs", PROBS, logs("token_log_probs", PROBS)),
    ("mixture.last_token_gate", "token_log_probs", PROBS, logs("token_log_probs", PROBS)),
    ("mixture.top_experts_gate", "weights", OFF, probs("weights")),
    ("mixture.nucleus_gate", "weights", NEGATIVE, probs("weights", NEGATIVE)),
    ("mixture.nucleus_gate", "mass", 0.0, "`mass` must lie in (0, 1]; got mass = 0.0."),
    ("mixture.nucleus_gate", "mass", 1.5, "`mass` must lie in (0, 1]; got mass = 1.5."),
    ("mixture.hard_gate", "weights", OFF, probs("weights")),
    ("objectives.cross_entropy_loss", "x_1", np.array([0, V]), ids("x_1", V, "[1] = 3")),
    ("objectives.generalized_kl_loss", "x_1", NO_ID, ids("x_1", V)),
    ("objectives.generalized_kl_loss", "x_t", NO_ID, ids("x_t", S)),
    ("objectives.generalized_kl_loss", "t", 1.0, "`t` must lie where κ_t < 1; got t = 1.0."),
    ("objectives.generalized_kl", "x_t", NO_ID, ids("x_t", S)),
    ("objectives.any_order_loss", "x_1", NO_ID, ids("x_1", V)),
    ("objectives.any_order_loss", "x_t", NO_ID, ids("x_t", S)),
    ("objectives.step_loss", "x_1", NO_ID, ids("x_1", V)),
    ("objectives.step_loss", "x_t", NO_ID, ids("x_t", S)),
    ("objectives.router_loss", "part", -1, "`part` must hold ids in [0, 3]; got part = -1."),
    ("objectives.decentralized_loss", "weights", OFF, probs("weights")),
    ("samplers.autoregressive_log_prob", "x", np.array([0, V]), ids("x", V, "[1] = 3")),
    ("samplers.final_step_probs", "x_t", NO_ID, ids("x_t", S)),
    ("samplers.one_position_step_probs", "x_t", NO_ID, ids("x_t", S)),
    ("samplers.one_position_step_probs", "position", N, ids("position", N, " = 2")),
    ("mixture.shared_expert_log_prob", "x_next", NO_ID, ids("x_next", S)),
    ("accounting.routing_cost", "expert", -1, ids("expert", K, " = -1")),
    ("accounting.mixture_excess_bound", "weights", OFF, probs("weights")),
    ("accounting.oracle_leakage", "weights", NEGATIVE, probs("weights", NEGATIVE)),
]


def whole(message):
    """The message from end to end; out of a transformation jax adds a note below it."""
    return rf"^{re.escape(message)}(\n-+\n|$)"


def named(cases):
    return [
        pytest.param(*case, id=f"{case[0]}: {case[1]} {np.asarray(case[2]).ravel()[:4]}")
        for case in cases
    ]


def spoilt(name, argument, value):
    return on_jax(draw(name, 0) | {argument: np.asarray(value)})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "argument", "value", "message"), named(ARRAYS))
@pytest.mark.usefixtures("strict")
def test_a_bad_array_is_refused(name, argument, value, message):
    with pytest.raises(ValueError, match=whole(message)):
        caller(name)(spoilt(name, argument, value))


# Each rule once, in functions that gather, sort, scan, map over states and differentiate.
TRACED = {
    ("schedules.rate", "t"),
    ("schedules.backward_rate", "t"),
    ("paths.mixture_path", "x_0"),
    ("paths.sample_path", "token_path"),
    ("paths.token_posterior", "tokens"),
    ("velocities.corrected_velocity", "beta"),
    ("steps.step_size", "t"),
    ("steps.transition_matrix", "states"),
    ("mixture.expert_posterior", "log_p_t"),
    ("mixture.mix", "weights"),
    ("mixture.mix_probs", "probs"),
    ("mixture.mix_logits", "log_weights"),
    ("mixture.context_posterior", "part"),
    ("mixture.fixed_share_gate", "alpha"),
    ("mixture.centroid_gate", "features"),
    ("mixture.nucleus_gate", "mass"),
    ("objectives.step_loss", "x_t"),
    ("objectives.router_loss", "part"),
    ("samplers.one_position_step_probs", "position"),
}


@functools.cache
def checked(name):
    return jax.jit(checkify.checkify(caller(name)))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("name", "argument", "value", "message"), named(case for case in ARRAYS if case[:2] in TRACED)
)
def test_a_bad_traced_array_is_refused_under_checkify_alone(name, argument, value, message):
    jax.block_until_ready(compiled(name)(spoilt(name, argument, value)))
    rule, _ = message.rsplit("; got", 1)
    error, _ = checked(name)(spoilt(name, argument, value))
    with pytest.raises(checkify.JaxRuntimeError, match=re.escape(rule)):
        error.throw()
    error, _ = checked(name)(example(name))
    error.throw()


def test_under_vmap_the_rule_speaks_for_each_example():
    weights = jnp.array([[0.5, 0.5], [0.5, 0.75]])
    values = jnp.ones((2, 2, 3))
    mix = jax.vmap(mathematics()["mixture"].mix)
    error, _ = jax.jit(checkify.checkify(mix))(weights, values)
    with pytest.raises(checkify.JaxRuntimeError, match=r"`weights` must sum to 1 .* = 1\.25"):
        error.throw()


@pytest.mark.parametrize("compiled", [False, True])
def test_of_no_example_the_rule_holds(compiled):
    mix = jax.vmap(mathematics()["mixture"].mix)
    mix = jax.jit(mix) if compiled else mix
    assert mix(jnp.ones((0, 2)), jnp.ones((0, 2, 3))).shape == (0, 3)


def test_a_numpy_array_mapped_inside_jit_is_checked_and_not_converted():
    """Where vmap closes over NumPy, checkify would index the array itself with a tracer."""
    mixture_path = mathematics()["paths"].mixture_path

    def mapped(tokens):
        def at(x, kappa):
            return mixture_path(x, x, kappa, num_states=S)

        return lambda kappa: jax.vmap(at, in_axes=(0, None))(tokens, kappa)

    good, bad = np.zeros((2, N), int), np.array([[0, 0], [0, -1]])
    assert jax.jit(mapped(good))(0.5).shape == (2, N, S)
    error, _ = jax.jit(checkify.checkify(mapped(bad)))(0.5)
    with pytest.raises(checkify.JaxRuntimeError, match=r"`x_0` must hold ids in \[0, 3\]"):
        error.throw()


# ── Python values: function, argument, bad value, message ───────────────────────────────────────

MASK = "`mask_id` must be at least 1; got mask_id = {}."
STATES = "`num_states` must be V = 3, or 4 with a mask; got num_states = {}."

PYTHON = [
    ("paths.mask_source", "mask_id", -1, MASK),
    ("paths.mask_source", "mask_id", 0, MASK),
    ("paths.revealed_log_prob", "mask_id", -1, MASK),
    ("paths.revealed_posterior", "mask_id", -1, MASK),
    ("paths.pad_to_states", "num_states", 2, STATES),
    ("paths.pad_to_states", "num_states", 5, STATES),
    ("velocities.posterior_to_velocity", "num_states", 5, STATES),
    ("steps.exact_step_velocity", "num_states", 5, STATES),
    ("steps.next_token_velocity", "num_states", 5, STATES),
    ("samplers.final_step_probs", "num_states", 5, STATES),
    (
        "velocities.velocity_to_posterior",
        "num_tokens",
        2,
        "`num_tokens` must be S = 4, or 3 with a mask; got num_tokens = {}.",
    ),
    (
        "mixture.context_posterior",
        "num_experts",
        0,
        "`num_experts` must be at least 1; got num_experts = {}.",
    ),
    (
        "mixture.static_gate",
        "num_positions",
        0,
        "`num_positions` must be at least 1; got num_positions = {}.",
    ),
    ("mixture.top_experts_gate", "count", 0, "`count` must lie in [1, 4]; got count = {}."),
    ("mixture.top_experts_gate", "count", 5, "`count` must lie in [1, 4]; got count = {}."),
]


@pytest.mark.parametrize(("name", "argument", "value", "message"), named(PYTHON))
@pytest.mark.parametrize("transform", [lambda fn: fn, jax.jit], ids=["eager", "jit"])
def test_a_bad_python_value_is_refused_even_while_tracing(
    name, argument, value, message, transform
):
    room, function = name.split(".")
    fn, python = getattr(mathematics()[room], function), FUNCTIONS[name].python(SMALL)
    with pytest.raises(ValueError, match=whole(message.format(value))):
        transform(lambda arrays: fn(**arrays, **(python | {argument: value})))(example(name))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: schedules.from_function(lambda t: t * (5 - 4 * t)),
            r"`kappa` must not decrease; got kappa\[\d+:\d+\] = ",
        ),
        (
            lambda: schedules.check_table(np.array([[0.0], [1.0], [0.5], [1.0]])),
            (
                r"`table` must not move a finished token: table\[1, 0\] is 1, .*; got table\[2, "
                r"0\] = 0\.5"
            ),
        ),
    ],
)
def test_a_schedule_that_goes_back_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ── shapes and kinds, by the signature ──────────────────────────────────────────────────────────

# Two arguments of one free shape: the second is the one that differs from the first.
BLAMED = {
    ("markov.markov_posterior", "initial"): "transition",
    ("objectives.bregman_divergence", "target"): "model",
    ("mixture.mix_logits", "log_weights"): "logits",
}
UNTYPED = {("objectives.any_order_log_weight", key) for key in ("num_revealed", "num_masked")}

ARGUMENTS = [
    (name, key)
    for name in FUNCTIONS
    for key, value in draw(name, 0).items()
    if not isinstance(value, GateState) and (name, key) not in UNTYPED
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
def test_an_array_with_one_axis_too_many_is_refused_by_name(name, key):
    arrays = example(name)
    arrays[key] = arrays[key][None]
    blamed = BLAMED.get((name, key), key)
    with pytest.raises(TypeError, match=rf"parameter '{blamed}'"):
        caller(name)(arrays)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
def test_an_array_of_another_kind_is_refused_by_name(name, key):
    """Floats for whole numbers, whole numbers for floats, truths and keys."""
    arrays = draw(name, 0)
    if np.issubdtype(arrays[key].dtype, np.signedinteger):
        arrays[key] = arrays[key].astype(float)
    else:
        arrays[key] = np.zeros(arrays[key].shape, int)
    with pytest.raises(TypeError, match=rf"parameter '{key}'"):
        caller(name)(on_jax(arrays))


def test_axes_that_disagree_are_refused_by_name():
    velocities = jnp.zeros((3, N, S))
    with pytest.raises(TypeError, match=r"(?s)parameter 'values'.*f32\[3,2,4\].*K=4"):
        mathematics()["mixture"].mix(jnp.full(4, 0.25), velocities)


def test_a_table_that_moves_a_finished_token_is_refused_at_that_step():
    table = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0], [1.0, 1.0]])
    message = (
        r"`table` must not decrease, nor move a finished token, in step t; got table\[t \+ "
        r"1\]\[0\] = 0\.5"
    )
    with pytest.raises(ValueError, match=message):
        mathematics()["steps"].step_size(table, 1)


def test_log_weights_that_are_no_distribution_are_refused():
    with pytest.raises(ValueError, match=r"`exp\(log_weights\)` must sum to 1"):
        mathematics()["mixture"].mix_log_probs(np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match=r"`exp\(log_prior\)` must sum to 1"):
        mathematics()["mixture"].gate_init(np.full(2, -np.inf))


def test_a_divergence_is_infinite_though_the_mass_underflows():
    kl = mathematics()["accounting"].kl_divergence
    assert kl(np.array([0.0, -800.0]), np.array([0.0, -np.inf])) == np.inf


def test_a_divergence_of_what_is_no_number_is_no_number():
    """Where it cannot be refused, because it is traced."""
    kl = jax.jit(mathematics()["accounting"].kl_divergence)
    assert np.isnan(kl(np.array([0.0, np.nan]), np.array([0.0, -1.0])))
    assert np.isnan(kl(np.array([np.nan, -np.inf]), np.array([0.0, -np.inf])))


@pytest.mark.slow
def test_an_infinite_term_is_not_lost_where_its_mass_underflows():
    accounting = mathematics()["accounting"]
    log_probs = np.array([0.0, -800.0])  # exp(−800) is 0
    gate = np.log([[[0.5, 0.5]], [[0.5, 0.5]]])
    router = np.array([gate[0], [[0.0, -np.inf]]])
    assert accounting.router_cost(log_probs, gate, gate) == 0
    assert accounting.router_cost(log_probs, gate, router) == np.inf
    probs = np.log([[0.5, 0.5], [0.5, 0.5]])
    missed = np.array([probs[0], [0.0, -np.inf]])
    split = accounting.ensemble_split(log_probs, probs, np.log([0.5, 0.5]), missed)
    assert split.experts == np.inf


def test_an_expert_of_mass_0_has_no_routing_cost():
    cost = mathematics()["accounting"].routing_cost
    masses, probs = np.array([0.0, -np.inf]), np.log([0.5, 0.5])
    np.testing.assert_allclose(cost(masses, probs, 0), 0, atol=1e-7)
    with pytest.raises(
        ValueError, match=r"`expert` must have a mass above 0; got log_prior\[expert\] = -inf\."
    ):
        cost(masses, probs, 1)


def test_a_given_token_is_no_mask():
    source = mathematics()["paths"].mask_source
    context = np.array([True, False])
    np.testing.assert_array_equal(source(np.array([1, 0]), context, mask_id=3), [1, 3])
    with pytest.raises(ValueError, match=r"`x_1` must hold ids in \[0, 2\]"):
        source(np.array([3, 0]), context, mask_id=3)


@pytest.mark.slow
def test_times_and_numbers_may_be_written_as_integers():
    rooms = mathematics()
    assert rooms["schedules"].rate(0, rooms["schedules"].linear()) == 1
    state = rooms["mixture"].gate_init(np.log([0.5, 0.5]))
    kept = rooms["mixture"].fixed_share_update(state, np.log([0.9, 0.1]), np.log([0.5, 0.5]), 0)
    np.testing.assert_allclose(np.exp(kept.log_weights), [0.9, 0.1], rtol=1e-5)
