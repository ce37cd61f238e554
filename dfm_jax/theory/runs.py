"""Run the mathematics on a batch of cases, with one compilation for each function."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import jax
import numpy as np

from dfm_jax.checks import without_traced_checks
from dfm_jax.parallel import independent, make_mesh

Precision = Literal["float64", "float32"]
_PLATFORM: dict[Precision, str | None] = {"float64": "cpu", "float32": None}

# Each program runs a few times on small arrays, so its compilation is what takes the time. Without
# the optimizations of LLVM, kernels fused by MLIR and a split over threads it takes much less.
_QUICK_TO_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


class Run:
    """Call it with a function of one case and the stacked arrays of all cases.

    float64 runs on the host CPU, float32 on the default device. With several devices the cases are
    split over them; the batch is padded by repeating its last case, and the padding is removed.
    """

    def __init__(self, precision: Precision = "float64", num_devices: int = 1) -> None:
        self.precision: Precision = precision
        self.num_devices = num_devices
        make_mesh(num_devices, platform=_PLATFORM[precision])  # refuses what is not there

    def __call__(self, fn: Callable, *arrays: Any, **static: Any) -> Any:
        """fn(*case, **static) for every case, as NumPy float64."""
        count = len(jax.tree.leaves(arrays)[0])
        missing = -count % self.num_devices
        rows = jax.tree.map(lambda a: self._cast(np.asarray(a), missing), arrays)
        x64 = jax.enable_x64(self.precision == "float64")
        with x64, self._device(), without_traced_checks():
            out = compiled(fn, tuple(sorted(static.items())), self.precision, self.num_devices)(
                *rows
            )
            out = jax.tree.map(np.asarray, jax.device_get(out))
        return jax.tree.map(lambda a: self._back(a[:count]), out)

    def _cast(self, array: np.ndarray, missing: int) -> np.ndarray:
        if array.dtype == np.float64 and self.precision == "float32":
            array = array.astype(np.float32)
        return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array

    @staticmethod
    def _back(array: np.ndarray) -> np.ndarray:
        return array.astype(np.float64) if array.dtype == np.float32 else array

    def _device(self) -> Any:
        host = jax.devices("cpu")[0]
        default = jax.devices()[0] if self.precision == "float32" else host
        return jax.default_device(default)


@cache
def compiled(fn: Callable, static: tuple, precision: Precision, num_devices: int) -> Callable:
    """The batched, compiled form of a function, kept because statements share many functions."""
    # `precision` is part of the key: x64 is a context, and one cache must not serve both.
    one_case = partial(fn, **dict(static))
    if num_devices == 1:
        on_cpu = (_PLATFORM[precision] or jax.default_backend()) == "cpu"
        return jax.jit(jax.vmap(one_case), compiler_options=_options() if on_cpu else None)
    return independent(one_case, make_mesh(num_devices, platform=_PLATFORM[precision]))


@cache
def _options() -> dict[str, Any]:
    """Those of `_QUICK_TO_COMPILE` that this XLA knows: some come and go with its version."""
    return {name: value for name, value in _QUICK_TO_COMPILE.items() if _is_known(name, value)}


def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
