"""`pictures`: every mode of pillow has the right pixels, or is refused by name."""

import io

import numpy as np
import pytest

from dfm_jax.data import pictures
from dfm_jax.data.pictures import decoded_picture, read_picture, read_rgba

Image = pytest.importorskip("PIL.Image")
SIXTEEN = np.array([[0, 257 * 7, 257 * 200, 65535]], np.uint16)
IN_EIGHT = [0, 7, 200, 255]


def file_of(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def filled(mode, *values):
    """Two pixels: `values`."""
    image = Image.new(mode, (2, 1))
    image.putdata(values)
    return image


def palette(mode, **info):
    image = filled(mode, *((0, 1) if mode == "P" else ((0, 255), (1, 0))))
    image.putpalette([200, 100, 50, 9, 8, 7])
    image.info |= info
    return image


def tiff(values, **tags):
    image = Image.fromarray(np.asarray(values))
    return file_of(image, "TIFF", tiffinfo={int(name[1:]): value for name, value in tags.items()})


def read(image, kind, **options):
    return decoded_picture(file_of(image, kind, **options)).tolist()


WHITE = [255] * 3
# What two pixels are read as, at full opacity and in part: over white.
KINDS = {
    "1": (filled("1", 0, 255), "PNG", [[0] * 3, WHITE]),
    "L": (filled("L", 7, 200), "PNG", [[7] * 3, [200] * 3]),
    "LA": (filled("LA", (7, 255), (0, 51)), "PNG", [[7] * 3, [204] * 3]),
    "P": (palette("P"), "PNG", [[200, 100, 50], [9, 8, 7]]),
    "P with a clear color": (palette("P", transparency=1), "PNG", [[200, 100, 50], WHITE]),
    "P with alphas": (palette("P", transparency=b"\xff\x33"), "PNG", [[200, 100, 50], [206] * 3]),
    "RGB": (filled("RGB", (1, 2, 3), (4, 5, 6)), "PNG", [[1, 2, 3], [4, 5, 6]]),
    "RGBA": (filled("RGBA", (1, 2, 3, 255), (9, 9, 9, 0)), "PNG", [[1, 2, 3], WHITE]),
    "CMYK": (filled("CMYK", (255, 0, 0, 0), (0, 0, 0, 255)), "TIFF", [[0, 255, 255], [0] * 3]),
    "YCbCr": (filled("YCbCr", (76, 85, 255), (128, 128, 128)), "TIFF", [[254, 0, 0], [128] * 3]),
    "LAB": (filled("LAB", (255, 128, 128), (0, 128, 128)), "TIFF", [WHITE, [0] * 3]),
    "I of a PGM": (None, b"P5 2 1 1023\n\x00\x00\x03\xff", [[0] * 3, WHITE]),
}


@pytest.mark.parametrize(("image", "kind", "expected"), KINDS.values(), ids=KINDS)
def test_pixels_are_as_one_sees_them(image, kind, expected):
    content = kind if image is None else file_of(image, kind)
    found = decoded_picture(content)
    assert found.shape == (1, 2, 3)
    tolerance = 0 if image is None or image.mode not in ("P", "YCbCr", "LAB") else 1
    np.testing.assert_allclose(found[0].astype(int), expected, atol=tolerance)


MODES_IN_MEMORY = {
    "RGBX": ((1, 2, 3, 77), [1, 2, 3]),
    "RGBa": ((40, 20, 10, 51), [200, 100, 50, 51]),
    "La": ((40, 51), [200, 200, 200, 51]),
    "HSV": ((0, 255, 255), [255, 0, 0]),
    "PA": ((0, 255), [200, 100, 50, 255]),
}


@pytest.mark.parametrize("mode", MODES_IN_MEMORY)
def test_modes_that_few_files_have_are_read_as_well(mode):
    value, expected = MODES_IN_MEMORY[mode]
    image = palette("PA") if mode == "PA" else filled(mode, value, value)
    found = pictures._in_eight_bits(image)
    np.testing.assert_array_equal(np.asarray(found)[0, 0], expected)


@pytest.mark.parametrize(
    "content",
    [
        file_of(Image.fromarray(SIXTEEN)),
        tiff(SIXTEEN),
        tiff(SIXTEEN.astype(">u2")),
        b"P5 4 1 65535\n" + SIXTEEN.astype(">u2").tobytes(),
        tiff(np.array([IN_EIGHT], np.float32) / 255),
        file_of(Image.fromarray(np.uint8([IN_EIGHT]))),
    ],
    ids=["PNG", "TIFF", "TIFF, big-endian", "PGM", "float", "8 bits"],
)
def test_more_bits_are_scaled_and_not_clipped(content):
    assert decoded_picture(content)[0].tolist() == [[value] * 3 for value in IN_EIGHT]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I;16N"])
def test_every_order_of_16_bits_is_the_same_picture(mode):
    data = SIXTEEN.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    found = pictures._in_eight_bits(Image.frombytes(mode, (4, 1), data))
    assert np.asarray(found)[0, :, 0].tolist() == IN_EIGHT


def test_a_clear_color_is_white_in_gray_and_color():
    gray, color = filled("L", 7, 200), filled("RGB", (1, 2, 3), (4, 5, 6))
    assert read(gray, "PNG", transparency=7) == [[WHITE, [200] * 3]]
    assert read(color, "PNG", transparency=(1, 2, 3)) == [[WHITE, [4, 5, 6]]]
    assert read(filled("1", 0, 255), "PNG", transparency=0) == [[WHITE, WHITE]]
    sixteen = decoded_picture(file_of(Image.fromarray(SIXTEEN), transparency=257 * 7))
    assert sixteen[0, :, 0].tolist() == [0, 255, 200, 255]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(9))
