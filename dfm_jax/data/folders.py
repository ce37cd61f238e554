"""A folder that is whole or not there: built beside its place, synced, moved there last.

Under `out` nothing stands until every file is written and on the disk, `manifest.json` after the
others. Whatever stops a run before that, a full disk or a kill, leaves `out.partial` at most, which
the next run clears. The manifest names the SHA-256 of every other file, and its own.
"""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from dfm_jax.checks import require
from dfm_jax.json_text import read_json
from dfm_jax.json_types import as_type, from_json

MANIFEST = "manifest.json"
ROWS = ("rows.jsonl", "centre.jsonl")  # of an expert, and of all: what is trained on


class TemporaryError(BlockingIOError):
    """What another process has now and this one needs: it passes, and is no bad input."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EAGAIN, message)

    def __str__(self) -> str:
        return str(self.strerror)


class HashedFile:
    """A file that is hashed while it is written, and on the disk when it is closed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.file, self.hash = path, path.open("wb"), hashlib.sha256()

    def __enter__(self) -> "HashedFile":
        return self

    def write(self, content: bytes) -> None:
        """Append; an error of the disk names the file."""
        try:
            self.file.write(content)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.hash.update(content)

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            if kind is None:  # else the first error is the one to tell
                raise OSError(error.errno, error.strerror, str(self.path)) from error
        finally:
            self.file.raw.close()  # what is left in the buffer could only fail again


class NewFolder:
    """`out.partial`, empty and ours alone, until `finish` makes it `out`.

    Raises:
        TemporaryError: if another process is writing it.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out.with_name(out.name + ".partial")
        self.files: dict[str, str] = {}  # the SHA-256 of what was written

    def __enter__(self) -> "NewFolder":
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock = _locked(self.path)
        for left in self.path.iterdir():  # of a run that was stopped
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.lock is not None:
            os.close(self.lock)

    def write(self, name: str, content: bytes) -> None:
        """A whole file."""
        with HashedFile(self.path / name) as file:
            file.write(content)
        self.files[name] = file.hash.hexdigest()

    def finish(self, manifest: dict) -> dict:
        """Write the manifest with the hashes of the files, and move the folder to its place."""
        manifest = manifest | {"files": self.files}
        manifest |= {"sha256": manifest_digest(manifest)}
        for folder in sorted(path for path in self.path.rglob("*") if path.is_dir()):
            sync_folder(folder)
        sync_folder(self.path)  # no manifest before what it names
        text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with HashedFile(self.path / MANIFEST) as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        sync_folder(self.path)
        os.replace(self.path, self.out)
        sync_folder(self.out.absolute().parent)
        return manifest


class _Manifest(NamedTuple):
    """What every manifest holds, whatever else it does."""

    settings: dict[str, Any]
    inputs: dict[str, Any]
    files: dict[str, str]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Put the names in a folder on the disk; a system that cannot open folders does it itself."""
    if os.name != "posix":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_manifest(folder: Path) -> dict | None:
    """That of a folder that was finished, as it was written; None for anything else.

    Raises:
        OSError: if it is there and cannot be read now: it may well be finished.
    """
    try:
        manifest = as_type(dict[str, Any], read_json(folder / MANIFEST), "manifest")
        if manifest.get("sha256") != manifest_digest(manifest):
            return None
        parts = {name: manifest.get(name) for name in _Manifest._fields}
        return manifest | from_json(_Manifest, parts, where="manifest")._asdict()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def check_file(folder: Path, manifest: dict, name: str) -> None:
    """The file is the one that the manifest names."""
    path, digest = folder / name, manifest["files"].get(name)
    found = file_digest(path) if path.is_file() else "no such file"
    require(found == digest, f"the SHA-256 of {path} must be {digest}, as its manifest says", found)


def check_rows(path: Path) -> None:
    """Rows that a manifest names, beside them or in the folder above, are as they were written.

    The file is read once for it, at the speed of SHA-256. Rows without a manifest are the user's
    own, and not judged.

    Raises:
        ValueError: if they are not, or the manifest is damaged, or does not name them.
    """
    for folder in (path.parent, path.parent.parent):
        if not (folder / MANIFEST).is_file():
            continue
        manifest, name = read_manifest(folder), path.relative_to(folder).as_posix()
        if manifest is not None and name in manifest["files"]:
            check_file(folder, manifest, name)
        elif path.name in ROWS:
            rule = f"{folder / MANIFEST} must be as it was written, and name {name}"
            raise ValueError(f"{rule}; it is damaged, or of other rows.")
        return


def manifest_digest(manifest: dict) -> str:
    """Of all of it but this digest, whatever the order of its fields."""
    kept = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def lock(descriptor: int, busy: str) -> None:
    """Hold a file or a folder until it is closed, by the end of the process at the latest.

    Raises:
        TemporaryError: saying `busy`, if another process holds it.
        OSError: if the file system cannot lock, or has no lock left.
    """
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TemporaryError(busy) from None


def _locked(path: Path) -> int | None:
    if os.name != "posix":
        return None
    busy = f"`out` must be written by one process at a time; another has {path}."
    try:
        folder = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # the other has finished it, between our two questions
        raise TemporaryError(busy) from None
    try:
        lock(folder, busy)
        if _moved(folder, path):
            raise TemporaryError(busy)
    except BaseException:
        os.close(folder)
        raise
    return folder


def _moved(folder: int, path: Path) -> bool:
    try:
        return not os.path.samestat(os.fstat(folder), os.stat(path))
    except FileNotFoundError:
        return True
