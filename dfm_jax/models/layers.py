"""The layers of the transformer, for one sequence [N, width]; parameters have Llama's names."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.products import rows_dot_general
from dfm_jax.types import Array

_HIGHEST_FREQUENCY = 1000.0  # of the features of t, in radians per unit of time
_LEAST_BLOCK, _MOST_BLOCKS = 64, 8  # of queries in causal attention


class Memory(NamedTuple):
    """What a layer has seen: keys, rotated to their positions, and values, [T, heads, H] each."""

    keys: Array
    values: Array


class Frame(NamedTuple):
    """What all layers share: the positions, which tokens see which, and the condition on time."""

    positions: Array  # [N]
    cos: Array  # [N, 1, H]
    sin: Array
    visible: Array | None  # [N, T]; None where everyone sees everyone
    condition: Array | None  # [width]


def real_dtype(config: TransformerConfig) -> Any:
    """The type of parameters, norms, softmax and logits; it is never half precision."""
    return jnp.float64 if config.compute_dtype == "float64" else jnp.float32


def rotary_angles(positions: Array, config: TransformerConfig) -> tuple[Array, Array]:
    """The cosines and sines of i · base^{−2j/H}, twice: the two halves of a head form the pairs.

    Source: RoFormer (2104.09864), in the layout of Hugging Face's Llama.
    """
    exponents = jnp.arange(0, config.head_size, 2, dtype=real_dtype(config)) / config.head_size
    angles = positions[:, None].astype(exponents.dtype) * config.rope_base ** -exponents[None]
    angles = jnp.concatenate([angles, angles], axis=-1)[:, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotated(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate every pair (x_j, x_{j + H/2}) by the angle of its position, without rounding it."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = x * cos + jnp.concatenate([-second, first], axis=-1) * sin
    return turned.astype(x.dtype)


def time_features(t: Array, size: int, dtype: Any) -> Array:
    """cos and sin of ω_j t, ω_j = 1000^{2j/size}; the slowest angle grows from 0 to 1 radian."""
    exponents = jnp.arange(0, size, 2, dtype=dtype) / size
    angles = jnp.asarray(t, dtype) * _HIGHEST_FREQUENCY**exponents
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) · g; if there is a time, also · (1 + W c(t)), where W starts at 0."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array, condition: Array | None) -> Array:
        """Normalize each row; the mean square is summed in full precision."""
        dtype = real_dtype(self.config)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), dtype)
        if condition is not None:
            scale = scale * (1 + _linear("time_proj", x.shape[-1], self.config, 0.0)(condition))
        wide = x.astype(dtype)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.config.norm_epsilon)
        return (normed * scale[None]).astype(x.dtype)


class SelfAttention(nn.Module):
    """softmax(q kᵀ/√H) v with rotary positions; each head of keys serves a group of query heads.

    Source: GQA (2305.13245).
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Array, memory: Memory | None, frame: Frame
    ) -> tuple[Array, Memory | None]:
        """The mixed values; with a memory, keys and values are first written to it."""
        config, size = self.config, self.config.head_size
        q = _linear("q_proj", config.width, config)(x).reshape(-1, config.num_heads, size)
        k = _linear("k_proj", config.kv_heads * size, config)(x).reshape(-1, config.kv_heads, size)
        v = _linear("v_proj", config.kv_heads * size, config)(x).reshape(-1, config.kv_heads, size)
        q, k = rotated(q, frame.cos, frame.sin), rotated(k, frame.cos, frame.sin)
        if memory is not None:
            # A position beyond the memory is dropped; a slice would move to fit, and overwrite.
            write = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
            keys = memory.keys.at[frame.positions].set(k, **write)
            values = memory.values.at[frame.positions].set(v, **write)
            memory, k, v = Memory(keys, values), keys, values
        if memory is None and config.attention == "einsum":
            mixed = attend_within(q, k, v, config)
        else:
            mixed = attend(q, k, v, frame.visible, config)
        mixed = mixed.reshape(-1, config.width)
        depth = (2 * config.num_layers) ** -0.5
        return _linear("o_proj", config.width, config, depth)(mixed), memory


