"""The network of `synthetic`, as far as it is known: a prefix of features, then a transformer.

    f → W_2 gelu(W_1 norm(f) + b_1) + b_2, P vectors → before the tokens → layers → tied head

Layers are pre-norm: LayerNorm, attention, LayerNorm, a feed-forward layer with GELU; positions are
learned, those of the prefix too. Row i of the logits is the distribution of the token after x^i,
given the picture and x^{≤i}.   [A5]
"""

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.checks import require
from dfm_jax.interfaces import Params, Task
from dfm_jax.models import TransformerConfig, VisionLanguage
from dfm_jax.models.products import rows_times
from dfm_jax.training.tasks import answer_task
from dfm_jax.types import Array, Key

_EPSILON = 1e-5  # added to the variance by LayerNorm


class Prefix(NamedTuple):
    """What stands before the question: P vectors, out of F features of the picture."""

    num_features: int
    num_vectors: int


@cache  # members of one shape share what was compiled
def network_of(sizes: TransformerConfig, before: Prefix) -> VisionLanguage:
    """The network, which reads the features [1, F] of a whole picture.

    Of `sizes` it reads V, the width, the numbers of layers and heads, the width of the feed-forward
    layer, the number of positions, with those of the prefix, and the rate of the dropout.
    """
    width, heads = sizes.width, sizes.num_heads
    hidden, deep = 4 * width, (2 * sizes.num_layers) ** -0.5
    assert sizes.max_positions is not None
    positions = sizes.max_positions

    def layer(key: Key) -> Params:
        keys = jax.random.split(key, 4)
        return {
            "norm_1": _norm(width),
            "qkv": _dense(keys[0], width, 3 * width),
            "out": _dense(keys[1], width, width, deep),
            "norm_2": _norm(width),
            "up": _dense(keys[2], width, sizes.ffn_width),
            "down": _dense(keys[3], sizes.ffn_width, width, deep),
        }

    @jax.jit
    def init(key: Key) -> Params:
        keys = jax.random.split(key, 4 + sizes.num_layers)
        return {
            "projector": {
                "norm": _norm(before.num_features),
                "layers_0": _dense(keys[0], before.num_features, hidden),
                "layers_1": _dense(keys[1], hidden, before.num_vectors * width),
            },
            "embedding": _table(keys[2], sizes.num_tokens, width),
            "positions": _table(keys[3], positions, width),
            **{f"layers_{i}": layer(keys[4 + i]) for i in range(sizes.num_layers)},
            "norm": _norm(width),
        }

    def attention(params: Params, h: Array) -> Array:
        q, k, v = jnp.split(_linear(params["qkv"], h), 3, axis=1)
        q, k, v = (x.reshape(-1, heads, width // heads) for x in (q, k, v))
        scores = jnp.einsum("nhd,thd->hnt", q, k) * (width // heads) ** -0.5
        seen = jnp.tril(jnp.ones(scores.shape[1:], bool))
        weights = jax.nn.softmax(jnp.where(seen[None], scores, -jnp.inf))
        return _linear(params["out"], jnp.einsum("hnt,thd->nhd", weights, v).reshape(h.shape))

    def apply(params: Params, features: Array, x_t: Array, *, key: Key | None = None) -> Array:
        shape = features.shape
        rule = f"`features` must have the shape (1, {before.num_features})"
        require(shape == (1, before.num_features), rule, shape, name="features.shape")
        most = positions - before.num_vectors
        rule = f"`x_t` must be one sequence of at most {most} tokens"
        require(x_t.ndim == 1 and x_t.shape[0] <= most, rule, x_t.shape, name="x_t.shape")
        keys: Any = [None] * (2 * sizes.num_layers)
        if key is not None and sizes.dropout > 0:
            keys = jax.random.split(key, len(keys))
        seen = _normed(params["projector"]["norm"], features)
        seen = jax.nn.gelu(_linear(params["projector"]["layers_0"], seen), approximate=False)
        prefix = _linear(params["projector"]["layers_1"], seen).reshape(-1, width)
        h = jnp.concatenate([prefix, params["embedding"][x_t]])
        h = h + params["positions"][: h.shape[0]]
        for i in range(sizes.num_layers):
            own = params[f"layers_{i}"]
            branch = attention(own, _normed(own["norm_1"], h))
            h = h + _dropped(keys[2 * i], branch, sizes.dropout)
            branch = _linear(own["up"], _normed(own["norm_2"], h))
            branch = _linear(own["down"], jax.nn.gelu(branch, approximate=False))
            h = h + _dropped(keys[2 * i + 1], branch, sizes.dropout)
        h = _normed(params["norm"], h)[before.num_vectors :]
        return rows_times(h, params["embedding"].T)

    return VisionLanguage(init, apply)


@cache
def task_of(sizes: TransformerConfig, before: Prefix) -> Task:
    """The task of the network: the likelihood of the answer, which alone has a loss."""
    return answer_task(network_of(sizes, before))


@cache
def num_parameters(sizes: TransformerConfig, before: Prefix) -> int:
    """The number of parameters."""
    shapes = jax.eval_shape(network_of(sizes, before).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def flops_of_item(sizes: TransformerConfig, before: Prefix) -> int:
    """FLOPs of the forward pass on one item: 2 per multiplication and addition of a product.

    The full square of attention scores counts, as the einsum computes it; norms, GELU and softmax
    do not.
    """
    assert sizes.max_positions is not None
    width, length = sizes.width, sizes.max_positions
    tokens = length - before.num_vectors
    projector = 4 * width * (before.num_features + before.num_vectors * width)
    kernels = sizes.num_layers * width * (4 * width + 2 * sizes.ffn_width)
    attention = sizes.num_layers * 2 * length * width
    return 2 * (projector + length * (kernels + attention) + tokens * width * sizes.num_tokens)


def doubled_width(sizes: TransformerConfig, before: Prefix) -> int:
    """The width, a multiple of twice the heads, that is nearest to twice the parameters."""
    aim, step = 2 * num_parameters(sizes, before), 2 * sizes.num_heads

    def miss(width: int) -> int:
        return abs(num_parameters(_wider(sizes, width), before) - aim)

    width = sizes.width
    while miss(width + step) < miss(width):
        width += step
    return width


def _wider(sizes: TransformerConfig, width: int) -> TransformerConfig:
    return replace(sizes, width=width, ffn_width=4 * width)


def _dense(key: Key, rows: int, columns: int, scale: float = 1.0) -> Params:
    """A linear map whose kernel has variance scale²/rows at the start."""
    kernel = jax.random.normal(key, (rows, columns)) * (scale * rows**-0.5)
    return {"kernel": kernel, "bias": jnp.zeros(columns)}


def _table(key: Key, rows: int, width: int) -> Array:
    return jax.random.normal(key, (rows, width)) * width**-0.5


def _norm(width: int) -> Params:
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def _linear(params: Params, h: Array) -> Array:
    return rows_times(h, params["kernel"]) + params["bias"][None]


def _normed(params: Params, h: Array) -> Array:
    """LayerNorm of each row."""
    centered = h - h.mean(axis=1, keepdims=True)
    variance = jnp.square(centered).mean(axis=1, keepdims=True)
    scaled = centered * jax.lax.rsqrt(variance + _EPSILON)
    return scaled * params["scale"][None] + params["bias"][None]


def _dropped(key: Any, h: Array, rate: float) -> Array:
    """Each entry is 0 with that probability, else divided by 1 − rate; all stay without a key."""
    if key is None:
        return h
    stays = jax.random.uniform(key, h.shape) >= rate
    return jnp.where(stays, h / (1 - rate), 0.0)
