"""Write a data set partitioned among experts: the rows, and the rule that routes new rows.

    expert_000/rows.jsonl …   the rows of each expert, unchanged
    dense.jsonl               the same rows, in the order of the input
    unrouted.jsonl            row, id, reason and detail of each row without an expert
    random.jsonl              the same, and the expert, of each row assigned at random
    centroids.safetensors     centroids, prices, mean: `Clusters`; cluster_of, the expert of each
    encoder.json, .safetensors   the encoder, if the features are not the user's
    manifest.json             counts, statistics, settings, versions; the SHA-256 of all the others

The input is read several times and never kept in memory; of each row, only the feature, the label,
the load and a hash of the id are kept.
"""

import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dfm_jax.checks import check_count, check_seed, require
from dfm_jax.data.features import NUM_FEATURES, read_document_encoder
from dfm_jax.data.manifest import MANIFEST, check_file, finish_with_manifest, read_manifest
from dfm_jax.data.packages import package_folder
from dfm_jax.data.records import input_digest, read_records
from dfm_jax.durable import HashedFile, NewFolder, file_digest
from dfm_jax.partition.assign import (
    Rule,
    assign_at_random,
    clustered,
    read_rule,
    routed_labels,
    rule_to_bytes,
    statistics,
)
from dfm_jax.partition.read import (
    NO_FEATURE,
    EncodedRows,
    Reason,
    Source,
    Survey,
    check_source,
    encoded_rows,
    source_inputs,
    survey,
)
from dfm_jax.partition.sharpness import sharpness_record

_BALANCES = ("rows", "tokens", "none")
_NO_FEATURE = ("unrouted", "random")


class Written(NamedTuple):
    """The manifest of a folder, and whether it existed already."""

    manifest: dict
    found: bool


def write_partition(
    input: Path,
    out: Path,
    source: Source,
    *,
    num_experts: int,
    balance: str = "rows",
    num_fine: int | None = None,
    restarts: int = 1,
    seed: int = 0,
    weights: Path | None = None,
    no_feature: str = "unrouted",
    unique_ids: bool = False,
) -> Written:
    """Cluster the rows by their features, and write the folder `out`.

    Args:
        input: JSONL, a JSON array or a folder of text, as `read_records` reads it.
        out: A new folder. If it is there already, complete and with the same settings and inputs,
            nothing is done.
        source: The source of the features.
        num_experts: K.
        balance: "rows" makes sizes that differ by at most 1; "tokens" makes loads that exceed their
            mean by at most one row; "none" does not balance. Only rows with features are balanced.
        num_fine: F, the number of fine clusters, which are then assigned to experts; loads then
            exceed their mean by at most one fine cluster.
        restarts: The number of starts of the clustering, of which the best is kept.
        seed: The seed of the starts, of random experts, and of tfidf's SVD.
        weights: An `.npy` file [R] with the load of each row, for "tokens"; by default the load is
            the number of UTF-8 bytes of the conversation.
        no_feature: With "unrouted", a row without a feature goes to no expert. With "random", a
            hash of its number and the seed assigns it, in proportion to the sizes of the clusters.
        unique_ids: If True, a row that has no id, or the id of another row, is refused.

    Raises:
        ValueError: if `out` exists and is something else, or an input is not allowed.
    """
    require(balance in _BALANCES, f"`balance` must be one of {_BALANCES}", balance)
    check_source(source)
    check_count("num_experts", num_experts)
    check_count("restarts", restarts)
    check_seed("seed", seed)
    given = NUM_FEATURES if source.num_features is None else source.num_features
    tfidf = {"num_features": given}
    settings = {
        "command": "partition",
        "encoder": source.encoder or "features",
        **(tfidf if source.encoder == "tfidf" else {}),
        "num_experts": num_experts,
        "balance": balance,
        "num_fine": num_fine,
        "restarts": restarts,
        "seed": seed,
        "loads": "bytes" if weights is None else "weights",
        "no_feature": no_feature,
        "unique_ids": unique_ids,
    }
    apart = weights is None or balance == "tokens"
    words = "`weights` must only be given if `balance` is tokens"
    require(apart, words, balance, name="balance")
    if num_fine is not None:
        words = "`balance` must be rows or tokens if `num_fine` is given"
        require(balance != "none", words, balance)
        require(restarts == 1, "`restarts` must be 1 if `num_fine` is given", restarts)
        check_count("num_fine", num_fine, at_least=num_experts)
    inputs = _inputs(input, out, weights, no_feature)
    if (before := _found(out, input, source, settings, inputs)) is not None:
        return Written(before, True)
    surveyed = survey(input, weights, unique_ids)
    for name, count in (("num_experts", num_experts), ("num_fine", num_fine or 1)):
        check_count(name, count, at_most=surveyed.loads.size)
    encoded = encoded_rows(input, source, num_rows=surveyed.loads.size, seed=seed)
    least, rest = num_fine or num_experts, len(encoded.rows)
    kinds = Counter(reason.kind for reason in encoded.reasons.values())
    why = ", ".join(f"{kind} ({count:,})" for kind, count in sorted(kinds.items()))
    words = f"At least {least} rows must have a feature"
    then = why and f"The others have none, for these reasons: {why}."
    require(rest >= least, words, rest, name="rows with a feature", then=then)
    rule, own, found = clustered(
        encoded,
        num_experts,
        balance=balance,
        num_fine=num_fine,
        restarts=restarts,
        seed=seed,
        loads=surveyed.loads[encoded.rows],
    )
    labels = np.full(surveyed.loads.size, -1)
    labels[encoded.rows] = own
    if no_feature == "random":
        assign_at_random(labels, np.bincount(own, minlength=num_experts), seed)
    manifest = {
        "settings": settings,
        "inputs": inputs | encoded.inputs,
        **statistics(encoded, own, rule),
        "sharpness": sharpness_record(encoded.features, rule, own),
        **found,
        **_of_rows(surveyed, source),
    }
    return Written(
        write_assigned(out, input, labels, surveyed.loads, encoded, rule, manifest), False
    )


