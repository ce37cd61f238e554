"""Markov and hidden Markov sources of any length: exact posteriors by message passing.

Enumeration needs V^N numbers. A Markov source needs N products of a vector and a matrix, so the
posterior of every token given any revealed tokens is exact at N = 1,024 and V = 64 too. Messages
are normalized at every position, and logarithms of their sums add up to log q(x^known).

Every function takes one sequence, or several along leading axes: tokens [..., N].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dfm_jax.exact.checks import (
    RefusedError,
    check_distributions,
    check_number,
    check_real,
    check_shape,
    check_size,
)
from dfm_jax.exact.distributions import states


class HiddenMarkovSource(NamedTuple):
    """h^0 ~ initial, h^{i+1} ~ transition[h^i], x^i ~ emission[h^i]: tokens of a hidden chain.

    With `emission` = I it is a Markov chain of first order, whose states are its tokens.
    """

    initial: np.ndarray  # [H]
    transition: np.ndarray  # [H, H], row h is the distribution of the next state
    emission: np.ndarray  # [H, V]


class MarkovSource(NamedTuple):
    """x^i ~ transition[x^{i−m}, …, x^{i−1}]: a chain of order m, m = `initial.ndim`.

    `initial` is the distribution of the m tokens that end at position 0; the m − 1 tokens before
    the sequence are summed out. The messages are tables of V^m numbers.
    """

    initial: np.ndarray  # [V] * m
    transition: np.ndarray  # [V] * (m + 1), the last axis is the next token


Source = HiddenMarkovSource | MarkovSource


class TokenPosteriors(NamedTuple):
    """What the known tokens tell about all others."""

    probs: np.ndarray  # [..., N, V]: q(x^i = v | x^known); zeros where q(x^known) = 0
    log_prob: np.ndarray  # [...]: log q(x^known) in nats, −∞ off the support


def token_posteriors(source: Source, x: np.ndarray, known: np.ndarray) -> TokenPosteriors:
    """q(x^i = v | x^known) at every position, and log q(x^known)  [P7].

    With forward messages α_i(h) = P(h^i = h, x^{known, <i}) and backward messages β_i(h) =
    P(x^{known, >i} | h^i = h), q(x^i = v | x^known) ∝ Σ_h α_i(h) β_i(h) P(v | h). At a known
    position it is the point mass at its token.

    Args:
        source: The distribution q of sequences.
        x: Tokens, [..., N]; where `known` is False they are not read.
        known: Which positions are known, bool, of the shape of `x`.

    Raises:
        ValueError: if the source has a row that is no distribution; if a known token lies outside
            [0, V); if a message of all positions would not fit in memory.
    """
    chain = _checked(source)
    x, known = _checked_tokens(chain, x, known)
    forward, total = _forward(chain, x, known)
    probs = np.zeros((*x.shape, chain.num_tokens))
    message = np.ones_like(forward[0])
    for i in reversed(range(x.shape[-1])):
        joint = chain.to_tokens(forward[i] * message)
        row = np.where(known[..., i, None], np.eye(chain.num_tokens)[x[..., i]], joint)
        mass = row.sum(axis=-1, keepdims=True)
        np.divide(row, mass, out=probs[..., i, :], where=mass > 0)
        if i:
            message = chain.backward(message * chain.evidence(x[..., i], known[..., i]))
            scale = message.max(axis=chain.axes, keepdims=True)
            message = np.divide(message, scale, out=np.zeros_like(message), where=scale > 0)
    probs[total == -np.inf] = 0.0
    return TokenPosteriors(probs, total)


def log_prob(source: Source, x: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """log q(x^known) in nats, −∞ off the support; without `known`, of the whole sequence.

    Args:
        source: The distribution q.
        x: Tokens, [..., N].
        known: Bool, of the shape of `x`; None means that all are known.
    """
    chain = _checked(source)
    known = np.ones(np.shape(x), bool) if known is None else known
    return _forward(chain, *_checked_tokens(chain, x, known), keep=False)[1]


def draw_sequences(
    source: Source, rng: np.random.Generator, count: int, num_positions: int
) -> np.ndarray:
    """Draw sequences from a source, from left to right: int64 [count, N].

    Raises:
        ValueError: if `count` or `num_positions` is no whole number from 1 on.
    """
    chain = _checked(source)
    check_number("count", count)
    check_number("num_positions", num_positions)
    message = np.broadcast_to(chain.initial, (count, *chain.initial.shape)).copy()
    x = np.empty((count, num_positions), np.int64)
    for i in range(num_positions):
        if i:
            message = chain.forward(message)
        cumulative = np.cumsum(chain.to_tokens(message), axis=-1)
        cumulative /= cumulative[:, -1:]  # so that the last is 1, which no draw reaches
        x[:, i] = np.sum(cumulative <= rng.random((count, 1)), axis=-1)
        message = message * chain.evidence(x[:, i], np.ones(count, bool))
        message /= message.sum(axis=chain.axes, keepdims=True)
    return x


def sequence_distribution(source: Source, num_positions: int) -> np.ndarray:
    """The distribution of all sequences of a short source, by enumeration: flat, [V^N]."""
    chain = _checked(source)
    x = states(chain.num_tokens, num_positions)
    return np.exp(_forward(chain, x, np.ones_like(x, bool), keep=False)[1])


def sequence_entropy(source: MarkovSource, num_positions: int) -> float:
    """H(X) of a Markov source in nats, by the chain rule.

        H(X) = H(X^{<m}) + Σ_{i ≥ m} E[H(X^i | X^{i−m}, …, X^{i−1})]

    A hidden source has no such formula: its tokens depend on all earlier ones.
    """
    if not isinstance(source, MarkovSource):
        rule = "`source` must be a MarkovSource"
        raise RefusedError(f"{rule}; got source = {type(source).__name__}.")
    _checked(source)
    check_number("num_positions", num_positions)
    initial, transition = (np.asarray(part, float) for part in source)
    order, num_tokens = initial.ndim, initial.shape[0]
    joint, entropy = initial.sum(axis=tuple(range(order - 1))), 0.0  # of the tokens so far
    history = initial
    for i in range(num_positions):
        if i == 0:
            entropy += _entropy(joint)
            continue
        pair = history[..., None] * transition  # [V] * (m + 1), with the m tokens before
        seen = min(i, order)
        now = pair.sum(axis=tuple(range(order - seen))).reshape(num_tokens**seen, num_tokens)
        entropy += _entropy(now) - _entropy(now.sum(axis=1))
        history = pair.sum(axis=0)
    return float(entropy)


def _entropy(probs: np.ndarray) -> float:
    live = probs[probs > 0.0]
    return float(-np.sum(live * np.log(live)))


class _Chain(NamedTuple):
    """A source as its messages: tables [..., *shape] of the state at a position."""

    initial: np.ndarray
    num_tokens: int
    axes: tuple[int, ...]  # of a message, counted from the end
    forward: Callable[[np.ndarray], np.ndarray]  # Σ_h α(h) P(h' | h)
    backward: Callable[[np.ndarray], np.ndarray]  # Σ_h' P(h' | h) β(h')
    to_tokens: Callable[[np.ndarray], np.ndarray]  # Σ_h m(h) P(v | h): [..., V]
    evidence: Callable[[np.ndarray, np.ndarray], np.ndarray]  # P(x^i | h), 1 where it is unknown


def _forward(
    chain: _Chain, x: np.ndarray, known: np.ndarray, *, keep: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The normalized messages before each token is read [N, ..., H], and log q(x^known)."""
    batch, num_positions = x.shape[:-1], x.shape[-1]
    size = (num_positions, *batch, *chain.initial.shape)
    if keep:
        check_size(size, "The messages of all positions")
    messages = np.empty(size if keep else (0,))
    total = np.zeros(batch)
    message = np.broadcast_to(chain.initial, (*batch, *chain.initial.shape))
    for i in range(num_positions):
        if i:
            message = chain.forward(message)
        if keep:
            messages[i] = message
        message = message * chain.evidence(x[..., i], known[..., i])
        mass = message.sum(axis=chain.axes, keepdims=True)
        message = np.divide(message, mass, out=np.zeros_like(message), where=mass > 0)
        flat = mass.reshape(batch)
        total = total + np.log(flat, out=np.full(batch, -np.inf), where=flat > 0)
    return messages, total


