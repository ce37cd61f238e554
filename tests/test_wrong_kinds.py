"""Every public function refuses an argument of the wrong kind, or shows it: none is silent.

Each array of `test_contracts.FUNCTIONS` has a kind, by its name. A case is the example of a
function with one argument turned into another kind: a probability for its logarithm, a logarithm
for a probability, rows that do not sum to 1, ids that are none, a NaN. Eagerly it must be refused
with a message that names the argument, or, where numbers of any size are meant, the NaN must come
out.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from test_contracts import FUNCTIONS, caller, draw, floats, on_jax

from dfm_jax import clustering, fast, mixture, paths, sampling, velocities
from dfm_jax.interfaces import uncached_decoder
from dfm_jax.mixture import GateState, mixture_params

NAN, INF = np.nan, np.inf

Wrong = Callable[[np.ndarray], dict[str, Any]]


def with_first(value: Any, first: float) -> np.ndarray:
    value = np.array(value, float)
    value.flat[0] = first
    return value


def no_distribution(probs: np.ndarray, axis: int = -1) -> dict[str, Any]:
    """Along the axis it still sums to 1 where that is not what is wrong."""
    probs = np.moveaxis(probs, axis, -1)
    negative = probs.copy()
    negative[..., 0] -= 2.0
    negative[..., 1] += 2.0
    wrong = {
        "logarithms": np.log(probs),
        "rows that sum to 1.5": 1.5 * probs,
        "a negative entry": negative,
        "NaN": with_first(probs, NAN),
        "infinity": with_first(probs, INF),
    }
    return {label: np.moveaxis(value, -1, axis) for label, value in wrong.items()}


def no_log_distribution(log_probs: np.ndarray) -> dict[str, Any]:
    return no_log_probs(log_probs) | {"rows that sum to 0.4": log_probs + np.log(0.4)}


def no_log_probs(log_probs: np.ndarray) -> dict[str, Any]:
    """Any number of them: they need not sum to 1."""
    return {
        "probabilities": np.exp(log_probs),
        "one above 0": with_first(log_probs, 0.5),
        "infinity": with_first(log_probs, INF),
        "NaN": with_first(log_probs, NAN),
    }


def no_ids(ids: np.ndarray) -> dict[str, Any]:
    """Of an int8: 99 is no id of any example."""

    def first(value: Any) -> np.ndarray:
        wrong = ids.copy()
        wrong.flat[0] = value
        return wrong

    return {
        "id -1": first(-1),
        "id 99": first(99),
        "floats": ids.astype(float),
        "truths": ids.astype(bool),
    }


def no_labels(ids: np.ndarray) -> dict[str, Any]:
    """Ids that are compared with each other only: how many there are is not known."""
    return {label: value for label, value in no_ids(ids).items() if label != "id 99"}


def outside(*values: float) -> Wrong:
    return lambda value: {f"{one:g}": with_first(value, one) for one in (*values, NAN)}


def no_number(value: np.ndarray) -> dict[str, Any]:
    """Of any size and sign."""
    return {"NaN": np.full_like(value, NAN)}


def no_truths(value: np.ndarray) -> dict[str, Any]:
    return {"whole numbers": value.astype(int), "floats": value.astype(float)}


def no_state(state: GateState) -> dict[str, Any]:
    return {
        label: GateState(value, state.valid)
        for label, value in no_log_distribution(state.log_weights).items()
    }


def no_distances(value: np.ndarray) -> dict[str, Any]:
    apart = value.copy()
    apart[0, 1] = 0.0
    infinite = value.copy()
    infinite[0, 1] = INF
    return outside(-1.0, 0.5)(value) | {"0 off the diagonal": apart, "infinity": infinite}


def no_table(value: np.ndarray) -> dict[str, Any]:
    return {
        "above 1": value + 0.5,
        "below 0": value - 2.0,
        "decreasing": value[::-1],
        "NaN": np.full_like(value, NAN),
    }


# By the name of the argument; where it says different things, behind the name of the function.
NAMES: list[tuple[Wrong, str]] = [
    (
        no_distribution,
        "base_probs probs model_next_probs next_probs next_token_probs p pair_probs posterior",
    ),
    (
        no_distribution,
        "posterior_0 posteriors probs q router source step_probs token_path token_paths",
    ),
    (no_distribution, "weights"),
    (
        no_log_distribution,
        "log_coupling log_data log_gate log_probs log_probs log_model_probs log_target_probs",
    ),
    (
        no_log_distribution,
        "log_model_weights log_next_probs log_p log_posterior log_prior log_q log_router",
    ),
    (no_log_distribution, "log_weights next_log_probs"),
    (no_log_probs, "log_p_t log_probs sequence_log_probs token_log_probs"),
    (no_state, "state"),
    (no_ids, "expert part position states tokens x x_0 x_1 x_next x_t"),
    (no_truths, "context pending"),
    (outside(-0.5, 1.5), "t kappa_t step_size"),
    (outside(0.0, 1.5), "mass"),
    (outside(-1.0, INF), "beta num_revealed size"),
    (outside(-1.0), "beta_t"),
    (outside(-1.0, 0.0, INF), "temperature high"),
    (outside(-1.0, 0.0, 1e9), "low"),
    (outside(0.0, INF), "num_masked"),
    (no_distances, "distances"),
    (no_table, "table"),
    (no_number, "alpha backward centroids expert_excess expert_losses features forward logits"),
    (no_number, "model router_excess router_loss target values velocities velocity"),
]
KINDS: dict[str, Wrong] = {name: wrong for wrong, names in NAMES for name in names.split()} | {
    "paths.convex_path kappa_t": lambda kappa: no_distribution(kappa, 0),
    "steps.step_size t": no_ids,
    "steps.next_token_velocity t": no_ids,
    "paths.sample_mixture x_0": no_labels,
    "paths.sample_mixture x_1": no_labels,
    "steps.parallel_log_prob x": no_labels,
    "steps.parallel_log_prob states": no_labels,
    "steps.parallel_log_prob block_of": no_labels,
    "accounting.truncation_bound kept": outside(-0.5, 1.5),
    "samplers.minority_count_probs majority_prob": outside(0.5, 1.5),
    "samplers.redraw_step_probs probability": outside(-0.5, 1.5),
    "samplers.redraw_step_probs posterior": lambda probs: (  # one row of it is read
        no_distribution(probs)
        | {"NaN": np.full_like(probs, NAN), "infinity": np.full_like(probs, INF)}
    ),
    "mixture.fixed_share_gate alpha": outside(-0.5, 1.5),
    "mixture.fixed_share_update alpha": outside(-0.5, 1.5),
}
KINDS |= dict.fromkeys(("initial", "transition", "emission"), no_distribution)
# What a message calls an argument that it does not name.
CALLED = {"paths.point_mass tokens": "x_t", "mixture.run_gate token_log_probs": "log_weights"}
READ = {"context": False, "pending": True}  # so that every position is read
UNREADABLE = {"key"}  # not an array of numbers


def kind(name: str, key: str) -> Wrong | None:
    return KINDS.get(f"{name} {key}", KINDS.get(key))


def cases(name: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The argument, what is wrong with it, and the arrays."""
    arrays = draw(name, 0)
    arrays |= {key: np.full_like(arrays[key], read) for key, read in READ.items() if key in arrays}
    for key, value in arrays.items():
        if key in UNREADABLE:
            continue
        wrong = kind(name, key)
        assert wrong is not None, f"`KINDS` does not know what `{key}` of {name} holds"
        for label, bad in wrong(value).items():
            yield key, label, arrays | {key: bad}


