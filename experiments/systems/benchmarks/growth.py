"""How the seconds of our forms grow along one axis, beside what a count of operations says.

    seconds ∝ size^b

Every form runs in this process, as a command of the package starts it. The sizes of a curve take
turns, so that other load affects all of them, and b is fitted to the medians over the rounds by
least squares of the logarithms. The count is that of the largest term, so b lies below it where
smaller terms still count, and above it where a working set leaves the caches.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.models import TransformerConfig
from dfm_jax.models.layers import attend_within
from dfm_jax.training.batches import Batch
from experiments.lib.programs import train_step
from experiments.systems.benchmarks import ours
from experiments.systems.benchmarks.account import slope
from experiments.systems.benchmarks.kinds import EVERY_STEP, Size, grown, size_name
from experiments.systems.benchmarks.serving import Case
from experiments.systems.benchmarks.workloads import inputs

ROUNDS = 5
BLOCK = 0.1  # seconds of work without a pause, unless one repetition is longer
STEP, ATTENTION = "training step", "attention within a sequence"
_MODEL = TransformerConfig(num_tokens=512, width=64, num_layers=2, num_heads=4, ffn_width=192)


_MASKED = "masked diffusion with a model"
_STEPS = grown("T", (32, 128, 512), V=256, batch=1, N=32)


@dataclass(frozen=True)
class Curve:
    """A form and the sizes along one axis at which it is timed."""

    workload: str  # of `benchmarks`, or one of the two below
    form: str
    axis: str
    sizes: tuple[Size, ...]
    count: float  # the exponent of the largest term of the operations

    @property
    def name(self) -> str:
        """A name that a file can have."""
        return f"growth_{self.workload}_{self.form}_{self.axis}".replace(", ", "_").replace(
            " ", "_"
        )


CURVES = (
    Curve("fine k-means", "clear", "R", grown("R", (5000, 10_000, 20_000), D=64, K=256), 1),
    Curve("fine k-means", "clear", "K", grown("K", (128, 256, 512), R=10_000, D=64), 1),
    Curve("AR sampling with cache", "fast", "batch", grown("batch", (4, 8, 16), V=512, new=32), 1),
    Curve("AR sampling with cache", "fast", "new", grown("new", (32, 64, 128), V=512, batch=4), 2),
    Curve(
        "mixture of K with cache",
        "fast",
        "K",
        grown("K", (1, 2, 4), V=512, batch=4, new=32),
        1,
    ),
    Curve(STEP, "clear", "batch", grown("batch", (4, 8, 16), N=128), 1),
    Curve(ATTENTION, "clear", "N", grown("N", (256, 512, 1024, 2048), batch=1), 2),
    Curve("categorical draw", "fast", "V", grown("V", (512, 8192, 131_072), R=64), 1),
    Curve(_MASKED, "fast", "T", _STEPS, 0),  # at most N of the T steps move anything
    Curve(_MASKED, EVERY_STEP, "T", _STEPS, 1),
)


def _step(size: Size, seed: int) -> Case:
    """An update of a small language model."""
    step, shapes = train_step(_MODEL)
    shape = (size["batch"], size["N"])
    tokens = np.random.default_rng(seed).integers(_MODEL.num_tokens, size=shape)
    batch = Batch(jnp.asarray(tokens), jnp.ones(shape, bool))
    key = jax.random.key(seed)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    update = jax.jit(step)
    return Case(lambda: jax.block_until_ready(update(state, batch, key)))


def _attention(size: Size, seed: int) -> Case:
    """Causal attention of four heads of 16, and its gradient."""
    shape = (3, size["batch"], size["N"], _MODEL.num_heads, _MODEL.head_size)
    q, k, v = jax.random.normal(jax.random.key(seed), shape)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        mixed = jax.vmap(lambda q, k, v: attend_within(q, k, v, _MODEL))(q, k, v)
        return jnp.sum(mixed**2)

    gradient = jax.jit(jax.grad(total, (0, 1, 2)))
    return Case(lambda: jax.block_until_ready(gradient(q, k, v)))


_OWN: dict[str, Callable[[Size, int], Case]] = {STEP: _step, ATTENTION: _attention}


def case_of(curve: Curve, size: Size, seed: int) -> Case:
    """The form at a size, with its data."""
    if curve.workload in _OWN:
        return _OWN[curve.workload](size, seed)
    data = inputs(curve.workload, size, seed)
    return ours.prepare(curve.workload, size, data)[curve.form]


def measured(curve: Curve, seed: int) -> dict[str, Any]:
    """The medians of the seconds at every size, and the exponent."""
    cases = [case_of(curve, size, seed) for size in curve.sizes]
    for case in cases:
        case.run()  # it compiles
    repetitions = [max(1, min(1000, int(BLOCK / _seconds(case, 1)))) for case in cases]
    rounds = [
        [_seconds(case, count) for case, count in zip(cases, repetitions, strict=True)]
        for _ in range(ROUNDS)
    ]
    seconds = np.median(rounds, axis=0)
    along = np.array([size[curve.axis] for size in curve.sizes])
    fixed = {axis: value for axis, value in curve.sizes[0].items() if axis != curve.axis}
    return {
        "workload": curve.workload,
        "form": curve.form,
        "fixed": size_name(fixed),
        "axis": curve.axis,
        "sizes": along.tolist(),
        "seconds": seconds.tolist(),
        "exponent": slope(along, seconds),
        "count": curve.count,
    }


def _seconds(case: Case, repetitions: int) -> float:
    start = time.perf_counter()
    for _ in range(repetitions):
        case.run()
    return (time.perf_counter() - start) / repetitions
