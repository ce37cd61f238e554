"""One cell of `language`: one arm's experts, one seed, every gate on the same held-out tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from dfm_jax.accounting import routing_cost
from dfm_jax.training.evaluation import token_losses
from experiments.language import router as language_router
from experiments.language import text as language_text
from experiments.language.arms import Trainer
from experiments.language.config import Arm
from experiments.language.router import Router
from experiments.language.text import HELD_OUT
from experiments.lib import context_gates, worlds
from experiments.lib.contexts import Contexts
from experiments.lib.fixed_share import fixed_share_losses
from experiments.lib.gate_ladder import ContextLaws, TokenLaws
from experiments.lib.ladder_record import ladder_record
from experiments.lib.training import Member
from experiments.lib.worlds import World


def measure(trainer: Trainer, arm: Arm, number: int) -> dict[str, Any]:
    """Train the experts of one arm, score held-out text by each, and run the ladder of gates."""
    config, text = trainer.config, trainer.text
    partition, part_of = trainer.partition(arm)
    experts, centre, weights = trainer.experts(arm), trainer.centre(), trainer.weights(arm)
    log_prior = np.log(weights)
    held = held_worlds(trainer, arm, number)
    laws, fitted = _context_laws(trainer, arm, held, log_prior)
    router, running, temperature = _running_laws(trainer, arm, held["validation"]["reset"], number)
    records = {}
    for name, world in held["test"].items():
        tuning = held["validation"][name]
        losses = fixed_share_losses(tuning.log_probs, tuning.sequences, log_prior, config.alphas)
        alpha = float(config.alphas[int(losses.argmin())])
        records[name] = ladder_record(
            world,
            log_prior,
            alpha,
            laws if name == "reset" else None,
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
        "partition": arm.name,
        "kind": arm.kind,
        "seed": trainer.seeds[number],
        "num_experts": partition.num_parts,
        "weights": weights.tolist(),
        "search": partition.search,
        "domains": normalized_mutual_info_score(text.tokens["train"].domains, part_of["train"]),
        "steps": [expert.config.num_steps for expert in experts],
        "tokens": sum(x.num_tokens for x in experts) + _trunk(trainer, arm, "num_tokens"),
        "flops": sum(x.flops for x in experts) + _trunk(trainer, arm, "flops"),
        "centre": {
            "steps": centre.config.num_steps,
            "tokens": centre.num_tokens,
            "flops": centre.flops,
        },
        "router": {"tokens": router.num_tokens, "flops": router.flops},
        "rates": [expert.rates for expert in experts],
        "centre_rates": centre.rates,
        "curves": [expert.curve for expert in experts],
        "centre_curve": centre.curve,
        "b1_float32": _b1_float32(worth, log_prior),
        "single": _single_models(trainer, arm, experts, weights, number),
        "worlds": records,
    }


def held_worlds(trainer: Trainer, arm: Arm, number: int) -> dict[str, dict[str, World]]:
    """Held-out text by split and by world, scored by the experts of an arm and by the centre."""
    _, part_of = trainer.partition(arm)
    held: dict[str, dict[str, World]] = {}
    for split in HELD_OUT:
        columns = [_log_probs(trainer, expert, number, split) for expert in trainer.experts(arm)]
        found = worlds.held_out(
            np.stack(columns, axis=1),
            _centre_log_probs(trainer, number, split),
            np.diff(trainer.text.tokens[split].set.offsets),
            part_of[split],
            trainer.config.num_positions,
        )
        held[split] = {world.name: world for world in found}
    return held


def _trunk(trainer: Trainer, arm: Arm, what: str) -> float:
    return getattr(trainer.trunk(), what) if arm.kind == "warm" else 0


def _log_probs(trainer: Trainer, member: Member, number: int, split: str) -> np.ndarray:
    """[M] of the tokens of a split, in windows that know nothing of each other."""
    tokens = trainer.text.tokens[split].set
    losses = token_losses(member.of_seed(number), member.config, tokens)
    return -losses.astype(np.float64)


@cache
def _centre_log_probs(trainer: Trainer, number: int, split: str) -> np.ndarray:
    return _log_probs(trainer, trainer.centre(), number, split)


def document_bytes(trainer: Trainer, split: str) -> np.ndarray:
    """Bytes of each document that has any."""
    sizes = trainer.text.tokens[split].set.num_bytes
    return sizes[sizes > 0]


def _domains(trainer: Trainer) -> dict[str, np.ndarray]:
    """Which units are of each domain; a document without a byte is none."""
    tokens = trainer.text.tokens["test"]
    names = np.array(tokens.domains)[tokens.set.num_bytes > 0]
    return {name: names == name for name in dict.fromkeys(names.tolist())}


def _context_laws(
    trainer: Trainer, arm: Arm, held: Mapping[str, Mapping[str, World]], log_prior: np.ndarray
) -> tuple[ContextLaws, dict[str, Any]]:
    """What the gates that read contexts say of each window of test, and what was fitted for it."""
    _, part_of = trainer.partition(arm)
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
    laws, temperatures = context_gates.laws(
        readers,
        (validation, before["validation"], scores["validation"]),
        (before["test"], scores["test"]),
    )
    judged = before["test"]
    return laws, {
        "temperatures": temperatures,
        "decay": readers.decay,
        "empty": int(judged.empty.sum()),
        "wordless": int((~judged.known & ~judged.empty).sum()),
        "sequences": len(judged.spans),
    }


def _running_laws(
    trainer: Trainer, arm: Arm, validation: World, number: int
) -> tuple[Router, TokenLaws, dict[str, Any]]:
    """What the router that reads the prefix says before each token of test, tempered."""
    router = trainer.router(arm, number)
    here, there = (
        language_router.router_laws(router, trainer.text.tokens[split].set) for split in HELD_OUT
    )
    laws, found = language_router.tempered(here, validation.log_probs, there)
    return router, TokenLaws(names=("running router",), log_laws=laws[:, None]), found


@cache
def _contexts(trainer: Trainer, split: str) -> Contexts:
    text, length = trainer.text, trainer.config.num_positions
    return language_text.window_contexts(text.tokens[split], text.encode, length)


@cache
def _pieces(trainer: Trainer):
    text, length = trainer.text, trainer.config.num_positions
    return language_text.window_pieces(text.tokens["train"], text.encode, length)


def _b1_float32(world: World, log_prior: np.ndarray) -> float:
    """The largest residual of B1 on windows of test, all of it in float32, in nats."""
    log_probs = np.add.reduceat(world.log_probs, world.sequences.starts).astype(np.float32)
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
    trainer: Trainer, arm: Arm, experts: tuple[Member, ...], weights: np.ndarray, number: int
) -> dict[str, dict[str, float]]:
    """What is one model: the mean of the experts' parameters; the centre at one expert's steps.

    Of the first seed; what begins apart has no common mean, so the first is a control.
    """
    if number or arm.name not in trainer.config.controls:
        return {}
    total = int(document_bytes(trainer, "test").sum())
    states = [expert.of_seed(number) for expert in experts]
    mean = jax.tree.map(
        lambda *leaves: np.einsum("k...,k->...", np.stack(leaves), weights).astype(leaves[0].dtype),
        *states,
    )
    params = jax.tree.map(lambda leaf: leaf[None], mean)
    average = replace(experts[0], params=params)
    short = trainer.centre(max(1, round(trainer.num_steps / len(experts))))
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
                sum(x.num_tokens for x in experts) + _trunk(trainer, arm, "num_tokens"),
                sum(x.flops for x in experts) + _trunk(trainer, arm, "flops"),
            ),
            ("centre, one expert's steps", short, short.num_tokens, short.flops),
        )
    }
