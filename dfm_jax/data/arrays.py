"""Read arrays from NumPy's files and safetensors; headers are checked against the file size.

`np.load` would allocate any shape that a header claims, and a compressed archive may expand to a
thousand times its size.
"""

import hashlib
import io
import math
import os
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from dfm_jax.checks import require
from dfm_jax.data.packages import package_folder
from dfm_jax.models.weight_files import check_safetensors_header

_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_ALIGNED = 64  # bytes
_DIGEST = hashlib.sha256().digest_size  # bytes
_MOST_TIMES = 100  # that a compressed array may be larger than what is stored


def read_npy(file: IO[bytes], size: int) -> np.ndarray:
    """Read the array in an `.npy` file of `size` bytes; nothing is unpickled.

    It begins where jax reads it without a copy, unless its last axis is not the fastest.

    Raises:
        ValueError: if it is not such a file; if it holds objects; if it claims a shape that does
            not match its size.
    """
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"its version is {version}, which is unknown")
    shape, columns_first, dtype = _READERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    claimed, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if claimed != there:
        raise ValueError(
            f"it claims {shape} of {dtype}, which are {claimed:,} bytes, and {there:,} are there"
        )
    if columns_first or claimed == 0:
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    array = aligned_empty(shape, dtype)
    rest = array.reshape(-1).view(np.uint8).data
    while len(rest) and (count := file.readinto(rest)):  # pyright: ignore[reportAttributeAccessIssue]
        rest = rest[count:]
    if len(rest):
        raise ValueError(f"it ends {len(rest):,} bytes before its array does")
    return array


def aligned_empty(shape: Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
    """An array that is not filled, at a place (64 bytes) from which jax reads without a copy."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNED, np.uint8)
    begin = -memory.ctypes.data % _ALIGNED
    return memory[begin : begin + size].view(dtype).reshape(shape)


def read_npy_file(path: Path) -> np.ndarray:
    """Read the array in the `.npy` file at a path.

    Raises:
        ValueError: as `read_npy`.
    """
    with path.open("rb") as file:
        return read_npy(file, path.stat().st_size)


def read_npz_file(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read those of the named arrays that an `.npz` file holds.

    Raises:
        ValueError: as `read_npy`; if a name occurs twice, or an array is stored in less than a
            hundredth of its size.
    """
    with zipfile.ZipFile(path) as archive:
        found: dict[str, np.ndarray] = {}
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name not in names:
                continue
            if name in found:
                raise ValueError(f"it holds {name!r} twice")
            if entry.file_size > _MOST_TIMES * entry.compress_size:
                raise ValueError(
                    f"{name!r} claims {entry.file_size:,} bytes in {entry.compress_size:,} that "
                    "are there"
                )
            with archive.open(entry) as file:
                found[name] = read_npy(file, entry.file_size)
    return found


def is_npz(path: Path) -> bool:
    """Whether the file is an archive of arrays, judged by its first bytes."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


# ── Named arrays as the bytes of a safetensors file: numbers alone, so nothing executes ───────────


def tensors_to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of a safetensors file.

    Raises:
        MissingDataError: if safetensors is not installed.
    """
    package_folder("safetensors", "safetensors")  # says how to install it
    from safetensors.numpy import save

    # It writes the memory as it lies, whatever the strides.
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def read_tensors(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read a safetensors file, which must hold exactly the arrays in `names`.

    Raises:
        ValueError: if the file is damaged, is of another kind, or holds other arrays.
        MissingDataError: if safetensors is not installed.
    """
    package_folder("safetensors", "safetensors")
    from safetensors import SafetensorError
    from safetensors.numpy import load

    check_safetensors_header(path)
    try:
        arrays = load(path.read_bytes())
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that NumPy has not
        raise ValueError(f"{path} must hold safetensors; got a damaged file: {error}.") from error
    rule = f"{path} must hold the arrays {', '.join(sorted(names))}"
    require(set(arrays) == set(names), rule, sorted(arrays), name="arrays")
    return arrays


# ── Arrays kept in a folder by a key, which says all that they depend on ──────────────────────────


def kept_path(folder: Path, key: str) -> Path:
    """Where the array of a key, of hexadecimal digits, is kept."""
    return folder / key[:2] / key


def kept_array(folder: Path, key: str) -> np.ndarray | None:
    """The array of a key; None if none is kept, or its file is damaged."""
    content = kept_bytes(folder, key)
    return None if content is None else read_npy(io.BytesIO(content), len(content))


def keep_array(folder: Path, key: str, array: np.ndarray) -> None:
    """Write an array, see `keep_bytes`."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    keep_bytes(folder, key, content.getvalue())


def kept_bytes(folder: Path, key: str) -> bytes | None:
    """What is kept under a key; None if nothing is, or its file is damaged."""
    path = kept_path(folder, key)
    content = path.read_bytes() if path.is_file() else b""
    return content[_DIGEST:] if content[:_DIGEST] == _digest(key, content[_DIGEST:]) else None


def keep_bytes(folder: Path, key: str, content: bytes) -> None:
    """Write a file completely or not at all; one under the name of its key is always complete."""
    path = kept_path(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{key}.{os.getpid()}.{threading.get_ident()}")
    partial.write_bytes(_digest(key, content) + content)
    partial.replace(path)


def _digest(key: str, array: bytes) -> bytes:
    """A digest that includes the key: a file under another's name is as bad as a damaged one."""
    return hashlib.sha256(key.encode() + array).digest()
