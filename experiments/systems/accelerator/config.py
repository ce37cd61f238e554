"""The options of `accelerator`, its presets, the sizes of both, and the checks."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_interval, require
from dfm_jax.models import TransformerConfig

# GPT-2's width, depth and vocabulary, the last filled up to a multiple of 128; SwiGLU as large as
# its two maps. 124 million parameters.
GPT = TransformerConfig(
    num_tokens=50_304,
    width=768,
    num_layers=12,
    num_heads=12,
    ffn_width=2048,
    compute_dtype="bfloat16",
)
SMALL = TransformerConfig(
    num_tokens=512,
    width=64,
    num_layers=2,
    num_heads=2,
    ffn_width=192,
    compute_dtype="bfloat16",
)
LARGE_V = 128_256  # the vocabulary of Llama 3


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the work of every part is."""

    model: TransformerConfig
    attention: tuple[str, ...]  # the forms of attention in training
    num_positions: int
    batch_size: int
    loss_rows: int
    batches: tuple[int, ...]  # of decoding; the mixture has the last
    new_tokens: int
    num_experts: int
    instances: int  # cases of each statement


@dataclass(frozen=True, kw_only=True)
class Config:
    """Training, losses, decoding, isolation and two statements on one accelerator."""

    preset: Literal["quick", "gpu"] = "quick"
    """The preset from which the other values start: small, for any CPU in a minute, or 124 million
    parameters in at most 8 minutes."""
    out: Path = Path("runs/accelerator")
    """The folder for result.json and metrics.jsonl; both are written anew after every part."""
    seconds: float = 60.0
    """The budget: a part that would probably go beyond it is not begun."""
    parts: tuple[str, ...] = ()
    """The names of the parts to run, in the order of the study; by default all."""
    seed: int = 0
    """The seed of parameters, data and cases."""


PRESETS = {"quick": Config(), "gpu": Config(preset="gpu", seconds=480.0)}
SIZES = {
    "quick": Sizes(
        model=SMALL,
        attention=("einsum",),
        num_positions=64,
        batch_size=4,
        loss_rows=32,
        batches=(1, 4),
        new_tokens=16,
        num_experts=4,
        instances=16,
    ),
    "gpu": Sizes(
        model=GPT,
        attention=("cudnn", "einsum"),
        num_positions=1024,
        batch_size=32,
        loss_rows=8192,
        batches=(1, 32),
        new_tokens=128,
        num_experts=4,
        instances=240,
    ),
}


def check_config(config: Config, names: tuple[str, ...]) -> None:
    """Refuse values outside their domain; `names` are those of the parts.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    check_interval("seconds", config.seconds, 0, math.inf, ends="()")
    rule = f"Each of `parts` must be one of {', '.join(names)}"
    require(set(config.parts) <= set(names), rule, config.parts, name="parts")
