"""A folder of an object store that one process writes: its list of entries, and the right to write.

    FOLDER/head.json                     the list: which objects make up each entry, and the owner
    FOLDER/000007/3/config.json          an entry that is a file
    FOLDER/000007/4/400/state/…          an entry that is a folder

Objects of entries are written under names that are never used again. Then the list is replaced, on
the condition that nobody else has replaced it. So a commit takes effect whole or not at all, and
readers see the entries of one list. What no list names is garbage, which the next owner deletes.
The list names objects as seen from its folder, so a folder that was copied or moved is whole, and
shares nothing with the old one.

The list names its owner, and a fencing number that grows with each owner: the 7 above. An owner
replaces the list at least four times in `silence` seconds. Who wants to take over watches the list
for so long by its own clock; if it stays the same, it replaces the owner. If the old owner was only
asleep, its next commit fails, because the list is no longer the one that it wrote last. So no two
owners can both commit, whatever the clocks say; clocks decide only how soon a run goes on.
"""

import contextlib
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from dfm_jax.durable import TemporaryError
from dfm_jax.json_text import parse_json
from dfm_jax.storage.objects import Content, Objects, Tag

HEAD = "head.json"
SILENCE_VARIABLE = "DFM_JAX_LEASE_SECONDS"
FOLLOWED = 2**22  # bytes
_TRIES = 6  # of one commit while the store does not answer
_PAUSE = 0.5  # seconds before the second try; later pauses double
_OF_OWNER = re.compile(r"0\d{5}", flags=re.ASCII)  # the folder of what one owner sent
_KEY = re.compile(r"\d{6,}/\d+/(?!\.{1,2}/?$)[^/]+/?", flags=re.ASCII)


class Owner(NamedTuple):
    """The process that may write a folder."""

    host: str
    pid: int
    began: float  # seconds since 1970
    told: dict[str, int]  # what it says about its work


class Entry(NamedTuple):
    """The objects of one entry of a folder."""

    key: str  # of a file; of a folder the prefix, which ends with /; in head.json below FOLDER
    size: int  # in bytes, of all objects
    objects: int | None  # of a folder; None: the entry is a file


class Head(NamedTuple):
    """The content of head.json."""

    write: str  # a random name of this very write
    fence: int
    owner: Owner | None
    silence: float  # seconds after which a silent owner may be replaced
    entries: dict[str, Entry]


class Found(NamedTuple):
    """A head, the version of its object, and when it was written, in seconds since 1970."""

    head: Head
    tag: Tag
    written: float  # by the clock of the store; of what this process has written, by its own


