"""InternVL as its authors keep it (`model_type: internvl_chat`): read, and written in HF's form.

vision_model.encoder.layers.3.attn.qkv.weight   →  q, k and v of vision_tower.encoder.layer.3
mlp1.0, mlp1.1, mlp1.3                          →  multi_modal_projector
language_model.…                                   as it is
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfm_jax.checks import require
from dfm_jax.json_text import read_json
from dfm_jax.models.multimodal.config import MultimodalConfig, VisionConfig
from dfm_jax.models.pretrained.llama import NO_CONSEQUENCE, text_config
from dfm_jax.models.pretrained.settings import Settings
from dfm_jax.models.pretrained.vision import activation_of, norm_of

IMAGE_TOKEN = "<IMG_CONTEXT>"
# What transformers once wrote into every part of a config; it concerns generation and training.
_OF_OLD_CONFIGS = {
    *("bad_words_ids", "begin_suppress_tokens", "cross_attention_hidden_size"),
    *("decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping"),
    *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task"),
    *("forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "min_length"),
    *("no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences"),
    *("output_scores", "prefix", "pruned_heads", "remove_invalid_values", "repetition_penalty"),
    *("return_dict_in_generate", "suppress_tokens", "task_specific_params", "temperature"),
    *("tf_legacy_loss", "tokenizer_class", "top_k", "top_p", "torchscript", "typical_p"),
    *("use_bfloat16", "attn_implementation", "_commit_hash", "auto_map"),
}
_OF_NO_CONSEQUENCE = NO_CONSEQUENCE | _OF_OLD_CONFIGS
# How pictures and conversations become its input, and how its authors train it: not the network.
_OUTSIDE = {
    *("dynamic_image_size", "force_image_size", "max_dynamic_patch", "min_dynamic_patch"),
    *("pad2square", "template", "use_thumbnail", "use_backbone_lora", "use_llm_lora"),
    *("system_message", "num_image_token"),
}

_LAYERS = (
    (r"norm1\.(weight|bias)", r"layernorm_before.\1"),
    (r"norm2\.(weight|bias)", r"layernorm_after.\1"),
    (r"attn\.proj\.(weight|bias)", r"attention.projection_layer.\1"),
    (r"attn\.(q_norm|k_norm)\.weight", r"attention.\1.weight"),
    (r"ls([12])", r"lambda_\1"),
    (r"(mlp\.fc[12]\.(?:weight|bias))", r"\1"),
)
_EMBEDDINGS = {
    "class_embedding": "cls_token",
    "position_embedding": "position_embeddings",
    "patch_embedding.weight": "patch_embeddings.projection.weight",
    "patch_embedding.bias": "patch_embeddings.projection.bias",
}
_PROJECTOR = {"0": "layer_norm", "1": "linear_1", "3": "linear_2"}


def native_names(found: str) -> tuple[str, ...]:
    """The names of a native tensor in Hugging Face's form: three for q, k and v in one.

    A name that is not known stays, and is refused where the tensors are compared with the config.
    """
    if match := re.fullmatch(r"vision_model\.embeddings\.(.+)", found):
        name = _EMBEDDINGS.get(match[1])
        return (found if name is None else f"vision_tower.embeddings.{name}",)
    if match := re.fullmatch(r"mlp1\.(\d)\.(weight|bias)", found):
        part = _PROJECTOR.get(match[1])
        return (found if part is None else f"multi_modal_projector.{part}.{match[2]}",)
    if match := re.fullmatch(r"vision_model\.encoder\.layers\.(\d+)\.(.+)", found):
        at, name = f"vision_tower.encoder.layer.{match[1]}", match[2]
        if joined := re.fullmatch(r"attn\.qkv\.(weight|bias)", name):
            return tuple(f"{at}.attention.{part}_proj.{joined[1]}" for part in "qkv")
        for pattern, ours in _LAYERS:
            if re.fullmatch(pattern, name):
                return (f"{at}.{re.sub(pattern, ours, name)}",)
    return (found,)


def native_image_token(folder: Path) -> int | None:
    """The id of `<IMG_CONTEXT>` in the tokenizer's files of a folder; None if none of them says."""
    for name in ("added_tokens.json", "tokenizer_config.json", "tokenizer.json"):
        if (folder / name).is_file():
            said = read_json(folder / name)
            decoder = said.get("added_tokens_decoder", {})
            known = {token.get("content"): int(i) for i, token in decoder.items()} | {
                token["content"]: token["id"]
                for token in said.get("added_tokens", ())
                if "content" in token
            }
            found = known.get(IMAGE_TOKEN, said.get(IMAGE_TOKEN))
            if found is not None:
                return found
    return None


