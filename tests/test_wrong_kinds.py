"""Every public function refuses an argument of the wrong kind, or shows it: none is silent.

Each array of `test_contracts.FUNCTIONS` has a kind, by its name. A case is the example of a
function with one argument turned into another kind: a probability for its logarithm, a logarithm
for a probability, rows that do not sum to 1, ids that are none, a NaN. Eagerly it must be refused
with a message that names the argument, or, where numbers of any size are meant, the NaN must come
out.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from test_contracts import FUNCTIONS, caller, draw, floats, on_jax

from dfm_jax import paths
from dfm_jax.gates import GateState

NAN, INF = np.nan, np.inf

Wrong = Callable[[np.ndarray], dict[str, Any]]


def with_first(value: Any, first: float) -> np.ndarray:
    value = np.array(value, float)
    value.flat[0] = first
    return value


def no_law(law: np.ndarray, axis: int = -1) -> dict[str, Any]:
    """Along the axis it still sums to 1 where that is not what is wrong."""
    law = np.moveaxis(law, axis, -1)
    negative = law.copy()
    negative[..., 0] -= 2.0
    negative[..., 1] += 2.0
    wrong = {
        "logarithms": np.log(law),
        "rows that sum to 1.5": 1.5 * law,
        "a negative entry": negative,
        "NaN": with_first(law, NAN),
        "infinity": with_first(law, INF),
    }
    return {label: np.moveaxis(value, -1, axis) for label, value in wrong.items()}


def no_log_law(log_law: np.ndarray) -> dict[str, Any]:
    return no_log_probs(log_law) | {"rows that sum to 0.4": log_law + np.log(0.4)}


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
    return {"NaN": with_first(value, NAN)}


def no_truths(value: np.ndarray) -> dict[str, Any]:
    return {"whole numbers": value.astype(int), "floats": value.astype(float)}


def no_state(state: GateState) -> dict[str, Any]:
    return {
        label: GateState(value, state.alive)
        for label, value in no_log_law(state.log_weights).items()
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
        "below 0": value - 0.5,
        "decreasing": value[::-1],
        "NaN": np.full_like(value, NAN),
    }


# By the name of the argument; where it says different things, behind the name of the function.
NAMES: list[tuple[Wrong, str]] = [
    (
        no_law,
        (
            "base_laws kept law model_next_probs next_probs next_token_probs p pair_probs posterior "
            "posterior_0 posteriors probs q router source step_laws token_path token_paths weights"
        ),
    ),
    (
        no_log_law,
        (
            "log_coupling log_data log_gate log_law log_laws log_model_laws log_model_weights "
            "log_next_law log_next_probs log_p log_posterior log_prior log_q log_router log_weights "
            "next_log_probs"
        ),
    ),
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
    (
        no_number,
        (
            "alpha backward centroids expert_excess expert_losses features forward model "
            "router_excess router_loss target values velocities velocity"
        ),
    ),
]
KINDS: dict[str, Wrong] = {name: wrong for wrong, names in NAMES for name in names.split()} | {
    "paths.convex_path kappa_t": lambda kappa: no_law(kappa, 0),
    "objectives.cross_entropy_loss log_probs": no_log_law,
    "steps.step_size t": no_ids,
    "steps.next_token_velocity t": no_ids,
    "paths.sample_mixture x_0": no_labels,
    "paths.sample_mixture x_1": no_labels,
    "steps.parallel_log_prob x": no_labels,
    "steps.parallel_log_prob states": no_labels,
    "steps.parallel_log_prob block_of": no_labels,
    "gates.fixed_share_gate alpha": outside(-0.5, 1.5),
    "gates.fixed_share_update alpha": outside(-0.5, 1.5),
}
UNREADABLE = {"key"}  # not an array of numbers


def kind(name: str, key: str) -> Wrong | None:
    return KINDS.get(f"{name} {key}", KINDS.get(key))


def cases(name: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The argument, what is wrong with it, and the arrays."""
    arrays = draw(name, 0)
    for key, value in arrays.items():
        if key in UNREADABLE:
            continue
        wrong = kind(name, key)
        assert wrong is not None, f"`KINDS` does not know what `{key}` of {name} holds"
        for label, bad in wrong(value).items():
            yield key, label, arrays | {key: bad}


def outcome(name: str, key: str, arrays: dict[str, Any]) -> str:
    """Refused by its name, refused otherwise, shown by a NaN, or silent."""
    try:
        out = caller(name)(on_jax(arrays))
    except (ValueError, TypeError) as error:
        text = str(error)
        return "refused" if f"`{key}" in text or f"'{key}'" in text else f"misnamed: {text[:90]}"
    if any(np.any(np.isnan(leaf)) for leaf in floats(out)):
        return "shown"
    return "silent"


# ── whole numbers ───────────────────────────────────────────────────────────────────────────────

INTEGERS = ("int8", "uint8", "int16", "uint16", "uint32", "uint64", "int64")


def whole_numbers(name: str) -> list[str]:
    return [
        key
        for key, value in draw(name, 0).items()
        if isinstance(value, np.ndarray) and value.dtype == np.int64 and key not in UNREADABLE
    ]


WITH_IDS = [name for name in FUNCTIONS if whole_numbers(name)]


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
