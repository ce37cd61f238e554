"""Corpora read from installed packages; nothing is fetched from a network."""

from dfm_jax.data.packages import MissingDataError
from dfm_jax.data.text import Corpus, Document, load_kjv, load_shakespeare, load_stdlib

__all__ = [
    "Corpus",
    "Document",
    "MissingDataError",
    "load_kjv",
    "load_shakespeare",
    "load_stdlib",
]
