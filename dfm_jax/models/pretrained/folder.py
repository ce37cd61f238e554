"""Llama-type checkpoints in Hugging Face's form: a folder with config.json and safetensors."""

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
from dfm_jax.json_text import read_json
from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.pretrained.checkpoint import TOKEN_IDS, Checkpoint, check_token_ids, imported
from dfm_jax.models.pretrained.hub import downloaded, names_repository
from dfm_jax.models.pretrained.llama import llama_tensors, tensor_shapes
from dfm_jax.models.pretrained.tokenizer import Tokenizer
from dfm_jax.models.weight_files import check_safetensors_header

GENERATION = "generation_config.json"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_SMALL = (CONFIG, GENERATION, "tokenizer.json")  # what is read beside the weights

# What a config may say only in one way, since another changes the numbers; absent is that way.
_REQUIRED = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1.0, None),
    "attention_dropout": (0, None),
    "architectures": (["LlamaForCausalLM"], None),
    "quantization_config": (None,),
    "sliding_window": (None,),
    "is_decoder": (True, False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "tie_encoder_decoder": (False, None),
}
# What has no say in the logits of a given sequence.
_OF_NO_CONSEQUENCE = {
    *("_name_or_path", "transformers_version", "transformers.js_config", "is_llama_config"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id"),
    *("dtype", "torch_dtype", "initializer_range", "pretraining_tp", "use_cache"),
    *("output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward"),
    *("id2label", "label2id", "problem_type", "_attn_implementation"),
}
_INVERSE_FREQUENCIES = "rotary_emb.inv_freq"  # a table that old files repeat; the config gives it


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
    config = _config(settings, str(folder / CONFIG))
    files = _files(folder)
    tied = {"lm_head.weight"} if config.tied else set()
    shapes = {
        name: shape
        for name, (_, shape) in files.items()
        if not name.endswith(_INVERSE_FREQUENCIES) and name not in tied
    }

    def read(name: str) -> np.ndarray:
        with safetensors.safe_open(files[name][0], framework="np") as tensors:
            return tensors.get_tensor(name)

    if tied & files.keys():
        same = np.array_equal(read("lm_head.weight"), read("model.embed_tokens.weight"))
        rule = (
            f"`lm_head.weight` of {folder} must equal the embedding, as `tie_word_embeddings` says"
        )
        require(same, rule, "another matrix")
    ids = {name: settings[name] for name in TOKEN_IDS if name in settings}
    said = _json(folder / GENERATION) if (folder / GENERATION).is_file() else None
    return Checkpoint(config, shapes, read, folder, settings, ids, said)


def _json(path: Path) -> Mapping[str, Any]:
    value = read_json(path)
    require(isinstance(value, dict), f"{path} must hold a JSON object", value, name="content")
    return value


def _files(folder: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """The file in which each tensor lies, and its shape."""
    index = folder / INDEX
    if not index.is_file():
        return _shapes(folder / WEIGHTS)
    listed = _json(index).get("weight_map")
    rule = f"`weight_map` of {index} must be an object that names a file for each tensor"
    require(isinstance(listed, dict), rule, listed)
    assert isinstance(listed, dict)
    found = {}
    for part in sorted(set(listed.values())):
        inside = Path(part).name == part
        require(inside, f"{index} must name files of its own folder", part, name="file")
        found |= _shapes(folder / part)
    here = {name: path.name for name, (path, _) in found.items()}
    amiss = sorted({name for name, _ in here.items() ^ listed.items()})
    rule = f"The parts of {folder} must hold the tensors that {INDEX} lists, and no other"
    require(not amiss, rule, amiss[:3], name="tensors on one side only")
    return found


def _shapes(path: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    safetensors = imported("safetensors")
    if not path.is_file():
        raise FileNotFoundError(
            f"`path` must be a folder that holds {path.name}; got path = {str(path.parent)!r}."
        )
    check_safetensors_header(path)
    try:
        with safetensors.safe_open(path, framework="np") as tensors:
            names = list(tensors.keys())
            return {name: (path, tuple(tensors.get_slice(name).get_shape())) for name in names}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} must hold safetensors; got a damaged file: {error}.") from None


def _config(settings: Mapping[str, Any], source: str) -> TransformerConfig:
    """The sizes of the network; each setting must be read here, or known to have no effect."""
    rest = {name: value for name, value in settings.items() if name not in _OF_NO_CONSEQUENCE}

    def taken(name: str, *default: Any) -> Any:
        value = rest.pop(name, None)
        if value is None and default:
            return default[0]
        require(value is not None, f"{source} must hold a value of `{name}`", value)
        return value

    def count(name: str, *default: Any) -> int:
        value = taken(name, *default)
        require(type(value) is int, f"`{name}` of {source} must be a whole number", value)
        return value

    kind = taken("model_type")
    require(kind == "llama", f"`model_type` of {source} must be 'llama'", kind)
    base = _rope_base(taken("rope_parameters", {}), taken("rope_theta", None), source)
    for name, allowed in _REQUIRED.items():
        value = rest.pop(name, allowed[-1])
        shown = " or ".join(map(repr, allowed))
        require(value in allowed, f"`{name}` of {source} must be {shown}", value)
    width, heads = count("hidden_size"), count("num_attention_heads")
    head_size = taken("head_dim", width // heads)
    rule = f"`head_dim` of {source} must be hidden_size / num_attention_heads = {width / heads:g}"
    require(head_size * heads == width, rule, head_size)
    config = TransformerConfig(
        num_tokens=count("vocab_size"),
        width=width,
        num_layers=count("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=count("num_key_value_heads", heads),
        ffn_width=count("intermediate_size"),
        max_positions=taken("max_position_embeddings", None),
        rope_base=base,
        norm_epsilon=float(taken("rms_norm_eps")),
        tied=taken("tie_word_embeddings", False),
    )
    require(not rest, f"{source} must hold known settings only", rest, name="unknown settings")
    return config


def _rope_base(rope: Any, theta: Any, source: str) -> float:
    """The base of plain rotary positions, which may stand in either of two places."""
    rule = (
        f"`rope_parameters` of {source} must have `rope_type` default and a base, and no other "
        "field"
    )
    plain = isinstance(rope, dict) and rope.keys() <= {"rope_type", "rope_theta"}
    require(plain and rope.get("rope_type", "default") == "default", rule, rope)
    bases = {value for value in (rope.get("rope_theta"), theta) if value is not None}
    rule = f"`rope_theta` of {source} must be the same in both of its places"
    require(len(bases) < 2, rule, sorted(bases))
    return float(bases.pop() if bases else 10_000.0)


# ── Our parameters written as Hugging Face keeps a Llama, for tools that read such folders ────────

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

    Its files are config.json, model.safetensors (or parts of it and their index), tokenizer.json,
    and generation_config.json if `like` has one. The folder appears only when it is complete.

    If config.json does not say which token ends a text, readers take a default; Hugging Face's is
    token 2. So config.json names the tokens of `like` that begin and end a text, or says that none
    is known.

    Args:
        path: The folder, which must not exist yet.
        config: The config of a causal transformer without time.
        params: The parameters, all of one type, which is the type that is written.
        tokenizer: A tokenizer whose `tokenizers` object is saved beside the weights.
        like: The checkpoint from which the parameters came; its tokens that begin and end a text,
            and its generation_config.json, are kept.
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


def _settings(config: TransformerConfig, dtype: np.dtype) -> dict[str, Any]:
    """The content of config.json, with the rotary base in both forms, for old and new readers."""
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
