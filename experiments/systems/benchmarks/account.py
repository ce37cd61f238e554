"""Results from the seconds that `benchmarks` measured: ratios, gaps, slopes, verdicts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy.stats import chi2_contingency

from experiments.lib.reporting import Verdict
from experiments.systems.benchmarks.kinds import BEFORE, Goal, Workload, size_of
from experiments.systems.benchmarks.workloads import BY_NAME
from experiments.systems.training_speed.sides import DEFAULT
from experiments.systems.training_speed.times import MET, block_times, ratio

Row = dict[str, Any]
COLUMNS = (
    *(
        "workload",
        "size",
        "threads",
        "allocator",
        "ours_s",
        "peer",
        "peer_s",
        "ratio",
        "low",
        "high",
    ),
    *("peak_mb", "peer_peak_mb", "goal", "form", "gap"),
)
VALUES = 1e-3  # of a loss, a gradient, a distribution: the largest gap over the largest number
PROBS = 1e-6  # a p-value
# What our mean cosine may lack of the peer's, from other random starts; chosen on a pilot run, in
# which one start of each differed by 0.013.
OBJECTIVE = 0.02
_FEWEST = 10  # counts of a cell below which the chi-square distribution is not believed


def before_form(form: str) -> str:
    """The name under which a form of the earlier build is measured."""
    return f"{BEFORE}: {form}"


def rows_of(workload: Workload, cell: Mapping[str, Any], seed: int) -> list[Row]:
    """A row per number of threads, allocator, peer and form, from the data of one size.

    The earlier build is a peer whose forms are compared with ours of the same name.
    """
    rows = []
    size = size_of(cell["size"]) if workload.axis else {}
    for run in cell["runs"]:
        blocks, peaks = run["blocks"], cell["peaks"]
        for peer in (*workload.peers, BEFORE):
            for form in workload.forms:
                theirs = before_form(form) if peer == BEFORE else peer
                if theirs not in blocks:
                    continue
                times = block_times(blocks[theirs]), block_times(blocks[form])
                estimate, low, high = ratio(*times, seed=seed)
                found = {
                    "workload": workload.name,
                    "size": cell["size"],
                    "threads": run["threads"],
                    "allocator": run["allocator"],
                    "ours_s": float(np.median(times[1])),
                    "peer": peer,
                    "peer_s": float(np.median(times[0])),
                    "ratio": estimate,
                    "low": low,
                    "high": high,
                    "peak_mb": peaks[form],
                    "peer_peak_mb": peaks[theirs],
                    "goal": workload.goal(peer, size, run["allocator"]),
                    "form": form,
                    "gap": gap_of(workload, cell["shown"], form, theirs),
                }
                rows.append({name: found[name] for name in COLUMNS})
    return rows


# ── whether a pair does the same work ───────────────────────────────────────────────────────────


def gap_of(workload: Workload, shown: Mapping[str, Any], form: str, peer: str) -> float | None:
    """How far a form is from the peer, or from our clear form if the peer has no comparable result.

    For values it is the largest gap over the largest number of their group; for draws, the p-value
    that both have one distribution; for an objective, the share by which ours is lower. None means
    that there is no check.
    """
    ours = shown.get(form)
    theirs = shown.get(peer) or (shown.get("clear") if form != "clear" else None)
    if not ours or not theirs:
        return None
    if workload.check == "probs":
        return same_probs(np.sum(ours, axis=0), np.sum(theirs, axis=0))
    if workload.check == "objective":
        return 1 - float(np.mean(ours) / np.mean(theirs))
    groups = zip(ours[0], theirs[0], strict=True)
    return max(float(np.abs(np.subtract(a, b)).max() / np.abs(b).max()) for a, b in groups)


def same_probs(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The p-value of Pearson's test that two histograms agree; rare cells are merged."""
    table = np.array([ours, theirs])
    rare = table.sum(axis=0) < 2 * _FEWEST
    rest = table[:, rare].sum(axis=1, keepdims=True)
    table = np.concatenate([table[:, ~rare], rest], axis=1)
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2:
        return 1.0
    return float(np.asarray(chi2_contingency(table, correction=False)[1]))


# ── growth, aims ────────────────────────────────────────────────────────────────────────────────


