"""Couplings π(x_0, x_1) of source and data: dense, or factored for larger spaces."""

from typing import NamedTuple

import numpy as np

from dfm_jax.exact.checks import (
    MAX_DENSE_STATES,
    RefusedError,
    check_distribution,
    check_distributions,
    check_measure,
    check_shape,
    check_states,
)
from dfm_jax.exact.distributions import states


class FactoredCoupling(NamedTuple):
    """π(x_0, x_1) = q(x_1) Π_{i free} s^i(x_0^i) Π_{i context} 1[x_0^i = x_1^i]  [A5].

    At the free positions, the source is a product distribution that is independent of the data; at
    the context it equals the data. With s^i = δ_m it is the all-mask source with a prompt.

    Attributes:
        data: q, [Z1], Z1 = V^N.
        source_tokens: s, [N, S]; rows at context positions are not read.
        context: bool [N].
    """

    data: np.ndarray
    source_tokens: np.ndarray
    context: np.ndarray


Coupling = np.ndarray | FactoredCoupling
"""A joint distribution [Z0, Z1] of (x_0, x_1), Z0 = S^N ≤ 512, or a `FactoredCoupling`."""


def dense(coupling: Coupling) -> np.ndarray:
    """The joint distribution π(x_0, x_1) as an array [Z0, Z1].

    Raises:
        ValueError: if Z0 = S^N exceeds `MAX_DENSE_STATES`; the message has the size in bytes.
    """
    if not isinstance(coupling, FactoredCoupling):
        return check_joint(coupling)
    coupling, num_tokens = check_factored(coupling)
    num_positions, num_states = coupling.source_tokens.shape
    check_dense_size(num_states**num_positions, num_tokens**num_positions)
    x_0, x_1 = states(num_states, num_positions), states(num_tokens, num_positions)
    joint = np.broadcast_to(coupling.data, (len(x_0), len(x_1)))
    for i, start in enumerate(starts(coupling, num_tokens)):
        joint = joint * start[x_1[:, i]][:, x_0[:, i]].T
    return joint


def source_probs(coupling: Coupling) -> np.ndarray:
    """The source distribution p(x_0) = Σ_{x_1} π(x_0, x_1), [Z0]  [P4]."""
    if not isinstance(coupling, FactoredCoupling):
        return check_joint(coupling).sum(axis=1)
    coupling, num_tokens = check_factored(coupling)
    num_positions, num_states = coupling.source_tokens.shape
    check_states(num_states, num_positions)
    return transport(coupling.data, starts(coupling, num_tokens))


def data_probs(coupling: Coupling) -> np.ndarray:
    """The data distribution q(x_1) = Σ_{x_0} π(x_0, x_1), [Z1]  [P4]."""
    if not isinstance(coupling, FactoredCoupling):
        return check_joint(coupling).sum(axis=0)
    return check_factored(coupling)[0].data.copy()


def starts(coupling: FactoredCoupling, num_tokens: int) -> np.ndarray:
    """P(x_0^i = a | x_1^i = b) of a factored coupling, [N, V, S]: s^i(a), or δ_b(a) in context."""
    num_positions, num_states = coupling.source_tokens.shape
    free = np.broadcast_to(
        coupling.source_tokens[:, None, :], (num_positions, num_tokens, num_states)
    )
    kept = np.eye(num_tokens, num_states)
    return np.where(np.asarray(coupling.context)[:, None, None], kept, free)


def transport(probs: np.ndarray, token_kernels: np.ndarray) -> np.ndarray:
    """Σ_y probs(y) Π_i R[i, y^i, x^i] for all x, one position at a time.

    Args:
        probs: [A^N].
        token_kernels: R, [N, A, B], real or complex.

    Returns:
        [B^N].
    """
    rest = probs
    for kernel in token_kernels:
        rest = moved_on(rest, kernel)
    return rest.reshape(-1)


def moved_on(rest: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Σ_y rest(y, z) R(y, x), with x last: the first of several axes, of length A, goes to the end.

    Args:
        rest: [A · Z] in any shape.
        kernel: R, [A, B], real or complex.

    Returns:
        [Z, B].
    """
    return rest.reshape(len(kernel), -1).T @ kernel


def check_joint(coupling: np.ndarray) -> np.ndarray:
    """A dense coupling in float64, checked to be a distribution over pairs that is small enough."""
    coupling = check_measure("coupling", coupling)
    if coupling.ndim != 2:
        raise RefusedError(
            "`coupling` must be a FactoredCoupling or have two axes [Z0, Z1]; got coupling.shape "
            f"= {list(coupling.shape)}."
        )
    check_dense_size(*coupling.shape)
    check_distributions("coupling (over all pairs)", coupling.reshape(-1))
    return coupling


def check_factored(coupling: FactoredCoupling) -> tuple[FactoredCoupling, int]:
    """A factored coupling in float64, and its number of data tokens V."""
    context = np.asarray(coupling.context)
    source_tokens = np.asarray(coupling.source_tokens)
    if source_tokens.ndim != 2:
        raise RefusedError(
            "`source_tokens` must have two axes [N, S]; got source_tokens.shape = "
            f"{list(source_tokens.shape)}."
        )
    num_positions, num_states = source_tokens.shape
    check_shape("context", context, (num_positions,))
    if context.dtype != bool:
        raise RefusedError(f"`context` must be bool; got context.dtype = {context.dtype}.")
    size = np.size(coupling.data)
    num_tokens = round(size ** (1.0 / num_positions))
    if num_tokens**num_positions != size or num_tokens > num_states:
        raise RefusedError(
            f"`data` must have V ** {num_positions} entries with V <= {num_states}; got data.size "
            f"= {size}."
        )
    data = check_distribution("data", coupling.data, num_tokens, num_positions)
    if not np.all(context):
        check_distributions("source_tokens", source_tokens[~context])
    source_tokens = np.asarray(source_tokens, dtype=np.float64)
    return FactoredCoupling(data, source_tokens, context), num_tokens


def check_dense_size(num_sources: int, num_data: int) -> None:
    """Refuse a dense coupling of more than `MAX_DENSE_STATES` sources, with its size in bytes."""
    if num_sources > MAX_DENSE_STATES:
        raise RefusedError(
            f"A dense coupling must have at most {MAX_DENSE_STATES} sequences x_0; got sequences = "
            f"{num_sources:,}. {num_sources:,} x {num_data:,} pairs would take "
            f"{8 * num_sources * num_data:,} bytes: use FactoredCoupling."
        )