def _checked(source: Source) -> _Chain:
    """The messages of a source whose rows are distributions; anything else is refused."""
    if isinstance(source, HiddenMarkovSource):
        return _hidden_chain(source)
    if isinstance(source, MarkovSource):
        return _chain_of_order(source)
    rule = "`source` must be a HiddenMarkovSource or a MarkovSource"
    raise RefusedError(f"{rule}; got source = {type(source).__name__}.")


def _hidden_chain(source: HiddenMarkovSource) -> _Chain:
    initial = check_distributions("initial", source.initial)
    num_hidden = initial.shape[-1]
    check_shape("initial", initial, (num_hidden,))
    transition = check_distributions("transition", source.transition)
    check_shape("transition", transition, (num_hidden, num_hidden))
    emission = check_distributions("emission", source.emission)
    check_shape("emission", emission, (num_hidden, emission.shape[-1]))
    num_tokens = emission.shape[1]
    # Row V is of a token that is not known.
    likelihood = np.concatenate([emission.T, np.ones((1, num_hidden))])
    return _Chain(
        initial=initial,
        num_tokens=num_tokens,
        axes=(-1,),
        forward=lambda message: message @ transition,
        backward=lambda message: message @ transition.T,
        to_tokens=lambda message: message @ emission,
        evidence=lambda x, known: likelihood[np.where(known, x, num_tokens)],
    )


