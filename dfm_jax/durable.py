"""Files and folders that are complete or absent on the disk, and that one process writes at a time.

If a writer is stopped, by a full disk or a kill, the old content stays. Beside it there is at most
a file `NAME.part` or a folder `NAME.partial`, which the next writer takes over.
"""

import errno
import hashlib
import os
import shutil
from pathlib import Path
from types import TracebackType


class TemporaryError(BlockingIOError):
    """Another process holds something that this one needs; this may pass, and is not bad input."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EAGAIN, message)

    def __str__(self) -> str:
        return str(self.strerror)


class HashedFile:
    """A file that is hashed while it is written, and is on the disk when it is closed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.file, self.hash = path, path.open("wb"), hashlib.sha256()

    def __enter__(self) -> "HashedFile":
        return self

    def write(self, content: bytes) -> None:
        """Append content; an error of the disk names the file."""
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
    """`out.partial`, empty and used by this process alone, until `finish` renames it to `out`.

    Raises:
        TemporaryError: if another process is writing it.
    """

    def __init__(self, out: Path, *, suffix: str = ".partial") -> None:
        self.out, self.path = out, out.with_name(out.name + suffix)
        self.files: dict[str, str] = {}  # the SHA-256 of what was written, and is on the disk

    def __enter__(self) -> "NewFolder":
        self.path.mkdir(parents=True, exist_ok=True)
        busy = f"`out` must be written by one process at a time; another has {self.path}."
        self.lock = None if os.name != "posix" else _locked_folder(self.path, busy)
        for left in self.path.iterdir():  # of a run that was stopped
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.lock is not None:
            os.close(self.lock)

    def write(self, name: str, content: bytes) -> None:
        """Write a complete file."""
        with HashedFile(self.path / name) as file:
            file.write(content)
        self.files[name] = file.hash.hexdigest()

    def finish(self, last: tuple[str, bytes] | None = None) -> None:
        """Force all files to the disk, write a last file that describes them, rename the folder."""
        for path in sorted(self.path.rglob("*")):
            if path.is_dir() or path.relative_to(self.path).as_posix() not in self.files:
                force_to_disk(path)
        force_to_disk(self.path)
        if last is not None:  # not before what it names
            self.write(*last)
            force_to_disk(self.path)
        os.replace(self.path, self.out)
        force_to_disk(self.out.absolute().parent)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file, with text as UTF-8, in place of the old one."""
    part = path.with_name(f"{path.name}.part")
    with HashedFile(part) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    os.replace(part, path)
    force_to_disk(path.absolute().parent)


def force_to_disk(path: Path) -> None:
    """fsync a file, or the list of names in a folder."""
    if path.is_dir() and os.name != "posix":
        return  # the system does it itself, and opens no folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(descriptor: int, busy: str) -> None:
    """Hold a file or a folder until it is closed, or until the process ends.

    Raises:
        TemporaryError: if another process holds it; the message is `busy`.
        OSError: if the file system cannot lock, or has no lock left.
    """
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TemporaryError(busy) from None


def _locked_folder(path: Path, busy: str) -> int:
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
