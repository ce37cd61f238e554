"""Sequences, their distributions, and information: entropy, divergence, total correlation."""

import numpy as np

from dfm_jax.exact.checks import (
    RefusedError,
    check_distribution,
    check_distributions,
    check_measure,
    check_positions,
    check_shape,
    check_size,
    check_states,
)


def states(num_states: int, num_positions: int) -> np.ndarray:
    """All S^N sequences in lexicographic order, position 0 slowest.

    Row z is the sequence with flat index z; every distribution [Z] of this package has this order.

    Returns:
        int64 array [Z, N].

    Raises:
        ValueError: if there are more than `MAX_STATES` sequences; the message has the size in
            bytes.
    """
    check_states(num_states, num_positions)
    return np.indices((num_states,) * num_positions).reshape(num_positions, -1).T.copy()


def marginal(
    probs: np.ndarray, positions: tuple[int, ...], num_states: int, num_positions: int
) -> np.ndarray:
    """The distribution of a sub-sequence: p(x^A) = Σ_{x^{∉A}} p(x).

    Args:
        probs: The distribution, [Z], Z = S^N.
        positions: A, strictly increasing; the empty tuple gives [1.].
        num_states: S.
        num_positions: N.

    Returns:
        [S^|A|], flat.
    """
    probs = check_distribution("probs", probs, num_states, num_positions)
    positions = check_positions("positions", positions, num_positions)
    dropped = tuple(i for i in range(num_positions) if i not in positions)
    return probs.reshape((num_states,) * num_positions).sum(axis=dropped).reshape(-1)