def native_config(said: Mapping[str, Any], source: str) -> MultimodalConfig:
    """The network that a native config.json describes.

    Its image token stands in the tokenizer's files: `open_folder` adds it to the settings, as
    `image_token_id`, see `native_image_token`.

    Raises:
        ValueError: if a setting is missing, is not known here, or asks for another network.
    """
    settings = Settings(said, source, without=_OF_NO_CONSEQUENCE | _OUTSIDE)
    settings.refuse_others("model_type", "internvl_chat")
    settings.refuse_others("architectures", ["InternVLChatModel"], None)
    version = settings.taken("ps_version", "v1")
    rule = f"`ps_version` of {source} must be 'v2', because 'v1' turns the picture"
    require(version == "v2", rule, version)
    image_token = settings.count("image_token_id")
    text = {k: v for k, v in settings.taken("llm_config").items() if k not in _OF_OLD_CONFIGS}
    # Its classes give the text a head of its own, whatever its config says.
    text["tie_word_embeddings"] = False
    settings.taken("tie_word_embeddings", None)
    settings.taken("hidden_size", None)  # the text's again
    ratio, layer = settings.taken("downsample_ratio", 0.5), settings.count("select_layer", -1)
    shuffle = round(1 / ratio)
    rule = f"`downsample_ratio` of {source} must be 1 over a whole number"
    require(abs(shuffle * ratio - 1) < 1e-6, rule, ratio)
    vision = settings.taken("vision_config")
    settings.check_all_taken()
    return MultimodalConfig(
        text=text_config(text, f"`llm_config` of {source}"),
        vision=_vision(vision, f"`vision_config` of {source}"),
        image_token=image_token,
        feature_layer=layer,
        shuffle=shuffle,
        projector_norm=True,
    )


def _vision(said: Mapping[str, Any], source: str) -> VisionConfig:
    settings = Settings(said, source, without=_OF_NO_CONSEQUENCE)
    settings.refuse_others("model_type", "intern_vit_6b")
    settings.taken("architectures", None)
    for name in ("attention_dropout", "dropout"):
        settings.refuse_others(name, 0, None)
    settings.refuse_others("num_channels", 3)
    for name in ("use_flash_attn", "initializer_factor"):
        settings.taken(name, None)
    config = VisionConfig(
        image_size=settings.count("image_size"),
        patch_size=settings.count("patch_size"),
        width=settings.count("hidden_size"),
        num_layers=settings.count("num_hidden_layers"),
        num_heads=settings.count("num_attention_heads"),
        ffn_width=settings.count("intermediate_size"),
        activation=activation_of(settings, "gelu", source),
        norm=norm_of(settings, "rms_norm", source),
        norm_epsilon=float(settings.taken("layer_norm_eps", 1e-6)),
        input_norm=False,
        patch_bias=True,
        qkv_bias=settings.taken("qkv_bias"),
        qk_norm=settings.taken("qk_normalization"),
        layer_scale=True,
        pooled_norm=False,
        drop_path=float(settings.taken("drop_path_rate", 0.0)),
    )
    rule = f"`layer_norm_eps` of {source} must be 1e-06 if q and k are normalized"
    require(not config.qk_norm or config.norm_epsilon == 1e-6, rule, config.norm_epsilon)
    settings.check_all_taken()
    return config
