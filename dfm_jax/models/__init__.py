"""Networks as pairs of pure functions, and pretrained weights read from files."""

from dfm_jax.interfaces import Network as Network
from dfm_jax.interfaces import Params as Params
from dfm_jax.models.adapters import network_from_equinox as network_from_equinox
from dfm_jax.models.adapters import network_from_linen as network_from_linen
from dfm_jax.models.adapters import network_from_nnx as network_from_nnx
from dfm_jax.models.config import TransformerConfig as TransformerConfig
from dfm_jax.models.sizes import SIZES as SIZES
from dfm_jax.models.sizes import flops_per_token as flops_per_token
from dfm_jax.models.sizes import num_parameters as num_parameters
from dfm_jax.models.small_networks import mlp as mlp
from dfm_jax.models.small_networks import tabular as tabular
from dfm_jax.models.trunk import router as router
from dfm_jax.models.trunk import stack_layers as stack_layers
from dfm_jax.models.trunk import transformer as transformer
from dfm_jax.models.trunk import transformer_decoder as transformer_decoder
from dfm_jax.models.trunk import transformer_denoiser as transformer_denoiser
from dfm_jax.models.trunk import unstack_layers as unstack_layers
from dfm_jax.models.vision_language import ImageEncoder as ImageEncoder
from dfm_jax.models.vision_language import VisionLanguage as VisionLanguage
from dfm_jax.models.vision_language import vision_language as vision_language
from dfm_jax.models.vision_language import vision_language_decoder as vision_language_decoder
