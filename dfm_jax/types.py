"""The kinds of arrays by name, and `typed`, which checks every call of a public function.

These are the axis letters: N positions, V data tokens, S states of a position (V, or V + 1 if the
mask, id V, is one of them), Z listed states, K experts, T steps, P pairs (x_0, x_1), J base
distributions, D features. Functions are written for one example; `jax.vmap` makes the batch.

Whole numbers of any type become int32 or int64: see `as_ids`. A NumPy scalar is taken as the Python
number that it stands for. A bool is not taken as a number.
"""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from beartype import beartype
from jax.core import Tracer
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
Probs = Float[ArrayLike, "N V"]  # one distribution over the data tokens per position
LogProbs = Float[ArrayLike, "N V"]  # its logarithm, in nats
Logits = Float[ArrayLike, "N V"]  # what a network gives: log-probabilities up to one number a row
StateProbs = Float[ArrayLike, "N S"]  # one distribution over the states per position
Velocity = Float[ArrayLike, "N S"]  # u_t^i(v, x_t): row i sums to 0
Weights = Float[ArrayLike, " K"]  # a distribution over experts
PerExpert = Float[ArrayLike, " K"]  # any number per expert: log-weights, log-probabilities, losses
Table = Float[ArrayLike, "times N"]  # a schedule table κ[t, i]: T + 1 rows, from source to data


def as_time(t: Time) -> Array:
    """A time that can be differentiated; the integers 0 and 1 are accepted too."""
    return jnp.asarray(t, dtype=float if isinstance(t, int) else None)


def as_ids(ids: Any, name: str = "ids") -> Any:
    """Whole numbers in 32 bits or more, and in at most the width that jax has.

    In an int8, which can hold a byte's id, 72 + 72 or the mask id 128 would wrap around and be
    another id. int8, uint8, int16 and uint16 become int32; uint32 and uint64 become int32, or int64
    under x64. NumPy arrays stay NumPy arrays. A value without a dtype is returned as it is.

    Raises:
        ValueError: if a number does not fit. Traced numbers cannot be read: they wrap to negative
            ones, which `checks.check_tokens` refuses.
    """
    dtype = getattr(ids, "dtype", None)
    if dtype is None or dtype == np.int32 or not jnp.issubdtype(dtype, jnp.integer):
        return ids
    widest = jax.dtypes.canonicalize_dtype(np.int64)
    if dtype == widest:
        return ids
    if jnp.iinfo(dtype).bits < 32:
        return ids.astype(np.int32)
    if not isinstance(ids, Tracer):
        values, ids = np.asarray(ids), ids if isinstance(ids, jax.Array) else np.asarray(ids)
        last = np.iinfo(widest).max
        if values.size and not (-last <= int(values.min()) and int(values.max()) <= last):
            place = np.argwhere((values < -last) | (values > last))[0].tolist()
            raise ValueError(
                f"`{name}` must hold whole numbers that {widest.name} can hold; got {name}"
                f"{place or ''} = {values[tuple(place)]}."
            )
    return ids.astype(widest)


class _Door(typing.NamedTuple):
    """What an annotation takes that is not an array of its own kind, and is converted."""

    whole: bool  # arrays of whole numbers
    real: bool  # a Python float
    truth: bool  # a Python truth value

    def take(self, name: str, value: Any) -> Any:
        if type(value) in (tuple, list):  # of ids, of widths
            return type(value)(self.take(name, one) for one in value)
        if isinstance(value, bool | np.bool_):  # Python's True would pass for 1
            return bool(value) if self.truth else np.bool_(value)
        if isinstance(value, np.generic):
            whole = isinstance(value, np.integer)
            return int(value) if whole else value if self.real else value.item()
        return as_ids(value, name) if self.whole else value


def _door(annotation: Any) -> _Door | None:
    """The conversion that an annotation needs; None if it needs none."""
    kinds = typing.get_args(annotation) or (annotation,)
    dtypes = {dtype for kind in kinds for dtype in getattr(kind, "dtypes", ())}
    # What takes unsigned numbers too, as `Integer` does, takes them as they are.
    whole = "int32" in dtypes and "uint8" not in dtypes
    door = _Door(whole, float in kinds, bool in kinds)
    return door if door != (False, False, False) or int in kinds else None


_HINT = (
    "Functions of dfm_jax are written for one example: `jax.vmap` maps them over a batch. Lists "
    "become arrays by `jnp.asarray`."
)


def typed(fn: Fn) -> Fn:
    """Check the annotated shapes and types of every call; under jit, once, while it is traced."""
    checked = jaxtyped(typechecker=beartype)(fn)
    parameters = inspect.signature(fn).parameters
    doors = {name: door for name, one in parameters.items() if (door := _door(one.annotation))}
    placed = [(place, name) for place, name in enumerate(parameters) if name in doors]

    @functools.wraps(fn)
    def hinted(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        for place, name in placed:
            if place < len(given):
                given[place] = doors[name].take(name, given[place])
            elif name in kwargs:
                kwargs[name] = doors[name].take(name, kwargs[name])
        args = tuple(given)
        try:
            return checked(*args, **kwargs)
        except TypeCheckError as error:
            message = str(error)
            if not message.startswith(_HINT):  # by a function that this one called
                error.args = (f"{_HINT}\n{message}",)
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
    "Logits",
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
    "as_ids",
    "as_time",
    "typed",
]
