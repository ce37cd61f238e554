"""The samplers of diffusers and flow_matching under our exact denoisers, in their environment."""

import json
import subprocess
from collections.abc import Mapping
from typing import Any

import numpy as np

from dfm_jax import exact
from dfm_jax.json_text import parse_json
from experiments.samplers.config import Config
from experiments.samplers.sources import Short, twins

NUM_POSITIONS = 4
PACKAGES = ("diffusers", "flow_matching", "torch")


def peer_sources(config: Config) -> list[Short]:
    """A skewed distribution and a symmetric one, of 2 tokens and 4 positions."""
    rng = np.random.default_rng([config.seed, 7])
    skewed = rng.dirichlet(np.full(2**NUM_POSITIONS, config.concentration))
    return [Short("skewed", 2, NUM_POSITIONS, skewed), twins(NUM_POSITIONS)]


def drawn(config: Config) -> list[dict[str, Any]]:
    """Every sampler of the packages: how far its samples are from what they ought to be."""
    sources = peer_sources(config)
    given = {
        "num_draws": config.num_draws,
        "seed": config.seed,
        "sources": [source._asdict() | {"probs": source.probs.tolist()} for source in sources],
    }
    command = [config.peers_python, "-m", "experiments.samplers.peer_side"]
    done = subprocess.run(
        command, input=json.dumps(given), capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        rule = "`peers_python` must be a Python with diffusers and flow_matching"
        raise ValueError(f"{rule}; got peers_python = {config.peers_python!r}. It said: {said}")
    expected = {source.name: source.probs for source in sources}
    return [_judged(row, expected) for row in parse_json(done.stdout)]


def _judged(row: Mapping[str, Any], expected: Mapping[str, np.ndarray]) -> dict[str, Any]:
    shown = {name: row[name] for name in ("package", "source", "sampler", "steps", "options")}
    if row["counts"] is None:
        return shown | {"unfinished": 0.0, "tv": None, "noise": 0.0, "raised": row["raised"]}
    counts = np.array(row["counts"], float)
    probs = np.array(row.get("expected", expected[row["source"]]))
    total = counts.sum()
    # The expected total variation of so many exact draws, by the normal approximation.
    noise = 0.5 * float(np.sum(np.sqrt(2 * probs * (1 - probs) / (np.pi * total))))
    tv = float(exact.total_variation(probs, counts / total))
    return shown | {"unfinished": row["unfinished"], "tv": tv, "noise": noise}
