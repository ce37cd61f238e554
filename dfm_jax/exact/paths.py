"""Token paths W[i, a, b, v] = p_t^i(v | x_0^i = a, x_1^i = b), and the marginal path they make.

W is [N, S, V, S]. It may be complex: everything here is linear in each W[i], so the complex step W
+ ih Ẇ differentiates it up to rounding.
"""

import numpy as np
from numpy.typing import ArrayLike

from dfm_jax.exact.checks import (
    SUM_TOLERANCE,
    RefusedError,
    check_distributions,
    check_measure,
    check_real,
    check_shape,
    check_size,
    check_states,
)
from dfm_jax.exact.couplings import (
    Coupling,
    FactoredCoupling,
    check_factored,
    check_joint,
    starts,
    transport,
)

COMPLEX_STEP = 1e-30
"""h in f(W + ih Ẇ): h² is far below rounding, and nothing is subtracted."""


def mixture_token_path(kappa: np.ndarray, num_tokens: int, num_states: int) -> np.ndarray:
    """W[i, a, b, v] = (1 − κ^i) δ_a(v) + κ^i δ_b(v)  [P3].

    Args:
        kappa: κ of each position, [N], in [0, 1]; if it is complex, its real part is.
        num_tokens: V.
        num_states: S ≥ V.

    Returns:
        [N, S, V, S], complex if `kappa` is.
    """
    kappa = _number("kappa", kappa)
    if kappa.ndim != 1 or kappa.size == 0:
        raise RefusedError(
            f"`kappa` must have one axis [N]; got kappa.shape = {list(kappa.shape)}."
        )
    outside = ~((np.real(kappa) >= 0.0) & (np.real(kappa) <= 1.0))
    if np.any(outside):
        raise RefusedError(f"`kappa` must lie in [0, 1]; got kappa = {kappa[outside][0]}.")
    if num_states < num_tokens:
        rule = f"`num_states` must be at least {num_tokens}"
        raise RefusedError(f"{rule}; got num_states = {num_states}.")
    check_size((kappa.size, num_states, num_tokens, num_states), "A token path")
    kappa = kappa[:, None, None, None]
    at_source = np.eye(num_states)[:, None, :]
    at_data = np.eye(num_tokens, num_states)[None, :, :]
    return (1.0 - kappa) * at_source + kappa * at_data


def convex_token_path(base_probs: np.ndarray, kappa: np.ndarray) -> np.ndarray:
    """W[i, a, b, v] = Σ_j κ^{j,i} h^j[i, a, b, v], κ ≥ 0, Σ_j κ^{j,i} = 1  [P2].

    Args:
        base_probs: h, [J, N, S, V, S], distributions over the last axis.
        kappa: κ, [J, N]; if it is complex, its real part is convex.

    Returns:
        [N, S, V, S].
    """
    base_probs = check_distributions("base_probs", base_probs)
    kappa = _number("kappa", kappa)
    if base_probs.ndim != 5:
        raise RefusedError(
            "`base_probs` must have axes [J, N, S, V, S]; got base_probs.shape = "
            f"{list(base_probs.shape)}."
        )
    check_shape("kappa", kappa, base_probs.shape[:2])
    check_distributions("kappa (over its first axis)", np.real(kappa).T)
    return np.einsum("jn,jnabv->nabv", kappa, base_probs)


def metric_token_path(
    beta: ArrayLike, distances: np.ndarray, num_positions: int, num_states: int
) -> np.ndarray:
    """W[i, a, b, v] = exp(−β d(v, b)) / Σ_y exp(−β d(y, b)), for any a  [P6].

    β = 0 gives the uniform source, β = ∞ the data. The path has no mask, so S = V.

    Args:
        beta: A number ≥ 0, also infinite; if it is complex, its real part must be ≥ 0.
        distances: d(v, b), [V, V], 0 on the diagonal and positive elsewhere.
        num_positions: N.
        num_states: S = V.

    Returns:
        [N, V, V, V].
    """
    distances = check_measure("distances", distances)
    check_shape("distances", distances, (num_states, num_states))
    diagonal = np.eye(num_states, dtype=bool)
    if np.any((distances == 0.0) != diagonal) or np.any(distances < 0.0):
        raise RefusedError(
            "`distances` must be 0 on the diagonal and positive elsewhere; got distances = "
            f"{distances.tolist()}."
        )
    strength = _number("beta", beta, finite=False)
    if strength.ndim != 0 or not np.real(strength) >= 0.0:
        raise RefusedError(f"`beta` must be a number in [0, inf]; got beta = {strength}.")
    if np.isinf(np.real(strength)):  # 0 · ∞ never formed
        rows = np.eye(num_states)
    else:
        powers = np.exp(-strength * distances.T)  # [b, v]; the largest is d = 0, so none overflows
        rows = powers / powers.sum(axis=-1, keepdims=True)
    check_size((num_positions,) + (num_states,) * 3, "A token path")
    return np.broadcast_to(rows, (num_positions,) + (num_states,) * 3).copy()


