"""From a picture to the pixels that a vision tower reads: the image processors of LLaVA, InternVL.

    picture → fit (crop, pad, stretch or tiles) → [T, size, size, 3] → x · scale → (x − mean) / std

Hugging Face's Pillow classes do the same, bit for bit: `CLIPImageProcessorPil`,
`LlavaImageProcessorPil` and `GotOcr2ImageProcessorPil`, which InternVL uses. Their torchvision
classes resize with another filter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from dfm_jax.checks import check_count, require
from dfm_jax.data.packages import pillow
from dfm_jax.json_text import read_json
from dfm_jax.types import typed

Fit = Literal["crop", "pad", "stretch", "tiles"]
Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Pixels = UInt8[np.ndarray, "T size size 3"]


@dataclass(frozen=True, kw_only=True)
class PictureProcessor:
    """What is done to a picture before a tower reads it.

    Raises:
        ValueError: if a size or a number of tiles is below 1, or the least number of tiles above
            the most; if a name is not known; if mean or deviation are not three numbers, or a
            deviation is 0.
    """

    size: int  # pixels, of the squares that come out
    fit: Fit = "crop"
    shortest: int | None = None  # of "crop": the shorter side before the crop; None means `size`
    filter: Filter = "bicubic"
    scale: float = 1 / 255
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    min_tiles: int = 1  # of "tiles"
    max_tiles: int = 12
    thumbnail: bool = True  # after several tiles, the whole picture as one more

    def __post_init__(self) -> None:
        """Refuse values that no processor can have."""
        for name in ("size", "min_tiles", "max_tiles"):
            check_count(name, getattr(self, name))
        if self.shortest is not None:
            check_count("shortest", self.shortest)
        rule = f"`min_tiles` must be at most `max_tiles`, which is {self.max_tiles}"
        require(self.min_tiles <= self.max_tiles, rule, self.min_tiles)
        for name, kinds in (("fit", Fit), ("filter", Filter)):
            names, value = kinds.__args__, getattr(self, name)
            require(value in names, f"`{name}` must be one of {', '.join(names)}", value)
        require(len(self.mean) == 3, "`mean` must hold three numbers", self.mean)
        good = len(self.std) == 3 and 0 not in self.std
        require(good, "`std` must hold three numbers, none of them 0", self.std)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The numbers of (rows, columns) of tiles for a picture of this size.

        It is the grid with the aspect nearest to the picture's. Of grids with the same aspect, the
        one of more tiles is taken as long as the picture has more than half of their pixels.
        """
        least, most = (self.min_tiles, self.max_tiles) if self.fit == "tiles" else (1, 1)
        counts = range(1, most + 1)
        grids = [(r, c) for c in counts for r in counts if least <= r * c <= most]
        best, best_gap = (1, 1), float("inf")
        for rows, columns in sorted(grids, key=lambda grid: grid[0] * grid[1]):
            gap = abs(width / height - columns / rows)
            large = height * width > 0.5 * self.size**2 * rows * columns
            if gap < best_gap or (gap == best_gap and large):
                best, best_gap = (rows, columns), gap
        return best

    def num_pictures(self, height: int, width: int) -> int:
        """T, the number of squares that come out for a picture of this size."""
        rows, columns = self.grid(height, width)
        count = rows * columns
        return count + (self.thumbnail and count > 1)

    @typed
    def pixels(self, picture: UInt8[np.ndarray, "H W 3"]) -> Pixels:
        """The squares of a picture, in 8 bits; they are a quarter of their numbers in float32.

        Raises:
            MissingDataError: if pillow is not installed.
        """
        height, width, _ = picture.shape
        if self.fit == "tiles":
            rows, columns = self.grid(height, width)
            size = self.size
            whole = self._resized(picture, rows * size, columns * size)
            tiles = whole.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
            tiles = tiles.reshape(-1, size, size, 3)
            if self.thumbnail and len(tiles) > 1:
                tiles = np.concatenate([tiles, self._resized(picture, size, size)[None]])
            return tiles
        if self.fit == "stretch":
            return self._resized(picture, self.size, self.size)[None]
        if self.fit == "pad":
            picture = _padded(picture, self.mean)
            height, width, _ = picture.shape
        shortest = self.size if self.shortest is None else self.shortest
        short, long = sorted((height, width))
        longest = int(shortest * long / short)
        turned = (shortest, longest) if height <= width else (longest, shortest)
        return _center(self._resized(picture, *turned), self.size)[None]

    @typed
    def normalized(self, pixels: Pixels) -> Float[np.ndarray, "T size size 3"]:
        """(x · scale − mean) / std of the squares, in float32: what a tower reads."""
        table = self.table
        return np.stack([table[:, color][pixels[..., color]] for color in range(3)], axis=-1)

    @property
    def table(self) -> np.ndarray:
        """(x · scale − mean) / std of each value x of each color: [256, 3], float32."""
        # Each computed as Hugging Face does.
        values = (np.arange(256, dtype=np.float64) * self.scale).astype(np.float32)
        mean, std = (np.array(numbers, np.float32) for numbers in (self.mean, self.std))
        return (values[:, None] - mean) / std

    def _resized(self, picture: np.ndarray, height: int, width: int) -> np.ndarray:
        image = pillow().fromarray(picture)
        return np.asarray(image.resize((width, height), resample=_FILTERS.index(self.filter)))


def _padded(picture: np.ndarray, mean: tuple[float, ...]) -> np.ndarray:
    """The picture in the middle of a square of the mean color."""
    height, width, _ = picture.shape
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = [int(255 * x) for x in mean]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square


