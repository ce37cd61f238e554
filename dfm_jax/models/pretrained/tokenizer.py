"""Text to token ids and back, with the tokenizer beside the weights or inside their file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dfm_jax.checks import require
from dfm_jax.models.pretrained.checkpoint import Checkpoint, imported
from dfm_jax.models.pretrained.gguf_file import open_gguf

# ── Tokenizers: text to ids and back, and the rule that nothing is lost on the way ────────────────
#
# A number of nats per byte is one of a text only if its ids are a code of that text: decoding them
# gives every character again, and encoding twice gives the same ids. A tokenizer that lower-cases,
# normalizes, drops or draws is none; what it does to a text is refused when it does it.


class Tokenizer(NamedTuple):
    """A map from text to ids and back, with V ids in all. `decode(encode(text))` is the text."""

    encode: Callable[[str], bytes | Sequence[int] | Int[np.ndarray, " N"]]
    """The ids, without one that begins or ends a text. A special token's name is that token."""
    decode: Callable[[Sequence[int]], str]
    """The text, special tokens by their names; ids that mean nothing become U+FFFD."""
    num_tokens: int
    special: Mapping[str, int] = {}  # the names that are never cut
    backend: Any = None  # the `tokenizers.Tokenizer` behind it, if there is one


def lossless_ids(text: str, tokenizer: Tokenizer) -> Int[np.ndarray, " N"]:
    """The ids of a text, checked to give the text back.

    Raises:
        ValueError: if an id is not in [0, V), or a character does not come back; the message names
            the first one and its offset.
    """
    encoded, num = tokenizer.encode(text), tokenizer.num_tokens
    if isinstance(encoded, bytes):  # as they are: nothing is decoded, so surrogates may stand
        ids, back = np.frombuffer(encoded, np.uint8), encoded.decode("utf-8", "surrogatepass")
    else:
        ids = np.asarray(encoded) if len(encoded) else np.empty(0, np.int32)
        rule = "`encode` of a tokenizer must return a list of integers"
        good = ids.dtype.kind in "iu" and ids.ndim == 1
        require(good, rule, encoded, name="encode(text)")
        rule = f"`encode` of a tokenizer must return ids in [0, {num - 1}], because its V is {num}"
        require((ids >= 0) & (ids < num), rule, ids, name="encode(text)")
        back = tokenizer.decode(ids.tolist())
    if back != text:
        at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), None)
        at = min(len(text), len(back)) if at is None else at
        here, there = (repr(s[at]) if at < len(s) else "the end" for s in (text, back))
        raise ValueError(
            "`decode` of a tokenizer must return every character that was encoded; got "
            f"decode(encode(text))[{at}] = {there} for {here}. Use a tokenizer that does not drop, "
            "normalize or lower-case characters, because nats per byte would be of another text."
        )
    return ids


def check_repeats(text: str, ids: Int[np.ndarray, " N"], tokenizer: Tokenizer) -> None:
    """Check that encoding the text a second time gives the same ids.

    Raises:
        ValueError: if it gives others.
    """
    encoded = tokenizer.encode(text)
    again = np.frombuffer(encoded, np.uint8) if isinstance(encoded, bytes) else np.asarray(encoded)
    rule = "`encode` of a tokenizer must return the same ids of a text each time"
    lengths = (len(ids), len(again))
    then = "Switch off what draws ids at random."
    require(np.array_equal(again, ids), rule, lengths, name="numbers of ids", then=then)


_SHOWN = 5  # merges named in a refusal
_CONTROL, _USER_DEFINED = 3, 4  # of GGUF's kinds of token


