"""The options of `scaling`, its presets, and the checks of both."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.checks import check_count, check_interval, require
from experiments.systems.scaling.costs import Chip

CHIPS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


# One way, so half of what the makers call bidirectional. Cloud TPU's page "TPU v5e": 197 TFLOP/s,
# 16 GB, 400 GB/s both ways, 6.4 Tbit/s for a pod of 256. "TPU v5p": 459 TFLOP/s, 95 GB, 1,200 GB/s
# both ways, 50 Gbit/s a chip between pods of 8,960. NVIDIA's "H100" and "DGX H100": 989 TFLOP/s
# dense, 80 GB, NVLink 900 GB/s both ways between eight, a port of 400 Gbit/s for each.
V5E = Chip(flops=197e12, memory=16e9, pod=256, fast=200e9, slow=3.125e9)


V5P = Chip(flops=459e12, memory=95e9, pod=8960, fast=600e9, slow=6.25e9)


H100 = Chip(flops=989e12, memory=80e9, pod=8, fast=450e9, slow=50e9)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Bytes, memory and time of a step, by formula, compared with compiled programs."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: one kind of chip, or three."""
    out: Path = Path("runs/scaling")
    """The folder for result.json, metrics.jsonl and scaling.png."""
    kinds: tuple[str, ...] = ("v5e",)
    """The kinds of chips: some of v5e, v5p and h100."""
    tokens_per_step: int = 2**23
    """The number of tokens of a step over all chips, for any number of chips."""
    num_positions: int = 2048
    """The number of tokens of a sequence; a chip has one sequence at least."""
    num_experts: int = 8
    """The number K of experts, each with 1/K of the tokens."""
    efficiency: float = 0.5
    """The share of the peak rate that is reached while nothing waits for the network."""
    usable: float = 0.9
    """The share of the memory that can be used."""
    gradient_bytes: int = 4
    """The bytes of one entry of a gradient as it is summed: float32."""
    gather_bytes: int = 2
    """The bytes of one parameter as a sharded run collects it: bfloat16."""
    site_rate: float = 12.5e9
    """The bytes per second between sites, if the chips stood in K of them: 100 Gbit/s each."""
    v5e: Chip = V5E
    """The numbers of the TPU v5e."""
    v5p: Chip = V5P
    """The numbers of the TPU v5p."""
    h100: Chip = H100
    """The numbers of the NVIDIA H100 SXM, eight to a node."""


PRESETS = {
    "quick": Config(),
    "standard": Config(preset="standard", kinds=("v5e", "v5p", "h100")),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    known = ("v5e", "v5p", "h100")
    named = bool(config.kinds) and set(config.kinds) <= set(known)
    rule = f"`kinds` must hold at least one of {', '.join(known)}, and no other"
    require(named, rule, config.kinds)
    counts = ("tokens_per_step", "num_positions", "gradient_bytes", "gather_bytes")
    for name in counts:
        check_count(name, getattr(config, name))
    check_count("num_experts", config.num_experts, at_least=2, at_most=CHIPS[0])
    rule = f"`num_experts` must divide {CHIPS[0]}, the smallest number of chips"
    require(CHIPS[0] % config.num_experts == 0, rule, config.num_experts)
    least = CHIPS[-1] * config.num_positions
    rule = (
        f"`tokens_per_step` must be a multiple of {least}, a sequence for each of {CHIPS[-1]} chips"
    )
    require(config.tokens_per_step % least == 0, rule, config.tokens_per_step)
    for name in ("efficiency", "usable"):
        check_interval(name, getattr(config, name), 0, 1, ends="(]")
    check_interval("site_rate", config.site_rate, 0, math.inf, ends="()")