def _center(picture: np.ndarray, size: int) -> np.ndarray:
    """The middle of a picture; what lies outside of it is black."""
    height, width, _ = picture.shape
    larger = np.zeros((max(height, size), max(width, size), 3), np.uint8)
    top, left = -((height - larger.shape[0]) // 2), -((width - larger.shape[1]) // 2)
    larger[top : top + height, left : left + width] = picture
    top, left = (height - size) // 2 + top, (width - size) // 2 + left
    return larger[top : top + size, left : left + size]


# ── preprocessor_config.json ──────────────────────────────────────────────────────────────────────

FILES = ("preprocessor_config.json", "processor_config.json")  # where it may stand, in this order
_KINDS = {
    "CLIPImageProcessor": "crop",
    "LlavaImageProcessor": "crop",
    "GotOcr2ImageProcessor": "stretch",
    "CLIPFeatureExtractor": "crop",
}
_MUST = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
# What has no say in the pixels of a picture.
_NO_CONSEQUENCE = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "return_tensors"),
    *("data_format", "input_data_format", "default_to_square", "device", "disable_grouping"),
    *("image_seq_length", "auto_map"),
}


def read_processor(folder: Path | str) -> PictureProcessor:
    """The processor of a Hugging Face folder, from its `preprocessor_config.json`.

    Raises:
        FileNotFoundError: if the folder has no such file.
        ValueError: if the kind of processor is not known here, or a setting of it; the message
            names it.
    """
    folder = Path(folder)
    for name in FILES:
        if (folder / name).is_file():
            said = read_json(folder / name)
            said = said.get("image_processor", said) if isinstance(said, dict) else said
            return _processor(said, str(folder / name))
    raise FileNotFoundError(
        f"`folder` must hold {FILES[0]}, which says how a picture becomes pixels; got folder = "
        f"{str(folder)!r}."
    )


def _processor(said: Any, source: str) -> PictureProcessor:
    require(isinstance(said, dict), f"{source} must hold a JSON object", said, name="content")
    kind = said.get("image_processor_type", said.get("feature_extractor_type"))
    kind = kind.removesuffix("Fast").removesuffix("Pil") if isinstance(kind, str) else kind
    rule = f"`image_processor_type` of {source} must be one of {', '.join(_KINDS)}"
    require(kind in _KINDS, rule, kind)
    rest = {k: v for k, v in said.items() if k not in _NO_CONSEQUENCE and v is not None}
    for name in _MUST:
        value = rest.pop(name, True)
        require(value is True, f"`{name}` of {source} must be true", value)
    size, crop = rest.pop("size", 224), rest.pop("crop_size", None)
    options: dict[str, Any] = {
        "filter": _filter(rest.pop("resample", 3), source),
        "scale": float(rest.pop("rescale_factor", 1 / 255)),
        "mean": tuple(rest.pop("image_mean", CLIP_MEAN)),
        "std": tuple(rest.pop("image_std", CLIP_STD)),
    }
    if _KINDS[kind] == "stretch":
        side = _side(size, ("height", "width"), "size", source)
        fit = "tiles" if rest.pop("crop_to_patches", False) else "stretch"
        least, most = rest.pop("min_patches", 1), rest.pop("max_patches", 12)
        options |= {"size": side, "fit": fit, "min_tiles": least, "max_tiles": most}
    else:
        shortest = _side(size, ("shortest_edge",), "size", source)
        cropped = rest.pop("do_center_crop", True)
        require(cropped is True, f"`do_center_crop` of {source} must be true", cropped)
        side = _side(shortest if crop is None else crop, ("height", "width"), "crop_size", source)
        padded = rest.pop("do_pad", False)
        options |= {"size": side, "fit": "pad" if padded else "crop"}
        options |= {} if shortest == side else {"shortest": shortest}
    require(not rest, f"{source} must hold known settings only", rest, name="unknown settings")
    return PictureProcessor(**options)


def _filter(number: Any, source: str) -> str:
    known = type(number) is int and 0 <= number < len(_FILTERS)
    require(known, f"`resample` of {source} must be one of Pillow's numbers, 0 to 5", number)
    return _FILTERS[number]


def _side(value: Any, names: tuple[str, ...], name: str, source: str) -> int:
    """One length, given as a number or as an object of these names."""
    sides = {value} if type(value) is int else set()
    if isinstance(value, Mapping) and set(value) == set(names):
        sides = set(value.values())
    rule = f"`{name}` of {source} must be one number, or {' and '.join(names)}, which are equal"
    require(len(sides) == 1 and all(type(side) is int for side in sides), rule, value)
    return sides.pop()


def processor_settings(processor: PictureProcessor) -> dict[str, Any]:
    """What preprocessor_config.json says of a processor: the reverse of `read_processor`.

    Raises:
        ValueError: if tiles come without a thumbnail, which no processor of Hugging Face's does.
    """
    tiled = processor.fit == "tiles"
    if tiled:
        rule = "`thumbnail` must be True, because Hugging Face's processor has no other choice"
        require(processor.thumbnail, rule, processor.thumbnail)
    shared = {
        **dict.fromkeys(_MUST, True),
        "resample": _FILTERS.index(processor.filter),
        "rescale_factor": processor.scale,
        "image_mean": list(processor.mean),
        "image_std": list(processor.std),
    }
    square = {"height": processor.size, "width": processor.size}
    if processor.fit in ("stretch", "tiles"):
        return shared | {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": square,
            "crop_to_patches": tiled,
            "min_patches": processor.min_tiles,
            "max_patches": processor.max_tiles,
        }
    padded = processor.fit == "pad"
    shortest = processor.size if processor.shortest is None else processor.shortest
    return shared | {
        "image_processor_type": "LlavaImageProcessor" if padded else "CLIPImageProcessor",
        "size": {"shortest_edge": shortest},
        "crop_size": square,
        "do_center_crop": True,
        **({"do_pad": True} if padded else {}),
    }
