"""The header of a GGUF file held against the file's size, before the package `gguf` reads it.

That package believes the header: it walks as many entries as are claimed, and makes an array of
each number in a list. Here each count, length, shape and offset is refused at once where the file
cannot hold it, and so is what is legal but would swell: lists within lists, millions of entries.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import NoReturn

from dfm_jax.models.pretrained.checkpoint import imported

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of a number
_STRING, _LIST, _UINT32 = 8, 9, 4
_MOST_DIMS = 4  # of a tensor of ggml
_MOST_ENTRIES = 1 << 22  # in all lists; Gemma's 256,000 tokens make 1.3 million
_LEAST_FIELD, _LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8  # bytes


def check_gguf_header(path: Path | str) -> None:
    """Refuse a header that claims what the file does not hold.

    Raises:
        ValueError: saying what is claimed, and how much is there.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _Header(content).check()


class _Header:
    """A place in the file, and how many list entries came before it."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.place = 0
        self.entries = 0
        self.alignment = 32

    def check(self) -> None:
        if self.taken(4) != _MAGIC:
            _refuse("it does not begin with GGUF")
        if (version := self.number("<I")) not in _VERSIONS:
            _refuse(f"its version is {version}, and none of {', '.join(map(str, _VERSIONS))}")
        num_tensors, num_fields = self.number("<Q"), self.number("<Q")
        self.room_for(num_fields, _LEAST_FIELD, "fields")
        self.room_for(num_tensors, _LEAST_TENSOR, "tensors")
        for _ in range(num_fields):
            self.field()
        ends = [self.tensor() for _ in range(num_tensors)]
        begin = -(-self.place // self.alignment) * self.alignment
        for name, end in ends:
            if begin + end > len(self.content):
                _refuse(f"tensor {name!r} ends at {begin + end:,} of {len(self.content):,} bytes")

    def taken(self, size: int) -> bytes:
        self.room_for(size, 1, "bytes")
        self.place += size
        return self.content[self.place - size : self.place]

    def number(self, form: str) -> int:
        return struct.unpack(form, self.taken(struct.calcsize(form)))[0]

    def room_for(self, count: int, size: int, what: str) -> None:
        left = len(self.content) - self.place
        if count * size > left:
            _refuse(f"it claims {count:,} {what} at {self.place:,}, with {left:,} bytes left")

    def text(self) -> str:
        return self.taken(self.number("<Q")).decode("utf-8")

    def field(self) -> None:
        name, kind = self.text(), self.number("<I")
        if kind == _LIST:
            self.list_of(name)
        elif kind == _STRING:
            self.taken(self.number("<Q"))
        else:
            value = self.taken(_size(kind, name))
            if name == "general.alignment" and kind == _UINT32:
                self.alignment = int.from_bytes(value, "little")
                if self.alignment == 0 or self.alignment & (self.alignment - 1):
                    _refuse(f"`{name}` is {self.alignment}, and no power of two")

    def list_of(self, name: str) -> None:
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _LIST:
            _refuse(f"`{name}` holds lists within a list")
        size = 8 if kind == _STRING else _size(kind, name)
        self.room_for(count, size, f"entries of `{name}`")
        self.entries += count
        if self.entries > _MOST_ENTRIES:
            _refuse(f"its lists hold more than {_MOST_ENTRIES:,} entries")
        if kind != _STRING:
            self.taken(count * size)
            return
        for _ in range(count):
            self.room_for(length := self.number("<Q"), 1, f"bytes of a text in `{name}`")
            self.place += length

    def tensor(self) -> tuple[str, int]:
        """Its name, and where it ends after the beginning of the numbers."""
        sizes = imported("gguf").GGML_QUANT_SIZES
        name, num_dims = self.text(), self.number("<I")
        if num_dims > _MOST_DIMS:
            _refuse(f"tensor {name!r} has {num_dims:,} axes, and not {_MOST_DIMS} at most")
        shape = [self.number("<Q") for _ in range(num_dims)]
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in sizes:
            _refuse(f"tensor {name!r} is of the unknown type {kind}")
        block, block_bytes = sizes[kind]
        return name, offset + math.prod(shape) // block * block_bytes


def _size(kind: int, name: str) -> int:
    if kind not in _SIZES:
        _refuse(f"`{name}` is of the unknown type {kind}")
    return _SIZES[kind]


def _refuse(why: str) -> NoReturn:
    raise ValueError(why)
