"""At the boundary of its domain too, every gradient is that of one-sided differences, or stated.

The functions are those of `test_contracts.FUNCTIONS`. `KINDS` says, for every argument in which one
has a derivative, what domain it has; an argument without a kind fails. A float argument is then put
on the boundary in every way that its kind knows, and the gradient is held against differences along
each entry. Entries of the value that are not finite are not read: no NaN may come of them.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_contracts import (
    FUNCTIONS,
    INF,
    SMALL,
    Draw,
    compiled,
    draw,
    floats,
    gradient,
    impossible_last_token,
    log_half,
    on_jax,
    public_function,
    scalar,
)

from dfm_jax.mixture import GateState

# ── the domains ─────────────────────────────────────────────────────────────────────────────────


class Kind(NamedTuple):
    """The boundary of a domain, and the way of each entry from there: 1 up, −1 down, 0 none."""

    points: Callable[[np.ndarray], Iterator[np.ndarray]]
    way: Callable[[np.ndarray], np.ndarray] = lambda x: np.where(np.isneginf(x), 0, 1)


def zeros(nothing: float) -> Callable[[np.ndarray], Iterator[np.ndarray]]:
    """One entry 0, the entries of a column, the first half of each row, all but one, all."""

    def points(x: np.ndarray) -> Iterator[np.ndarray]:
        last = np.arange(x.size).reshape(x.shape) == x.size - 1
        column = np.broadcast_to(np.arange(x.shape[-1]) if x.ndim else 0, x.shape)
        for none in (last, column == 0, column < x.shape[-1] // 2 if x.ndim else last, column != 1):
            yield np.where(none, nothing, x)
        if x.ndim > 1:
            yield np.where(np.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1)) == 0, nothing, x)

    return points


def token_probs(axis: int) -> Callable[[np.ndarray], Iterator[np.ndarray]]:
    def points(x: np.ndarray) -> Iterator[np.ndarray]:
        for probs in list(zeros(0.0)(np.moveaxis(x, axis, -1)))[:4]:
            yield np.moveaxis(probs / probs.sum(axis=-1, keepdims=True), -1, axis)

    return points


def ends(*values: float) -> Callable[[np.ndarray], Iterator[np.ndarray]]:
    """The first entry at an end, then all of them."""

    def points(x: np.ndarray) -> Iterator[np.ndarray]:
        for end in values:
            yield np.where(np.arange(x.size).reshape(x.shape) == 0, end, x)
            yield np.full_like(x, end)

    return points


def downwards(x: np.ndarray) -> np.ndarray:
    return np.where(x == 1, -1, 1)


FREE = Kind(zeros(0.0))
INSIDE = Kind(lambda x: iter(()))
PROBS = Kind(token_probs(-1))
LOG = Kind(zeros(-INF))
POSITIVE = Kind(zeros(0.0))
UNIT = Kind(ends(0.0, 1.0), downwards)
FROM_0 = Kind(ends(0.0))
TO_1 = Kind(ends(1.0), downwards)
FROM_1 = Kind(ends(1.0))
STAIRS = Kind(lambda x: iter([np.tri(*x.shape, -1)]), lambda x: np.where(x == 1, 0, 1))

KINDS = {
    # logarithms of probabilities
    **dict.fromkeys(
        (
            *(
                "log_coupling",
                "log_data",
                "log_probs",
                "log_target_probs",
                "log_p",
                "log_q",
                "log_p_t",
            ),
            *("log_posterior", "log_router", "log_prior", "log_gate", "log_weights", "log_probs"),
            *("log_model_weights", "log_probs", "log_model_probs", "log_next_probs", "state"),
            *("next_log_probs", "token_log_probs", "sequence_log_probs", "logits"),
        ),
        LOG,
    ),
    # distributions
    **dict.fromkeys(
        (
            *("probs", "probs", "p", "q", "weights", "pair_probs", "posterior", "posterior_0"),
            *("posteriors", "source", "router", "next_token_probs", "next_probs", "base_probs"),
            *("model_next_probs", "step_probs", "token_path", "token_paths"),
        ),
        PROBS,
    ),
    # others
    **dict.fromkeys(("velocity", "velocities", "values", "forward", "backward"), FREE),
    **dict.fromkeys(("size", "beta", "beta_t", "num_revealed"), POSITIVE),
    **dict.fromkeys(("expert_losses", "router_loss", "expert_excess", "router_excess"), POSITIVE),
    **dict.fromkeys(("kappa_t", "step_size"), UNIT),
    **dict.fromkeys(("features", "centroids", "temperature", "low", "high"), INSIDE),
    # At a zero the revealed tokens may be impossible, and there is no posterior.
    **dict.fromkeys(("initial", "transition", "emission"), INSIDE),
    **{"probability": UNIT, "majority_prob": TO_1},
    **{"t": FROM_0, "alpha": UNIT, "mass": TO_1, "table": STAIRS, "num_masked": FROM_1},
}
OF_ONE = {
    ("paths.convex_path", "kappa_t"): Kind(token_probs(0)),
    ("velocities.corrected_velocity", "alpha"): FREE,
    ("objectives.generalized_kl", "velocity"): POSITIVE,
    ("objectives.generalized_kl", "model"): POSITIVE,
    ("objectives.bregman_divergence", "target"): INSIDE,  # its φ is the caller's
    ("objectives.bregman_divergence", "model"): INSIDE,
    ("schedules.backward_rate", "t"): TO_1,
    ("velocities.backward_velocity", "t"): TO_1,
    ("velocities.velocity_to_posterior", "t"): INSIDE,  # κ̇_0 = 0 here, where it is NaN
    ("velocities.campbell_velocity", "t"): INSIDE,  # on the open interval
}

# Derivatives that are infinite; the docstring says so.
INFINITE = {
    "steps.total_correlation": "probs",
    "objectives.generalized_kl": "velocity",
    "accounting.oracle_leakage": "weights",
}
# The same where the value is −∞, and read.
INFINITE_TOO = (
    *("paths.product_log_prob", "paths.marginal_log_prob", "mixture.shared_expert_log_prob"),
    *("mixture.fixed_share_update", "mixture.fixed_share_gate", "accounting.truncation_bound"),
)
# Where a function has no derivative: a word of its docstring, and at which points.
WITHOUT = {
    ("velocities.rate_violation", "velocity"): ("kink", lambda x: True),
    ("steps.step_violation", "velocity"): ("kink", lambda x: True),
    ("velocities.kinetic_optimal_velocity", "t"): ("kink", lambda x: False),
    ("velocities.campbell_velocity", "t"): ("kink", lambda x: False),
    ("steps.step_size", "table"): ("jumps", lambda x: False),
    ("accounting.total_variation", "p"): ("kink", lambda x: False),
    ("accounting.variation_bound", "router"): ("kink", lambda x: False),
    ("mixture.top_experts_gate", "weights"): ("ties", lambda x: np.sum(x > 0) < 2),
    ("mixture.nucleus_gate", "mass"): ("jumps", lambda x: False),
}
# More than one argument at its boundary.
TOGETHER: dict[str, list[Callable[[Draw], dict[str, Any]]]] = {
    "mixture.fixed_share_update": [
        lambda d: {"alpha": np.array(0.0), "state": GateState(log_half(d, d.K), np.array(True))},
        lambda d: {"alpha": np.array(1.0), "log_prior": log_half(d, d.K)},
    ],
    "mixture.fixed_share_gate": [
        lambda d: {"alpha": np.array(0.0), "log_prior": log_half(d, d.K)},
        lambda d: {"alpha": np.array(1.0), "log_prior": log_half(d, d.K)},
        lambda d: {"alpha": np.array(0.0), "token_log_probs": returning(d)},
        lambda d: {"alpha": np.array(0.0), **impossible_last_token(d)},
    ],
    "mixture.bayes_gate": [impossible_last_token],
    "objectives.step_loss": [
        lambda d: {"x_t": np.full(d.N, d.V), "step_size": np.zeros(d.N)},
    ],
    "objectives.generalized_kl": [
        lambda d: {"velocity": half_zero(d), "model": half_zero(d)},
    ],
    "steps.total_correlation": [
        lambda d, tail=tail: {
            "states": np.array([[0, 0], [0, 1], [1, 0], tail]),
            "probs": np.array([0.5, 0.2, 0.3, 0.0]),
        }
        for tail in ([1, 1], [2, 1], [2, 2])  # of two tokens that have a mass: two, one, none
    ],
}


def returning(d: Draw) -> np.ndarray:
    """An expert that cannot make the first token: without a share of the prior it is out."""
    rows = d.log_probs(d.N, d.K)
    rows[0, 0] = -INF
    return rows


def half_zero(d: Draw) -> np.ndarray:
    return np.where(np.arange(d.S) < 2, 0.0, d.unit(d.N, d.S))


# ── the contract ────────────────────────────────────────────────────────────────────────────────


def slope(value: Callable[[float], float]) -> float:
    """value′(0) from above, to the fourth order; ±∞ if the quotients do not come together."""
    here = value(0.0)
    far, near, nearer = ((value(h) - here) / h for h in (1e-3, 1e-5, 1e-7))
    if np.isinf(nearer):
        return nearer
    if abs(nearer - near) > max(0.3 * abs(near - far), 1e-2 * max(1.0, abs(near))):
        return np.sign(nearer - near) * INF
    one, two, four = ((value(h) - here) / h for h in (2e-4, 1e-4, 5e-5))
    return (4 * (2 * four - two) - (2 * two - one)) / 3


def assert_slopes(
    value: Callable[[np.ndarray], float], here: np.ndarray, way: np.ndarray, slopes: np.ndarray
) -> Iterator[float]:
    """Along the entries at an end and a few others; yields the infinite ones."""
    assert not np.any(np.isnan(slopes)), "the gradient holds a NaN"
    movable = [index for index in np.ndindex(here.shape) if way[index]]
    movable.sort(key=lambda index: here[index] not in (0, 1))
    for index in movable[:3] + movable[3::7]:
        unit = np.zeros(here.shape)
        unit[index] = way[index]
        expected = slope(lambda h, unit=unit: value(here + h * unit))
        if not np.isnan(expected):
            got = slopes[index] * way[index]
            np.testing.assert_allclose(got, expected, rtol=3e-4, atol=3e-4, err_msg=f"{index}")
            if np.isinf(got):
                yield got


def moved(given: Any, array: np.ndarray) -> Any:
    return given._replace(log_weights=array) if isinstance(given, GateState) else array


def moving(given: Any) -> np.ndarray:
    return np.asarray(given.log_weights if isinstance(given, GateState) else given)


def examples(name: str, key: str) -> Iterator[dict[str, Any]]:
    """The boundary of one argument, then of several."""
    arrays = draw(name, 0)
    for point in OF_ONE.get((name, key), KINDS.get(key, INSIDE)).points(moving(arrays[key])):
        yield arrays | {key: moved(arrays[key], point)}
    for together in TOGETHER.get(name, ()):
        yield arrays | together(Draw(SMALL, 0))
    if FUNCTIONS[name].border:
        yield draw(name, 0, border=True)


@pytest.mark.sampled(19)
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if FUNCTIONS[name].grad])
@pytest.mark.usefixtures("strict")
def test_the_gradient_at_the_boundary_is_one_sided(name):
    run, infinite = compiled(name), []
    for key in FUNCTIONS[name].grad:
        assert key in KINDS or (name, key) in OF_ONE, f"what is the domain of `{key}`?"
        kind = OF_ONE.get((name, key)) or KINDS[key]
        nowhere = WITHOUT.get((name, key), ("", lambda x: False))[1]
        for arrays in examples(name, key):
            here = moving(arrays[key]).astype(float)
            given = on_jax(arrays)
            read = [np.isfinite(leaf) for leaf in floats(run(given))]
            slopes = jax.device_get(gradient(name, given, read=read))

            def value(x, key=key, given=given, read=read):
                return scalar(run(given | {key: moved(given[key], jnp.asarray(x))}), read)

            assert not any(np.any(np.isnan(leaf)) for leaf in floats(slopes))
            if np.all(np.isfinite(here) | np.isneginf(here)) and not nowhere(here):
                found = assert_slopes(value, here, kind.way(here), moving(slopes[key]))
                infinite += [(key, sign) for sign in found]
    assert {key for key, _ in infinite} == {INFINITE[name]} if name in INFINITE else not infinite


@pytest.mark.parametrize("name", sorted({*INFINITE, *INFINITE_TOO, *(name for name, _ in WITHOUT)}))
def test_what_is_infinite_or_has_no_derivative_is_said(name):
    text = inspect.getdoc(public_function(name)) or ""
    words = ["infinite"] if name in (*INFINITE, *INFINITE_TOO) else []
    words += [word for (other, _), (word, _) in WITHOUT.items() if other == name]
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p: jnp.exp(jnp.sum(jnp.log(p))),  # out / x
        lambda p: jnp.sum(jnp.where(p == 0, 0.0, p * jnp.arange(1.0, 4.0))),  # no slope at 0
        lambda p: jnp.sum(jnp.where(p > 0, p * jnp.log(p), 0.0)),  # 0 · ∞ of the other branch
    ],
)
@pytest.mark.usefixtures("x64")
def test_the_contract_can_fail(wrong):
    here = np.array([0.0, 0.5, 0.5])
    with pytest.raises(AssertionError):
        list(assert_slopes(wrong, here, np.ones(3), np.asarray(jax.grad(wrong)(jnp.asarray(here)))))
