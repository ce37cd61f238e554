"""B8 on a space where every sum is possible: 2 × 2 pixels with 3 levels, 81 states.   [B8, D3, D4]

The truth is the distribution of the held-out images. The model's experts are exact flows of the
smoothed distributions of the training images of each part. From a uniform source, with κ_t = t, on
[0, 1 − ε]:

    KL(p_{1−ε} ‖ p̂_{1−ε}) ≤ ∫ E Σ_{y≠X} [u log(u/û) − u + û] dt ≤ Σ_k of it for r_k u^k, r̂_k û^k
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from dfm_jax import exact, objectives
from experiments.flows.images import SIDE, Images, Parts

_LEVELS, _CELLS = 3, 2  # gray levels, positions a side
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(16)
_NODES, _NODE_WEIGHTS = (_NODES + 1) / 2, _NODE_WEIGHTS / 2
_STEPS = (
    200  # of Runge and Kutta's method, for the distribution of a gate that no mixture of paths has
)


class Flow(NamedTuple):
    """Parts and their mixture at one time: weights [Z, K], rates [K, Z, N, V], distribution [Z]."""

    gate: np.ndarray
    rates: np.ndarray
    probs: np.ndarray


def small(images: np.ndarray) -> np.ndarray:
    """The state, one of 81, of each image: means of its quarters, cut at thirds of the range."""
    half = SIDE // _CELLS
    blocks = (
        images.reshape(-1, _CELLS, half, _CELLS, half).mean(axis=(2, 4)).reshape(len(images), -1)
    )
    levels = np.clip(np.floor(blocks / blocks.max() * _LEVELS), 0, _LEVELS - 1).astype(int)
    return levels @ _LEVELS ** np.arange(_CELLS**2)[::-1]


def probs_of(states: np.ndarray, parts: np.ndarray, num_parts: int, smoothing: float) -> np.ndarray:
    """[K, Z] counted distributions, with so many pseudo-counts a state."""
    size = _LEVELS**_CELLS**2
    counts = np.zeros((num_parts, size)) + smoothing
    np.add.at(counts, (parts, states), 1.0)
    return counts / counts.sum(axis=1, keepdims=True)


def flow_at(t: float, token_probs: np.ndarray, weights: np.ndarray) -> Flow:
    """r_k(z, t), u_t^k and p_t, by enumeration.   [D3, V5]"""
    num_positions = _CELLS**2
    sources = np.full((num_positions, _LEVELS), 1 / _LEVELS)
    context = np.zeros(num_positions, bool)
    path = exact.mixture_token_path(np.full(num_positions, t), _LEVELS, _LEVELS)
    here = np.eye(_LEVELS)[exact.states(_LEVELS, num_positions)]
    paths, rates = [], []
    for probs in token_probs:
        coupling = exact.FactoredCoupling(probs, sources, context)
        paths.append(exact.marginal_path(coupling, path))
        rates.append((exact.posteriors(coupling, path)[0] - here) / (1 - t))
    gate, _ = exact.expert_posterior(weights, np.stack(paths))
    return Flow(gate, np.stack(rates), weights @ np.stack(paths))


def measured(images: Images, parts: Parts, *, smoothing: float, epsilon: float) -> dict[str, Any]:
    """Both inequalities for the Bayes and the static gate of the model, in nats of a state."""
    num_parts, ends = parts.num_experts, 1 - epsilon
    judged = small(images.test), parts.test
    present = np.bincount(parts.test, minlength=num_parts) > 0
    truth = probs_of(*judged, num_parts, 0.0 if present.all() else smoothing)
    weights = np.bincount(parts.test, minlength=num_parts) / len(parts.test)
    model = probs_of(small(images.train), parts.train, num_parts, smoothing)
    static = parts.weights
    size = truth.shape[1]
    totals = {gate: np.zeros(2) for gate in ("Bayes", "static")}
    for node, share in zip(_NODES * ends, _NODE_WEIGHTS * ends, strict=True):
        real, learned = flow_at(node, truth, weights), flow_at(node, model, static)
        for name, gate in _gates(learned, static).items():
            weighted = np.einsum("zk,kzns->kzns", real.gate, real.rates)
            modeled = np.einsum("zk,kzns->kzns", gate, learned.rates)
            whole = _costs(weighted.sum(0), modeled.sum(0))
            by_part = sum(_costs(*pair) for pair in zip(weighted, modeled, strict=True))
            totals[name] += share * np.array([real.probs @ whole, real.probs @ by_part])
    end = flow_at(ends, truth, weights).probs
    start = np.full(size, 1 / size)
    token_probs = _evolved(start, model, static, ends)
    found = {
        name: {
            "kl": float(exact.kl(end, token_probs[name])),
            "integral": integral,
            "by_part": by_part,
        }
        for name, (integral, by_part) in totals.items()
    }
    residual = float(np.abs(token_probs["Bayes"] - flow_at(ends, model, static).probs).max())
    return {"gates": found, "residual": residual, "states": size}


def _gates(learned: Flow, static: np.ndarray) -> dict[str, np.ndarray]:
    return {"Bayes": learned.gate, "static": np.broadcast_to(static, learned.gate.shape)}


def _costs(u: np.ndarray, u_hat: np.ndarray) -> np.ndarray:
    """Σ_i of `generalized_kl` at every state, in float64: [Z]."""
    with jax.enable_x64(True):
        states = exact.states(_LEVELS, _CELLS**2)
        return np.asarray(_jitted(u, u_hat, states)).sum(axis=-1)


_jitted = jax.jit(jax.vmap(objectives.generalized_kl))


def _evolved(
    probs: np.ndarray, model: np.ndarray, static: np.ndarray, ends: float
) -> dict[str, np.ndarray]:
    """The distributions at the end of dp/dt = G_t p, G that of Σ_k r̂_k û^k for each gate.

    In τ = −log(1 − t), where the rate κ̇/(1 − κ) is 1: steps are even where the process is fast.
    """

    def slopes(tau: float) -> dict[str, np.ndarray]:
        left = np.exp(-tau)
        learned = flow_at(1 - left, model, static)
        return {
            name: left * exact.generator(np.einsum("zk,kzns->zns", gate, learned.rates))
            for name, gate in _gates(learned, static).items()
        }

    step = -np.log(1 - ends) / _STEPS
    now = slopes(0.0)
    token_probs = dict.fromkeys(now, probs)
    for index in range(_STEPS):
        middle, then = (slopes(step * (index + part)) for part in (0.5, 1.0))
        for name, here in token_probs.items():
            first = now[name] @ here
            second = middle[name] @ (here + step / 2 * first)
            third = middle[name] @ (here + step / 2 * second)
            fourth = then[name] @ (here + step * third)
            token_probs[name] = here + step / 6 * (first + 2 * second + 2 * third + fourth)
        now = then
    return token_probs