def write_routed(
    input: Path,
    partition: Path,
    out: Path,
    source: Source,
    *,
    weights: Path | None = None,
    no_feature: str = "unrouted",
    unique_ids: bool = False,
) -> Written:
    """Assign new rows to the experts of a finished `partition` by its rule; write the folder `out`.

    A row goes to argmax_k ⟨c_k, f⟩ − λ_k w, with the centroids and prices of the partition; the new
    rows are not balanced. The features come from the encoder of the partition, or from `source` if
    it had none. `weights` are needed if the partition had weights, and refused if it had none. The
    other arguments are those of `write_partition`.

    Raises:
        ValueError: if `partition` is not a finished partition; as `write_partition`.
    """
    old, rule = _read_partition(partition)
    kept = old["settings"]
    source = _source_like(partition, kept["encoder"], source)
    asked = kept["loads"] == "weights"
    words = f"`weights` must be given if {partition} was made with weights, and only then"
    require((weights is not None) == asked, words, weights)
    settings = {
        "command": "route",
        "partition": file_digest(partition / MANIFEST),
        **{name: kept[name] for name in ("encoder", "num_experts", "balance", "seed", "loads")},
        "no_feature": no_feature,
        "unique_ids": unique_ids,
    }
    inputs = _inputs(input, out, weights, no_feature)
    if (before := _found(out, input, source, settings, inputs)) is not None:
        return Written(before, True)
    surveyed = survey(input, weights, unique_ids)
    fitted = read_document_encoder(partition) if kept["encoder"] == "tfidf" else None
    encoded = encoded_rows(input, source, num_rows=surveyed.loads.size, fitted=fitted)
    for name, content in encoded.artifacts.items():
        digest, kept_digest = hashlib.sha256(content).hexdigest(), old["files"].get(name)
        words = (
            f"{name} of {partition} must be of the encoder that is installed, with SHA-256 {digest}"
        )
        require(digest == kept_digest, words, kept_digest, name="SHA-256")
    priced = kept["balance"] == "tokens" and kept["num_fine"] is None
    charged = surveyed.loads[encoded.rows].astype(np.float32) if priced else None
    own = routed_labels(encoded, rule, charged)
    labels = np.full(surveyed.loads.size, -1)
    labels[encoded.rows] = own
    if no_feature == "random":
        assign_at_random(labels, np.array(old["sizes"]), kept["seed"])
    manifest = {
        "settings": settings,
        "inputs": inputs | encoded.inputs,
        **statistics(encoded, own, rule),
        **_of_rows(surveyed, source),
    }
    return Written(
        write_assigned(out, input, labels, surveyed.loads, encoded, rule, manifest), False
    )


# ── what is read ────────────────────────────────────────────────────────────────────────────────


def _inputs(input: Path, out: Path, weights: Path | None, no_feature: str) -> dict[str, str]:
    require(no_feature in _NO_FEATURE, f"`no_feature` must be one of {_NO_FEATURE}", no_feature)
    package_folder("safetensors", "safetensors")  # if it is missing, before the work and not after
    inside = input.is_dir() and out.absolute().resolve().is_relative_to(input.resolve())
    require(not inside, f"`out` must lie outside of `input`, which is {input}", out)
    if not input.exists():
        rule = "`input` must be a file or a folder that exists"
        raise ValueError(f"{rule}; got input = {str(input)!r}.")
    given = {} if weights is None else {"weights": file_digest(weights)}
    return {"input": input_digest(input), **given}


def _found(out: Path, input: Path, source: Source, settings: dict, inputs: dict) -> dict | None:
    """The manifest of `out` if it is complete and has these settings; None if there is no `out`."""
    if not os.path.lexists(out):
        return None
    manifest = read_manifest(out)
    asked = (settings, inputs | source_inputs(input, source))
    same = manifest is not None and (manifest["settings"], manifest["inputs"]) == asked
    words = "`out` must be a new folder, or one that was finished with these settings and inputs"
    require(same, words, out, then="Give another folder.")
    assert manifest is not None
    for name in manifest["files"]:
        check_file(out, manifest, name)
    return manifest


