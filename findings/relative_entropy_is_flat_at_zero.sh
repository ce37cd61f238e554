#!/usr/bin/env bash
# jax.scipy.special: at p = 0 the derivative of rel_entr is 0, and that of entr is infinite.
#
# One would guess that rel_entr(p, q) = p log(p / q) and -entr(p) - p log q, which are the same
# function, have the same derivative: log(p / q) + 1, which falls to -inf as p falls to 0.
# What happens: the values agree everywhere. At p = 0 the gradient of rel_entr with respect to p is 0,
# and the gradient of the other form is -inf. Just beside it, at p = 1e-30, both say -67.
# Who is hurt: whoever descends a Kullback-Leibler divergence over probabilities, some of which are 0,
# such as the mixing weights of experts: a part with weight 0 looks as if it should stay at 0. With
# the other form the same code steps away from 0. (dfm_jax has forms of its own in `boundary`, whose
# derivatives are tested at the boundary.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from jax.scipy.special import entr, rel_entr

print("jax", jax.__version__)
Q = 0.5


def other(p):
    return -entr(p) - p * jnp.log(Q)


def one(p):
    return rel_entr(p, Q)


for p in (0.0, 1e-30, 0.25):
    values = float(one(p)), float(other(p))
    slopes = float(jax.grad(one)(p)), float(jax.grad(other)(p))
    print(f"p = {p}: values {values}, derivatives {slopes}")
    assert abs(values[0] - values[1]) < 1e-6, "this has changed"
    if p > 0:
        assert abs(slopes[0] - slopes[1]) < 1e-4, "this has changed"
assert float(jax.grad(one)(0.0)) == 0, "this has changed"
assert float(jax.grad(other)(0.0)) == -jnp.inf, "this has changed"
PYTHON
