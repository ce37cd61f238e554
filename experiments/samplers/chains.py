"""What choices cost at length: D = log q(x) − log q̂(x), x from the source.   [S10, S12]"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import beta

from dfm_jax import exact
from dfm_jax.sampling import (
    Choice,
    choice_log_prob,
    choices,
    least_step_costs,
    sample_by_choice,
    step_cost,
    step_sizes,
)
from experiments.samplers.config import Config
from experiments.samplers.sources import Long

LEVEL = 0.05  # of both ends of an interval together


def sequences(here: Long, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of the source and their log-probabilities: [S, N], [S]."""
    rng = np.random.default_rng([config.seed, 1])
    count = config.text_sequences if here.name == "text" else config.num_sequences
    x = exact.draw_sequences(here.source, rng, count, config.length)
    return x, exact.log_prob(here.source, x)


def information(here: Long, x: np.ndarray, config: Config, num_sizes: int = 24) -> np.ndarray:
    """h(a), a = 0 … N − 1: measured at some a on random sets, and interpolated in between: [N]."""
    n, mask_id = config.length, here.num_tokens
    sizes = np.unique(np.round(np.linspace(0, 1, num_sizes) ** 2 * (n - 1)).astype(int))
    params = tuple(jnp.asarray(part) for part in here.source)

    @jax.jit
    @jax.vmap
    def mean_entropy(states: jax.Array) -> jax.Array:
        masked = states == mask_id
        entropy = choices.entropies(here.denoiser(params, states, jnp.zeros(())))
        return jnp.sum(jnp.where(masked, entropy, 0.0)) / jnp.sum(masked)

    rng = np.random.default_rng([config.seed, 2])
    rows = x[: config.batch_size]
    values = []
    for size in sizes:
        order = np.argsort(rng.random(rows.shape), axis=1)
        states = np.where(order < size, rows, mask_id)  # uniform sets of so many positions
        values.append(float(np.mean(mean_entropy(jnp.asarray(states)))))
    # h does not rise; what noise of the sets adds must not make it.
    return np.interp(np.arange(n), sizes, np.minimum.accumulate(values))


def candidates(
    here: Long, config: Config, h: np.ndarray
) -> Iterator[tuple[str, str, int | float, Choice]]:
    """(family, what its number is, the number, the choice)."""
    n = config.length
    text = here.name == "text"
    for steps in config.text_steps if text else config.random_steps:
        even = choices.random_order(even_sizes(n, steps))
        yield "random positions, even steps", "steps", steps, even
        sizes = step_sizes(h, steps)
        yield "random positions, steps by information", "steps", steps, choices.random_order(sizes)
    yield "bisection", "", 0, choices.middles()
    for stride in [s for s in config.strides if not text or s <= config.text_steps[-1]]:
        yield "strided", "stride", stride, choices.strided(stride)
    for bound in () if text else config.bounds:
        yield "entropy bound", "γ", bound, choices.entropy_bound(bound)
    if not text:
        for steps in config.strides:
            size = math.ceil(n / steps)
            yield "most confident", "steps", steps, choices.most_confident(size)


def cost(
    here: Long, choice: Choice, x: np.ndarray, log_q: np.ndarray, config: Config
) -> dict[str, Any]:
    """The mean of D with its standard error, and the passes.

    D is log q(x) − log q̂(x) of a deterministic choice. Of a random one it is an upper bound in the
    mean, of the path that the ranks give.
    """
    values, passes, began = [], [], time.perf_counter()
    for start in range(0, len(x), config.batch_size):
        rows = slice(start, start + config.batch_size)
        log_probs, steps = _path_log_probs(here, choice)(
            jax.random.split(jax.random.key(config.seed + start), len(x[rows])),
            tuple(jnp.asarray(part) for part in here.source),
            jnp.asarray(x[rows]),
        )
        values.append(log_q[rows] - np.asarray(log_probs))
        passes.append(np.asarray(steps))
    d = np.concatenate(values)
    return {
        "kl": float(np.mean(d)),
        "stderr": float(np.std(d, ddof=1) / math.sqrt(len(d))),
        "passes": float(np.mean(np.concatenate(passes))),
        "seconds": round(time.perf_counter() - began, 2),
    }


