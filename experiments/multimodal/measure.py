"""One cell of `multimodal`: one variant's experts, one budget and seed, all gates and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dfm_jax.comparison import document_interval
from experiments.language.config import Variant
from experiments.multimodal import gates as multimodal_gates
from experiments.multimodal.answers import Experts, answer_log_probs, answers, mixed_answers
from experiments.multimodal.data import Examples, right
from experiments.multimodal.training import Member
from experiments.multimodal.variants import Parts, Trainer, families

TEST = "test"
ELSEWHERE = ("nearest", "Bayes")  # the gates that are judged on the other tests and controls
_PAGE = 8  # questions that are kept as they were answered
_SAMPLES = 4  # pictures that are kept of each part


def measure_dense(trainer: Trainer, number: int) -> dict[str, Any]:
    """The dense model of one seed on every test, and with wrong pictures."""
    dense, data = trainer.dense(), trainer.data
    params, config = dense.of_seed(number), dense.config.model
    found: dict[str, Any] = {"rates": dense.rates, "steps": dense.config.num_steps}
    found |= {"tokens": dense.num_tokens, "flops": dense.flops, "tests": {}}
    alone = Experts(config, dense.sight, (params,))
    for split in data.tests:
        examples = data.splits[split]
        said = answers(data, examples, params, config, data.features)
        lost = -answer_log_probs(examples, alone, data.features).sum(axis=(1, 2))
        found["tests"][split] = _judged(trainer, examples, said, lost)
        if split == TEST:
            found["said"] = said
    examples = wrong_pictures(data.splits[TEST])
    said = answers(data, examples, params, config, data.features)
    lost = -answer_log_probs(examples, alone, data.features).sum(axis=(1, 2))
    found["tests"]["wrong picture"] = _judged(trainer, examples, said, lost)
    return found


def measure_blind(trainer: Trainer) -> dict[str, Any]:
    """The dense model of one seed, trained and evaluated without pictures: questions alone."""
    member, data = trainer.blind(), trainer.data
    params, config = member.of_seed(0), member.config.model
    unseen, examples = np.zeros_like(data.features), data.splits[TEST]
    said = answers(data, examples, params, config, unseen)
    alone = Experts(config, member.sight, (params,))
    lost = -answer_log_probs(examples, alone, unseen).sum(axis=(1, 2))
    return {"tests": {TEST: _judged(trainer, examples, said, lost)}}


def measure(
    trainer: Trainer, variant: Variant, number: int, dense: Mapping[str, Any]
) -> dict[str, Any]:
    """Train a variant's experts, and compare every gate with the dense model of the same seed."""
    data, parts, weights = trainer.data, trainer.parts(variant), trainer.weights(variant)
    members = trainer.experts(variant)
    experts = experts_of(members, number)
    router = multimodal_gates.fitted_router(trainer, parts)
    temperature, at_bound = None, False
    if parts.scores is not None:
        held_out = data.splits["validation"]
        log_probs = answer_log_probs(held_out, experts, data.features)
        scores = parts.scores[held_out.picture]
        temperature, at_bound = multimodal_gates.soft_temperature(scores, log_probs)
    shown = {split: (split, data.splits[split]) for split in data.tests}
    shown["wrong picture"] = (TEST, wrong_pictures(data.splits[TEST]))
    tests, context = {}, {}
    for name, (split, examples) in shown.items():
        log_probs = answer_log_probs(examples, experts, data.features)
        of_answers = log_probs.sum(axis=2)
        seen = parts
        if name == "wrong picture":  # the gate sees what the experts see
            other = _parts_of_shown(trainer, variant, examples)
            seen = replace(parts, part_of=parts.part_of | {split: other})
        gates = multimodal_gates.gates_of(
            trainer, seen, weights, router, temperature, split, examples, of_answers
        )
        tests[name] = {}
        for gate in gates:
            if name != TEST and gate.name not in ELSEWHERE:
                continue
            said = mixed_answers(data, examples, experts, gate.log_prior, gate.kind, data.features)
            lost = multimodal_gates.nats(gate, log_probs)
            judged = _judged(trainer, examples, said, lost)
            tests[name][gate.name] = judged | _minus(trainer, examples, judged, dense, name)
            if name == TEST and gate.name == "Bayes":
                context["page"] = _page(trainer, examples, said, dense["said"], gate, log_probs)
        if name == TEST:
            part = parts.part_of[TEST]
            context["better_elsewhere"] = float((of_answers.argmax(axis=1) != part).mean())
            known = of_answers.max(axis=1) - of_answers[np.arange(part.size), part]
            context["gain_elsewhere"] = float(known.mean())
    half = trainer.trunk() if variant.kind == "warm" else None
    spent = [*members, *([half] if half else [])]
    return {
        "variant": variant.name,
        "kind": variant.kind,
        "num_experts": parts.num_parts,
        "weights": weights.tolist(),
        "steps": [member.config.num_steps for member in members],
        "tokens": sum(member.num_tokens for member in spent),
        "flops": sum(member.flops for member in spent),
        "rates": [member.rates for member in members],
        "router": {"decay": router.decay, "losses": list(router.losses.values())}
        | {"accuracy": router.accuracy},
        "temperature": temperature,
        "at_bound": at_bound,
        "samples": _samples(trainer, parts),
        "tests": tests,
        **context,
    }


