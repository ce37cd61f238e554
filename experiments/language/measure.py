"""One cell of `language`: one variant's experts, one seed, all gates on the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from dfm_jax.accounting import routing_cost
from dfm_jax.comparison import evaluation_sets
from dfm_jax.comparison.evaluation_sets import EvaluationSet
from dfm_jax.comparison.gates import ContextProbs, TokenProbs
from dfm_jax.comparison.record import gate_comparison_record
from dfm_jax.training.evaluation import token_losses
from experiments.language import router as language_router
from experiments.language import text as language_text
from experiments.language.config import Variant
from experiments.language.router import Router
from experiments.language.text import HELD_OUT
from experiments.language.variants import Trainer
from experiments.lib import context_gates
from experiments.lib.contexts import Contexts
from experiments.lib.fixed_share import fixed_share_losses
from experiments.lib.training import Member


def measure(trainer: Trainer, variant: Variant, number: int) -> dict[str, Any]:
    """Train the experts of one variant, score held-out text, and run the comparison of gates."""
    config, text = trainer.config, trainer.text
    partition, part_of = trainer.partition(variant)
    experts, dense, weights = trainer.experts(variant), trainer.dense(), trainer.weights(variant)
    log_prior = np.log(weights)
    held = held_evaluation_sets(trainer, variant, number)
    probs, fitted = _context_probs(trainer, variant, held, log_prior)
    router, running, temperature = _running_probs(
        trainer, variant, held["validation"]["reset"], number
    )
    records = {}
    for name, evaluation_set in held["test"].items():
        tuning = held["validation"][name]
        losses = fixed_share_losses(tuning.log_probs, tuning.sequences, log_prior, config.alphas)
        alpha = float(config.alphas[int(losses.argmin())])
        records[name] = gate_comparison_record(
            evaluation_set,
            log_prior,
            alpha,
            probs if name == "reset" else None,
            running=running if name == "reset" else None,
            prefixes=config.prefixes,
            num_draws=config.num_draws,
            seed=number,
            num_bytes=document_bytes(trainer, "test"),
            groups=_domains(trainer),
        )
    fitted["temperatures"]["running router"] = {"fixed": temperature}
    records["reset"]["contexts"] = fitted
    worth = held["test"]["reset"]
    return {
        "partition": variant.name,
        "kind": variant.kind,
        "seed": trainer.seeds[number],
        "num_experts": partition.num_parts,
        "weights": weights.tolist(),
        "search": partition.search,
        "domains": normalized_mutual_info_score(text.tokens["train"].domains, part_of["train"]),
        "steps": [expert.config.num_steps for expert in experts],
        "tokens": sum(x.num_tokens for x in experts) + _trunk(trainer, variant, "num_tokens"),
        "flops": sum(x.flops for x in experts) + _trunk(trainer, variant, "flops"),
        "dense": {
            "steps": dense.config.num_steps,
            "tokens": dense.num_tokens,
            "flops": dense.flops,
        },
        "router": {"tokens": router.num_tokens, "flops": router.flops},
        "rates": [expert.rates for expert in experts],
        "dense_rates": dense.rates,
        "curves": [expert.curve for expert in experts],
        "dense_curve": dense.curve,
        "b1_float32": _b1_float32(worth, log_prior),
        "single": _single_models(trainer, variant, experts, weights, number),
        "evaluation_sets": records,
    }


def held_evaluation_sets(
    trainer: Trainer, variant: Variant, number: int
) -> dict[str, dict[str, EvaluationSet]]:
    """Held-out text by split and evaluation set, scored by experts and dense model."""
    _, part_of = trainer.partition(variant)
    held: dict[str, dict[str, EvaluationSet]] = {}
    for split in HELD_OUT:
        columns = [
            _log_probs(trainer, expert, number, split) for expert in trainer.experts(variant)
        ]
        found = evaluation_sets.held_out(
            np.stack(columns, axis=1),
            _dense_log_probs(trainer, number, split),
            np.diff(trainer.text.tokens[split].set.offsets),
            part_of[split],
            trainer.config.num_positions,
        )
        held[split] = {evaluation_set.name: evaluation_set for evaluation_set in found}
    return held


def _trunk(trainer: Trainer, variant: Variant, what: str) -> float:
    return getattr(trainer.trunk(), what) if variant.kind == "warm" else 0


def _log_probs(trainer: Trainer, member: Member, number: int, split: str) -> np.ndarray:
    """The log-probabilities of the tokens of a split, in independent windows: [M]."""
    tokens = trainer.text.tokens[split].set
    losses = token_losses(member.of_seed(number), member.config, tokens)
    return -losses.astype(np.float64)


@cache
def _dense_log_probs(trainer: Trainer, number: int, split: str) -> np.ndarray:
    return _log_probs(trainer, trainer.dense(), number, split)


def document_bytes(trainer: Trainer, split: str) -> np.ndarray:
    """The number of bytes of each document that is not empty."""
    sizes = trainer.text.tokens[split].set.num_bytes
    return sizes[sizes > 0]


def _domains(trainer: Trainer) -> dict[str, np.ndarray]:
    """Which units belong to each domain; an empty document is not a unit."""
    tokens = trainer.text.tokens["test"]
    names = np.array(tokens.domains)[tokens.set.num_bytes > 0]
    return {name: names == name for name in dict.fromkeys(names.tolist())}


def _context_probs(
    trainer: Trainer,
    variant: Variant,
    held: Mapping[str, Mapping[str, EvaluationSet]],
    log_prior: np.ndarray,
) -> tuple[ContextProbs, dict[str, Any]]:
    """The distributions of the gates that read contexts for each test window, and their fits."""
    _, part_of = trainer.partition(variant)
    reset = {split: held[split]["reset"] for split in HELD_OUT}
    before = {split: _contexts(trainer, split) for split in HELD_OUT}
    # How likely each expert finds the window before: what it has scored already.
    scores = {
        split: context_gates.span_scores(reset[split].log_probs, before[split].spans)
        for split in HELD_OUT
    }
    validation = reset["validation"]
    readers = context_gates.fitted(
        _pieces(trainer),
        part_of["train"],
        before["validation"],
        validation.part[validation.sequences.starts],
        log_prior,
        decays=trainer.config.decays,
    )
    probs, temperatures = context_gates.token_probs(
        readers,
        (validation, before["validation"], scores["validation"]),
        (before["test"], scores["test"]),
    )
    judged = before["test"]
    return probs, {
        "temperatures": temperatures,
        "decay": readers.decay,
        "empty": int(judged.empty.sum()),
        "wordless": int((~judged.known & ~judged.empty).sum()),
        "sequences": len(judged.spans),
    }


def _running_probs(
    trainer: Trainer, variant: Variant, validation: EvaluationSet, number: int
) -> tuple[Router, TokenProbs, dict[str, Any]]:
    """The distributions of the router that reads the prefix before each test token, tempered."""
    router = trainer.router(variant, number)
    here, there = (
        language_router.router_probs(router, trainer.text.tokens[split].set) for split in HELD_OUT
    )
    probs, found = language_router.tempered(here, validation.log_probs, there)
    return router, TokenProbs(names=("running router",), log_probs=probs[:, None]), found


@cache
def _contexts(trainer: Trainer, split: str) -> Contexts:
    text, length = trainer.text, trainer.config.num_positions
    return language_text.window_contexts(text.tokens[split], text.encode, length)


@cache
def _pieces(trainer: Trainer):
    text, length = trainer.text, trainer.config.num_positions
    return language_text.window_pieces(text.tokens["train"], text.encode, length)


def _b1_float32(evaluation_set: EvaluationSet, log_prior: np.ndarray) -> float:
    """The largest residual of B1 on windows of test, all of it in float32, in nats."""
    log_probs = np.add.reduceat(evaluation_set.log_probs, evaluation_set.sequences.starts).astype(
        np.float32
    )
    prior = log_prior.astype(np.float32)
    mixed = np.asarray(jax.nn.logsumexp(prior + log_probs, axis=1))
    costs = np.asarray(
        jax.jit(
            jax.vmap(
                lambda row: jax.vmap(routing_cost, (None, None, 0))(
                    prior, row, np.arange(prior.size)
                )
            )
        )(log_probs)
    )
    return float(np.abs(-log_probs - costs + mixed[:, None]).max())


def _single_models(
    trainer: Trainer,
    variant: Variant,
    experts: tuple[Member, ...],
    weights: np.ndarray,
    number: int,
) -> dict[str, dict[str, float]]:
    """Single models: the mean of the experts' parameters; the dense model at one expert's steps.

    They are of the first seed. Experts that start apart have no useful mean, so it is a control.
    """
    if number or variant.name not in trainer.config.controls:
        return {}
    total = int(document_bytes(trainer, "test").sum())
    states = [expert.of_seed(number) for expert in experts]
    mean = jax.tree.map(
        lambda *leaves: np.einsum("k...,k->...", np.stack(leaves), weights).astype(leaves[0].dtype),
        *states,
    )
    params = jax.tree.map(lambda leaf: leaf[None], mean)
    average = replace(experts[0], params=params)
    short = trainer.dense(max(1, round(trainer.num_steps / len(experts))))
    return {
        name: {
            "nll": float(-_log_probs(trainer, member, 0, "test").sum() / total),
            "tokens": float(tokens),
            "flops": float(flops),
        }
        for name, member, tokens, flops in (
            (
                "parameter average",
                average,
                sum(x.num_tokens for x in experts) + _trunk(trainer, variant, "num_tokens"),
                sum(x.flops for x in experts) + _trunk(trainer, variant, "flops"),
            ),
            ("dense, one expert's steps", short, short.num_tokens, short.flops),
        )
    }
