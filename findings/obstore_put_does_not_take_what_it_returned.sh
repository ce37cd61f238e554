#!/usr/bin/env bash
# obstore: what `put` returns is not taken by `put` as the version to replace.
#
# One would guess that `result = put(store, key, a)` and then `put(store, key, b, mode=result)`
# replaces the object if nobody else has: the result and the mode have the same two fields, `e_tag`
# and `version`.
# What happens: where the store has tags and no versions, as S3 without versioning and the store in
# memory, `version` is None in the result, and the mode refuses None with a TypeError that names
# neither the argument nor the field. Without the field it works.
# Who is hurt: whoever builds a lease or a manifest on conditional writes. A program that was tried
# on Google Cloud Storage, which has versions, fails on S3 at its first replacement. (dfm_jax leaves
# out what is None.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check obstore==0.12.1
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import obstore
from obstore.store import MemoryStore

print("obstore", version("obstore"))
store = MemoryStore()
result = obstore.put(store, "manifest", b"first")
print("put returns", result)
try:
    obstore.put(store, "manifest", b"second", mode=result)
    told = "nothing"
except TypeError as error:
    told = f"TypeError: {error}"
print("put with this as its mode raises", told)
obstore.put(store, "manifest", b"second", mode={"e_tag": result["e_tag"]})
print("without `version`:", bytes(obstore.get(store, "manifest").bytes()))
assert result["version"] is None, "this has changed"
assert told.startswith("TypeError"), "this has changed"
PYTHON
