"""Our parameters written as Hugging Face keeps a Llama, for tools that read such folders."""

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dfm_jax.checks import check_count, require
from dfm_jax.durable import NewFolder
from dfm_jax.interfaces import Params
from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.pretrained.checkpoint import TOKEN_IDS, Checkpoint, check_token_ids
from dfm_jax.models.pretrained.folder import CONFIG, GENERATION, INDEX, WEIGHTS
from dfm_jax.models.pretrained.llama import llama_tensors, tensor_shapes
from dfm_jax.models.pretrained.lossless import Tokenizer

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}

Shapes = Mapping[str, tuple[int, ...]]


def write_folder(
    path: Path | str,
    config: TransformerConfig,
    params: Params,
    *,
    tokenizer: Tokenizer | None = None,
    like: Checkpoint | None = None,
    max_part_bytes: int = 5 * 10**9,
) -> Path:
    """Write the parameters of `transformer(config)` as a folder that `open_folder` reads back.

    Its files: config.json, model.safetensors (or parts of it and their index), tokenizer.json and
    generation_config.json if there is one. The folder appears when it is whole.

    Where no text ends, readers take a default: Hugging Face's is token 2. So config.json says which
    token begins and which ends a text, those of `like`, or that none is known.

    Args:
        path: the folder, which must not be there yet.
        config: of a causal transformer without time.
        params: all of one type, in which they are written.
        tokenizer: its `tokenizers` object is saved beside the weights.
        like: the checkpoint that the parameters came from: its tokens that begin and end a text,
            and its generation_config.json, are kept.
        max_part_bytes: of the tensors in one file; a larger tensor has a file of its own.

    Raises:
        FileExistsError: if there is something at `path`.
        TemporaryError: if another process is writing it.
        ValueError: if the parameters are of another network, or it is no Llama, or a token of
            `like` lies beyond V.
    """
    folder = Path(path)
    check_count("max_part_bytes", max_part_bytes)
    if folder.exists():
        raise FileExistsError(f"`path` must not be there yet; {folder} is.")
    ids = {"bos_token_id": None, "eos_token_id": None} | dict(like.token_ids if like else {})
    said = like.generation if like else None
    for each_ids in (ids, {n: v for n, v in (said or {}).items() if n in TOKEN_IDS}):
        check_token_ids(each_ids, config.num_tokens, like.path if like else folder)
    tensors = llama_tensors(config, params)
    dtype = _dtype(params)
    shapes = tensor_shapes(config)
    parts = _parts(shapes, max_part_bytes // dtype.itemsize)
    with NewFolder(folder) as new:
        for name, names in parts.items():
            _write_tensors(new.path / name, {n: shapes[n] for n in names}, dtype, tensors)
        if len(parts) > 1:
            total = dtype.itemsize * sum(map(math.prod, shapes.values()))
            weight_map = {name: file for file, names in parts.items() for name in names}
            _write_json(
                new.path / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map}
            )
        _write_json(new.path / CONFIG, _settings(config, dtype) | ids)
        if said is not None:
            _write_json(new.path / GENERATION, said)
        if tokenizer is not None:
            tokenizer.backend.save(str(new.path / "tokenizer.json"))
            kind = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": False,
            }
            _write_json(new.path / "tokenizer_config.json", kind)
        new.finish()
    return folder


def _dtype(params: Params) -> np.dtype:
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)})
    one = len(dtypes) == 1 and dtypes[0] in _DTYPES
    require(one, f"`params` must be of one type among {', '.join(_DTYPES)}", ", ".join(dtypes))
    return np.dtype(dtypes[0])


def _parts(shapes: Shapes, max_size: int) -> dict[str, Sequence[str]]:
    """The files and the tensors in each, in order."""
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
    """A file of safetensors from the next tensors, one after another, never all in memory.

    Eight bytes of length, that many of JSON, then the numbers in order.
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


def _settings(config: TransformerConfig, dtype: np.dtype) -> dict[str, Any]:
    """What config.json says; both spellings of the base, for readers old and new."""
    bound = config.max_positions
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.num_tokens,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        **({} if bound is None else {"max_position_embeddings": bound}),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "tie_word_embeddings": config.tied,
        "torch_dtype": dtype.name,
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
