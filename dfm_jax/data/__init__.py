"""Corpora read from installed packages or a folder, and their split; nothing is fetched."""

from dfm_jax.data.packages import MissingDataError
from dfm_jax.data.splits import Removed, Split, split_documents, split_sizes
from dfm_jax.data.text import (
    Corpus,
    Document,
    load_abc,
    load_bbc,
    load_folder,
    load_kjv,
    load_shakespeare,
    load_stdlib,
)

__all__ = [
    "Corpus",
    "Document",
    "MissingDataError",
    "Removed",
    "Split",
    "load_abc",
    "load_bbc",
    "load_folder",
    "load_kjv",
    "load_shakespeare",
    "load_stdlib",
    "split_documents",
    "split_sizes",
]
