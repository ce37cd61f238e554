"""A folder that is whole or not there: built beside its place, synced, moved there last.

Under `out` nothing stands until every file is written and on the disk, `manifest.json` after the
others. Whatever stops a run before that, a full disk or a kill, leaves `out.partial` at most, which
the next run clears. The manifest names the SHA-256 of every other file.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import TracebackType

from dfm_jax.checks import require
from dfm_jax.json_text import read_json

MANIFEST = "manifest.json"


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
        ValueError: if another process is writing it.
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
    """That of a folder that was finished; None for anything else."""
    try:
        manifest = read_json(folder / MANIFEST)
        return manifest if {"settings", "inputs", "files"} <= manifest.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def check_file(folder: Path, manifest: dict, name: str) -> None:
    """The file is the one that the manifest names."""
    path, digest = folder / name, manifest["files"].get(name)
    found = file_digest(path) if path.is_file() else "no such file"
    require(found == digest, f"the SHA-256 of {path} must be {digest}, as its manifest says", found)


def _locked(path: Path) -> int | None:
    """Held until it is closed, by the end of the process at the latest."""
    if os.name != "posix":
        return None
    import fcntl

    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        still_there = os.path.samestat(os.fstat(folder), os.stat(path))
    except OSError:
        still_there = False
    if not still_there:
        os.close(folder)
        raise ValueError(f"`out` must be written by one process at a time; another has {path}.")
    return folder
