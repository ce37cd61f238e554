"""The transformer cells of `regimes`: one variant with more and more text, seen about once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dfm_jax.checks import require
from dfm_jax.data import Corpus
from dfm_jax.parallel import make_mesh
from experiments.language import config as language_config
from experiments.language import measure as language_cell
from experiments.language.config import parsed_variant
from experiments.language.text import HELD_OUT, text_of
from experiments.language.variants import Trainer
from experiments.lib.corpora import sampled
from experiments.regimes.config import Config
from experiments.regimes.measure import quantities


def trainers(corpora: Sequence[Corpus], config: Config) -> dict[int, Trainer]:
    """The trainers of the dense model and the experts of each budget, by number of training tokens.

    Raises:
        ValueError: if the largest budget exceeds the tokens of the training text.
    """
    few = [sampled(corpus, config.transformer_domain_bytes) for corpus in corpora]
    text = text_of(few, num_tokens=config.num_tokens, num_features=config.num_features)
    held, found = len(text.tokens["train"].set.tokens), {}
    rule = f"`training_tokens` must be at most {held:,}, the tokens of the training text"
    most = max(config.training_tokens)
    require(most <= held, rule, most, name="max(training_tokens)")
    for budget in config.training_tokens:
        of_language = language_config.Config(
            out=config.out / "transformers" / str(budget),
            num_tokens=config.num_tokens,
            width=config.width,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_positions=config.num_positions,
            batch_size=config.batch_size,
            training_tokens=budget,
            rates=config.rates,
            num_features=config.num_features,
            num_seeds=config.transformer_seeds,
        )
        found[budget] = Trainer(text=text, config=of_language, mesh=make_mesh(1))
    return found


def measure(trainer: Trainer, name: str, number: int, config: Config) -> dict[str, Any]:
    """Train members if needed, score held-out windows, and compute the quantities of the theory."""
    variant = parsed_variant(name)
    evaluation_sets = language_cell.held_evaluation_sets(trainer, variant, number)
    weights, tokens = trainer.weights(variant), trainer.text.tokens["train"].set
    size = trainer.num_steps * trainer.config.batch_size * trainer.config.num_positions
    size *= tokens.num_bytes.sum() / len(tokens.tokens)
    where = {
        "model": "transformers",
        "partition": variant.kind,
        "num_experts": len(weights),
        "seed": trainer.seeds[number],
        "bytes": round(size),
        "steps": [
            trainer.num_steps,
            *(expert.config.num_steps for expert in trainer.experts(variant)),
        ],
    }
    return where | quantities(
        {split: evaluation_sets[split]["reset"] for split in HELD_OUT},
        np.log(weights),
        (weights * size).tolist(),
        config.num_draws,
        number,
        {split: language_cell.document_bytes(trainer, split) for split in HELD_OUT},
    )
