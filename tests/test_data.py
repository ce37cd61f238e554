"""Text of a folder: a document per file, none lost in silence, and what is refused."""

import re

import pytest

from dfm_jax.data import load_folder


def _folder(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_holds_a_document_per_file(tmp_path):
    names = ("b.txt", "a/y/z.md", "a/x.md", "a.b/x", ".hidden", "Z.txt")
    folder = _folder(tmp_path / "mine", {name: name.encode() for name in names})
    for found in (load_folder(folder), load_folder(str(folder))):
        assert found.domain == "mine"
        assert [d.name for d in found.documents] == sorted(names)
        assert [d.text for d in found.documents] == sorted(names)
        assert [d.work for d in found.documents] == [".hidden", "Z.txt", "a.b", "a", "a", "b.txt"]
    assert [d.name for d in load_folder(folder, pattern="*.txt").documents] == ["Z.txt", "b.txt"]
    assert [d.name for d in load_folder(folder, pattern="a/**/*").documents] == sorted(names)[3:5]


def test_a_folder_loses_nothing_in_silence(tmp_path):
    files = {"a/latin.txt": b"\xa3", "empty.txt": b"", "lines.txt": b"1\r\n2\r", "x.bin": b"\xff"}
    found = load_folder(_folder(tmp_path, files))
    texts = {document.name: document.text for document in found.documents}
    assert texts == {"empty.txt": "", "lines.txt": "1\r\n2\r"}
    assert found.skipped == ("a/latin.txt", "x.bin")


def test_the_folder_one_is_in_has_its_name(tmp_path, monkeypatch):
    folder = _folder(tmp_path / "mine", {"a.txt": b"a"})
    monkeypatch.chdir(folder)
    assert load_folder(".").domain == "mine"


def test_a_folder_without_a_file_is_refused(tmp_path):
    folder = _folder(tmp_path, {"a/b.txt": b""})
    refused = {
        folder / "none": rf"`folder` must be a folder; got folder = '{folder}/none'\.",
        folder / "a/b.txt": rf"`folder` must be a folder; got folder = '{folder}/a/b\.txt'\.",
    }
    for path, message in refused.items():
        with pytest.raises(ValueError, match=message):
            load_folder(path)
    for pattern in ("*.md", "*"):  # the second matches a folder, not a file
        message = (
            rf"`pattern` must match a file in {folder}; got pattern = '{re.escape(pattern)}'\."
        )
        with pytest.raises(ValueError, match=message):
            load_folder(folder, pattern=pattern)