def _chain_of_order(source: MarkovSource) -> _Chain:
    initial = check_real("initial", source.initial)
    order = initial.ndim
    if order == 0:
        raise RefusedError("`initial` must have an axis for each token it holds; got a number.")
    num_tokens = initial.shape[0]
    check_distributions("initial", initial.reshape(-1))
    check_shape("initial", initial, (num_tokens,) * order)
    transition = check_distributions("transition", source.transition)
    check_shape("transition", transition, (num_tokens,) * (order + 1))
    likelihood = np.concatenate([np.eye(num_tokens), np.ones((1, num_tokens))])
    axes = tuple(range(-order, 0))
    first, others = -(order + 1), axes[:-1]

    def evidence(x: np.ndarray, known: np.ndarray) -> np.ndarray:
        rows = likelihood[np.where(known, x, num_tokens)]
        return rows.reshape(*rows.shape[:-1], *(1,) * (order - 1), num_tokens)

    return _Chain(
        initial=initial,
        num_tokens=num_tokens,
        axes=axes,
        forward=lambda message: (message[..., None] * transition).sum(axis=first),
        backward=lambda message: (np.expand_dims(message, first) * transition).sum(axis=-1),
        to_tokens=lambda message: message.sum(axis=others) if others else message,
        evidence=evidence,
    )


def _checked_tokens(chain: _Chain, x: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, ...]:
    x, known = np.asarray(x), np.asarray(known)
    if x.ndim == 0 or x.shape[-1] == 0 or x.dtype.kind not in "iu":
        rule = "`x` must be integers [..., N] with N of at least 1"
        raise RefusedError(f"{rule}; got x.shape = {list(x.shape)} and x.dtype = {x.dtype}.")
    check_shape("known", known, x.shape)
    if known.dtype != bool:
        raise RefusedError(f"`known` must be bool; got known.dtype = {known.dtype}.")
    read = x[known]
    if read.size and not (read.min() >= 0 and read.max() < chain.num_tokens):
        rule = f"`x` must lie in [0, {chain.num_tokens}) where it is known"
        raise RefusedError(f"{rule}; got x from {read.min()} to {read.max()}.")
    return np.where(known, x, 0), known
