"""Features of documents: TF-IDF of words, then their SVD; kept on disk as numbers and words."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dfm_jax.checks import check_seed, require
from dfm_jax.data.packages import package_folder
from dfm_jax.data.tensors import read_tensors, tensors_to_bytes
from dfm_jax.json_text import read_json

NUM_FEATURES = 64
_MAX_WORDS = 20_000  # the most frequent
_SHOWN = 5  # documents named in a refusal
# A document's words have length 1. What is shorter than this in the directions is rounding.
_NOTHING = 1e-9
_WORDS, _NUMBERS = "encoder.json", "encoder.safetensors"


class DocumentEncoder(NamedTuple):
    """What decides the features of a document, fitted on others."""

    words: tuple[str, ...]  # W of them, in the order of the columns
    idf: np.ndarray  # [W]
    directions: np.ndarray  # [D, W]


class Documents(NamedTuple):
    """Features of documents, of unit length; 0 for one without a feature."""

    features: np.ndarray  # [B, D] float32
    known: np.ndarray  # [B] whether it shares a word, and a direction, with those fitted on


def fit_documents(
    texts: Iterable[str], *, num_features: int | None = None, seed: int = 0
) -> DocumentEncoder:
    """Words, at most the 20,000 most frequent, their weights and directions, from `texts` alone.

    The texts are read once, one by one; what is held of them is how often each word stands in each.
    Term frequencies are sublinear, 1 + log.

    Args:
        texts: the training documents.
        num_features: D, at most the documents, and at most the different words; 64 by default.
        seed: of the randomised SVD.

    Raises:
        ValueError: if `num_features` is out of range, or no text holds a word.
        MissingDataError: if scikit-learn is not installed.
    """
    package_folder("sklearn", "scikit-learn")  # says how to install it
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    check_seed("seed", seed)
    vectorizer = TfidfVectorizer(sublinear_tf=True, max_features=_MAX_WORDS)
    try:
        counted = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise ValueError(f"the documents must hold words: {error}") from error
    most = min(counted.shape)
    rule = f"`num_features` must lie in [1, {most}], at most the {counted.shape[0]} documents"
    rule += f" and the {counted.shape[1]} different words"
    if num_features is None and most < NUM_FEATURES:
        raise ValueError(f"{rule}; it is {NUM_FEATURES}, its default: give `--num-features`.")
    num_features = NUM_FEATURES if num_features is None else num_features
    require(1 <= num_features <= most, rule, num_features)
    with np.errstate(invalid="ignore"):  # a share of the variance, not read here, of equal texts
        svd = TruncatedSVD(num_features, random_state=seed).fit(counted)
    words = tuple(str(word) for word in vectorizer.get_feature_names_out())
    return DocumentEncoder(words, np.asarray(vectorizer.idf_), np.asarray(svd.components_))


def encode_documents(encoder: DocumentEncoder, texts: Sequence[str]) -> Documents:
    """The documents in the directions of `encoder`; what stands beside one changes nothing."""
    return _prepared(encoder)(texts)


def document_encoder(
    texts: Sequence[str], *, num_features: int | None = None, seed: int = 0
) -> Callable[[Sequence[str]], np.ndarray]:
    """A map of documents to [D, num_features], of unit length: TF-IDF of words, then their SVD.

    It is fitted on `texts` by `fit_documents`; whatever is encoded later, held-out documents too,
    changes nothing. The map refuses a document without a word of `texts`: it has no direction.

    Raises:
        ValueError, MissingDataError: as `fit_documents`.
    """
    prepared = _prepared(fit_documents(texts, num_features=num_features, seed=seed))

    def encode(texts: Sequence[str]) -> np.ndarray:
        features, known = prepared(texts)
        lost = np.flatnonzero(~known)
        if lost.size:
            more = f", … ({lost.size} in all)" if lost.size > _SHOWN else ""
            shown = ", ".join(map(str, lost[:_SHOWN])) + more
            rule = "`texts` must each share a word with those fitted on"
            raise ValueError(f"{rule}; not so {shown}.")
        return features

    return encode


def document_encoder_to_files(encoder: DocumentEncoder) -> dict[str, bytes]:
    """The files that `read_document_encoder` reads: the words as JSON, the rest as numbers."""
    words = json.dumps({"encoder": "tfidf", "words": encoder.words}, ensure_ascii=False)
    numbers = {"idf": encoder.idf, "directions": encoder.directions}
    return {_WORDS: words.encode() + b"\n", _NUMBERS: tensors_to_bytes(numbers)}


def read_document_encoder(folder: Path) -> DocumentEncoder:
    """The encoder that was written, to the bit.

    Raises:
        ValueError: if a file is damaged, or they do not fit together.
    """
    try:
        words = read_json(folder / _WORDS)["words"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / _WORDS} must be a JSON object with `words`.") from error
    arrays = read_tensors(folder / _NUMBERS, ("idf", "directions"))
    idf, directions = arrays["idf"], arrays["directions"]
    fits = idf.shape == (len(words),) and directions.ndim == 2 and directions.shape[1] == len(words)
    rule = f"the arrays in {folder / _NUMBERS} must be of its {len(words)} words; their shapes"
    require(fits, rule, f"{idf.shape}, {directions.shape}")
    return DocumentEncoder(tuple(words), idf, directions)


def _prepared(encoder: DocumentEncoder) -> Callable[[Sequence[str]], Documents]:
    """One map for the encoder that was fitted and the one that was read: so they agree."""
    package_folder("sklearn", "scikit-learn")
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, vocabulary=encoder.words)
    vectorizer.idf_ = encoder.idf

    def encode(texts: Sequence[str]) -> Documents:
        # Word by word in the order of the columns, so a row is the same in any company.
        projected = vectorizer.transform(texts) @ encoder.directions.T
        length = np.linalg.norm(projected, axis=1)
        known = length > _NOTHING
        unit = projected / np.where(known, length, 1)[:, None]
        return Documents(np.where(known[:, None], unit, 0).astype(np.float32), known)

    return encode