def whole_lines(path: Path) -> bytes:
    """The content of a file up to the end of its last whole line; another thread may write it."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def read_head(objects: Objects, folder: str) -> Found | None:
    """The head of a folder, or None if nothing was ever written there.

    Raises:
        ValueError: if the object does not have the form that `Lease` writes.
        TemporaryError: if the store does not answer.
    """
    found = objects.read(f"{folder}/{HEAD}")
    if found is None:
        return None
    return Found(_parsed(objects, folder, found), found.tag, found.written)


def check_not_lost(objects: Objects, folder: str) -> None:
    """Check that a folder without a head was never written.

    Raises:
        ValueError: if there are objects of an owner, which only the head could name.
    """
    left = [name for name in objects.names(folder)[0] if _OF_OWNER.fullmatch(name)]
    if left and read_head(objects, folder) is None:  # else an owner came between the two questions
        raise ValueError(
            f"{objects.url}/{folder} must have its {HEAD}, which names what was saved there; got "
            f"objects in {', '.join(left)} and no {HEAD}. Restore it, or remove these objects to "
            "begin anew."
        )


def _parsed(objects: Objects, folder: str, found: Content) -> Head:
    from dfm_jax.json_types import from_json  # imports jax, which not all who name a path need

    try:
        head = from_json(Head, parse_json(found.content), where="head")
        for name, entry in head.entries.items():
            plain = name not in ("", ".", "..") and "/" not in name
            if not plain or not _KEY.fullmatch(entry.key):
                rule = "each entry must lie in the folder"
                raise ValueError(f"{rule}; got {name!r} with the key {entry.key!r}.")
    except ValueError as error:
        rule = f"{objects.url}/{folder}/{HEAD} must be as this version writes it"
        raise ValueError(f"{rule}; got another content: {error}") from error
    return head._replace(
        entries={n: e._replace(key=f"{folder}/{e.key}") for n, e in head.entries.items()}
    )


def lease_seconds() -> float:
    """The seconds after which a silent owner may be replaced: DFM_JAX_LEASE_SECONDS, or 60.

    Raises:
        ValueError: if the variable is not a number of at least 1.
    """
    from dfm_jax.checks import check_interval  # imports jax, too

    text = os.environ.get(SILENCE_VARIABLE, "60")
    try:
        seconds = float(text)
    except ValueError:
        rule = f"{SILENCE_VARIABLE} must be a number of seconds"
        raise ValueError(f"{rule}; got {SILENCE_VARIABLE} = {text!r}.") from None
    check_interval(SILENCE_VARIABLE, seconds, 1, 86_400)
    return seconds


class Lease:
    """The right to write a folder, from `acquired` to the end of the context or of the process.

    Attributes:
        fence: The fencing number, larger than that of every owner before.
    """

    def __init__(self, objects: Objects, folder: str, found: Found) -> None:
        """Hold the folder whose head, which names this process, is `found`."""
        self.objects, self.folder, self.fence = objects, folder, found.head.fence
        self._found, self._numbers, self._lost = found, itertools.count(1), ""
        self._unanswered = set[str]()  # writes of the head that may take effect, or have done so
        self._followed: Path | None = None
        self._sent = -1  # bytes of the file that is followed
        self._mutex = threading.Lock()
        self._committing = threading.Lock()  # taken before _mutex
        self._released = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)

    @property
    def name(self) -> str:
        """The address of the folder."""
        return f"{self.objects.url}/{self.folder}"

    @property
    def entries(self) -> dict[str, Entry]:
        """The entries as this process wrote them last."""
        return dict(self._found.head.entries)

    def __enter__(self) -> "Lease":
        """Begin to renew the lease, and delete what earlier owners left unfinished."""
        self._renewing.start()
        try:
            self._delete_unlisted()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Give the folder back, so that the next owner need not wait."""
        self._released.set()
        if self._renewing.ident is not None:  # it was begun
            self._renewing.join()
        with contextlib.suppress(OSError, ValueError):
            self._send_followed()  # what was logged after the last checkpoint
            with self._mutex:
                self._replace(self._found.head._replace(owner=None), tries=1)

    def commit(
        self,
        files: Mapping[str, bytes | Path],
        *,
        removed: tuple[str, ...] = (),
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        """Add, remove and rename entries, all at once or not at all.

        Args:
            files: The bytes of a file, or the path of a file or folder on this disk, by the name of
                its entry.
            removed: The names of entries that go; their objects are deleted afterwards.
            renamed: The new names of entries.

        Raises:
            TemporaryError: if another process has taken over; if the store does not answer. Then
                the entries are as they were.
            ValueError: if the store refuses access.
        """
        with self._committing:
            self._commit(files, removed, renamed or {})

    def _commit(
        self,
        files: Mapping[str, bytes | Path],
        removed: tuple[str, ...],
        renamed: Mapping[str, str],
        tries: int = _TRIES,
    ) -> None:
        self.check()
        prefix = f"{self.folder}/{self.fence:06d}/{next(self._numbers)}"
        added, contents = {}, {}
        for name, content in files.items():
            added[name], sent = _laid_out(prefix, name, content)
            contents |= sent
        self.objects.write_all(contents)
        for name, entry in added.items():
            self._check_sent(name, entry)
        with self._mutex:
            before = self._found.head.entries
            entries = {n: entry for n, entry in before.items() if n not in removed}
            entries = {renamed.get(n, n): entry for n, entry in entries.items()} | added
            self._replace(self._found.head._replace(entries=entries), tries=tries)
        kept = {entry.key for entry in entries.values()}
        gone = [entry for entry in before.values() if entry.key not in kept]
        with contextlib.suppress(TemporaryError):  # the next owner deletes what no list names
            self.objects.delete(key for entry in gone for key in _keys(self.objects, entry))

    def follow(self, path: Path) -> None:
        """Send a file that grows, up to its last whole line, whenever the lease is renewed.

        A file above `FOLLOWED` bytes is sent with checkpoints only.
        """
        self._followed = path

    def check(self) -> None:
        """Raise TemporaryError if another process has taken over."""
        if self._lost:
            raise TemporaryError(self._lost)

    def _check_sent(self, name: str, entry: Entry) -> None:
        """Check that what was sent is there whole, before a list names it."""
        if entry.objects is None:
            return  # one request, whose size the store checks
        found = self.objects.sizes(entry.key)
        if (len(found), sum(found.values())) != (entry.objects, entry.size):
            with self._mutex:  # a later owner deletes what an earlier one sends
                self._replace(self._found.head)
            raise TemporaryError(
                f"{self.name}/{name}: the store must hold {entry.objects} objects of "
                f"{entry.size:,} bytes, as they were sent; got {len(found)} objects of "
                f"{sum(found.values()):,} bytes."
            )

    def _replace(self, head: Head, *, tries: int = _TRIES) -> None:
        """Replace the head if it is the one that this process wrote last; the caller holds _mutex.

        A request may take effect although its answer is lost, also an earlier one that this process
        gave up. Then the name of the write says so.
        """
        self.check()
        head = head._replace(write=uuid.uuid4().hex)
        key, content, tried = f"{self.folder}/{HEAD}", _json(self.folder, head), 0
        self._unanswered.add(head.write)  # even if a signal ends the wait
        while True:
            try:
                tag = self.objects.replace(key, content, self._found.tag)
                found = (
                    Found(head, tag, time.time()) if tag else read_head(self.objects, self.folder)
                )
            except TemporaryError:
                tried += 1
                if tried == tries:
                    raise
                self._released.wait(_PAUSE * 2.0 ** (tried - 1))
                continue
            if found is not None and found.head.write == head.write:
                self._found = found
                self._unanswered.clear()  # they ask for versions that are gone
                return
            if found is None or found.head.write not in self._unanswered:
                self._lose(found)
            else:
                self._found = self._found._replace(tag=found.tag)

    def _lose(self, found: Found | None) -> None:
        """Note that the folder is another's, and say so."""
        if found is None:
            self._lost = f"{self.name}: its {HEAD} was removed while this process held the folder."
        else:
            owner = found.head.owner
            by = "" if owner is None else f", {owner.host}, process {owner.pid}"
            self._lost = (
                f"{self.name}: another process has taken over (fencing number {found.head.fence}"
                f"{by}), because this one (fencing number {self.fence}) was silent for more than "
                f"{self._found.head.silence:g} s. What was saved before is kept."
            )
        raise TemporaryError(self._lost)

    def _renew(self) -> None:
        while not self._released.wait(self._found.head.silence / 4):
            # Silent while the store is: what matters is said at the next commit.
            with contextlib.suppress(OSError, ValueError):
                with self._mutex:
                    self._replace(self._found.head, tries=1)
                self._send_followed()  # not before, because it may take long
            if self._lost:
                return

    def _send_followed(self) -> None:
        """Send the file that is followed if it has grown.

        A commit that is on its way sends it too, and must not be undone by what is older.
        """
        if (path := self._followed) is None or path.stat().st_size > FOLLOWED:
            return
        if self._committing.acquire(blocking=False):
            try:
                content = whole_lines(path)
                if len(content) > self._sent:
                    self._commit({path.name: content}, (), {}, tries=1)
                    self._sent = len(content)
            finally:
                self._committing.release()

    def _delete_unlisted(self) -> None:
        """Delete the objects of earlier owners that no entry names."""
        listed = tuple(entry.key for entry in self._found.head.entries.values())
        garbage = []
        for key in self.objects.sizes(f"{self.folder}/"):
            owner = key.removeprefix(f"{self.folder}/").partition("/")[0]
            if owner.isdecimal() and int(owner) < self.fence and not key.startswith(listed):
                garbage.append(key)
        self.objects.delete(garbage)


def acquired(
    objects: Objects,
    folder: str,
    *,
    told: Mapping[str, int] | None = None,
    silence: float | None = None,
    say: Callable[[str], object] | None = None,
) -> Lease:
    """The lease of a folder, as soon as nobody has it.

    If another process has it, this one waits for as long as that process may be silent, and takes
    over if the head stays the same. It does not wait for a process that shows that it is alive.

    Args:
        objects: The objects of the bucket.
        folder: The key of the folder.
        told: What the owner says about its work, for those who look.
        silence: The seconds after which the new owner, if silent, may be replaced; by default those
            of `lease_seconds`.
        say: A function that prints a message for the user; by default it prints to stderr.

    Raises:
        TemporaryError: if another process holds the folder, or the store does not answer.
        ValueError: if the store does not keep conditions of writes, or refuses access; if the head
            of a folder that was written is missing.
    """
    say = (lambda text: print(text, file=sys.stderr)) if say is None else say
    silence = lease_seconds() if silence is None else silence
    owner = Owner(socket.gethostname(), os.getpid(), time.time(), dict(told or {}))
    write = uuid.uuid4().hex
    while True:
        found = read_head(objects, folder)
        if found is None:
            check_not_lost(objects, folder)
        elif found.head.owner is not None:
            _wait_for_silence(objects, folder, found, say)
        fence, entries = 1, {}
        if found is not None:
            fence, entries = found.head.fence + 1, found.head.entries
        head = Head(write, fence, owner, silence, entries)
        tag = _claimed(objects, folder, head, found)
        if tag is not None:
            lease = Lease(objects, folder, Found(head, tag, time.time()))
            try:
                _check_conditions(objects, folder, head)
            except BaseException:
                lease.__exit__()
                raise
            return lease


def _claimed(objects: Objects, folder: str, head: Head, found: Found | None) -> Tag | None:
    """The version of the head if this process has written it, and no other one."""
    key, content = f"{folder}/{HEAD}", _json(folder, head)
    for tried in range(1, _TRIES + 1):
        try:
            if found is None:
                tag = objects.create(key, content)
            else:
                tag = objects.replace(key, content, found.tag)
            break
        except TemporaryError:  # it may have taken effect, which the next try finds
            if tried == _TRIES:
                raise
            time.sleep(_PAUSE * 2.0 ** (tried - 1))
    if tag is not None:
        return tag
    now = read_head(objects, folder)
    return now.tag if now is not None and now.head.write == head.write else None


def _wait_for_silence(
    objects: Objects, folder: str, found: Found, say: Callable[[str], object]
) -> None:
    """Return when the owner has been silent for so long that it may be replaced."""
    owner, silence = found.head.owner, found.head.silence
    assert owner is not None
    name = f"{objects.url}/{folder}"
    began = datetime.fromtimestamp(owner.began, UTC).isoformat(" ", "seconds")
    whose = f"{owner.host}, process {owner.pid}, since {began}"
    say(f"{name}: held by {whose}. It is taken over if it stays silent for {silence:g} s.")
    end = time.monotonic() + silence
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, silence / 8))
        now = read_head(objects, folder)
        if now is not None and now.head.owner is None:
            return
        if now is None or now.head.write != found.head.write:
            raise TemporaryError(f"{name}: another process is training here ({whose}).")


