"""Llama-type checkpoints as Hugging Face keeps them: a folder of config.json and safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dfm_jax.checks import require
from dfm_jax.json_text import read_json
from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.pretrained.checkpoint import TOKEN_IDS, Checkpoint, imported
from dfm_jax.models.safetensors_header import check_safetensors_header

GENERATION = "generation_config.json"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

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


def open_folder(path: Path | str) -> Checkpoint:
    """The checkpoint in a folder: names and shapes now, each tensor when it is read.

    Weights lie in `model.safetensors`, or in the parts that `model.safetensors.index.json` lists.

    Raises:
        FileNotFoundError: if the config or a file of weights is not there.
        ValueError: if a file is damaged, parts and index disagree, the model is no Llama, or its
            config has a setting that is not known here, by name.
    """
    safetensors = imported("safetensors")
    folder = Path(path)
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
        rule = f"the head of {folder} must be its embedding, as `tie_word_embeddings` says"
        require(same, rule, "another matrix")
    ids = {name: settings[name] for name in TOKEN_IDS if name in settings}
    said = _json(folder / GENERATION) if (folder / GENERATION).is_file() else None
    return Checkpoint(config, shapes, read, folder, settings, ids, said)


def _json(path: Path) -> Mapping[str, Any]:
    value = read_json(path)
    require(isinstance(value, dict), f"{path} must hold a JSON object", type(value).__name__)
    return value


def _files(folder: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Where each tensor lies, and its shape."""
    index = folder / INDEX
    if not index.is_file():
        return _shapes(folder / WEIGHTS)
    listed = _json(index).get("weight_map")
    rule = f"`weight_map` of {index} must name a file per tensor"
    require(isinstance(listed, dict), rule, type(listed).__name__)
    assert isinstance(listed, dict)
    found = {}
    for part in sorted(set(listed.values())):
        inside = Path(part).name == part
        require(inside, f"{index} must name files of its own folder", part)
        found |= _shapes(folder / part)
    here = {name: path.name for name, (path, _) in found.items()}
    amiss = sorted({name for name, _ in here.items() ^ listed.items()})
    require(not amiss, f"the parts of {folder} must hold what {INDEX} says", amiss[:3])
    return found


def _shapes(path: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    safetensors = imported("safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be a folder with {path.name}; {path} is not there.")
    check_safetensors_header(path)
    try:
        with safetensors.safe_open(path, framework="np") as tensors:
            names = list(tensors.keys())
            return {name: (path, tuple(tensors.get_slice(name).get_shape())) for name in names}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} must hold safetensors; it is damaged ({error}).") from None


def _config(settings: Mapping[str, Any], source: str) -> TransformerConfig:
    """The sizes of the network; every setting is read, or known to be of no consequence."""
    rest = {name: value for name, value in settings.items() if name not in _OF_NO_CONSEQUENCE}

    def taken(name: str, *default: Any) -> Any:
        value = rest.pop(name, None)
        if value is None and default:
            return default[0]
        require(value is not None, f"{source} must hold `{name}`", "missing")
        return value

    def count(name: str, *default: Any) -> int:
        value = taken(name, *default)
        require(type(value) is int, f"`{name}` of {source} must be a whole number", repr(value))
        return value

    kind = taken("model_type")
    require(kind == "llama", f"`model_type` of {source} must be llama", kind)
    base = _rope_base(taken("rope_parameters", {}), taken("rope_theta", None), source)
    for name, allowed in _REQUIRED.items():
        value = rest.pop(name, allowed[-1])
        shown = " or ".join(map(repr, allowed))
        require(value in allowed, f"`{name}` of {source} must be {shown}", repr(value))
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
    require(not rest, f"{source} must have no settings that are not known here", rest)
    return config


def _rope_base(rope: Any, theta: Any, source: str) -> float:
    """The base of plain rotary positions, from either of its two places."""
    rule = f"`rope_parameters` of {source} must be of `rope_type` default, with nothing but a base"
    plain = isinstance(rope, dict) and rope.keys() <= {"rope_type", "rope_theta"}
    require(plain and rope.get("rope_type", "default") == "default", rule, repr(rope))
    bases = {value for value in (rope.get("rope_theta"), theta) if value is not None}
    require(len(bases) < 2, f"{source} must have one base of rotary positions", sorted(bases))
    return float(bases.pop() if bases else 10_000.0)
