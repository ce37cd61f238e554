"""A data set of conversations parted among experts: a folder of rows, and what routes new ones.

    expert_000/rows.jsonl …   the rows of each expert, verbatim
    centre.jsonl              the same rows, in the order of the input
    unrouted.jsonl            {"row": …, "reason": …} for each row that no expert has
    centroids.npz             centroids, prices, mean: `Clusters`
    manifest.json             counts, settings, versions; the SHA-256 of every other file and input

The input is read twice and never held: what is kept of a row is its feature, its label, its load
and a hash of its id. A folder is built beside its place, under its name and `.partial`, and moved
there when it is whole.
"""

import hashlib
import json
import os
import platform
import shutil
from array import array
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dfm_jax.checks import check_count, require
from dfm_jax.clustering import Clusters, cosine_scores, nearest_cluster, spherical_k_means
from dfm_jax.data.features import read_features
from dfm_jax.data.records import (
    conversation_bytes,
    file_digest,
    read_records,
    read_weights,
    write_records,
)

_BALANCES = {"rows": "rows", "tokens": "weights", "none": "none"}
_NO_FEATURE = ("unrouted", "spread")
_MANIFEST, _CENTROIDS = "manifest.json", "centroids.npz"
_SHOWN = 5  # rows named in a refusal


class Written(NamedTuple):
    """The manifest of a folder, and whether it had been written before."""

    manifest: dict
    found: bool


class _Survey(NamedTuple):
    """What the first pass over the input learns."""

    loads: np.ndarray  # [R], the bytes of the conversations, or the user's weights
    num_repeated_ids: int
    num_without_id: int


def write_partition(
    input: Path,
    features: Path,
    out: Path,
    *,
    num_experts: int,
    balance: str = "rows",
    seed: int = 0,
    weights: Path | None = None,
    no_feature: str = "unrouted",
    unique_ids: bool = False,
) -> Written:
    """Cluster the rows by their features, and write the folder `out`.

    Args:
        input: JSONL or a JSON array, as `read_records` reads it.
        features: as `read_features` reads them.
        out: a new folder; if it is there and whole, with these settings, nothing is done.
        num_experts: K.
        balance: "rows": sizes that differ by at most 1; "tokens": loads that exceed their mean by
            at most one row; "none". Of the rows with features.
        seed: of the starts, and of the spread.
        weights: `.npy` [R], the load of each row; else the UTF-8 bytes of its conversation. They
            go with "tokens".
        no_feature: a row without a feature is "unrouted", or "spread": dealt to an expert by a hash
            of its number and the seed, in proportion to the sizes of the clusters.
        unique_ids: refuse a row without an id, or with that of another.

    Raises:
        ValueError: if `out` is anything else already, or an input is not as it must be.
    """
    require(balance in _BALANCES, f"`balance` must be one of {tuple(_BALANCES)}", balance)
    settings = {
        "command": "partition",
        "num_experts": num_experts,
        "balance": balance,
        "seed": seed,
        "loads": "bytes" if weights is None else "weights",
        "no_feature": no_feature,
        "unique_ids": unique_ids,
    }
    given = weights is None or balance == "tokens"
    require(given, "`weights` go with `balance` tokens, and only with it", balance)
    inputs = _inputs(input=input, features=features, weights=weights)
    if (found := _found(out, settings, inputs, no_feature)) is not None:
        return Written(found, True)
    survey = _surveyed(input, weights, unique_ids)
    rows = read_features(features, num_rows=survey.loads.size)
    check_count("num_experts", num_experts, at_most=len(rows.rows))
    clustering = spherical_k_means(
        jax.random.key(seed),
        rows.features,
        num_experts,
        balance=_BALANCES[balance],
        weights=survey.loads[rows.rows].astype(np.float32) if balance == "tokens" else None,
    )
    labels = np.full(survey.loads.size, -1)
    labels[rows.rows] = clustering.labels
    if no_feature == "spread":
        _spread(labels, np.bincount(clustering.labels, minlength=num_experts), seed)
    manifest = {
        "settings": settings,
        "inputs": inputs,
        "spread": int((labels >= 0).sum()) - len(rows.rows),
        "mean_cosine": float(clustering.mean_cosine),
    }
    return _write(out, input, labels, clustering.clusters, survey, manifest)


