"""Llama-type checkpoints in Hugging Face's form: a folder with config.json and safetensors."""

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dfm_jax.checks import check_count, require
from dfm_jax.durable import NewFolder
from dfm_jax.interfaces import Params
from dfm_jax.json_text import read_json
from dfm_jax.models.multimodal.config import MultimodalConfig, VisionConfig
from dfm_jax.models.pretrained.checkpoint import TOKEN_IDS, Checkpoint, check_token_ids, imported
from dfm_jax.models.pretrained.families import (
    PretrainedConfig,
    checkpoint_tensors,
    family_of,
    family_of_settings,
    tensor_shapes,
)
from dfm_jax.models.pretrained.hub import downloaded, names_repository
from dfm_jax.models.pretrained.leaves import num_entries, tensor_shapes_of
from dfm_jax.models.pretrained.native_internvl import native_image_token
from dfm_jax.models.pretrained.tokenizer import Tokenizer
from dfm_jax.models.weight_files import check_safetensors_header

GENERATION = "generation_config.json"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# What stands beside the weights: of the tokenizer in other forms, and of everything else.
_OTHER_FORMS = ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")
_BESIDE = (
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_SMALL = (CONFIG, GENERATION, TOKENIZER, *_OTHER_FORMS, *_BESIDE)


def open_folder(path: Path | str, *, revision: str | None = None) -> Checkpoint:
    """Open the checkpoint in a folder; names and shapes are read now, each tensor when needed.

    Weights are in `model.safetensors`, or in the parts that `model.safetensors.index.json` names.

    A text of the form org/name that is no folder here is a repository of the Hugging Face Hub. Its
    config, weights and tokenizer are downloaded once, into the cache of huggingface_hub.

    Args:
        path: The folder, or the name of a repository.
        revision: The branch, the tag or the commit of a repository; by default its main branch.

    Raises:
        FileNotFoundError: if the config or a file of weights is missing; if there is no such
            repository or revision.
        ImportError: if a repository is named, and huggingface_hub is not installed (extra `hub`).
        ConnectionError: if the Hub cannot be reached, and its cache does not hold the files.
        PermissionError: if the repository asks for consent or a login.
        ValueError: if a file is damaged; if parts and index disagree; if the model is not a Llama;
            if its config has a setting that is not known here, which the message names.
    """
    safetensors = imported("safetensors")
    folder = Path(path)
    if names_repository(path):
        folder = downloaded(str(path), revision, first=_SMALL, index=INDEX, weights=WEIGHTS)
    else:
        require(revision is None, "`revision` must be None, unless `path` is org/name", revision)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"`path` must be a folder that holds {CONFIG}, or the name org/name of a repository; "
            f"got path = {str(path)!r}."
        )
    settings = _json(folder / CONFIG)
    if settings.get("model_type") == "internvl_chat" and "image_token_id" not in settings:
        settings = {**settings, "image_token_id": native_image_token(folder)}
    family = family_of_settings(settings, str(folder / CONFIG))
    config = family.read(settings, str(folder / CONFIG))
    files = _renamed(_files(folder), family.names, folder)
    head, embedding = family.head or ("", "")
    tied = head in files and head not in tensor_shapes_of(family.leaves(config))
    shapes = {name: file.shape for name, file in files.items() if not (tied and name == head)}

    def read(name: str) -> np.ndarray:
        file = files[name]
        with safetensors.safe_open(file.path, framework="np") as tensors:
            if file.first is None:
                return tensors.get_tensor(file.name)
            return tensors.get_slice(file.name)[file.first : file.first + file.shape[0]]

    if tied:
        rule = f"`{head}` of {folder} must equal the embedding, as `tie_word_embeddings` says"
        require(np.array_equal(read(head), read(embedding)), rule, "another matrix")
    ids = {name: settings[name] for name in TOKEN_IDS if name in settings}
    said = _json(folder / GENERATION) if (folder / GENERATION).is_file() else None
    return Checkpoint(config, shapes, read, folder, settings, ids, said)


def _json(path: Path) -> Mapping[str, Any]:
    value = read_json(path)
    require(isinstance(value, dict), f"{path} must hold a JSON object", value, name="content")
    return value


