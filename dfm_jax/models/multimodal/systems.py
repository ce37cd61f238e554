"""The two systems of the paper at their real sizes: LLaVA-1.5-7B and InternVL2.5-1B."""

from collections.abc import Mapping
from types import MappingProxyType

from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.multimodal.config import MultimodalConfig, VisionConfig

# What both need on an accelerator. None of it changes a parameter.
_AT_SIZE = {"scan_layers": True, "remat": True, "compute_dtype": "bfloat16"}

SYSTEMS: Mapping[str, MultimodalConfig] = MappingProxyType(
    {
        "llava-1.5-7b": MultimodalConfig(
            text=TransformerConfig(  # Vicuna-1.5-7B with 64 more rows, as Hugging Face stores it
                num_tokens=32_064,
                width=4096,
                num_layers=32,
                num_heads=32,
                ffn_width=11_008,
                max_positions=4096,
                tied=False,
                **_AT_SIZE,
            ),
            vision=VisionConfig(  # CLIP ViT-L/14 at 336 pixels
                image_size=336,
                patch_size=14,
                width=1024,
                num_layers=24,
                num_heads=16,
                ffn_width=4096,
                **_AT_SIZE,
            ),
            image_token=32_000,
        ),
        "internvl2.5-1b": MultimodalConfig(
            text=TransformerConfig(  # Qwen2.5-0.5B, whose head is here a matrix of its own
                num_tokens=151_674,
                width=896,
                num_layers=24,
                num_heads=14,
                num_kv_heads=2,
                ffn_width=4864,
                max_positions=32_768,
                tied=False,
                qkv_bias=True,
                rope_base=1e6,
                norm_epsilon=1e-6,
                **_AT_SIZE,
            ),
            vision=VisionConfig(  # InternViT-300M at 448 pixels
                image_size=448,
                patch_size=14,
                width=1024,
                num_layers=24,
                num_heads=16,
                ffn_width=4096,
                activation="gelu",
                norm_epsilon=1e-6,
                input_norm=False,
                patch_bias=True,
                layer_scale=True,
                pooled_norm=False,
                drop_path=0.1,
                **_AT_SIZE,
            ),
            image_token=151_667,
            feature_layer=-1,
            shuffle=2,
            projector_norm=True,
        ),
    }
)
"""Sizes as in the public checkpoints, in bfloat16, with scanned and recomputed layers."""