def attend(q: Array, k: Array, v: Array, visible: Array | None, config: TransformerConfig) -> Array:
    """Each query's mean of the values that it sees, weighted by softmax(q kᵀ/√H): [N, heads, H]."""
    if config.attention != "einsum":
        mask = None if visible is None else visible[None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=config.attention)
    dtype = real_dtype(config)
    grouped = q.reshape(q.shape[0], config.kv_heads, -1, config.head_size)
    scores = jnp.einsum("nkgh,tkh->kgnt", grouped, k, preferred_element_type=dtype)
    scores = scores * config.head_size**-0.5
    if visible is not None:
        scores = jnp.where(visible[None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("kgnt,tkh->nkgh", weights, v).reshape(q.shape)


def attend_within(q: Array, k: Array, v: Array, config: TransformerConfig) -> Array:
    """`attend` for a sequence that reads itself, where a causal query costs what it sees.

    Queries are cut into at most 8 blocks of at least 64; those of a causal block meet only the keys
    up to the block's end. With 8 blocks that is (1 + 1/8)/2 of all products.
    """
    dtype, count = real_dtype(config), q.shape[0]
    # Heads come first, and heads that share keys lie one below another: products of plain matrices.
    q = q.reshape(count, config.kv_heads, -1, config.head_size).transpose(1, 2, 0, 3)
    k, v = k.swapaxes(0, 1), v.swapaxes(0, 1)

    def block(first: int, end: int) -> Array:
        seen = end if config.causal else count
        keys, values = k[:, :seen], v[:, :seen]
        queries = q[:, :, first:end].reshape(config.kv_heads, -1, config.head_size)
        scores = jnp.einsum("knh,kth->knt", queries, keys, preferred_element_type=dtype)
        scores = scores * config.head_size**-0.5
        if config.causal:
            visible = jnp.arange(seen)[None] <= jnp.arange(first, end)[:, None]
            visible = jnp.tile(visible, (q.shape[1], 1))
            scores = jnp.where(visible[None], scores, -jnp.inf)
        weights = jax.nn.softmax(scores).astype(v.dtype)
        mixed = jnp.einsum("knt,kth->knh", weights, values)
        return mixed.reshape(*q.shape[:2], end - first, config.head_size)

    size = max(_LEAST_BLOCK, -(-count // _MOST_BLOCKS)) if config.causal else max(count, 1)
    blocks = [block(i, min(i + size, count)) for i in range(0, count, size)]
    mixed = jnp.concatenate(blocks or [q], axis=2)
    return mixed.transpose(2, 0, 1, 3).reshape(count, config.num_heads, config.head_size)


class FeedForward(nn.Module):
    """SwiGLU: (silu(x W_gate) · x W_up) W_down. Source: 2002.05202."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply the layer to each row."""
        config = self.config
        gate = _linear("gate_proj", config.ffn_width, config)(x)
        up = _linear("up_proj", config.ffn_width, config)(x)
        depth = (2 * config.num_layers) ** -0.5
        return _linear("down_proj", config.width, config, depth)(nn.silu(gate) * up)


class Block(nn.Module):
    """One layer: h + attention(norm h), then h + feed-forward(norm h)."""

    config: TransformerConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self, h: Array, memory: Memory | None, frame: Frame
    ) -> tuple[Array, Memory | None]:
        """The next hidden states, and the memory with this block's new keys and values."""
        config = self.config
        branch = RMSNorm(config, name="input_layernorm")(h, frame.condition)
        branch, memory = SelfAttention(config, name="self_attn")(branch, memory, frame)
        h = h + nn.Dropout(config.dropout)(branch, deterministic=self.deterministic)
        branch = RMSNorm(config, name="post_attention_layernorm")(h, frame.condition)
        branch = FeedForward(config, name="mlp")(branch)
        return h + nn.Dropout(config.dropout)(branch, deterministic=self.deterministic), memory


class TimeCondition(nn.Module):
    """c(t) = silu(silu(f(t) W_in) W_out), with f the `time_features`; the same for all rows."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, t: Array) -> Array:
        """The condition for one time, [width], computed in full precision."""
        features = time_features(t, self.config.width, real_dtype(self.config))
        hidden = nn.silu(_linear("in_proj", self.config.width, self.config)(features))
        return nn.silu(_linear("out_proj", self.config.width, self.config)(hidden))


def _linear(name: str, size: int, config: TransformerConfig, scale: float = 1.0) -> nn.Dense:
    """A linear map without bias; its kernel starts with variance scale²/fan-in."""
    init = nn.initializers
    kernel = init.variance_scaling(scale**2, "fan_in", "normal") if scale else init.zeros
    dtypes = {"dtype": config.compute_dtype, "param_dtype": real_dtype(config)}
    options = {"use_bias": False, "kernel_init": kernel, "dot_general": rows_dot_general}
    return nn.Dense(size, name=name, **options, **dtypes)