def outcome(name: str, key: str, arrays: dict[str, Any]) -> str:
    """Refused by its name, refused otherwise, shown by a NaN, or silent."""
    called = CALLED.get(f"{name} {key}", key)
    try:
        out = caller(name)(on_jax(arrays))
    except (ValueError, TypeError) as error:
        named = re.search(rf"`(exp\()?({key}|{called})\b|parameter '{key}'", str(error))
        return "refused" if named else f"refused by another name: {error}"
    return "shown" if any(np.any(np.isnan(leaf)) for leaf in floats(out)) else "silent"


# Numbers of any size: a NaN comes out, and so do the logarithms of single probabilities.
SHOWN = {no_number, no_log_probs}


@pytest.mark.sampled(20)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.usefixtures("strict")
def test_no_argument_of_another_kind_passes_in_silence(name):
    found = {(key, label): outcome(name, key, arrays) for key, label, arrays in cases(name)}
    numbers = {key for key in draw(name, 0) if kind(name, key) in SHOWN}
    shown = {case: "shown" for case in found if case[0] in numbers and case[1] == "NaN"}
    assert {
        case: said for case, said in found.items() if said not in ("refused", shown.get(case))
    } == {}


# ── what is not in the table ────────────────────────────────────────────────────────────────────

PROBS = np.array([0.25, 0.75])
LOGS = np.log(PROBS)
X_T = np.zeros(1, int)
DECODER = uncached_decoder(lambda params, tokens: jnp.zeros((tokens.shape[0], 2)), 2)


