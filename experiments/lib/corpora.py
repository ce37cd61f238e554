"""The texts that the studies read: domains, and small texts of a few words."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from dfm_jax.data import Corpus, MissingDataError, load_folder
from experiments.lib.domains import load_abc, load_bbc, load_kjv, load_shakespeare, load_stdlib

_WORDS = ("in", "the", "beginning", "was", "word", "and", "light", "upon", "face", "of", "waters")


def load_corpora(
    folders: Sequence[Path], domain_bytes: int, console: Console
) -> tuple[Corpus, ...]:
    """Load the required corpora, the optional ones that are installed, and the user's folders.

    Each corpus is sampled.

    Raises:
        MissingDataError: if a required corpus is missing; if DFM_REQUIRE_DATA is 1, any corpus.
        ValueError: if a folder cannot be read.
    """
    corpora = [read() for read in (load_kjv, load_shakespeare, load_stdlib)]
    for read in (load_bbc, load_abc):
        try:
            corpora.append(read())
        except MissingDataError as error:
            if os.environ.get("DFM_REQUIRE_DATA") == "1":
                raise
            console.print(f"left out: {error}", highlight=False)
    corpora += [load_folder(folder) for folder in folders]
    return tuple(sampled(corpus, domain_bytes) for corpus in corpora)


def sampled(corpus: Corpus, num_bytes: int) -> Corpus:
    """Whole documents in random order, as many as fit in so many bytes; 0 means all of them."""
    if not num_bytes:
        return corpus
    sizes = np.array([len(document.text.encode()) for document in corpus.documents])
    order = np.random.default_rng(0).permutation(sizes.size)
    kept = np.sort(order[np.cumsum(sizes[order]) <= num_bytes])
    return replace(corpus, documents=tuple(corpus.documents[i] for i in kept))


def write_texts(folder: Path) -> None:
    """Write forty short documents, which are the same on every machine."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(40):
        words = random.choice(_WORDS, size=random.integers(20, 60))
        (folder / f"{number:02d}.txt").write_text(" ".join(words) + ".\n", encoding="utf-8")
