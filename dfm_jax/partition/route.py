"""The experts of pictures, by the rule of a partition: one of them, or a weight for each."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dfm_jax.checks import check_interval, require
from dfm_jax.clustering import cosine_scores, nearest_cluster
from dfm_jax.data.features import (
    PictureEncoder,
    clip_encoder,
    efficientnet_encoder,
    encoded_pictures,
)
from dfm_jax.data.manifest import read_manifest
from dfm_jax.data.pictures import read_picture
from dfm_jax.json_text import read_json
from dfm_jax.partition.assign import Rule, read_rule
from dfm_jax.partition.write import CENTROIDS
from dfm_jax.types import typed

_BATCH = 64  # pictures that are read at a time


class PictureRouter(NamedTuple):
    """The rule of a partition, and the encoder of its pictures."""

    rule: Rule
    encoder: PictureEncoder
    num_experts: int


def picture_router(partition: Path, *, clip: Path | str | None = None) -> PictureRouter:
    """The router of a folder that `partition` wrote with an encoder of pictures.

    Args:
        partition: The folder.
        clip: The folder of the CLIP, if that was the encoder.

    Raises:
        ValueError: if it is no such folder; if the encoder is not the one that made its features.
        MissingDataError: if a package that the encoder needs is not installed.
    """
    manifest, path = read_manifest(partition), partition / "encoder.json"
    rule = "`partition` must be a folder that `partition` wrote with an encoder of pictures"
    require(manifest is not None and path.is_file(), rule, partition)
    assert manifest is not None
    said = read_json(path)
    kind = said.get("encoder")
    require(kind in ("efficientnet", "clip"), rule, kind, name="encoder")
    rule = "`clip` must be given if the encoder of the partition is clip, and only then"
    require((clip is not None) == (kind == "clip"), rule, clip)
    encoder = efficientnet_encoder() if clip is None else clip_encoder(clip)
    rule = f"The encoder must be that of {partition}, whose hash is {said['hash']}"
    require(encoder.digest == said["hash"], rule, encoder.digest, name="hash")
    return PictureRouter(
        read_rule(partition / CENTROIDS), encoder, manifest["settings"]["num_experts"]
    )


def route_features(
    router: PictureRouter, pictures: Sequence[Path], *, cache: Path | None = None
) -> np.ndarray:
    """The features of picture files, [Q, D]; a file that occurs twice is encoded once.

    Raises:
        ValueError: if there is no picture, or one cannot be read.
    """
    paths = list(dict.fromkeys(pictures))
    require(bool(paths), "`pictures` must hold a picture", len(paths), name="len(pictures)")
    parts = []
    for start in range(0, len(paths), _BATCH):
        read = [read_picture(path) for path in paths[start : start + _BATCH]]
        parts.append(encoded_pictures(router.encoder, read, folder=cache).features)
    at = {path: row for row, path in enumerate(paths)}
    return np.concatenate(parts)[[at[path] for path in pictures]]


@typed
def hard_route(router: PictureRouter, features: Float[np.ndarray, "Q D"]) -> Int[np.ndarray, " Q"]:
    """The expert of the nearest centroid, as `partition` and `route` assign rows.  [D8]"""
    nearest = np.asarray(nearest_cluster(features, router.rule.clusters, None))
    return router.rule.cluster_of[nearest]


@typed
def soft_route(
    router: PictureRouter, features: Float[np.ndarray, "Q D"], sharpness: float
) -> Float[np.ndarray, "Q K"]:
    """log r_0(k | picture) in nats: the shares of the centroids, summed by expert.

        r_0(k | c) = Σ_{j of expert k} exp(T ⟨c_j, f⟩) / Σ_j exp(T ⟨c_j, f⟩)

    Here f is the direction of the features from their mean, and T the sharpness. With T → ∞ it is
    `hard_route` without prices. The paper's soft route has one centroid an expert, and T = 21.8.

    Raises:
        ValueError: if T is negative or not finite; if a row is the mean, which has no direction.
    """
    check_interval("sharpness", sharpness, 0, jnp.inf, ends="[)")
    scores = cosine_scores(features, router.rule.clusters)
    shares = jax.nn.log_softmax(sharpness * scores, axis=1)
    of_expert = router.rule.cluster_of[None] == np.arange(router.num_experts)[:, None]  # [K, C]
    parts = jnp.where(of_expert[None], shares[:, None], -jnp.inf)
    return np.asarray(jax.nn.logsumexp(parts, axis=2))
