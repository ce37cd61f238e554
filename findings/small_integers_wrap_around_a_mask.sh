#!/usr/bin/env bash
# jax beside NumPy: a Python integer that an array's type cannot hold wraps around in silence.
#
# One would guess that int8 tokens and a mask of id 128 are promoted or refused: NumPy 2 refuses
# np.int8 tokens + 128, and jnp.array(128, jnp.int8) is refused by jax itself.
# What happens: jnp.where, +, jnp.full and .at[].set make -128, or a sum that wraps, of the type int8.
# Negative ids are valid indices, so an embedding then reads another row, without a word.
# Who is hurt: whoever keeps a byte vocabulary in int8 or uint8, where the mask is the first id that
# does not fit. (dfm_jax widens small integer types to int32 before anything is done with them.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check jax==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__, "numpy", np.__version__)


def outcome(fn):
    try:
        return np.asarray(fn()).tolist()
    except OverflowError:
        return "OverflowError"


tokens, given = np.array([72, 105], np.int8), np.array([True, False])
x = jnp.asarray(tokens)
found = {
    "np: tokens + 128": outcome(lambda: tokens + 128),
    "jnp.array(128, jnp.int8)": outcome(lambda: jnp.array(128, jnp.int8)),
    "jnp: tokens + 128": outcome(lambda: x + 128),
    "jnp.where(given, tokens, 128)": outcome(lambda: jnp.where(given, x, 128)),
    "tokens.at[1].set(128)": outcome(lambda: x.at[1].set(128)),
    "jnp.full(2, 128, jnp.int8)": outcome(lambda: jnp.full(2, 128, jnp.int8)),
}
for what, value in found.items():
    print(f"{what}: {value}")
assert list(found.values()) == [
    "OverflowError",
    "OverflowError",
    [-56, -23],
    [72, -128],
    [72, -128],
    [-128, -128],
], "this has changed"
PYTHON
