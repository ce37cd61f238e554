"""Posteriors of Markov and hidden Markov data, exact at any length, by message passing.   [S12]

With data from a Markov source the posterior of every masked token is known exactly, so a sampler
can be judged by itself, without a network. `exact.token_posteriors` is the same in NumPy float64;
off the support it gives zeros, and these functions NaN.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dfm_jax.boundary import widened
from dfm_jax.checks import check_distribution, check_tokens, require
from dfm_jax.types import Array, ArrayLike, Float, Probs, Tokens, typed

__all__ = ["hidden_markov_posterior", "markov_posterior"]


@typed
def hidden_markov_posterior(
    x_t: Tokens,
    initial: Float[ArrayLike, " H"],
    transition: Float[ArrayLike, "H H"],
    emission: Float[ArrayLike, "H V"],
) -> Probs:
    """The posterior of every token of a hidden Markov source, given the tokens that are no masks.

        h^0 ~ initial,  h^{i+1} ~ transition[h^i],  x^i ~ emission[h^i]
        p_{1|t}^i(v | x_t) ∝ Σ_h α_i(h) β_i(h) emission[h, v]   [S12]

    α_i(h) = P(h^i = h, revealed tokens before i) and β_i(h) = P(revealed tokens after i | h^i = h).
    One scan computes both, with 2N products of a vector and a matrix. A mask has the id V. A
    revealed token has a point mass. If the revealed tokens have probability 0, the rows of masks
    and all derivatives are NaN, which samplers refuse where they can read values.

    Raises:
        ValueError: if a row is no distribution, or an id lies outside [0, V].
    """
    check_distribution("initial", initial)
    check_distribution("transition", transition)
    check_distribution("emission", emission)
    initial, transition, emission = _alike(initial, transition, emission)
    likelihood = jnp.concatenate([emission.T, jnp.ones_like(emission.T[:1])])
    # One product of both directions: half as many calls, which is what takes the time.
    both = jnp.stack([transition, transition.T])
    return _posterior(
        x_t,
        initial,
        likelihood,
        advance=lambda messages: jnp.einsum("dh,dhk->dk", messages, both, precision="highest"),
        to_tokens=lambda messages: jnp.dot(messages, emission, precision="highest"),
    )


@typed
def markov_posterior(
    x_t: Tokens, initial: Float[ArrayLike, "*V"], transition: Float[ArrayLike, "*V W"]
) -> Probs:
    """The posterior of every token of a Markov source of order m, given those that are no masks.

        x^i ~ transition[x^{i−m}, …, x^{i−1}],  p_{1|t}^i(v | x_t) = P(x^i = v | revealed)   [S12]

    `initial`, with m axes, is the distribution of the m tokens that end at position 0: the m − 1
    tokens before the sequence are summed out. A message has V^m numbers, and a step of the scan
    reads the whole table of V^{m+1}. See `hidden_markov_posterior`.

    Raises:
        ValueError: if the axes do not all have V entries; if a row is no distribution; if an id
            lies outside [0, V].
    """
    initial, transition = _alike(initial, transition)
    order, num_tokens = initial.ndim, transition.shape[-1]
    rule = f"`initial` must have one axis or more, each of V = {num_tokens} entries"
    require(order > 0 and set(initial.shape) == {num_tokens}, rule, initial.shape)
    check_distribution("initial", initial.reshape(-1))
    check_distribution("transition", transition)
    before = tuple(range(-order, -1))  # the axes of all tokens but the last
    likelihood = jnp.concatenate([jnp.eye(num_tokens), jnp.ones((1, num_tokens))])
    likelihood = likelihood.astype(transition.dtype)
    return _posterior(
        x_t,
        initial,
        likelihood.reshape(-1, *(1,) * (order - 1), num_tokens),
        advance=lambda messages: jnp.stack(
            [
                jnp.sum(messages[0][..., None] * transition, axis=0),
                jnp.sum(transition * messages[1][None], axis=-1),
            ]
        ),
        to_tokens=lambda messages: jnp.sum(messages, axis=before),
    )


def _alike(*parts: ArrayLike) -> list[Array]:
    """Arrays of one type, float32 or wider."""
    dtype = jnp.result_type(*parts)
    return [widened(jnp.asarray(part, dtype)) for part in parts]


def _posterior(
    x_t: Tokens,
    initial: Array,
    likelihood: Array,
    *,
    advance: Callable[[Array], Array],
    to_tokens: Callable[[Array], Array],
) -> Array:
    """Both passes in one scan, forward at i and backward at N − 1 − i.

    `likelihood` [V + 1, …] is what a token tells of the last axis of a message; its last row, that
    of a mask, is ones. `advance` moves a forward and a backward message [2, …] by one position.
    """
    num_tokens = likelihood.shape[0] - 1
    check_tokens("x_t", x_t, num_tokens + 1)
    x_t = jnp.asarray(x_t)
    told = likelihood[x_t]  # [N, …], broadcast against a message
    inner = tuple(range(1, initial.ndim + 1))

    def step(messages: Array, told_here: Array) -> tuple[Array, Array]:
        moved = advance(messages * told_here)
        return moved / jnp.sum(moved, axis=inner, keepdims=True), messages

    begin = jnp.stack([initial, jnp.ones_like(initial)])
    _, messages = jax.lax.scan(step, begin, jnp.stack([told, told[::-1]], axis=1), unroll=8)
    joint = to_tokens(messages[:, 0] * messages[::-1, 1])
    masked = (x_t == num_tokens)[:, None]
    total = jnp.where(masked, jnp.sum(joint, axis=-1, keepdims=True), 1.0)
    own = jax.nn.one_hot(x_t, joint.shape[-1], dtype=joint.dtype)
    return jnp.where(masked, joint, own) / total
