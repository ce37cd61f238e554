"""What the training of the members of a run costs, and steps divided so that it costs the same.

K experts that make w_k S steps each read together what one model reads in S steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfm_jax.checks import check_count, require
from dfm_jax.storage.folders import Folder
from dfm_jax.training.checkpoint import checkpoint_steps
from dfm_jax.training.config import TrainConfig, from_json
from dfm_jax.training.members import CONFIG, read_member
from dfm_jax.training.plan import PROJECTOR, TOWER, plan_of

MOST_APART = 0.01  # by which tokens or FLOPs may differ and still be called equal
_WORDS = {"tokens": "tokens", "flops": "FLOPs"}


def divided_steps(weights: np.ndarray, num_steps: int) -> np.ndarray:
    """The steps of each expert, [K]: w_k S, rounded so that they sum to S, and at least 1.

    Largest remainders are used, so each is off by less than 1, except one that would have no step.

    Raises:
        ValueError: if the weights are not a distribution, or S is below K.
    """
    rule = "`weights` must be non-negative and sum to 1"
    require((weights >= 0).all() and abs(weights.sum() - 1) < 1e-6, rule, weights)
    check_count("num_steps", num_steps, at_least=len(weights))
    exact = weights * num_steps
    steps = np.floor(exact).astype(int)
    order = np.argsort(-(exact - steps), kind="stable")
    steps[order[: num_steps - steps.sum()]] += 1
    while (steps == 0).any():
        steps[steps.argmax()] -= 1
        steps[steps.argmin()] += 1
    return steps


def member_cost(name: str, config: TrainConfig, step: int) -> dict[str, Any]:
    """Updates, tokens and FLOPs of the training of one member; FLOPs are None if not known.

    Tokens are those of its batches, with what fills up short windows. FLOPs are those of `plan`.
    """
    tokens, flops = step * config.batch_size * config.num_positions, None
    if config.task is None:
        frozen = [part for part in (TOWER, PROJECTOR) if part in config.optimizer.freeze]
        flops = step * plan_of(config, frozen=frozen if config.pictures else ()).flops
    return {"name": name, "step": step, "tokens": tokens, "flops": flops}


def costs_of(members: Sequence[Folder]) -> list[dict[str, Any]]:
    """The cost of each member that has a checkpoint, up to its last one."""
    found = []
    for member in members:
        steps = checkpoint_steps(member)
        if steps and (member / CONFIG).is_file():
            config = from_json(TrainConfig, read_member(member)["config"])
            found.append(member_cost(member.name, config, steps[-1]))
    return found


def training_cost(dense: Mapping[str, Any], experts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The dense model beside the experts together, and a warning if they differ."""
    total = total_cost(experts)
    ratios = {
        what: total[what] / dense[what] if total[what] is not None and dense[what] else None
        for what in _WORDS
    }
    return {
        "members": [dict(one) for one in (dense, *experts)],
        "dense": {what: dense[what] for what in _WORDS},
        "experts": total,
        "ratios": ratios,
        "warning": cost_warning(ratios),
    }


def total_cost(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tokens and FLOPs of members together; None if one of them is not known."""
    known = {what: [one[what] for one in members] for what in _WORDS}
    return {what: None if None in found else sum(found) for what, found in known.items()}


def cost_warning(ratios: Mapping[str, float | None]) -> str | None:
    """A sentence if the experts had more or less than the dense model, by more than 1 %."""
    apart = [
        f"{ratio:.3g} times the {_WORDS[what]}"
        for what, ratio in ratios.items()
        if ratio is not None and abs(ratio - 1) > MOST_APART
    ]
    if not apart:
        return None
    return (
        f"In training the experts had {' and '.join(apart)} of the dense model, so this is no "
        "comparison at equal cost; `launch --total-steps` divides the steps of one model among "
        "them."
    )


def cost_lines(
    dense: Sequence[Mapping[str, Any]], experts: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What a launch says: the experts together beside the dense model, if there is one."""
    number = f"{len(experts)} expert{'s' * (len(experts) != 1)}"
    said = [f"{number}: {cost_text(total_cost(experts))}"] if experts else []
    said += [f"dense model: {cost_text(one)}" for one in dense]
    if experts and dense:
        warning = training_cost(dense[0], experts)["warning"]
        said.append(warning or "Tokens and FLOPs are equal within 1 %.")
    elif experts:
        said.append("There is no dense model in this run with which to compare them (--dense).")
    return said


def cost_text(cost: Mapping[str, Any]) -> str:
    """Tokens and FLOPs in words."""
    flops = "FLOPs not known" if cost["flops"] is None else f"{cost['flops']:.4g} FLOPs"
    return f"{cost['tokens']:,} tokens, {flops}"
