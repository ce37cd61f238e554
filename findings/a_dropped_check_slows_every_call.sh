#!/usr/bin/env bash
# jax: a checkify.debug_check inside a compiled function makes every call of it slower, though the
# check is dropped.
#
# One would guess that a debug_check in a jitted function that nobody functionalizes costs nothing:
# the documentation says that it is discarded, and the compiled program is the same.
# What happens: the program has an effect, so its calls do not take the fast path of jax.jit. A call
# of a tiny function takes about ten times as long; several checks take more.
# Who is hurt: libraries whose functions check their arguments, and their users who call small
# compiled functions in a loop. (dfm_jax has a context, `checks.without_traced_checks`, in which its
# checks are not traced at all.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import statistics
import time

import jax
import jax.numpy as jnp
from jax.experimental import checkify

print("jax", jax.__version__)


@jax.jit
def plain(x):
    return x + 1


@jax.jit
def checked(x):
    checkify.debug_check(jnp.all(x >= 0), "x must be non-negative")
    return x + 1


def microseconds(fn):
    x = jnp.ones(8)
    fn(x).block_until_ready()
    times = []
    for _ in range(2000):
        began = time.perf_counter()
        fn(x).block_until_ready()
        times.append(time.perf_counter() - began)
    return 1e6 * statistics.median(times)


found = {fn.__name__: microseconds(fn) for fn in (plain, checked)}
print({name: f"{value:.0f} microseconds a call" for name, value in found.items()})
assert found["checked"] > 3 * found["plain"], "this has changed"
PYTHON
