"""Documents as one array of tokens: bytes, or the pieces of a `tokenizer.json`.

A document is a file of a folder, or a row of a JSON file: its `text`, or what is said in its
`conversations`. Which documents are held out is a function of each one's content alone, so an
expert and the centre hold out the same.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dfm_jax.checks import check_interval, require
from dfm_jax.data.records import Record, read_records
from dfm_jax.data.text import load_folder


class Tokenizer(NamedTuple):
    """Text to ids and back; V ids in all. Ids that mean nothing decode to U+FFFD."""

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    num_tokens: int


class TokenSet(NamedTuple):
    """Document d is `tokens[offsets[d] : offsets[d + 1]]`, of `num_bytes[d]` bytes of UTF-8."""

    tokens: np.ndarray  # [M], uint8 if V ≤ 256, else int32
    offsets: np.ndarray  # [D + 1], int64, from 0 to M
    num_bytes: np.ndarray  # [D], int64

    @property
    def digest(self) -> str:
        """The SHA-256 of tokens and offsets."""
        content = hashlib.sha256(str(self.tokens.dtype).encode())
        for part in (self.tokens, self.offsets):
            content.update(np.ascontiguousarray(part).tobytes())
        return content.hexdigest()


def byte_tokenizer() -> Tokenizer:
    """The 256 bytes of UTF-8."""
    return Tokenizer(
        encode=lambda text: text.encode("utf-8", "surrogatepass"),
        decode=lambda ids: bytes(ids).decode("utf-8", "replace"),
        num_tokens=256,
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`; it adds no special token (extra `hf`).

    Raises:
        ValueError: if the file is none, or the package `tokenizers` is missing.
    """
    try:
        from tokenizers import Tokenizer as Pieces
    except ImportError as error:
        raise ValueError(
            "a tokenizer.json needs the package tokenizers: pip install 'dfm_jax[hf]'."
        ) from error
    try:
        pieces = Pieces.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises bare exceptions
        raise ValueError(f"`tokenizer` must be a tokenizer.json; {path} is not: {error}") from error
    return Tokenizer(
        encode=lambda text: pieces.encode(text, add_special_tokens=False).ids,
        decode=lambda ids: pieces.decode(list(ids), skip_special_tokens=False),
        num_tokens=pieces.get_vocab_size(),
    )


def read_texts(path: Path) -> list[str]:
    """The documents of a folder of text, of rows in a `.jsonl` or `.json` file, or of one file.

    Turns of a conversation are lines `FROM: VALUE`; a `document`, as `partition` writes the files
    of a folder, is its text. Nothing is left out: what cannot be read is
    refused.

    Raises:
        ValueError: if there is nothing, or a file is not UTF-8, or a row has no text.
    """
    if path.is_dir():
        corpus = load_folder(path)
        rule = f"every file of {path} must be UTF-8"
        require(not corpus.skipped, rule, ", ".join(corpus.skipped[:5]))
        return [document.text for document in corpus.documents]
    if not path.is_file():
        raise ValueError(f"`data` must be a folder or a file; {path} is neither.")
    if path.suffix in (".jsonl", ".json"):
        return [_text_of(path, record) for record in read_records(path)]
    try:
        return [path.read_bytes().decode("utf-8")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8; it is not: {error}") from error


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer) -> TokenSet:
    """All documents behind one another, in their order; an empty one has no token."""
    dtype = np.uint8 if tokenizer.num_tokens <= 256 else np.int32
    encoded = [tokenizer.encode(text) for text in texts]
    parts = [
        np.frombuffer(ids, np.uint8) if isinstance(ids, bytes) else np.asarray(ids, dtype)
        for ids in encoded
    ]
    lengths = np.array([len(part) for part in parts], np.int64)
    sizes = np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], np.int64)
    tokens = np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)
    return TokenSet(tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), sizes)


def split_held_out(texts: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """(training, held out): a document is held out if the hash of its text, in [0, 1), is < share.

    Equal documents fall on the same side, and a document on the same side in whatever set it is.

    Raises:
        ValueError: if one side would be empty although 0 < share.
    """
    check_interval("share", share, 0, 1, ends="[)")
    sides: tuple[list[str], list[str]] = ([], [])
    for text in texts:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        sides[int.from_bytes(digest[:8], "big") < share * 2**64].append(text)
    rule = f"of {len(texts)} documents some must be held out, and some not, at a share of {share:g}"
    require(share == 0 or all(sides), f"{rule}; give more documents, or 0", len(sides[1]))
    return sides


def _text_of(path: Path, record: Record) -> str:
    text, turns = record.fields.get("text"), record.fields.get("conversations")
    if isinstance(text, str):
        return text
    try:
        said = [(turn["from"], turn["value"]) for turn in turns or [{}]]
        if not all(isinstance(value, str) for _, value in said):
            raise TypeError
    except (TypeError, KeyError):
        raise ValueError(
            f"{path}, line {record.line}: a row must have `text`, or `conversations` of turns with "
            "`from` and `value`."
        ) from None
    if len(said) == 1 and said[0][0] == "document":
        return said[0][1]
    return "".join(f"{speaker}: {value}\n" for speaker, value in said)