def conditionals(
    probs: np.ndarray, num_states: int, num_positions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Next-token distributions q(v | x^{<t}) = q(x^{<t} v) / q(x^{<t})  [A3].

    Args:
        probs: q, [Z], Z = V^N.
        num_states: V (or S, for a distribution of states; then read S for V below).
        num_positions: N.

    Returns:
        The distributions [Z, N, V], where entry [x, t] depends only on the first t tokens of x, and
        the support, bool [Z, N]: q(x^{<t}) > 0. Off the support the distribution is all zeros.
    """
    probs = check_distribution("probs", probs, num_states, num_positions)
    total = probs.size
    check_size((total, num_positions, num_states), "The next-token distributions")
    rows = np.zeros((total, num_positions, num_states))
    support = np.zeros((total, num_positions), dtype=bool)
    for t in range(num_positions):
        joint = probs.reshape(num_states**t, num_states, -1).sum(axis=2)  # q(x^{<t}, v)
        prefix = joint.sum(axis=1)
        live = prefix > 0.0
        next_token = np.divide(
            joint, prefix[:, None], out=np.zeros_like(joint), where=live[:, None]
        )
        rows[:, t] = np.repeat(next_token, num_states ** (num_positions - t), axis=0)
        support[:, t] = np.repeat(live, num_states ** (num_positions - t))
    return rows, support


def token_conditionals(
    probs: np.ndarray, known: np.ndarray, num_states: int, num_positions: int
) -> tuple[np.ndarray, np.ndarray]:
    """The distribution of each token given the known positions: q(x^i = v | x^known)  [P7].

    At a known position it is the point mass at x^i.

    Args:
        probs: The distribution, [Z], Z = V^N.
        known: Which positions are known, bool [N].
        num_states: V.
        num_positions: N.

    Returns:
        The distributions [Z, N, V], where entry [x, i] depends only on x^known, and the support,
        bool [Z]: q(x^known) > 0. Off the support the distributions are all zeros.
    """
    probs = check_distribution("probs", probs, num_states, num_positions)
    known = np.asarray(known)
    check_shape("known", known, (num_positions,))
    if known.dtype != bool:
        raise RefusedError(f"`known` must be bool; got known.dtype = {known.dtype}.")
    check_size((probs.size, num_positions, num_states), "The token distributions")
    cube = (num_states,) * num_positions
    hidden = tuple(i for i in range(num_positions) if not known[i])
    given = probs.reshape(cube).sum(axis=hidden, keepdims=True)
    support = np.broadcast_to(given > 0.0, cube).reshape(-1)
    rows = np.zeros((probs.size, num_positions, num_states))
    for i in range(num_positions):
        if known[i]:
            rows[:, i] = np.eye(num_states)[states(num_states, num_positions)[:, i]]
            rows[~support, i] = 0.0
            continue
        others = tuple(j for j in hidden if j != i)
        joint = probs.reshape(cube).sum(axis=others, keepdims=True)
        joint = np.moveaxis(joint[..., None], i, -1)  # the value of token i, last
        joint = joint.reshape((*given.shape, num_states))
        ratio = np.divide(
            joint, given[..., None], out=np.zeros_like(joint), where=given[..., None] > 0.0
        )
        rows[:, i] = np.broadcast_to(ratio, (*cube, num_states)).reshape(-1, num_states)
    return rows, support


def embed(probs: np.ndarray, num_tokens: int, num_states: int, num_positions: int) -> np.ndarray:
    """A distribution of data sequences as one of state sequences; others have mass 0.

    Args:
        probs: The distribution, [Z1], Z1 = V^N.
        num_tokens: V.
        num_states: S ≥ V.
        num_positions: N.

    Returns:
        [Z], Z = S^N.
    """
    probs = check_distribution("probs", probs, num_tokens, num_positions)
    if num_states < num_tokens:
        rule = f"`num_states` must be at least {num_tokens}"
        raise RefusedError(f"{rule}; got num_states = {num_states}.")
    embedded = np.zeros(check_states(num_states, num_positions))
    strides = num_states ** np.arange(num_positions - 1, -1, -1)
    embedded[states(num_tokens, num_positions) @ strides] = probs
    return embedded


def entropy(p: np.ndarray) -> np.ndarray:
    """H(p) = −Σ_x p(x) log p(x) in nats, 0 log 0 = 0, along the last axis.

    A row of zeros (a distribution off its support) has entropy 0.

    Args:
        p: Distributions, [..., Z].

    Returns:
        [...]; a scalar for one distribution.
    """
    p = check_distributions("p", p, or_zero=True)
    return -np.sum(p * np.log(p, out=np.zeros_like(p), where=p > 0.0), axis=-1)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) = Σ_x p(x) log(p(x) / q(x)) in nats, along the last axis.

    0 log(0/q) = 0, and it is +∞ where p(x) > 0 = q(x). It is never NaN, because log p − log q is
    computed only where both are positive. A row of zeros in p (off its support) gives 0.

    Args:
        p: Distributions, [..., Z].
        q: Distributions, [..., Z], of the same shape or broadcastable.

    Returns:
        [...], in [0, ∞] up to rounding.
    """
    p, q = np.broadcast_arrays(
        check_distributions("p", p, or_zero=True), check_distributions("q", q, or_zero=True)
    )
    both = (p > 0.0) & (q > 0.0)
    log_p = np.log(p, out=np.zeros(p.shape), where=both)
    log_q = np.log(q, out=np.zeros(q.shape), where=both)
    missed = np.any((p > 0.0) & ~(q > 0.0), axis=-1)
    return np.where(missed, np.inf, np.sum(p * (log_p - log_q), axis=-1))[()]


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """TV(p, q) = ½ Σ_x |p(x) − q(x)|, along the last axis; p, q: [..., Z]."""
    p, q = check_distributions("p", p, or_zero=True), check_distributions("q", q, or_zero=True)
    return 0.5 * np.sum(np.abs(p - q), axis=-1)


def mutual_information(joint: np.ndarray) -> np.ndarray:
    """I(A; B) = KL(p(a, b) ‖ p(a) p(b)) in nats  [D10].

    Args:
        joint: p(a, b), [A, B], which sums to 1.
    """
    joint = _check_joint(joint)
    live = joint > 0.0
    ratio = np.log(joint, out=np.zeros_like(joint), where=live)
    for axis in (0, 1):  # one logarithm at a time: p(a) p(b) may underflow where p(a, b) > 0
        side = np.broadcast_to(joint.sum(axis=axis, keepdims=True), joint.shape)
        ratio -= np.log(side, out=np.zeros_like(joint), where=live)
    return np.sum(joint * ratio)


def conditional_entropy(joint: np.ndarray) -> np.ndarray:
    """H(A | B) = −Σ_{a,b} p(a, b) log(p(a, b) / p(b)) in nats.

    Args:
        joint: p(a, b), [A, B], which sums to 1.
    """
    joint = _check_joint(joint)
    given = np.broadcast_to(joint.sum(axis=0), joint.shape)
    live = joint > 0.0
    log_joint = np.log(joint, out=np.zeros_like(joint), where=live)
    return -np.sum(joint * (log_joint - np.log(given, out=np.zeros_like(joint), where=live)))


def total_correlation(probs: np.ndarray, num_states: int, num_positions: int) -> np.ndarray:
    """TC(X) = Σ_i H(X^i) − H(X) in nats: the loss if all tokens are drawn independently  [Q6].

    Args:
        probs: The distribution, [Z], Z = S^N.
        num_states: S.
        num_positions: N.
    """
    everywhere = tuple(range(num_positions))
    return conditional_total_correlation(probs, everywhere, (), num_states, num_positions)


def conditional_total_correlation(
    probs: np.ndarray,
    block: tuple[int, ...],
    given: tuple[int, ...],
    num_states: int,
    num_positions: int,
) -> np.ndarray:
    """E_q TC(X^B | X^A) = Σ_{i∈B} H(X^i | X^A) − H(X^B | X^A) in nats  [Q6].

    Args:
        probs: q, [Z], Z = S^N.
        block: B, strictly increasing.
        given: A, strictly increasing, disjoint from B; may be empty.
        num_states: S.
        num_positions: N.
    """
    block = check_positions("block", block, num_positions)
    given = check_positions("given", given, num_positions)
    if set(block) & set(given):
        rule = "`block` and `given` must be disjoint"
        raise RefusedError(f"{rule}; got block = {block} and given = {given}.")

    def entropy_of(positions: tuple[int, ...]) -> np.ndarray:
        return entropy(marginal(probs, tuple(sorted(positions)), num_states, num_positions))

    at_given = entropy_of(given)  # H(X^i | X^A) = H(X^i, X^A) − H(X^A)
    single = sum(entropy_of((i, *given)) - at_given for i in block)
    return single - (entropy_of(block + given) - at_given)


def _check_joint(joint: np.ndarray) -> np.ndarray:
    joint = check_measure("joint", joint)
    if joint.ndim != 2:
        rule = "`joint` must have two axes [A, B]"
        raise RefusedError(f"{rule}; got joint.shape = {list(joint.shape)}.")
    check_distributions("joint", joint.reshape(-1))
    return joint
