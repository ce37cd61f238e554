"""Where the loss of a gate variant comes from: own expert, unknown part, gate, truncation.

For a sequence x of part k, a gate that is truncated to its best experts, the same gate with all
experts (full), and the dense model c, in nats:

    NLL_top − NLL_c = own + cost + gate + truncation   [B1]
    own = −log p̂_k(x) + log p_c(x)
    cost = log r̂_k(x) − log ŵ_k
    gate = NLL_full − NLL_Bayes
    truncation = NLL_top − NLL_full

`own` is what the part's own expert loses or gains, and `cost` is B1: Bayes must find the part. It
is computed from whole sequences; the others are sums over bytes. A Bayes gate that starts from a
distribution of the context has a cost of its own, B1 with ŵ_k = P̂(k | c), which is checked as well.
Its `cost` is still that of the common ŵ, so its `gate` is the difference of the two costs: what the
context is worth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.accounting import best_expert_bound, routing_cost
from dfm_jax.comparison.evaluation_sets import EvaluationSet
from dfm_jax.comparison.gates import (
    INFORMED,
    TOPS,
    ContextProbs,
    Scores,
    Sequences,
    TokenProbs,
    gate_names,
)
from dfm_jax.types import Array

_BLOCK = 256  # sequences


@dataclass(frozen=True, kw_only=True)
class Account:
    """The losses of all gate variants on the same units, split into terms, in nats per unit."""

    gate_variants: tuple[tuple[str, str], ...]  # [V] the gate and how many experts it keeps
    nll: np.ndarray  # [V, D]
    uncut: np.ndarray  # [V, D] of the same gate with all experts
    bayes: np.ndarray  # [D] of the Bayes gate with all experts
    own: np.ndarray  # [D]
    cost: np.ndarray  # [D]
    dense: np.ndarray  # [D]
    sizes: np.ndarray  # [D] bytes
    evaluations: tuple[float, ...]  # [V] expert evaluations per byte
    b1_residual: float  # the largest over sequences and experts, nats
    b11_slack: float  # the smallest over sequences, nats
    flattery: dict[str, float]  # what oracles that read the whole sequence gain over Bayes  [B9]

    def terms(self) -> dict[str, np.ndarray]:
        """The four terms of each gate variant, [V, D], in nats; they sum to NLL − that of dense."""
        gate, cut = self.uncut - self.bayes, self.nll - self.uncut
        own, cost = (np.broadcast_to(x, gate.shape) for x in (self.own, self.cost))
        return {"own": own, "cost": cost, "gate": gate, "truncation": cut}

    def sum_residual(self) -> float:
        """The largest |own + cost + gate + truncation − difference| of a unit, in nats."""
        total = np.sum(list(self.terms().values()), axis=0)
        return float(np.abs(total - (self.nll - self.dense)).max())


def account(
    evaluation_set: EvaluationSet,
    scores: Scores,
    log_prior: np.ndarray,
    *,
    prefixes: Sequence[int],
    contexts: ContextProbs | None = None,
    running: TokenProbs | None = None,
) -> Account:
    """Split the losses of a gate comparison on `evaluation_set`; `scores` have a single alpha."""
    spans, num_experts = evaluation_set.sequences, log_prior.size
    contexts = contexts or ContextProbs.none(spans.starts.size, num_experts)
    of_tokens = running.names if running else ()
    names = gate_names(prefixes, num_alphas=1, contexts=contexts.names, running=of_tokens)
    sequence = np.searchsorted(spans.starts, spans.windows, side="right") - 1
    by_expert = -np.add.reduceat(evaluation_set.log_probs, spans.windows)
    of_part = np.take_along_axis(evaluation_set.log_probs, evaluation_set.part[:, None], axis=1)[
        :, 0
    ]
    oracle = -np.add.reduceat(of_part, spans.windows)
    dense = -np.add.reduceat(evaluation_set.dense, spans.windows)
    bayes = scores.soft[:, -1, -1]

    gate_variants, nll, uncut = [], [], []
    for g, gate in enumerate(names):
        for c, top in enumerate(TOPS):
            gate_variants.append((gate, top))
            nll.append(scores.soft[:, g, c])
            uncut.append(scores.soft[:, g, -1])
    for m, length in enumerate(prefixes):
        gate_variants.append((f"hard after {length}", "top-1"))
        nll.append(scores.hard_after[:, m])
        uncut.append(scores.soft[:, 2 + m, -1])
    gate_variants.append(("oracle", "top-1"))
    nll.append(oracle)
    uncut.append(oracle)

    log_probs, mixed = -exact_sums(by_expert, sequence), exact_sums(bayes, sequence)
    costs, bounds = _routing(np.broadcast_to(log_prior, log_probs.shape), log_probs)
    b1_residual = np.abs(-log_probs - costs - mixed[:, None]).max()
    b11_slack = (bounds - mixed).min()
    for c, name in enumerate(contexts.names):  # B1 and B11 hold for the prior P̂(k | c) too
        informed = exact_sums(scores.soft[:, names.index(name + INFORMED), -1], sequence)
        of_context, bounds = _routing(contexts.prior[:, c], log_probs)
        residual = np.abs(-log_probs - of_context - informed[:, None]).max()
        b1_residual, b11_slack = (
            max(b1_residual, residual),
            min(b11_slack, (bounds - informed).min()),
        )
    part = evaluation_set.part[spans.starts]
    cost = -costs[np.arange(part.size), part]
    if evaluation_set.changes:  # then B1 has no one k to speak of
        cost = mixed - exact_sums(oracle, sequence)
    unit_of_sequence = evaluation_set.unit[np.searchsorted(spans.windows, spans.starts)]
    sizes = np.diff(np.r_[spans.windows, spans.num_bytes])
    return Account(
        gate_variants=tuple(gate_variants),
        nll=exact_sums(np.stack(nll, 1), evaluation_set.unit).T,
        uncut=exact_sums(np.stack(uncut, 1), evaluation_set.unit).T,
        bayes=exact_sums(bayes, evaluation_set.unit),
        own=exact_sums(oracle, evaluation_set.unit) - exact_sums(dense, evaluation_set.unit),
        cost=exact_sums(cost, unit_of_sequence),
        dense=exact_sums(dense, evaluation_set.unit),
        sizes=np.bincount(evaluation_set.unit, weights=sizes),
        evaluations=evaluations(gate_variants, spans, num_experts, (*contexts.names, *of_tokens)),
        b1_residual=float(b1_residual),
        b11_slack=float(b11_slack),
        flattery={
            "sequences": float(part.size),
            "part": float(cost.mean()),
            "part_ceiling": float(-log_prior[part].mean()),
            "best": float(-costs.min(axis=1).mean()),
            "best_ceiling": float(-log_prior[costs.argmin(axis=1)].mean()),
        },
    )


def evaluations(
    gate_variants: Sequence[tuple[str, str]],
    spans: Sequences,
    num_experts: int,
    routers: Sequence[str] = (),
) -> tuple[float, ...]:
    """Experts to run per byte: those that a gate watches, and those that it keeps.

    A gate that reads likelihoods runs every expert on every byte that it reads, whatever it keeps.
    A router, which reads the context or the prefix, runs none for that: it is no expert.
    """
    lengths = np.diff(np.r_[spans.starts, spans.num_bytes])

    def one(gate: str, top: str) -> float:
        kept = (1, min(2, num_experts), num_experts)[TOPS.index(top)]
        kind, _, length = gate.rpartition(" ")
        if kind in ("prefix", "hard after"):
            read = np.minimum(lengths, int(length)).sum() / spans.num_bytes
            return float(read * num_experts + (1 - read) * kept)
        return float(kept if gate in ("static", "oracle", *routers) else num_experts)

    return tuple(one(*gate_variant) for gate_variant in gate_variants)


def exact_sums(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Sums of rows [W, …] by group, without rounding on the way: documents are long. [groups, …]"""
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    ends = np.r_[starts[1:], group.size]
    rows = values.reshape(group.size, -1).T
    sums = [[math.fsum(row[a:b]) for a, b in zip(starts, ends, strict=True)] for row in rows]
    return np.array(sums).T.reshape(starts.size, *values.shape[1:])


@jax.jit
def _routing_block(log_prior: Array, log_probs: Array) -> tuple[Array, Array]:
    costs = jax.vmap(jax.vmap(routing_cost, (None, None, 0)), (0, 0, None))
    bounds = jax.vmap(best_expert_bound)
    experts = jnp.arange(log_prior.shape[1])
    return costs(log_prior, log_probs, experts), bounds(log_prior, log_probs)


def _routing(log_priors: np.ndarray, log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each sequence: the cost of each expert alone [Q, K]  [B1], and the bound of B11 [Q].

    Args:
        log_priors: log ŵ_k of each sequence, [Q, K].
        log_probs: log p̂_k of each sequence, [Q, K].
    """
    num = len(log_probs)
    filled = np.zeros(
        (2, -(-num // _BLOCK) * _BLOCK, log_probs.shape[1])
    )  # a shape for all evaluation sets
    filled[:, :num] = log_priors, log_probs
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        blocks = [
            _routing_block(*rows) for rows in np.split(filled, filled.shape[1] // _BLOCK, axis=1)
        ]
    costs, bounds = (np.concatenate(x)[:num] for x in zip(*blocks, strict=True))
    return costs, bounds
