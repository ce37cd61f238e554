"""Safe readers of weight files: safetensors' headers, PyTorch's pickles.

PyTorch's weight files are read without PyTorch, and only tensors are read.

A `.pth` file is a pickle, and a pickle can call any function that it names. Here each name is
looked up in a fixed list: `OrderedDict`, the function that rebuilds a tensor, and the types of
storage. Each name stands for data of this module. Any other name is refused before anything is
called.

There are two layouts. The legacy layout is five pickles (magic number, protocol, machine, the tree
of tensors, the keys of the storages), and then each storage as its count and its numbers. The zip
layout, used since PyTorch 1.6, has the tree in `data.pkl` and each storage in `data/KEY`.
"""

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from reprlib import repr as shown
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dfm_jax.json_text import parse_json
from dfm_jax.types import typed

# ── The header of a safetensors file held against the file's size, before its package reads it ────

_LENGTH = struct.Struct("<Q")
_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64},
    **{"I64": 64, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
_MOST_DIMS = 64  # of an array of NumPy


def check_safetensors_header(path: Path) -> None:
    """Refuse a header that claims more than the file holds.

    The file has eight bytes of length, that many bytes of JSON, and then the numbers. The tensors
    follow each other and fill the whole rest of the file. No name occurs twice.

    Raises:
        ValueError: if the header is wrong; the message names the file, the claim, and what is
            there.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else size
        if length > size - len(head):
            _refuse(path, f"its header claims {length:,} bytes, and {size - len(head):,} are there")
        text = file.read(length)
    try:
        header = parse_json(text)
    except ValueError as error:
        _refuse(path, f"its header cannot be read: {error}")
    if not isinstance(header, dict):
        _refuse(path, "its header is not a JSON object")
    spans = [_span(path, name, entry) for name, entry in header.items() if name != "__metadata__"]
    spans = [(0, 0), *sorted(spans), (size - len(head) - length,) * 2]
    if any(end != begin for (_, end), (begin, _) in pairwise(spans)):
        _refuse(path, "its tensors do not lie side by side from the first byte to the last")


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """The place of a tensor's numbers in the file, which must be as many as its shape says."""
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
    raise ValueError(f"{path} must hold safetensors; got a damaged file: {why}.")


# ── A pickle walked through before it is loaded: what loading it would cost ───────────────────────
#
# The C reader makes room for whatever length or memo number it is told, and hashing or printing
# what it has made follows nesting without end. So the instructions are read first, in Python, which
# takes nothing at its word: a length that the file has not is refused, and so are memo numbers
# beyond the number of bytes, nesting beyond a bound, and an object that would be larger, written
# out, than its pickle several times over.


MAX_DEPTH = 32  # containers within one another; a dictionary of tensors takes four
_MOST_TIMES = 100  # that an object written out may be larger than its pickle
_MARKS = ("mark", "stackslice")
_FILLED = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}  # change what is there


class _Size(NamedTuple):
    depth: int
    parts: int  # written out: what is shared counts each time


def check_pickle(file: io.BytesIO) -> None:
    """Refuse a pickle that would take too much memory; the file position is unchanged.

    Raises:
        ValueError: if it would; the message says what the pickle claims.
    """
    begin = file.tell()
    most = len(file.getbuffer()) - begin
    stack: list[_Size | None] = []  # None is a mark
    memo: dict[int, _Size] = {}
    for op, argument, place in pickletools.genops(file):
        if "PUT" in op.name or op.name == "MEMOIZE":
            number = int(argument or 0) if "PUT" in op.name else len(memo)
            if number > most:
                raise ValueError(
                    f"its pickle gives an object the number {number:,}, at byte {place:,}"
                )
            memo[number] = stack[-1] or _Size(0, 1)
        elif "GET" in op.name:
            stack.append(memo[int(argument or 0)])
        elif op.name == "MARK":
            stack.append(None)
        elif op.name == "DUP":
            stack.append(stack[-1])
        else:
            _step(op, stack)
        top = stack[-1] if stack else None
        if top is not None and (top.depth > MAX_DEPTH or top.parts > _MOST_TIMES * most):
            raise ValueError(f"its pickle is nested too deeply, at byte {place:,}")
    file.seek(begin)


