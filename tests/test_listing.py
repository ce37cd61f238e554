"""`listing`: every file of a folder, or a refusal that names what would have been left out."""

import errno
import os
import socket

import pytest

from dfm_jax.cli import main
from dfm_jax.data import load_folder
from dfm_jax.data.listing import files_in
from dfm_jax.data.records import input_digest, read_records
from dfm_jax.data.tokens import byte_tokenizer, map_tokens, read_texts


def make(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def linked(tmp_path):
    """A folder of text with a link to a file and one to a folder outside of it."""
    outside = make(tmp_path / "outside", deep__c="c", d="d")
    folder = make(tmp_path / "texts", a="a", sub__b="b")
    (folder / "sub" / "more").symlink_to(outside)
    (folder / "e").symlink_to(outside / "d")
    return folder


NAMES = ["a", "e", "sub/b", "sub/more/d", "sub/more/deep/c"]


def readers(folder):
    """What each reader of a folder of text finds."""
    tokens, _ = map_tokens(
        folder, folder.parent / "tokens", byte_tokenizer(), name="bytes", share=0.0
    )
    return {
        "texts": read_texts(folder),
        "records": [row.fields["conversations"][0]["value"] for row in read_records(folder)],
        "corpus": [document.text for document in load_folder(folder).documents],
        "tokens": list(tokens.tokens.tobytes().decode()),
    }


def test_every_reader_follows_links_and_reads_the_same_documents(linked):
    assert [name for name, _ in files_in(linked)] == NAMES
    assert set(map(tuple, readers(linked).values())) == {("a", "d", "b", "d", "c")}
    before = input_digest(linked)
    (linked.parent / "outside" / "deep" / "c").write_text("C")
    assert input_digest(linked) != before
    assert readers(linked)["tokens"] == ["a", "d", "b", "d", "C"]  # not those kept before


def broken(folder):
    (folder / "sub" / "gone").symlink_to(folder / "nowhere")
    return "sub/gone leads nowhere"


def loop(folder):
    (folder / "sub" / "up").symlink_to(folder)
    return "sub/up leads back to a folder that it lies in"


def itself(folder):
    (folder / "x").symlink_to(folder / "x")
    return "x cannot be read"


def pipe(folder):
    os.mkfifo(folder / "p")
    return "p is neither a file nor a folder"


def listener(folder):
    here = os.open(".", os.O_RDONLY)
    os.chdir(folder)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("s")
    os.fchdir(here)
    os.close(here)
    return "s is neither a file nor a folder"


READERS = (
    read_texts,
    lambda folder: list(read_records(folder)),
    input_digest,
    load_folder,
    lambda folder: map_tokens(
        folder, folder.parent / "t", byte_tokenizer(), name="bytes", share=0.0
    ),
)


@pytest.mark.parametrize("spoil", [broken, loop, itself, pipe, listener])
def test_what_cannot_be_read_is_named(linked, spoil):
    why = spoil(linked)
    for read in READERS:
        with pytest.raises(ValueError, match=f"Every file of {linked} must be .*{why}"):
            read(linked)


def test_a_folder_without_permission_is_named_and_other_errors_are_their_own(linked, monkeypatch):
    scandir = os.scandir

    def refusing(number):
        def refused(path):
            if os.fspath(path).endswith("more"):
                raise OSError(number, os.strerror(number), os.fspath(path))
            return scandir(path)

        return refused

    monkeypatch.setattr(os, "scandir", refusing(errno.EACCES))  # root may read everything
    for read in READERS:
        with pytest.raises(ValueError, match=r"sub/more cannot be read \(Permission denied\)"):
            read(linked)
    monkeypatch.setattr(os, "scandir", refusing(errno.EMFILE))  # passes by itself
    with pytest.raises(OSError, match="Too many open files"):
        files_in(linked)


def test_many_that_cannot_be_read_are_counted(tmp_path):
    for number in range(7):
        (tmp_path / str(number)).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"/0 leads nowhere; .*/4 leads nowhere; and 2 more\."):
        files_in(tmp_path)


def test_what_a_pattern_cannot_match_is_not_looked_at(linked):
    def names(pattern):
        return [name for name, _ in files_in(linked, pattern)]

    assert names("sub/**/?") == ["sub/b", "sub/more/d", "sub/more/deep/c"]
    broken(linked)
    loop(linked)
    pipe(linked)
    assert names("*/b") == ["sub/b"]
    assert names("[ae]") == ["a", "e"]
    with pytest.raises(ValueError, match="sub/gone leads nowhere"):
        names("sub/g*")
    with pytest.raises(ValueError, match="sub/up leads back"):
        names("**/a")


def test_the_command_line_names_it_in_one_line(linked, tmp_path, capsys):
    why = broken(linked)
    command = ("--input", str(linked), "--encoder", "tfidf", "--num-experts", "2", "--out")
    assert main(["partition", *command, str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line
    assert not (tmp_path / "out").exists()
