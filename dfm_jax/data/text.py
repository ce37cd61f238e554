"""Text as documents from any folder of files, split into parts without near-duplicates.

The same files give the same documents in the same order on every machine, and every file that could
not be read is named.
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
    """One independent text: a chapter, a scene, a source file, an article, a tune."""

    name: str  # unique within its corpus
    work: str  # the book, play or file it belongs to: what a split of files must not cut through
    text: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The documents of one domain, and the names of files that were left out as not UTF-8."""

    domain: str
    documents: tuple[Document, ...]
    skipped: tuple[str, ...] = ()


def load_folder(folder: Path | str, *, pattern: str = "**/*") -> Corpus:
    """Load a folder of text, with one document per file, named by its path in the folder.

    The domain is the name of the folder. The work of a file is the subfolder of `folder` that
    contains it at any depth, or the file itself. An empty file is an empty document, a file that is
    not UTF-8 is named in `skipped`, and a hidden file is read like any other.

    Args:
        folder: The folder of the files.
        pattern: The pattern of the files to read, see `files_in`.

    Raises:
        ValueError: if `folder` is not a folder; if no file matches; if a file cannot be read.
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
    """A document drawn for validation or test that was removed because it repeats another."""

    domain: str
    name: str
    split: str  # what it was drawn for
    overlap: float  # share of its distinct n-grams that the other splits hold: in (max_overlap, 1]
    num_bytes: int  # in UTF-8


@dataclass(frozen=True, kw_only=True)
class Split:
    """Three splits, each with one corpus per domain, and the documents that are in none of them.

    Domains and documents keep their order, and a domain keeps its `skipped`.
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
    """Split every domain into train, validation and test documents, without near-duplicates across.

    The documents of a domain are ordered by a hash of (seed, domain, name). Of n documents, the
    first max(1, round(test · n)) are for test, and the next max(1, round(validation · n)) for
    validation.

    The overlap of a held-out document is the share of its distinct `gram`-grams of words that occur
    in a training document of any domain; for validation, also in a document drawn for test. A
    document with an overlap above `max_overlap` is removed. Training documents stay, even if they
    repeat each other. Words are runs of letters, digits and `_` in lower case. A document with
    fewer words than `gram`, or with none, is one gram, which occurs only in documents with the same
    words.

    Args:
        corpora: One corpus per domain.
        seed: The seed of the split.
        validation: The share of the documents, not of the bytes.
        test: The share of the documents, not of the bytes.
        gram: n of the n-grams.
        max_overlap: The largest overlap. The default removes parallel chapters (2 Kings 19, Ezra
            2), reprinted articles, shared tunes, and short files that are mostly header or license;
            of the tunes that stay, fewer than 1 in 100 share a fifth of their music.

    Raises:
        ValueError: if an argument lies outside its domain; if a domain or the name of a document
            occurs twice; if a domain has no document in one of the splits.
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
    """The size of each domain in each split, and how much was removed from it.

    The result is JSON: domain → split → `documents`, `bytes`, `removed_documents`, `removed_bytes`,
    with bytes in UTF-8.
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
    """The split for which each document is drawn."""
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
    """The share of each document's grams that another split contains; 0 for training."""
    word_hash = cache(_word_hash)  # forgotten with this call
    texts = (row.document.text for row in drawn)
    grams = [_distinct_grams(map(word_hash, _WORD.findall(text)), gram) for text in texts]
    known = {"train": np.zeros(0, dtype=np.uint64)}
    for split, others in _COMPARED_WITH.items():
        held = [of_row for row, of_row in zip(drawn, grams, strict=True) if row.split in others]
        known[split] = np.sort(np.concatenate(held))
    return [_share(of_row, known[row.split]) for row, of_row in zip(drawn, grams, strict=True)]


def _share(grams: np.ndarray, known: np.ndarray) -> float:
    """The share of `grams` that `known`, which is sorted, contains."""
    if known.size == 0:
        return 0.0
    # `np.isin` would sort all of `known` again, for every document.
    nearest = known.take(np.searchsorted(known, grams), mode="clip")
    return float(np.mean(nearest == grams))


def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.lower().encode(), digest_size=8).digest(), "little")


def _distinct_grams(word_hashes: Iterable[int], gram: int) -> np.ndarray:
    """The distinct n-grams of a document, each as 64 bits.

    Every step is a bijection of the last one, so two different grams agree as rarely as random
    numbers, with probability 2⁻⁶⁴. Among 10⁷ grams and 10⁶ held out, one expects 5 · 10⁻⁷
    agreements.
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
