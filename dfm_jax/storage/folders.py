"""The folder of a run, on a disk or on an object store: `Path` or `StorePath`.

A `StorePath` has those methods of `pathlib.Path` that readers of a run use, so one function reads
both. What lies in a folder that a process writes, which has a `head.json`, is what its list names:
see `lease`. Other objects, such as `ensemble.json`, are just what they are.

    RUN/ensemble.json                  an object
    RUN/expert_003/head.json           the list of a folder that one process writes
    RUN/expert_003/400/SHA256SUMS      of the entry `400`; its object has another name
"""

import contextlib
import io
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property, total_ordering
from pathlib import Path

from dfm_jax.durable import TemporaryError, write_file
from dfm_jax.storage.lease import Entry, Lease, acquired, check_not_lost, read_head
from dfm_jax.storage.objects import SCHEMES, Objects, open_bucket

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", flags=re.DOTALL)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")


@total_ordering
class StorePath:
    """A path on an object store: `gs://BUCKET/KEY` or `s3://BUCKET/KEY`.

    It is no `os.PathLike`: what needs a file of this disk takes `on_disk(path)`.
    """

    def __init__(self, scheme: str, bucket: str, parts: tuple[str, ...], top: int = 1) -> None:
        """Name the path; nothing is asked of the store yet.

        Its first `top` parts name the folder of the run: above it no list is looked for, because
        what lies there is none of this package, and may be forbidden.
        """
        self._scheme, self._bucket, self._parts, self._top = scheme, bucket, parts, top

    @cached_property
    def objects(self) -> Objects:
        """The objects of the bucket."""
        return open_bucket(self._scheme, self._bucket)

    @property
    def key(self) -> str:
        """The path inside the bucket."""
        return "/".join(self._parts)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._parts[-1]

    @property
    def parent(self) -> "StorePath":
        """The path without its last part."""
        return StorePath(self._scheme, self._bucket, self._parts[:-1], self._top)

    def __truediv__(self, name: str) -> "StorePath":
        """A path below this one."""
        parts = tuple(part for part in str(name).split("/") if part not in ("", "."))
        return StorePath(self._scheme, self._bucket, self._parts + parts, self._top)

    def __str__(self) -> str:
        return f"{self._scheme}://{self._bucket}/{self.key}"

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and str(self) == str(other)

    def __lt__(self, other: "StorePath") -> bool:
        return self._parts < other._parts

    def __hash__(self) -> int:
        return hash(str(self))

    def absolute(self) -> "StorePath":
        """The path itself."""
        return self

    def with_name(self, name: str) -> "StorePath":
        """The path with another last part."""
        return self.parent / name

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a store has no folders without objects."""

    def is_file(self) -> bool:
        """Whether there is an entry or an object of this name."""
        key = self._key()
        return key is not None and self.objects.exists(key)

    def is_dir(self) -> bool:
        """Whether anything lies below this path."""
        if self._entries() is not None:
            return True
        if (entry := self._entry()) is not None:
            return entry[0].objects is not None
        return any(self.objects.names(self.key))

    def exists(self) -> bool:
        """Whether it is a file or a folder."""
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator["StorePath"]:
        """The paths directly below this one."""
        if (entries := self._entries()) is not None:
            return iter([self / name for name in sorted(entries)])
        check_not_lost(self.objects, self.key)
        folders, files = self.objects.names(self.key)
        return iter([self / name for name in sorted({*folders, *files})])

    def glob(self, pattern: str) -> Iterator["StorePath"]:
        """The paths directly below this one whose names match."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def read_bytes(self) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: if there is none.
            TemporaryError: if the owner of its folder removes it in the meantime.
        """
        entry = self._entry()
        key = self._key_of(entry)
        found = None if key is None else self.objects.read(key)
        if found is None:
            self._check_named(entry)
            raise FileNotFoundError(2, "There is no such object", str(self))
        return found.content

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The content of a file as text."""
        return self.read_bytes().decode(encoding, errors)

    def open(self, mode: str = "rb") -> io.BytesIO:
        """The content of a file, to be read; only the mode `rb` is known."""
        if mode != "rb":
            raise ValueError(f"`mode` must be rb, because a store is written whole; got {mode!r}.")
        return io.BytesIO(self.read_bytes())

    def write_bytes(self, content: bytes) -> None:
        """Write a file, whole or not at all: an entry of a folder that is held, or an object.

        Raises:
            TemporaryError: if the folder is written by another process.
        """
        with self._writing() as lease:
            if lease is not None:
                lease.commit({self.name: content})
            else:
                self.objects.write(self.key, content)

    def commit(self, added: Mapping[str, bytes | Path], *, removed: Iterable[str] = ()) -> None:
        """Add and remove entries of this folder, which this process holds, all at once."""
        _held[str(self)].commit(added, removed=tuple(removed))

    def follow(self, path: Path) -> None:
        """Send a file of this disk as it grows; this process holds the folder."""
        _held[str(self)].follow(path)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove a file.

        Raises:
            FileNotFoundError: if there is none, unless `missing_ok`.
        """
        if not self.is_file():
            if not missing_ok:
                raise FileNotFoundError(2, "There is no such object", str(self))
            return
        with self._writing() as lease:
            if lease is not None:
                lease.commit({}, removed=(self.name,))
            else:
                self.objects.delete([self.key])

    def rename(self, target: "StorePath") -> "StorePath":
        """Rename an entry of a folder that this process holds."""
        lease = _held.get(str(self.parent))
        if lease is None or target.parent != self.parent:
            raise ValueError(
                f"Only an entry of a folder that this process writes can be renamed, and only "
                f"inside it; got {self} and {target}."
            )
        lease.commit({}, renamed={self.name: target.name})
        return target

    def copy_to(self, folder: Path) -> None:
        """Copy a folder into a new one of this disk; a run becomes what it would be there.

        Raises:
            TemporaryError: if the owner of the folder removes it in the meantime.
        """
        if (entry := self._entry()) is not None:
            prefix = f"{entry[0].key}{entry[1]}"
            keys = self.objects.sizes(prefix)
            try:
                self.objects.copy({key: folder / _inner(key.removeprefix(prefix)) for key in keys})
            except FileNotFoundError:
                self._check_named(entry)
                raise
            if len(keys) != entry[0].objects:
                self._check_named(entry)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for path in self.iterdir():
            if path.is_dir():
                path.copy_to(folder / path.name)
            else:
                (folder / path.name).write_bytes(path.read_bytes())

    def _entry(self) -> tuple[Entry, str] | None:
        """The entry that this path is, or lies in, and the rest of the path below it."""
        for number in range(len(self._parts) - 1, self._top - 1, -1):
            folder = StorePath(self._scheme, self._bucket, self._parts[:number])
            if (entries := folder._entries()) is not None:
                name, *rest = self._parts[number:]
                return (entries[name], "/".join(rest)) if name in entries else None
        return None

    def _entries(self) -> dict[str, Entry] | None:
        """What the list of this folder names; None if it has no list."""
        if (lease := _held.get(str(self))) is not None:
            return lease.entries
        found = read_head(self.objects, self.key)
        return None if found is None else found.head.entries

    def _check_named(self, entry: tuple[Entry, str] | None) -> None:
        """Check that the list still names the entry of which an object was not found."""
        if entry is not None and self._entry() != entry:
            raise TemporaryError(f"{self}: the process that trains there removed it meanwhile.")

    def _key(self) -> str | None:
        """The key of the object that this path is if it is a file; None if it cannot be one."""
        return self._key_of(self._entry())

    def _key_of(self, entry: tuple[Entry, str] | None) -> str | None:
        if entry is None:
            return self.key
        found, rest = entry
        if found.objects is None:
            return None if rest else found.key
        return f"{found.key}{rest}" if rest else None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Lease | None]:
        """The lease of the folder of this path; None if it is no folder that one process writes.

        Raises:
            TemporaryError: if the folder has another owner.
        """
        if (lease := _held.get(str(self.parent))) is not None:
            yield lease
            return
        found = read_head(self.objects, self.parent.key)
        if found is None:
            yield None
        elif found.head.owner is None:
            with acquired(self.objects, self.parent.key) as lease:
                yield lease
        else:
            raise TemporaryError(f"{self.parent}: only the process that holds it may write there.")


Folder = Path | StorePath


def run_folder(text: str) -> Folder:
    """The folder of a run that a text names: on this disk, or at `gs://…` or `s3://…`.

    Raises:
        ValueError: if it is the address of another kind, or has no bucket or no path in it.
    """
    matched = _URL.fullmatch(text)
    if matched is None:
        return Path(text)
    scheme, rest = matched.groups()
    bucket, _, key = rest.partition("/")
    rule = "`run` must be a folder of this machine, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"
    parts = key.rstrip("/").split("/")
    plain = all(part not in ("", ".", "..") and part.isprintable() for part in parts)
    if scheme not in SCHEMES or not _BUCKET.fullmatch(bucket) or not plain:
        raise ValueError(f"{rule}; got run = {text!r}.")
    return StorePath(scheme, bucket, tuple(parts), top=len(parts))


def write_whole(path: Folder, text: str) -> None:
    """Write a file of a run, with text as UTF-8, in place of the old one, whole or not at all."""
    if isinstance(path, StorePath):
        path.write_bytes(text.encode())
    else:
        write_file(path, text)


@contextlib.contextmanager
def on_disk(folder: Folder) -> Iterator[Path]:
    """A folder as a folder of this disk; one of a store is copied for as long as the context lasts.

    Errors in the context name the folder, not the copy.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="dfm_jax_") as scratch:
        copy = Path(scratch) / folder.name
        if folder.is_dir():
            folder.copy_to(copy)
        try:
            yield copy
        except ValueError as error:
            names = str(copy), str(folder)
            error.args = tuple(a.replace(*names) if isinstance(a, str) else a for a in error.args)
            raise


@contextlib.contextmanager
def held(
    folder: StorePath, told: Mapping[str, int], *, say: Callable[[str], object] | None = None
) -> Iterator[Path]:
    """Hold a folder of a store for this process; the context gives a folder of this disk for it.

    Raises:
        TemporaryError: if another process holds it, see `acquired`.
    """
    name = str(folder)
    with _holding:
        if name in _held:
            raise TemporaryError(f"{folder}: another thread is training here.")
    with (
        tempfile.TemporaryDirectory(prefix="dfm_jax_") as scratch,
        acquired(folder.objects, folder.key, told=told, say=say) as lease,
    ):
        _held[name] = lease
        try:
            yield Path(scratch)
        finally:
            del _held[name]


_holding = threading.Lock()
_held: dict[str, Lease] = {}  # by the address of the folder


def _inner(name: str) -> str:
    """A path inside a folder, which does not lead out of it."""
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"Each object must have a plain name inside its folder; got {name!r}.")
    return name
