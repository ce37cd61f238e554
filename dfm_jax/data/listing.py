"""List all files of a folder, or refuse; this is the only listing in the package."""

import errno
import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

_SHOWN = 5  # of what cannot be read
_REFUSED = (errno.EACCES, errno.EPERM, errno.ELOOP)  # other errors may pass, and are their own


def files_in(folder: Path, pattern: str = "**/*") -> list[tuple[str, Path]]:
    """All files of a folder and its subfolders, also hidden ones: sorted (inner path, path).

    The inner path is that inside the folder, with /. Links to files and folders are followed; a
    file that has two names is listed twice.

    Args:
        folder: The folder, which may be a link.
        pattern: The pattern of the files, as in `Path.glob`, where `**` means any number of
            folders. Folders that cannot match are not read.

    Raises:
        ValueError: if something would have to be left out: a folder that cannot be read, a link
            that leads nowhere or back to a folder that contains it, a pipe, a socket, a device. The
            message names it.
    """
    wanted = tuple(pattern.split("/"))
    found: list[tuple[str, Path]] = []
    faults: list[str] = []
    waiting: list[tuple[Path, tuple[str, ...], tuple[tuple[int, int], ...]]] = [(folder, (), ())]
    while waiting:
        path, parts, above = waiting.pop()
        try:
            here = _identity(path)
            if here in above:
                faults.append(f"{path} leads back to a folder that it lies in")
                continue
            with os.scandir(path) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            faults.append(f"{path} cannot be read ({error.strerror})")
            continue
        for name in names:
            inner = (*parts, name)
            try:
                kind = stat.S_IFMT((path / name).stat().st_mode)
            except FileNotFoundError:
                kind = 0
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                if _may_lie_in(inner, wanted) or _matches(inner, wanted):
                    faults.append(f"{path / name} cannot be read ({error.strerror})")
                continue
            if kind == stat.S_IFDIR:
                if _may_lie_in(inner, wanted):
                    waiting.append((path / name, inner, (*above, here)))
            elif _matches(inner, wanted):
                if kind == stat.S_IFREG:
                    found.append(("/".join(inner), path / name))
                else:
                    what = "is neither a file nor a folder" if kind else "leads nowhere"
                    faults.append(f"{path / name} {what}")
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        shown = "; ".join(sorted(faults)[:_SHOWN])
        raise ValueError(
            f"Every file of {folder} must be readable; got these faults: {shown}{more}."
        )
    return sorted(found)


def documents_in(folder: Path) -> Iterator[tuple[str, str]]:
    """The path and the text of each file of `files_in`, one at a time.

    Raises:
        ValueError: as `files_in`; if a file is not UTF-8, which the message names.
    """
    for name, path in files_in(folder):
        yield name, read_document(path)


def read_document(path: Path) -> str:
    """Read the text of a file, with its line ends unchanged.

    Raises:
        ValueError: if the file is not UTF-8; the message names it.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text in UTF-8; got other bytes: {error}.") from error


def lies_inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, links followed. A link that leads to itself lies nowhere."""
    try:
        there = path.resolve()
    except RuntimeError:  # a loop of links, before Python 3.13
        return False
    loops = any(part.is_symlink() for part in (there, *there.parents))
    return not loops and there.is_relative_to(folder.resolve())


def _identity(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _may_lie_in(folder: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a name inside `folder` can match."""
    if not pattern or pattern[0] == "**" or not folder:
        return bool(pattern)
    return fnmatchcase(folder[0], pattern[0]) and _may_lie_in(folder[1:], pattern[1:])
