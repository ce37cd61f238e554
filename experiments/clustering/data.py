"""The data of `clustering`: text of known domain, scenes of known group, synthetic rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfm_jax.data import (
    Corpus,
    document_encoder,
    image_features,
    load_efficientnet_lite0,
    pixel_features,
)
from experiments.lib.emoji import emoji_scenes

_BLOCK = 2**15  # synthetic rows made at a time


@dataclass(frozen=True, kw_only=True)
class Labeled:
    """Features, and the known class of each row."""

    name: str
    features: np.ndarray  # [R, D]
    true: np.ndarray  # [R]


def pieces_of_domains(
    corpora: Sequence[Corpus], *, size: int, per_domain: int, num_features: int
) -> Labeled:
    """Pieces of `size` characters, drawn from each domain; TF-IDF and SVD, fitted on all."""
    texts, true = [], []
    for domain, corpus in enumerate(corpora):
        text = "\n".join(document.text for document in corpus.documents)
        rng = np.random.default_rng([domain, per_domain])
        starts = rng.choice(len(text) // size, size=per_domain, replace=False) * size
        texts += [text[start : start + size] for start in sorted(starts)]
        true += [domain] * per_domain
    encoded = document_encoder(texts, num_features=num_features)(texts)
    return Labeled(name="text domains", features=encoded, true=np.array(true))


def articles_by_topic(corpus: Corpus, *, num_features: int) -> Labeled:
    """The articles of the BBC, each once; TF-IDF and SVD, fitted on all of them."""
    once = {document.text: document.name.split("/")[0] for document in corpus.documents}
    topics = sorted(set(once.values()))
    encoded = document_encoder(list(once), num_features=num_features)(list(once))
    true = np.array([topics.index(topic) for topic in once.values()])
    return Labeled(name="BBC topics", features=encoded, true=true)


def scenes_by_group(num_scenes: int, folder: Path) -> Iterator[Labeled]:
    """Emoji scenes of seed 0, by EfficientNet-Lite0 and by pixels; features kept in `folder`."""
    images, scenes = emoji_scenes(range(num_scenes))
    groups = sorted({scene.group for scene in scenes})
    true = np.array([groups.index(scene.group) for scene in scenes])
    encoded = image_features(load_efficientnet_lite0(), images, folder=folder).features
    yield Labeled(name="scenes, EfficientNet-Lite0", features=encoded, true=true)
    yield Labeled(name="scenes, pixels", features=pixel_features(images), true=true)


def synthetic_rows(
    num_rows: int, num_features: int, *, num_groups: int, noise: float, seed: int
) -> np.ndarray:
    """Unit rows around directions of unequal shares, in float32: x ∝ g_{a(i)} + noise · ε."""
    rng = np.random.default_rng(seed)
    dense_models = rng.standard_normal((num_groups, num_features), dtype=np.float32)
    group = rng.choice(num_groups, size=num_rows, p=rng.dirichlet(np.full(num_groups, 2.0)))
    rows = np.empty((num_rows, num_features), np.float32)
    for start in range(0, num_rows, _BLOCK):
        block = rows[start : start + _BLOCK]
        rng.standard_normal(out=block, dtype=np.float32)
        block *= np.float32(noise)
        block += dense_models[group[start : start + _BLOCK]]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return rows


def synthetic_tokens(num_rows: int, *, seed: int) -> np.ndarray:
    """The number of tokens of each row, at least 1: log-normal, like lengths of conversations."""
    rng = np.random.default_rng([seed, 1])
    return np.maximum(1, np.round(rng.lognormal(5, 1, size=num_rows))).astype(np.float32)
