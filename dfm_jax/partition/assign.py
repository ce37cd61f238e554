"""The rule that assigns rows to experts: found by clustering, kept on disk; and its statistics."""

import hashlib
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import require
from dfm_jax.clustering import (
    Clusters,
    cosine_scores,
    nearest_cluster,
    spherical_k_means,
    two_stage_k_means,
)
from dfm_jax.data.arrays import read_tensors, tensors_to_bytes
from dfm_jax.partition.read import EncodedRows

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_CHUNK = 2**13  # rows whose scores are held at a time
_BALANCES = {"rows": "rows", "tokens": "weights", "none": "none"}


class Rule(NamedTuple):
    """A row goes to the expert of the cluster with the largest ⟨c, f⟩ − λ w."""

    clusters: Clusters
    cluster_of: np.ndarray  # [F], the expert of each cluster; 0 … K − 1 where each has its own


class Found(NamedTuple):
    """The result of the clustering."""

    rule: Rule
    labels: np.ndarray  # [R] those that were balanced
    statistics: dict


def clustered(
    encoded: EncodedRows,
    num_experts: int,
    *,
    balance: str,
    num_fine: int | None,
    restarts: int,
    seed: int,
    loads: np.ndarray,
) -> Found:
    """Cluster the rows that have a feature; the arguments are those of `write_partition`.

    With one stage, the statistics contain the cost of balance, which is the best mean cosine before
    balancing minus the one that was kept. They also contain the mean NMI of the labels with those
    of the other restarts.
    """
    weights = loads.astype(np.float32) if balance == "tokens" else None
    key = jax.random.key(seed)
    if num_fine is not None:
        two = two_stage_k_means(
            key, encoded.features, num_experts, num_fine=num_fine, weights=weights
        )
        return Found(Rule(two.fine, np.asarray(two.cluster_of)), np.asarray(two.labels), {})
    one = spherical_k_means(
        key,
        encoded.features,
        num_experts,
        balance=_BALANCES[balance],
        weights=weights,
        num_restarts=restarts,
    )
    agreement, unbalanced = float(one.agreement), float(one.unbalanced_cosine)
    statistics = {
        "num_passes": int(one.num_passes),
        "unbalanced_cosine": unbalanced,
        "cost_of_balance": unbalanced - float(one.mean_cosine),
        "agreement": None if math.isnan(agreement) else agreement,
    }
    return Found(Rule(one.clusters, np.arange(num_experts)), np.asarray(one.labels), statistics)


def rule_to_bytes(rule: Rule) -> bytes:
    """The content of `centroids.safetensors`."""
    named = {name: np.asarray(array) for name, array in rule.clusters._asdict().items()}
    return tensors_to_bytes({**named, "cluster_of": rule.cluster_of.astype(np.int64)})


def read_rule(path: Path) -> Rule:
    """Read a rule, with the same bits as it was written.

    Raises:
        ValueError: if the file is damaged.
    """
    arrays = read_tensors(path, (*Clusters._fields, "cluster_of"))
    return Rule(
        Clusters(*(jnp.asarray(arrays[name]) for name in Clusters._fields)), arrays["cluster_of"]
    )


def routed_labels(encoded: EncodedRows, rule: Rule, weights: np.ndarray | None) -> np.ndarray:
    """The expert of each row that has a feature, computed for some rows at a time.

    Raises:
        ValueError: if the features have another width; if one equals the mean of the clustered
            features and so has no direction.
    """
    width, found = len(rule.clusters.mean), encoded.features.shape[1]
    words = f"`features` must have {width} columns, as many as those of the partition"
    require(found == width, words, found, name="features.shape[1]")
    labels = np.empty(len(encoded.rows), np.int64)
    for part in _parts(labels.size):
        same = (encoded.features[part] == np.asarray(rule.clusters.mean)).all(axis=1)
        differ = "`features` must differ from the mean of those clustered in every row"
        equal, then = encoded.rows[part][same][:8], "A row that equals the mean has no direction."
        require(not same.any(), differ, equal, name="rows equal to the mean", then=then)
        charged = None if weights is None else weights[part]
        labels[part] = rule.cluster_of[
            np.asarray(nearest_cluster(encoded.features[part], rule.clusters, charged))
        ]
    return labels


def statistics(encoded: EncodedRows, labels: np.ndarray, rule: Rule) -> dict:
    """Mean cosine, quantiles of the margin, and the number of rows that balance moved.

    The cosine of a row is with the nearest centroid of its expert. The margin is this cosine minus
    the largest one with a centroid of another expert, or minus −1 if there is no other expert.
    """
    if labels.size == 0:
        return {"mean_cosine": None, "margins": None, "moved": 0}
    order = np.argsort(rule.cluster_of, kind="stable")
    experts, begins = np.unique(rule.cluster_of[order], return_index=True)
    own, others = (np.empty(labels.size, np.float32) for _ in range(2))
    for part in _parts(labels.size):
        scores = np.asarray(cosine_scores(encoded.features[part], rule.clusters))[:, order]
        best = np.maximum.reduceat(scores, begins, axis=1)
        mine = experts[None] == labels[part][:, None]
        own[part] = np.where(mine, best, -1).max(axis=1)
        others[part] = np.where(mine, -1, best).max(axis=1)
    margins = own - others
    quantiles = np.quantile(margins.astype(np.float64), _QUANTILES)
    return {
        "mean_cosine": float(own.mean(dtype=np.float64)),
        "margins": {str(q): float(v) for q, v in zip(_QUANTILES, quantiles, strict=True)},
        "moved": int((margins < 0).sum()),
    }


def _parts(size: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, size, _CHUNK)]


def assign_at_random(labels: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Give each row with label −1 the label of the ⌊h Σ c / 2⁶⁴⌋-th row of all clusters.

    Also return which rows these are.
    """
    upper, total = np.cumsum(sizes), int(sizes.sum())
    rows = np.flatnonzero(labels < 0)
    for row in rows:
        digest = hashlib.blake2b(f"{seed}, {row}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest) * total >> 64
        labels[row] = np.searchsorted(upper, place, side="right")
    return rows
