"""Llama-type checkpoints in GGUF, llama.cpp's format: one file with mostly quantized matrices."""

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dfm_jax.checks import require
from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.pretrained.checkpoint import Checkpoint, imported

# ── The header of a GGUF file held against the file's size, before the package `gguf` reads it ────
#
# That package believes the header: it walks as many entries as are claimed, and makes an array of
# each number in a list. Here each count, length, shape and offset is refused at once where the file
# cannot hold it, and so is what is legal but would swell: lists within lists, millions of entries.

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of a number
_STRING, _LIST, _UINT32 = 8, 9, 4
_MOST_DIMS = 4  # of a tensor of ggml
_MOST_ENTRIES = 1 << 22  # in all lists; Gemma's 256,000 tokens make 1.3 million
_LEAST_FIELD, _LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8  # bytes


def check_gguf_header(path: Path | str) -> None:
    """Refuse a header that claims more than the file holds.

    Raises:
        ValueError: if it does; the message says what is claimed and how much is there.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _Header(content).check()


class _Header:
    """A place in the file, and the number of list entries before it."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.place = 0
        self.entries = 0
        self.alignment = 32

    def check(self) -> None:
        if self.taken(4) != _MAGIC:
            _refuse("it does not begin with GGUF")
        if (version := self.number("<I")) not in _VERSIONS:
            _refuse(
                f"its version is {version}, but must be one of {', '.join(map(str, _VERSIONS))}"
            )
        num_tensors, num_fields = self.number("<Q"), self.number("<Q")
        self.room_for(num_fields, _LEAST_FIELD, "fields")
        self.room_for(num_tensors, _LEAST_TENSOR, "tensors")
        for _ in range(num_fields):
            self.field()
        ends = [self.tensor() for _ in range(num_tensors)]
        begin = -(-self.place // self.alignment) * self.alignment
        for name, end in ends:
            if begin + end > len(self.content):
                _refuse(f"tensor {name!r} ends at {begin + end:,} of {len(self.content):,} bytes")

    def taken(self, size: int) -> bytes:
        self.room_for(size, 1, "bytes")
        self.place += size
        return self.content[self.place - size : self.place]

    def number(self, form: str) -> int:
        return struct.unpack(form, self.taken(struct.calcsize(form)))[0]

    def room_for(self, count: int, size: int, what: str) -> None:
        left = len(self.content) - self.place
        if count * size > left:
            _refuse(
                f"it claims {count:,} {what} at byte {self.place:,}, and {left:,} bytes are left"
            )

    def text(self) -> str:
        return self.taken(self.number("<Q")).decode("utf-8")

    def field(self) -> None:
        name, kind = self.text(), self.number("<I")
        if kind == _LIST:
            self.list_of(name)
        elif kind == _STRING:
            self.taken(self.number("<Q"))
        else:
            value = self.taken(_size(kind, name))
            if name == "general.alignment" and kind == _UINT32:
                self.alignment = int.from_bytes(value, "little")
                if self.alignment == 0 or self.alignment & (self.alignment - 1):
                    _refuse(f"`{name}` is {self.alignment}, which is not a power of two")

    def list_of(self, name: str) -> None:
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _LIST:
            _refuse(f"`{name}` holds lists within a list")
        size = 8 if kind == _STRING else _size(kind, name)
        self.room_for(count, size, f"entries of `{name}`")
        self.entries += count
        if self.entries > _MOST_ENTRIES:
            _refuse(f"its lists hold more than {_MOST_ENTRIES:,} entries")
        if kind != _STRING:
            self.taken(count * size)
            return
        for _ in range(count):
            self.room_for(length := self.number("<Q"), 1, f"bytes of a text in `{name}`")
            self.place += length

    def tensor(self) -> tuple[str, int]:
        """The name of a tensor, and its end, counted from the beginning of the numbers."""
        sizes = imported("gguf").GGML_QUANT_SIZES
        name, num_dims = self.text(), self.number("<I")
        if num_dims > _MOST_DIMS:
            _refuse(f"tensor {name!r} has {num_dims:,} axes, more than {_MOST_DIMS}")
        shape = [self.number("<Q") for _ in range(num_dims)]
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in sizes:
            _refuse(f"tensor {name!r} is of the unknown type {kind}")
        block, block_bytes = sizes[kind]
        return name, offset + math.prod(shape) // block * block_bytes


def _size(kind: int, name: str) -> int:
    if kind not in _SIZES:
        _refuse(f"`{name}` is of the unknown type {kind}")
    return _SIZES[kind]


def _refuse(why: str) -> NoReturn:
    raise ValueError(why)


_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_NAMES_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_TOKEN_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
    "unk_token_id": "tokenizer.ggml.unknown_token_id",
}


