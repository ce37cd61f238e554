"""Language models that read pictures: vision towers, projectors, image tokens in the text."""

from dfm_jax.models.multimodal.config import MultimodalConfig as MultimodalConfig
from dfm_jax.models.multimodal.config import VisionConfig as VisionConfig
from dfm_jax.models.multimodal.network import Multimodal as Multimodal
from dfm_jax.models.multimodal.network import multimodal as multimodal
from dfm_jax.models.multimodal.network import multimodal_decoder as multimodal_decoder
from dfm_jax.models.multimodal.projector import pixel_shuffle as pixel_shuffle
from dfm_jax.models.multimodal.sizes import flops_per_picture as flops_per_picture
from dfm_jax.models.multimodal.sizes import flops_per_row as flops_per_row
from dfm_jax.models.multimodal.sizes import num_multimodal_parameters as num_multimodal_parameters
from dfm_jax.models.multimodal.sizes import num_vision_parameters as num_vision_parameters
from dfm_jax.models.multimodal.systems import SYSTEMS as SYSTEMS
from dfm_jax.models.multimodal.tower import VisionTower as VisionTower
from dfm_jax.models.multimodal.tower import vision_tower as vision_tower
