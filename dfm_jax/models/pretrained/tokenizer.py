"""Text to token ids and back, from the tokenizer that lies beside the weights, or inside them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dfm_jax.checks import require
from dfm_jax.models.pretrained.checkpoint import Checkpoint, imported
from dfm_jax.models.pretrained.gguf_file import open_gguf

_SHOWN = 5  # characters named in a refusal
_CONTROL, _USER_DEFINED = 3, 4  # of GGUF's kinds of token


class Tokenizer(NamedTuple):
    """Text ↔ ids. `decode(encode(text))` is the text, unless the file asks for a normal form."""

    encode: Callable[[str], Int[np.ndarray, " N"]]
    """The ids, without one that begins or ends a text. A special token's name is that token.

    Raises ValueError for a character that the vocabulary cannot spell, where `tokenizers` itself
    would drop it without a word.
    """
    decode: Callable[[Sequence[int]], str]
    """The text, special tokens by their names; bytes that are no UTF-8 become �."""
    num_tokens: int
    special: Mapping[str, int]  # the names that are never cut
    backend: Any  # the `tokenizers.Tokenizer` behind it


def read_tokenizer(source: Checkpoint | Path | str) -> Tokenizer:
    """The tokenizer of a checkpoint: `tokenizer.json` of a folder, or what is inside a GGUF file.

    Args:
        source: its path; or an open checkpoint, which is not parsed again.

    Raises:
        FileNotFoundError: if the folder has no `tokenizer.json`.
        ValueError: if the file is damaged, or its tokenizer is of a kind that is not known here.
    """
    path = source.path if isinstance(source, Checkpoint) else Path(source)
    if path.is_dir():
        return _described(_backend_of_json(path / "tokenizer.json"))
    checkpoint = source if isinstance(source, Checkpoint) else open_gguf(path)
    return _described(_backend_of_gguf(checkpoint.metadata, path))


def _backend_of_json(path: Path) -> Any:
    tokenizers = imported("tokenizers")
    text = path.read_text(encoding="utf-8")
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise ValueError(f"{path} must describe a tokenizer; reading it: {error}.") from None
    # A checkpoint may have been saved with a batch's settings; a text is encoded whole, alone.
    backend.no_truncation()
    backend.no_padding()
    return backend


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


def byte_symbols() -> tuple[str, ...]:
    """The printable character that stands for each byte in a byte-level vocabulary.

    Printable Latin-1 stands for itself; the other 68 bytes, in order, for U+0100 and what follows.

    Source: Radford et al., Language models are unsupervised multitask learners (2019), the code.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(0x100 + i) for i in range(256))
    return tuple(chr(byte) if byte in printable else next(others) for byte in range(256))


def _described(backend: Any) -> Tokenizer:
    """The pure functions around a `tokenizers.Tokenizer`."""
    unspellable = frozenset(_unspellable(backend))

    def encode(text: str) -> np.ndarray:
        if unspellable:
            normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
            lost = [c for c in dict.fromkeys(normal) if unspellable & set(c.encode())]
            rule = "`text` must hold only characters that the vocabulary can spell"
            require(not lost, rule, f"with {lost[:_SHOWN]!r}")
        ids = backend.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, np.int32)

    def decode(ids: Sequence[int]) -> str:
        return backend.decode([int(i) for i in ids], skip_special_tokens=False)

    special = {token.content: i for i, token in sorted(backend.get_added_tokens_decoder().items())}
    return Tokenizer(encode, decode, backend.get_vocab_size(), special, backend)


def _unspellable(backend: Any) -> list[int]:
    """The bytes without a token of their own in a byte-level vocabulary; [] for any other kind.

    13 of the 256 are in no UTF-8 text at all.
    """
    if not isinstance(backend.decoder, imported("tokenizers").decoders.ByteLevel):
        return []
    return [byte for byte, c in enumerate(byte_symbols()) if backend.token_to_id(c) is None]