def _path_log_probs(here: Long, choice: Choice) -> Callable[..., tuple[jax.Array, jax.Array]]:
    mask_id = here.num_tokens

    def one(key: jax.Array, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        masks = jnp.full_like(x, mask_id)
        found = choice_log_prob(key, params, here.denoiser, x, masks, choice)
        return found.log_prob, found.num_steps

    return jax.jit(jax.vmap(one, (0, None, 0)))


# ── a choice that reads the draws has no such D ─────────────────────────────────────────────────


def statistics(x: np.ndarray, num_tokens: int) -> dict[str, np.ndarray]:
    """Numbers of each sequence, whose distributions are compared."""
    counts = np.stack([np.bincount(row, minlength=num_tokens) for row in x])
    return {
        "changes of the token": np.sum(np.diff(x, axis=1) != 0, axis=1),
        "the most frequent token": counts.max(axis=1),
        "different tokens": np.sum(counts > 0, axis=1),
    }


def lower_bound(here: Long, choice: Choice, config: Config) -> dict[str, Any]:
    """KL(q ‖ q̂) is at least that of an event: with confidence 1 − α, by Clopper and Pearson.

    The events are "the statistic is at most its q-quantile"; each has its share of α. A quantile is
    an order statistic of the source's own sample. Its probability is a beta variable, whose central
    interval lies inside the one that is used.
    """
    rng = np.random.default_rng([config.seed, 3])
    true = exact.draw_sequences(here.source, rng, 40 * config.num_sequences, config.length)
    params = tuple(jnp.asarray(part) for part in here.source)
    masks = jnp.full(config.length, here.num_tokens)

    @jax.jit
    @jax.vmap
    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = sample_by_choice(key, params, here.denoiser, masks, choice)
        return found.tokens, found.num_steps

    keys = jax.random.split(jax.random.key(config.seed), config.num_sequences)
    drawn, steps = [], []
    for start in range(0, config.num_sequences, config.batch_size):
        tokens, taken = one(keys[start : start + config.batch_size])
        drawn.append(np.asarray(tokens))
        steps.append(np.asarray(taken))
    ours = statistics(np.concatenate(drawn), here.num_tokens)
    theirs = statistics(true, here.num_tokens)
    quantiles = (0.1, 0.5, 0.9)
    share = LEVEL / (len(theirs) * len(quantiles))
    best = {"kl_at_least": 0.0, "statistic": "", "of_q": 0.0, "of_samples": 0.0}
    for name, values in theirs.items():
        for quantile in quantiles:
            edge = np.quantile(values, quantile)
            inside = [int(np.sum(v <= edge)) for v in (values, ours[name])]
            p = _interval(inside[0], len(values), share / 2)
            s = _interval(inside[1], len(ours[name]), share / 2)
            bound = _least_divergence(p, s)
            if bound > best["kl_at_least"]:
                means = {"of_q": float(values.mean()), "of_samples": float(ours[name].mean())}
                best = {"kl_at_least": bound, "statistic": name} | means
    return best | {"passes": float(np.mean(np.concatenate(steps)))}


def _interval(successes: int, count: int, level: float) -> tuple[float, float]:
    low = beta.ppf(level / 2, successes, count - successes + 1) if successes else 0.0
    high = beta.ppf(1 - level / 2, successes + 1, count - successes) if successes < count else 1.0
    return float(low), float(high)


def _least_divergence(p: tuple[float, float], s: tuple[float, float]) -> float:
    """The least KL of two coins whose probabilities lie in two intervals."""
    if p[0] <= s[1] and s[0] <= p[1]:
        return 0.0
    a, b = (p[0], s[1]) if p[0] > s[1] else (p[1], s[0])
    terms = [(a, b), (1 - a, 1 - b)]
    return float(sum(x * math.log(x / y) for x, y in terms if x > 0))


# ── passes at one divergence ────────────────────────────────────────────────────────────────────


def even_sizes(num_positions: int, num_steps: int) -> tuple[int, ...]:
    """Steps of the same size, up to one."""
    ends = np.round(np.linspace(0, num_positions, num_steps + 1)).astype(int)
    return tuple(np.diff(ends).tolist())


def random_passes(h: np.ndarray, target: float) -> dict[str, int]:
    """The fewest steps of random positions whose cost, by h, is at most `target`."""
    n = len(h)
    best = least_step_costs(h)
    even = next(t for t in range(1, n + 1) if step_cost(h, even_sizes(n, t)) <= target)
    return {"even": even, "by_information": int(np.argmax(best <= target)) + 1}


def passes_at(rows: list[dict[str, Any]], family: str, target: float) -> float | None:
    """The fewest passes of a family whose mean D is at most `target`; None if none reaches it."""
    own = [row for row in rows if row["family"] == family]
    return min((row["passes"] for row in own if row["kl"] <= target), default=None)
