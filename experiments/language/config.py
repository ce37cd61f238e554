"""What `language` compares, as values: presets, variants by name, networks and their training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.models import TransformerConfig
from dfm_jax.training.config import OptimizerConfig, TrainConfig

KINDS = ("domain", "cluster", "random", "unbalanced", "warm")
"""By domain; clusters balanced by tokens; at random; clusters as they fall; clusters again, each
expert going on from a model of all the text, which took half of the steps."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One ensemble to compare with the dense model."""

    kind: str
    num_experts: int | None  # None: one a domain

    @property
    def name(self) -> str:
        """The name as it is written: `cluster:4`."""
        return self.kind if self.num_experts is None else f"{self.kind}:{self.num_experts}"


def parsed_variant(
    text: str, kinds: Sequence[str] = KINDS[1:], *, alone: Sequence[str] = KINDS[:1]
) -> Variant:
    """The variant written as `domain` or `KIND:K`.

    Args:
        text: The text of one variant.
        kinds: The kinds that have a K.
        alone: The kinds that have none.

    Raises:
        ValueError: if the text has neither form.
    """
    kind, sign, number = text.partition(":")
    first = "".join(f"`{name}`, or " for name in alone)
    rule = f"Each of `variants` must be {first}KIND:K with KIND one of {', '.join(kinds)}"
    good = (kind in alone and not sign) or (kind in kinds and number.isdecimal())
    require(good, rule, text, name="variant")
    if not sign:
        return Variant(kind=kind, num_experts=None)
    check_count("K of a variant", int(number), at_least=2)
    return Variant(kind=kind, num_experts=int(number))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Experts trained apart on real text, and one model trained on all of it."""

    preset: Literal["quick", "standard", "tpu", "tpu-1b"] = "quick"
    """The preset from which the other values start: a minute, two hours, or experts of 124 million
    and of a billion parameters, for accelerators: one variant a process, on as many chips as
    `num-devices`."""
    out: Path = Path("runs/language")
    """The folder for result.json, metrics.jsonl, the picture, checkpoints and unfinished cells."""
    folders: tuple[Path, ...] = ()
    """Folders of text that become more domains; every file is a document."""
    domain_bytes: int = 200_000
    """The largest number of bytes of each domain, in whole documents; 0 takes all."""
    variants: tuple[str, ...] = ("domain", "cluster:4", "random:4")
    """The variants: `domain`, or KIND:K with KIND one of cluster (balanced by tokens), unbalanced,
    random, warm (clusters, after half of the steps on all of the text)."""
    single_seed: tuple[str, ...] = ()
    """The variants of which only the first seed is trained."""
    controls: tuple[str, ...] = ()
    """The variants that are compared with single models too: the average of the experts'
    parameters,
    and a dense model with one expert's number of steps."""
    num_tokens: int = 512
    """The number V of byte-pair tokens."""
    width: int = 64
    """The width of every model."""
    num_layers: int = 2
    """The number of layers of every model."""
    num_heads: int = 2
    """The number of attention heads of every model."""
    num_positions: int = 64
    """The number of tokens in a window."""
    batch_size: int = 16
    """The number of windows of a step."""
    micro_batches: int = 1
    """The number of parts of a step's windows that are in memory one at a time."""
    large: bool = False
    """Scan and recompute the layers, and multiply in bfloat16: for accelerators."""
    training_tokens: int = 250_000
    """The number of training tokens of a variant, for any number of experts."""
    rates: tuple[float, ...] = (1e-2,)
    """The learning rates; each member takes the best one on validation, at the first seed."""
    warmup: float = 0.05
    """The share of a member's steps that is its warm-up."""
    router_width: int = 32
    """The width of the router that reads the prefix."""
    router_layers: int = 1
    """The number of layers of that router."""
    router_share: float = 0.25
    """The number of steps of that router, as a share of the dense model's."""
    prefixes: tuple[int, ...] = (4, 16)
    """The numbers of tokens after which a gate is kept."""
    num_features: int = 64
    """The number of features of a document and of a context: TF-IDF of its words and SVD."""
    decays: tuple[float, ...] = (1e-5, 1e-4, 1e-3)
    """The weight decays of the router; the best one on validation is taken."""
    alphas: tuple[float, ...] = (0.001, 0.01, 0.1)
    """The switching probabilities of fixed-share; the best one on validation is taken."""
    num_seeds: int = 1
    """The number of seeds; each draws new starts and batches; documents and parts stay."""
    num_devices: int = 1
    """The number of devices over which the runs of a member are divided."""
    num_draws: int = 2_000
    """The number of bootstrap samples over documents."""
    margin: float = 0.01
    """The margin in nats per byte; a smaller proven difference is called equivalent."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        domain_bytes=800_000,
        variants=(
            *("domain", "cluster:2", "cluster:4", "cluster:8", "random:4", "warm:4"),
            "unbalanced:4",
        ),
        single_seed=("unbalanced:4",),
        controls=("cluster:4", "warm:4"),
        num_tokens=2048,
        width=128,
        num_layers=4,
        num_heads=4,
        num_positions=128,
        batch_size=8,
        training_tokens=1_000_000,
        rates=(2e-3, 4e-3, 8e-3),
        router_width=64,
        router_layers=2,
        prefixes=(4, 16, 64),
        alphas=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
        num_seeds=3,
        num_draws=10_000,
    ),
}
PRESETS["tpu"] = replace(
    PRESETS["standard"],
    preset="tpu",
    domain_bytes=0,
    num_tokens=50_304,
    width=768,
    num_layers=12,
    num_heads=12,
    num_positions=1024,
    batch_size=64,
    micro_batches=16,
    large=True,
    training_tokens=2_500_000_000,
    rates=(3e-4, 6e-4, 1.2e-3),
    router_width=384,
    router_layers=4,
    prefixes=(16, 64, 256),
    num_devices=3,
)
PRESETS["tpu-1b"] = replace(
    PRESETS["tpu"],
    preset="tpu-1b",
    width=2048,
    num_layers=20,
    num_heads=16,
    num_positions=2048,
    batch_size=256,
    micro_batches=256,
    training_tokens=20_000_000_000,
    rates=(1e-4, 2e-4, 4e-4),
    router_width=768,
    router_layers=12,
)


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    require(config.domain_bytes >= 0, "`domain_bytes` must not be negative", config.domain_bytes)
    require(len(config.variants) > 0, "`variants` must not be empty", config.variants)
    for variant in config.variants:
        parsed_variant(variant)
    for name in ("single_seed", "controls"):
        known = set(getattr(config, name)) <= set(config.variants)
        rule = f"`{name}` must hold some of `variants`: {', '.join(config.variants)}"
        require(known, rule, getattr(config, name))
    check_interval("router_share", config.router_share, 0.0, np.inf, ends="()")
    for name in (
        "router_width",
        "router_layers",
        "width",
        "num_layers",
        "num_heads",
        "batch_size",
        "training_tokens",
    ):
        check_count(name, getattr(config, name))
    check_count("num_positions", config.num_positions, at_least=2)
    check_count("micro_batches", config.micro_batches)
    rule = f"`micro_batches` must divide `batch_size`, which is {config.batch_size}"
    require(config.batch_size % config.micro_batches == 0, rule, config.micro_batches)
    for name in ("rates", "decays", "alphas"):
        require(len(getattr(config, name)) > 0, f"`{name}` must not be empty", ())
    check_interval("rates", np.array(config.rates), 0.0, np.inf, ends="()")
    check_interval("decays", np.array(config.decays), 0.0, np.inf, ends="[)")
    check_interval("alphas", np.array(config.alphas), 0.0, 1.0)
    check_interval("warmup", config.warmup, 0.0, 1.0)
    for length in config.prefixes:
        check_count("prefixes", length)
    for name in ("num_features", "num_seeds", "num_devices", "num_draws"):
        check_count(name, getattr(config, name))
    check_interval("margin", config.margin, 0.0, np.inf, ends="()")


def network_of(config: Config, width: int, num_layers: int) -> TransformerConfig:
    """The architecture of a member, or of a router's trunk."""
    return TransformerConfig(
        num_tokens=config.num_tokens,
        num_states=config.num_tokens + 1,  # one stands before every window
        width=width,
        num_layers=num_layers,
        num_heads=config.num_heads,
        ffn_width=8 * (width // 3),
        scan_layers=config.large,
        remat=config.large,
        compute_dtype="bfloat16" if config.large else "float32",
    )


def member_config(config: Config, num_steps: int) -> TrainConfig:
    """How a member is trained, except its rate and its seed."""
    return replace(
        TrainConfig(model=network_of(config, config.width, config.num_layers)),
        optimizer=OptimizerConfig(warmup_steps=max(1, round(config.warmup * num_steps))),
        num_steps=num_steps,
        batch_size=config.batch_size,
        num_micro_batches=config.micro_batches,
        num_positions=config.num_positions,
        windows="stream",  # every position counts: equal steps are equal tokens
    )