def write_routed(
    input: Path,
    features: Path,
    partition: Path,
    out: Path,
    *,
    weights: Path | None = None,
    no_feature: str = "unrouted",
    unique_ids: bool = False,
) -> Written:
    """Deal new rows to the experts of a finished `partition` by its rule; write the folder `out`.

    A row goes to argmax_k ⟨c_k, f⟩ − λ_k w, with the centroids and prices of the partition; nothing
    is balanced anew. `weights` are needed if the partition had them, and refused if it had none.
    The other arguments are those of `write_partition`.

    Raises:
        ValueError: if `partition` is not a finished one, or as `write_partition`.
    """
    old, clusters = _read_partition(partition)
    asked = old["settings"]["loads"] == "weights"
    rule = f"`weights` must be given if, and only if, {partition} was made with them"
    require((weights is not None) == asked, rule, str(weights))
    settings = {
        "command": "route",
        "partition": file_digest(partition / _MANIFEST),
        **{name: old["settings"][name] for name in ("num_experts", "balance", "seed", "loads")},
        "no_feature": no_feature,
        "unique_ids": unique_ids,
    }
    inputs = _inputs(input=input, features=features, weights=weights)
    if (found := _found(out, settings, inputs, no_feature)) is not None:
        return Written(found, True)
    survey = _surveyed(input, weights, unique_ids)
    rows = read_features(features, num_rows=survey.loads.size)
    tokens = settings["balance"] == "tokens"
    charged = survey.loads[rows.rows].astype(np.float32) if tokens else None
    nearest = np.asarray(nearest_cluster(rows.features, clusters, charged))
    labels = np.full(survey.loads.size, -1)
    labels[rows.rows] = nearest
    if no_feature == "spread":
        _spread(labels, np.array(old["sizes"]), settings["seed"])
    cosines = np.asarray(cosine_scores(rows.features, clusters))[np.arange(nearest.size), nearest]
    manifest = {
        "settings": settings,
        "inputs": inputs,
        "spread": int((labels >= 0).sum()) - len(rows.rows),
        "mean_cosine": float(cosines.mean()) if cosines.size else None,
    }
    return _write(out, input, labels, clusters, survey, manifest)


# ── what is read ────────────────────────────────────────────────────────────────────────────────


def _inputs(**paths: Path | None) -> dict:
    return {name: file_digest(path) for name, path in paths.items() if path is not None}


def _surveyed(input: Path, weights: Path | None, unique_ids: bool) -> _Survey:
    """The first pass. An id is known by 63 bits of its hash: 10⁷ of them collide once in 10⁵."""
    loads, ids = array("q"), array("Q")
    for record in read_records(input):
        try:
            loads.append(conversation_bytes(record))
        except ValueError as error:
            raise ValueError(f"{input}, line {record.line}: {error}") from error
        name = record.fields.get("id")
        text = json.dumps(name, sort_keys=True).encode()
        digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
        ids.append(0 if name is None else digest | 1)
    hashes = np.array(ids, np.uint64)
    repeats = np.ones(hashes.size, bool)
    repeats[np.unique(hashes, return_index=True)[1]] = False  # the first of each
    repeated, without = np.flatnonzero(repeats & (hashes > 0)), np.flatnonzero(hashes == 0)
    if unique_ids:
        for rows, what in ((repeated, "have that of an earlier row"), (without, "have none")):
            if rows.size:
                more = f", … ({rows.size} in all)" if rows.size > _SHOWN else ""
                shown = ", ".join(map(str, rows[:_SHOWN])) + more
                raise ValueError(f"each row of {input} must have its own `id`; {what}: {shown}.")
    own = np.array(loads, np.int64) if weights is None else read_weights(weights, len(loads))
    return _Survey(own, repeated.size, without.size)


