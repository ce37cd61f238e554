#!/usr/bin/env bash
# jax: a NumPy array that a compiled function closed over inside `jax.enable_x64` stays int64 outside.
#
# One would guess that outside of the block, where 64 bits are off, jnp.asarray of an int64 NumPy
# array gives int32, as it does for every other array.
# What happens: jnp.asarray of that one array object gives int64 from then on, and of a copy of it
# int32. With it, an operation outside fails: "Explicitly requested dtype int64 is not available", as
# a warning, or a program of 32 bits meets a buffer of 64.
# Who is hurt: whoever checks in float64 inside a block and goes on in float32 with the same tables,
# in tests, notebooks and libraries; which test fails depends on which one ran before.
# (dfm_jax copies the tables of `theory.whole_runs.selected`.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__)
table = np.arange(6)
print("before:", jnp.asarray(table).dtype)
assert jnp.asarray(table).dtype == jnp.int32


@jax.jit
def summed():
    return jnp.sum(jnp.asarray(table))


with jax.enable_x64(True):
    summed()
found = jnp.asarray(table).dtype, jnp.asarray(table.copy()).dtype
print("after:", found[0], "of a copy:", found[1], "x64 is on:", jax.config.jax_enable_x64)
assert found == (jnp.int64, jnp.int32), "this has changed"
PYTHON
