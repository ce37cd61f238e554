"""Markov chains on sequences: continuity, generators, kernels and the distributions they make.

A velocity [Z, N, S] is u^i(v, z) at [z, i, v]. It stands for the full field u(x, z) = Σ_i 1[x^{≠i}
= z^{≠i}] u^i(x^i, z), which is never stored unless it is requested.
"""

import math
from itertools import pairwise

import numpy as np

from dfm_jax.exact.checks import (
    RATE_TOLERANCE,
    SUM_TOLERANCE,
    RefusedError,
    check_distributions,
    check_measure,
    check_real,
    check_shape,
    check_square,
    check_states,
)
from dfm_jax.exact.distributions import states

MAX_JUMPS = 1e6
"""Most expected jumps, duration times largest exit rate, that `evolve` will follow."""
JUMPS_PER_PIECE = 64.0
"""`evolve` cuts the duration so that exp(−jumps) is far from underflow."""


def divergence(probs: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """div_x(p u) = Σ_{z≠x} [p(x) u(z, x) − p(z) u(x, z)]: outflow − inflow  [C1, Q4].

    The entry u^i(z^i, z), of the value that stays, is not used. The velocity is read only where
    p(z) > 0.

    Args:
        probs: p, [Z], non-negative; it need not sum to 1.
        velocity: u, [Z, N, S], finite where p > 0; negative entries are allowed [V6].

    Returns:
        [Z], summing to 0.
    """
    probs = check_measure("probs", probs)
    velocity = _check_field("velocity", velocity, probs)
    moves = _moves(velocity)
    return probs * moves.sum(axis=(1, 2)) - _inflow(probs, moves)


def generator(velocity: np.ndarray) -> np.ndarray:
    """G[x, z] = u(x, z) = Σ_i 1[x^{≠i} = z^{≠i}] u^i(x^i, z): ∂_t p = G p  [V1, C1].

    Args:
        velocity: u, [Z, N, S], whose values sum to 0 in every state.

    Returns:
        [Z, Z]; columns sum to 0.

    Raises:
        ValueError: if there are more than `MAX_KERNEL_STATES` states; if the values of a state do
            not sum to 0.
    """
    velocity = _check_field("velocity", velocity)
    _check_row_sums(velocity)
    total, num_positions, num_states = velocity.shape
    check_square(total, "A generator")
    z, here = states(num_states, num_positions), np.arange(total)
    field = np.zeros((total, total))
    for i in range(num_positions):
        stride = num_states ** (num_positions - 1 - i)
        for value in range(num_states):
            field[here + (value - z[:, i]) * stride, here] += velocity[:, i, value]
    return field


def kernel(step_probs: np.ndarray) -> np.ndarray:
    """P[x, z] = Π_i step_probs[z, i, x^i]: one parallel step  [Q1, Q5].

    Args:
        step_probs: [Z, N, S], the distribution δ_{z^i} + u^i(·, z) of each position's next value.

    Returns:
        [Z, Z]; columns sum to 1.

    Raises:
        ValueError: if there are more than `MAX_KERNEL_STATES` states; if a row is not a
            distribution.
    """
    step_probs = _check_field("step_probs", step_probs)
    check_square(len(step_probs), "A kernel")
    check_distributions("step_probs", step_probs)
    return products(step_probs).T.copy()


def push_forward(probs: np.ndarray, step_probs: np.ndarray) -> np.ndarray:
    """(P p)(x) = Σ_z Π_i step_probs[z, i, x^i] p(z)  [Q5].

    P is never stored. With x = (left half, right half) the result is the matrix product Σ_z p(z)
    L[z, left] R[z, right] of two thin arrays.

    Args:
        probs: p, [Z].
        step_probs: [Z, N, S], distributions where p(z) > 0; other rows are not read.

    Returns:
        [Z].
    """
    probs = check_distributions("probs", probs)
    step_probs = _check_field("step_probs", step_probs, probs)
    live = probs > 0.0
    weights, rows = probs[live], check_distributions("step_probs", step_probs[live])
    half = rows.shape[1] // 2
    left, right = products(rows[:, :half]), products(rows[:, half:])
    return ((left * weights[:, None]).T @ right).reshape(-1)


def evolve(
    probs: np.ndarray,
    velocity: np.ndarray,
    duration: float | np.ndarray,
    tail: float = 1e-15,
) -> np.ndarray:
    """exp(duration · G) p for a rate that does not depend on time, by uniformization  [V1].

    With Λ the largest exit rate and P = I + G/Λ, a stochastic matrix, exp(sG) p = Σ_n e^{−Λs}
    (Λs)^n / n! · P^n p. The sum ends when the Poisson mass that is left out is at most `tail`. Each
    summand has mass 1, so the L¹ error is at most `tail` (plus rounding). G is never stored, all
    summands are non-negative, and nothing is renormalized.

    Args:
        probs: p, [Z].
        velocity: u, [Z, N, S], a rate in every state: non-negative for v ≠ z^i, summing to 0.
        duration: A number ≥ 0, or several that do not fall, [T]: they share the powers of P.
        tail: A number in (0, 1).

    Returns:
        [Z], or [T, Z] for several durations.

    Raises:
        ValueError: if u is not a rate; if a duration is negative, infinite or below the one before
            it; if more than `MAX_JUMPS` jumps are expected.
    """
    probs = check_distributions("probs", probs)
    velocity = _check_field("velocity", velocity)
    check_shape("probs", probs, velocity.shape[:1])
    _check_row_sums(velocity)
    rates = _moves(velocity)
    if np.min(rates) < 0.0:
        rule = "`velocity` must be non-negative for v != z^i"
        raise RefusedError(f"{rule}; got min velocity = {np.min(rates)}.")
    ends = np.atleast_1d(check_real("duration", np.asarray(duration)))
    if ends.ndim != 1 or ends.size == 0 or not np.all((ends >= 0.0) & (ends < math.inf)):
        raise RefusedError(f"`duration` must lie in [0, inf); got duration = {duration}.")
    if np.any(np.diff(ends) < 0.0):
        raise RefusedError(f"`duration` must not fall; got duration = {duration}.")
    if not 0.0 < tail < 1.0:
        raise RefusedError(f"`tail` must lie in (0, 1); got tail = {tail}.")
    exit_rates = rates.sum(axis=(1, 2))
    largest = float(np.max(exit_rates))
    jumps = largest * float(ends[-1])
    if jumps > MAX_JUMPS:
        raise RefusedError(
            f"`duration` times the largest exit rate must be at most {MAX_JUMPS:g}; got duration * "
            f"rate = {jumps}."
        )
    evolved = np.tile(probs, (len(ends), 1))
    num_pieces = math.ceil(jumps / JUMPS_PER_PIECE)
    for begin, end in pairwise(np.linspace(0.0, ends[-1], num_pieces + 1)):
        inside = (begin < ends) & (ends <= end)
        # The last row goes on to the next piece; of all rows, it has the most jumps.
        means = largest * (np.append(ends[inside], end) - begin)
        rows = _uniformized(probs, rates, exit_rates, means, tail / num_pieces)
        evolved[inside], probs = rows[:-1], rows[-1]
    return evolved if np.ndim(duration) else evolved[0]


def _uniformized(
    probs: np.ndarray, rates: np.ndarray, exit_rates: np.ndarray, means: np.ndarray, tail: float
) -> np.ndarray:
    """Σ_n e^{−m} m^n / n! · P^n p for each m of `means`, the last of which is the largest."""
    largest, mean = np.max(exit_rates), means[-1]
    stays = 1.0 - exit_rates / largest
    term, weights, count = probs, np.exp(-means), 0
    rows = weights[:, None] * term
    # Poisson mass beyond n: at most w_{n+1} (1 + m/(n+2) + …) = w_{n+1} / (1 − m/(n+2)).
    while (
        count + 2.0 <= mean
        or weights[-1] * mean / (count + 1.0) / (1.0 - mean / (count + 2.0)) > tail
    ):
        count += 1
        weights = weights * (means / count)
        term = stays * term + _inflow(term, rates) / largest  # P^n p
        rows += weights[:, None] * term
    return rows


def sequence_probs(conditionals: np.ndarray) -> np.ndarray:
    """The distribution of the sequences drawn token by token: p(x) = Π_t c[x, t, x^t]  [S1].

    Args:
        conditionals: c, [Z, N, V]; entry [x, t] is the distribution of token t given the first t
            tokens of x, and depends only on them. It is not read where they have probability 0.

    Returns:
        [Z], Z = V^N.

    Raises:
        ValueError: if an entry that is read is not a distribution, or depends on token t or later
            ones.
    """
    rows = _check_axes("conditionals", conditionals)
    total, num_positions, num_tokens = rows.shape
    x, here = states(num_tokens, num_positions), np.arange(total)
    probs = np.ones(total)
    for t in range(num_positions):
        live = probs > 0.0
        read = check_distributions("conditionals", rows[live, t])
        first = np.arange(total) // num_tokens ** (num_positions - t)
        first = rows[first * num_tokens ** (num_positions - t), t][live]
        if np.max(np.abs(read - first)) > SUM_TOLERANCE:
            raise RefusedError(
                "`conditionals` must depend on the tokens before t alone; got a difference of "
                f"{np.max(np.abs(read - first))} at t = {t} between sequences with equal prefixes."
            )
        probs = np.multiply(probs, rows[here, t, x[:, t]], out=np.zeros(total), where=live)
    return probs


def _moves(velocity: np.ndarray) -> np.ndarray:
    """The velocity [Z, N, S] with the value that stays, v = z^i, set to 0."""
    z = states(velocity.shape[2], velocity.shape[1])
    moves = velocity.copy()
    np.put_along_axis(moves, z[:, :, None], 0.0, axis=2)
    return moves


def _inflow(probs: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Σ_{z≠x} p(z) u(x, z)."""
    _, num_positions, num_states = moves.shape
    flux = probs[:, None, None] * moves  # [z, i, v]
    inflow = np.zeros(len(probs))
    for i in range(num_positions):
        # z = (left, z^i, right) goes to x = (left, v, right): sum over z^i, put v in its place
        arrived = flux[:, i].reshape(num_states**i, num_states, -1, num_states).sum(axis=1)
        inflow += arrived.swapaxes(1, 2).reshape(-1)
    return inflow


def products(rows: np.ndarray) -> np.ndarray:
    """Π_i rows[z, i, x^i] for all sub-sequences x, [rows, S^n]; [rows, 1] of ones if n = 0."""
    products = np.ones((len(rows), 1))
    for i in range(rows.shape[1]):
        products = (products[:, :, None] * rows[:, i, None, :]).reshape(len(rows), -1)
    return products


def _check_axes(name: str, field: np.ndarray) -> np.ndarray:
    """A field [Z, N, S] in float64 with Z = S^N."""
    field = check_real(name, field)
    if field.ndim != 3 or 0 in field.shape:
        rule = f"`{name}` must have axes [Z, N, S]"
        raise RefusedError(f"{rule}; got {name}.shape = {list(field.shape)}.")
    total = check_states(field.shape[2], field.shape[1])
    check_shape(name, field, (total, *field.shape[1:]))
    return field


def _check_field(name: str, field: np.ndarray, probs: np.ndarray | None = None) -> np.ndarray:
    """Check that a field [Z, N, S] is finite where `probs` > 0, everywhere if there are none.

    The result is 0 where it need not be finite.
    """
    field = _check_axes(name, field)
    live = np.ones(len(field), dtype=bool)
    if probs is not None:
        check_shape("probs", probs, (len(field),))
        live = probs > 0.0
    if not np.all(np.isfinite(field[live])):
        raise RefusedError(
            f"`{name}` must be finite where `probs` are positive; got NaN or infinite values there."
        )
    return np.where(live[:, None, None], field, 0.0)


def _check_row_sums(velocity: np.ndarray) -> None:
    sums = np.abs(velocity.sum(axis=2))
    if np.max(sums) > RATE_TOLERANCE * max(1.0, float(np.max(np.abs(velocity)))):
        raise RefusedError(
            "`velocity` must sum to 0 over v at every state; got the largest |sum| = "
            f"{np.max(sums)}. Set it to 0 off the support of a path."
        )
