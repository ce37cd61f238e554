"""The options of `samplers`, its presets, and the checks of both."""

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from dfm_jax.checks import check_count, check_interval, require


@dataclass(frozen=True, kw_only=True)
class Config:
    """Samplers under exact denoisers: what they draw, beside the data."""

    preset: Literal["quick", "standard"] = "quick"
    """The preset from which the other values start: a minute, or an hour with the peers."""
    out: Path = Path("runs/samplers")
    """The folder for result.json, metrics.jsonl, pictures and unfinished cells."""
    peers_python: str = sys.executable if find_spec("diffusers") else ""
    """The Python of an environment with diffusers and flow_matching (`make install-peers`); empty
    leaves them out."""
    num_distributions: int = 5
    """The number of Dirichlet distributions that are enumerated."""
    concentration: float = 0.3
    """Their concentration; each has 2 tokens and 5 positions."""
    length: int = 64
    """The length N of the long sources."""
    num_hidden: int = 8
    """The number of states, and of tokens, of the hidden chain."""
    stay: float = 0.9
    """The probability that the hidden state stays, before the others are mixed in."""
    shown: float = 0.8
    """The probability that a hidden state shows its own token, before the others are mixed in."""
    text_symbols: int = 6
    """The number of symbols of the text: its most frequent letters, and one for all others."""
    text_order: int = 2
    """The order of the chain that is fitted to the text."""
    num_sequences: int = 32
    """The number of sequences of a long source over which D is averaged."""
    text_sequences: int = 8
    """The same on the text, whose passes cost more."""
    batch_size: int = 32
    """The number of sequences that go through a program at once."""
    random_steps: tuple[int, ...] = (8, 16, 32)
    """The numbers of steps of uniformly random positions that are run; for others, h tells."""
    strides: tuple[int, ...] = (4, 8, 16)
    """The strides of the strided choice."""
    bounds: tuple[float, ...] = (0.05, 0.5)
    """The bounds γ of the entropy bound, in nats."""
    text_steps: tuple[int, ...] = (8, 16)
    """The numbers of steps of random positions on the text."""
    target: float = 0.05
    """The divergence in nats, of a whole sequence, at which passes are compared."""
    lengths: tuple[int, ...] = (64, 256)
    """The lengths at which message passing is timed."""
    hidden_sizes: tuple[int, ...] = (8, 32)
    """The numbers of hidden states at which message passing is timed."""
    num_draws: int = 20_000
    """The number of draws of each peer."""
    num_blocks: int = 5
    """The number of rounds of a timing."""
    seed: int = 0
    """The seed of sources and draws."""


PRESETS = {
    "quick": Config(),
    "standard": Config(
        preset="standard",
        num_distributions=20,
        length=1024,
        num_hidden=64,
        text_symbols=16,
        text_order=3,
        num_sequences=128,
        text_sequences=16,
        batch_size=64,
        random_steps=(64, 256),
        strides=(8, 16, 32, 64, 128),
        bounds=(1.0,),
        text_steps=(32, 64),
        lengths=(256, 1024, 4096),
        hidden_sizes=(16, 64, 256),
        num_draws=100_000,
        num_blocks=7,
    ),
}


def check_config(config: Config) -> None:
    """Refuse values outside their domain.

    Raises:
        ValueError: if an option is outside its domain; the message names the first such option.
    """
    for name in (
        *("num_distributions", "length", "num_sequences", "batch_size", "num_draws", "num_blocks"),
        *("text_order", "text_sequences"),
    ):
        check_count(name, getattr(config, name))
    for name in ("num_hidden", "text_symbols"):
        check_count(name, getattr(config, name), at_least=2)
    rule = f"`batch_size` must divide `num_sequences`, which is {config.num_sequences}"
    require(config.num_sequences % config.batch_size == 0, rule, config.batch_size)
    for name in ("random_steps", "text_steps", "strides", "lengths", "hidden_sizes"):
        values = getattr(config, name)
        require(len(values) > 0, f"`{name}` must not be empty", values)
        for value in values:
            most = config.length if name in ("random_steps", "text_steps") else None
            check_count(name, value, at_most=most)
    for name in ("concentration", "target"):
        check_interval(name, getattr(config, name), 0.0, np.inf, ends="()")
    for name in ("stay", "shown"):
        check_interval(name, getattr(config, name), 0.0, 1.0)
    for bound in config.bounds:
        check_interval("bounds", bound, 0.0, np.inf, ends="[)")
