"""The kinds of checkpoints that can be read and written, by the `model_type` of config.json."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import require
from dfm_jax.interfaces import Params
from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.multimodal.config import MultimodalConfig, VisionConfig
from dfm_jax.models.pretrained.checkpoint import Checkpoint
from dfm_jax.models.pretrained.leaves import (
    Leaf,
    leaf_shapes_of,
    params_of,
    tensor_shapes_of,
    tensors_of,
)
from dfm_jax.models.pretrained.llama import check_llama, text_config, text_leaves, text_settings
from dfm_jax.models.pretrained.multimodal import (
    multimodal_config,
    multimodal_leaves,
    multimodal_settings,
)
from dfm_jax.models.pretrained.native_internvl import native_config, native_names
from dfm_jax.models.pretrained.vision import (
    clip_config,
    clip_leaves,
    clip_projection,
    clip_settings,
)
from dfm_jax.types import DType

_TABLES = ("rotary_emb.inv_freq", ".position_ids")  # that old files repeat; the config gives them

PretrainedConfig = TransformerConfig | MultimodalConfig | VisionConfig


class _Family(NamedTuple):
    """How one kind of network lies on disk."""

    kind: type
    read: Callable[[Mapping[str, Any], str], Any]
    leaves: Callable[[Any], Iterator[Leaf]]
    settings: Callable[[Any], dict[str, Any]]
    check: Callable[[Any], None] = lambda config: None
    left_out: tuple[str, ...] = ()  # tensors of files that hold more than this network
    others: Mapping[str, str] = {}  # prefixes that some files have in the place of these names'
    head: tuple[str, str] | None = None  # the names of head and embedding, which may be tied
    native: Callable[[str], tuple[str, ...]] | None = None  # of another layout: the names here

    def names(self, found: str) -> tuple[str, ...]:
        """The names that a tensor of a file has here: none, one, or one for each part of its rows.

        A tensor that has no part in the network has none. One that holds several below one another
        has several.
        """
        if found.endswith(_TABLES) or found.startswith(self.left_out):
            return ()
        if self.native is not None:
            return self.native(found)
        for prefix, ours in self.others.items():
            if found.startswith(prefix):
                return (ours + found.removeprefix(prefix),)
        return (found,)


def _clip(said: Mapping[str, Any], source: str) -> VisionConfig:
    """The tower of a whole CLIP, or of its vision half alone."""
    inner = said.get("vision_config", said) if said["model_type"] == "clip" else said
    inner = dict(inner)
    if said["model_type"] == "clip":
        inner["projection_dim"] = said.get("projection_dim", inner.get("projection_dim", 512))
    return clip_config(inner, source, projected=True)


def _clip_leaves(config: VisionConfig) -> Iterator[Leaf]:
    yield from (
        leaf._replace(tensors=tuple(f"vision_model.{name}" for name in leaf.tensors))
        for leaf in clip_leaves(config)
    )
    yield from clip_projection(config)


def _clip_settings(config: VisionConfig) -> dict[str, Any]:
    return {"architectures": ["CLIPVisionModelWithProjection"], **clip_settings(config)}


_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_TEXT = _Family(
    TransformerConfig,
    text_config,
    text_leaves,
    text_settings,
    check_llama,
    head=(_HEAD, _EMBEDDING),
)
_MULTIMODAL = _Family(
    MultimodalConfig,
    multimodal_config,
    multimodal_leaves,
    multimodal_settings,
    lambda config: check_llama(config.text),
    others={
        "vision_tower.vision_model.": "vision_tower.",
        "model.vision_tower.vision_model.": "vision_tower.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.language_model.": "language_model.model.",
        _HEAD: f"language_model.{_HEAD}",
    },
    head=(f"language_model.{_HEAD}", f"language_model.{_EMBEDDING}"),
)
_NATIVE = _MULTIMODAL._replace(read=native_config, native=native_names, others={})
_CLIP = _Family(
    VisionConfig,
    _clip,
    _clip_leaves,
    _clip_settings,
    left_out=("text_model.", "text_projection.", "logit_scale"),
)
_FAMILIES = {
    "llama": _TEXT,
    "qwen2": _TEXT,
    "qwen3": _TEXT,
    "llava": _MULTIMODAL,
    "internvl": _MULTIMODAL,
    "internvl_chat": _NATIVE,
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
}


def family_of_settings(said: Mapping[str, Any], source: str) -> _Family:
    """The family of a config.json.

    Raises:
        ValueError: if its `model_type` is not known here.
    """
    kind = said.get("model_type")
    rule = f"`model_type` of {source} must be one of {', '.join(_FAMILIES)}"
    require(kind in _FAMILIES, rule, kind)
    return _FAMILIES[kind]  # type: ignore[index]


def family_of(config: PretrainedConfig) -> _Family:
    """The family of a config that was read, or is to be written."""
    return next(f for f in (_TEXT, _MULTIMODAL, _CLIP) if isinstance(config, f.kind))


def checkpoint_params(
    checkpoint: Checkpoint, *, dtype: DType = jnp.float32, shardings: Any = None
) -> Params:
    """The parameters of the network of `checkpoint.config`, read leaf by leaf.

    That network is `transformer`, `multimodal` or `vision_tower`, by the type of the config. In
    addition to the parameters, a few copies of one leaf at a time are in memory. Set options that
    change no parameter (`scan_layers`, `compute_dtype`, `attention`) before the call:
    `checkpoint._replace(config=dataclasses.replace(checkpoint.config, scan_layers=True))`.

    Args:
        checkpoint: The result of `open_gguf` or `open_folder`.
        dtype: The type of the parameters; bfloat16 takes half the memory, and rounds them.
        shardings: The sharding of each leaf, as a pytree like the parameters; by default they lie
            on the default device.

    Raises:
        ValueError: if a tensor is missing, is not known, has another shape, or does not hold
            floats.
    """
    family = family_of(checkpoint.config)
    family.check(checkpoint.config)
    return params_of(family.leaves(checkpoint.config), checkpoint, dtype, shardings)


def checkpoint_tensors(
    config: PretrainedConfig, params: Params
) -> Iterator[tuple[str, np.ndarray]]:
    """The reverse of `checkpoint_params`: the tensors with their names on disk, one by one.

    Raises:
        ValueError: if `config` does not describe a network of a known kind, or the parameters
            belong to another network.
    """
    family = family_of(config)
    family.check(config)
    return tensors_of(family.leaves(config), params)


def leaf_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """The leaves of the parameters of a checkpoint by their paths, with their shapes."""
    return leaf_shapes_of(family_of(config).leaves(config))


def tensor_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint by their Hugging Face names, with their shapes."""
    return tensor_shapes_of(family_of(config).leaves(config))