def _read_partition(folder: Path) -> tuple[dict, Rule]:
    manifest = read_manifest(folder)
    finished = manifest is not None and manifest["settings"]["command"] == "partition"
    require(finished, "`partition` must be the folder of a finished partition", folder)
    assert manifest is not None
    for name in manifest["files"]:
        if "/" not in name and not name.endswith(".jsonl"):  # what routes, not what was routed
            check_file(folder, manifest, name)
    return manifest, read_rule(folder / CENTROIDS)


def _source_like(partition: Path, encoder: str, source: Source) -> Source:
    """The source of new rows, with the encoder of the partition."""
    given = source.features is not None
    words = f"`features` must be given if {partition} was made with features, and only then"
    require(given == (encoder == "features"), words, source.features)
    source = source._replace(encoder=None if given else encoder)
    check_source(source)
    return source


def _of_rows(surveyed: Survey, source: Source) -> dict[str, object]:
    used = {"image"} if source.images is not None else set()
    return {
        "unused_columns": {n: c for n, c in sorted(surveyed.unused.items()) if n not in used},
        "repeated_ids": surveyed.num_repeated_ids,
        "rows_without_id": surveyed.num_without_id,
    }


# ── Rows assigned to experts, written down: each verbatim in its place, or named with a reason ────


CENTROIDS = "centroids.safetensors"
_PACKAGES = ("dfm_jax", "jax", "jaxlib", "numpy", "safetensors")
_OF_ENCODER = {"efficientnet": ("pillow",), "clip": ("pillow",), "tfidf": ("scikit-learn", "scipy")}


def write_assigned(
    out: Path,
    input: Path,
    labels: np.ndarray,
    loads: np.ndarray,
    encoded: EncodedRows,
    rule: Rule,
    manifest: dict,
) -> dict:
    """The last pass over the input; returns the manifest that was written.

    Args:
        out: The folder to write, which must not exist.
        input: The input, which must still have the hash in the manifest.
        labels: The expert of each row; a number below 0 means no expert.
        loads: The load of each row.
        encoded: The reasons why rows have no feature, and the files of the encoder.
        rule: The rule of the K experts.
        manifest: The settings, inputs and statistics of the manifest, to which counts are added.
    """
    num_experts, routed = manifest["settings"]["num_experts"], labels >= 0
    encoder = manifest["settings"]["encoder"]
    without = np.ones(labels.size, bool)
    without[encoded.rows] = False
    kinds = Counter(reason.kind for reason in encoded.reasons.values())
    kinds[NO_FEATURE.kind] += int(without.sum()) - kinds.total()
    whole = loads.dtype.kind in "iu"
    held = np.bincount(labels[routed], loads[routed], num_experts)
    with NewFolder(out) as folder:
        _write_rows(folder, input, labels, without, encoded.reasons, num_experts)
        digest = input_digest(input)
        changed = f"{input} must not change while it is read"
        require(digest == manifest["inputs"]["input"], changed, digest, name="SHA-256 afterwards")
        for name, content in {CENTROIDS: rule_to_bytes(rule), **encoded.artifacts}.items():
            folder.write(name, content)
        counts = {
            "num_rows": labels.size,
            "sizes": np.bincount(labels[routed], minlength=num_experts).tolist(),
            "token_loads": [int(load) if whole else float(load) for load in held],
            "unrouted": int((~routed).sum()),
            "random": int((without & routed).sum()),
            "without_feature": {kind: count for kind, count in sorted(kinds.items()) if count},
            "averaged_rows": encoded.num_averaged,
            "constant_features": encoded.num_constant,
        }
        packages = (*_PACKAGES, *_OF_ENCODER.get(encoder, ()))
        versions = {"python": platform.python_version()} | {p: version(p) for p in packages}
        return finish_with_manifest(folder, {**manifest, **counts, "versions": versions})


def _write_rows(
    folder: NewFolder,
    input: Path,
    labels: np.ndarray,
    without: np.ndarray,
    reasons: Mapping[int, Reason],
    num_experts: int,
) -> None:
    experts = [f"expert_{k:03d}/rows.jsonl" for k in range(num_experts)]
    names = [*experts, "dense.jsonl", "unrouted.jsonl", "random.jsonl"]
    with ExitStack() as stack:
        files = [stack.enter_context(HashedFile(folder.path / name)) for name in names]
        *of_expert, dense, unrouted, random = files
        for record, label in zip(read_records(input), labels, strict=True):
            if label >= 0:
                of_expert[label].write(record.text + b"\n")
                dense.write(record.text + b"\n")
            if without[record.number]:
                reason = reasons.get(record.number, NO_FEATURE)
                told = {"row": record.number, "id": record.fields.get("id")}
                told |= {"expert": int(label)} if label >= 0 else {}
                told |= {"reason": reason.kind, "detail": reason.detail}
                line = json.dumps({k: v for k, v in told.items() if v is not None})
                (random if label >= 0 else unrouted).write(line.encode() + b"\n")
    folder.files |= {n: file.hash.hexdigest() for n, file in zip(names, files, strict=True)}