def moving(t):
    """A path whose second token appears at t = 1/2, as fast as at any later time."""
    late = jnp.maximum(t - 0.5, 0.0)
    return jnp.stack([1 - late, late])[None]


def ending(t):
    """A path that has lost its second token at t = 1/2, and was losing it until then."""
    return jnp.stack([0.5 + t, 0.5 - t])[None]


DISTANCES = np.array([[0.0, 1.0], [1.0, 0.0]])
HUGE = np.array([3e38, 3e38], np.float32)
CLUSTERS = clustering.Clusters(jnp.eye(2), jnp.zeros(2), jnp.zeros(2))

OTHERS = {
    "beta": lambda: velocities.metric_velocity(X_T, X_T, 0.5, DISTANCES, lambda t: 1 - t),
    "token_path": lambda: velocities.campbell_velocity(moving, X_T, 0.5),
    "token_path, the end": lambda: velocities.kinetic_optimal_velocity(ending, X_T, 0.5),
    "token_path, no probs": lambda: velocities.kinetic_optimal_velocity(
        lambda t: jnp.stack([t, t])[None], X_T, 0.25
    ),
    "kappa": lambda: velocities.convex_velocity(
        np.eye(2)[:, None], X_T, 0.5, lambda t: jnp.stack([t, t + 0.25])[:, None]
    ),
    "features": lambda: mixture.centroid_gate(HUGE, np.eye(2, dtype=np.float32), 1.0),
    "centroids": lambda: mixture.centroid_gate(np.ones(2, np.float32), np.stack([HUGE, HUGE]), 1.0),
    "logits": lambda: fast.sample_categorical(jax.random.key(0), np.array([[0.0, NAN]])),
    "logits, dead": lambda: fast.sample_categorical(jax.random.key(0), np.full((1, 2), -INF)),
    "log_weights, of rows": lambda: mixture.mix_logits(np.zeros((2, 1)), np.zeros((2, 1, 3))),
    "log_probs": lambda: sampling.sample_next_token(jax.random.key(0), PROBS),
    "log_probs, of experts": lambda: mixture.sample_mixed_step(
        jax.random.key(0), PROBS, PROBS[:, None, None]
    ),
    "log_prior": lambda: mixture_params((DECODER, DECODER), PROBS, ({}, {})),
    "num_rows": lambda: clustering.capacities(-1, 2),
    "num_clusters": lambda: clustering.capacities(2, -1),
    "sizes": lambda: clustering.balanced_assignment(np.zeros((2, 2)), np.array([3, -1])),
    "scores": lambda: clustering.priced_labels(np.full((1, 2), NAN), np.zeros(2)),
    "prices": lambda: clustering.priced_labels(np.zeros((1, 2)), np.array([0.0, -INF])),
    "labels": lambda: clustering.cluster_fit(np.eye(2), np.array([0, -1]), CLUSTERS),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", OTHERS)
def test_other_values_of_another_kind_are_refused(name):
    with pytest.raises(ValueError, match=rf"`(exp\()?{name.split(',')[0]}\b.*; "):
        OTHERS[name]()


@pytest.mark.slow
def test_logarithms_above_0_are_refused_on_every_device_under_checkify():
    def mixed(log_p_t, log_prior):
        return jax.vmap(
            lambda p, w: mixture.mix_over_devices(w[None], p[None], jnp.ones(1)),
            axis_name="expert",
        )(log_p_t, log_prior)

    for good, wrong, name in ((LOGS, PROBS, "log_p_t"), (PROBS, LOGS, "log_prior")):
        error, _ = jax.jit(checkify.checkify(mixed))(jnp.asarray(wrong), jnp.asarray(good))
        with pytest.raises(checkify.JaxRuntimeError, match=f"`{name}` must hold logarithms"):
            error.throw()


# ── whole numbers ───────────────────────────────────────────────────────────────────────────────

INTEGERS = ("int8", "uint8", "int16", "uint16", "uint32", "uint64", "int64")


def whole_numbers(name: str) -> list[str]:
    return [
        key
        for key, value in draw(name, 0).items()
        if isinstance(value, np.ndarray) and value.dtype == np.int64 and key not in UNREADABLE
    ]


WITH_IDS = [name for name in FUNCTIONS if whole_numbers(name)]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_IDS)
def test_ids_of_small_integer_types_are_widened_before_anything_is_done(name):
    """In int8 an id and the mask 128 would wrap around. Read off the program: none is compiled."""
    arrays = draw(name, 0)
    for dtype in ("int8", "uint16"):
        ids = {key: jnp.asarray(arrays[key], dtype) for key in whole_numbers(name)}
        program = jax.make_jaxpr(caller(name))(on_jax(arrays) | ids).jaxpr
        small = {one for one in program.invars if one.aval.dtype == dtype}
        assert len(small) == len(ids)
        for line in program.eqns:
            if small & {one for one in line.invars if isinstance(one, jax.extend.core.Var)}:
                assert line.primitive.name == "convert_element_type"
                assert line.params["new_dtype"] == "int32"


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", ["paths.mask_source", "paths.revealed_posterior"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_ids_of_every_integer_type_mean_the_same(name, dtype):
    arrays = draw(name, 0)
    expected = caller(name)(on_jax(arrays))
    for put in (lambda ids: ids.astype(dtype), lambda ids: jnp.asarray(ids.astype(dtype))):
        found = caller(name)(
            on_jax(arrays) | {key: put(arrays[key]) for key in whole_numbers(name)}
        )
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "uint32", "int32", "int64"])
@pytest.mark.usefixtures("x64")
def test_under_x64_ids_are_of_32_bits_or_64(dtype):
    ids = jnp.array([0, 2], dtype)
    drawn = paths.mask_source(ids, np.array([True, False]), mask_id=3)
    np.testing.assert_array_equal(drawn, [0, 3])
    assert drawn.dtype == {"int64": "int64", "uint32": "int64"}.get(dtype, "int32")