def test_a_picture_is_upright_by_its_exif(kind, orientation):
    from PIL import ImageOps

    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 250, 120, 0  # tells all eight apart
    exif = Image.Exif()
    exif[274] = orientation
    lossless = {"WEBP": {"lossless": True}}.get(kind, {})
    content = file_of(Image.fromarray(pixels), kind, exif=exif, **lossless)
    with Image.open(io.BytesIO(content)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    found = decoded_picture(content)
    np.testing.assert_array_equal(found, np.asarray(expected))
    assert found.shape == ((32, 16, 3) if orientation > 4 else (16, 32, 3))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0)} | {
        **{5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    }
    assert found[corner[max(orientation, 1)]][0] > 240


def test_a_deep_picture_is_upright_too():
    exif = Image.Exif()
    exif[274] = 3
    found = decoded_picture(file_of(Image.fromarray(SIXTEEN), exif=exif))
    assert found[0, :, 0].tolist() == IN_EIGHT[::-1]


def frames(kind, **options):
    more = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    return file_of(more[0], kind, save_all=True, append_images=more[1:], **options)


WHOLE = file_of(Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)))
REFUSED = {
    "animation": (frames("GIF"), "it holds 3 pictures"),
    "animation in a PNG": (frames("PNG"), "it holds 3 pictures"),
    "animation in a WebP": (frames("WEBP"), "it holds 3 pictures"),
    "pages": (frames("TIFF"), "it holds 3 pictures"),
    "integers of 32 bits": (tiff(np.int32([[0, 9]])), "mode I, whose white is not known"),
    "signed 16 bits": (tiff(np.int16([[0, 9]])), "mode I, whose white is not known"),
    "floats to 255": (tiff(np.float32([[0, 255]])), r"lie in \[0, 255\], and not in \[0, 1\]"),
    "floats without a number": (tiff(np.float32([[0, np.nan]])), r"not in \[0, 1\]"),
    "0 is white": (tiff(SIXTEEN, _262=0), "mode I;16, in which 0 means white"),
    "truncated": (WHOLE[: len(WHOLE) // 2], "image file is truncated"),
    "no picture": (b"no picture", "cannot identify image file"),
    "nothing": (b"", "cannot identify image file"),
    "a program": (file_of(Image.new("RGB", (8, 8)), "EPS"), "EPS is a program"),
}


@pytest.mark.parametrize(("content", "why"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_one_meaning_is_refused_by_name(tmp_path, content, why):
    with pytest.raises(ValueError, match=why):
        decoded_picture(content)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for reader in (read_picture, read_rgba):
        with pytest.raises(
            ValueError, match=rf"a\.png must be a picture that can be read; .*{why}"
        ):
            reader(path)


def test_the_first_picture_of_a_camera_is_the_picture():
    main, preview = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (8, 8), "blue")
    content = file_of(main, "MPO", save_all=True, append_images=[preview])
    assert decoded_picture(content).shape == (16, 16, 3)


def test_a_size_beyond_the_limit_is_refused_before_a_pixel_is_read(monkeypatch):
    content = file_of(Image.new("L", (32, 32)))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1024)
    assert decoded_picture(content).shape == (32, 32, 3)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1023)
    with pytest.raises(ValueError, match="it has 1,024 pixels, more than 1,023"):
        decoded_picture(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 511)  # pillow refuses twice its own
    with pytest.raises(ValueError, match="decompression bomb"):
        decoded_picture(content)


def test_transparency_can_be_kept(tmp_path):
    path = tmp_path / "a.png"
    filled("RGBA", (1, 2, 3, 4), (5, 6, 7, 255)).save(path)
    assert np.asarray(read_rgba(path)).tolist() == [[[1, 2, 3, 4], [5, 6, 7, 255]]]
