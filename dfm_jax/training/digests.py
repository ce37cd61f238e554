"""Check that what is read is what was written: SHA-256 of every file and every array.

`SHA256SUMS` seals a folder. It has the format of `sha256sum`, so `sha256sum -c SHA256SUMS` checks
the folder too. A damaged list is always found: each line must be exactly as it was written, and
each file must be in the list.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dfm_jax.durable import file_digest
from dfm_jax.storage.folders import Folder

SUMS = "SHA256SUMS"
_LINE = re.compile(rb"([0-9a-f]{64})  ([^\n]+)\n")


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another run; the message names path and rule."""


class DamagedError(CheckpointError):
    """Files or arrays of a checkpoint are not as they were written; all of them could be read.

    A file that cannot be read now, because memory or descriptors are used up, is not damaged: its
    `OSError` or `MemoryError` is raised unchanged.
    """


def seal_folder(folder: Path) -> str:
    """Write `SHA256SUMS` over all files of a folder; return the digest of `SHA256SUMS`."""
    files = _files(folder)
    text = b"".join(
        file_digest(folder / name).encode() + b"  " + name.encode() + b"\n" for name in files
    )
    (folder / SUMS).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def check_folder(folder: Path) -> str:
    """Check that a folder holds exactly its sealed files, unchanged; return the list's digest.

    Raises:
        CheckpointError: if there is no such folder.
        DamagedError: if a file differs; the message names it, what was expected and what was found.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no checkpoint is there.")
    text, expected = _listed(folder)
    found = set(_files(folder))
    for name, digest in expected.items():
        if name not in found:
            raise DamagedError(f"{folder}: the file {name} is missing.")
        _check_digest(folder, name, digest)
    for name in sorted(found - set(expected)):
        raise DamagedError(f"{folder}: each file must be listed in {SUMS}; got file = {name!r}.")
    return hashlib.sha256(text).hexdigest()


def check_listed(folder: Folder, name: str) -> None:
    """Check that one file is as it was sealed; the others, which may be large, are not read.

    Raises:
        CheckpointError: if there is no such folder.
        DamagedError: if it has changed, or is not in the list.
    """
    _, expected = _listed(folder)
    if name not in expected or not (folder / name).is_file():
        raise DamagedError(f"{folder}: the file {name} is missing.")
    _check_digest(folder, name, expected[name])


def _listed(folder: Folder) -> tuple[bytes, dict[str, str]]:
    """The text of `SHA256SUMS`, and the digest of each file by its name."""
    try:
        text = (folder / SUMS).read_bytes()
    except FileNotFoundError:
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no checkpoint is there.") from None
        raise DamagedError(
            f"{folder}: {SUMS} is missing, because the checkpoint was never finished."
        ) from None
    lines = list(_LINE.finditer(text))
    if b"".join(line.group(0) for line in lines) != text or not lines:
        rule = f"each line of {SUMS} must be a SHA-256 and the name of a file"
        raise DamagedError(f"{folder}: {rule}; got another line. The list is damaged.")
    return text, {os.fsdecode(line.group(2)): line.group(1).decode() for line in lines}


def _check_digest(folder: Folder, name: str, digest: str) -> None:
    with (folder / name).open("rb") as file:
        actual, size = hashlib.file_digest(file, "sha256").hexdigest(), file.seek(0, os.SEEK_END)
    if actual != digest:
        raise DamagedError(
            f"{folder}: the SHA-256 of the file {name} must be {digest[:16]}…; got SHA-256 = "
            f"{actual[:16]}… ({size:,} bytes). The file is damaged."
        )


def array_spec(array: np.ndarray) -> dict[str, Any]:
    """The type, shape and SHA-256 of an array; the digest is of its bytes in C order."""
    content = np.ascontiguousarray(array)
    digest = hashlib.sha256(content.reshape(-1).view(np.uint8).data).hexdigest()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": digest}


def host_leaves(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree by their paths, copied to the host; a key is copied as its data.

    They are copies, because on a CPU a view would change when a later step reuses the buffer. Parts
    on devices of other processes are gathered, one leaf at a time, so all processes must call this.

    Raises:
        ValueError: if a leaf is not an array or has no element, or two leaves have the same name.
    """
    leaves = {}
    for name, leaf in named_leaves(tree):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
            raise ValueError(f"The leaf `{name}` must be an array; got {name} = {leaf!r}.")
        leaf = _whole(leaf) if isinstance(leaf, jax.Array) else leaf
        array: Any = jax.random.key_data(leaf) if is_key(leaf) else leaf  # type: ignore[arg-type]
        if array.size == 0:
            rule = f"The leaf `{name}` must hold an element"
            raise ValueError(f"{rule}; got {name}.shape = {array.shape}.")
        if name in leaves:
            raise ValueError(f"The names of leaves must differ; got {name!r} twice.")
        leaves[name] = np.array(array, copy=True)
    return leaves


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves with their paths, such as `params/layers_0/kernel`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in flat]


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed key, or an array of typed keys."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _whole(leaf: jax.Array) -> jax.Array:
    """The whole leaf on a device of this process."""
    if leaf.is_fully_addressable:
        return leaf
    if not leaf.is_fully_replicated:
        mesh = leaf.sharding.mesh  # type: ignore[attr-defined]
        leaf = jax.jit(_same, out_shardings=NamedSharding(mesh, PartitionSpec()))(leaf)
    return leaf.addressable_data(0)


def _same(leaf: jax.Array) -> jax.Array:
    return leaf


def _files(folder: Path) -> list[str]:
    paths = (Path(where) / name for where, _, files in _walk(folder) for name in files)
    return sorted(name for path in paths if (name := path.relative_to(folder).as_posix()) != SUMS)


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """All folders; `Path.rglob` would skip a folder that cannot be read, and its files with it."""

    def refuse(error: OSError) -> NoReturn:
        raise error

    return os.walk(folder, onerror=refuse)


@contextlib.contextmanager
def mended_by_training() -> Iterator[None]:
    """In this context, a `DamagedError` also says how training mends the damage."""
    try:
        yield
    except DamagedError as error:
        then = "Give `train` again: it goes on from the checkpoint before."
        raise DamagedError(f"{error} {then}") from error
