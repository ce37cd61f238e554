"""A language model that reads pictures anywhere in its text: LLaVA-1.5 and InternVL2.5.

    picture → tower → (pixel shuffle) → projector → T rows in the place of T image tokens → text

Row i of the logits is the distribution of the token after x^i, given the pictures and x^{≤i}. [A5]
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_tokens, require
from dfm_jax.interfaces import Decoder, Params
from dfm_jax.models.batched_decoder import batched_decoder
from dfm_jax.models.multimodal.config import MultimodalConfig
from dfm_jax.models.multimodal.projector import MultimodalProjector
from dfm_jax.models.multimodal.tower import applied, vision_tower
from dfm_jax.models.trunk import (
    Cache,
    Inserted,
    Transformer,
    check_fits,
    check_sequence,
    transformer_decoder,
)
from dfm_jax.types import Array, Key, as_ids


class Multimodal(NamedTuple):
    """The functions of the network, for one sequence and its pictures.

    `init(key) -> params`, which are `vision_tower`, `multi_modal_projector` and `language_model`.

    `apply(params, tokens [N], pictures [I, H, W, 3], *, segments=None, key=None) -> logits [N, V]`:
    the image tokens stand for the features of the pictures, in order; I may be 0, and pictures
    beyond those that the tokens ask for are not seen. Tokens of another segment [N] are not seen
    either, and positions begin again in each segment.

    `embedded(params, pictures, *, key=None) -> [I · T, width]`: the rows that take the places.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Array]
    embedded: Callable[..., Array]