def _step(op: pickletools.OpcodeInfo, stack: list[_Size | None]) -> None:
    """Take from the stack what the instruction takes, and put its result there."""
    taken: list[_Size] = []
    if any(kind.name == "stackslice" for kind in op.stack_before):
        while (part := stack.pop()) is not None:
            taken.append(part)
    single = [kind for kind in op.stack_before if kind.name not in _MARKS]
    taken += [part for part in (stack.pop() for _ in single) if part is not None]
    depth = max((part.depth for part in taken), default=-1) + 1
    if op.name in _FILLED and taken:  # the last one is what is filled
        depth = max([taken[-1].depth, *(part.depth + 1 for part in taken[:-1])])
    made = _Size(depth, 1 + sum(part.parts for part in taken))
    stack.extend(made for _ in op.stack_after)


_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_COUNT = struct.Struct("<q")
_ZIP = b"PK\x03\x04"
_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",  # NumPy knows the name from ml_dtypes, which jax imports
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}


class _Refused(ValueError):
    """The error in a file, without the name of the file."""


class _Storage(NamedTuple):
    key: str
    dtype: str
    size: int  # in elements


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # in elements, as the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@typed
def read_tensors(path: Path | str) -> dict[str, np.ndarray]:
    """The tensors of a `.pth` file by name, in the order of the file.

    The file must hold one flat dictionary, as `torch.save(model.state_dict(), path)` writes it. A
    tensor that repeats its numbers (`expand`) counts as damage. The legacy layout has no checksum
    of the numbers, so a flipped bit in them is not found.

    Raises:
        ValueError: if the file asks for anything other than tensors, is cut short, is damaged, or
            is of another kind. The message names the file and, if there is one, the forbidden name.
    """
    content = Path(path).read_bytes()
    try:
        tree, storages = (_zipped if content.startswith(_ZIP) else _legacy)(content)
        return _arrays(_tensors(tree), storages)
    except _Refused as error:
        raise ValueError(f"{path} must hold tensors alone; got a file that {error}.") from None
    except Exception as error:  # damage can surface anywhere in a pickle, as anything
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} must hold tensors alone; got a damaged file: {why}.") from error


def _legacy(content: bytes) -> tuple[Any, dict[str, np.ndarray]]:
    file = io.BytesIO(content)
    if _Unpickler(file).loaded() != _MAGIC:
        raise _Refused("PyTorch did not write, because the magic number is another one")
    if (protocol := _Unpickler(file).loaded()) != _PROTOCOL:
        raise _Refused(f"has protocol {shown(protocol)}, not {_PROTOCOL}")
    if not _Unpickler(file).loaded()["little_endian"]:
        raise _Refused("was written on a big-endian machine")
    unpickler = _Unpickler(file)
    tree = unpickler.loaded()
    keys = _Unpickler(file).loaded()
    if set(keys) != set(unpickler.storages):
        raise _Refused("lists other storages than its tensors use")
    storages = {}
    for storage in map(unpickler.storages.__getitem__, keys):
        if file.read(_COUNT.size) != _COUNT.pack(storage.size):
            raise _Refused(f"is damaged or cut short before storage {storage.key}")
        dtype, start = np.dtype(storage.dtype), file.tell()
        if start + storage.size * dtype.itemsize > len(content):
            raise _Refused(f"is cut short in storage {storage.key}")
        storages[storage.key] = np.frombuffer(content, dtype, storage.size, start)
        file.seek(storage.size * dtype.itemsize, io.SEEK_CUR)
    if file.tell() != len(content):
        raise _Refused(f"goes on for {len(content) - file.tell()} bytes after its last storage")
    return tree, storages


