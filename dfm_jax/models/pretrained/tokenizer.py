"""Text to token ids and back, from the tokenizer that lies beside the weights, or inside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfm_jax.checks import require
from dfm_jax.models.pretrained.checkpoint import Checkpoint, imported
from dfm_jax.models.pretrained.gguf_file import open_gguf
from dfm_jax.models.pretrained.lossless import Tokenizer, lossless_ids

_SHOWN = 5  # merges named in a refusal
_CONTROL, _USER_DEFINED = 3, 4  # of GGUF's kinds of token


def read_tokenizer(source: Checkpoint | Path | str) -> Tokenizer:
    """The tokenizer of a checkpoint: `tokenizer.json` of a folder, or what is inside a GGUF file.

    Its `encode` refuses a text that it cannot give back.

    Args:
        source: its path; or an open checkpoint, which is not parsed again.

    Raises:
        FileNotFoundError: if the folder has no `tokenizer.json`.
        ValueError: if the file is damaged, or its tokenizer is of a kind that is not known here.
    """
    path = source.path if isinstance(source, Checkpoint) else Path(source)
    if path.is_dir():
        return read_tokenizer_json(path / "tokenizer.json")
    checkpoint = source if isinstance(source, Checkpoint) else open_gguf(path)
    return _described(_backend_of_gguf(checkpoint.metadata, path), path)


def read_tokenizer_json(path: Path) -> Tokenizer:
    """The tokenizer that a `tokenizer.json` describes; what it says about lengths is dropped.

    Checkpoints are published with the settings of a batch, truncation and padding among them; a
    text is encoded whole, alone, and without an added token.

    Raises:
        ValueError: if it is none, or draws (a dropout of merges).
    """
    tokenizers = imported("tokenizers")
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError:
        raise
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise ValueError(f"{path} must describe a tokenizer; reading it: {error}.") from None
    backend.no_truncation()
    backend.no_padding()
    return _described(backend, path)


# ── byte-level BPE inside a GGUF file ───────────────────────────────────────────────────────────


def _backend_of_gguf(metadata: Mapping[str, Any], path: Path) -> Any:
    """The `tokenizers` object that the lists in the file describe.

    Source: the pre-tokenizers are those that llama.cpp runs under the same names.
    """
    tokenizers = imported("tokenizers")
    pre_tokenizers = _pre_tokenizers()

    def held(name: str, *default: Any) -> Any:
        value = metadata.get(f"tokenizer.ggml.{name}", *default)
        require(value is not None, f"{path} must hold `tokenizer.ggml.{name}`", "missing")
        return value

    kind, pre = held("model"), held("pre")
    require(kind == "gpt2", f"the tokenizer of {path} must be byte-level BPE (`gpt2`)", kind)
    known = ", ".join(pre_tokenizers)
    require(pre in pre_tokenizers, f"the pre-tokenizer of {path} must be one of {known}", pre)
    prefix = held("add_space_prefix", False)
    require(prefix is False, f"`tokenizer.ggml.add_space_prefix` of {path} must be false", prefix)
    tokens, merges, kinds = held("tokens"), held("merges"), held("token_type")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    rule = f"the tokens of {path} must differ, and have a kind each"
    counts = f"{len(vocabulary)} of {len(tokens)} different, {len(kinds)} kinds"
    require(len(vocabulary) == len(tokens) == len(kinds), rule, counts)
    pairs = [tuple(merge.split(" ")) for merge in merges]
    bad = [
        merge
        for merge, pair in zip(merges, pairs, strict=True)
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys()
    ]
    require(not bad, f"a merge of {path} must join two tokens into a third", bad[:_SHOWN])
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers[pre]
    backend.decoder = tokenizers.decoders.ByteLevel()
    whole = [
        tokenizers.AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    backend.add_tokens(whole)
    return backend


def _pre_tokenizers() -> dict[str, Any]:
    """By GGUF's names: where a text is cut before any merge."""
    cut = imported("tokenizers").pre_tokenizers
    byte_level = cut.ByteLevel(add_prefix_space=False, use_regex=True)
    each_digit = cut.Digits(individual_digits=True)
    return {"gpt-2": byte_level, "smollm": cut.Sequence([each_digit, byte_level])}


# ── both ────────────────────────────────────────────────────────────────────────────────────────


def _described(backend: Any, path: Path) -> Tokenizer:
    """The pure functions around a `tokenizers.Tokenizer`."""
    dropout = getattr(backend.model, "dropout", None)
    require(not dropout, f"`dropout` of the tokenizer in {path} must be 0: it draws", dropout)

    def raw(text: str) -> Sequence[int]:
        try:
            return backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:  # a lone surrogate, which JSON may hold
            raise ValueError("a text must be Unicode; it holds half a surrogate pair.") from error

    def decode(ids: Sequence[int]) -> str:
        return backend.decode([int(i) for i in ids], skip_special_tokens=False)

    # Ids may leave gaps, so it is not their number that bounds them.
    num_tokens = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    unchecked = Tokenizer(raw, decode, num_tokens)

    def encode(text: str) -> np.ndarray:
        return lossless_ids(text, unchecked).astype(np.int32)

    special = {token.content: i for i, token in sorted(backend.get_added_tokens_decoder().items())}
    return Tokenizer(encode, decode, num_tokens, special, backend)
