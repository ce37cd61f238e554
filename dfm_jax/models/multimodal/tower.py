"""Vision towers: a picture [H, W, 3], normalized, to features of its patches; as pure functions.

    patches → embedding, class token, positions → layers: h + attention(norm h), h + MLP(norm h)

Parameters have the names of CLIP in Hugging Face's files.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfm_jax.checks import require
from dfm_jax.interfaces import Params
from dfm_jax.models.linear import Linear
from dfm_jax.models.multimodal.config import Norm, VisionConfig
from dfm_jax.models.products import rows_times
from dfm_jax.parallel import gathered_layer
from dfm_jax.types import Array, Key

_QK_EPSILON = 1e-6  # of InternViT's norms of q and k, whatever that of its other norms
_LAYER_SCALE = 0.1  # at the start


class VisionTower(NamedTuple):
    """The functions of a tower, for one picture [H, W, 3] whose pixels are normalized.

    `init(key) -> params`.

    `features(params, picture, layer=-1, *, key=None) -> [1 + P, width]`: the class token's and the
    patches' after a layer counted from the end, −1 for the last and −L − 1 for the embeddings. The
    key draws the layers that drop-path skips.

    `pooled(params, picture) -> [width]` or, with a projection, `[projection]`: CLIP's image feature
    is the norm of the class token's last one, projected.
    """

    init: Callable[[Key], Params]
    features: Callable[..., Array]
    pooled: Callable[[Params, Array], Array]


def vision_tower(config: VisionConfig) -> VisionTower:
    """The tower of a config.

    Raises:
        ValueError: in a call, if the picture is not [H, W, 3] of the config's size; if the layer is
            none of the tower's.
    """
    layer_module, embeddings = VisionLayer(config), Embeddings(config)
    norm, real = vision_norm(config), real_dtype(config)

    @jax.jit
    def init(key: Key) -> Params:
        at_start, in_layers, at_end = jax.random.split(key, 3)
        picture = jnp.zeros((config.image_size, config.image_size, 3))
        h = jnp.zeros((1, config.width), config.compute_dtype)

        def layer(own: Key) -> Params:
            return layer_module.init(own, h, jnp.ones(2))["params"]

        keys = jax.random.split(in_layers, config.num_layers)
        if config.scan_layers:
            layers = {"layers": jax.vmap(layer)(keys)}
        else:
            layers = {f"layers_{i}": layer(own) for i, own in enumerate(keys)}
        params = {"embeddings": embeddings.init(at_start, picture)["params"], "encoder": layers}
        if config.input_norm:
            params["pre_layrnorm"] = norm.init(at_start, h)["params"]
        if config.pooled_norm:
            params["post_layernorm"] = norm.init(at_start, h)["params"]
        if config.projection is not None:
            shape = (config.width, config.projection)
            kernel = jax.random.normal(at_end, shape, real) * config.width**-0.5
            params["visual_projection"] = {"kernel": kernel}
        return params

    def features(
        params: Params, picture: Array, layer: int = -1, *, key: Key | None = None
    ) -> Array:
        count = config.num_layers
        rule = f"`layer` must be in [-{count + 1}, -1]"
        require(-count - 1 <= layer <= -1, rule, layer)
        check_picture(picture, config)
        h = applied(embeddings, params["embeddings"], picture)
        if config.input_norm:
            h = applied(norm, params["pre_layrnorm"], h)
        return _layers(config, params["encoder"], h, count + 1 + layer, key)

    def pooled(params: Params, picture: Array) -> Array:
        rule = "`pooled_norm` must be True, because the feature is the norm of the class token's"
        require(config.pooled_norm, rule, config.pooled_norm)
        h = features(params, picture)[:1]
        h = applied(norm, params["post_layernorm"], h)
        if config.projection is not None:
            kernel = params["visual_projection"]["kernel"]
            h = rows_times(h, kernel.astype(h.dtype), dtype=real)
        return h[0]

    return VisionTower(init, features, pooled)


def real_dtype(config: VisionConfig) -> Any:
    """The type of parameters, norms and softmax; it is never half precision."""
    return jnp.float64 if config.compute_dtype == "float64" else jnp.float32


def applied(module: nn.Module, params: Params, *arguments: Array) -> Any:
    """The result of a module that has nothing but parameters."""
    return module.apply({"params": params}, *arguments)


def check_picture(picture: Array, config: VisionConfig) -> None:
    """Check that a picture has the shape that the tower reads."""
    shape, size = jnp.shape(picture), config.image_size
    rule = f"`picture` must have the shape [{size}, {size}, 3]"
    require(shape == (size, size, 3), rule, shape, name="picture.shape")


def _layers(config: VisionConfig, params: Params, h: Array, count: int, key: Key | None) -> Array:
    """The first `count` layers; the last ones of a tower may be on disk and not be needed."""
    module, total = VisionLayer(config), config.num_layers
    branches = jnp.ones((total, 2), real_dtype(config))
    if key is not None and config.drop_path > 0:
        # Stochastic depth (1603.09382): a branch that stays is divided by its probability.
        stays = 1 - jnp.linspace(0.0, config.drop_path, total, dtype=branches.dtype)[:, None]
        drawn = jax.random.uniform(key, branches.shape, branches.dtype)
        branches = (drawn < stays) / stays

    def layer(h: Array, own: tuple[Params, Array]) -> Array:
        own_params = gathered_layer(own[0]) if config.scan_layers else own[0]
        return applied(module, own_params, h, own[1])

    if not config.scan_layers:
        layer = jax.checkpoint(layer) if config.remat else layer
        for i in range(count):
            h = layer(h, (params[f"layers_{i}"], branches[i]))
        return h
    # The loop already keeps the forward and the backward pass apart.
    layer = jax.checkpoint(layer, prevent_cse=False) if config.remat else layer
    first = jax.tree.map(lambda leaf: leaf[:count], (params["layers"], branches))
    return jax.lax.scan(lambda h, own: (layer(h, own), None), h, first)[0]


class Embeddings(nn.Module):
    """The class token and the patches, each with its position: [H, W, 3] → [1 + P, width]."""

    config: VisionConfig

    @nn.compact
    def __call__(self, picture: Array) -> Array:
        """Patches from left to right and from top to bottom."""
        config, size, normal = self.config, self.config.patch_size, nn.initializers.normal
        real, init = real_dtype(config), normal(config.width**-0.5)
        patches = picture.reshape(config.grid, size, config.grid, size, 3).swapaxes(1, 2)
        patches = patches.reshape(config.num_patches, size * size * 3)
        patch = _dense(config.width, config, use_bias=config.patch_bias, name="patch_embedding")
        first = self.param("class_embedding", init, (config.width,), real)
        shape = (1 + config.num_patches, config.width)
        places = self.param("position_embedding", init, shape, real)
        h = patch(patches.astype(config.compute_dtype))
        h = jnp.concatenate([first[None].astype(h.dtype), h])
        return h + places.astype(h.dtype)


class VisionNorm(nn.Module):
    """LayerNorm, or RMSNorm, along the last axis; summed in full precision."""

    config: VisionConfig
    kind: Norm
    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalize each row."""
        real, init, shape = real_dtype(self.config), nn.initializers, (x.shape[-1],)
        wide = x.astype(real)
        if self.kind == "layer":
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(
            jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon
        )
        normed = normed * self.param("scale", init.ones, shape, real)[None]
        if self.kind == "layer":
            normed = normed + self.param("bias", init.zeros, shape, real)[None]
        return normed.astype(x.dtype)