@pytest.mark.slow
@pytest.mark.parametrize("put", [np.asarray, jnp.asarray])
def test_no_id_wraps_around_in_a_small_integer_type(put):
    words = put(np.array([72, 105, 33], np.int8))
    none = np.zeros(3, bool)
    np.testing.assert_array_equal(paths.mask_source(words, none, mask_id=128), 3 * [128])
    np.testing.assert_array_equal(paths.point_mass(words, 257).sum(axis=1), np.ones(3))
    rows = put(np.array([[72, 105, 33], [72, 33, 33]], np.int8))
    seen = put(np.array([72, 128, 33], np.uint8))
    log_prob = paths.revealed_log_prob(seen, rows, np.log([0.5, 0.5]), mask_id=128)
    np.testing.assert_allclose(log_prob, 0.0, atol=1e-6)
    log_prob = paths.revealed_log_prob(put(rows[0]), rows, np.log([0.5, 0.5]), mask_id=128)
    np.testing.assert_allclose(log_prob, np.log(0.5), rtol=1e-6)


@pytest.mark.parametrize("name", WITH_IDS)
def test_truths_are_no_ids(name):
    arrays = draw(name, 0)
    for key in whole_numbers(name):
        truths = arrays | {key: arrays[key].astype(bool)}
        with pytest.raises(TypeError, match=rf"parameter '{key}'"):
            caller(name)(on_jax(truths))
