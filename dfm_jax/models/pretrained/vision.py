"""The vision towers of CLIP and InternVL: their tensors, and their settings in config.json."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dfm_jax.checks import require
from dfm_jax.models.multimodal.config import Norm, VisionConfig
from dfm_jax.models.pretrained.leaves import Leaf, as_it_is, in_layers, matrix, vector
from dfm_jax.models.pretrained.llama import NO_CONSEQUENCE
from dfm_jax.models.pretrained.settings import Settings


class _Names(NamedTuple):
    """What a kind of tower calls its tensors on disk."""

    class_token: str
    positions: str
    patches: str
    layers: str
    norms: tuple[str, str]
    attention: str
    output: str
    places_have_batch: bool  # whether class token and positions have leading axes of size 1


_CLIP = _Names(
    class_token="embeddings.class_embedding",
    positions="embeddings.position_embedding.weight",
    patches="embeddings.patch_embedding",
    layers="encoder.layers",
    norms=("layer_norm1", "layer_norm2"),
    attention="self_attn",
    output="out_proj",
    places_have_batch=False,
)
_INTERN = _Names(
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    patches="embeddings.patch_embeddings.projection",
    layers="encoder.layer",
    norms=("layernorm_before", "layernorm_after"),
    attention="attention",
    output="projection_layer",
    places_have_batch=True,
)


def clip_leaves(config: VisionConfig) -> Iterator[Leaf]:
    """The leaves of CLIP's tower, without its projection."""
    yield from _leaves(config, _CLIP)


def clip_projection(config: VisionConfig) -> Iterator[Leaf]:
    """The projection of CLIP's image feature, which stands beside the tower."""
    if config.projection is not None:
        name = "visual_projection"
        yield matrix(f"{name}.kernel", f"{name}.weight", config.projection, config.width)


def intern_leaves(config: VisionConfig) -> Iterator[Leaf]:
    """The leaves of InternViT in Hugging Face's own form."""
    yield from _leaves(config, _INTERN)


def _leaves(config: VisionConfig, names: _Names) -> Iterator[Leaf]:
    width, size, count = config.width, config.patch_size, 1 + config.num_patches
    ones = (1, 1) if names.places_have_batch else ()
    first, places = (*ones, width), (*ones[1:], count, width)
    yield _reshaped("embeddings.class_embedding", names.class_token, first, (width,))
    yield _reshaped("embeddings.position_embedding", names.positions, places, (count, width))
    # On disk a convolution [out, 3, size, size]; here a product with the pixels of a patch.
    yield Leaf(
        ("embeddings", "patch_embedding", "kernel"),
        (f"{names.patches}.weight",),
        (width, 3, size, size),
        (2, 3, 1, 0),
        shape=(size * size * 3, width),
    )
    if config.patch_bias:
        yield vector("embeddings.patch_embedding.bias", f"{names.patches}.bias", width)
    if config.input_norm:
        yield from _norm("pre_layrnorm", "pre_layrnorm", config)
    layer = [
        *_norm("layer_norm1", names.norms[0], config),
        *_norm("layer_norm2", names.norms[1], config),
    ]
    for name in "qkv":
        at = f"{name}_proj"
        layer += _linear(
            f"self_attn.{at}", f"{names.attention}.{at}", width, width, bias=config.qkv_bias
        )
    layer += _linear("self_attn.out_proj", f"{names.attention}.{names.output}", width, width)
    if config.qk_norm:
        for name in ("q_norm", "k_norm"):
            layer.append(
                vector(f"self_attn.{name}.scale", f"{names.attention}.{name}.weight", width)
            )
    layer += _linear("mlp.fc1", "mlp.fc1", config.ffn_width, width)
    layer += _linear("mlp.fc2", "mlp.fc2", width, config.ffn_width)
    if config.layer_scale:
        layer += [vector(name, name, width) for name in ("lambda_1", "lambda_2")]
    yield from in_layers(
        layer,
        config.num_layers,
        room="encoder.layers",
        at=names.layers,
        stacked=config.scan_layers,
    )
    if config.pooled_norm:
        yield from _norm("post_layernorm", "post_layernorm", config)


def _reshaped(path: str, name: str, shape: tuple[int, ...], own: tuple[int, ...]) -> Leaf:
    return as_it_is(path, name, shape)._replace(shape=own)


def _norm(path: str, name: str, config: VisionConfig) -> Iterator[Leaf]:
    yield vector(f"{path}.scale", f"{name}.weight", config.width)
    if config.norm == "layer":
        yield vector(f"{path}.bias", f"{name}.bias", config.width)


def _linear(path: str, name: str, outputs: int, inputs: int, *, bias: bool = True) -> list[Leaf]:
    kernel = matrix(f"{path}.kernel", f"{name}.weight", outputs, inputs)
    return [kernel] + [vector(f"{path}.bias", f"{name}.bias", outputs)] * bias


# ── config.json ─────────────────────────────────────────────────────────────────────────────────

_ACTIVATIONS = ("quick_gelu", "gelu")
_NORMS: dict[str, Norm] = {"layer_norm": "layer", "rms_norm": "rms"}


