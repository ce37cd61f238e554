"""One contract for each public function of the mathematics: jit, vmap, pmap, grad, dtypes.

`FUNCTIONS` holds, for each, arguments drawn from the interior of its domain: those that `WRITTEN`
says, or, where every argument has a name of `ARRAYS` or `PYTHON`, what such an argument always
holds. A new function with neither fails. `test_precision` reads the same table.
"""

import ast
import functools
import importlib
import inspect
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_architecture import MATHEMATICS

from dfm_jax import mixture, parallel, schedules
from dfm_jax.mixture import GateState

ROOT = Path(__file__).parents[1]
NAN, INF = np.nan, np.inf


# ── the table ───────────────────────────────────────────────────────────────────────────────────


class Sizes(NamedTuple):
    """The axes of `dfm_jax.types`; alike where they may be: one shape, one eager compilation."""

    N: int = 2
    V: int = 3
    K: int = 4
    Z: int = 4
    P: int = 4
    T: int = 3
    J: int = 4
    D: int = 4

    @property
    def S(self) -> int:
        return self.V + 1


SMALL = Sizes()


class Draw:
    """Arrays of one example, in float64: strictly inside their domain, and no two alike."""

    def __init__(self, sizes: Sizes, *seed: int):
        self.sizes = sizes
        self.rng = np.random.default_rng(seed)

    def __getattr__(self, axis: str) -> int:
        return getattr(self.sizes, axis)

    def below(self, bound: int, *shape: int) -> np.ndarray:
        return self.rng.integers(0, bound, shape)

    def tokens(self, *rows: int) -> np.ndarray:
        return self.below(self.V, *rows, self.N)

    def states(self, *rows: int) -> np.ndarray:
        return self.below(self.S, *rows, self.N)

    def context(self) -> np.ndarray:
        return self.rng.random(self.N) < 0.5

    def probs(self, *shape: int) -> np.ndarray:
        weights = 0.2 + self.rng.random(shape)
        return weights / weights.sum(axis=-1, keepdims=True)

    def log_distribution(self, *shape: int) -> np.ndarray:
        return np.log(self.probs(*shape))

    def unit(self, *shape: int) -> np.ndarray:
        return np.asarray(self.rng.uniform(0.2, 0.8, shape))

    def real(self, *shape: int) -> np.ndarray:
        return np.asarray(self.rng.normal(size=shape))

    def log_probs(self, *shape: int) -> np.ndarray:
        return -2 * self.unit(*shape)

    def velocity(self) -> np.ndarray:
        return self.real(self.N, self.S)

    def table(self) -> np.ndarray:
        inner = np.sort(self.unit(self.T - 1, self.N), axis=0)
        return np.concatenate([np.zeros((1, self.N)), inner, np.ones((1, self.N))])

    def distances(self) -> np.ndarray:
        one_way = 1 + self.unit(self.V, self.V)
        return (one_way + one_way.T) * (1 - np.eye(self.V))

    def partly_masked(self, x_1: np.ndarray) -> np.ndarray:
        """A state that at least the first pair agrees with."""
        return np.where(self.context(), x_1[0], self.V)

    def key(self) -> np.ndarray:
        """The data of a key: a key itself is built anew for each call, which consumes it."""
        return self.rng.integers(0, 2**32, 2, np.uint32)


class Function(NamedTuple):
    """How to call one public function."""

    # its arrays by name, one example
    arrays: Callable[[Draw], dict[str, Any]]
    # its Python arguments by name: schedules, counts, callables
    python: Callable[[Sizes], dict[str, Any]] = lambda sizes: {}
    # the arrays in which it has a derivative
    grad: tuple[str, ...] = ()
    # arrays on the border of the domain, put in the place of those above: no NaN may come of them
    border: Callable[[Draw], dict[str, Any]] | None = None


SCHEDULE = schedules.polynomial(2.0)


def num_states(sizes: Sizes) -> dict[str, Any]:
    return {"num_states": sizes.S}


def num_tokens(sizes: Sizes) -> dict[str, Any]:
    return {"num_tokens": sizes.V}


def mask_id(sizes: Sizes) -> dict[str, Any]:
    return {"mask_id": sizes.V}


def scheduled(sizes: Sizes) -> dict[str, Any]:
    return {"schedule": SCHEDULE}


def scheduled_states(sizes: Sizes) -> dict[str, Any]:
    return {"schedule": SCHEDULE, "num_states": sizes.S}


def scheduled_tokens(sizes: Sizes) -> dict[str, Any]:
    return {"schedule": SCHEDULE, "num_tokens": sizes.V}


def softmax_path(sizes: Sizes) -> dict[str, Any]:
    """A token path with full support at every t."""

    def token_path(t):
        scores = jnp.sin(jnp.arange(sizes.N * sizes.S, dtype=t.dtype) + 1)
        return jax.nn.softmax(t * scores.reshape(sizes.N, sizes.S))

    return {"token_path": token_path}


def base_shares(sizes: Sizes) -> dict[str, Any]:
    """κ_t^{i,j} > 0 of J base distributions, the same at every position."""

    def kappa(t):
        shares = jnp.arange(1, sizes.J + 1, dtype=t.dtype) ** (1 + t)
        return jnp.broadcast_to((shares / shares.sum())[:, None], (sizes.J, sizes.N))

    return {"kappa": kappa}


