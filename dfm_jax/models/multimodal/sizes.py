"""The number of parameters and FLOPs of towers and of language models that read pictures."""

from dfm_jax.checks import check_count
from dfm_jax.models.multimodal.config import MultimodalConfig, VisionConfig
from dfm_jax.models.sizes import flops_per_token, num_parameters


def num_vision_parameters(config: VisionConfig) -> int:
    """The number of parameters of a tower, with the layers and the norm that no feature needs.

    It is L (4 w² + 2 w f + 2 w + f + 2 n) + 3 p² w + w + (1 + P) w for the layers, the patches of
    p × p pixels, the class token and the positions, where w is the width, f the width of the MLP,
    and n that of a norm's parameters. Biases of q, k and v, norms of q and k, a layer scale, a bias
    of the patches, norms around the layers and a projection are added where the config has them.
    """
    width, ffn = config.width, config.ffn_width
    norm = width * (2 if config.norm == "layer" else 1)
    layer = 4 * width**2 + 2 * width * ffn + 2 * width + ffn + 2 * norm
    layer += (
        3 * width * config.qkv_bias + 2 * width * config.qk_norm + 2 * width * config.layer_scale
    )
    patches = 3 * config.patch_size**2 * width + width * config.patch_bias
    places = width + (1 + config.num_patches) * width
    norms = norm * (config.input_norm + config.pooled_norm)
    return config.num_layers * layer + patches + places + norms + width * (config.projection or 0)


def num_projector_parameters(config: MultimodalConfig) -> int:
    """The number of parameters between the tower and the text."""
    inputs, width = config.vision.width * config.shuffle**2, config.text.width
    biases = 2 * width * config.projector_bias
    return inputs * width + width**2 + biases + 2 * inputs * config.projector_norm


def num_multimodal_parameters(config: MultimodalConfig) -> int:
    """The number of parameters of `multimodal(config)`."""
    parts = num_vision_parameters(config.vision), num_projector_parameters(config)
    return sum(parts) + num_parameters(config.text)


def flops_per_picture(config: MultimodalConfig) -> float:
    """FLOPs of the forward pass of tower and projector for one picture.

    Matrix products count, with 2 FLOPs per multiplication and addition: the layers that the chosen
    features need, their attention over 1 + P positions, the patches, and the projector.
    """
    vision, text = config.vision, config.text
    count, width = 1 + vision.num_patches, vision.width
    layers = vision.num_layers + 1 + config.feature_layer
    kernels = 4 * width**2 + 2 * width * vision.ffn_width
    tower = layers * count * (kernels + 2 * count * width)
    tower += vision.num_patches * 3 * vision.patch_size**2 * width
    projected = width * config.shuffle**2 * text.width + text.width**2
    return 2 * (tower + config.features_per_picture * projected)


def flops_per_row(config: MultimodalConfig, length: int, num_pictures: int) -> float:
    """FLOPs of the forward pass of a row of `length` tokens, image tokens among them.

    Training takes 3 times this, if all parts are trained.

    Raises:
        ValueError: if a number is negative, or the length is 0.
    """
    check_count("num_pictures", num_pictures, at_least=0)
    of_text = length * flops_per_token(config.text, length)
    return of_text + num_pictures * flops_per_picture(config)
