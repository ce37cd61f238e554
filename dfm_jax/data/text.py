"""Text as documents: any folder of files; train, validation and test without near-duplicates.

The same files give the same documents in the same order on every machine, and every file that
could not be read is named.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.data.listing import files_in


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text that stands for itself: a chapter, a scene, a source file, an article, a tune."""

    name: str  # unique within its corpus
    work: str  # the book, play or file it belongs to: what a split of files must not cut through
    text: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The documents of one domain, and the names of the files left out as not UTF-8."""

    domain: str
    documents: tuple[Document, ...]
    skipped: tuple[str, ...] = ()


def load_folder(folder: Path | str, *, pattern: str = "**/*") -> Corpus:
    """A folder of text: one document per file, named by its path in the folder.

    The domain is the folder's name; the work of a file is the subfolder of `folder` that it lies
    in, however deep, or else the file itself. An empty file is an empty document, a file that is
    not UTF-8 is named in `skipped`, and a hidden file is read like any other.

    Args:
        folder: where the files lie.
        pattern: which of them to read, see `files_in`.

    Raises:
        ValueError: if `folder` is not a folder, holds no file that matches, or one that cannot be
            read.
    """
    folder = Path(os.path.abspath(folder))  # so that "." has a name
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a folder; got folder = {str(folder)!r}.")
    files = [path for _, path in files_in(folder, pattern)]
    if not files:
        raise ValueError(f"`pattern` must match a file in {folder}; got pattern = {pattern!r}.")
    texts, skipped = read_texts(files, folder)
    documents = tuple(
        Document(name=name, work=name.split("/")[0], text=text) for name, text in texts
    )
    return Corpus(domain=folder.name, documents=documents, skipped=skipped)


def read_texts(
    files: Iterable[Path], folder: Path
) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """(name, text) of every file, sorted by name, and the names of those that are not UTF-8."""
    texts, skipped = [], []
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in files):
        try:
            texts.append((name, path.read_bytes().decode("utf-8")))
        except UnicodeDecodeError:
            skipped.append(name)
    return texts, tuple(skipped)


# ── train, validation and test ──────────────────────────────────────────────────────────────────
#
# A document is drawn by its name, whatever stands beside it. Then those held out that share too
# many n-grams of words with the training documents are removed, and reported one by one.


# What a document of a held-out split must not repeat.
_COMPARED_WITH = {"validation": ("train", "test"), "test": ("train",)}
SPLITS = ("train", *_COMPARED_WITH)

_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, with bits everywhere: 2⁶⁴ / golden ratio


@dataclass(frozen=True, kw_only=True)
class Removed:
    """A document drawn for validation or test, and left out for what it repeats."""

    domain: str
    name: str
    split: str  # what it was drawn for
    overlap: float  # share of its distinct n-grams that the other splits hold: in (max_overlap, 1]
    num_bytes: int  # in UTF-8


@dataclass(frozen=True, kw_only=True)
class Split:
    """Three splits, each with a corpus per domain, and the documents that are in none.

    Domains and documents keep the order that they came in, and a domain its `skipped`.
    """

    train: tuple[Corpus, ...]
    validation: tuple[Corpus, ...]
    test: tuple[Corpus, ...]
    removed: tuple[Removed, ...]


class _Drawn(NamedTuple):
    domain: str
    document: Document
    split: str


def split_documents(
    corpora: Sequence[Corpus],
    *,
    seed: int = 0,
    validation: float = 0.1,
    test: float = 0.1,
    gram: int = 13,
    max_overlap: float = 0.2,
) -> Split:
    """Every domain in train, validation and test by document, without near-duplicates across.

    The draw: of the n documents of a domain, ordered by a hash of (seed, domain, name), the first
    max(1, round(test · n)) are for test, the next max(1, round(validation · n)) for validation.

    The overlap of a held-out document is the share of its distinct `gram`-grams of words that occur
    in a training document of any domain; for validation, in one drawn for test too. A document with
    more than `max_overlap` is removed; training stays as it was drawn, with its own repeats.
    Words are runs of letters, digits and `_`, lower-cased. A document of fewer words than `gram`,
    or of none, is one gram, which occurs in documents of the same words only.

    Args:
        corpora: one per domain.
        seed: another one draws another split.
        validation: share of the documents, not of the bytes.
        test: likewise.
        gram: n of the n-grams.
        max_overlap: the default takes parallel chapters (2 Kings 19, Ezra 2), reprinted articles,
            shared tunes, and short files that are mostly header or license; of the tunes that stay,
            fewer than 1 in 100 share a fifth of their music.

    Raises:
        ValueError: if an argument lies outside its domain, a domain or a document's name comes
            twice, or a domain is left without a document in one of the splits.
    """
    _check_arguments(corpora, seed, validation, test, gram, max_overlap)
    drawn = [
        _Drawn(corpus.domain, document, split)
        for corpus in corpora
        for document, split in zip(
            corpus.documents, _drawn_splits(corpus, seed, validation, test), strict=True
        )
    ]
    overlaps = _overlaps(drawn, gram)
    _check_every_split_keeps_a_document(drawn, overlaps, max_overlap)
    removed = tuple(
        Removed(
            domain=domain,
            name=document.name,
            split=split,
            overlap=overlap,
            num_bytes=len(document.text.encode()),
        )
        for (domain, document, split), overlap in zip(drawn, overlaps, strict=True)
        if overlap > max_overlap
    )
    kept = [row for row, overlap in zip(drawn, overlaps, strict=True) if overlap <= max_overlap]
    parts = {
        split: tuple(replace(c, documents=_documents(kept, c.domain, split)) for c in corpora)
        for split in SPLITS
    }
    return Split(**parts, removed=removed)


def split_sizes(split: Split) -> dict[str, dict[str, dict[str, int]]]:
    """How much there is of each domain in each split, and how much was removed from it.

    As JSON: domain → split → `documents`, `bytes`, `removed_documents`, `removed_bytes`; bytes in
    UTF-8.
    """
    sizes = {}
    for name in SPLITS:
        for corpus in getattr(split, name):
            removed = [r for r in split.removed if (r.domain, r.split) == (corpus.domain, name)]
            sizes.setdefault(corpus.domain, {})[name] = {
                "documents": len(corpus.documents),
                "bytes": sum(len(document.text.encode()) for document in corpus.documents),
                "removed_documents": len(removed),
                "removed_bytes": sum(r.num_bytes for r in removed),
            }
    return sizes


def _drawn_splits(corpus: Corpus, seed: int, validation: float, test: float) -> list[str]:
    """The split that each document is drawn for."""
    names = [document.name for document in corpus.documents]
    num_test, num_validation = (max(1, round(share * len(names))) for share in (test, validation))
    num_held_out = num_test + num_validation
    rule = (
        f"`{corpus.domain}` in `corpora` must have more than the {num_held_out} documents held out"
    )
    require(len(names) > num_held_out, rule, len(names), name="number of documents")

    def rank(name: str) -> bytes:
        content = json.dumps([int(seed), corpus.domain, name])
        return hashlib.blake2b(content.encode(), digest_size=16).digest()

    split_of = dict.fromkeys(names, "train")
    ordered = sorted(names, key=rank)
    split_of.update(dict.fromkeys(ordered[:num_test], "test"))
    split_of.update(dict.fromkeys(ordered[num_test:num_held_out], "validation"))
    return [split_of[name] for name in names]


def _overlaps(drawn: Sequence[_Drawn], gram: int) -> list[float]:
    """The share of each document's grams that another split holds; 0 for training."""
    word_hash = cache(_word_hash)  # forgotten with this call
    texts = (row.document.text for row in drawn)
    grams = [_distinct_grams(map(word_hash, _WORD.findall(text)), gram) for text in texts]
    known = {"train": np.zeros(0, dtype=np.uint64)}
    for split, others in _COMPARED_WITH.items():
        held = [of_row for row, of_row in zip(drawn, grams, strict=True) if row.split in others]
        known[split] = np.sort(np.concatenate(held))
    return [_share(of_row, known[row.split]) for row, of_row in zip(drawn, grams, strict=True)]


