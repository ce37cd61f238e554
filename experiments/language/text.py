"""The text of `language`: its splits, its tokens, and the context of each window.  [B9]"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from dfm_jax.checks import require
from dfm_jax.comparison import evaluation_sets
from dfm_jax.data import Corpus, Split, split_documents
from dfm_jax.data.tokens import Tokenizer, TokenSet, encode_texts
from experiments.lib import contexts
from experiments.lib.contexts import Contexts, Encoder, Pieces

HELD_OUT: tuple[str, ...] = ("validation", "test")
SPLITS: tuple[str, ...] = ("train", *HELD_OUT)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The documents of one split after each other, as tokens and as their bytes."""

    set: TokenSet
    flat: bytes
    begins: np.ndarray  # [M + 1] where each token begins in `flat`, and its end
    domains: tuple[str, ...]  # [D]

    @cached_property
    def windows(self) -> dict[int, np.ndarray]:
        """Kept by length; see `window_starts`."""
        return {}

    def window_starts(self, length: int) -> np.ndarray:
        """Where windows of so many tokens begin, each document cut from its start."""
        if length not in self.windows:
            starts = self.set.offsets[:-1][np.diff(self.set.offsets) > 0]
            self.windows[length] = evaluation_sets.windows_of(starts, len(self.set.tokens), length)
        return self.windows[length]

    def of_bytes(self, spans: np.ndarray) -> np.ndarray:
        """Spans of tokens [Q, 2] as spans of bytes."""
        return self.begins[spans]

    def chosen(self, documents: np.ndarray) -> TokenSet:
        """Those documents alone; `documents` is true where one is kept. [D]"""
        sizes, kept = np.diff(self.set.offsets), documents
        tokens = self.set.tokens[np.repeat(kept, sizes)]
        offsets = np.r_[0, np.cumsum(sizes[kept])].astype(np.int64)
        return TokenSet(tokens, offsets, self.set.num_bytes[kept])


@dataclass(frozen=True, kw_only=True)
class Text:
    """What all variants share: the split, its tokens, a tokenizer and an encoder."""

    split: Split
    tokenizer: Tokenizer
    tokens: Mapping[str, Tokens]  # by split
    encode: Encoder

    @property
    def corpora(self) -> list[Corpus]:
        """Those of all splits, in order: what a partition labels."""
        return [corpus for name in SPLITS for corpus in getattr(self.split, name)]

    @property
    def sizes(self) -> dict[str, int]:
        """Documents by split."""
        return {name: len(self.tokens[name].domains) for name in SPLITS}


def text_of(
    corpora: Sequence[Corpus], *, num_tokens: int, num_features: int, seed: int = 0
) -> Text:
    """Split the documents; tokens and features come from training text alone."""
    split = split_documents(corpora, seed=seed)
    texts = {name: _texts(getattr(split, name)) for name in SPLITS}
    pieces = byte_pairs(texts["train"], num_tokens)
    tokenizer = Tokenizer(
        encode=lambda text: pieces.encode(text).ids,
        decode=lambda ids: pieces.decode(list(ids)),
        num_tokens=num_tokens,
    )
    widths = token_widths(pieces)
    return Text(
        split=split,
        tokenizer=tokenizer,
        tokens={
            name: _tokens(texts[name], tokenizer, widths, getattr(split, name)) for name in SPLITS
        },
        encode=contexts.encoder([t.encode() for t in texts["train"]], num_features, seed=seed),
    )


def byte_pairs(texts: Sequence[str], num_tokens: int, *, fewer: bool = False) -> Any:
    """A byte-level BPE of V pieces, fitted on these texts; it encodes any text without loss.

    With `fewer` it may have fewer pieces, if the texts do not give V.

    Raises:
        ValueError: if V is under 256; if the texts do not give V pieces and `fewer` is False.
    """
    from tokenizers import Tokenizer as Pieces
    from tokenizers import decoders, models, pre_tokenizers, trainers

    rule = "`num_tokens` must be at least 256, because each byte is a token"
    require(num_tokens >= 256, rule, num_tokens)
    pieces = Pieces(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens, initial_alphabet=alphabet, show_progress=False
    )
    pieces.train_from_iterator(texts, trainer)
    size = pieces.get_vocab_size()
    rule = f"`num_tokens` must be at most {size}, as many as the training text gives"
    require(fewer or size == num_tokens, rule, num_tokens)
    return pieces


def token_widths(pieces: Any) -> np.ndarray:
    """[V] bytes of each piece: a byte-level BPE writes one character for each."""
    return np.array([len(pieces.id_to_token(v)) for v in range(pieces.get_vocab_size())])


def window_contexts(tokens: Tokens, encode: Encoder, length: int) -> Contexts:
    """The text before each window in its document, at most a window long, as spans of tokens."""
    sizes = np.diff(tokens.set.offsets)
    spans = evaluation_sets.window_contexts(sizes[sizes > 0], length)
    read = contexts.contexts(encode, tokens.flat, tokens.of_bytes(spans))
    return replace(read, spans=spans)


def window_pieces(tokens: Tokens, encode: Encoder, length: int) -> Pieces:
    """Every window of every document, as a context of the next."""
    starts = tokens.window_starts(length)
    document = np.searchsorted(tokens.set.offsets, starts, side="right") - 1
    spans = np.stack([starts, np.r_[starts[1:], len(tokens.set.tokens)]], axis=1)
    return Pieces(
        features=contexts.encoded(encode, tokens.flat, tokens.of_bytes(spans)),
        document=document,
        precedes=np.r_[document[1:] == document[:-1], False],
    )


def _texts(corpora: Sequence[Corpus]) -> list[str]:
    return [document.text for corpus in corpora for document in corpus.documents]


def _tokens(
    texts: Sequence[str], tokenizer: Tokenizer, widths: np.ndarray, corpora: Sequence[Corpus]
) -> Tokens:
    found, flat = encode_texts(texts, tokenizer), "".join(texts).encode()
    begins = np.r_[0, np.cumsum(widths[found.tokens])]
    rule = f"The tokens must have {len(flat)} bytes, as many as the text"
    require(begins[-1] == len(flat), rule, begins[-1], name="bytes of the tokens")
    domains = tuple(corpus.domain for corpus in corpora for _ in corpus.documents)
    return Tokens(set=found, flat=flat, begins=begins, domains=domains)
