"""Pictures to pixels: bit for bit what Hugging Face's Pillow processors gave; what is refused."""

import json

import pytest
from parity import processors_fixture as fixture

from dfm_jax.data import PictureProcessor, processor_settings, read_processor

RECORDED = json.loads(fixture.FIXTURE.read_text())["processors"]


def folder_of(path, settings, name="preprocessor_config.json"):
    path.mkdir(exist_ok=True)
    (path / name).write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("name", RECORDED)
def test_the_numbers_are_those_that_hugging_face_gave(name, tmp_path):
    processor = read_processor(folder_of(tmp_path, RECORDED[name]["settings"]))
    for (height, width), given in zip(fixture.SIZES, RECORDED[name]["results"], strict=True):
        pixels = processor.pixels(fixture.picture(height, width))
        assert len(pixels) == processor.num_pictures(height, width)
        assert fixture.digest(processor.normalized(pixels)) == given, (height, width)


@pytest.mark.parametrize("name", RECORDED)
def test_what_is_written_is_what_was_read(name, tmp_path):
    processor = read_processor(folder_of(tmp_path, RECORDED[name]["settings"]))
    assert read_processor(folder_of(tmp_path, processor_settings(processor))) == processor
    written, given = processor_settings(processor), RECORDED[name]["settings"]
    assert {name: written[name] for name in given} == given


def test_the_processor_may_lie_inside_another_file(tmp_path):
    settings = RECORDED["tiles"]["settings"]
    path = folder_of(tmp_path, {"image_processor": settings}, "processor_config.json")
    assert read_processor(path).fit == "tiles"


def test_a_grid_has_the_aspect_of_the_picture():
    processor = PictureProcessor(size=10, fit="tiles", max_tiles=6)
    assert processor.grid(100, 100) == (2, 2)  # rather than one tile, because it is large
    assert processor.grid(12, 12) == (1, 1)
    assert processor.grid(20, 61) == (1, 3)
    assert processor.grid(61, 20) == (3, 1)
    assert processor.num_pictures(20, 61) == 4
    without = PictureProcessor(size=10, fit="tiles", max_tiles=6, thumbnail=False)
    assert without.num_pictures(20, 61) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "`image_processor_type` of .* must be one"),
        ({"resample": 9}, "`resample` of .* must be one of Pillow's numbers"),
        ({"do_normalize": False}, "`do_normalize` of .* must be true; got do_normalize = False"),
        ({"size": {"height": 8, "width": 9}}, "`size` of .* which are equal"),
        ({"do_pad_more": 1}, "must hold known settings only; got unknown settings = .*do_pad_more"),
        ({"min_patches": 13}, "`min_tiles` must be at most `max_tiles`, which is 12"),
        ({"image_std": [0.0, 1.0, 1.0]}, "`std` must hold three numbers, none of them 0"),
    ],
)
def test_a_setting_that_is_not_known_is_refused_by_name(change, message, tmp_path):
    settings = RECORDED["tiles"]["settings"] | change
    with pytest.raises(ValueError, match=message):
        read_processor(folder_of(tmp_path, settings))


def test_a_folder_without_its_processor_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold preprocessor_config\.json"):
        read_processor(tmp_path)


def test_tiles_without_a_thumbnail_cannot_be_written():
    with pytest.raises(ValueError, match="`thumbnail` must be True"):
        processor_settings(PictureProcessor(size=8, fit="tiles", thumbnail=False))
