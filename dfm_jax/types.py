"""The kinds of array by name, and `typed`, which holds every public signature to its word.

Axis letters, declared once: N positions, V data tokens, S states of a position (V, or V + 1 where
the mask, id V, is one of them), Z listed states, K experts, T steps, P pairs (x_0, x_1), J base
laws, D features.
Functions are written for one example; `jax.vmap` is the batch.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import jax.numpy as jnp
from beartype import beartype
from jax.typing import DTypeLike as DType
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, TypeCheckError, UInt32, jaxtyped

if TYPE_CHECKING:
    # A Python number, a NumPy and a jax array add and multiply alike, but a checker that is told of
    # the union refuses the sum of two: kinds and shapes are the business of `typed`.
    ArrayLike = Any
else:
    from jax.typing import ArrayLike

Fn = TypeVar("Fn", bound=Callable[..., Any])

Key = PRNGKeyArray
Scalar = Float[ArrayLike, ""]
Number = Float[ArrayLike, ""] | int  # an argument that may be written 0 or 1
Time = Float[ArrayLike, ""] | int  # in [0, 1], from the source to the data
Step = Int[ArrayLike, ""]  # a step of a schedule table, 0 … T − 1
Token = Int[ArrayLike, ""]
Tokens = Int[ArrayLike, " N"]
Context = Bool[ArrayLike, " N"]  # True where a position is given: never masked, never moved
Kappa = Float[ArrayLike, " N"] | Float[ArrayLike, ""]  # κ_t per position, or one for all
Probs = Float[ArrayLike, "N V"]  # one law over the data tokens per position
LogProbs = Float[ArrayLike, "N V"]  # its logarithm, in nats
StateProbs = Float[ArrayLike, "N S"]  # one law over the states per position
Velocity = Float[ArrayLike, "N S"]  # u_t^i(v, x_t): row i sums to 0
Weights = Float[ArrayLike, " K"]  # a law over experts
PerExpert = Float[ArrayLike, " K"]  # any number per expert: log-weights, log-probabilities, losses
Table = Float[ArrayLike, "times N"]  # a schedule table κ[t, i]: T + 1 rows, from source to data


def as_time(t: Time) -> Array:
    """A time that can be differentiated: 0 and 1 may be written as integers."""
    return jnp.asarray(t, dtype=float if isinstance(t, int) else None)


_HINT = (
    "Functions of dfm_jax are written for one example: `jax.vmap` maps them over a batch. Lists "
    "become arrays by `jnp.asarray`."
)


def typed(fn: Fn) -> Fn:
    """Check the annotated shapes and types of every call; under jit, once, while tracing."""
    checked = jaxtyped(typechecker=beartype)(fn)

    @functools.wraps(fn)
    def hinted(*args: Any, **kwargs: Any) -> Any:
        try:
            return checked(*args, **kwargs)
        except TypeCheckError as error:
            if _HINT not in getattr(error, "__notes__", ()):
                error.add_note(_HINT)
            raise

    return cast(Fn, hinted)


__all__ = [
    "Array",
    "ArrayLike",
    "Bool",
    "Context",
    "DType",
    "Float",
    "Int",
    "Kappa",
    "Key",
    "LogProbs",
    "Number",
    "PerExpert",
    "Probs",
    "Scalar",
    "StateProbs",
    "Step",
    "Table",
    "Time",
    "Token",
    "Tokens",
    "UInt32",
    "Velocity",
    "Weights",
    "as_time",
    "typed",
]
