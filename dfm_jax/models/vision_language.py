"""A language model that reads a picture first: frozen features, projector, causal transformer.

    features [P, F] → W_2 gelu(W_1 f + b_1) + b_2, P vectors → a prefix of the transformer → answers

Without an `ImageEncoder` the network reads features of a frozen encoder (LLaVA, 2304.08485). With
an `ImageEncoder` it reads pictures and trains the encoder too (InternVL, 2312.14238). Row i of the
logits is the distribution of the token after x^i, given the picture and x^{≤i}.  [A5]
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfm_jax.checks import check_count, require
from dfm_jax.interfaces import Decoder, Params
from dfm_jax.models.batched_decoder import batched_decoder
from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.layers import real_dtype
from dfm_jax.models.trunk import (
    Cache,
    Transformer,
    check_sequence,
    prompt_reader,
    transformer_decoder,
)
from dfm_jax.types import Array, Key, as_ids


class VisionLanguage(NamedTuple):
    """`init(key) -> params`, `apply(params, features, x_t, *, key=None) -> logits [N, V]`.

    Both functions take one picture [P, F] and one sequence [N]. The parameters are `projector` and
    `decoder`; `decoder` has the parameters of `transformer(config)`, which may be pretrained.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Array]


class ImageEncoder(NamedTuple):
    """An encoder from a picture to features: `encode(params, picture) -> [P, F]`."""

    init: Callable[[Key], Params]  # a pretrained one needs no key, and gives what it is
    encode: Callable[[Params, Array], Array]


class Projector(nn.Module):
    """Two layers of the transformer's width, in the form of LLaVA-1.5 (2310.03744)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Map [P, F] to [P, width]."""
        width, dtype = self.config.width, real_dtype(self.config)
        h = nn.Dense(width, param_dtype=dtype, name="layers_0")(features.astype(dtype))
        return nn.Dense(width, param_dtype=dtype, name="layers_1")(nn.gelu(h, approximate=False))


def vision_language(
    config: TransformerConfig, num_features: int, encoder: ImageEncoder | None = None
) -> VisionLanguage:
    """Projector and causal transformer as one network.

    Args:
        config: The config of the transformer; `max_positions` bounds patches and tokens together.
        num_features: F, the number of features of a patch.
        encoder: An encoder to include in the network, with parameters `params["encoder"]`;
            `features` is then a picture.

    Raises:
        ValueError: if the transformer is bidirectional or conditioned on time; in a call, if the
            features are not [P, F].
    """
    _check_causal(config)
    check_count("num_features", num_features)
    projector = Projector(config)

    @jax.jit
    def init(key: Key) -> Params:
        first, second, *third = jax.random.split(key, 2 if encoder is None else 3)
        start, tokens = jnp.array(0), jnp.zeros(1, int)
        seen = {} if encoder is None else {"encoder": encoder.init(third[0])}
        return seen | {
            "projector": projector.init(first, jnp.zeros((1, num_features)))["params"],
            "decoder": Transformer(config).init(second, tokens, None, None, start)["params"],
        }

    def apply(params: Params, features: Array, x_t: Array, *, key: Key | None = None) -> Array:
        features = _seen(encoder, params, features)
        _check_features(features, num_features)
        check_sequence(x_t, config, before=features.shape[0])
        key = key if config.dropout > 0 else None
        rngs = None if key is None else {"dropout": key}
        module = Transformer(config, deterministic=key is None)
        prefix = projector.apply({"params": params["projector"]}, features)
        variables, start = {"params": params["decoder"]}, jnp.array(0)
        x_t = jnp.asarray(as_ids(x_t, "x_t"))
        logits, _ = module.apply(variables, x_t, None, None, start, prefix, rngs=rngs)
        return logits

    return VisionLanguage(init, apply)


@functools.cache  # the same decoder for the same config: what was compiled for it is found again
def vision_language_decoder(
    config: TransformerConfig,
    num_patches: int,
    num_features: int,
    encoder: ImageEncoder | None = None,
) -> Decoder:
    """`vision_language` with a key-value cache, for `sample_autoregressive(…, prefixes=features)`.

    Raises:
        ValueError: as `vision_language` and `transformer_decoder`.
    """
    check_count("num_patches", num_patches)
    check_count("num_features", num_features)
    of_text, module, projector = transformer_decoder(config), Transformer(config), Projector(config)

    def init_cache(length: int) -> Cache:
        check_count("length", length)
        return of_text.init_cache(num_patches + length)

    def read_prefix(params: Params, cache: Cache, features: Array) -> Cache:
        features = _seen(encoder, params, features)
        _check_features(features, num_features)
        rule = f"`prefixes` must have {num_patches} patches"
        require(features.shape[0] == num_patches, rule, features.shape, name="features.shape")
        prefix = projector.apply({"params": params["projector"]}, features)
        nothing, variables = jnp.zeros(0, int), {"params": params["decoder"]}
        _, memory = module.apply(variables, nothing, None, cache.memory, cache.count, prefix)
        return Cache(memory, cache.count + num_patches)

    def extend(
        params: Params, cache: Cache, tokens: Array, num_new: Array | None = None
    ) -> tuple[Array, Cache]:
        return of_text.extend(params["decoder"], cache, tokens, num_new)

    def weights_of(params: Params) -> Params:
        return params["decoder"]

    batched = batched_decoder(config, init_cache, prompt_reader(config), read_prefix, weights_of)
    return Decoder(init_cache, extend, config.states, read_prefix, batched)


def _seen(encoder: ImageEncoder | None, params: Params, picture: Array) -> Array:
    return picture if encoder is None else encoder.encode(params["encoder"], picture)


def _check_causal(config: TransformerConfig) -> None:
    rule = "`causal` must be True, because answers are written from left to right"
    require(config.causal, rule, config.causal)
    rule = "`time_conditioned` must be False, because the length of the prefix is the time"
    require(not config.time_conditioned, rule, config.time_conditioned)


def _check_features(features: Array, num_features: int) -> None:
    shape = jnp.shape(features)
    rule = f"`features` must have the shape [P, {num_features}]"
    good = len(shape) == 2 and shape[1] == num_features
    require(good, rule, shape, name="features.shape")
