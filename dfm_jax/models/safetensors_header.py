"""The header of a safetensors file held against the file's size, before its package reads it."""

import math
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from dfm_jax.json_text import parse_json

_LENGTH = struct.Struct("<Q")
_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64},
    **{"I64": 64, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
_MOST_DIMS = 64  # of an array of NumPy


def check_safetensors_header(path: Path) -> None:
    """Refuse a header that claims what the file does not hold.

    Eight bytes of length, that many of JSON, then the numbers: each tensor behind the other, the
    whole rest of the file. A name comes once.

    Raises:
        ValueError: naming the file, what is claimed, and what is there.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else size
        if length > size - len(head):
            _refuse(path, f"its header claims {length:,} bytes, with {size - len(head):,} there")
        text = file.read(length)
    try:
        header = parse_json(text)
    except ValueError as error:
        _refuse(path, f"its header: {error}")
    if not isinstance(header, dict):
        _refuse(path, "its header is no object")
    spans = [_span(path, name, entry) for name, entry in header.items() if name != "__metadata__"]
    spans = [(0, 0), *sorted(spans), (size - len(head) - length,) * 2]
    if any(end != begin for (_, end), (begin, _) in pairwise(spans)):
        _refuse(path, "its tensors do not lie side by side from the first byte to the last")


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Where the numbers of a tensor lie, which are as many as its shape says."""
    whole = isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}
    shape: Any = entry["shape"] if whole else None
    span: Any = entry["data_offsets"] if whole else None
    lists = isinstance(shape, list) and isinstance(span, list) and len(span) == 2
    if not lists or len(shape) > _MOST_DIMS or not all(_is_count(n) for n in (*shape, *span)):
        _refuse(path, f"it does not say the dtype, shape and place of {name!r}")
    bits = _BITS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if bits is None:
        _refuse(path, f"{name!r} is of an unknown dtype")
    begin, end = span
    if math.prod(shape) * bits != (end - begin) * 8:
        _refuse(path, f"{name!r} claims {shape} of {entry['dtype']} in {end - begin:,} bytes")
    return begin, end


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _refuse(path: Path, why: str) -> NoReturn:
    raise ValueError(f"{path} must hold safetensors; it is damaged ({why}).")
