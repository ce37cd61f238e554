"""The distributions of `samplers`: short ones that are enumerated, and long Markov sources."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, markov
from dfm_jax.exact import HiddenMarkovSource, MarkovSource
from dfm_jax.types import Array
from experiments.lib.domains import load_kjv
from experiments.samplers.config import Config

V, N = 2, 5  # of the enumerated distributions


class Short(NamedTuple):
    """A distribution of V^N sequences, and the exact posterior at every masked state."""

    name: str
    num_tokens: int
    num_positions: int
    probs: np.ndarray  # [V^N]

    @property
    def states(self) -> np.ndarray:
        """All states, masks among them: [(V + 1)^N, N]."""
        return exact.states(self.num_tokens + 1, self.num_positions)

    @property
    def draws(self) -> np.ndarray:
        """All sequences of tokens: [V^N, N]."""
        return exact.states(self.num_tokens, self.num_positions)

    @property
    def start(self) -> np.ndarray:
        """All masks: [(V + 1)^N]."""
        return (self.states == self.num_tokens).all(axis=1).astype(float)

    def posterior(self) -> np.ndarray:
        """q(x^i = v | revealed tokens) [Z, N, V]; uniform where these have probability 0."""
        v, n, states = self.num_tokens, self.num_positions, self.states
        found = np.full((len(states), n, v), 1.0 / v)
        for known in exact.states(2, n).astype(bool):
            rows, support = exact.token_conditionals(self.probs, known, v, n)
            here = ((states < v) == known).all(axis=1)
            flat = np.where(known, states[here], 0) @ v ** np.arange(n)[::-1]
            # Any sequence with these tokens will do, and the one with zeros elsewhere is there.
            found[here] = np.where(support[flat][:, None, None], rows[flat], 1.0 / v)
        return found


def dirichlet(count: int, concentration: float, seed: int) -> list[Short]:
    """Distributions without any structure."""
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(V**N, concentration), count)
    return [Short(f"Dirichlet {number}", V, N, row) for number, row in enumerate(rows)]


def coins(p: float, num_positions: int) -> Short:
    """Independent coins, all alike: nothing but ties."""
    x = exact.states(2, num_positions)
    return Short(f"coins {p:g}", 2, num_positions, np.prod(np.where(x == 0, p, 1 - p), axis=1))


def twins(num_positions: int) -> Short:
    """Two sequences alone, all 0 or all 1: symmetric, with ties at the start."""
    probs = np.zeros(2**num_positions)
    probs[[0, -1]] = 0.5
    return Short("twins", 2, num_positions, probs)


def uniform_path(source: Short, alpha: float) -> np.ndarray:
    """P(x_t = z, x_1 = x) of a uniform source at κ = alpha: [V^N, V^N]."""
    v, n = source.num_tokens, source.num_positions
    token = alpha * np.eye(v) + (1 - alpha) / v
    kernel = np.ones((1, 1))
    for _ in range(n):
        kernel = np.kron(kernel, token)
    return kernel * source.probs


def uniform_posterior(source: Short, alpha: float) -> np.ndarray:
    """p_{1|t}^i(v | z) of a uniform source [V^N, N, V]; uniform where p_t(z) = 0."""
    joint = uniform_path(source, alpha)
    mass = joint.sum(axis=1, keepdims=True)
    given = np.divide(joint, mass, out=np.full_like(joint, 1 / len(joint)), where=mass > 0)
    v = source.num_tokens
    one_hot = np.eye(v)[source.draws]  # [V^N, N, V]
    return np.einsum("zx,xnv->znv", given, one_hot)


def hidden_chain(num_hidden: int, stay: float, shown: float, seed: int) -> HiddenMarkovSource:
    """A sticky chain whose states show their own token most of the time."""
    rng = np.random.default_rng([seed, num_hidden])
    rows = lambda: rng.dirichlet(np.full(num_hidden, 0.2), num_hidden)  # noqa: E731
    eye = np.eye(num_hidden)
    transition = stay * eye + (1 - stay) * rows()
    return HiddenMarkovSource(rows().mean(axis=0), transition, shown * eye + (1 - shown) * rows())


def visible_chain(source: HiddenMarkovSource) -> HiddenMarkovSource:
    """The chain of hidden states itself, which shows all of them: first order."""
    return source._replace(emission=np.eye(len(source.initial)))


def text_chain(num_symbols: int, order: int) -> MarkovSource:
    """A chain of a given order, fitted to the King James Bible with a pseudo-count of 0.01.

    The symbols are the most frequent letters and the blank, and one for all other characters.
    """
    text = "".join(document.text for document in load_kjv().documents).lower()
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    values, counts = np.unique(codes, return_counts=True)
    kept = values[np.argsort(-counts, kind="stable")[: num_symbols - 1]]
    symbols = np.full(len(codes), num_symbols - 1)
    for symbol, code in enumerate(kept):
        symbols[codes == code] = symbol
    windows = np.lib.stride_tricks.sliding_window_view(symbols, order + 1)
    flat = windows @ num_symbols ** np.arange(order, -1, -1)
    table = np.bincount(flat, minlength=num_symbols ** (order + 1)) + 0.01
    table = table.reshape((num_symbols,) * (order + 1))
    first = table.sum(axis=-1)
    return MarkovSource(first / first.sum(), table / table.sum(axis=-1, keepdims=True))


def hidden_denoiser(params: tuple[Array, ...], x_t: Array, t: Array) -> Array:
    """log p_{1|t} of a hidden chain; the time is not read (P7)."""
    return jnp.log(markov.hidden_markov_posterior(x_t, *params))


def text_denoiser(params: tuple[Array, ...], x_t: Array, t: Array) -> Array:
    """log p_{1|t} of a chain of any order."""
    return jnp.log(markov.markov_posterior(x_t, *params))


class Long(NamedTuple):
    """A source of long sequences, and its exact denoiser."""

    name: str
    source: exact.HiddenMarkovSource | exact.MarkovSource
    denoiser: Callable[..., Array]

    @property
    def num_tokens(self) -> int:
        """V."""
        return self.source[-1].shape[-1]


def long_sources(config: Config) -> list[Long]:
    """The hidden chain, the chain of its states, and the text."""
    hidden = hidden_chain(config.num_hidden, config.stay, config.shown, config.seed)
    text = text_chain(config.text_symbols, config.text_order)
    return [
        Long("hidden chain", hidden, hidden_denoiser),
        Long("Markov chain", visible_chain(hidden), hidden_denoiser),
        Long("text", text, text_denoiser),
    ]
