#!/usr/bin/env bash
# jax: the gradient of logsumexp of a row of -inf is NaN, though its value is -inf without complaint.
#
# One would guess that a function which defines its value for a row without any mass, as logsumexp
# does, defines its derivative there too, or that a row which is masked out of a loss by jnp.where has
# no part in the gradient.
# What happens: logsumexp of (-inf, -inf, -inf) is -inf. Its gradient is NaN, and so is the gradient
# of the whole batch's parameters if that row is masked out behind it: NaN times 0 is NaN.
# Who is hurt: whoever mixes experts in log space. A token that no expert can make, or a position that
# is padding, is such a row; the loss is finite and right, and every parameter is NaN after one step.
# (dfm_jax's log_sum_exp has derivative 0 there, and a test holds it.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

print("jax", jax.__version__)
# Two experts, two tokens; neither can make the second token, which does not count.
log_probs = jnp.array([[-1.0, -jnp.inf], [-2.0, -jnp.inf]])
counts = jnp.array([True, False])


def loss(log_weights):
    mixed = jax.nn.logsumexp(log_weights[:, None] + log_probs, axis=0)
    return -jnp.where(counts, mixed, 0.0).sum()


log_weights = jnp.log(jnp.array([0.5, 0.5]))
value, gradient = jax.value_and_grad(loss)(log_weights)
row = jax.grad(jax.nn.logsumexp)(jnp.full(3, -jnp.inf))
print(f"logsumexp of three -inf: {jax.nn.logsumexp(jnp.full(3, -jnp.inf))}, its gradient {row}")
print(f"loss {value}, its gradient {gradient}")
assert jnp.isfinite(value), "this has changed"
assert jnp.isnan(row).all() and jnp.isnan(gradient).all(), "this has changed"
PYTHON
