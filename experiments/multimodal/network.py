"""The networks of members of `multimodal`: how they read pictures, and how they start."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.checks import require
from dfm_jax.data import load_efficientnet_lite0, load_smollm2
from dfm_jax.interfaces import Decoder
from dfm_jax.models import (
    ImageEncoder,
    Params,
    TransformerConfig,
    VisionLanguage,
    efficientnet,
    vision_language,
    vision_language_decoder,
)
from dfm_jax.models.pretrained import checkpoint_params, open_folder, open_gguf, read_tokenizer
from dfm_jax.models.trunk import stack_layers
from dfm_jax.types import Array

_ENDS = ("<|im_end|>", "<|eot_id|>", "</s>", "<|endoftext|>")  # the first that a model knows


class Sight(NamedTuple):
    """P patches of F features; with `scale`, of pictures, and EfficientNet-Lite0 is trained."""

    num_patches: int
    num_features: int
    scale: float | None = None  # features are divided by it


def network_of(config: TransformerConfig, sight: Sight) -> VisionLanguage:
    """The network of a member."""
    return vision_language(config, sight.num_features, encoder_of(sight))


def decoder_of(config: TransformerConfig, sight: Sight) -> Decoder:
    """The network of a member with a cache."""
    return vision_language_decoder(config, *sight[:2], encoder_of(sight))


@cache  # decoders are found again by it
def encoder_of(sight: Sight) -> ImageEncoder | None:
    """The encoder that is trained, if there is one; it starts from its ImageNet weights."""
    if sight.scale is None:
        return None
    scale = sight.scale

    def encode(params: Params, picture: Array) -> Array:
        grid = efficientnet.grid_features(params, picture)
        return grid.reshape(-1, grid.shape[-1]) / scale

    return ImageEncoder(lambda key: load_efficientnet_lite0(), encode)


class Spelling(NamedTuple):
    """Text to ids and back, and the id that ends a question and an answer."""

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    end: int
    num_tokens: int  # V, END included


class Start(NamedTuple):
    """A pretrained language model, whose text and parameters every variant takes over."""

    config: TransformerConfig
    params: Params
    spelling: Spelling


def load_start(checkpoint: str, *, large: bool) -> Start:
    """A checkpoint of Llama's type: `smollm2`, a GGUF file, or a folder as Hugging Face has it.

    Args:
        checkpoint: The name or the path of the checkpoint.
        large: If True, scan and recompute its layers, and multiply in bfloat16.

    Raises:
        MissingDataError: if the package of SmolLM2 is not installed.
        ValueError: if the file is damaged or of another type; if it has no token that ends a text.
    """
    if checkpoint == "smollm2":
        config, params, tokenizer = load_smollm2()
    else:
        path = Path(checkpoint)
        rule = "`checkpoint` must be smollm2, or a GGUF file or a folder that exists"
        require(path.exists(), rule, checkpoint)
        opened = open_folder(path) if path.is_dir() else open_gguf(path)
        config, params, tokenizer = opened.config, checkpoint_params(opened), read_tokenizer(opened)
    ends = [tokenizer.special[name] for name in _ENDS if name in tokenizer.special]
    rule, special = f"`checkpoint` must have one of the tokens {_ENDS}", [*tokenizer.special]
    require(len(ends) > 0, rule, special, name="special tokens")
    most = config.num_tokens
    rule = f"The tokenizer of `checkpoint` must have at most {most} ids, as its config says"
    require(tokenizer.num_tokens <= most, rule, tokenizer.num_tokens, name="ids")
    spelling = Spelling(
        lambda text: [int(i) for i in tokenizer.encode(text)],
        tokenizer.decode,
        ends[0],
        config.num_tokens,
    )
    if large:
        config, params = at_large(config), stack_layers(params)
    return Start(config, params, spelling)


def at_large(config: TransformerConfig) -> TransformerConfig:
    """The same network with the options for accelerators."""
    return replace(config, scan_layers=True, remat=True, compute_dtype="bfloat16")


def starts_from(
    config: TransformerConfig, sight: Sight, decoder: Params
) -> Callable[[Sequence[int]], Params]:
    """Seeds → parameters [R, …]: a new projector for each seed, the rest as pretrained."""
    network = network_of(config, sight)

    def begin(seeds: Sequence[int]) -> Params:
        projectors = jax.vmap(lambda seed: network.init(jax.random.key(seed))["projector"])(
            jnp.array(seeds)
        )
        encoder = encoder_of(sight)
        same: dict[str, Any] = {"decoder": decoder}
        if encoder is not None:
            same["encoder"] = encoder.init(jax.random.key(0))
        count = len(seeds)
        stacked = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), same)
        return {"projector": projectors, **stacked}

    return begin
