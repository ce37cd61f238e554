"""The manifest of a folder: the SHA-256 of every other file and its own, written last.

`out` does not exist until every file is on the disk: see `dfm_jax.durable`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from dfm_jax.checks import require
from dfm_jax.durable import NewFolder, file_digest
from dfm_jax.json_text import read_json
from dfm_jax.json_types import as_type, from_json

MANIFEST = "manifest.json"
ROWS = ("rows.jsonl", "dense.jsonl")  # of an expert, and of all: what is trained on


class _Manifest(NamedTuple):
    """The fields that every manifest has; it may have others."""

    settings: dict[str, Any]
    inputs: dict[str, Any]
    files: dict[str, str]


def finish_with_manifest(folder: NewFolder, manifest: dict) -> dict:
    """Write the manifest with the hashes of the files, and then move the folder to its place."""
    manifest = manifest | {"files": dict(folder.files)}
    manifest |= {"sha256": manifest_digest(manifest)}
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    folder.finish((MANIFEST, text.encode("utf-8", "surrogateescape")))
    return manifest


def read_manifest(folder: Path) -> dict | None:
    """Read the manifest of a finished folder; None if the folder is not finished.

    Raises:
        OSError: if the manifest exists but cannot be read now; the folder may be finished.
    """
    try:
        manifest = as_type(dict[str, Any], read_json(folder / MANIFEST), "manifest")
        if manifest.get("sha256") != manifest_digest(manifest):
            return None
        parts = {name: manifest.get(name) for name in _Manifest._fields}
        return manifest | from_json(_Manifest, parts, where="manifest")._asdict()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def check_file(folder: Path, manifest: dict, name: str) -> None:
    """Check that a file is the one that the manifest names."""
    path, digest = folder / name, manifest["files"].get(name)
    found = file_digest(path) if path.is_file() else "no such file"
    rule = f"The SHA-256 of {path} must be {digest}, as its manifest says"
    require(found == digest, rule, found, name="SHA-256")


def check_rows(path: Path) -> None:
    """Check that a file of rows is as its manifest, beside it or in the folder above, says.

    The whole file is read once, at the speed of SHA-256. Rows without a manifest belong to the user
    and are not checked.

    Raises:
        ValueError: if the rows have changed; if the manifest is damaged, or does not name them.
    """
    for folder in (path.parent, path.parent.parent):
        if not (folder / MANIFEST).is_file():
            continue
        manifest, name = read_manifest(folder), path.relative_to(folder).as_posix()
        if manifest is not None and name in manifest["files"]:
            check_file(folder, manifest, name)
        elif path.name in ROWS:
            rule = f"{folder / MANIFEST} must be as it was written, and must name {name}"
            raise ValueError(f"{rule}; got a manifest that is damaged, or is of other rows.")
        return


def manifest_digest(manifest: dict) -> str:
    """The digest of a manifest without this digest; the order of its fields does not matter."""
    kept = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