def marginal_path(coupling: Coupling, token_path: np.ndarray) -> np.ndarray:
    """p_t(x) = Σ_{x_0,x_1} π(x_0, x_1) Π_i W[i, x_0^i, x_1^i, x^i]  [P1, P4].

    The sum is computed one position at a time. For a factored coupling x_0^i is first summed out of
    W, so it works for every space up to `MAX_STATES` sequences.

    Args:
        coupling: π, [Z0, Z1] or a `FactoredCoupling`.
        token_path: W, [N, S, V, S], real or complex.

    Returns:
        [Z], Z = S^N, complex if W is.
    """
    token_path = check_token_path(token_path)
    probs, kernels = pairs(coupling, token_path)
    return transport(probs, kernels)


def path_derivative(
    coupling: Coupling, token_path: np.ndarray, token_path_rate: np.ndarray
) -> np.ndarray:
    """∂_t p_t(x) = Im p[W + ih Ẇ](x) / h, h = 1e-30: the complex step  [C1].

    p is a polynomial in W with real coefficients, so Im p[W + ih Ẇ] = h ∂_t p + O(h³). The error is
    far below rounding, and no two nearby numbers are subtracted, as in a difference quotient. So
    the result is exact up to rounding.

    Args:
        coupling: π, [Z0, Z1] or a `FactoredCoupling`.
        token_path: W, real [N, S, V, S].
        token_path_rate: Ẇ, real [N, S, V, S]; its last axis sums to 0.

    Returns:
        [Z].
    """
    token_path = check_real("token_path", token_path)
    rate = check_real("token_path_rate", token_path_rate)
    check_shape("token_path_rate", rate, token_path.shape)
    if not np.all(np.isfinite(rate)):
        raise RefusedError("`token_path_rate` must be finite; got NaN or infinite entries.")
    scale = max(1.0, float(np.max(np.abs(rate))))
    if np.max(np.abs(rate.sum(axis=-1))) > SUM_TOLERANCE * scale:
        raise RefusedError(
            "`token_path_rate` must sum to 0 along its last axis; got the largest |sum| = "
            f"{np.max(np.abs(rate.sum(axis=-1)))}."
        )
    stepped = marginal_path(coupling, token_path + 1j * COMPLEX_STEP * rate)
    return np.imag(stepped) / COMPLEX_STEP


def mixed_path(weights: np.ndarray, paths: np.ndarray) -> np.ndarray:
    """p_t(x) = Σ_k w_k p_t^k(x)  [D2]; weights w [K], paths p^k [K, Z], result [Z]."""
    weights, paths = check_parts(weights, paths)
    return weights @ paths


def check_parts(weights: np.ndarray, paths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [K] and paths [K, Z] as distributions in float64."""
    weights, paths = check_distributions("weights", weights), check_distributions("paths", paths)
    if weights.ndim != 1 or paths.ndim != 2 or len(weights) != len(paths):
        raise RefusedError(
            "`weights` and `paths` must have shapes [K] and [K, Z]; got weights.shape = "
            f"{list(weights.shape)} and paths.shape = {list(paths.shape)}."
        )
    return weights, paths


def pairs(coupling: Coupling, token_path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A coupling as a distribution of token pairs [C^N], and the path as kernels [N, C, S].

    A dense coupling has one pair state c = (a, b) per position, C = S·V, in the order of the
    positions. A factored coupling has c = b alone, C = V, because W[i] is summed over a given b
    first.
    """
    num_positions, num_states, num_tokens, _ = token_path.shape
    if isinstance(coupling, FactoredCoupling):
        coupling, tokens = check_factored(coupling)
        check_shape("source_tokens", coupling.source_tokens, (num_positions, num_states))
        check_shape("data", coupling.data, (num_tokens**num_positions,))
        return coupling.data, np.einsum("iba,iabv->ibv", starts(coupling, tokens), token_path)
    joint = check_joint(coupling)
    check_shape("coupling", joint, (num_states**num_positions, num_tokens**num_positions))
    joint = joint.reshape((num_states,) * num_positions + (num_tokens,) * num_positions)
    order = [axis for i in range(num_positions) for axis in (i, num_positions + i)]
    kernels = token_path.reshape(num_positions, num_states * num_tokens, num_states)
    return joint.transpose(order).reshape(-1), kernels


def check_token_path(token_path: np.ndarray) -> np.ndarray:
    """Check that W has axes [N, S, V, S], S ≥ V, that rows are distributions, and its size."""
    token_path = _number("token_path", token_path)
    shape = token_path.shape
    if token_path.ndim != 4 or shape[1] != shape[3] or shape[2] > shape[1]:
        raise RefusedError(
            "`token_path` must have axes [N, S, V, S] with V <= S; got token_path.shape = "
            f"{list(shape)}."
        )
    check_states(shape[1], shape[0])
    check_distributions("token_path", np.real(token_path))
    return token_path


def _number(name: str, value: ArrayLike, *, finite: bool = True) -> np.ndarray:
    """An array of float64 or complex128."""
    value = np.asarray(value)
    value = value.astype(np.complex128 if np.iscomplexobj(value) else np.float64)
    if not (np.isfinite(value) if finite else ~np.isnan(value)).all():
        raise RefusedError(f"`{name}` must be finite; got NaN or infinite entries.")
    return value
