"""Pixels that are kept on the disk: by content, made again where they are damaged."""

import dataclasses

import numpy as np
import pytest

from dfm_jax.data import pixels as pixels_module
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
