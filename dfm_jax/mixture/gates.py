"""Gates, which choose the weights of experts.   [D7, B6, B10]

A gate is a distribution over experts. The Bayes, fixed-share and last-token gates watch the
sequence. They are states in log space that are updated token by token, and `run_gate` runs any
update along a sequence. The centroid gate reads features of the context and stays the same along
the sequence; as the prior of `bayes_gate` it is r_0 = P(k | c). The static gate is the prior. The
top-experts, nucleus and hard gates truncate a distribution and renormalize it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.boundary import log_sum_exp, log_sum_of_products, times
from dfm_jax.checks import (
    check_count,
    check_distribution,
    check_interval,
    check_log_distribution,
    check_log_probs,
    require,
)
from dfm_jax.paths import HIGHEST
from dfm_jax.types import Array, ArrayLike, Bool, Float, Number, PerExpert, Scalar, Weights, typed

_GOLDEN = (5**0.5 - 1) / 2


class GateState(NamedTuple):
    """A running gate: log r_k(x^{≤t}), and whether some expert with a weight could make the prefix.

    For a whole sequence both have a leading axis N + 1: row t is the gate after t tokens.
    """

    log_weights: Float[Array, "*rows K"]
    valid: Bool[Array, "*rows"]


@typed
def gate_init(log_prior: PerExpert) -> GateState:
    """The gate before the first token: r_k = P(k | c).   [D7]

    Raises:
        ValueError: if the prior is not a distribution; `jax.nn.log_softmax` makes one of scores.
    """
    check_log_distribution("log_prior", log_prior)
    return GateState(jax.nn.log_softmax(jnp.asarray(log_prior)), jnp.array(True))


@typed
def bayes_gate_update(state: GateState, log_probs: PerExpert) -> GateState:
    """Update the Bayes gate after one token, by the experts' likelihoods.

        r_k(x^{≤t+1}) ∝ r_k(x^{≤t}) q_k(x^{t+1} | x^{≤t})   [D7]

    If every expert with a weight gives the token probability 0, `valid` becomes False and the gate
    keeps its last value from then on. The mixture's log-likelihood is then −∞.

    Args:
        state: The gate after t tokens.
        log_probs: log q_k(x^{t+1} | x^{≤t}) for each expert, in nats.

    Raises:
        ValueError: if the state is not a distribution, or an expert with a weight gives a logarithm
            above 0.
    """
    check_log_distribution("state.log_weights", state.log_weights)
    check_log_probs("log_probs", log_probs, read=state.log_weights > -jnp.inf)
    joint = jnp.where(state.log_weights == -jnp.inf, -jnp.inf, state.log_weights + log_probs)
    possible = state.valid & jnp.any(joint != -jnp.inf)
    # The branch not taken must be finite before the logsumexp: its gradient would be NaN.
    total = jax.nn.logsumexp(jnp.where(possible, joint, 0.0))
    updated = jnp.where(possible, joint - total, state.log_weights)
    return GateState(updated, possible)


@typed
def fixed_share_update(
    state: GateState, log_probs: PerExpert, log_prior: PerExpert, alpha: Number
) -> GateState:
    """Update a Bayes gate that forgets, for sequences in which the part changes.

        r_{t+1} = (1 − α) · normalize(r_t q_k(x^{t+1} | x^{≤t})) + α w_k   [B10]

    α = 0 is the Bayes gate, α = 1 the static one. Source: Herbster & Warmuth (1998). At α = 0 the
    derivative in α of log r_k is infinite for an expert with weight 0, since log r_k rises from −∞.
    The derivative of `fixed_share_gate` includes the later likelihoods of such an expert; the
    derivative of a loop over updates does not.

    Raises:
        ValueError: if α lies outside [0, 1], or the prior is not a distribution.
    """
    check_interval("alpha", alpha, 0.0, 1.0)
    check_log_distribution("log_prior", log_prior)
    kept = bayes_gate_update(state, log_probs)
    terms = jnp.stack([kept.log_weights, jnp.asarray(log_prior)], axis=-1)  # [K, 2]
    shares = jnp.stack([1 - jnp.asarray(alpha), jnp.asarray(alpha)])[:, None]
    mixed = jax.vmap(log_sum_of_products, in_axes=(0, None))(terms, shares.astype(terms.dtype))
    return kept._replace(log_weights=jnp.where(kept.valid, mixed, kept.log_weights))


@typed
def bayes_gate(log_prior: PerExpert, token_log_probs: Float[ArrayLike, "N K"]) -> GateState:
    """The Bayes gate at every prefix of a sequence; row t = 0 … N is r(x^{≤t}).

        r_k(x^{≤t}) ∝ P(k | c) Π_{s≤t} q_k(x^s | x^{<s})   [D7]

    Mixing token by token with these weights gives the sequence mixture Σ_k r_k(c) q_k(x | c).
    """
    return _run(bayes_gate_update, log_prior, token_log_probs)


@typed
def fixed_share_gate(
    log_prior: PerExpert, token_log_probs: Float[ArrayLike, "N K"], alpha: Number
) -> GateState:
    """The gate of `fixed_share_update` at every prefix of a sequence, in rows 0 … N.   [B10]

    At α = 0 the derivative in α of log r_k is infinite for an expert with weight 0, since log r_k
    rises from −∞. The other experts' derivatives are finite, and include that expert's likelihoods.

    Raises:
        ValueError: if α lies outside [0, 1], or the prior is not a distribution.
    """
    check_interval("alpha", alpha, 0.0, 1.0)
    log_prior = jnp.asarray(log_prior)

    def update(carry: tuple[GateState, Array], row: Array) -> tuple[tuple[GateState, Array], Any]:
        before, out = carry  # `out`: r_k where log r_k = −∞, so 0, but it moves as r_k does
        state = fixed_share_update(before, row, log_prior, alpha)
        dead = before.log_weights == -jnp.inf
        total = log_sum_exp(jnp.where(dead, -jnp.inf, before.log_weights + row))
        likelihoods = jnp.exp(row - jnp.where(state.valid, total, 0.0))
        back = times(jnp.where(dead & state.valid, jax.lax.stop_gradient(likelihoods), 0.0), out)
        # `out` moves at α = 0 alone, where the others are r / Σ r.
        state = state._replace(log_weights=state.log_weights - jnp.sum(back))
        moves = (1 - alpha) * back + alpha * jnp.exp(log_prior)
        out = jnp.where((state.log_weights == -jnp.inf) & state.valid, moves, 0.0)
        return (state, out), state

    start, rows = _start(log_prior, token_log_probs)
    _, states = jax.lax.scan(update, (start, jnp.zeros_like(start.log_weights)), rows)
    return _with_start(start, states)


@typed
def run_gate(
    update: Callable[..., GateState], log_prior: PerExpert, token_log_probs: Float[ArrayLike, "N K"]
) -> GateState:
    """Run any update along a sequence; row t = 0 … N is the gate after t tokens.

        ρ(x^{≤0}) = P(k | c),  ρ(x^{≤t+1}) = update(ρ(x^{≤t}), log q_k(x^{t+1} | x^{≤t}))

    With `bayes_gate_update` it is `bayes_gate`. An update that reads other values closes over them.

    Args:
        update: `update(state, log_probs) -> state`, where `log_probs` is one row, [K]. The state
            must keep its shapes and dtypes. It sets `valid` to False if no expert with a weight
            could have made the prefix.
        log_prior: log P(k | c).
        token_log_probs: log q_k(x^{t+1} | x^{≤t}), in nats.

    Raises:
        ValueError: if the prior, or a state that the update returns, is not a distribution over
            experts.
    """
    rows = _run(update, log_prior, token_log_probs)
    check_log_distribution("log_weights", rows.log_weights)
    return rows


@typed
def static_gate(log_prior: PerExpert, num_positions: int) -> GateState:
    """A gate that never changes: r = P(k | c) at every prefix, in rows 0 … N.   [B10]"""
    check_count("num_positions", num_positions)
    log_weights = gate_init(log_prior).log_weights
    rows = jnp.broadcast_to(log_weights[None], (num_positions + 1, log_weights.shape[0]))
    return GateState(rows, jnp.ones(num_positions + 1, bool))


@typed
def last_token_gate(log_prior: PerExpert, token_log_probs: Float[ArrayLike, "N K"]) -> GateState:
    """A gate that remembers one token: each of the rows 0 … N starts again from the prior.

    ρ_k(x^{≤t}) ∝ w_k q_k(x^t | x^{<t})   [B10]

    Source: the public code of cBTM.
    """
    start = gate_init(log_prior)
    check_log_probs("token_log_probs", token_log_probs, read=_live(start))
    rows = jax.vmap(bayes_gate_update, in_axes=(None, 0))(start, token_log_probs)
    dead_so_far = jnp.cumsum(~rows.valid) > 0
    return _with_start(start, rows._replace(valid=~dead_so_far))


def _run(
    update: Callable[..., GateState], log_prior: PerExpert, token_log_probs: Array
) -> GateState:
    def step(state: GateState, row: Array) -> tuple[GateState, GateState]:
        state = update(state, row)
        return state, state

    start, rows = _start(log_prior, token_log_probs)
    return _with_start(start, jax.lax.scan(step, start, rows)[1])


def _start(log_prior: PerExpert, token_log_probs: Array) -> tuple[GateState, Array]:
    rows = jnp.asarray(token_log_probs)
    start = gate_init(jnp.asarray(log_prior, rows.dtype))
    check_log_probs("token_log_probs", token_log_probs, read=_live(start))
    return start, rows


def _live(start: GateState) -> Array:
    """[1, K], which experts have a prior above 0; the others may return anything."""
    return (start.log_weights > -jnp.inf)[None]


def _with_start(start: GateState, rows: GateState) -> GateState:
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, rows)


@typed
def centroid_gate(
    features: Float[ArrayLike, " D"], centroids: Float[ArrayLike, "K D"], temperature: Number
) -> Weights:
    """A gate by direction: the softmax of the cosines between the features and each centroid.

        ρ_k ∝ exp(⟨f, c_k⟩ / (‖f‖ ‖c_k‖ τ))

    The limit τ → 0 is the nearest centroid (`hard_gate` of this gate), which is the paper's rule.
    Source: DAG, DDM.

    Raises:
        ValueError: if τ ≤ 0; if a vector has no direction, because its length is 0 or too large or
            small for the type.
    """
    check_interval("temperature", temperature, 0.0, jnp.inf, ends="()")
    lengths = jnp.linalg.norm(centroids, axis=-1)
    length = jnp.linalg.norm(features)
    _check_direction("features", length)
    _check_direction("centroids", lengths)
    cosines = jnp.matmul(centroids, features, precision=HIGHEST) / (lengths * length)
    # The largest is subtracted before the division by a small τ, which magnifies rounding: XLA may
    # compute a quotient twice, and two that differ in their last bit can then be 1e14 apart.
    return jax.nn.softmax((cosines - jax.lax.stop_gradient(cosines.max())) / temperature)


def _check_direction(name: str, length: Array) -> None:
    """Check that a length is above 0 and finite, as squares of float32 allow."""
    rule = f"The length of `{name}` must lie in (0, inf), because a direction is needed"
    require((length > 0) & (length < jnp.inf), rule, length, name=f"the length of {name}")


class FittedTemperature(NamedTuple):
    """The best temperature found, its loss, and whether it is an end of the searched interval.

    At an end, the loss would decrease further outside: toward a hard gate, or toward a uniform one.
    """

    temperature: Float[Array, ""]
    loss: Float[Array, ""]
    at_bound: Bool[Array, ""]


@typed
def fit_temperature(
    loss: Callable[[Array], Scalar],
    low: Number,
    high: Number,
    *,
    num_starts: int = 16,
    num_steps: int = 32,
) -> FittedTemperature:
    """argmin_{a ≤ τ ≤ b} L(τ): fit the one parameter of a gate to the model that it weights.

    The caller gives `loss`, a function of the temperature alone. Two losses that differ are: the
    gate mixes token by token as it is, or the gate is the prior of a Bayes gate,

        L(τ) = −Σ_t log Σ_k ρ_k(c; τ) p_k(x^t | x^{<t})   or   L(τ) = −log Σ_k ρ_k(c; τ) p_k(x)

    averaged over held-out sequences. They are not always convex. So log τ is first tried at
    `num_starts` + 1 equally spaced values; golden sections between the neighbors of the best value
    follow, each by a factor 0.618. The result is the minimum if the loss is unimodal there. Source:
    Kiefer, Proc. Am. Math. Soc. 4 (1953).

    Raises:
        ValueError: if 0 < a < b < ∞ does not hold, or a count is below 1.
    """
    check_interval("low", low, 0.0, jnp.inf, ends="()")
    check_interval("high", high, 0.0, jnp.inf, ends="()")
    require(high > low, "`high` must be above `low`", high)
    check_count("num_starts", num_starts)
    check_count("num_steps", num_steps)
    dtype = jnp.result_type(low) if jnp.issubdtype(jnp.result_type(low), jnp.inexact) else float
    bounds = jnp.stack([jnp.asarray(low, dtype), jnp.asarray(high, dtype)])

    def at(log_temperature: Array) -> Array:
        return jnp.asarray(loss(jnp.exp(log_temperature)))

    def narrow(state: tuple[Array, Array, Array, Array], _: None):
        left, right, places, losses = state
        lower = losses[0] <= losses[1]
        left, right = jnp.where(lower, left, places[0]), jnp.where(lower, places[1], right)
        inner = jnp.where(lower, right - _GOLDEN * (right - left), left + _GOLDEN * (right - left))
        found = at(inner)
        places = jnp.where(lower, jnp.stack([inner, places[0]]), jnp.stack([places[1], inner]))
        losses = jnp.where(lower, jnp.stack([found, losses[0]]), jnp.stack([losses[1], found]))
        return (left, right, places, losses), None

    starts = jnp.linspace(jnp.log(bounds[0]), jnp.log(bounds[1]), num_starts + 1)
    tried = jax.lax.map(at, starts)
    best = jnp.argmin(tried)
    left, right = starts[jnp.maximum(best - 1, 0)], starts[jnp.minimum(best + 1, num_starts)]
    places = jnp.stack([right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)])
    state = (left, right, places, jax.lax.map(at, places))
    _, _, places, losses = jax.lax.scan(narrow, state, None, length=num_steps)[0]
    # Golden sections come near an end and never reach it, so both are compared by name.
    losses = jnp.concatenate([losses, tried[:1], tried[-1:], tried[best, None]])
    temperatures = jnp.concatenate([jnp.exp(places), bounds, jnp.exp(starts[best, None])])
    chosen = jnp.argmin(losses)
    return FittedTemperature(temperatures[chosen], losses[chosen], (chosen == 2) | (chosen == 3))


@typed
def top_experts_gate(weights: Weights, count: int) -> Weights:
    """Keep the `count` largest weights and renormalize; ties go to the lower index.   [B6, B7]

    If count < K it is an approximation: with M the kept mass, its total variation from the full
    gate is at most 1 − M.

    Raises:
        ValueError: if `count` lies outside [1, K], or the weights are not a distribution.
    """
    weights = jnp.asarray(weights)
    check_count("count", count, at_most=weights.shape[0])
    check_distribution("weights", weights)
    _, largest = jax.lax.top_k(weights, count)
    return _renormalized(weights, jnp.zeros_like(weights, bool).at[largest].set(True))


@typed
def nucleus_gate(weights: Weights, mass: Number) -> Weights:
    """Keep the largest weights, as few as sum to `mass` or more, and renormalize.   [B6]

    It jumps where a sum equals `mass`; elsewhere its derivative in `mass` is 0.

    Raises:
        ValueError: if `mass` lies outside (0, 1], or the weights are not a distribution.
    """
    weights = jnp.asarray(weights)
    check_interval("mass", mass, 0.0, 1.0, ends="(]")
    check_distribution("weights", weights)
    order = jnp.argsort(-weights, stable=True)
    # Sums of whole prefixes: `cumsum − weights` rounds below a mass that was reached exactly.
    before = jnp.pad(jnp.cumsum(weights[order])[:-1], (1, 0))
    kept = jnp.zeros_like(weights, bool).at[order].set(before < mass)
    return _renormalized(weights, kept)


@typed
def hard_gate(weights: Weights) -> Weights:
    """Put all weight on the largest one (top-1 routing); ties go to the lower index.   [B7, D8]"""
    return top_experts_gate(weights, 1)


def _renormalized(weights: Array, kept: Array) -> Array:
    """The kept ones over their sum; NaN if any weight is: `top_k` ranks a computed NaN lowest."""
    weights = jnp.where(kept, weights, 0.0 * weights)
    return weights / jnp.sum(weights)
