"""Refuse bad values by name, with the message "RULE; got NAME = VALUE.", and then what to do.

A concrete value is refused at once with a `ValueError`. A traced value cannot be read while a
program is compiled; there the same rule becomes a `checkify.debug_check`, which the program drops
unless the caller asks for it:

    error, out = jax.jit(checkify.checkify(fn))(*args)
    error.throw()
"""

import contextlib
import re
import reprlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import PurePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify
from jax.typing import ArrayLike

from dfm_jax.types import as_ids


def require(
    holds: ArrayLike, rule: str, value: Any, *, name: str | None = None, then: str = ""
) -> None:
    """Raise `ValueError("RULE; got NAME = VALUE. THEN")` unless `holds`.

    Under tracing the same rule is a debug check. The name is the first one in backticks in the
    rule, unless `name` gives another one, which may be an expression such as "len(x)". If `holds`
    has an entry for each entry of `value`, the message shows the first entry that breaks the rule:
    "got x[3] = nan.". `then` is a whole sentence that says what to do.
    """
    if not isinstance(holds, Tracer) and np.all(holds):
        return
    name = _named(rule) if name is None else name
    then = f" {then}" if then else ""
    if isinstance(holds, Tracer):
        if _UNREAD.get():
            return
        # The message is a format of checkify: a brace in it would stand for another value.
        fixed = [text.replace("{", "{{").replace("}", "}}") for text in (rule, name, then)]
        message = "{}; got {} = {{value}}.{}".format(*fixed)
        # A copy: vmap inside jit would hand checkify a NumPy array, and index it with a tracer.
        with contextlib.suppress(IndexError):  # vmap over no example: jax asks for the worst one
            checkify.debug_check(jnp.all(holds), message, value=jnp.array(value))
    else:
        index, value = _first_bad(holds, value)
        raise ValueError(f"{rule}; got {name}{index} = {shown(value)}.{then}")


_UNREAD = ContextVar("unread", default=False)


@contextlib.contextmanager
def without_traced_checks() -> Iterator[None]:
    """In this context traced values are not checked; concrete ones are refused as ever.

    It is for programs that are compiled without checkify, which drops the debug checks in any case;
    to trace them under `vmap` takes time. What is traced here must not be traced
    again under checkify from a cache of jax: do not call functions that are compiled already.
    """
    token = _UNREAD.set(True)
    try:
        yield
    finally:
        _UNREAD.reset(token)


def _named(rule: str) -> str:
    """The name in backticks that a rule is about."""
    found = _NAME.search(rule)
    return "value" if found is None else found.group(1)


def _first_bad(holds: ArrayLike, value: Any) -> tuple[str, Any]:
    """The position of the first entry that breaks a rule, and the entry; else the whole value."""
    bad = ~np.asarray(holds)
    if isinstance(value, Tracer) or bad.ndim == 0 or bad.shape != np.shape(value)[: bad.ndim]:
        return "", value
    place = np.argwhere(bad)[0].tolist()
    return str(place), np.asarray(value)[tuple(place)]


def shown(value: Any) -> str:
    """A value as a message shows it: Python's `repr`, shortened if it is very long."""
    if isinstance(value, Tracer):
        return "traced"
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value)
        return f"{value.item()!r}" if value.ndim == 0 else np.array2string(value, threshold=12)
    return _SHORTENED.repr(str(value) if isinstance(value, PurePath) else value)


_NAME = re.compile("`([^`]+)`")
_SHORTENED = reprlib.Repr()
_SHORTENED.maxlist = _SHORTENED.maxtuple = _SHORTENED.maxdict = _SHORTENED.maxset = 12
_SHORTENED.maxstring = _SHORTENED.maxother = 400


def _readable(value: ArrayLike) -> jax.Array | np.ndarray:
    """A NumPy array if the value can be read now; jnp would make it a tracer under an outer jit."""
    return value if isinstance(value, Tracer) else np.asarray(value)


def check_count(name: str, value: int, *, at_least: int = 1, at_most: int | None = None) -> None:
    """Check that `value` is a whole number in [at_least, at_most]."""
    whole = isinstance(value, Tracer | int | np.integer) and not isinstance(value, bool)
    require(whole, f"`{name}` must be a whole number", value)
    if at_most is None:
        require(value >= at_least, f"`{name}` must be at least {at_least}", value)
    else:
        require(
            at_least <= value <= at_most, f"`{name}` must lie in [{at_least}, {at_most}]", value
        )


def check_seed(name: str, seed: int) -> None:
    """Check that a key can hold `seed`: `jax.random.key` drops all but the last 32 bits.

    Otherwise two seeds that differ by a multiple of 2³² would give the same run.
    """
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    rule = f"`{name}` must be an integer in [0, {2**32 - 1}], which a key can hold"
    require(whole and 0 <= seed < 2**32, rule, seed)


def check_interval(
    name: str, value: ArrayLike, low: float, high: float, *, ends: str = "[]"
) -> None:
    """Check that all entries lie between the bounds; `ends` = "[)" means [low, high), and so on."""
    value = _readable(value)
    above = value >= low if ends[0] == "[" else value > low
    below = value <= high if ends[1] == "]" else value < high
    require(above & below, f"`{name}` must lie in {ends[0]}{low:g}, {high:g}{ends[1]}", value)