def curves(workload: Workload, rows: Iterable[Row]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The sizes along the workload's axis and the seconds of every side.

    They are for the sizes that are the first one but for the axis, and for the setting that the
    most of them have: if several, the fewest threads, with the default of glibc's allocator.
    """
    mine = [row for row in rows if row["workload"] == workload.name]
    if not mine or not workload.axis:
        return {}
    first = size_of(mine[0]["size"])
    mine = [r for r in mine if first | size_of(r["size"]) == first | _along(workload.axis, r)]
    setting = min(
        {(row["threads"], row["allocator"]) for row in mine},
        key=lambda s: (
            -len({r["size"] for r in mine if (r["threads"], r["allocator"]) == s}),
            s[0],
            s[1] != DEFAULT,
            s[1],
        ),
    )
    found: dict[str, dict[int, float]] = {}
    for row in mine:
        if (row["threads"], row["allocator"]) == setting:
            at = size_of(row["size"])[workload.axis]
            found.setdefault(f"ours, {row['form']}", {})[at] = row["ours_s"]
            peer = f"{BEFORE}, {row['form']}" if row["peer"] == BEFORE else row["peer"]
            found.setdefault(peer, {})[at] = row["peer_s"]
    return {name: (np.array([*at]), np.array([*at.values()])) for name, at in found.items()}


def _along(axis: str, row: Row) -> dict[str, int]:
    return {axis: size_of(row["size"])[axis]}


def slope(sizes: np.ndarray, seconds: np.ndarray) -> float | None:
    """b of seconds ∝ size^b, by least squares of the logarithms; None for a single size."""
    if len(sizes) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def summary_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Per work: its best ratio by form, each aim and whether it is met, the slopes of growth.

    "Best" and "least" are over threads, allocators and the sizes for which the aim is stated. An
    aim is met if it is reached with each side at its own best threads and allocator, because two
    threads that wait for each other on busy processors can take ten times as long as one. If it
    names an allocator, then with that one; if it is for every size, then at each.
    """
    found = {}
    for name in dict.fromkeys(row["workload"] for row in rows):
        workload = BY_NAME[name]
        mine = [row for row in rows if row["workload"] == name]
        found[name] = {
            "best": _by_form(mine, max),
            "goals": [
                _judged(found_rows, goal)
                for goal in workload.goals
                if goal.of == "seconds" and (found_rows := _for(goal, mine, workload))
            ],
            "slopes": {side: slope(*curve) for side, curve in curves(workload, rows).items()},
        }
    return found


def _for(goal: Goal, rows: Iterable[Row], workload: Workload) -> list[Row]:
    """The rows for which an aim is stated."""
    return [
        row
        for row in rows
        if goal.applies(row["peer"], size_of(row["size"]) if workload.axis else {})
        and goal.allocator in ("", row["allocator"])
    ]


def _judged(rows: Sequence[Row], goal: Goal) -> dict[str, Any]:
    choose = {"best": max, "every": min}[goal.at]
    at_best = {
        form: choose(_at_best([r for r in rows if r["form"] == form])) for form in _forms(rows)
    }
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    return {
        "peer": goal.peer,
        "size": sizes[0] if goal.where and len(sizes) == 1 else None,
        "at": goal.at,
        "allocator": goal.allocator or None,
        "goal": goal.ratio,
        "best": _by_form(rows, max),
        "least": _by_form(rows, min),
        "at_best": at_best,
        "met": max(at_best.values()) >= MET * goal.ratio,
    }


def _at_best(rows: Sequence[Row]) -> list[float]:
    """The peer's smallest seconds over ours, at each size."""
    sizes: dict[str, list[Row]] = {}
    for row in rows:
        sizes.setdefault(row["size"], []).append(row)
    return [min(r["peer_s"] for r in s) / min(r["ours_s"] for r in s) for s in sizes.values()]


def _forms(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["form"] for row in rows))


def _by_form(rows: Sequence[Row], choose: Any) -> dict[str, float]:
    return {
        form: choose(row["ratio"] for row in rows if row["form"] == form) for form in _forms(rows)
    }


def verdicts_of(rows: Sequence[Row]) -> tuple[Verdict, ...]:
    """The claims: both sides do the same work. An aim is not a claim; it is in the summary."""
    verdicts = []
    claims: tuple[tuple[str, str, Literal["≤", "≥"], float], ...] = (
        ("values", "largest gap of losses, gradients, distributions", "≤", VALUES),
        ("probs", "smallest p-value of one distribution behind both", "≥", PROBS),
        ("objective", "largest share of the peer's mean cosine that is missing", "≤", OBJECTIVE),
    )
    for check, claim, relation, bound in claims:
        checked = [
            r for r in rows if BY_NAME[r["workload"]].check == check and r["gap"] is not None
        ]
        if checked:
            worst = (max if relation == "≤" else min)(row["gap"] for row in checked)
            verdicts.append(Verdict(claim, "–", worst, relation, bound))
    return tuple(verdicts)


def memory_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Our smallest peak among the forms over the peer's, where an aim of memory is stated."""
    found = []
    for workload in BY_NAME.values():
        mine = [row for row in rows if row["workload"] == workload.name]
        for goal in (goal for goal in workload.goals if goal.of == "memory"):
            peaks = [
                (row["peak_mb"], row["peer_peak_mb"], row["size"])
                for row in _for(goal, mine, workload)
                if row["peak_mb"] is not None and row["peer_peak_mb"]
            ]
            if peaks:
                ours, theirs, size = min(peaks)
                share, most = ours / theirs, 1 / goal.ratio
                one = {"workload": workload.name, "size": size, "peer": goal.peer, "share": share}
                found.append(one | {"goal": most, "met": share <= most / MET})
    return found
