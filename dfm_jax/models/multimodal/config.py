"""The sizes and options of a vision tower, and of a language model that reads its features."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.models.config import ComputeDtype, TransformerConfig

Activation = Literal["quick_gelu", "gelu"]
Norm = Literal["layer", "rms"]


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A pre-norm vision transformer: CLIP's (2103.00020) or InternViT (2312.14238).

    Raises:
        ValueError: if a size is below 1; if the patch size does not divide the image size, or the
            number of heads the width; if a rate lies outside [0, 1); if a name is not known.
    """

    image_size: int  # pixels, of a square picture
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    ffn_width: int
    activation: Activation = "quick_gelu"  # x σ(1.702 x); or the exact GELU
    norm: Norm = "layer"
    norm_epsilon: float = 1e-5
    input_norm: bool = True  # CLIP normalizes the embeddings before the first layer
    patch_bias: bool = False  # InternViT's patch embedding has one
    qkv_bias: bool = True
    qk_norm: bool = False  # an RMSNorm of the whole width on q and on k
    layer_scale: bool = False  # InternViT multiplies each branch by a vector
    pooled_norm: bool = True  # CLIP's norm of the pooled class token
    projection: int | None = None  # the width of CLIP's projected image feature
    drop_path: float = 0.0  # the rate of the last layer; it grows linearly from 0 in the first
    scan_layers: bool = False
    remat: bool = False
    compute_dtype: ComputeDtype = "float32"

    def __post_init__(self) -> None:
        """Refuse values that no tower can have."""
        for name in ("image_size", "patch_size", "width", "num_layers", "num_heads", "ffn_width"):
            check_count(name, getattr(self, name))
        rule = f"`image_size` must be a multiple of `patch_size`, which is {self.patch_size}"
        require(self.image_size % self.patch_size == 0, rule, self.image_size)
        rule = f"`width` must be a multiple of `num_heads`, which is {self.num_heads}"
        require(self.width % self.num_heads == 0, rule, self.width)
        if self.projection is not None:
            check_count("projection", self.projection)
            rule = "`pooled_norm` must be True if there is a `projection`, as in CLIP"
            require(self.pooled_norm, rule, self.pooled_norm)
        check_interval("norm_epsilon", self.norm_epsilon, 0, jnp.inf, ends="()")
        check_interval("drop_path", self.drop_path, 0, 1, ends="[)")
        named = (("activation", Activation), ("norm", Norm), ("compute_dtype", ComputeDtype))
        for name, kinds in named:
            names, value = kinds.__args__, getattr(self, name)
            require(value in names, f"`{name}` must be one of {', '.join(names)}", value)

    @property
    def grid(self) -> int:
        """The number of patches along a side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """P, the number of patches of a picture."""
        return self.grid**2


@dataclass(frozen=True, kw_only=True)
class MultimodalConfig:
    """A language model whose image tokens are replaced by projected features of a vision tower.

    LLaVA-1.5 (2310.03744): the features of CLIP's last layer but one, without the class token,
    through two layers. InternVL2.5 (2412.05271): the features of InternViT's last layer, four
    neighbouring patches as one (`shuffle=2`), through a norm and two layers.

    Raises:
        ValueError: if the text network is bidirectional or conditioned on time; if the image token
            is no token of it; if the layer is none of the tower's; if `shuffle` does not divide the
            number of patches along a side.
    """

    text: TransformerConfig
    vision: VisionConfig
    image_token: int  # each one stands for one projected feature
    feature_layer: int = -2  # the layer of the tower, counted from its end
    with_class: bool = False  # whether the class token's feature is given too, as the first
    shuffle: int = 1  # s × s neighbouring patches become one feature
    projector_norm: bool = False
    projector_bias: bool = True

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        text, layers = self.text, self.vision.num_layers
        require(text.causal, "`text.causal` must be True", text.causal)
        timed = text.time_conditioned
        require(not timed, "`text.time_conditioned` must be False", timed)
        rule = f"`image_token` must be an id in [0, {text.states - 1}]"
        require(0 <= self.image_token < text.states, rule, self.image_token)
        rule = f"`feature_layer` must be in [-{layers + 1}, -1], because the tower has {layers}"
        require(-layers - 1 <= self.feature_layer <= -1, rule, self.feature_layer)
        check_count("shuffle", self.shuffle)
        grid = self.vision.grid
        rule = f"`shuffle` must divide {grid}, the number of patches along a side"
        require(grid % self.shuffle == 0, rule, self.shuffle)
        rule = (
            "`with_class` must be False if `shuffle` is above 1, because only patches have places"
        )
        require(not (self.with_class and self.shuffle > 1), rule, self.with_class)
        one = self.vision.compute_dtype == text.compute_dtype
        rule = f"`vision.compute_dtype` must be the text's, {text.compute_dtype}"
        require(one, rule, self.vision.compute_dtype)

    @property
    def features_per_picture(self) -> int:
        """The number of image tokens that a picture needs."""
        return self.vision.num_patches // self.shuffle**2 + self.with_class