def read_tokenizer(source: Checkpoint | Path | str) -> Tokenizer:
    """Read the tokenizer of a checkpoint: `tokenizer.json` in a folder, or the one in a GGUF file.

    Its `encode` refuses a text that `decode` would not give back.

    Args:
        source: The path of the checkpoint, or an open checkpoint, which is then not parsed again.

    Raises:
        FileNotFoundError: if the folder has no `tokenizer.json`.
        ValueError: if the file is damaged, or the kind of its tokenizer is not known here.
    """
    path = source.path if isinstance(source, Checkpoint) else Path(source)
    if path.is_dir():
        return read_tokenizer_json(path / "tokenizer.json")
    checkpoint = source if isinstance(source, Checkpoint) else open_gguf(path)
    return _described(_backend_of_gguf(checkpoint.metadata, path), path)


def read_tokenizer_json(path: Path) -> Tokenizer:
    """Read the tokenizer in a `tokenizer.json`, without its settings of lengths.

    Published checkpoints contain settings for batches, such as truncation and padding. Here a text
    is encoded completely, alone, and without an added token.

    Raises:
        ValueError: if the file is not a tokenizer, or the tokenizer is random (a dropout of
            merges).
    """
    tokenizers = imported("tokenizers")
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError:
        raise
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise ValueError(
            f"{path} must describe a tokenizer; got a file that cannot be read: {error}."
        ) from None
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
        require(value is not None, f"{path} must hold a value of `tokenizer.ggml.{name}`", value)
        return value

    kind, pre = held("model"), held("pre")
    rule = f"`tokenizer.ggml.model` of {path} must be 'gpt2', which is byte-level BPE"
    require(kind == "gpt2", rule, kind)
    rule = f"`tokenizer.ggml.pre` of {path} must be one of {', '.join(pre_tokenizers)}"
    require(pre in pre_tokenizers, rule, pre)
    prefix = held("add_space_prefix", False)
    require(prefix is False, f"`tokenizer.ggml.add_space_prefix` of {path} must be False", prefix)
    tokens, merges, kinds = held("tokens"), held("merges"), held("token_type")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    rule = f"The tokens of {path} must differ, and each must have a kind"
    counts = (len(tokens), len(vocabulary), len(kinds))
    name = "numbers of (tokens, different tokens, kinds)"
    require(len(vocabulary) == len(tokens) == len(kinds), rule, counts, name=name)
    pairs = [tuple(merge.split(" ")) for merge in merges]
    bad = [
        merge
        for merge, pair in zip(merges, pairs, strict=True)
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys()
    ]
    rule = f"Each merge of {path} must join two tokens into a third one"
    require(not bad, rule, bad[:_SHOWN], name="wrong merges")
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
    """The rules that split a text before any merge, by their GGUF names."""
    cut = imported("tokenizers").pre_tokenizers
    byte_level = cut.ByteLevel(add_prefix_space=False, use_regex=True)
    each_digit = cut.Digits(individual_digits=True)
    return {"gpt-2": byte_level, "smollm": cut.Sequence([each_digit, byte_level])}


# ── both ────────────────────────────────────────────────────────────────────────────────────────


def _described(backend: Any, path: Path) -> Tokenizer:
    """The pure functions around a `tokenizers.Tokenizer`."""
    dropout = getattr(backend.model, "dropout", None)
    rule = f"`dropout` of the tokenizer in {path} must be 0, because it draws ids at random"
    require(not dropout, rule, dropout)

    def raw(text: str) -> Sequence[int]:
        try:
            return backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:  # a lone surrogate, which JSON may hold
            i = next(i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff")
            rule = "`text` must be Unicode without half a surrogate pair"
            raise ValueError(f"{rule}; got text[{i}] = {text[i]!r}.") from error

    def decode(ids: Sequence[int]) -> str:
        return backend.decode([int(i) for i in ids], skip_special_tokens=False)

    # Ids may leave gaps, so it is not their number that bounds them.
    num_tokens = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    unchecked = Tokenizer(raw, decode, num_tokens)

    def encode(text: str) -> np.ndarray:
        return lossless_ids(text, unchecked).astype(np.int32)

    special = {token.content: i for i, token in sorted(backend.get_added_tokens_decoder().items())}
    return Tokenizer(encode, decode, num_tokens, special, backend)
