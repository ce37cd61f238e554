"""Routers that read features, fitted by cross-entropy to the part.   [D11]

    min_φ (1/Σω) Σ_i ω_i (−log ρ̂_{k_i}(f_i; φ)) + (decay/2) Σ W²

ρ̂ is the softmax of a multilayer perceptron. Without hidden layers it is multinomial logistic
regression, and the objective is convex. L-BFGS uses all rows at once, so only the start is random.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfm_jax.checks import check_count, check_interval, check_tokens, require
from dfm_jax.objectives import router_loss
from dfm_jax.paths import HIGHEST
from dfm_jax.types import Array, ArrayLike, Bool, Float, Int, Key, Number, typed


class Layer(NamedTuple):
    """x ↦ W x + b."""

    weights: Float[Array, "out in"]
    bias: Float[Array, " out"]


Router = tuple[Layer, ...]


class FittedRouter(NamedTuple):
    """A router, and how its optimization ended."""

    layers: Router
    objective: Float[Array, ""]  # the regularized loss, in nats
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]  # else `max_steps` came first


@typed
def router_log_probs(layers: Router, features: Float[ArrayLike, " D"]) -> Float[Array, " K"]:
    """log ρ̂_k(f), in nats, with GELU between layers."""
    return jax.nn.log_softmax(_logits(layers, features))


def _logits(layers: Router, features: ArrayLike) -> Array:
    x = jnp.asarray(features)
    for number, layer in enumerate(layers):
        x = jax.nn.gelu(x) if number else x
        x = jnp.matmul(layer.weights, x, precision=HIGHEST) + layer.bias
    return x


@typed
def fit_router(
    key: Key,
    features: Float[ArrayLike, "R D"],
    parts: Int[ArrayLike, " R"],
    num_experts: int,
    *,
    row_weights: Float[ArrayLike, " R"] | None = None,
    hidden: Sequence[int] = (),
    decay: Number = 0.0,
    max_steps: int = 500,
    tolerance: float = 1e-5,
) -> FittedRouter:
    """Fit a router by L-BFGS, until no entry of the gradient is above `tolerance`.

    The minimizer over all functions, and over each class that contains it, is r_k(f) = P(k |
    f)   [D11]. If the parts are separable and there is no decay, no minimizer exists. L-BFGS then
    stops at a small gradient, or the result says that it did not converge.

    Args:
        key: The key for the start of the hidden layers; a linear router starts at 0.
        features: The features, one row each.
        parts: The label of each row, in [0, K).
        num_experts: K.
        row_weights: ω, 1 unless given; a row of weight 0 only pads the batch.
        hidden: The widths of the hidden layers.
        decay: The decay of the weights; biases have none.
        max_steps: The largest number of L-BFGS steps.
        tolerance: The tolerance, in nats per unit of a parameter.

    Raises:
        ValueError: if a part is not the number of an expert; if a feature is not finite; if all
            weights are 0; if an option lies outside its domain.
    """
    features, parts = jnp.asarray(features), jnp.asarray(parts)
    check_count("num_experts", num_experts)
    check_tokens("parts", parts, num_experts)
    require(jnp.isfinite(features), "`features` must be finite", features)
    ones = jnp.ones(parts.shape, features.dtype)
    weights = ones if row_weights is None else jnp.asarray(row_weights)
    check_interval("row_weights", weights, 0.0, jnp.inf, ends="[)")
    total = jnp.sum(weights)
    require(total > 0, "`row_weights` must not all be 0", total, name="row_weights.sum()")
    check_interval("decay", decay, 0.0, jnp.inf, ends="[)")
    check_count("max_steps", max_steps)
    for width in hidden:
        check_count("hidden", width)
    start = _start(key, (features.shape[1], *hidden, num_experts), features.dtype)
    shares = weights / total

    def objective(layers: Router) -> Array:
        logits = jax.vmap(_logits, (None, 0))(layers, features)
        losses = jax.vmap(router_loss)(logits, parts)
        squares = sum(jnp.sum(layer.weights**2) for layer in layers)
        return jnp.sum(shares * losses) + decay / 2 * squares

    return _descended(objective, start, max_steps, tolerance)


def _start(key: Key, widths: Sequence[int], dtype: jnp.dtype) -> Router:
    """Hidden layers of variance 1/width and a last layer of 0: the uniform distribution."""
    layers = []
    for number, (inner, outer) in enumerate(pairwise(widths)):
        last = number == len(widths) - 2
        drawn = jax.random.normal(jax.random.fold_in(key, number), (outer, inner), dtype)
        weights = jnp.zeros_like(drawn) if last else drawn * inner**-0.5
        layers.append(Layer(weights, jnp.zeros(outer, dtype)))
    return tuple(layers)


def _descended(objective, start: Router, max_steps: int, tolerance: float) -> FittedRouter:
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def go_on(state) -> Array:
        _, _, steps, slope, _ = state
        return (steps < max_steps) & (slope > tolerance)

    def step(state):
        layers, memory, steps, _, _ = state
        value, grad = value_and_grad(layers, state=memory)
        updates, memory = solver.update(
            grad, memory, layers, value=value, grad=grad, value_fn=objective
        )
        layers = jax.tree.map(jnp.add, layers, updates)
        at = optax.tree.get(memory, "grad")
        value = optax.tree.get(memory, "value")
        return layers, memory, steps + 1, _largest(at), value

    value, grad = jax.value_and_grad(objective)(start)
    state = (start, solver.init(start), jnp.array(0), _largest(grad), value)
    layers, _, steps, slope, value = jax.lax.while_loop(go_on, step, state)
    return FittedRouter(layers, value, steps, slope <= tolerance)


def _largest(tree) -> Array:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)]))