@functools.cache  # the same network for the same config: what was compiled for it is found again
def multimodal(config: MultimodalConfig) -> Multimodal:
    """The network of a config.

    Raises:
        ValueError: in a call, if the tokens ask for more pictures than there are.
    """
    tower, projector = vision_tower(config.vision), MultimodalProjector(config)
    text = config.text

    @jax.jit
    def init(key: Key) -> Params:
        first, second, third = jax.random.split(key, 3)
        start, tokens = jnp.array(0), jnp.zeros(1, int)
        features = jnp.zeros((1 + config.vision.num_patches, config.vision.width))
        return {
            "vision_tower": tower.init(first),
            "multi_modal_projector": projector.init(second, features)["params"],
            "language_model": Transformer(text).init(third, tokens, None, None, start)["params"],
        }

    def embedded(params: Params, pictures: Array, *, key: Key | None = None) -> Array:
        rule = "`pictures` must have four axes [I, H, W, 3]"
        require(jnp.ndim(pictures) == 4, rule, jnp.shape(pictures), name="pictures.shape")
        count = pictures.shape[0]
        if count == 0:
            return jnp.zeros((0, text.width), text.compute_dtype)

        def one(picture: Array, own: Key | None) -> Array:
            features = tower.features(
                params["vision_tower"], picture, config.feature_layer, key=own
            )
            return applied(projector, params["multi_modal_projector"], features)

        keys = None if key is None else jax.random.split(key, count)
        rows = jax.vmap(one, (0, None if keys is None else 0))(pictures, keys)
        return rows.reshape(-1, text.width)

    def apply(
        params: Params,
        tokens: Array,
        pictures: Array,
        *,
        segments: Array | None = None,
        key: Key | None = None,
    ) -> Array:
        check_sequence(tokens, text)
        tokens = jnp.asarray(as_ids(tokens, "tokens"))
        of_tower, of_text = (None, None) if key is None else jax.random.split(key)
        rows = embedded(params, pictures, key=of_tower)
        places = image_places(tokens, config)
        check_pictures(places, rows.shape[0] // config.features_per_picture, config)
        of_text = of_text if text.dropout > 0 else None
        module = Transformer(text, deterministic=of_text is None)
        rngs = None if of_text is None else {"dropout": of_text}
        variables, start = {"params": params["language_model"]}, jnp.array(0)
        inserted = Inserted(rows, places)
        logits, _ = module.apply(
            variables, tokens, None, None, start, inserted=inserted, segments=segments, rngs=rngs
        )
        return logits

    return Multimodal(init, apply, embedded)


def image_places(tokens: Array, config: MultimodalConfig, before: Any = 0) -> Array:
    """For each token [N], the row of the features that takes its place; −1 for a token of text."""
    image = tokens == config.image_token
    return jnp.where(image, before + jnp.cumsum(image) - 1, -1)


def check_pictures(places: Array, count: int, config: MultimodalConfig) -> None:
    """Check that the features of the pictures suffice for the image tokens."""
    each = config.features_per_picture
    if places.shape[0] == 0:
        return
    rule = f"The image tokens must be at most {each} for each picture, which is {count * each}"
    asked = jnp.max(places) + 1
    require(asked <= count * each, rule, asked, name="the number of image tokens")


# ── The decoder: the features of a prompt's pictures wait in the cache for their image tokens ─────


class MultimodalCache(NamedTuple):
    """The cache of the text, the rows of all pictures, and how many of them have been read."""

    text: Cache
    rows: Array  # [I · T, width]
    used: Array

    @property
    def count(self) -> Array:
        """The number of tokens in the cache."""
        return self.text.count


@functools.cache  # the same decoder for the same config: what was compiled for it is found again
def multimodal_decoder(config: MultimodalConfig) -> Decoder:
    """`multimodal` with a key-value cache, for `sample_autoregressive(…, prefixes=pictures)`.

    An image token is never drawn, because there is no picture for it: its logit is −∞, so a row is
    the distribution of the next token given that it is a token of text.

    Raises:
        ValueError: in a call, as `multimodal` and `transformer_decoder`.
    """
    network, of_text = multimodal(config), transformer_decoder(config.text)
    width, dtype = config.text.width, config.text.compute_dtype
    trunk, module = Transformer(config.text, headed=False), Transformer(config.text)

    def init_cache(length: int) -> MultimodalCache:
        return MultimodalCache(
            of_text.init_cache(length), jnp.zeros((0, width), dtype), jnp.array(0)
        )

    def read_prefix(params: Params, cache: MultimodalCache, pictures: Array) -> MultimodalCache:
        return cache._replace(rows=network.embedded(params, pictures))

    def read(
        module: Transformer, params: Params, cache: MultimodalCache, tokens: Array
    ) -> tuple[Array, Any, Array]:
        places = image_places(tokens, config, cache.used)
        check_pictures(places, cache.rows.shape[0] // config.features_per_picture, config)
        inserted = Inserted(cache.rows, places)
        of_text, variables = cache.text, {"params": params}
        out, memory = module.apply(
            variables, tokens, None, of_text.memory, of_text.count, inserted=inserted
        )
        return out, memory, places

    def extend(
        params: Params, cache: MultimodalCache, tokens: Array, num_new: Any = None
    ) -> tuple[Array, MultimodalCache]:
        check_tokens("tokens", tokens, config.text.states)
        tokens = jnp.asarray(as_ids(tokens, "tokens"))
        num_new = tokens.shape[0] if num_new is None else num_new
        check_fits(cache.text, num_new, config.text)
        logits, memory, places = read(module, params["language_model"], cache, tokens)
        new = jnp.arange(tokens.shape[0]) < num_new
        used = cache.used + jnp.sum(new & (places >= 0))
        return of_text_alone(logits), MultimodalCache(
            Cache(memory, cache.count + num_new), cache.rows, used
        )

    def hidden(params: Params, cache: MultimodalCache, tokens: Array) -> tuple[Array, Any]:
        return read(trunk, params, cache, tokens)[:2]

    def weights_of(params: Params) -> Params:
        return params["language_model"]

    def of_text_alone(logits: Array) -> Array:
        image = jnp.arange(logits.shape[-1]) == config.image_token
        return jnp.where(image.reshape((1,) * (logits.ndim - 1) + (-1,)), -jnp.inf, logits)

    whole = batched_decoder(config.text, init_cache, hidden, read_prefix, weights_of)

    def batched_read(*args: Any, **options: Any) -> tuple[Array, Any]:
        logits, memory = whole.read(*args, **options)
        return of_text_alone(logits), memory

    def batched_step(*args: Any) -> tuple[Array, Any]:
        logits, memory = whole.step(*args)
        return of_text_alone(logits), memory

    batched = whole._replace(read=batched_read, step=batched_step)
    return Decoder(init_cache, extend, config.text.states, read_prefix, batched)
