"""What `multimodal` compares, as values: presets, variants, members and their training."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.models import TransformerConfig
from dfm_jax.training.config import OptimizerConfig, TrainConfig
from experiments.language.config import Variant, parsed_variant
from experiments.multimodal.data import Encoder
from experiments.multimodal.network import at_large
from experiments.multimodal.sets import SETS

KINDS = ("cluster", "task", "random", "warm", "two_stage", "unbalanced")
"""Clusters of pictures, balanced; by family of questions; pictures at random; clusters again, each
expert going on from a model of everything, which took half of the steps; clusters of clusters;
clusters as they fall."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Experts of questions about pictures, and one model of all of them."""

    preset: Literal["quick", "standard", "tpu", "tpu-encoder"] = "quick"
    """The preset from which the other values start: some minutes; at most three hours; SmolLM2
    behind a frozen encoder, or behind one that is trained too, for accelerators."""
    out: Path = Path("runs/multimodal")
    """The folder for result.json, metrics.jsonl, pictures, features, checkpoints and unfinished
    cells."""
    sets: tuple[str, ...] = ("lettered",)
    """The data sets: some of easy-vqa, scenes, lettered."""
    conversations: Path | None = None
    """One more data set: a file of conversations as LLaVA and InternVL train on."""
    images: Path | None = None
    """The folder of the pictures of that file."""
    train_pictures: int = 800
    """The number of pictures of a set to train on."""
    validation_pictures: int = 100
    """The number of pictures on which rates and temperatures are chosen."""
    test_pictures: int = 200
    """The number of pictures of the test."""
    test_questions: int = 200
    """The largest number of questions of the test."""
    num_emoji: int = 8
    """The largest number of emoji of each group, for scenes; one in four is held out."""
    encoder: Encoder = "efficientnet"
    """The encoder of the pictures: efficientnet; random, which is efficientnet untrained; or
    pixels, which is none."""
    variants: tuple[str, ...] = ("cluster:4", "task:4", "random:4", "warm:4")
    """The variants, KIND:K with KIND one of cluster, task, random, warm, two_stage, unbalanced; K
    is at
    most the number of families of a set."""
    exploratory: tuple[str, ...] = ()
    """The variants of the first set of which only one seed is trained, with K as it is given."""
    encoders: tuple[Encoder, ...] = ()
    """Other encoders, tried on the first set with one seed: the dense model and the first
    variant.
    """
    train_encoder: bool = False
    """Train the encoder with each member, as InternVL does; the clusters are those of the frozen
    one."""
    checkpoint: str = ""
    """The language model from which every member starts: smollm2, a GGUF file, or a Hugging Face
    folder; by default none. Its sizes and tokens replace those below."""
    num_tokens: int = 384
    """The largest number of byte-pair tokens."""
    width: int = 64
    """The width of every model."""
    num_layers: int = 2
    """The number of layers of every model."""
    num_heads: int = 4
    """The number of attention heads of every model."""
    batch_size: int = 16
    """The number of questions of a step."""
    micro_batches: int = 1
    """The number of parts of a step's questions that are in memory one at a time."""
    large: bool = False
    """Scan and recompute the layers, and multiply in bfloat16: for accelerators."""
    budgets: tuple[int, ...] = (100, 200, 400)
    """The numbers of steps of the dense model that are tried before any expert is trained. The
    variants are compared at the one whose accuracy on validation is nearest to the middle of
    `between`; the largest is near saturation."""
    between: tuple[float, float] = (0.6, 0.85)
    """The range of the dense model's accuracy in which variants can be told apart."""
    saturated: bool = False
    """Compare the variants at the largest budget too, with one seed."""
    rates: tuple[float, ...] = (3e-3,)
    """The learning rates; each member takes the best one on validation, at the first seed."""
    warmup: float = 0.05
    """The share of a member's steps that is its warm-up."""
    num_directions: int = 64
    """The number of principal directions of a picture's features that the router reads."""
    decays: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    """The weight decays of the router; the best one on validation is taken."""
    num_seeds: int = 1
    """The number of seeds; each draws new starts and batches; questions and parts stay."""
    num_devices: int = 1
    """The number of devices over which the runs of a member are divided."""
    num_draws: int = 2_000
    """The number of bootstrap samples over pictures."""
    margin: float = 0.01
    """The margin of accuracy; a smaller proven difference is called equivalent."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        sets=("lettered", "easy-vqa", "scenes"),
        train_pictures=3500,
        validation_pictures=400,
        test_pictures=600,
        test_questions=500,
        exploratory=("cluster:4", "cluster:8", "two_stage:2", "unbalanced:2"),
        encoders=("random", "pixels"),
        num_tokens=512,
        width=96,
        num_layers=3,
        budgets=(100, 200, 400, 800, 1600),
        saturated=True,
        rates=(2e-3, 4e-3),
        num_seeds=3,
        num_draws=10_000,
    ),
}


PRESETS["tpu"] = replace(
    PRESETS["standard"],
    preset="tpu",
    checkpoint="smollm2",
    batch_size=128,
    micro_batches=4,
    large=True,
    budgets=(250, 500, 1000, 2000, 4000),
    rates=(1e-4, 3e-4),
)
PRESETS["tpu-encoder"] = replace(
    PRESETS["tpu"], preset="tpu-encoder", train_encoder=True, encoders=()
)


def variant_of(text: str) -> Variant:
    """The variant written as KIND:K.

    Raises:
        ValueError: if the text does not have this form.
    """
    return parsed_variant(text, KINDS, alone=())


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    known = set(config.sets) <= set(SETS)
    require(known, f"Each of `sets` must be one of {', '.join(SETS)}", config.sets)
    some = len(config.sets) > 0 or config.conversations is not None
    require(some, "`sets` must not be empty unless `conversations` is given", config.sets)
    given = config.images is None or config.conversations is not None
    require(given, "`images` must only be given together with `conversations`", config.images)
    frozen = not config.train_encoder or config.encoder == "efficientnet"
    rule = "`encoder` must be efficientnet if `train_encoder` is set"
    require(frozen, rule, config.encoder)
    alone = not config.train_encoder or not config.encoders
    require(alone, "`encoders` must be empty if `train_encoder` is set", config.encoders)
    rule = f"`micro_batches` must divide `batch_size`, which is {config.batch_size}"
    check_count("micro_batches", config.micro_batches)
    check_count("batch_size", config.batch_size)
    require(config.batch_size % config.micro_batches == 0, rule, config.micro_batches)
    require(len(config.variants) > 0, "`variants` must not be empty", config.variants)
    for name in (*config.variants, *config.exploratory):
        variant_of(name)
    for name in (
        *("train_pictures", "validation_pictures", "test_pictures", "test_questions"),
        *("width", "num_layers", "num_heads", "batch_size", "num_directions"),
        *("num_seeds", "num_devices", "num_draws"),
    ):
        check_count(name, getattr(config, name))
    check_count("num_emoji", config.num_emoji, at_least=4)
    for name in ("rates", "decays", "budgets"):
        require(len(getattr(config, name)) > 0, f"`{name}` must not be empty", ())
    for steps in config.budgets:
        check_count("budgets", steps)
    low, high = config.between
    rule = "`between` must be two numbers low and high with 0 ≤ low ≤ high ≤ 1"
    require(0 <= low <= high <= 1, rule, config.between)
    check_interval("rates", np.array(config.rates), 0.0, np.inf, ends="()")
    check_interval("decays", np.array(config.decays), 0.0, np.inf, ends="[)")
    check_interval("warmup", config.warmup, 0.0, 1.0)
    check_interval("margin", config.margin, 0.0, np.inf, ends="()")


def small_model(config: Config, num_tokens: int) -> TransformerConfig:
    """The network of members that are not pretrained."""
    model = TransformerConfig(
        num_tokens=num_tokens,
        width=config.width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        ffn_width=8 * (config.width // 3),
    )
    return at_large(model) if config.large else model


def member_config(
    config: Config, model: TransformerConfig, num_positions: int, num_steps: int
) -> TrainConfig:
    """How a member is trained, except its rate and its seed."""
    return replace(
        TrainConfig(model=model),
        optimizer=OptimizerConfig(warmup_steps=max(1, round(config.warmup * num_steps))),
        num_steps=num_steps,
        batch_size=config.batch_size,
        num_micro_batches=config.micro_batches,
        num_positions=num_positions,
    )
