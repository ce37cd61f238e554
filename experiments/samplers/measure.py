"""What samplers draw on enumerated distributions: exact, by sums over all draws.   [S8–S11, D7]"""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import jax
import numpy as np

from dfm_jax import exact
from dfm_jax.sampling import Choice, choices
from dfm_jax.theory.whole_runs import selected
from experiments.samplers.sources import Short

ENTROPY_BOUND = 0.1
ROWS: dict[str, tuple[Choice, str]] = {
    "left to right": (choices.first(), "S8"),
    "most confident": (choices.most_confident(), "S8"),
    "largest margin": (choices.largest_margin(), "S8"),
    "lowest entropy": (choices.lowest_entropy(), "S8"),
    "random order": (choices.random_order(), "S8"),
    "blocks of 2, most confident": (choices.in_blocks(choices.most_confident(), 2), "S8"),
    f"entropy bound {ENTROPY_BOUND}": (choices.entropy_bound(ENTROPY_BOUND), "S10"),
    "confidence ≥ 0.95": (choices.confidence_threshold(0.95), "S10"),
    "bisection": (choices.middles(), "S10"),
    "every second position": (choices.strided(2), "S10"),
    "most confident, 2 a step": (choices.most_confident(2), "S10"),
    "random order, 2 a step": (choices.random_order(2), "S10"),
    "most confident draw": (choices.most_confident_draw(), "S9"),
    "most confident draw, 2 a step": (choices.most_confident_draw(2), "S9"),
    "blocks of 2, most confident draw": (
        choices.in_blocks(choices.most_confident_draw(), 2),
        "S9",
    ),
}
GATED = {"left to right": choices.first(), "most confident": choices.most_confident()}


def whole_runs(source: Short, posterior: np.ndarray, choice: Choice) -> tuple[np.ndarray, float]:
    """The distribution of the samples [V^N], and the mean number of passes."""
    n, v = source.num_positions, source.num_tokens
    draws = source.draws[:1] if choice.blind else source.draws
    # Without ties only a random choice reads the ranks.
    ranks = (
        np.array(list(permutations(range(n))))
        if _reads_ranks(source, choice)
        else np.arange(n)[None]
    )
    probs, passes = source.start, 0.0
    unfinished = (source.states == v).any(axis=1)
    for step in range(n):
        passes += float(probs[unfinished].sum())
        kept = np.asarray(_selected(posterior, source.states, draws, ranks, step, choice=choice))
        sets, share = np.unique(kept, axis=0, return_counts=True)
        ends = [exact.choice_step(probs, posterior, one) for one in sets]
        probs = np.average(ends, axis=0, weights=share)
    return probs[~unfinished], passes


_selected = jax.jit(selected, static_argnames="choice")


def _reads_ranks(source: Short, choice: Choice) -> bool:
    return source.name.startswith(("coins", "twins")) or choice in RANDOM


RANDOM = (choices.random_order(), choices.random_order(2))


def enumerated(source: Short) -> list[dict[str, Any]]:
    """Every sampler on one distribution: total variation, divergence, passes."""
    with jax.enable_x64(True):
        posterior = source.posterior()
        rows = []
        for name, (choice, label) in ROWS.items():
            probs, passes = whole_runs(source, posterior, choice)
            rows.append(
                {
                    "source": source.name,
                    "sampler": name,
                    "statement": label,
                    "tv": float(exact.total_variation(source.probs, probs)),
                    "kl": _finite(exact.kl(source.probs, probs)),
                    "passes": passes,
                }
            )
    return rows