def open_gguf(path: Path | str) -> Checkpoint:
    """Open a GGUF file; names and shapes are read now, each tensor is dequantized when needed.

    llama.cpp rotates neighboring channels, so the rows of q and k are interleaved in the file. The
    reader puts them back in the order of Hugging Face, which rotates halves.

    Raises:
        ValueError: if the file is damaged; if its architecture is not `llama`; if it has a setting
            that is not known here, which the message names.
    """
    gguf = imported("gguf")
    reader = _opened(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {_hugging_face_name(tensor.name): tensor for tensor in reader.tensors}
    config = _config(metadata, str(path), tied="lm_head.weight" not in tensors)
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        num_heads = heads.get(name.split(".")[-2])
        return values if num_heads is None else _halves(values, num_heads)

    shapes = {name: tuple(map(int, reversed(t.shape))) for name, t in tensors.items()}
    ids = {name: metadata[key] for name, key in _TOKEN_IDS.items() if key in metadata}
    return Checkpoint(config, shapes, read, Path(path), metadata, ids)


def _opened(path: Path | str) -> Any:
    gguf = imported("gguf")
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"`path` must be a GGUF file; got path = {str(path)!r}. No file is there."
        )
    try:
        check_gguf_header(path)
        return gguf.GGUFReader(path)
    except Exception as error:  # a file that is cut short surfaces as anything
        shown = f"{type(error).__name__}: {error}"
        rule = "`path` must be a GGUF file that is not damaged"
        raise ValueError(f"{rule}; got path = {str(path)!r}: {shown}.") from error


def _hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`; unknown names stay."""
    stem, _, suffix = name.rpartition(".")
    first, *rest = stem.split(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{suffix}"
    if first == "blk" and len(rest) == 2 and rest[1] in _NAMES_IN_BLOCK:
        return f"model.layers.{rest[0]}.{_NAMES_IN_BLOCK[rest[1]]}.{suffix}"
    return name


def _halves(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows (0, 1), (2, 3), … of each head → first all even ones, then all odd ones."""
    pairs = rows.reshape(num_heads, -1, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _config(metadata: Mapping[str, Any], source: str, *, tied: bool) -> TransformerConfig:
    """The sizes of the network; each setting must be read here, or known to have no effect."""
    architecture = metadata.get("general.architecture")
    rule = f"`general.architecture` of {source} must be 'llama'"
    require(architecture == "llama", rule, architecture)
    parts = metadata.get("split.count", 1)
    rule = f"`split.count` of {source} must be 1, because parts of a checkpoint cannot be read"
    require(parts <= 1, rule, parts)
    settings = {
        name.removeprefix("llama."): value
        for name, value in metadata.items()
        if name.startswith("llama.")
    }

    def taken(name: str, *default: Any) -> Any:
        value = settings.pop(name, *default) if name in settings or default else None
        require(value is not None, f"{source} must hold a value of `llama.{name}`", value)
        return value

    width, heads = taken("embedding_length"), taken("attention.head_count")
    config = TransformerConfig(
        num_tokens=taken("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ()))),
        width=width,
        num_layers=taken("block_count"),
        num_heads=heads,
        num_kv_heads=taken("attention.head_count_kv", heads),
        ffn_width=taken("feed_forward_length"),
        max_positions=taken("context_length"),
        rope_base=_decimal(taken("rope.freq_base", 10_000.0)),
        norm_epsilon=_decimal(taken("attention.layer_norm_rms_epsilon")),
        tied=tied,
    )
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        size = taken(name, config.head_size)
        rule = f"`llama.{name}` of {source} must be width / heads, which is {config.head_size}"
        require(size == config.head_size, rule, size)
    scaling = taken("rope.scaling.type", "none")
    require(scaling == "none", f"`llama.rope.scaling.type` of {source} must be 'none'", scaling)
    unknown = {name: settings[name] for name in sorted(settings)}
    require(
        not unknown, f"{source} must hold known settings only", unknown, name="unknown settings"
    )
    return config


def _decimal(value: float) -> float:
    """The shortest decimal that rounds to this float32: 1e-5 if the file holds 9.9999997e-6."""
    return float(str(np.float32(value)))