def check_distribution(
    name: str, probs: ArrayLike, *, axis: int = -1, read: ArrayLike = True
) -> None:
    """Check that every row along the axis is non-negative and sums to 1.

    `read` is a mask over the leading axes: it says which rows are checked. A row that is not read,
    such as that of an expert with weight 0, may hold anything.
    """
    probs = _readable(probs)
    total = _total(probs, axis)
    unread = _unread(read, total)
    rule = f"`{name}` must be non-negative"
    require(_or(probs >= 0, _along(unread, axis)), rule, probs)
    rule = f"`{name}` must sum to 1 over its {_NAMED[axis]} axis"
    holds = _or(abs(total - 1) <= _slack(probs, axis), unread)
    require(holds, rule, total, name=f"{name}.sum(axis={axis})")


def check_log_distribution(
    name: str, log_probs: ArrayLike, *, axis: int = -1, read: ArrayLike = True
) -> None:
    """Check that every row holds the logarithms of a distribution; see `check_distribution`."""
    log_probs = _readable(log_probs)
    # A logarithm's own rounding grows with its size: Σ p |log p| is log V at most.
    count = max(log_probs.shape[axis], 2)
    slack = _slack(log_probs, axis) + float(np.log(count) * jnp.finfo(_inexact(log_probs)).eps)
    wide = log_probs.astype(jnp.float32) if _is_half(log_probs) else log_probs
    with np.errstate(over="ignore", invalid="ignore"):
        total = _total((jnp if isinstance(wide, Tracer) else np).exp(wide), axis)
    unread = _unread(read, total)
    _check_none_above_0(name, log_probs, _along(unread, axis))
    rule = f"`exp({name})` must sum to 1 over its {_NAMED[axis]} axis"
    holds = _or(abs(total - 1) <= slack, unread)
    require(holds, rule, total, name=f"exp({name}).sum(axis={axis})")


def check_log_probs(name: str, log_probs: ArrayLike, *, read: ArrayLike = True) -> None:
    """Check that no entry is above 0, which probabilities given instead of logarithms are.

    NaN is allowed. `read` is a mask over the leading axes: only rows that are read are checked.
    """
    log_probs = _readable(log_probs)
    _check_none_above_0(name, log_probs, _unread(read, log_probs))


def _check_none_above_0(name: str, log_probs: Any, unread: Any) -> None:
    inexact = jnp.issubdtype(log_probs.dtype, jnp.inexact)
    slack = 64 * float(jnp.finfo(log_probs.dtype).eps) if inexact else 0.0
    rule = f"`{name}` must hold logarithms of probabilities, and none above 0"
    require(_or(~(log_probs > min(slack, 0.02)), unread), rule, log_probs)


_NAMED = {-1: "last", 0: "first"}


def _inexact(values: Any) -> Any:
    return values.dtype if jnp.issubdtype(values.dtype, jnp.inexact) else np.dtype(float)


def _is_half(probs: Any) -> bool:
    return jnp.finfo(_inexact(probs)).bits < 32


def _total(probs: Any, axis: int) -> Any:
    with np.errstate(invalid="ignore"):
        return probs.sum(axis=axis, dtype=jnp.float32 if _is_half(probs) else None)


def _unread(read: ArrayLike, rows: Any) -> Any:
    """A mask of the rows that are not read, with as many axes as the rows; None if all are read."""
    if read is True:
        return None  # most calls: a trace is the shorter for it
    truths = _readable(read)
    return ~truths.reshape(truths.shape + (1,) * (np.ndim(rows) - truths.ndim))


def _along(unread: Any, axis: int) -> Any:
    """A mask over rows, repeated for each of their entries."""
    if unread is None:
        return None
    return (jnp if isinstance(unread, Tracer) else np).expand_dims(unread, axis)


def _or(holds: Any, unread: Any) -> Any:
    return holds if unread is None else holds | unread


def _slack(probs: Any, axis: int = -1) -> float:
    """How far from 1 rounding may take a sum: 8 (8 + √V) epsilons, but never more than 2 %."""
    if not jnp.issubdtype(probs.dtype, jnp.inexact):
        return 0.0
    epsilons = 8 * (8 + probs.shape[axis] ** 0.5)
    return min(epsilons * float(jnp.finfo(probs.dtype).eps), 0.02)


def check_tokens(name: str, tokens: ArrayLike, num_tokens: int | None = None) -> None:
    """Check that every id lies in [0, num_tokens): a mask id −1 would silently read the last row.

    If `num_tokens` is None, only ids below 0 are refused.
    """
    tokens = _readable(as_ids(tokens, name))
    require(
        jnp.issubdtype(tokens.dtype, jnp.integer),
        f"`{name}` must hold whole numbers",
        tokens.dtype.name,
        name=f"{name}.dtype",
    )
    if num_tokens is None:
        require(tokens >= 0, f"`{name}` must hold ids, and none below 0", tokens)
    else:
        rule = f"`{name}` must hold ids in [0, {num_tokens - 1}]"
        require((tokens >= 0) & (tokens < num_tokens), rule, tokens)


def check_num_states(num_states: int, num_tokens: int) -> None:
    """Check that S is V, or V + 1 with the mask (id V) as a state."""
    rule = f"`num_states` must be V = {num_tokens}, or {num_tokens + 1} with a mask"
    require(num_states in (num_tokens, num_tokens + 1), rule, num_states)
