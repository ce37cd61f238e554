"""What a state z = X_t tells about the rest: posteriors of tokens and of parts; marginalization."""

from collections.abc import Iterator

import numpy as np

from dfm_jax.exact.checks import (
    RefusedError,
    check_distributions,
    check_real,
    check_shape,
    check_size,
    check_states,
)
from dfm_jax.exact.couplings import (
    Coupling,
    FactoredCoupling,
    check_factored,
    moved_on,
    starts,
    transport,
)
from dfm_jax.exact.paths import check_parts, check_token_path, pairs


def pair_posterior(coupling: Coupling, token_path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(x_0^i = a, x_1^i = b | X_t = z) for each token  [P5].

    Args:
        coupling: π, [Z0, Z1] or a `FactoredCoupling`.
        token_path: W, real [N, S, V, S].

    Returns:
        The posterior [Z, N, S, V], zero off the support, and the support, bool [Z]: p_t(z) > 0.
    """
    token_path = check_token_path(check_real("token_path", token_path))
    num_positions, num_states, num_tokens, _ = token_path.shape
    shape = (num_states**num_positions, num_positions, num_states, num_tokens)
    check_size(shape, "The pair posterior")
    posterior = np.empty(shape)
    path, of_positions = _pair_posteriors(coupling, token_path)
    for i, pair in enumerate(of_positions):
        posterior[:, i] = pair
    return posterior, path > 0.0


def posteriors(
    coupling: Coupling, token_path: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p_{1|t}^i(b | z) and p_{0|t}^i(a | z): the marginals of `pair_posterior`  [P5].

    Args:
        coupling: π, [Z0, Z1] or a `FactoredCoupling`.
        token_path: W, real [N, S, V, S].

    Returns:
        p_{1|t} [Z, N, V] and p_{0|t} [Z, N, S], zero off the support, and the support, bool [Z].
    """
    token_path = check_token_path(check_real("token_path", token_path))
    num_positions, num_states, num_tokens, _ = token_path.shape
    total = num_states**num_positions
    posterior_1 = np.empty((total, num_positions, num_tokens))
    posterior_0 = np.empty((total, num_positions, num_states))
    path, of_positions = _pair_posteriors(coupling, token_path)
    for i, pair in enumerate(of_positions):
        posterior_1[:, i], posterior_0[:, i] = pair.sum(axis=1), pair.sum(axis=2)
    return posterior_1, posterior_0, path > 0.0


def marginal_velocity(pair_posterior: np.ndarray, token_velocity: np.ndarray) -> np.ndarray:
    """u^i(v, z) = Σ_{a,b} P(a, b | z) U[i, a, b, z^i, v]  [V4].

    U is read only where P(a, b | z) > 0, so it may be NaN or infinite at a current value z^i that
    the pair (a, b) never shows. Off the support u is 0.

    Args:
        pair_posterior: P, [Z, N, S, V].
        token_velocity: U, [N, S, V, S, S]; U[i, a, b, s, v] moves a token from s toward v.

    Returns:
        [Z, N, S].

    Raises:
        ValueError: if U is not finite where it is read.
    """
    posterior = check_real("pair_posterior", pair_posterior)
    token_velocity = check_real("token_velocity", token_velocity)
    if posterior.ndim != 4:
        raise RefusedError(
            "`pair_posterior` must have axes [Z, N, S, V]; got pair_posterior.shape = "
            f"{list(posterior.shape)}."
        )
    total, num_positions, num_states, num_tokens = posterior.shape
    num_pairs = num_states * num_tokens
    expected = check_states(num_states, num_positions)
    check_shape("pair_posterior", posterior, (expected, *posterior.shape[1:]))
    check_distributions(
        "pair_posterior (over pairs)", posterior.reshape(-1, num_pairs), or_zero=True
    )
    axes = (num_positions, num_states, num_tokens, num_states, num_states)
    check_shape("token_velocity", token_velocity, axes)
    velocity = np.empty((total, num_positions, num_states))
    for i in range(num_positions):
        # z = (left, z^i, right): every current value z^i is a matrix of its own
        around = (num_states**i, num_states, num_states ** (num_positions - 1 - i))
        chances = posterior[:, i].reshape(*around, num_pairs).swapaxes(0, 1)
        chances = chances.reshape(num_states, -1, num_pairs)  # [z^i, (left, right), (a, b)]
        moves = token_velocity[i].reshape(num_pairs, num_states, num_states).swapaxes(0, 1)
        read = np.any(chances > 0.0, axis=1)
        unfit = read & ~np.isfinite(moves).all(axis=-1)
        if unfit.any():
            raise RefusedError(
                "`token_velocity` must be finite where the pair posterior is positive; got a "
                f"value that is not at position {i} with the current value "
                f"{np.argmax(unfit.any(axis=1))}."
            )
        found = chances @ np.where(read[:, :, None], moves, 0.0)
        found = found.reshape(num_states, around[0], around[2], num_states).swapaxes(0, 1)
        velocity[:, i] = found.reshape(total, num_states)
    return velocity


def expert_posterior(weights: np.ndarray, paths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """r_k(z) = w_k p^k(z) / Σ_j w_j p^j(z)  [D3].

    Args:
        weights: w, [K].
        paths: p^k, [K, Z], the distribution of the state at one time t for each part.

    Returns:
        r [Z, K], zero off the support, and the support, bool [Z].
    """
    weights, paths = check_parts(weights, paths)
    joint = (weights[:, None] * paths).T
    path = joint.sum(axis=1)
    support = path > 0.0
    where = support[:, None]
    return np.divide(joint, path[:, None], out=np.zeros_like(joint), where=where), support


def _pair_posteriors(
    coupling: Coupling, token_path: np.ndarray
) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """p_t(z), [Z], and the pair posterior of position 0, 1, …: one [Z, S, V] each.

    The kernel of position i is replaced by the identity, which keeps its pair (a, b), or its b,
    as the value of that position; W[i] is then applied by hand.
    """
    num_positions, num_states, num_tokens, _ = token_path.shape
    probs, kernels = pairs(coupling, token_path)
    if isinstance(coupling, FactoredCoupling):
        start = starts(*check_factored(coupling)).swapaxes(1, 2)  # P(a | b), [N, S, V]
    else:
        start = np.ones((num_positions, num_states, num_tokens))
    path = transport(probs, kernels)
    inside = (path > 0.0)[:, None, None]

    def at(i: int) -> np.ndarray:
        check_size((path.size, num_states, num_tokens), "The pair posterior of a position")
        kept = _all_but_one(probs, kernels, i)  # [left, C, right], left = z^{<i}, right = z^{>i}
        left, _, right = kept.shape
        kept = kept.reshape(left, -1, num_tokens, right)  # [left, a, b, right]; factored: 1 for a
        kept = np.broadcast_to(kept, (left, num_states, num_tokens, right))
        joint = np.einsum("labr,abv->lvrab", kept, start[i][:, :, None] * token_path[i])
        joint = joint.reshape(path.size, num_states, num_tokens)
        return np.divide(joint, path[:, None, None], out=np.zeros_like(joint), where=inside)

    return path, map(at, range(num_positions))


def _all_but_one(probs: np.ndarray, kernels: np.ndarray, i: int) -> np.ndarray:
    """The joint of the kept pair at position i and the states elsewhere, [S^i, C, S^(N-1-i)]."""
    num_positions, num_kept, num_states = kernels.shape
    rest = probs
    for j, kernel in enumerate(kernels):
        rest = rest.reshape(num_kept, -1).T if j == i else moved_on(rest, kernel)
    return rest.reshape(num_states**i, num_kept, num_states ** (num_positions - 1 - i))
