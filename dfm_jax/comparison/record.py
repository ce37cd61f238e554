"""All gate variants of one evaluation set, scored, accounted for and compared, as JSON values."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dfm_jax.comparison.evaluation_sets import EvaluationSet
from dfm_jax.comparison.gates import ContextProbs, Scores, TokenProbs, gate_names, score
from dfm_jax.comparison.loss_account import Account, account
from dfm_jax.comparison.paired import document_comparisons, document_interval

_ENDS = ("mean", "low", "high")


def gate_comparison_record(
    evaluation_set: EvaluationSet,
    log_prior: np.ndarray,
    alpha: float,
    probs: ContextProbs | None,
    *,
    prefixes: Sequence[int],
    num_draws: int,
    seed: int,
    running: TokenProbs | None = None,
    num_bytes: np.ndarray | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
    margin: float | None = None,
    level: float = 0.95,
) -> dict[str, Any]:
    """Every gate variant of one evaluation set, in nats per byte.

    Args:
        evaluation_set: The sequences, scored by every expert and the dense model.
        log_prior: log w_k, [K].
        alpha: α of fixed share.
        probs: The distributions of the contexts of the sequences.
        prefixes: The numbers of tokens after which a gate is kept.
        num_draws: The number of draws of the bootstrap over units.
        seed: The seed of the bootstrap.
        running: The distributions of each token.
        num_bytes: The bytes of each unit, [D]; by default a token is a byte.
        groups: Named groups of units [D], such as domains, for which every gate variant's loss and
            its difference to the dense model are reported too; a single unit has no interval.
        margin: The smallest difference to the dense model that matters, in nats per byte. With it
            each gate variant has a `verdict` over units, see `document_comparison`.
        level: The level of all intervals.
    """
    options = {"prefixes": prefixes, "contexts": probs, "running": running}
    scores = score(
        evaluation_set.log_probs, evaluation_set.sequences, log_prior, alphas=[alpha], **options
    )
    found = account(evaluation_set, scores, log_prior, **options)
    if num_bytes is not None:
        found = replace(found, sizes=num_bytes.astype(float))
    total = found.sizes.sum()
    draws: dict[str, Any] = {"num_draws": num_draws, "seed": seed, "level": level}
    against = {"bayes": _intervals(found.nll - found.bayes, found.sizes, **draws)}
    verdicts: list[dict[str, Any]] = [{} for _ in found.gate_variants]
    if margin is None:
        against["dense"] = _intervals(found.nll - found.dense, found.sizes, **draws)
    else:
        minus = found.nll - found.dense
        judged = document_comparisons(minus, found.sizes, margin=margin, **draws)
        verdicts = [{"verdict": one.as_record()} for one in judged]
        against["dense"] = [[one["verdict"][end] for end in _ENDS] for one in verdicts]
    terms = {name: term.sum(1) / total for name, term in found.terms().items()}
    of_groups = {name: of_group(found, units, **draws) for name, units in (groups or {}).items()}
    of_probs = {
        "contexts": probs.names if probs else (),
        "running": running.names if running else (),
    }
    names = gate_names(prefixes, num_alphas=1, **of_probs)
    rows = [
        {
            "gate": gate,
            "top": top,
            "nll": float(found.nll[v].sum() / total),
            "evaluations": found.evaluations[v],
            "terms": {name: float(term[v]) for name, term in terms.items()},
            "minus": {name: against[name][v] for name in ("dense", "bayes")},
        }
        | verdicts[v]
        | ({"groups": {name: group[v] for name, group in of_groups.items()}} if groups else {})
        for v, (gate, top) in enumerate(found.gate_variants)
    ]
    return {
        "bytes": int(total),
        "units": found.sizes.size,
        "alpha": alpha,
        "dense_nll": float(found.dense.sum() / total),
        "rows": rows,
        "b1_residual": found.b1_residual,
        "b11_slack": found.b11_slack,
        "sum_residual": found.sum_residual(),
        "flattery": found.flattery,
        "margins": _margins(scores, names),
    }


def of_group(found: Account, units: np.ndarray, **draws: Any) -> list[dict[str, Any]]:
    """Each gate variant on some of the units: its loss, and what it is above the dense model's."""
    sizes = found.sizes[units]
    nll = found.nll[:, units].sum(1) / sizes.sum()
    rows = _intervals(found.nll[:, units] - found.dense[units], sizes, **draws)
    return [{"nll": float(v), "minus": row} for v, row in zip(nll, rows, strict=True)]


def _intervals(differences: np.ndarray, sizes: np.ndarray, **draws: Any) -> list[list[Any]]:
    """Estimate, low and high of each row of differences [C, D]; one unit has no ends."""
    if sizes.size == 1:
        return [[value, None, None] for value in (differences.sum(1) / sizes.sum()).tolist()]
    return np.stack(document_interval(differences, sizes, **draws), axis=1).tolist()


def _margins(scores: Scores, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """By gate: the share of tokens in each bin of r_(1) − r_(2), and what top-1 costs there."""
    total = scores.margin_bytes[0].sum()
    return {
        name: {
            "bytes": (scores.margin_bytes[g] / total).tolist(),
            "hard_minus_soft": (scores.margin_gap[g] / total).tolist(),
        }
        for g, name in enumerate(names)
    }