class _Tensor(NamedTuple):
    """Where a tensor lies."""

    path: Path
    name: str  # there
    shape: tuple[int, ...]
    first: int | None = None  # its first row there, where it is a part of the rows


def _renamed(
    files: Mapping[str, _Tensor], names_of: Callable[[str], tuple[str, ...]], folder: Path
) -> dict[str, _Tensor]:
    """The tensors by the names that they have here; one tensor there may be several here."""
    found: dict[str, _Tensor] = {}
    for there, tensor in files.items():
        names = names_of(there)
        for part, name in enumerate(names):
            rule = f"The tensors of {folder} must differ in their names"
            require(name not in found, rule, there, name="the name of one more")
            found[name] = tensor if len(names) == 1 else _part(tensor, part, len(names), folder)
    return found


def _part(tensor: _Tensor, part: int, count: int, folder: Path) -> _Tensor:
    """One of `count` equal parts of the rows of a tensor."""
    rows, *rest = tensor.shape
    rule = f"`{tensor.name}` of {folder} must have a multiple of {count} rows"
    require(rows % count == 0, rule, tensor.shape, name="shape")
    size = rows // count
    return tensor._replace(shape=(size, *rest), first=part * size)


def _files(folder: Path) -> dict[str, _Tensor]:
    """The file in which each tensor lies, and its shape."""
    index = folder / INDEX
    if not index.is_file():
        return _shapes(folder / WEIGHTS)
    listed = _json(index).get("weight_map")
    rule = f"`weight_map` of {index} must be an object that names a file for each tensor"
    require(isinstance(listed, dict), rule, listed)
    assert isinstance(listed, dict)
    found: dict[str, _Tensor] = {}
    for part in sorted(set(listed.values())):
        inside = Path(part).name == part
        require(inside, f"{index} must name files of its own folder", part, name="file")
        found |= _shapes(folder / part)
    here = {name: tensor.path.name for name, tensor in found.items()}
    amiss = sorted({name for name, _ in here.items() ^ listed.items()})
    rule = f"The parts of {folder} must hold the tensors that {INDEX} lists, and no other"
    require(not amiss, rule, amiss[:3], name="tensors on one side only")
    return found


def _shapes(path: Path) -> dict[str, _Tensor]:
    safetensors = imported("safetensors")
    if not path.is_file():
        raise FileNotFoundError(
            f"`path` must be a folder that holds {path.name}; got path = {str(path.parent)!r}."
        )
    check_safetensors_header(path)
    try:
        with safetensors.safe_open(path, framework="np") as tensors:
            names = list(tensors.keys())
            return {
                name: _Tensor(path, name, tuple(tensors.get_slice(name).get_shape()))
                for name in names
            }
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} must hold safetensors; got a damaged file: {error}.") from None


# ── Our parameters written as Hugging Face keeps a Llama, for tools that read such folders ────────

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}

Shapes = Mapping[str, tuple[int, ...]]


