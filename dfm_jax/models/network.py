"""The seam: a network is a pair of pure functions over a pytree of float arrays.

Nothing outside `dfm_jax.models` knows what makes a network: losses, samplers and the training loop
see `init` and `apply`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from dfm_jax.checks import require
from dfm_jax.types import Array, Key

Params = Any  # a pytree of float arrays


class Network(NamedTuple):
    """`init(key) -> params` and `apply(params, x_t, t=None, *, key=None) -> logits [N, V]`.

    For one sequence of N tokens: `jax.vmap(network.apply, in_axes=(None, 0))` is the batch. What
    row i is the law of, the network says: a bidirectional one gives p_{1|t}^i(· | x_t), a causal
    one the next token, q(x^{i+1} | x^{≤i}), so it predicts the first token only from an input
    that begins one earlier (a beginning-of-sequence token, or the mask, id V).

    `t`, a scalar time in [0, 1], is required by time-conditioned networks and refused by others.
    `key` draws the dropout; without it `apply` is deterministic.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Array]


def check_time(t: Any, *, conditioned: bool) -> None:
    """`t` is given exactly to the networks that are conditioned on it."""
    if conditioned:
        require(t is not None, "`t` must be given: the network is conditioned on time", str(t))
    else:
        require(t is None, "`t` must be None: the network is not conditioned on time", str(t))