def _share(grams: np.ndarray, known: np.ndarray) -> float:
    """How many of `grams`, of 1, stand in `known`, which is sorted."""
    if known.size == 0:
        return 0.0
    # `np.isin` would sort all of `known` again, for every document.
    nearest = known.take(np.searchsorted(known, grams), mode="clip")
    return float(np.mean(nearest == grams))


def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.lower().encode(), digest_size=8).digest(), "little")


def _distinct_grams(word_hashes: Iterable[int], gram: int) -> np.ndarray:
    """The distinct n-grams of a document, each as 64 bits.

    Every step is a bijection of what came before, so two different grams agree as rarely as random
    numbers, with probability 2⁻⁶⁴: among 10⁷ grams and 10⁶ held out, 5 · 10⁻⁷ expected agreements.
    """
    words = np.fromiter(word_hashes, dtype=np.uint64)
    num_grams = max(1, words.size - gram + 1)
    hashes = np.zeros(num_grams, dtype=np.uint64)
    for position in range(min(gram, words.size)):
        # Modulo 2⁶⁴. Without the shift it is linear: grams that swap words would agree more often.
        mixed = (hashes ^ (hashes >> 32)) * _MULTIPLIER
        hashes = mixed + words[position : position + num_grams]
    return np.unique(hashes)


def _documents(rows: Sequence[_Drawn], domain: str, split: str) -> tuple[Document, ...]:
    return tuple(row.document for row in rows if (row.domain, row.split) == (domain, split))


def _check_arguments(
    corpora: Sequence[Corpus],
    seed: int,
    validation: float,
    test: float,
    gram: int,
    max_overlap: float,
) -> None:
    require(isinstance(seed, int | np.integer), "`seed` must be an integer", seed)
    check_interval("validation", validation, 0.0, 1.0, ends="()")
    check_interval("test", test, 0.0, 1.0, ends="()")
    require(validation + test < 1, "`validation + test` must be below 1", validation + test)
    check_count("gram", gram)
    check_interval("max_overlap", max_overlap, 0.0, 1.0, ends="[)")
    check_count("len(corpora)", len(corpora))
    domains = [corpus.domain for corpus in corpora]
    require(len(set(domains)) == len(domains), "`corpora` must name each domain once", domains)
    for corpus in corpora:
        times = Counter(document.name for document in corpus.documents)
        repeated = [name for name, count in times.items() if count > 1]
        rule = f"`corpora` must name each document of `{corpus.domain}` once"
        require(not repeated, rule, repeated, name="repeated names")


def _check_every_split_keeps_a_document(
    drawn: Sequence[_Drawn], overlaps: Sequence[float], max_overlap: float
) -> None:
    least: dict[tuple[str, str], float] = {}
    for (domain, _, split), overlap in zip(drawn, overlaps, strict=True):
        least[domain, split] = min(overlap, least.get((domain, split), 1.0))
    for (domain, split), overlap in least.items():
        rule = (
            f"`max_overlap` must be at least {overlap:g}, to leave a document of {domain} in "
            f"{split}"
        )
        require(overlap <= max_overlap, rule, max_overlap)
