"""The layers of the transformer, for one sequence [N, width]; parameters have Llama's names."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfm_jax.models.config import RopeScaling, TransformerConfig
from dfm_jax.models.linear import Linear
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
    segments: Array | None = None  # [N]; tokens of another number are not seen


def real_dtype(config: TransformerConfig) -> Any:
    """The type of parameters, norms, softmax and logits; it is never half precision."""
    return jnp.float64 if config.compute_dtype == "float64" else jnp.float32


def rotary_angles(positions: Array, config: TransformerConfig) -> tuple[Array, Array]:
    """The cosines and sines of i · base^{−2j/H}, twice: the two halves of a head form the pairs.

    Source: RoFormer (2104.09864), in the layout of Hugging Face's Llama.
    """
    exponents = jnp.arange(0, config.head_size, 2, dtype=real_dtype(config)) / config.head_size
    speeds = config.rope_base**-exponents  # ω_j, in radians a token
    if config.rope_scaling is not None:
        speeds = _scaled_speeds(speeds, RopeScaling(*config.rope_scaling))
    angles = positions[:, None].astype(exponents.dtype) * speeds[None]
    angles = jnp.concatenate([angles, angles], axis=-1)[:, None]
    return jnp.cos(angles), jnp.sin(angles)


def _scaled_speeds(speeds: Array, scaling: RopeScaling) -> Array:
    """The speeds ω_j of `rotary_angles` after `RopeScaling`."""
    turns = scaling.original * speeds / (2 * jnp.pi)
    kept = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return speeds * (kept + (1 - kept) / scaling.factor)


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
        """Normalize along the last axis; the mean square is summed in full precision."""
        dtype = real_dtype(self.config)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), dtype)
        if condition is not None:
            scale = scale * (
                1 + _linear(x.shape[-1], self.config, 0.0, name="time_proj")(condition)
            )
        wide = x.astype(dtype)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.config.norm_epsilon)
        return (normed * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class SelfAttention(nn.Module):
    """softmax(q kᵀ/√H) v with rotary positions; each head of keys serves a group of query heads.

    Source: GQA (2305.13245).
    """

    config: TransformerConfig

    def setup(self) -> None:
        """Name the maps as Llama, Qwen2 and Qwen3 do."""
        config = self.config
        queries, keys = config.num_heads * config.head_size, config.kv_heads * config.head_size
        bias = config.qkv_bias
        self.q_proj = _linear(queries, config, use_bias=bias)
        self.k_proj = _linear(keys, config, use_bias=bias)
        self.v_proj = _linear(keys, config, use_bias=bias)
        self.o_proj = _linear(config.width, config, (2 * config.num_layers) ** -0.5)
        if config.qk_norm:
            self.q_norm, self.k_norm = RMSNorm(config), RMSNorm(config)

    def __call__(
        self, x: Array, memory: Memory | None, frame: Frame
    ) -> tuple[Array, Memory | None]:
        """The mixed values; with a memory, keys and values are first written to it."""
        q, k, v = self.heads(x, frame.cos, frame.sin)
        if memory is not None:
            # A position beyond the memory is dropped; a slice would move to fit, and overwrite.
            write = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
            keys = memory.keys.at[frame.positions].set(k, **write)
            values = memory.values.at[frame.positions].set(v, **write)
            memory, k, v = Memory(keys, values), keys, values
        if memory is None and self.config.attention == "einsum":
            mixed = attend_within(q, k, v, self.config, frame.segments)
        else:
            mixed = attend(q, k, v, frame.visible, self.config)
        return self.joined(mixed), memory

    def heads(self, x: Array, cos: Array, sin: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values of the rows of x [M, width], each [M, heads, H]."""
        config, size = self.config, self.config.head_size
        q = self.q_proj(x).reshape(-1, config.num_heads, size)
        k = self.k_proj(x).reshape(-1, config.kv_heads, size)
        v = self.v_proj(x).reshape(-1, config.kv_heads, size)
        if config.qk_norm:
            q, k = self.q_norm(q, None), self.k_norm(k, None)
        return rotated(q, cos, sin), rotated(k, cos, sin), v

    def joined(self, mixed: Array) -> Array:
        """The output for the mixed values of all heads, [M, heads, H] → [M, width]."""
        return self.o_proj(mixed.reshape(mixed.shape[0], -1))


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


def attend_within(
    q: Array, k: Array, v: Array, config: TransformerConfig, segments: Array | None = None
) -> Array:
    """`attend` for a sequence that reads itself, where a causal query costs what it sees.

    With `segments` [N], queries meet only keys of the same number.

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
        visible = None
        if config.causal:
            visible = jnp.arange(seen)[None] <= jnp.arange(first, end)[:, None]
        if segments is not None:
            own = segments[None, :seen] == segments[first:end, None]
            visible = own if visible is None else visible & own
        if visible is not None:
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
        gate = _linear(config.ffn_width, config, name="gate_proj")(x)
        up = _linear(config.ffn_width, config, name="up_proj")(x)
        depth = (2 * config.num_layers) ** -0.5
        return _linear(config.width, config, depth, name="down_proj")(nn.silu(gate) * up)


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
        hidden = nn.silu(_linear(self.config.width, self.config, name="in_proj")(features))
        return nn.silu(_linear(self.config.width, self.config, name="out_proj")(hidden))


def _linear(
    size: int,
    config: TransformerConfig,
    scale: float = 1.0,
    *,
    use_bias: bool = False,
    name: str | None = None,
) -> Linear:
    """A linear map; its kernel starts with variance scale²/fan-in, and a bias with 0."""
    init = nn.initializers
    kernel = init.variance_scaling(scale**2, "fan_in", "normal") if scale else init.zeros
    dtypes = {"dtype": config.compute_dtype, "param_dtype": real_dtype(config)}
    return Linear(size, name=name, use_bias=use_bias, kernel_init=kernel, **dtypes)
