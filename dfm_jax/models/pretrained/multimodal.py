"""LLaVA and InternVL as a whole: their tensors, and their config.json."""

from collections.abc import Iterator, Mapping
from typing import Any

from dfm_jax.checks import require
from dfm_jax.models.multimodal.config import MultimodalConfig
from dfm_jax.models.pretrained.leaves import Leaf, matrix, under, vector
from dfm_jax.models.pretrained.llama import NO_CONSEQUENCE, text_config, text_leaves, text_settings
from dfm_jax.models.pretrained.settings import Settings
from dfm_jax.models.pretrained.vision import (
    clip_config,
    clip_leaves,
    clip_settings,
    intern_config,
    intern_leaves,
    intern_settings,
)


def multimodal_leaves(config: MultimodalConfig) -> Iterator[Leaf]:
    """The leaves of `multimodal(config)`, with the names of LLaVA or InternVL on disk."""
    tower = intern_leaves if config.vision.layer_scale else clip_leaves
    yield from under(tower(config.vision), "vision_tower", "vision_tower.")
    yield from under(_projector_leaves(config), "multi_modal_projector", "multi_modal_projector.")
    yield from under(text_leaves(config.text), "language_model", "language_model.")


def _projector_leaves(config: MultimodalConfig) -> Iterator[Leaf]:
    inputs, width = config.vision.width * config.shuffle**2, config.text.width
    if config.projector_norm:
        yield vector("layer_norm.scale", "layer_norm.weight", inputs)
        yield vector("layer_norm.bias", "layer_norm.bias", inputs)
    for name, columns in (("linear_1", inputs), ("linear_2", width)):
        yield matrix(f"{name}.kernel", f"{name}.weight", width, columns)
        if config.projector_bias:
            yield vector(f"{name}.bias", f"{name}.bias", width)


_KINDS = {"llava": "LlavaForConditionalGeneration", "internvl": "InternVLForConditionalGeneration"}
_SELECTIONS = {"default": False, "full": True}  # whether the class token's feature is kept


def multimodal_config(said: Mapping[str, Any], source: str) -> MultimodalConfig:
    """The network that the config.json of a LLaVA or an InternVL describes.

    Raises:
        ValueError: if a setting is missing, is not known here, or asks for another network.
    """
    settings = Settings(said, source, without=NO_CONSEQUENCE)
    kind = settings.taken("model_type")
    rule = f"`model_type` of {source} must be {' or '.join(map(repr, _KINDS))}"
    require(kind in _KINDS, rule, kind)
    settings.refuse_others("architectures", [_KINDS[kind]], None)
    settings.refuse_others("projector_hidden_act", "gelu")
    settings.taken("image_seq_length", None)  # the tower's sizes say it
    # Either of two names; new files of InternVL have the second one.
    names = ("image_token_index", "image_token_id")
    image_tokens = {settings.taken(name, None) for name in names} - {None}
    rule = f"`image_token_index` of {source} must be given, and the same in both of its names"
    require(len(image_tokens) == 1, rule, sorted(image_tokens))
    text = dict(settings.taken("text_config"))
    tied = settings.taken("tie_word_embeddings", kind == "internvl")
    # The outer value is the one that decides: an inner one of Qwen2 or Llama is not looked at.
    text["tie_word_embeddings"] = tied
    text_of = text_config(text, f"`text_config` of {source}")
    layer = settings.taken("vision_feature_layer", -2 if kind == "llava" else -1)
    require(type(layer) is int, f"`vision_feature_layer` of {source} must be one number", layer)
    selection = settings.taken("vision_feature_select_strategy", "default")
    rule = f"`vision_feature_select_strategy` of {source} must be 'default' or 'full'"
    require(selection in _SELECTIONS, rule, selection)
    vision, at = settings.taken("vision_config"), f"`vision_config` of {source}"
    if kind == "llava":
        tower = clip_config(vision, at, projected=False)
        shuffle, bias = 1, settings.taken("multimodal_projector_bias", True)
    else:
        tower = intern_config(vision, at)
        ratio, bias = settings.taken("downsample_ratio", 0.5), True
        shuffle = round(1 / ratio)
        rule = f"`downsample_ratio` of {source} must be 1 over a whole number"
        require(abs(shuffle * ratio - 1) < 1e-6, rule, ratio)
    count = tower.num_layers
    layer = layer if layer < 0 else layer - count - 1
    settings.check_all_taken()
    return MultimodalConfig(
        text=text_of,
        vision=tower,
        image_token=image_tokens.pop(),
        feature_layer=layer,
        with_class=_SELECTIONS[selection],
        shuffle=shuffle,
        projector_norm=kind == "internvl",
        projector_bias=bias,
    )


def multimodal_settings(config: MultimodalConfig) -> dict[str, Any]:
    """What config.json says of the network."""
    kind = "internvl" if config.vision.layer_scale else "llava"
    own: dict[str, Any]
    if kind == "llava":
        own = {
            "image_token_index": config.image_token,
            "multimodal_projector_bias": config.projector_bias,
            "vision_config": clip_settings(config.vision),
        }
    else:
        own = {
            "image_token_id": config.image_token,
            "downsample_ratio": 1 / config.shuffle,
            "vision_config": intern_settings(config.vision),
        }
    selections = {kept: name for name, kept in _SELECTIONS.items()}
    return {
        "architectures": [_KINDS[kind]],
        "model_type": kind,
        "text_config": text_settings(config.text),
        "projector_hidden_act": "gelu",
        "image_seq_length": config.features_per_picture,
        "vision_feature_layer": config.feature_layer,
        "vision_feature_select_strategy": selections[config.with_class],
        "tie_word_embeddings": config.text.tied,
        **own,
    }