def half(d: Draw, axis: int) -> np.ndarray:
    """A distribution of which the second half has mass 0."""
    probs = np.where(np.arange(axis) < axis // 2, d.probs(axis), 0.0)
    return probs / probs.sum()


def log_half(d: Draw, axis: int) -> np.ndarray:
    probs = half(d, axis)
    return np.log(probs, out=np.full(axis, -INF), where=probs > 0)


def behind(probs: np.ndarray, values: np.ndarray, filler: float = NAN) -> np.ndarray:
    """The values, with something else where the distribution (or its logarithm) has no mass."""
    none = (probs == 0) | (probs == -INF)
    return np.where(none.reshape(none.shape + (1,) * (values.ndim - none.ndim)), filler, values)


def point(d: Draw, *shape: int) -> np.ndarray:
    """Distributions with all their mass at 0."""
    return np.broadcast_to(np.eye(shape[-1])[0], shape)


def log_point(d: Draw, *shape: int) -> np.ndarray:
    return np.where(point(d, *shape) == 1, 0.0, -INF)


def pairs(d: Draw) -> dict[str, Any]:
    return {
        "x_t": d.states(),
        "token_paths": d.probs(d.P, d.N, d.S),
        "log_coupling": d.log_distribution(d.P),
    }


def revealed(d: Draw) -> dict[str, Any]:
    x_1 = d.tokens(d.P)
    return {"x_t": d.partly_masked(x_1), "x_1": x_1, "log_data": d.log_distribution(d.P)}


def experts_of(name: str, *axes: str) -> Callable[[Draw], dict[str, Any]]:
    """Weights and one array per expert."""
    return lambda d: {
        "weights": d.probs(d.K),
        name: d.probs(d.K, *(getattr(d, axis) for axis in axes)),
    }


def dead_experts_of(name: str, *axes: str) -> Callable[[Draw], dict[str, Any]]:
    def arrays(d):
        weights = half(d, d.K)
        values = d.probs(d.K, *(getattr(d, axis) for axis in axes))
        return {"weights": weights, name: behind(weights, values)}

    return arrays


def log_experts_of(prior: str, name: str, *axes: str) -> Callable[[Draw], dict[str, Any]]:
    return lambda d: {
        prior: d.log_distribution(d.K),
        name: d.log_probs(d.K, *(getattr(d, axis) for axis in axes)),
    }


def dead_log_experts_of(prior: str, name: str, *axes: str) -> Callable[[Draw], dict[str, Any]]:
    def arrays(d):
        log_weights = log_half(d, d.K)
        values = d.log_probs(d.K, *(getattr(d, axis) for axis in axes))
        return {prior: log_weights, name: behind(log_weights, values)}

    return arrays


def impossible_last_token(d: Draw) -> dict[str, Any]:
    rows = d.log_probs(d.N, d.K)
    return {"token_log_probs": np.where(np.arange(d.N)[:, None] == d.N - 1, -INF, rows)}


WRITTEN = {
    "schedules.rate": Function(
        lambda d: {"t": d.unit()}, scheduled, grad=("t",), border=lambda d: {"t": np.array(0.0)}
    ),
    "schedules.backward_rate": Function(
        lambda d: {"t": d.unit()}, scheduled, grad=("t",), border=lambda d: {"t": np.array(1.0)}
    ),
    "schedules.with_context": Function(
        lambda d: {"table": d.table(), "context": d.context()}, grad=("table",)
    ),
    "paths.point_mass": Function(lambda d: {"tokens": d.states()}, num_states),
    "paths.pad_to_states": Function(
        lambda d: {"probs": d.probs(d.N, d.V)}, num_states, grad=("probs",)
    ),
    "paths.mask_source": Function(
        lambda d: {"x_1": d.tokens(), "context": d.context()},
        mask_id,
        border=lambda d: {"context": np.ones(d.N, bool)},
    ),
    "paths.mixture_path": Function(
        lambda d: {"x_0": d.states(), "x_1": d.tokens(), "kappa_t": d.unit(d.N)},
        num_states,
        grad=("kappa_t",),
        border=lambda d: {"kappa_t": np.arange(d.N) / (d.N - 1)},
    ),
    "paths.convex_path": Function(
        lambda d: {"base_probs": d.probs(d.J, d.N, d.S), "kappa_t": d.probs(d.N, d.J).T},
        grad=("base_probs", "kappa_t"),
        border=lambda d: {"kappa_t": point(d, d.N, d.J).T},
    ),
    "paths.metric_path": Function(
        lambda d: {"x_1": d.tokens(), "distances": d.distances(), "beta_t": d.unit()},
        grad=("beta_t",),
        border=lambda d: {"beta_t": np.array(INF)},
    ),
    "paths.product_log_prob": Function(
        lambda d: {"x_t": d.states(), "token_path": d.probs(d.N, d.S)},
        grad=("token_path",),
        border=lambda d: {"token_path": point(d, d.N, d.S)},
    ),
    "paths.sample_path": Function(
        lambda d: {"key": d.key(), "token_path": d.probs(d.N, d.S)},
        border=lambda d: {"token_path": point(d, d.N, d.S)},
    ),
    "paths.sample_mixture": Function(
        lambda d: {
            "key": d.key(),
            "x_0": d.states(),
            "x_1": d.tokens(),
            "kappa_t": d.unit(d.N),
        },
        border=lambda d: {"kappa_t": np.arange(d.N) / (d.N - 1)},
    ),
    "paths.marginal_log_prob": Function(
        pairs,
        grad=("token_paths", "log_coupling"),
        border=lambda d: {"log_coupling": log_half(d, d.P)},
    ),
    "paths.pair_posterior": Function(
        pairs,
        grad=("token_paths", "log_coupling"),
        border=lambda d: {"log_coupling": log_half(d, d.P)},
    ),
    "paths.token_posterior": Function(
        lambda d: {"pair_probs": d.probs(d.P), "tokens": d.tokens(d.P)},
        num_tokens,
        grad=("pair_probs",),
        border=lambda d: {"pair_probs": point(d, d.P)},
    ),
    "paths.source_posterior": Function(
        lambda d: {
            "posterior": d.probs(d.N, d.V),
            "source": d.probs(d.N, d.S),
            "x_t": d.states(),
            "kappa_t": d.unit(d.N),
        },
        grad=("posterior", "source", "kappa_t"),
        border=lambda d: {"kappa_t": np.arange(d.N) / (d.N - 1)},
    ),
    "paths.revealed_log_prob": Function(
        revealed, mask_id, grad=("log_data",), border=lambda d: {"log_data": log_point(d, d.P)}
    ),
    "paths.revealed_posterior": Function(
        revealed, mask_id, grad=("log_data",), border=lambda d: {"log_data": log_point(d, d.P)}
    ),
    "velocities.rate_violation": Function(
        lambda d: {"velocity": d.velocity(), "x_t": d.states()},
        grad=("velocity",),
        border=lambda d: {"velocity": np.zeros((d.N, d.S))},
    ),
    "velocities.mixture_velocity": Function(
        lambda d: {"x_t": d.states(), "x_1": d.tokens(), "t": d.unit()},
        scheduled_states,
        grad=("t",),
        border=lambda d: {"t": np.array(0.0)},
    ),
    "velocities.posterior_to_velocity": Function(
        lambda d: {"posterior": d.probs(d.N, d.V), "x_t": d.states(), "t": d.unit()},
        scheduled_states,
        grad=("posterior", "t"),
        border=lambda d: {"posterior": point(d, d.N, d.V), "t": np.array(0.0)},
    ),
    "velocities.velocity_to_posterior": Function(
        lambda d: {"velocity": d.velocity(), "x_t": d.states(), "t": d.unit()},
        scheduled_tokens,
        grad=("velocity", "t"),
        border=lambda d: {"velocity": np.zeros((d.N, d.S))},
    ),
    "velocities.backward_velocity": Function(
        lambda d: {"posterior_0": d.probs(d.N, d.S), "x_t": d.states(), "t": d.unit()},
        scheduled,
        grad=("posterior_0", "t"),
        border=lambda d: {"t": np.array(1.0)},
    ),
    "velocities.corrected_velocity": Function(
        lambda d: {
            "forward": d.velocity(),
            "backward": d.velocity(),
            "alpha": d.unit(),
            "beta": d.unit(),
        },
        grad=("forward", "backward", "alpha", "beta"),
        border=lambda d: {"beta": np.array(0.0)},
    ),
    "velocities.convex_velocity": Function(
        lambda d: {"base_probs": d.probs(d.J, d.N, d.S), "x_t": d.states(), "t": d.unit()},
        base_shares,
        grad=("base_probs", "t"),
    ),
    "velocities.kinetic_optimal_velocity": Function(
        lambda d: {"x_t": d.states(), "t": d.unit()}, softmax_path, grad=("t",)
    ),
    "velocities.metric_velocity": Function(
        lambda d: {
            "x_t": d.tokens(),
            "x_1": d.tokens(),
            "t": d.unit(),
            "distances": d.distances(),
        },
        lambda sizes: {"beta": lambda t: t / (1 - t)},
        grad=("t",),
        border=lambda d: {"t": np.array(0.0)},
    ),
    "velocities.campbell_velocity": Function(
        lambda d: {"x_t": d.states(), "t": d.unit()}, softmax_path, grad=("t",)
    ),
    "velocities.divergence": Function(
        lambda d: {
            "probs": d.probs(d.Z),
            "velocity": d.real(d.Z, d.N, d.S),
            "states": d.states(d.Z),
        },
        grad=("probs", "velocity"),
        border=lambda d: {
            "probs": (probs := half(d, d.Z)),
            "velocity": behind(probs, d.real(d.Z, d.N, d.S)),
        },
    ),
    "steps.step_size": Function(
        lambda d: {"table": d.table(), "t": d.below(d.T)},
        grad=("table",),
        border=lambda d: {"table": np.tri(d.T + 1, d.N, -1), "t": np.array(d.T - 1)},
    ),
    "steps.exact_step_velocity": Function(
        lambda d: {"posterior": d.probs(d.N, d.V), "x_t": d.states(), "step_size": d.unit(d.N)},
        num_states,
        grad=("posterior", "step_size"),
        border=lambda d: {"step_size": np.arange(d.N) / (d.N - 1)},
    ),
    "steps.step_probs": Function(
        lambda d: {"velocity": d.velocity(), "x_t": d.states()}, grad=("velocity",)
    ),
    "steps.step_violation": Function(
        lambda d: {"velocity": d.velocity(), "x_t": d.states()}, grad=("velocity",)
    ),
    "steps.transition_matrix": Function(
        lambda d: {"step_probs": d.probs(d.Z, d.N, d.S), "states": d.states(d.Z)},
        grad=("step_probs",),
        border=lambda d: {"step_probs": point(d, d.Z, d.N, d.S)},
    ),
    "steps.push_forward": Function(
        lambda d: {
            "probs": d.probs(d.Z),
            "step_probs": d.probs(d.Z, d.N, d.S),
            "states": d.states(d.Z),
        },
        grad=("probs", "step_probs"),
        border=lambda d: {
            "probs": (probs := half(d, d.Z)),
            "step_probs": behind(probs, d.probs(d.Z, d.N, d.S)),
        },
    ),
    "steps.next_token_velocity": Function(
        lambda d: {"next_token_probs": d.probs(d.V), "x_t": d.states(), "t": d.below(d.N)},
        num_states,
        grad=("next_token_probs",),
        border=lambda d: {"next_token_probs": point(d, d.V), "t": np.array(d.N - 1)},
    ),
    "steps.parallel_log_prob": Function(
        lambda d: {
            "states": (states := d.tokens(d.Z)),
            "x": states[0],
            "block_of": d.rng.permutation(d.N),
            "log_probs": d.log_distribution(d.Z),
        },
        grad=("log_probs",),
        border=lambda d: {"log_probs": np.roll(log_point(d, d.Z), 1)},
    ),
    "steps.total_correlation": Function(
        # every token at every position: a marginal of 0 is on the border
        lambda d: {
            "probs": d.probs(d.Z),
            "states": (np.arange(d.Z)[:, None] + d.below(d.V, d.N)) % d.V,
        },
        num_tokens,
        grad=("probs",),
        border=lambda d: {"probs": point(d, d.Z)},
    ),
    "mixture.mix": Function(
        lambda d: {"weights": d.probs(d.K), "values": d.real(d.K, d.N, d.S)},
        grad=("weights", "values"),
        border=dead_experts_of("values", "N", "S"),
    ),
    "mixture.mix_probs": Function(
        experts_of("probs", "N", "V"),
        grad=("weights", "probs"),
        border=dead_experts_of("probs", "N", "V"),
    ),
    "mixture.mix_logits": Function(
        lambda d: {"log_weights": d.log_distribution(d.K), "logits": 3 * d.real(d.K, d.N, d.V)},
        grad=("log_weights", "logits"),
        border=lambda d: {
            "log_weights": (weights := log_half(d, d.K)),
            "logits": behind(weights, 3 * d.real(d.K, d.N, d.V)),
        },
    ),
    "mixture.mix_log_probs": Function(
        log_experts_of("log_weights", "log_probs", "N", "V"),
        grad=("log_weights", "log_probs"),
        border=dead_log_experts_of("log_weights", "log_probs", "N", "V"),
    ),
    "mixture.expert_posterior": Function(
        log_experts_of("log_prior", "log_p_t"),
        grad=("log_p_t", "log_prior"),
        border=dead_log_experts_of("log_prior", "log_p_t"),
    ),
    "mixture.context_posterior": Function(
        lambda d: {"part": d.below(d.K)},
        lambda sizes: {"num_experts": sizes.K},
        border=lambda d: {"part": np.array(d.K - 1)},
    ),
    "mixture.centroid_gate": Function(
        lambda d: {
            "features": d.real(d.D),
            "centroids": d.real(d.K, d.D),
            "temperature": d.unit(),
        },
        grad=("features", "centroids", "temperature"),
        border=lambda d: {"temperature": np.array(1e-30)},
    ),
    "mixture.fit_temperature": Function(
        lambda d: {"low": 0.1 * d.unit(), "high": 10 + d.unit()},
        lambda sizes: {"loss": lambda tau: (jnp.log(tau) - 0.3) ** 2, "num_starts": 4},
        # an interval on one side of the minimum: its lower end
        border=lambda d: {"low": np.array(2.0)},
    ),
    "objectives.cross_entropy_loss": Function(
        lambda d: {"logits": 3 * d.real(d.N, d.V), "x_1": d.tokens()},
        grad=("logits",),
        border=lambda d: {"logits": log_point(d, d.N, d.V)},
    ),
    "objectives.generalized_kl_loss": Function(
        lambda d: {
            "logits": 3 * d.real(d.N, d.V),
            "x_1": d.tokens(),
            "x_t": d.states(),
            "t": d.unit(),
        },
        scheduled,
        grad=("logits", "t"),
        border=lambda d: {
            "x_1": (x := d.tokens()),
            "x_t": x,
            "logits": log_point(d, d.N, d.V),
        },
    ),
    "objectives.generalized_kl": Function(
        lambda d: {
            "velocity": d.unit(d.N, d.S),
            "model": d.unit(d.N, d.S),
            "x_t": d.states(),
        },
        grad=("velocity", "model"),
        border=lambda d: {"velocity": point(d, d.N, d.S), "model": np.zeros((d.N, d.S))},
    ),
    "objectives.any_order_log_weight": Function(
        lambda d: {"num_revealed": d.unit(), "num_masked": 1 + d.unit()},
        grad=("num_revealed", "num_masked"),
        border=lambda d: {"num_revealed": np.array(0.0), "num_masked": np.array(1.0)},
    ),
    "objectives.any_order_loss": Function(
        lambda d: {
            "logits": 3 * d.real(d.N, d.V),
            "x_1": d.tokens(),
            "x_t": d.states(),
            "context": np.zeros(d.N, bool),
        },
        grad=("logits",),
        border=lambda d: {"x_t": d.tokens(), "logits": log_point(d, d.N, d.V)},
    ),
    "objectives.step_loss": Function(
        lambda d: {
            "logits": 3 * d.real(d.N, d.V),
            "x_1": d.tokens(),
            "x_t": np.append(d.V, d.states()[1:]),  # a mask at least
            "step_size": d.unit(d.N),
        },
        grad=("logits", "step_size"),
        border=lambda d: {"step_size": np.zeros(d.N), "logits": log_point(d, d.N, d.V)},
    ),
    "objectives.bregman_divergence": Function(
        lambda d: {"target": d.unit(d.N, d.V), "model": d.unit(d.N, d.V)},
        lambda sizes: {"phi": lambda x: jnp.sum(x * jnp.log(x))},
        grad=("target", "model"),
    ),
    "objectives.router_loss": Function(
        lambda d: {"logits": 3 * d.real(d.K), "part": d.below(d.K)},
        grad=("logits",),
        border=lambda d: {"logits": log_point(d, d.K)},
    ),
    "objectives.decentralized_loss": Function(
        lambda d: {"expert_losses": d.unit(d.K), "router_loss": d.unit(), "weights": d.probs(d.K)},
        grad=("expert_losses", "router_loss", "weights"),
        border=lambda d: {"weights": point(d, d.K)},
    ),
    "samplers.autoregressive_log_prob": Function(
        lambda d: {"x": d.tokens(), "next_log_probs": d.log_distribution(d.N, d.V)},
        grad=("next_log_probs",),
        border=lambda d: {"next_log_probs": log_point(d, d.N, d.V)},
    ),
    "samplers.euler_step_probs": Function(
        lambda d: {
            "posterior": d.probs(d.N, d.V),
            "x_t": d.states(),
            "t": d.unit(),
            "size": d.unit() / 10,
        },
        lambda sizes: num_states(sizes) | {"schedule": schedules.linear()},
        grad=("posterior", "t", "size"),
        border=lambda d: {"t": np.array(0.0), "size": np.array(1.0)},
    ),
    "samplers.final_step_probs": Function(
        lambda d: {"posterior": d.probs(d.N, d.V), "x_t": d.states(), "pending": d.context()},
        num_states,
        grad=("posterior",),
        border=lambda d: {"posterior": np.full((d.N, d.V), NAN), "pending": np.zeros(d.N, bool)},
    ),
    "samplers.one_position_step_probs": Function(
        lambda d: {
            "velocity": d.velocity(),
            "x_t": d.states(),
            "position": d.below(d.N),
            "size": d.unit(),
        },
        grad=("velocity", "size"),
        border=lambda d: {"position": np.array(d.N - 1), "size": np.array(0.0)},
    ),
    "samplers.redraw_step_probs": Function(
        lambda d: {
            "posterior": d.probs(d.N, d.V),
            "x_t": d.tokens(),
            "position": d.below(d.N),
            "probability": d.unit(),
        },
        num_states,
        grad=("posterior", "probability"),
        border=lambda d: {"position": np.array(d.N - 1), "probability": np.array(0.0)},
    ),
    "samplers.minority_count_probs": Function(
        lambda d: {"majority_prob": 0.5 + d.unit() / 2},
        lambda sizes: {"num_positions": sizes.N},
        grad=("majority_prob",),
        border=lambda d: {"majority_prob": np.array(1.0)},
    ),
    "markov.hidden_markov_posterior": Function(
        lambda d: {
            "x_t": d.states(),
            "initial": d.probs(d.K),
            "transition": d.probs(d.K, d.K),
            "emission": d.probs(d.K, d.V),
        },
        grad=("initial", "transition", "emission"),
        border=lambda d: {
            "x_t": np.full(d.N, d.V),
            "emission": np.eye(d.V)[np.arange(d.K) % d.V],
        },
    ),
    "markov.markov_posterior": Function(
        lambda d: {
            "x_t": d.states(),
            "initial": d.probs(d.V * d.V).reshape(d.V, d.V),
            "transition": d.probs(d.V, d.V, d.V),
        },
        grad=("initial", "transition"),
        border=lambda d: {"x_t": np.full(d.N, d.V)},
    ),
    "mixture.shared_expert_log_prob": Function(
        lambda d: {
            "x_next": d.states(),
            "log_weights": d.log_distribution(d.K),
            "step_probs": d.probs(d.K, d.N, d.S),
        },
        grad=("log_weights", "step_probs"),
        border=lambda d: {
            "log_weights": (weights := log_half(d, d.K)),
            "step_probs": behind(weights, d.probs(d.K, d.N, d.S)),
        },
    ),
    "accounting.kl_divergence": Function(
        lambda d: {"log_p": d.log_distribution(d.Z), "log_q": d.log_distribution(d.Z)},
        grad=("log_p", "log_q"),
        border=lambda d: {"log_p": log_half(d, d.Z), "log_q": log_half(d, d.Z)},
    ),
    "accounting.total_variation": Function(
        lambda d: {"p": d.probs(d.Z), "q": d.probs(d.Z)}, grad=("p", "q")
    ),
    "accounting.routing_cost": Function(
        lambda d: {
            "log_prior": d.log_distribution(d.K),
            "log_probs": d.log_probs(d.K),
            "expert": d.below(d.K),
        },
        grad=("log_prior", "log_probs"),
        border=lambda d: {"log_probs": log_point(d, d.K)},
    ),
    "accounting.best_expert_bound": Function(
        log_experts_of("log_prior", "log_probs"),
        grad=("log_prior", "log_probs"),
        border=lambda d: {"log_prior": log_half(d, d.K)},
    ),
    "accounting.ensemble_split": Function(
        lambda d: {
            "log_weights": d.log_distribution(d.K),
            "log_probs": d.log_distribution(d.K, d.Z),
            "log_model_weights": d.log_distribution(d.K),
            "log_model_probs": d.log_distribution(d.K, d.Z),
        },
        grad=("log_weights", "log_probs", "log_model_weights", "log_model_probs"),
        border=lambda d: {
            "log_weights": (weights := log_half(d, d.K)),
            "log_probs": behind(weights, d.log_distribution(d.K, d.Z)),
        },
    ),
    "accounting.router_cost": Function(
        lambda d: {
            "log_probs": d.log_distribution(d.Z),
            "log_posterior": d.log_distribution(d.Z, d.N, d.K),
            "log_router": d.log_distribution(d.Z, d.N, d.K),
        },
        grad=("log_probs", "log_posterior", "log_router"),
        border=lambda d: {
            "log_probs": log_half(d, d.Z),
            "log_posterior": log_point(d, d.Z, d.N, d.K),
        },
    ),
    "accounting.mixture_excess_bound": Function(
        lambda d: {
            "expert_excess": d.unit(d.K),
            "router_excess": d.unit(),
            "weights": d.probs(d.K),
        },
        lambda sizes: {"num_positions": sizes.N},
        grad=("expert_excess", "router_excess", "weights"),
        border=lambda d: {"weights": point(d, d.K)},
    ),
    "accounting.variation_bound": Function(
        lambda d: {
            "probs": d.probs(d.Z),
            "posterior": d.probs(d.Z, d.N, d.K),
            "router": d.probs(d.Z, d.N, d.K),
            "next_probs": d.probs(d.Z, d.N, d.K, d.V),
            "model_next_probs": d.probs(d.Z, d.N, d.K, d.V),
        },
        grad=("probs", "posterior", "router", "next_probs", "model_next_probs"),
        border=lambda d: {
            "posterior": (gate := point(d, d.Z, d.N, d.K)),
            "next_probs": behind(gate, d.probs(d.Z, d.N, d.K, d.V)),
        },
    ),
    "accounting.truncation_bound": Function(
        lambda d: {
            "weights": (weights := d.probs(d.K)),
            "kept": np.where(np.arange(d.K) < 2, weights, 0),
        },
        grad=("weights",),
        border=lambda d: {"kept": np.ones(d.K)},
    ),
    "accounting.gate_cost": Function(
        lambda d: {
            "log_target_probs": d.log_distribution(d.V),
            "log_gate": d.log_distribution(d.K),
            "log_next_probs": d.log_distribution(d.K, d.V),
        },
        grad=("log_target_probs", "log_gate", "log_next_probs"),
        border=lambda d: {
            "log_gate": (gate := log_half(d, d.K)),
            "log_next_probs": behind(gate, d.log_distribution(d.K, d.V)),
        },
    ),
    "accounting.part_information": Function(
        lambda d: {
            "log_weights": d.log_distribution(d.K),
            "log_probs": d.log_distribution(d.K, d.Z),
        },
        grad=("log_weights", "log_probs"),
        border=lambda d: {
            "log_weights": (weights := log_half(d, d.K)),
            "log_probs": behind(weights, d.log_distribution(d.K, d.Z)),
        },
    ),
    "accounting.oracle_leakage": Function(
        lambda d: {"weights": d.probs(d.K)},
        grad=("weights",),
        border=lambda d: {"weights": point(d, d.K)},
    ),
}

# ── arguments that are known by their names ─────────────────────────────────────────────────────


class Argument(NamedTuple):
    """What an argument of this name holds, unless `WRITTEN` says otherwise."""

    inside: Callable[[Draw], Any]
    border: Callable[[Draw], Any] | None = None


def behind_half(d: Draw, values: np.ndarray) -> np.ndarray:
    """NaN of the experts to which `half` gives mass 0."""
    return np.where(np.arange(d.K) < d.K // 2, values, NAN)


def dead_at_last(d: Draw) -> np.ndarray:
    """Experts behind a prior of 0 say NaN; the last token no other could say."""
    rows = np.where(np.arange(d.N)[:, None] == d.N - 1, -INF, d.log_probs(d.N, d.K))
    return behind_half(d, rows)


ARRAYS = {
    # gates
    "state": Argument(
        lambda d: GateState(d.log_distribution(d.K), np.array(True)),
        lambda d: GateState(log_half(d, d.K), np.array(True)),
    ),
    "log_prior": Argument(lambda d: d.log_distribution(d.K), lambda d: log_half(d, d.K)),
    "log_probs": Argument(lambda d: d.log_probs(d.K), lambda d: behind_half(d, d.log_probs(d.K))),
    "token_log_probs": Argument(lambda d: d.log_probs(d.N, d.K), dead_at_last),
    "weights": Argument(lambda d: d.probs(d.K), lambda d: point(d, d.K)),
    "alpha": Argument(lambda d: d.unit(), lambda d: np.array(1.0)),
    "beta": Argument(lambda d: d.unit(), lambda d: np.array(0.0)),
    "mass": Argument(lambda d: d.unit(), lambda d: np.array(1.0)),
    # flows
    "x_0": Argument(lambda d: d.states()),
    "x_1": Argument(lambda d: d.tokens()),
    "x_t": Argument(lambda d: d.states()),
    "t": Argument(lambda d: d.unit(), lambda d: np.array(0.0)),
    "kappa_t": Argument(lambda d: d.unit(d.N), lambda d: np.arange(d.N) / (d.N - 1)),
    "posterior": Argument(lambda d: d.probs(d.N, d.V), lambda d: point(d, d.N, d.V)),
    "velocity": Argument(lambda d: d.velocity()),
}
PYTHON = {
    "schedule": lambda sizes: SCHEDULE,
    "num_states": lambda sizes: sizes.S,
    "num_tokens": lambda sizes: sizes.V,
    "num_positions": lambda sizes: sizes.N,
    "num_experts": lambda sizes: sizes.K,
    "mask_id": lambda sizes: sizes.V,
    "count": lambda sizes: 2,
    "update": lambda sizes: mixture.bayes_gate_update,
}


def is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)


def known_by_names(fn: Callable) -> Function | None:
    """The entry of a function whose required arguments all have known names; it has a derivative in
    each that holds floats.
    """
    arguments = inspect.signature(fn).parameters.items()
    names = [name for name, argument in arguments if argument.default is argument.empty]
    arrays = [name for name in names if name in ARRAYS]
    others = [name for name in names if name not in ARRAYS]
    if not set(others) <= set(PYTHON):
        return None
    example = {name: ARRAYS[name].inside(Draw(SMALL, 0)) for name in arrays}
    borders = {name: border for name in arrays if (border := ARRAYS[name].border)}
    return Function(
        lambda d: {name: ARRAYS[name].inside(d) for name in arrays},
        lambda sizes: {name: PYTHON[name](sizes) for name in others},
        grad=tuple(name for name, value in example.items() if is_float(value)),
        border=(lambda d: {name: border(d) for name, border in borders.items()})
        if borders
        else None,
    )


# ── how the table is read ───────────────────────────────────────────────────────────────────────


def mathematics() -> dict[str, Any]:
    """The modules and packages of the mathematics, by name.

    `clustering` works on whole data sets, one call each: `test_clustering` holds its contracts.
    """
    rooms = dict.fromkeys(room.split(".")[0] for room in MATHEMATICS if room != "clustering")
    return {room: importlib.import_module(f"dfm_jax.{room}") for room in rooms}


def public_functions() -> set[str]:
    """Of a package that spans two layers, such as `mixture`, those of its mathematics."""
    modules = {f"dfm_jax.{room}" for room in MATHEMATICS}
    return {
        f"{room}.{name}"
        for room, module in mathematics().items()
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ in modules
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
        and not name.startswith("_")
    }


def public_function(name: str) -> Callable:
    room, function = name.split(".")
    return getattr(mathematics()[room], function)


# They make no array from arrays, so they are not `@typed` (`test_architecture`): a contract of
# their own, in `test_schedules` and `test_paths`.
FACTORIES = {
    name for name in public_functions() if not hasattr(public_function(name), "__wrapped__")
}

FUNCTIONS: dict[str, Function] = WRITTEN | {
    name: entry
    for name in sorted(public_functions() - FACTORIES - set(WRITTEN))
    if (entry := known_by_names(public_function(name)))
}

every_function = pytest.mark.parametrize("name", FUNCTIONS)


def caller(name: str, sizes: Sizes = SMALL) -> Callable[[dict[str, Any]], Any]:
    """The function of one dictionary of arrays."""
    fn, python = public_function(name), FUNCTIONS[name].python(sizes)
    return lambda arrays: fn(**arrays, **python)


@functools.cache
def compiled(name: str) -> Callable[[dict[str, Any]], Any]:
    return jax.jit(caller(name))


def draw(name: str, index: int, sizes: Sizes = SMALL, *, border: bool = False) -> dict[str, Any]:
    """The arrays of one example, in NumPy."""
    seed = (zlib.crc32(name.encode()), index)
    arrays = FUNCTIONS[name].arrays(Draw(sizes, *seed))
    return arrays | (FUNCTIONS[name].border(Draw(sizes, *seed, 1)) if border else {})


def on_jax(arrays: dict[str, Any], dtype: Any = float) -> dict[str, Any]:
    """Floats in `dtype`, by default the widest that is enabled; the data of keys as keys."""

    def cast(leaf: np.ndarray) -> jax.Array:
        if leaf.dtype == np.uint32:
            return jax.random.wrap_key_data(leaf)
        return jnp.asarray(leaf, dtype if np.issubdtype(leaf.dtype, np.floating) else None)

    return jax.tree.map(cast, arrays)


def example(name: str, index: int = 0, **options: Any) -> dict[str, Any]:
    return on_jax(draw(name, index, **options))


def batch(name: str, count: int) -> dict[str, Any]:
    rows = (draw(name, index) for index in range(count))
    return on_jax(jax.tree.map(lambda *leaves: np.stack(leaves), *rows))


def floats(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def assert_close(got: Any, expected: Any, *, what: str, tolerance: float = 1e-12) -> None:
    chex.assert_trees_all_equal_structs(got, expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=what)


def test_every_public_function_has_an_example():
    assert public_functions() == set(FUNCTIONS) | FACTORIES


def test_every_factory_is_tested_elsewhere():
    files = [ROOT / "tests" / f"test_{room}.py" for room in ("schedules", "paths")]
    text = "".join(file.read_text() for file in files)
    assert [name for name in FACTORIES if not re.search(rf"\b{re.escape(name)}\b", text)] == []


def test_a_room_of_several_files_exports_what_they_define():
    defined = {
        node.name
        for file in (ROOT / "dfm_jax" / "mixture").glob("*.py")
        for node in ast.parse(file.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert defined - set(vars(mixture)) == set()


@every_function
def test_every_array_of_a_function_is_in_its_example(name):
    parameters = inspect.signature(public_function(name)).parameters
    entry = FUNCTIONS[name]
    drawn = set(example(name)) | set(entry.python(SMALL))
    required = {key for key, value in parameters.items() if value.default is value.empty}
    assert required <= drawn <= set(parameters)
    assert set(entry.grad) <= set(example(name))


# ── jit, vmap, pmap, devices ────────────────────────────────────────────────────────────────────


# Each operation of an eager call is a program of its own. The tests of a function's file call it
# eagerly with its refusals, so here three of a room stand for all.
EAGER = {
    name
    for room in {name.partition(".")[0] for name in FUNCTIONS}
    for name in sorted(name for name in FUNCTIONS if name.startswith(f"{room}."))[::5][:3]
}


@pytest.mark.sampled(20)
@every_function
@pytest.mark.usefixtures("strict")
def test_compiles_once(name):
    once = jax.jit(chex.assert_max_traces(caller(name), n=1))
    for index in (0, 1):
        once.trace(example(name, index))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in EAGER else [pytest.mark.exhaustive])
        for name in FUNCTIONS
    ],
)
@pytest.mark.usefixtures("strict")
def test_jit_is_eager(name):
    arrays = example(name)
    assert_close(compiled(name)(arrays), caller(name)(arrays), what=name)
    if FUNCTIONS[name].border:
        arrays = example(name, border=True)
        assert_close(compiled(name)(arrays), caller(name)(arrays), what=name)


@pytest.mark.sampled(16)
@pytest.mark.parametrize(
    ("room", "transform", "count"),
    [
        *((room, jax.vmap, 3) for room in mathematics()),
        ("mixture", jax.pmap, 8),
        *(
            pytest.param(room, jax.pmap, 8, marks=pytest.mark.exhaustive)
            for room in mathematics()
            if room != "mixture"
        ),
    ],
)
@pytest.mark.usefixtures("strict")
def test_vmap_and_pmap_are_a_loop(room, transform, count):
    """All functions of a room in one program, which compiles faster than one after the other."""
    names = [name for name in FUNCTIONS if name.startswith(f"{room}.")]
    mapped = transform(lambda arrays: {name: caller(name)(arrays[name]) for name in names})
    rows = (mapped if transform is jax.pmap else jax.jit(mapped))(
        {name: batch(name, count) for name in names}
    )
    for name in names:
        loop = [compiled(name)(example(name, index)) for index in range(count)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *loop)
        assert_close(rows[name], stacked, what=name)


ON_DEVICES = (
    *("paths.mixture_path", "paths.sample_path", "paths.pair_posterior"),
    *("velocities.posterior_to_velocity", "velocities.kinetic_optimal_velocity"),
    *("mixture.expert_posterior", "mixture.mix"),
)


@pytest.fixture(scope="module")
def one_device():
    """The values of 16 examples, by 1 device."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        return on_devices(1, "shard_map")


def on_devices(num_devices: int, backend: str) -> dict[str, Any]:
    mapped = parallel.independent(
        lambda arrays: {name: caller(name)(arrays[name]) for name in ON_DEVICES},
        parallel.make_mesh(num_devices),
        backend=backend,
    )
    rows = mapped({name: batch(name, 16) for name in ON_DEVICES})
    return jax.tree.map(np.asarray, rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend", ["shard_map", pytest.param("pmap", marks=pytest.mark.exhaustive)]
)
@pytest.mark.statement("P3", "V5", "D3", "D4")
@pytest.mark.usefixtures("strict")
def test_eight_devices_equal_one(backend, one_device):
    rows = on_devices(8, backend)
    for name in ON_DEVICES:
        assert_close(rows[name], one_device[name], what=name, tolerance=1e-14)


# ── finite, on the border too ───────────────────────────────────────────────────────────────────


@pytest.mark.sampled(20)
@every_function
@pytest.mark.usefixtures("strict")
def test_values_are_finite_inside_the_domain(name):
    for index in range(3):
        for leaf in floats(compiled(name)(example(name, index))):
            assert np.all(np.isfinite(leaf))


@pytest.mark.sampled(20)
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if FUNCTIONS[name].border])
@pytest.mark.usefixtures("strict")
def test_no_nan_on_the_border_of_the_domain(name):
    run = compiled(name)
    for leaf in floats(run(example(name, border=True))):
        assert not np.any(np.isnan(leaf))


# ── dtypes ──────────────────────────────────────────────────────────────────────────────────────


def assert_float_outputs(name: str, dtype: Any) -> None:
    arrays = on_jax(draw(name, 0), dtype)
    given = floats(arrays)
    expected = given[0].dtype if given else jnp.result_type(float)
    for leaf in floats(jax.eval_shape(caller(name), arrays)):
        assert leaf.dtype == expected


@pytest.mark.sampled(20)
@every_function
def test_float32_gives_float32(name):
    assert_float_outputs(name, jnp.float32)


@pytest.mark.sampled(20)
@every_function
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.usefixtures("strict")
def test_under_x64_the_dtype_of_the_arguments_is_kept(name, dtype):
    assert_float_outputs(name, dtype)


@pytest.mark.slow
@every_function
def test_float32_is_float64_to_its_precision(name):
    if name in ("paths.sample_path", "paths.sample_mixture"):
        return  # a distribution rounded otherwise may draw otherwise
    single = compiled(name)(example(name))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        double = compiled(name)(example(name))
    assert_close(single, double, what=name, tolerance=2e-5)


# ── derivatives ─────────────────────────────────────────────────────────────────────────────────


def factors(leaves: list[Any]) -> list[np.ndarray]:
    """No two entries with the same factor."""
    return [
        np.cos(number + np.arange(leaf.size)).reshape(leaf.shape)
        for number, leaf in enumerate(leaves)
    ]


def scalar(out: Any, read: Any = None) -> Any:
    """All floats of a value in one number; of the entries alone where `read` holds True."""
    leaves = [np.asarray(leaf) for leaf in floats(out)]
    masks = [True for _ in leaves] if read is None else read
    return sum(
        np.sum(np.where(mask, leaf, 0) * factor)
        for leaf, factor, mask in zip(leaves, factors(leaves), masks, strict=True)
    )


@functools.cache
def compiled_pullback(name: str) -> Callable[..., dict[str, Any]]:
    def pull(moving: dict[str, Any], others: dict[str, Any], read: list[Any]) -> Any:
        leaves, pullback = jax.vjp(lambda moving: floats(caller(name)(moving | others)), moving)
        return pullback(
            [
                jnp.where(mask, jnp.asarray(factor, leaf.dtype), 0)
                for leaf, factor, mask in zip(leaves, factors(leaves), read, strict=True)
            ]
        )[0]

    return jax.jit(pull)


def gradient(name: str, arrays: dict[str, Any], *, read: Any = None) -> dict[str, Any]:
    """Of `scalar`; of the entries alone where `read`, a list of arrays, holds True."""
    moving = {key: arrays[key] for key in FUNCTIONS[name].grad}
    others = {key: value for key, value in arrays.items() if key not in moving}
    everything = [np.ones(leaf.shape, bool) for leaf in floats(compiled(name)(arrays))]
    return compiled_pullback(name)(moving, others, everything if read is None else read)


@pytest.mark.sampled(13)
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if FUNCTIONS[name].grad])
@pytest.mark.usefixtures("strict")
def test_the_gradient_is_the_limit_of_differences(name):
    """Along three directions for each argument; central differences, relative error 1e-5."""
    arrays, step = example(name), 1e-6
    rng = np.random.default_rng(0)

    def value(key: str, moved: np.ndarray) -> float:
        return scalar(compiled(name)(arrays | {key: moved}))

    for key, slope in jax.device_get(gradient(name, arrays)).items():
        assert np.all(np.isfinite(slope))
        here = np.asarray(arrays[key])
        for _ in range(3):
            direction = rng.normal(size=slope.shape)
            ahead, behind = (value(key, here + h * direction) for h in (step, -step))
            expected = (ahead - behind) / (2 * step)
            got = np.sum(slope * direction)
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8, err_msg=key)


# What an expert, a pair or a state of mass 0 says, by the argument that gives the mass.
AT_ZERO_MASS = {
    "mixture.mix": ("weights", "values"),
    "mixture.mix_probs": ("weights", "probs"),
    "mixture.mix_logits": ("log_weights", "logits"),
    "mixture.mix_log_probs": ("log_weights", "log_probs"),
    "velocities.divergence": ("probs", "velocity"),
    "steps.push_forward": ("probs", "step_probs"),
    "mixture.expert_posterior": ("log_prior", "log_p_t"),
    "accounting.ensemble_split": ("log_weights", "log_probs"),
    "accounting.part_information": ("log_weights", "log_probs"),
    "accounting.gate_cost": ("log_gate", "log_next_probs"),
}


@pytest.mark.parametrize("name", AT_ZERO_MASS)
@pytest.mark.statement("D4", "D5")
@pytest.mark.usefixtures("strict")
def test_a_nan_behind_zero_mass_does_not_leak(name):
    with_nan, without = nan_at_zero_mass(name)
    assert_close(compiled(name)(with_nan), compiled(name)(without), what=name)


# The accounting of an ensemble is read, not descended.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in AT_ZERO_MASS if "accounting" not in name])
@pytest.mark.statement("D4", "D5")
@pytest.mark.usefixtures("strict")
def test_a_nan_behind_zero_mass_does_not_leak_into_gradients(name):
    with_nan, without = nan_at_zero_mass(name)
    slopes, expected = gradient(name, with_nan), gradient(name, without)
    values = AT_ZERO_MASS[name][1]
    assert np.all(slopes[values][np.isnan(with_nan[values])] == 0)
    for key in FUNCTIONS[name].grad:
        if key == values:
            assert_close(slopes[key], expected[key], what=key)
        else:
            assert np.all(np.isfinite(slopes[key]))


def nan_at_zero_mass(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays on the border, and the same with a number in the place of each NaN."""
    values = AT_ZERO_MASS[name][1]
    with_nan = example(name, border=True)
    assert np.any(np.isnan(with_nan[values]))
    return with_nan, with_nan | {values: np.nan_to_num(np.asarray(with_nan[values]), nan=0.25)}


@pytest.mark.statement("D7")
@pytest.mark.usefixtures("strict")
def test_a_dead_prefix_has_a_gradient():
    """No expert could say the last token: the gate keeps its value, and so its derivative."""
    name = "mixture.bayes_gate"
    slopes = gradient(name, on_jax(draw(name, 0) | impossible_last_token(Draw(SMALL, 0))))
    assert np.all(np.isfinite(slopes["log_prior"]))
    assert np.all(slopes["token_log_probs"][-1] == 0)


@pytest.mark.usefixtures("strict")
def test_a_nan_where_there_is_mass_is_not_hidden():
    for name, (_, values) in AT_ZERO_MASS.items():
        arrays = draw(name, 0)
        arrays[values][0] = np.nan
        assert any(np.any(np.isnan(leaf)) for leaf in floats(compiled(name)(on_jax(arrays)))), name


WEIGHTS_FIRST = {
    "mixture.expert_posterior": ("log_prior", "log_p_t"),
    "mixture.mix": ("weights", "values"),
    "mixture.mix_probs": ("weights", "probs"),
    "mixture.mix_logits": ("log_weights", "logits"),
    "mixture.mix_log_probs": ("log_weights", "log_probs"),
    "mixture.shared_expert_log_prob": ("log_weights", "x_next", "step_probs"),
}


@pytest.mark.parametrize("name", WEIGHTS_FIRST)
@pytest.mark.statement("D3")
def test_weights_come_first(name):
    """A swapped call of two arrays [K] may run, and be wrong: the order is part of the contract."""
    assert tuple(inspect.signature(public_function(name)).parameters) == WEIGHTS_FIRST[name]
