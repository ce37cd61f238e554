"""Rows dealt to experts, written down: each verbatim in its place, or named with a reason."""

import json
import platform
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import numpy as np

from dfm_jax.checks import require
from dfm_jax.data.encoders import NO_FEATURE, EncodedRows, Reason
from dfm_jax.data.folders import finish_with_manifest
from dfm_jax.data.records import input_digest, read_records
from dfm_jax.data.rules import Rule, rule_to_bytes
from dfm_jax.durable import HashedFile, NewFolder

CENTROIDS = "centroids.safetensors"
_PACKAGES = ("dfm_jax", "jax", "jaxlib", "numpy", "safetensors")
_OF_ENCODER = {"efficientnet": ("pillow",), "tfidf": ("scikit-learn", "scipy")}


def write_dealt(
    out: Path,
    input: Path,
    labels: np.ndarray,
    loads: np.ndarray,
    encoded: EncodedRows,
    rule: Rule,
    manifest: dict,
) -> dict:
    """The last pass over the input; the manifest that was written.

    Args:
        out: must not be there.
        input: must be what it was, by its hash in the manifest.
        labels: the expert of each row; below 0 is none.
        loads: of each row.
        encoded: why rows have no feature, and the files of the encoder.
        rule: K experts.
        manifest: its settings, inputs and statistics; the counts are added.
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
        changed = f"{input} must stay as it is while it is read; its SHA-256 now"
        require(digest == manifest["inputs"]["input"], changed, digest)
        for name, content in {CENTROIDS: rule_to_bytes(rule), **encoded.artefacts}.items():
            folder.write(name, content)
        counts = {
            "num_rows": labels.size,
            "sizes": np.bincount(labels[routed], minlength=num_experts).tolist(),
            "token_loads": [int(load) if whole else float(load) for load in held],
            "unrouted": int((~routed).sum()),
            "spread": int((without & routed).sum()),
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
    names = [*experts, "centre.jsonl", "unrouted.jsonl", "spread.jsonl"]
    with ExitStack() as stack:
        files = [stack.enter_context(HashedFile(folder.path / name)) for name in names]
        *of_expert, centre, unrouted, spread = files
        for record, label in zip(read_records(input), labels, strict=True):
            if label >= 0:
                of_expert[label].write(record.text + b"\n")
                centre.write(record.text + b"\n")
            if without[record.number]:
                reason = reasons.get(record.number, NO_FEATURE)
                told = {"row": record.number, "id": record.fields.get("id")}
                told |= {"expert": int(label)} if label >= 0 else {}
                told |= {"reason": reason.kind, "detail": reason.detail}
                line = json.dumps({k: v for k, v in told.items() if v is not None})
                (spread if label >= 0 else unrouted).write(line.encode() + b"\n")
    folder.files |= {n: file.hash.hexdigest() for n, file in zip(names, files, strict=True)}