def write_folder(
    path: Path | str,
    config: PretrainedConfig,
    params: Params,
    *,
    tokenizer: Tokenizer | None = None,
    like: Checkpoint | None = None,
    max_part_bytes: int = 5 * 10**9,
) -> Path:
    """Write the parameters of `transformer(config)` as a folder that `open_folder` reads back.

    Its files are config.json, model.safetensors (or parts of it and their index), tokenizer.json,
    and what the folder of `like` has: generation_config.json, the tokenizer's files, the template
    of chats, the settings of a processor of pictures. It appears only when it is complete.

    If config.json does not say which token ends a text, readers take a default; Hugging Face's is
    token 2. So config.json names the tokens of `like` that begin and end a text, or says that none
    is known.

    Args:
        path: The folder, which must not exist yet.
        config: The config of a causal transformer without time.
        params: The parameters, all of one type, which is the type that is written.
        tokenizer: A tokenizer whose `tokenizers` object is saved beside the weights, in the place
            of that of `like`.
        like: The checkpoint from which the parameters came; its tokens that begin and end a text,
            and the files beside its weights, are kept.
        max_part_bytes: The largest size of the tensors in one file; a larger tensor gets its own
            file.

    Raises:
        FileExistsError: if there is something at `path`.
        TemporaryError: if another process is writing it.
        ValueError: if the parameters belong to another network; if the network is not a Llama; if a
            token of `like` is V or more.
    """
    folder = Path(path)
    check_count("max_part_bytes", max_part_bytes)
    if folder.exists():
        raise FileExistsError(f"`path` must not exist yet; got path = {str(folder)!r}.")
    ids = {"bos_token_id": None, "eos_token_id": None} | dict(like.token_ids if like else {})
    said = like.generation if like else None
    for each_ids in (ids, {n: v for n, v in (said or {}).items() if n in TOKEN_IDS}):
        check_token_ids(each_ids, _num_tokens(config), like.path if like else folder)
    tensors = checkpoint_tensors(config, params)
    dtype = _dtype(params)
    shapes = tensor_shapes(config)
    parts = _parts(shapes, max_part_bytes // dtype.itemsize)
    with NewFolder(folder) as new:
        for name, names in parts.items():
            _write_tensors(new.path / name, {n: shapes[n] for n in names}, dtype, tensors)
        if len(parts) > 1:
            total = dtype.itemsize * num_entries(shapes)
            weight_map = {name: file for file, names in parts.items() for name in names}
            _write_json(
                new.path / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map}
            )
        _write_json(new.path / CONFIG, _settings(config, dtype, ids))
        if said is not None:
            _write_json(new.path / GENERATION, said)
        if like is not None:
            kept = _BESIDE if tokenizer is not None else (*_BESIDE, TOKENIZER, *_OTHER_FORMS)
            for name in kept:
                if (like.path / name).is_file():
                    shutil.copyfile(like.path / name, new.path / name)
        if tokenizer is not None:
            tokenizer.backend.save(str(new.path / TOKENIZER))
            kind = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": False,
            }
            if not (new.path / TOKENIZER_CONFIG).exists():
                _write_json(new.path / TOKENIZER_CONFIG, kind)
        new.finish()
    return folder


def _num_tokens(config: PretrainedConfig) -> int:
    """V; 0 for a network that reads no text."""
    if isinstance(config, VisionConfig):
        return 0
    return (config.text if isinstance(config, MultimodalConfig) else config).num_tokens


def _settings(config: PretrainedConfig, dtype: np.dtype, ids: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json."""
    settings = dict(family_of(config).settings(config))
    settings |= {"dtype": dtype.name, "torch_dtype": dtype.name}
    if isinstance(config, VisionConfig):
        return settings
    if isinstance(config, MultimodalConfig):  # whose readers look into the text's own settings
        settings["text_config"] = {**settings["text_config"], **ids}
    return {**settings, **ids}


def _dtype(params: Params) -> np.dtype:
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)})
    one = len(dtypes) == 1 and dtypes[0] in _DTYPES
    rule = f"`params` must all be of one type among {', '.join(_DTYPES)}"
    require(one, rule, dtypes, name="types")
    return np.dtype(dtypes[0])


def _parts(shapes: Shapes, max_size: int) -> dict[str, Sequence[str]]:
    """The files, and the tensors in each, in order."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        size += math.prod(shape)
        if groups[-1] and size > max_size:
            groups.append([])
            size = math.prod(shape)
        groups[-1].append(name)
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    stem, count = Path(WEIGHTS).stem, len(groups)
    return {f"{stem}-{i:05}-of-{count:05}.safetensors": g for i, g in enumerate(groups, 1)}


def _write_tensors(
    path: Path, shapes: Shapes, dtype: np.dtype, tensors: Iterator[tuple[str, np.ndarray]]
) -> None:
    """Write a safetensors file of the next tensors, one by one, so that few are in memory.

    The file has eight bytes of length, that many bytes of JSON, and then the numbers in order.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + dtype.itemsize * math.prod(shape)
        kind = {"dtype": _DTYPES[dtype.name], "shape": list(shape), "data_offsets": [start, end]}
        header[name] = kind
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for expected in shapes:
            name, values = next(tensors)
            assert name == expected
            file.write(values.astype(dtype.newbyteorder("<"), copy=False).tobytes())


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