def clip_config(said: Mapping[str, Any], source: str, *, projected: bool) -> VisionConfig:
    """The tower that CLIP's `vision_config` describes, with or without its projection.

    Raises:
        ValueError: if a setting is missing, is not known here, or asks for another network.
    """
    settings = Settings(said, source, without=NO_CONSEQUENCE)
    settings.refuse_others("model_type", "clip_vision_model")
    settings.taken("architectures", None)
    settings.refuse_others("attention_dropout", 0, None)
    settings.refuse_others("num_channels", 3)
    settings.taken("initializer_factor", None)
    width = settings.count("projection_dim", 512)
    activation = activation_of(settings, "quick_gelu", source)
    # What CLIP's file leaves out has these values in Hugging Face's classes.
    config = VisionConfig(
        image_size=settings.count("image_size", 224),
        patch_size=settings.count("patch_size", 32),
        width=settings.count("hidden_size", 768),
        num_layers=settings.count("num_hidden_layers", 12),
        num_heads=settings.count("num_attention_heads", 12),
        ffn_width=settings.count("intermediate_size", 3072),
        activation=activation,
        norm_epsilon=float(settings.taken("layer_norm_eps", 1e-5)),
        projection=width if projected else None,
    )
    settings.check_all_taken()
    return config


def intern_config(said: Mapping[str, Any], source: str) -> VisionConfig:
    """The tower that InternVL's `vision_config` describes in Hugging Face's own form.

    Raises:
        ValueError: if a setting is missing, is not known here, or asks for another network.
    """
    settings = Settings(said, source, without=NO_CONSEQUENCE)
    settings.refuse_others("model_type", "internvl_vision")
    settings.taken("architectures", None)
    for name in ("attention_dropout", "hidden_dropout_prob", "projection_dropout"):
        settings.refuse_others(name, 0, None)
    settings.refuse_others("num_channels", 3)
    settings.refuse_others("use_absolute_position_embeddings", True)
    settings.refuse_others("use_mask_token", False)
    settings.refuse_others("use_mean_pooling", True)
    settings.taken("layer_scale_init_value", None)
    activation = activation_of(settings, "gelu", source)
    config = VisionConfig(
        image_size=_side(settings, "image_size", 448, source),
        patch_size=_side(settings, "patch_size", 14, source),
        width=settings.count("hidden_size", 1024),
        num_layers=settings.count("num_hidden_layers", 24),
        num_heads=settings.count("num_attention_heads", 16),
        ffn_width=settings.count("intermediate_size", 4096),
        activation=activation,
        norm=norm_of(settings, "layer_norm", source),
        norm_epsilon=float(settings.taken("layer_norm_eps", 1e-6)),
        input_norm=False,
        patch_bias=True,
        qkv_bias=settings.taken("attention_bias", False),
        qk_norm=settings.taken("use_qk_norm", False),
        layer_scale=True,
        pooled_norm=False,
    )
    settings.check_all_taken()
    return config


def norm_of(settings: Settings, default: str, source: str) -> Norm:
    """The kind of norm that `norm_type` names.

    Raises:
        ValueError: if it is not known here.
    """
    value = settings.taken("norm_type", default)
    require(value in _NORMS, f"`norm_type` of {source} must be layer_norm or rms_norm", value)
    return _NORMS[value]


def activation_of(settings: Settings, default: str, source: str) -> Any:
    """The activation that `hidden_act` names.

    Raises:
        ValueError: if it is not known here.
    """
    value = settings.taken("hidden_act", default)
    rule = f"`hidden_act` of {source} must be one of {', '.join(_ACTIVATIONS)}"
    require(value in _ACTIVATIONS, rule, value)
    return value


def _side(settings: Settings, name: str, default: int, source: str) -> int:
    """A size that is one number, or the same one twice."""
    value = settings.taken(name, default)
    sides = set(value) if isinstance(value, list) else {value}
    rule = f"`{name}` of {source} must be one whole number, or the same one twice"
    require(len(sides) == 1 and all(type(side) is int for side in sides), rule, value)
    return sides.pop()


def clip_settings(config: VisionConfig) -> dict[str, Any]:
    """What config.json says of CLIP's tower."""
    return {
        "model_type": "clip_vision_model",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_width,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_epsilon,
        "attention_dropout": 0.0,
        **({} if config.projection is None else {"projection_dim": config.projection}),
    }


def intern_settings(config: VisionConfig) -> dict[str, Any]:
    """What config.json says of InternViT, in Hugging Face's own form."""
    names = {kind: name for name, kind in _NORMS.items()}
    return {
        "model_type": "internvl_vision",
        "image_size": [config.image_size] * 2,
        "patch_size": [config.patch_size] * 2,
        "num_channels": 3,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_width,
        "hidden_act": config.activation,
        "norm_type": names[config.norm],
        "layer_norm_eps": config.norm_epsilon,
        "attention_bias": config.qkv_bias,
        "use_qk_norm": config.qk_norm,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "attention_dropout": 0.0,
        "hidden_dropout_prob": 0.0,
        "projection_dropout": 0.0,
    }