def _zipped(content: bytes) -> tuple[Any, dict[str, np.ndarray]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:  # its checksums catch damage
        entries = archive.infolist()
        claimed = sum(entry.file_size for entry in entries)
        if claimed > len(content):  # PyTorch stores its parts as they are
            raise _Refused(f"claims parts of {claimed:,} bytes, with {len(content):,} in all")
        parts = {entry.filename.partition("/")[2]: entry.filename for entry in entries}
        if len(parts) < len(entries):
            raise _Refused("holds two parts of one name")
        if "byteorder" in parts and archive.read(parts["byteorder"]) != b"little":
            raise _Refused("was written on a big-endian machine")
        unpickler = _Unpickler(io.BytesIO(archive.read(parts["data.pkl"])))
        tree = unpickler.loaded()
        storages = {}
        for key, storage in unpickler.storages.items():
            storages[key] = np.frombuffer(archive.read(parts[f"data/{key}"]), storage.dtype)
            if storages[key].size != storage.size:
                raise _Refused(f"holds {storages[key].size} numbers, not {storage.size}, in {key}")
    return tree, storages


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows the names in the module's docstring and remembers the storages."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.file = file
        self.storages: dict[str, _Storage] = {}

    def loaded(self) -> Any:
        """The content of the next pickle, after a check that it is no larger than it looks."""
        check_pickle(self.file)
        return self.load()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _make_rebuild()
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise _Refused(f"asks for `{module}.{name}`, which is forbidden")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *view = pid  # the fourth is the device
        whole = kind == "storage" and dtype in _DTYPES.values() and view in ([], [None])
        if not whole or type(key) is not str or type(size) is not int or size < 0:
            raise _Refused(f"describes a storage as {shown(pid)}")
        storage = _Storage(key, dtype, size)
        if self.storages.setdefault(key, storage) != storage:
            raise _Refused(f"describes storage {key} in two ways")
        return storage


def _make_rebuild() -> Callable[..., _Tensor]:
    """A stand-in for `_rebuild_tensor_v2`, made anew because a pickle may set its attributes."""

    def rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        return _Tensor(storage, offset, shape, strides)  # checked in `_array`

    return rebuild


def _tensors(tree: Any) -> dict[str, _Tensor]:
    if not isinstance(tree, dict):
        raise _Refused(f"holds a {type(tree).__name__}, not a dictionary of tensors")
    tensors = dict(dict.items(tree))  # not its own `items`, which a pickle may set
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise _Refused(f"holds a {type(value).__name__} under {name!r}")
    return tensors


def _arrays(
    tensors: Mapping[str, _Tensor], storages: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The arrays of tensors, which may share a storage but must not take more memory than it."""
    arrays, left = {}, 2 * sum(values.nbytes for values in storages.values())
    for name, tensor in tensors.items():
        arrays[name] = _array(tensor, storages)
        left -= arrays[name].nbytes
        if left < 0:
            raise _Refused("repeats its storages in more than twice as many numbers")
    return arrays


def _array(tensor: _Tensor, storages: Mapping[str, np.ndarray]) -> np.ndarray:
    """The tensor as an array of its own; it is refused if it reaches beyond its storage."""
    storage, offset, shape, strides = tensor
    numbers = (offset, *shape, *strides)
    if not all(type(n) is int and n >= 0 for n in numbers) or len(shape) != len(strides):
        raise _Refused(f"describes a tensor as {shown(tensor)}")
    values = storages[storage.key]
    if 0 in shape:
        return np.zeros(shape, values.dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= values.size or math.prod(shape) > values.size:
        raise _Refused(f"has a tensor that is larger than its storage: {shown(tensor)}")
    steps = [stride * values.itemsize for stride in strides]
    return as_strided(values[offset:], shape, steps, writeable=False).copy()
