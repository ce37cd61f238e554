"""Can one predict whether experts will beat the dense model?  [D10, B1]

A prediction uses the next smaller size of training text, at which experts and dense model were
trained. Of the predicted size it uses only the number of bytes.

    as before         the sign that the difference had there
    trend             its change from the size before that, once more
    learning curve    each expert falls as one model does from as much text; so does the dense model
    Î(X; K)           its sign: where the experts cannot tell the parts of new text apart, the gate
                      routes worse than a guess, and pays for it
    all quantities    logistic regression on Î(X; K), bytes an expert and the gate's margin, fitted
                      on smaller sizes, whose differences are known by then
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Row = Mapping[str, Any]
RULES = ("as before", "trend", "learning curve", "Î(X; K)", "all quantities")
QUANTITIES = ("information", "bytes_per_expert", "margin")
DECIDED = ("better", "worse")


def predictions(rows: Sequence[Row], others: Sequence[Row] = ()) -> list[dict[str, Any]]:
    """What each rule predicts for each row that has a smaller size; above 0, experts lose.

    Args:
        rows: The rows of one kind of model: a difference for each variant and size, over seeds.
        others: The rows of another kind of model, on which "all quantities" may be fitted.
    """
    found = []
    for row in rows:
        before = _before(rows, row)
        if not before:
            continue
        last = before[-1]
        foreseen = {"as before": last["mean"], "Î(X; K)": -last["information"]}
        if len(before) > 1:
            foreseen["trend"] = last["mean"] + _steps(last, row) * (
                (last["mean"] - before[-2]["mean"]) / _steps(before[-2], last)
            )
        curve = sorted({(r["bytes"], r["dense"]) for r in rows if r["bytes"] <= last["bytes"]})
        if len(curve) > 1:
            foreseen["learning curve"] = last["mean"] + _fall(curve, last, row)
        known = [r for r in (*rows, *others) if r["bytes"] < row["bytes"] or r in others]
        if (odds := _log_odds([*rows, *others], known, row)) is not None:
            foreseen["all quantities"] = odds
        found.append(
            {
                "model": row["model"],
                "partition": row["partition"],
                "num_experts": row["num_experts"],
                "bytes": row["bytes"],
                "mean": row["mean"],
                "verdict": row["verdict"],
                "foreseen": foreseen,
            }
        )
    return found


def accuracies(found: Sequence[Row]) -> list[dict[str, Any]]:
    """How often each rule has the sign right, if the sign is decided, and a constant guess.

    The rules are compared on the same rows: those for which all of them give a prediction.
    """
    judged = [
        row for row in found if row["verdict"] in DECIDED and set(RULES) <= set(row["foreseen"])
    ]
    if not judged:
        return []
    worse = np.array([row["mean"] > 0 for row in judged])
    table = [
        {
            "rule": rule,
            "rows": len(judged),
            "right": int(((np.array([r["foreseen"][rule] for r in judged]) > 0) == worse).sum()),
        }
        for rule in RULES
    ]
    constant = {"rule": "always the commoner sign", "rows": len(judged)}
    return [constant | {"right": int(max(worse.sum(), (~worse).sum()))}, *table]


def separations(rows: Sequence[Row]) -> dict[str, float | None]:
    """The AUC of each quantity, at one size before, for "experts win" over the decided rows.

    0.5 is chance; below 0.5, the quantity predicts that experts lose. None if all signs are the
    same.
    """
    known = list(_decided(rows, rows))
    wins = np.array([row["mean"] < 0 for row, _ in known])
    if wins.all() or not wins.any():
        return dict.fromkeys(QUANTITIES)
    features = np.array([values for _, values in known])
    return {
        name: float(roc_auc_score(wins, column))
        for name, column in zip(QUANTITIES, features.T, strict=True)
    }


def best_numbers(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The number of experts of smallest loss, per partition and size; 1 is the dense model."""
    found = []
    for kind in dict.fromkeys(row["partition"] for row in rows):
        own = [row for row in rows if row["partition"] == kind]
        for size in dict.fromkeys(row["bytes"] for row in own):
            here = [row for row in own if row["bytes"] == size]
            losses = {1: here[0]["dense"]} | {
                row["num_experts"]: row["dense"] + row["mean"] for row in here
            }
            best = min(losses, key=losses.__getitem__)
            found.append(
                {
                    "partition": kind,
                    "bytes": size,
                    "best": best,
                    "losses": {str(number): losses[number] for number in sorted(losses)},
                }
            )
    return found


def _before(rows: Sequence[Row], row: Row) -> list[Row]:
    """The same variant at smaller sizes, in order of size."""
    own = [r for r in rows if _variant(r) == _variant(row) and r["bytes"] < row["bytes"]]
    return sorted(own, key=lambda r: r["bytes"])


def _variant(row: Row) -> tuple[Any, ...]:
    return row["model"], row["partition"], row["num_experts"]


def _steps(a: Row, b: Row) -> float:
    return float(np.log(b["bytes"] / a["bytes"]))


def _fall(curve: Sequence[tuple[float, float]], last: Row, row: Row) -> float:
    """How much less experts gain than the dense model between two sizes, by that model's curve."""
    number = row["num_experts"]

    def gain(share: float) -> float:
        return _along(curve, row["bytes"] / share) - _along(curve, last["bytes"] / share)

    return gain(number) - gain(1)


def _along(curve: Sequence[tuple[float, float]], num_bytes: float) -> float:
    """Piecewise linear in log bytes; its last pieces go on at both ends."""
    at, losses = np.log([x for x, _ in curve]), np.array([y for _, y in curve])
    where = np.log(num_bytes)
    piece = int(np.clip(np.searchsorted(at, where) - 1, 0, at.size - 2))
    slope = (losses[piece + 1] - losses[piece]) / (at[piece + 1] - at[piece])
    return float(losses[piece] + slope * (where - at[piece]))


def _features(before: Row, row: Row) -> list[float]:
    per_expert = np.log(row["bytes"] / row["num_experts"])
    return [before["information"], float(per_expert), before["margin"]]


def _decided(rows: Sequence[Row], known: Sequence[Row]) -> Iterator[tuple[Row, list[float]]]:
    for row in known:
        before = _before(rows, row)
        if before and row["verdict"] in DECIDED:
            yield row, _features(before[-1], row)


def _log_odds(rows: Sequence[Row], known: Sequence[Row], row: Row) -> float | None:
    """Log-odds that experts lose, learned from `known`; None where those have one sign alone."""
    learned = list(_decided(rows, known))
    worse = np.array([r["mean"] > 0 for r, _ in learned])
    if worse.size == 0 or worse.all() or not worse.any():
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(np.array([values for _, values in learned]), worse)
    features = _features(_before(rows, row)[-1], row)
    return float(model.decision_function([features])[0])