def _finite(value: np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None


def experts(source: Short, other: Short, weight: float) -> list[dict[str, Any]]:
    """A mixture of two exact experts under the posterior of its parts, and under fixed weights."""
    v, n = source.num_tokens, source.num_positions
    whole = Short("mixture", v, n, weight * source.probs + (1 - weight) * other.probs)
    parts = [source.posterior(), other.posterior()]
    static = weight * parts[0] + (1 - weight) * parts[1]
    rows = []
    with jax.enable_x64(True):
        for gate, posterior in (("posterior of the parts", whole.posterior()), ("static", static)):
            for name, choice in GATED.items():
                probs, _ = whole_runs(whole, posterior, choice)
                tv = float(exact.total_variation(whole.probs, probs))
                rows.append({"gate": gate, "sampler": name, "tv": tv})
    return rows


# ── correctors ──────────────────────────────────────────────────────────────────────────────────

# g of the row of position i given the others, and the token that is there.
PROBABILITIES = {
    "always": lambda row, token: 1.0,
    "the less sure the others are": lambda row, token: 1 - row.max(),
    "the less the token is believed": lambda row, token: 1 - row[token],
}
SWEEPS = (1, 5, 20)


def drift(source: Short) -> list[dict[str, Any]]:
    """Redraws from the data themselves: total variation after so many sweeps of N positions. [S11]

    In a redraw the position is uniform, or, where that reads the tokens, drawn in proportion to
    how little its token is believed, as correctors of the field select it.
    """
    v, n = source.num_tokens, source.num_positions
    posterior, draws = source.posterior(), source.draws
    radix = (v + 1) ** np.arange(n)[::-1]
    others = np.stack(
        [posterior[np.where(np.arange(n) == i, v, draws) @ radix, i] for i in range(n)], axis=1
    )  # [V^N, N, V]
    own = np.take_along_axis(others, draws[..., None], axis=-1)[..., 0]
    selections = {
        name: np.array(
            [[g(others[x, i], draws[x, i]) for i in range(n)] for x in range(len(draws))]
        )
        / n
        for name, g in PROBABILITIES.items()
    }
    selections["the least believed token first"] = _share(1 - own)
    rows = []
    for name, chosen in selections.items():
        kernel = _redraw_kernel(draws, others, chosen)
        probs, at = source.probs, 0
        for sweeps in SWEEPS:
            for _ in range((sweeps - at) * n):
                probs = kernel @ probs
            at = sweeps
            tv = float(exact.total_variation(source.probs, probs))
            rows.append({"selection": name, "sweeps": sweeps, "tv": tv})
    return rows


def _share(scores: np.ndarray) -> np.ndarray:
    total = scores.sum(axis=1, keepdims=True)
    return np.divide(scores, total, out=np.full_like(scores, 1 / scores.shape[1]), where=total > 0)


def _redraw_kernel(draws: np.ndarray, others: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """P[y, x]: position i with probability chosen[x, i], drawn from others[x, i]; else x stays."""
    v = others.shape[-1]
    radix = v ** np.arange(draws.shape[1])[::-1]
    kernel = np.diag(1 - chosen.sum(axis=1))
    for i in range(draws.shape[1]):
        for token in range(v):
            ends = np.where(np.arange(draws.shape[1]) == i, token, draws) @ radix
            np.add.at(kernel, (ends, np.arange(len(draws))), chosen[:, i] * others[:, i, token])
    return kernel


# ── the slack of the generalized KL ─────────────────────────────────────────────────────────────


def slack(source: Short, num_nodes: int = 60) -> dict[str, Any]:
    """∫ E of the generalized KL for the exact posterior, less the entropy, in nats.   [L2]

    It is 0 for masks and positive for a uniform source: the floor under every comparison by bounds.
    """
    v, n = source.num_tokens, source.num_positions
    entropy = float(exact.entropy(source.probs))
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    s = (nodes + 1) / 2
    t, weights = 1 - s**2, weights * s  # t = 1 − s²: the logarithm at t = 1 becomes tame
    found = {"source": source.name, "entropy": entropy}
    masks, uniform = np.zeros((n, v + 1)), np.zeros((n, v + 1))
    masks[:, v], uniform[:, :v] = 1.0, 1.0 / v
    for name, tokens in (("masks", masks), ("uniform", uniform)):
        coupling = exact.FactoredCoupling(source.probs, tokens, np.zeros(n, bool))
        rates = [_generalized_kl(coupling, v, n, at) for at in t]
        found[name] = float(np.sum(weights * rates)) - entropy
    return found


def _generalized_kl(coupling: exact.FactoredCoupling, v: int, n: int, t: float) -> float:
    """E Σ_i of the integrand at the time t of κ_t = t, for the exact posterior."""
    path = exact.mixture_token_path(np.full(n, t), v, v + 1)
    probs = exact.marginal_path(coupling, path)
    posterior, _, _ = exact.posteriors(coupling, path)
    states = exact.states(v + 1, n)
    own = np.concatenate([posterior, np.zeros((len(states), n, 1))], axis=-1)
    own = np.take_along_axis(own, states[..., None], axis=-1)[..., 0]  # p̂(z^i | z), 0 of a mask
    log = np.log(posterior, out=np.zeros_like(posterior), where=posterior > 0)
    is_own = np.arange(v) == states[..., None]
    # E over x_1 given z: δ has the mean p(z^i | z), and (1 − δ) log p̂ the sum over other tokens.
    crossed = np.sum(np.where(is_own, 0.0, posterior * log), axis=-1)
    return float(np.sum(probs[:, None] * -(own - own + crossed)) / (1 - t))


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over distributions, for each sampler."""
    found = []
    for name in dict.fromkeys(row["sampler"] for row in rows):
        own = [row for row in rows if row["sampler"] == name]
        kls = [row["kl"] for row in own]
        found.append(
            {
                "sampler": name,
                "statement": own[0]["statement"],
                "tv": float(np.mean([row["tv"] for row in own])),
                "tv_max": float(max(row["tv"] for row in own)),
                "kl": None if None in kls else float(np.mean(kls)),
                "passes": float(np.mean([row["passes"] for row in own])),
            }
        )
    return found
