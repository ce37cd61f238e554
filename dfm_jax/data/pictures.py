"""Read pictures of every mode from files in one way, or refuse them by name.

A picture is read as one sees it: turned upright by its EXIF data, and laid over white where it is
transparent. 16 bits and floating-point numbers are scaled to 8 bits, not clipped. Color profiles
are not applied, except for CIELAB, which has no meaning without one.
"""

import io
import re
import warnings
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from jaxtyping import UInt8

from dfm_jax.data.listing import lies_inside
from dfm_jax.data.packages import pillow
from dfm_jax.types import typed

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_478_485  # pillow's own limit, above which it only warns
READING = "upright, over white, 16 bits scaled"  # to be changed whenever a file is read otherwise

_AS_THEY_ARE = {"1", "L", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
_WITH_ALPHA = {"LA", "P", "PA", "RGBA", "RGBa"}
_SIXTEEN = {"I;16", "I;16B", "I;16L", "I;16N"}
_PREVIEWS = {"MPO"}  # of a camera: the picture, then smaller or other views of it
_ORIENTATION = 274  # of EXIF; 0 is none, 1 upright
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_SIDEWAYS = (5, 6, 7, 8)  # of these, whose height and width change places
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF
_SIZE = (256, 257)  # of TIFF: width and height


def picture_path(folder: Path, name: Any) -> Path:
    """The path of the picture that a row names, inside the folder after links are followed.

    Raises:
        ValueError: if it lies outside the folder; nothing outside is opened.
    """
    rule = "`image` must be a path inside the folder of images, or a list of such paths"
    inside = isinstance(name, str) and name not in ("", ".") and "\0" not in name
    if inside:
        path = PurePosixPath(name)
        inside = not (path.is_absolute() or Path(name).is_absolute() or ".." in path.parts)
    if not inside:
        raise ValueError(f"{rule}; got image = {name!r}.")
    if not lies_inside(folder / name, folder):
        raise ValueError(f"{rule}; got image = {name!r}, which a link leads out of the folder.")
    return folder / name


@typed
def read_picture(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Read the picture in a file, as red, green and blue.

    Raises:
        ValueError: if pillow cannot read the file, or not to its end; if the file holds several
            pictures; if it has more than `MAX_PIXELS`; if the value of white is not known. The
            message names the file.
        MissingDataError: if pillow is not installed.
    """
    return _over_white(_read(path))


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of the picture in a file as it is read, upright; no pixel is decoded.

    Raises:
        ValueError: if the header cannot be read, or is refused as by `read_picture`; the message
            names the file. Damage behind the header is not found.
        MissingDataError: if pillow is not installed.
    """
    image_module = pillow()
    with path.open("rb") as file:
        try:
            with _opened(file) as picture:
                _check_header(picture)
                # A PNG's own would decode the picture, to look behind it.
                turned = image_module.Image.getexif(picture).get(_ORIENTATION, 1)
                tags: Any = getattr(picture, "tag_v2", {})  # of a TIFF, whose size may be turned
                width, height = map(tags.get, _SIZE, picture.size)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file can fail anywhere, as anything
            raise ValueError(_unreadable(path, _said(error))) from error
    return (width, height) if turned in _SIDEWAYS else (height, width)


def read_rgba(path: Path) -> "Image":
    """Read a picture with its transparency, to resize it and lay it over something.

    Raises:
        ValueError, MissingDataError: as `read_picture`.
    """
    return _read(path).convert("RGBA")


@typed
def decoded_picture(content: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Decode a picture from the bytes of a file; see `read_picture`.

    Raises:
        ValueError: as `read_picture`, without the name of the file.
        MissingDataError: if pillow is not installed.
    """
    return _over_white(_upright(content))


def _read(path: Path) -> "Image":
    try:
        return _upright(path.read_bytes())
    except ValueError as error:
        raise ValueError(_unreadable(path, str(error))) from error


def _unreadable(path: Path, why: str) -> str:
    return f"{path} must be a picture that can be read; got another file: {why}."


def _said(error: Exception) -> str:
    """What an error says, without the address of an object: a second run says the same."""
    return re.sub(r" <[^>]* at 0x[^>]*>", "", str(error)) or type(error).__name__


def _opened(source: BinaryIO) -> "Image":
    with warnings.catch_warnings():  # of a size that is refused by its header
        warnings.simplefilter("ignore", pillow().DecompressionBombWarning)
        return pillow().open(source)


def _over_white(picture: "Image") -> np.ndarray:
    if picture.mode != "RGBA":
        return np.asarray(picture)
    white = pillow().new("RGB", picture.size, "white")
    white.paste(picture, mask=picture)
    return np.asarray(white)


def _upright(content: bytes) -> "Image":
    """The picture in 8 bits: `RGB`, or `RGBA` if it may be transparent."""
    image_module = pillow()
    try:
        with _opened(io.BytesIO(content)) as opened:
            _check_header(opened)
            opened.load()  # after which a TIFF is upright, and its orientation gone
            turned = opened.getexif().get(_ORIENTATION, 1)
            if turned not in range(9):
                raise ValueError(f"its orientation is {turned!r}, outside of [1, 8]")
            picture = _in_eight_bits(opened)
            turn = _TURNS.get(turned)
            return picture if turn is None else picture.transpose(image_module.Transpose[turn])
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can fail anywhere, as anything
        raise ValueError(_said(error)) from error


def _check_header(picture: "Image") -> None:
    """Check a picture before a pixel is read, so that nothing is decoded for a refused file."""
    size = picture.width * picture.height
    if size > MAX_PIXELS:
        raise ValueError(f"it has {size:,} pixels, more than {MAX_PIXELS:,}")
    if picture.format == "EPS":
        raise ValueError("EPS is a program, and nothing is executed here")
    count = getattr(picture, "n_frames", 1)
    if count > 1 and picture.format not in _PREVIEWS:
        raise ValueError(f"it holds {count} pictures, and it is not known which one is meant")


def _in_eight_bits(picture: "Image") -> "Image":
    mode = picture.mode
    if mode in _AS_THEY_ARE:
        return picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if mode in _WITH_ALPHA:
        return picture.convert("RGBA")
    if mode == "La":  # which pillow converts to nothing else
        return picture.convert("LA").convert("RGBA")
    tags: Any = getattr(picture, "tag_v2", {})  # of a TIFF
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise ValueError(f"it is of mode {mode}, in which 0 means white")
    values = np.asarray(picture)
    if mode in _SIXTEEN or (mode == "I" and picture.format == "PPM"):
        (bits,) = tags.get(_BITS, (16,))
        scaled = _scaled(values.astype(np.int64), 2**bits - 1, mode)
    elif mode == "F":
        scaled = _scaled(values.astype(np.float64), 1.0, mode)
    else:
        raise ValueError(f"it is of mode {mode}, whose white is not known")
    gray = pillow().fromarray(scaled)
    if (clear := picture.info.get("transparency")) is not None:
        gray.putalpha(pillow().fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return gray.convert("RGB" if clear is None else "RGBA")


def _scaled(values: np.ndarray, white: float, mode: str) -> np.ndarray:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):
        found = f"its values of mode {mode} lie in [{low:g}, {high:g}]"
        raise ValueError(f"{found}, and not in [0, {white:g}]")
    return np.round(values * (255 / white)).astype(np.uint8)