def wrong_pictures(examples: Examples) -> Examples:
    """Each question with a picture of another question, half of the test away and not the same.

    Raises:
        ValueError: if all questions are about one picture.
    """
    pictures = np.unique(examples.picture)
    if pictures.size < 2:
        raise ValueError(
            f"A test must have at least two pictures; got number of pictures = {pictures.size}."
        )
    place = np.searchsorted(pictures, examples.picture)
    other = pictures[(place + pictures.size // 2) % pictures.size]
    return replace(examples, picture=other)


def experts_of(members: tuple[Member, ...], number: int) -> Experts:
    """The experts of one seed."""
    first = members[0]
    params = tuple(member.of_seed(number) for member in members)
    return Experts(first.config.model, first.sight, params)


def _parts_of_shown(trainer: Trainer, variant: Variant, examples: Examples) -> np.ndarray:
    """f(c) with other pictures: parts by picture follow the picture, parts by task stay."""
    parts = trainer.parts(variant)
    if variant.kind == "task":
        return parts.part_of[TEST]
    of_picture = np.zeros(len(trainer.data.paths), int)
    for split, rows in trainer.data.splits.items():
        of_picture[rows.picture] = parts.part_of[split]
    return of_picture[examples.picture]


def _judged(
    trainer: Trainer, examples: Examples, said: list[str], lost: np.ndarray
) -> dict[str, Any]:
    """Accuracy of all and by family, nats per answer, and which questions were right."""
    good = right(trainer.data, examples, said)
    by_family = {
        name: float(good[examples.family == name].mean())
        for name in families(trainer.data)
        if (examples.family == name).any()
    }
    return {
        "accuracy": float(good.mean()),
        "families": by_family,
        "nats": float(lost.mean()),
        "right": "".join("01"[x] for x in good.astype(int)),
    }


def _minus(
    trainer: Trainer,
    examples: Examples,
    judged: Mapping[str, Any],
    dense: Mapping[str, Any],
    name: str,
) -> dict[str, Any]:
    """Ensemble − dense in accuracy, of all and by family, with an interval over pictures."""
    base = dense["tests"][name]
    ours, theirs = (np.array(list(x["right"]), int) for x in (judged, base))
    _, picture = np.unique(examples.picture, return_inverse=True)
    difference = np.bincount(picture, weights=ours - theirs)
    draws = {"num_draws": trainer.config.num_draws, "seed": 0}
    interval = document_interval(difference, np.bincount(picture), **draws)
    of_family = {f: judged["families"][f] - base["families"][f] for f in judged["families"]}
    return {"minus": [float(x) for x in interval], "minus_families": of_family}


def _page(
    trainer: Trainer,
    examples: Examples,
    said: list[str],
    dense: list[str],
    gate: multimodal_gates.Gate,
    log_probs: np.ndarray,
) -> list[dict[str, Any]]:
    """Some questions, each about another picture, with the weights before and after the answer."""
    _, first = np.unique(examples.picture, return_index=True)
    chosen = np.sort(first)[:: max(1, first.size // _PAGE)][:_PAGE]
    behind = gate.log_prior + log_probs.sum(axis=2)
    behind = np.exp(behind - behind.max(axis=1, keepdims=True))
    behind /= behind.sum(axis=1, keepdims=True)
    return [
        {
            "picture": str(trainer.data.paths[examples.picture[i]]),
            "question": examples.questions[i],
            "answer": examples.answers[i],
            "dense": dense[i],
            "ensemble": said[i],
            "before": np.exp(gate.log_prior[i]).round(4).tolist(),
            "behind": behind[i].round(4).tolist(),
        }
        for i in chosen
    ]


def _samples(trainer: Trainer, parts: Parts) -> list[list[str]]:
    """Some training pictures of each part."""
    train = trainer.data.splits["train"]
    found = []
    for k in range(parts.num_parts):
        pictures = np.unique(train.picture[parts.part_of["train"] == k])
        drawn = np.random.default_rng(k).permutation(pictures)[:_SAMPLES]
        found.append([str(trainer.data.paths[i]) for i in drawn])
    return found
