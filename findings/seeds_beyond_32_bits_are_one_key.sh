#!/usr/bin/env bash
# jax: two seeds are one key, and one seed is two keys, without a word.
#
# One would guess that distinct seeds give distinct keys or are refused: jnp.asarray(2**32 + 5) raises
# an OverflowError, and so does key(2**64). And that a seed means the same key in every process.
# What happens: without 64-bit types the seed is taken mod 2**32: 5 and 2**32 + 5 are one key, and so
# are -1 and 2**32 - 1. With 64-bit types these are four keys, so key(-1) depends on a setting.
# Who is hurt: sweeps whose seeds are hashes or times report two runs that are one, with an interval
# that is too narrow; a run repeated under 64-bit types is another run. (dfm_jax takes seeds from 0 to
# 2**32 - 1, which mean the same under both settings, and refuses others.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

print("jax", jax.__version__)
try:
    jnp.asarray(2**32 + 5)
    array = "an array"
except OverflowError:
    array = "OverflowError"


def words(seed):
    return tuple(int(word) for word in jax.random.key_data(jax.random.key(seed)))


seeds = (5, 2**32 + 5, -1, 2**32 - 1)
narrow = [words(seed) for seed in seeds]
with jax.enable_x64(True):
    wide = [words(seed) for seed in seeds]
print("jnp.asarray(2**32 + 5):", array)
for seed, without, with_them in zip(seeds, narrow, wide):
    print(f"key({seed}): {without}, with 64-bit types {with_them}")
assert array == "OverflowError", "this has changed"
assert narrow[0] == narrow[1] and narrow[2] == narrow[3], "this has changed"
assert len(set(wide)) == 4 and wide[2] != narrow[2], "this has changed"
PYTHON
