"""Pixels that are kept on the disk: by content, made again where they are damaged."""

import dataclasses
import os
import time

import numpy as np
import pytest

from dfm_jax.data import pixels as pixels_module
from dfm_jax.data.arrays import kept_path
from dfm_jax.data.packages import pillow
from dfm_jax.data.pictures import read_picture
from dfm_jax.data.pixels import PixelStore
from dfm_jax.data.processors import PictureProcessor

PROCESSOR = PictureProcessor(size=8, fit="tiles", max_tiles=4)


@pytest.fixture
def picture(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (20, 11, 3), np.uint8)
    pillow().fromarray(values).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_pixels_are_the_processors_and_made_once(picture, tmp_path, monkeypatch):
    store = PixelStore(tmp_path / "kept", PROCESSOR)
    found = store.picture(picture)
    expected = PROCESSOR.pixels(read_picture(picture))
    assert found.count == len(expected) > 1
    np.testing.assert_array_equal(store.pixels(found), expected)
    copy = tmp_path / "b.png"
    copy.write_bytes(picture.read_bytes())
    monkeypatch.setattr(pixels_module, "decoded_picture", None)  # nothing is decoded any more
    assert store.picture(copy).key == found.key
    np.testing.assert_array_equal(store.pixels(found), expected)


def test_another_processor_has_other_pixels(picture, tmp_path):
    other = dataclasses.replace(PROCESSOR, fit="stretch")
    one, two = (PixelStore(tmp_path / "kept", p) for p in (PROCESSOR, other))
    assert one.picture(picture).key != two.picture(picture).key
    assert len(two.pixels(two.picture(picture))) == 1


def test_what_is_damaged_is_made_again(picture, tmp_path):
    store = PixelStore(tmp_path / "kept", PROCESSOR)
    found = store.picture(picture)
    expected = store.pixels(found)
    (path,) = (path for path in store.folder.rglob("*") if path.is_file())
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(store.pixels(found), expected)
        assert path.read_bytes() == whole
    path.write_bytes(b"")
    picture.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png must be a picture that can be read"):
        store.pixels(found)
    pillow().new("RGB", (9, 9)).save(picture)
    with pytest.raises(ValueError, match=r"a\.png must not change while it is trained on"):
        store.pixels(found)


# ── pictures that an earlier start has read ─────────────────────────────────────────────────────


@pytest.fixture
def reads(monkeypatch):
    """The files that `PixelStore.pictures` reads; all times are trusted at once."""
    found, whole = [], PixelStore.picture

    def counted(store, path):
        found.append(path.name)
        return whole(store, path)

    monkeypatch.setattr(PixelStore, "picture", counted)
    monkeypatch.setattr(pixels_module, "SETTLED", 0)
    return found


def read_again(store, reads, *paths):
    """The result, and the names of the files that were read for it."""
    time.sleep(0.02)  # more than the grain of a file's times
    reads.clear()
    found = PixelStore(store.folder, store.processor).pictures(paths)
    return found, sorted(reads)


def test_a_file_is_read_once_and_then_told_by_size_and_times(picture, tmp_path, reads):
    store, other = PixelStore(tmp_path / "kept", PROCESSOR), tmp_path / "b c.png"
    pillow().new("RGB", (9, 9)).save(other)
    first, read = read_again(store, reads, picture, other, picture)
    assert read == ["a.png", "b c.png"]
    again, read = read_again(store, reads, picture, other)
    assert read == []
    assert again == first
    np.testing.assert_array_equal(store.pixels(again[picture]), store.pixels(first[picture]))
    other_processor = dataclasses.replace(PROCESSOR, fit="stretch")
    assert read_again(PixelStore(store.folder, other_processor), reads, other)[1] == ["b c.png"]


def test_a_file_of_the_same_size_and_time_of_writing_is_another(picture, tmp_path, reads):
    """Its time of change is another, which `os.utime` cannot set back."""
    store = PixelStore(tmp_path / "kept", PROCESSOR)
    first, _ = read_again(store, reads, picture)
    about, values = picture.stat(), read_picture(picture)
    pillow().fromarray(values[::-1].copy()).save(picture, compress_level=0)
    content = picture.read_bytes()[: about.st_size].ljust(about.st_size, b"\0")
    time.sleep(0.02)
    picture.write_bytes(content)
    os.utime(picture, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert picture.stat().st_size == about.st_size
    again, read = read_again(store, reads, picture)
    assert read == ["a.png"]
    assert again[picture] != first[picture]


def test_what_is_no_picture_is_read_at_each_start(tmp_path, reads):
    path, store = tmp_path / "a.png", PixelStore(tmp_path / "kept", PROCESSOR)
    path.write_bytes(b"no picture")
    for _ in range(2):
        found, read = read_again(store, reads, path)
        assert read == ["a.png"]
        assert "a.png must be a picture that can be read" in str(found[path])


def test_a_file_that_was_changed_just_now_is_not_listed(picture, tmp_path, reads, monkeypatch):
    store = PixelStore(tmp_path / "kept", PROCESSOR)
    monkeypatch.setattr(pixels_module, "SETTLED", 60 * 10**9)
    for _ in range(2):
        assert read_again(store, reads, picture)[1] == ["a.png"]


def test_a_damaged_list_and_missing_pixels_are_made_again(picture, tmp_path, reads):
    store = PixelStore(tmp_path / "kept", PROCESSOR)
    first, _ = read_again(store, reads, picture)
    kept_path(store.folder, store.picture(picture).key).unlink()
    assert read_again(store, reads, picture) == (first, ["a.png"])
    listing = kept_path(store.folder, store._listing)
    listing.write_bytes(listing.read_bytes()[:-1])
    assert read_again(store, reads, picture) == (first, ["a.png"])
    assert read_again(store, reads, picture) == (first, [])
