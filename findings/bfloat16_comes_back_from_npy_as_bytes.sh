#!/usr/bin/env bash
# numpy and ml_dtypes: a bfloat16 array that is saved as .npy is read back as raw bytes.
#
# One would guess that np.save either refuses a type that its format cannot name, or that np.load
# gives the array back.
# What happens: np.save writes it without a word, and np.load gives an array of the type V2, two bytes
# without a meaning, of the right shape. Arithmetic with it fails much later, and a file looks whole
# to whoever checks its size and its shape. float8 types come back as V1.
# Who is hurt: whoever saves features, embeddings or weights of a jax model that computes in bfloat16,
# and reads them in another process to cluster or to route. (dfm_jax refuses such features and says
# which type is stored.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check \
  numpy==2.4.6 ml_dtypes==0.6.0
"$folder/venv/bin/python" - <<'PYTHON'
import io

import ml_dtypes
import numpy as np

print("numpy", np.__version__, "ml_dtypes", ml_dtypes.__version__)
for name in ("bfloat16", "float8_e4m3fn"):
    saved = np.arange(3).astype(getattr(ml_dtypes, name))
    file = io.BytesIO()
    np.save(file, saved, allow_pickle=False)
    file.seek(0)
    read = np.load(file, allow_pickle=False)
    print(f"{name}: saved {saved.tolist()}, read {read.tolist()} of type {read.dtype.str}")
    assert read.dtype.kind == "V" and read.shape == saved.shape, "this has changed"
PYTHON
