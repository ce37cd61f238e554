"""The collectives of a compiled program: kind, groups of devices, and bytes."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

KINDS = (
    *("all-gather", "all-reduce", "all-to-all", "reduce-scatter"),
    *("collective-permute", "collective-broadcast", "ragged-all-to-all", "send", "recv"),
)
_CALL = re.compile(
    r"= (?P<shape>\(.*?\)|\S+) (?P<kind>" + "|".join(KINDS) + r")(?P<start>-start)?\("
)
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+|c\d+|f8\w*)\[([\d,]*)\]")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})?\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


class Collective(NamedTuple):
    """One collective instruction; inside a loop it counts once, however often it runs."""

    kind: str
    groups: tuple[tuple[int, ...], ...]  # devices that talk to each other; () is all of them
    num_bytes: int  # of the result on one device


def collectives(compiled: Any) -> tuple[Collective, ...]:
    """The collectives of a compiled program, in the order of its text.

    Args:
        compiled: The result of `jax.jit(fn).lower(…).compile()`, or of its `as_text()`.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    return tuple(
        Collective(call["kind"], _groups(line), _num_bytes(**call.groupdict()))
        for line in text.splitlines()
        if (call := _CALL.search(line))
    )


def count_by_kind(found: Iterable[Collective]) -> dict[str, int]:
    """The number of collectives of each kind."""
    return dict(sorted(Counter(one.kind for one in found).items()))


def _groups(line: str) -> tuple[tuple[int, ...], ...]:
    if iota := _IOTA.search(line):
        shape, dims, order = (_numbers(part or "") for part in iota.groups())
        devices = np.arange(math.prod(dims)).reshape(dims)
        return tuple(
            tuple(group) for group in devices.transpose(order or None).reshape(shape).tolist()
        )
    listed = _LISTED.search(line)
    found = re.findall(r"\{([\d,]+)\}", listed[1] or "") if listed else []
    return tuple(_numbers(group) for group in found)


def _num_bytes(shape: str, kind: str, start: str | None) -> int:
    """The bytes of the results in a shape; the start of a gather lists its operands first."""
    sizes = [math.prod(_numbers(dims)) * _item_bytes(item) for item, dims in _ARRAY.findall(shape)]
    if start and kind == "all-gather":
        sizes = sizes[len(sizes) // 2 :]
    elif start and kind == "collective-permute":
        sizes = sizes[1:2]  # and then two counters
    return sum(sizes)


def _item_bytes(item: str) -> int:
    if item == "pred" or item.startswith("f8"):
        return 1
    return max(1, int(re.sub(r"\D", "", item)) // 8)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
