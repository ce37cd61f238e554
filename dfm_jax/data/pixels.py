"""The pixels that a processor makes of picture files, kept on the disk in 8 bits by their content.

The key of a picture is the SHA-256 of the file and of the settings of the processor. So a picture
under two names is kept once, and another processor keeps others beside them.

Files are told by size and times from those that an earlier start has read, as git tells them: see
`PixelStore.pictures`.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from jaxtyping import UInt8
from numpy import frombuffer, ndarray, uint8

from dfm_jax.checks import require
from dfm_jax.data.arrays import keep_bytes, kept_bytes, kept_path
from dfm_jax.data.pictures import READING, decoded_picture
from dfm_jax.data.processors import PictureProcessor
from dfm_jax.types import typed

SETTLED = 60 * 10**9
"""Nanoseconds for which a file must be unchanged before its times are trusted."""


@dataclass(frozen=True)
class Picture:
    """A picture file, and the key of its pixels."""

    path: Path
    key: str
    count: int  # T, the squares that the processor makes of it


class _Stamp(NamedTuple):
    """What changes with the content of a file: no program can set the time of its last change."""

    inode: int
    size: int
    modified: int  # nanoseconds
    changed: int  # nanoseconds; of the content, or of its name, owner and mode


class _Listed(NamedTuple):
    """What an earlier start has found in a file."""

    stamp: _Stamp
    count: int
    key: str


@dataclass(frozen=True)
class PixelStore:
    """A folder of pixels. Several processes may use it at once."""

    folder: Path
    processor: PictureProcessor

    def picture(self, path: Path) -> Picture:
        """Read a file, and keep its pixels if they are not kept yet.

        Raises:
            ValueError: if the file cannot be read as a picture; the message names it.
            MissingDataError: if pillow is not installed.
        """
        content = path.read_bytes()
        key = self._key(content)
        pixels = self._kept(key)
        if pixels is None:
            try:
                pixels = self.processor.pixels(decoded_picture(content))
            except ValueError as error:
                raise ValueError(
                    f"{path} must be a picture that can be read; got another file: {error}."
                ) from error
            keep_bytes(self.folder, key, pixels.tobytes())
        return Picture(path, key, len(pixels))

    def pictures(self, files: Iterable[Path]) -> dict[Path, Picture | str]:
        """Each file once, with its pixels kept; a text says why it is no picture.

        A file whose path, size and times are those of an earlier call is not read again, if its
        pixels are there. The list of them is kept beside the pixels. A file that was changed less
        than a minute before it was read is not listed, because its times could stay the same in a
        later change.

        Raises:
            OSError: if there is no such file.
            MissingDataError: if pillow is not installed.
        """
        known, now = self._listed(), time.time_ns()

        def one(path: Path) -> tuple[_Stamp, Picture | str]:
            about = path.stat()
            stamp = _Stamp(about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
            before = known.get(str(path.absolute()))
            same = before is not None and before.stamp == stamp
            if before is not None and same and kept_path(self.folder, before.key).is_file():
                return stamp, Picture(path, before.key, before.count)
            try:
                return stamp, self.picture(path)
            except ValueError as error:
                return stamp, str(error).removesuffix(".")

        different = list(dict.fromkeys(files))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = dict(zip(different, pool.map(one, different), strict=True))
        read = {
            str(path.absolute()): _Listed(stamp, picture.count, picture.key)
            for path, (stamp, picture) in found.items()
            if isinstance(picture, Picture) and max(stamp.modified, stamp.changed) < now - SETTLED
        }
        if known | read != known:
            self._list(known | read)
        return {path: picture for path, (_, picture) in found.items()}

    @typed
    def pixels(self, picture: Picture) -> UInt8[ndarray, "T size size 3"]:
        """The squares of a picture; if what is kept is damaged, they are made again and kept.

        Raises:
            ValueError: if they must be made again and the file is not the same any more.
        """
        pixels = self._kept(picture.key)
        if pixels is not None:
            return pixels
        again = self.picture(picture.path)
        rule = f"The content of {picture.path} must not change while it is trained on"
        require(again.key == picture.key, rule, again.key, name="its key")
        pixels = self._kept(picture.key)
        assert pixels is not None
        return pixels

    def _kept(self, key: str) -> ndarray | None:
        """Not as an .npy file: Python 3.11 may fail to parse its header in several threads."""
        content = kept_bytes(self.folder, key)
        if content is None:
            return None
        return frombuffer(content, uint8).reshape(-1, self.processor.size, self.processor.size, 3)

    def _key(self, content: bytes) -> str:
        whole = hashlib.sha256(hashlib.sha256(self._settings).digest())
        whole.update(hashlib.sha256(content).digest())
        return whole.hexdigest()

    @property
    def _settings(self) -> bytes:
        return json.dumps([READING, asdict(self.processor)], sort_keys=True).encode()

    @property
    def _listing(self) -> str:
        """The key under which the list of files is kept; it is that of no picture."""
        return hashlib.sha256(b"list of files " + self._settings).hexdigest()

    def _listed(self) -> dict[str, _Listed]:
        """The list by absolute path; a damaged one is empty."""
        content = kept_bytes(self.folder, self._listing) or b""
        found = {}
        for line in content.decode("utf-8", "surrogateescape").split("\n")[:-1]:
            *stamp, count, key, name = line.split(" ", 6)
            found[name] = _Listed(_Stamp(*map(int, stamp)), int(count), key)
        return found

    def _list(self, files: Mapping[str, _Listed]) -> None:
        lines = [
            f"{' '.join(map(str, one.stamp))} {one.count} {one.key} {name}\n"
            for name, one in files.items()
            if "\n" not in name
        ]
        content = "".join(lines).encode("utf-8", "surrogateescape")
        keep_bytes(self.folder, self._listing, content)
