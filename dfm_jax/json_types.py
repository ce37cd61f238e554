"""Check values read from JSON against a type: get a value of it, or an error that names the field.

A class describes each record of this package, such as a config, or a checkpoint's or a launch's
record. A missing field, a null, or a text in place of a number is refused here.
"""

import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar

from dfm_jax.checks import require, shown

Kind = TypeVar("Kind")


def from_json(kind: type[Kind], values: Any, *, where: str = "config") -> Kind:
    """Make a dataclass or a NamedTuple from an object; missing fields have their defaults.

    Raises:
        ValueError: if a field is unknown, is missing without a default, or has another type; the
            message names it.
    """
    require(isinstance(values, dict), f"`{where}` must be an object", values)
    hints, optional = typing.get_type_hints(kind), _with_default(kind)
    for name in values:
        rule = f"Each field of `{where}` must be one of {', '.join(hints)}"
        require(name in hints, rule, name, name="field")
    for name in hints:
        rule = f"`{where}` must hold `{name}`"
        require(name in values or name in optional, rule, list(values), name="fields")
    return kind(
        **{name: as_type(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    )


def as_type(hint: Any, value: Any, where: str) -> Any:
    """Return `value` if it has the annotated type; an int becomes a float if a float is needed.

    Raises:
        ValueError: if it does not; the message names `where`.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) or hasattr(hint, "_fields"):
        return from_json(hint, value, where=where)  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        (kind,) = (kind for kind in inner if kind is not type(None))
        return None if value is None else as_type(kind, value, where)
    if origin is Literal:
        rule = f"`{where}` must be one of {', '.join(map(str, inner))}"
        require(any(value is name or value == name for name in inner), rule, value)
        return value
    if origin is dict:
        require(isinstance(value, dict), f"`{where}` must be an object", value)
        return {name: as_type(inner[1], entry, f"{where}.{name}") for name, entry in value.items()}
    if origin in (list, tuple):
        require(isinstance(value, list | tuple), f"`{where}` must be a list", value)
        return origin(as_type(inner[0], x, f"{where}.{i}") for i, x in enumerate(value))
    number = isinstance(value, int) and not isinstance(value, bool)
    if hint is float and number:
        return _as_float(value, where)
    exact = number if hint is int else isinstance(value, hint)
    require(exact, f"`{where}` must be of type {hint.__name__}", value)
    return value


def _as_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        rule = f"`{where}` must be a number that a float can hold"
        raise ValueError(f"{rule}; got {where} = {shown(value)}.") from None


def _with_default(kind: type) -> set[str]:
    if not dataclasses.is_dataclass(kind):
        return set(getattr(kind, "_field_defaults", ()))
    return {
        item.name
        for item in dataclasses.fields(kind)
        if item.default is not dataclasses.MISSING
        or item.default_factory is not dataclasses.MISSING
    }
