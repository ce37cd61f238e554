#!/usr/bin/env bash
# jax: a checkify check that is mapped over an empty batch raises an IndexError.
#
# One would guess that a debug_check costs nothing and does nothing until somebody asks for it by
# checkify, and that of no example a rule holds.
# What happens: vmap of a function with a check, over a batch of size 0, raises "IndexError: index is
# out of bounds for axis 0 with size 0", for jax asks which of the examples fails first. The same
# function without the check gives an empty array.
# Who is hurt: whoever puts checks into a library of functions of one example and is given an empty
# batch: documents without a context, an expert without rows. (dfm_jax lets such a check hold where
# vmap meets it directly; inside a scan or a compiled function that is mapped, the error is jax's.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from jax.experimental import checkify

print("jax", jax.__version__)


def plain(x):
    return x.sum()


def checked(x):
    checkify.debug_check(jnp.all(x >= 0), "x must be non-negative")
    return x.sum()


def outcome(fn, size):
    try:
        return jax.vmap(fn)(jnp.ones((size, 3))).shape
    except IndexError as error:
        return f"IndexError: {error}"


for fn in (plain, checked):
    print(f"{fn.__name__}: two examples {outcome(fn, 2)}, none {outcome(fn, 0)}")
assert outcome(plain, 0) == (0,) and outcome(checked, 2) == (2,), "this has changed"
assert outcome(checked, 0).startswith("IndexError"), "this has changed"
PYTHON
