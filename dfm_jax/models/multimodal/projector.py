"""From features of a vision tower to rows of a language model's embedding."""

import flax.linen as nn

from dfm_jax.models.linear import Linear
from dfm_jax.models.multimodal.config import MultimodalConfig
from dfm_jax.models.multimodal.tower import VisionNorm, real_dtype
from dfm_jax.types import Array


def pixel_shuffle(patches: Array, side: int) -> Array:
    """Join side × side neighbouring patches: [G², C] → [(G / side)², side² C].

    Patch (a, b) of the result holds the patches (side a + i, side b + j), ordered by i and then j.
    """
    grid = round(patches.shape[0] ** 0.5)
    rest = grid // side
    parted = patches.reshape(rest, side, rest, side, -1).swapaxes(1, 2)
    return parted.reshape(rest * rest, -1)


class MultimodalProjector(nn.Module):
    """(norm,) W_2 gelu(W_1 f + b_1) + b_2, for each feature."""

    config: MultimodalConfig

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Map the features of one picture [1 + P, F] to [T, width]."""
        config = self.config
        width, dtype = config.text.width, config.text.compute_dtype
        h = features if config.with_class else features[1:]
        if config.shuffle > 1:
            h = pixel_shuffle(h, config.shuffle)
        if config.projector_norm:
            h = VisionNorm(config.vision, "layer", 1e-5, name="layer_norm")(h)
        options = {
            "use_bias": config.projector_bias,
            "dtype": dtype,
            "param_dtype": real_dtype(config.vision),
            "kernel_init": nn.initializers.lecun_normal(),
        }
        h = nn.gelu(Linear(width, name="linear_1", **options)(h), approximate=False)
        return Linear(width, name="linear_2", **options)(h)
