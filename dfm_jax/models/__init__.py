"""Networks as pairs of pure functions, and pretrained weights read from files."""

from dfm_jax.models.config import TransformerConfig as TransformerConfig
from dfm_jax.models.network import Network as Network
from dfm_jax.models.network import Params as Params
from dfm_jax.models.trunk import transformer as transformer