def _read_partition(folder: Path) -> tuple[dict, Clusters]:
    manifest = _manifest(folder)
    finished = manifest is not None and manifest["settings"]["command"] == "partition"
    require(finished, "`partition` must be a finished partition", str(folder))
    assert manifest is not None
    path = folder / _CENTROIDS
    whole = path.is_file() and file_digest(path) == manifest["files"][_CENTROIDS]
    require(whole, f"the SHA-256 of {path} must be that of its manifest", "another, or none")
    with np.load(path, allow_pickle=False) as arrays:
        return manifest, Clusters(*(jax.numpy.asarray(arrays[name]) for name in Clusters._fields))


def _manifest(folder: Path) -> dict | None:
    """That of a folder that a command here finished; None for anything else."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
        return manifest if {"settings", "inputs", "files"} <= manifest.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _found(out: Path, settings: dict, inputs: dict, no_feature: str) -> dict | None:
    """The manifest of `out`, if it is whole and of these settings; None if nothing is there."""
    require(no_feature in _NO_FEATURE, f"`no_feature` must be one of {_NO_FEATURE}", no_feature)
    if not os.path.lexists(out):
        return None
    manifest = _manifest(out)
    same = manifest is not None and (manifest["settings"], manifest["inputs"]) == (settings, inputs)
    require(same, "`out` must be new, or finished with these settings and inputs", str(out))
    assert manifest is not None
    for name, digest in manifest["files"].items():
        whole = (out / name).is_file() and file_digest(out / name) == digest
        require(whole, f"the SHA-256 of {out / name} must be that of its manifest", "another")
    return manifest


# ── what is written ─────────────────────────────────────────────────────────────────────────────


def _spread(labels: np.ndarray, sizes: np.ndarray, seed: int) -> None:
    """Label each row that is −1 as the ⌊h Σ c / 2⁶⁴⌋-th row of all the clusters is."""
    upper, total = np.cumsum(sizes), int(sizes.sum())
    for row in np.flatnonzero(labels < 0):
        digest = hashlib.blake2b(f"{seed}, {row}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest) * total >> 64
        labels[row] = np.searchsorted(upper, place, side="right")


def _write(
    out: Path, input: Path, labels: np.ndarray, clusters: Clusters, survey: _Survey, manifest: dict
) -> Written:
    """The second pass; the manifest comes last, and then the folder to its place."""
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    num_experts, routed = len(clusters.prices), labels >= 0
    files = write_records(partial, read_records(input), labels, num_experts)
    rule = f"{input} must stay as it is while it is read; its SHA-256 now"
    digest = file_digest(input)
    require(digest == manifest["inputs"]["input"], rule, digest)
    centroids, prices, mean = (np.asarray(value) for value in clusters)
    np.savez(partial / _CENTROIDS, centroids=centroids, prices=prices, mean=mean)
    loads = np.bincount(labels[routed], survey.loads[routed], num_experts)
    whole = survey.loads.dtype.kind in "iu"
    manifest |= {
        "num_rows": labels.size,
        "sizes": np.bincount(labels[routed], minlength=num_experts).tolist(),
        "token_loads": [int(load) if whole else float(load) for load in loads],
        "unrouted": int((~routed).sum()),
        "repeated_ids": survey.num_repeated_ids,
        "rows_without_id": survey.num_without_id,
        "files": {**files, _CENTROIDS: file_digest(partial / _CENTROIDS)},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("dfm_jax", "jax", "jaxlib", "numpy")},
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (partial / _MANIFEST).write_text(text, "utf-8")
    os.replace(partial, out)
    return Written(manifest, False)
