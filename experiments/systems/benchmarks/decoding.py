"""The workloads of sampling: Euler with and without a model, autoregression, mixtures, draws."""

import numpy as np

from experiments.systems.benchmarks.kinds import (
    EVERY_STEP,
    FULL,
    FULL_FAST,
    Goal,
    Size,
    Workload,
    grown,
)

_FLOW, _TORCH, _COMPILED = "flow_matching", "torch", "torch.compile"
_GPT = "transformers GPT-2"
_BY_HAND = "K of transformers, mixed by hand"
_EULER = grown("V", (128, 512, 2048, 8192), batch=2, N=128, T=100)
_MODEL = grown("V", (256, 1024, 8192), batch=4, N=64, T=16)
_CACHE = grown("batch", (1, 4, 32), V=8192, new=128)
_DECODED = grown("K", (2, 4), batch=32, V=8192, new=128)
_MASKED = grown("V", (256, 8192), batch=1, N=256, T=256)
_MIXTURE = grown("K", (2, 4, 8, 16), B=32, V=32768)
_ONE = grown("K", (2, 4, 8, 16), V=32768)
_DRAW = grown("V", (512, 2048, 8192, 50257), R=512)

WORKLOADS = (
    Workload(
        "Euler without its model",
        "V",
        _EULER,
        _EULER[:2],
        (_FLOW,),
        "probs",
        slow=True,
    ),
    Workload(
        "Euler with a model",
        "V",
        _MODEL,
        _MODEL[:1],
        (_FLOW,),
        "probs",
        slow=True,
    ),
    Workload(
        "AR sampling with cache",
        "batch",
        _CACHE,
        _CACHE[:1],
        (_GPT,),
        "none",
        (Goal(_GPT, 6.0, {"batch": 1}), Goal(_GPT, 2.5, {"batch": 32})),
        ("clear", "fast"),
        slow=True,
    ),
    Workload(
        "mixture of K with cache",
        "K",
        _DECODED,
        _DECODED[:1],
        (_BY_HAND,),
        "none",
        (Goal(_BY_HAND, 3.0, {"K": 4}),),
        ("fast",),
        slow=True,
        before=None,
    ),
    Workload(
        "masked diffusion with a model",
        "V",
        _MASKED,
        grown("V", (256,), batch=1, N=32, T=32),
        (_FLOW,),
        "probs",
        (Goal(_FLOW, 1.5, {"V": 256}), Goal(_FLOW, 4.0, {"V": 8192})),
        ("fast", EVERY_STEP),
        slow=True,
        before=None,
    ),
    Workload(
        "mixture of K experts",
        "K",
        _MIXTURE,
        _MIXTURE[:2],
        (_TORCH, _COMPILED),
        "values",
    ),
    Workload(
        "a sample from the mixture",
        "K",
        _ONE,
        _ONE[:2],
        (FULL, FULL_FAST),
        "probs",
        (),
        ("fast",),
    ),
    Workload("categorical draw", "V", _DRAW, _DRAW[:2], (_TORCH,), "probs"),
)


def _normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return rng.standard_normal(shape, np.float32) * np.float32(scale)


def _euler(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One uneven posterior at every position, so that draws of all of them can be counted."""
    row = _normal(rng, size["V"], scale=3.0)
    logits = np.tile(row, (size["batch"], size["N"], 1))
    return {"logits": logits} | _noise(size, rng)


def _noise(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x_0": rng.integers(size["V"], size=(size["batch"], size["N"]))}


def _masks(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x_0": np.full((size["batch"], size["N"]), size["V"])}


def _prompts(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"prompts": rng.integers(size["V"], size=(size["batch"], 1))}


def _mixture(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    share = rng.dirichlet(np.full(size["K"], 2.0)).astype(np.float32)
    logits = _normal(rng, size["K"], size["B"], size["V"], scale=3.0)
    return {"log_weights": np.log(share), "logits": logits}


def _one(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Heads are made over there, of normal numbers: K of them are large."""
    share = rng.dirichlet(np.full(size["K"], 2.0)).astype(np.float32)
    return {"log_weights": np.log(share), "hidden": _normal(rng, 256, scale=0.2)}


def _draw(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"logits": np.tile(_normal(rng, size["V"], scale=3.0), (size["R"], 1))}


INPUTS = {
    "Euler without its model": _euler,
    "Euler with a model": _noise,
    "AR sampling with cache": _prompts,
    "mixture of K with cache": _prompts,
    "masked diffusion with a model": _masks,
    "mixture of K experts": _mixture,
    "a sample from the mixture": _one,
    "categorical draw": _draw,
}
