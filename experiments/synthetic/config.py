"""What `synthetic` compares, as values: presets, the network, the training of its members."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.models import TransformerConfig
from dfm_jax.training.config import OptimizerConfig, TrainConfig

Encoder = Literal["efficientnet", "pixels", "clip"]
"""What frozen features are of: EfficientNet-Lite0, a CLIP that the user brings, or nothing."""
NUM_EXPERTS = 2
EXPERTS = ("context", "prominence", "random")
"""Partitions: by the question (OCR, or one of the others); by balanced clusters of pictures, which
see what is prominent; in random halves."""
TWICE = "twice"
"""A dense model of twice the parameters: as many tokens, about twice the FLOPs."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Two experts by three partitions, beside one model: the authors' synthetic study."""

    preset: Literal["quick", "standard", "paper"] = "quick"
    """The preset from which the other values start: a minute; a twentieth of the authors' items and
    a tenth of their epochs; their sizes, for an accelerator."""
    out: Path = Path("runs/synthetic")
    """The folder for result.json, metrics.jsonl, the picture, features, checkpoints and unfinished
    cells."""
    encoder: Encoder = "pixels"
    """The frozen encoder of the pictures: efficientnet; clip, see the next option; or pixels, which
    is none."""
    clip: Path | None = None
    """The Hugging Face folder of the CLIP, if the encoder is clip."""
    variants: tuple[str, ...] = (*EXPERTS, TWICE)
    """The variants beside the dense model: some of context, prominence, random, twice."""
    train_items: int = 512
    """The number of items to train on, each a picture with one question."""
    validation_items: int = 64
    """The number of items of the validation."""
    test_items: int = 64
    """The number of items of the test."""
    held_out_items: int = 128
    """The number of items that are held out, from a seed of their own; the tables are about
    them."""
    held_out_seed: int = 7
    """The seed of the items that are held out; that of the others is 0."""
    num_letters: int = 3
    """The number of letters of a word, of six."""
    num_features: int = 64
    """The largest number of features of a picture."""
    num_prefix: int = 4
    """The number of vectors that the features become, which stand before the question."""
    width: int = 32
    """The width of every model except that of twice the parameters."""
    num_layers: int = 2
    """The number of layers of every model."""
    num_heads: int = 4
    """The number of attention heads of every model."""
    dropout: float = 0.1
    """The dropout of both branches of a layer."""
    batch_size: int = 32
    """The number of items of a step of the dense model; an expert has half of them."""
    epochs: int = 4
    """The number of passes over the items; the steps of an epoch are whole batches."""
    rate: float = 3e-3
    """The peak learning rate of every member."""
    weight_decay: float = 0.01
    """The weight decay of matrices."""
    warmup: float = 0.03
    """The share of the steps in which the rate rises."""
    num_seeds: int = 1
    """The number of seeds; each draws new starts, batches and dropout; items and parts stay."""
    num_draws: int = 2_000
    """The number of bootstrap samples over items."""
    margin: float = 0.01
    """The margin of exact match; a smaller proven difference is called equivalent."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        encoder="efficientnet",
        train_items=7_500,
        validation_items=250,
        test_items=250,
        held_out_items=1_000,
        num_features=512,
        width=128,
        num_layers=4,
        batch_size=128,
        epochs=10,
        rate=1e-3,
        num_draws=10_000,
    ),
}
PRESETS["paper"] = replace(
    PRESETS["standard"],
    preset="paper",
    train_items=150_000,
    validation_items=5_000,
    test_items=5_000,
    held_out_items=20_000,
    epochs=50,
    rate=3e-4,
    num_seeds=3,
)


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    for name in config.variants:
        known = (*EXPERTS, TWICE)
        require(name in known, f"Each of `variants` must be one of {', '.join(known)}", name)
    once = len(set(config.variants)) == len(config.variants) > 0
    require(once, "`variants` must hold at least one name, and each name once", config.variants)
    given = (config.encoder == "clip") == (config.clip is not None)
    require(given, "`clip` must be given if, and only if, `encoder` is clip", config.clip)
    for name in ("validation_items", "test_items", "held_out_items"):
        check_count(name, getattr(config, name), at_least=2)
    for name in (
        *("num_letters", "num_features", "num_prefix", "width", "num_layers", "num_heads"),
        *("batch_size", "epochs", "num_seeds", "num_draws"),
    ):
        check_count(name, getattr(config, name))
    check_count("held_out_seed", config.held_out_seed)
    rule = f"`batch_size` must be a multiple of {NUM_EXPERTS}, the number of experts"
    require(config.batch_size % NUM_EXPERTS == 0, rule, config.batch_size)
    check_count("train_items", config.train_items, at_least=config.batch_size)
    sizes_of(config, 2, 2, width=config.width)  # which refuses sizes that no network can have
    check_interval("dropout", config.dropout, 0.0, 1.0, ends="[)")
    check_interval("rate", config.rate, 0.0, np.inf, ends="()")
    check_interval("weight_decay", config.weight_decay, 0.0, np.inf, ends="[)")
    check_interval("warmup", config.warmup, 0.0, 1.0)
    check_interval("margin", config.margin, 0.0, np.inf, ends="()")


def num_steps(config: Config) -> int:
    """The updates of the dense model, and of each expert with half of its batch."""
    return config.epochs * (config.train_items // config.batch_size)


def sizes_of(
    config: Config, num_tokens: int, num_positions: int, *, width: int
) -> TransformerConfig:
    """The sizes that `network.network_of` reads; of N tokens of an item it reads N − 1."""
    return TransformerConfig(
        num_tokens=num_tokens,
        width=width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        ffn_width=4 * width,
        max_positions=config.num_prefix + num_positions - 1,
        dropout=config.dropout,
    )


def member_config(
    config: Config, sizes: TransformerConfig, num_positions: int, batch_size: int
) -> TrainConfig:
    """How a member is trained, except its seed: AdamW as the authors', a cosine to 0."""
    steps = num_steps(config)
    optimizer = OptimizerConfig(
        learning_rate=config.rate,
        warmup_steps=max(1, round(config.warmup * steps)),
        final_fraction=0.0,
        weight_decay=config.weight_decay,
        b1=0.9,
        b2=0.95,
        max_norm=1.0,
    )
    return TrainConfig(
        model=sizes,
        optimizer=optimizer,
        num_steps=steps,
        batch_size=batch_size,
        num_positions=num_positions,
    )