def vision_norm(config: VisionConfig, name: str | None = None) -> VisionNorm:
    """The norm of the config, between layers and branches."""
    return VisionNorm(config, config.norm, config.norm_epsilon, name=name)


class VisionAttention(nn.Module):
    """softmax(q kᵀ/√H) v among all patches of a picture."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [M, width] to [M, width]."""
        config, real = self.config, real_dtype(self.config)

        def mapped(name: str) -> Array:
            return _dense(config.width, config, use_bias=config.qkv_bias, name=f"{name}_proj")(x)

        q, k, v = mapped("q"), mapped("k"), mapped("v")
        if config.qk_norm:
            q = VisionNorm(config, "rms", _QK_EPSILON, name="q_norm")(q)
            k = VisionNorm(config, "rms", _QK_EPSILON, name="k_norm")(k)
        heads = (x.shape[0], config.num_heads, -1)
        q, k, v = (part.reshape(heads).swapaxes(0, 1) for part in (q, k, v))
        scores = jnp.einsum("hnd,htd->hnt", q, k, preferred_element_type=real)
        weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5).astype(v.dtype)
        mixed = jnp.einsum("hnt,htd->hnd", weights, v).swapaxes(0, 1).reshape(x.shape)
        return _dense(config.width, config, name="out_proj")(mixed)


class VisionMLP(nn.Module):
    """Two layers with the activation of the config between them."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply the layers to each row."""
        config = self.config
        h = _dense(config.ffn_width, config, name="fc1")(x)
        if config.activation == "quick_gelu":
            h = h * jax.nn.sigmoid(1.702 * h)
        else:
            h = nn.gelu(h, approximate=False)
        return _dense(config.width, config, name="fc2")(h)


class VisionLayer(nn.Module):
    """h + λ₁ a · attention(norm h), then h + λ₂ b · MLP(norm h); λ are 1 without layer scale."""

    config: VisionConfig

    @nn.compact
    def __call__(self, h: Array, branches: Array) -> Array:
        """Apply the layer; `branches` are a and b, which drop-path sets."""
        for i, (norm, name, kind) in enumerate(
            (("layer_norm1", "self_attn", VisionAttention), ("layer_norm2", "mlp", VisionMLP))
        ):
            x = kind(self.config, name=name)(vision_norm(self.config, norm)(h))
            weight = branches[i]
            if self.config.layer_scale:
                init, real = nn.initializers.constant(_LAYER_SCALE), real_dtype(self.config)
                scale = self.param(f"lambda_{i + 1}", init, (x.shape[-1],), real)
                x = x * scale[None].astype(x.dtype)
            h = h + x * weight.astype(x.dtype)
        return h


def _dense(
    size: int, config: VisionConfig, *, use_bias: bool = True, name: str | None = None
) -> Linear:
    kernel = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    dtypes = {"dtype": config.compute_dtype, "param_dtype": real_dtype(config)}
    return Linear(size, name=name, use_bias=use_bias, kernel_init=kernel, **dtypes)