def _check_conditions(objects: Objects, folder: str, head: Head) -> None:
    """Check that the store refuses to create what exists, and to replace a version that is gone.

    What is sent is what is there. Some servers keep the first condition only.

    Raises:
        ValueError: if it accepts, because then two processes could both commit.
    """
    key, content = f"{folder}/{HEAD}", _json(folder, head)
    gone = Tag(e_tag=f'"{"0" * 32}"', version="0")
    if objects.create(key, content) or objects.replace(key, content, gone):
        raise ValueError(
            "The store of `run` must refuse a write whose condition does not hold; got a store "
            f"that ignores the condition, {objects.url}. Two processes could damage a run there."
        )


def _laid_out(
    prefix: str, name: str, content: bytes | Path
) -> tuple[Entry, dict[str, bytes | Path]]:
    """The entry of a file or a folder, and what has to be sent for it."""
    key = f"{prefix}/{name}"
    if isinstance(content, bytes):
        return Entry(key, len(content), None), {key: content}
    if content.is_file():
        return Entry(key, content.stat().st_size, None), {key: content}
    files = sorted(path for path in content.rglob("*") if path.is_file())
    sent: dict[str, bytes | Path] = {
        f"{key}/{path.relative_to(content).as_posix()}": path for path in files
    }
    return Entry(f"{key}/", sum(path.stat().st_size for path in files), len(files)), sent


def _keys(objects: Objects, entry: Entry) -> list[str]:
    return [entry.key] if entry.objects is None else list(objects.sizes(entry.key))


def _json(folder: str, head: Head) -> bytes:
    owner = None if head.owner is None else head.owner._asdict()
    below = {n: e._replace(key=e.key.removeprefix(f"{folder}/")) for n, e in head.entries.items()}
    entries = {name: entry._asdict() for name, entry in below.items()}
    full = head._asdict() | {"owner": owner, "entries": entries}
    return (json.dumps(full, indent=1) + "\n").encode()
