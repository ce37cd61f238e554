"""What a sweep found: its runs averaged over their seeds, and the best of them.

Groups of one grid are read together. A finished group has its results in sweep.json, judged on all
documents that were held out. Of a group that is not finished, the last evaluation in metrics.jsonl
counts, which may be of fewer documents. Runs that differ in nothing but their seed are one
configuration: its number is their mean, and its spread is their standard deviation. Only several
seeds say how much of a difference is chance.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from dfm_jax.json_text import parse_json
from dfm_jax.storage.folders import Folder
from dfm_jax.training.config import to_json
from dfm_jax.training.metrics import metric_name
from dfm_jax.training.status import VALIDATIONS, MemberFiles, files_of_members
from dfm_jax.training.sweep import RESULT, read_results

RunState = Literal["finished", "unfinished", "not finite"]
_ORDER: tuple[RunState, ...] = ("finished", "unfinished", "not finite")


class SweepRun(NamedTuple):
    """One run of a sweep, as far as it is."""

    group: str  # group_000
    number: int  # in its group
    config: dict[str, Any]
    step: int  # the updates that were made when it was judged
    state: RunState  # not finite: its next update was not finite, so it stopped
    validation: float | None  # nats per token; None if it was not judged, or is not finite
    measure: str | None  # the name of the validation: see `metrics.METRICS`


class Configuration(NamedTuple):
    """The runs that differ only in their seed."""

    config: dict[str, Any]  # with the lowest of its seeds
    values: dict[str, Any]  # of the fields that vary in the sweep, by their paths
    seeds: tuple[int, ...]
    step: int  # the fewest updates that one of its runs has made
    state: RunState  # of the worst of its runs
    mean: float | None  # nats per token; None unless all its runs have a validation
    spread: float | None  # the standard deviation over seeds; None if there is one seed
    measure: str | None


class Report(NamedTuple):
    """What a sweep found, from the best configuration to the worst."""

    configurations: tuple[Configuration, ...]
    runs: tuple[SweepRun, ...]
    fields: tuple[str, ...]  # that vary, but for the seed
    waiting: tuple[str, ...]  # the groups of which nothing is known yet

    @property
    def candidates(self) -> tuple[Configuration, ...]:
        """Those among which the best is chosen: finished ones, or if there is none, all judged."""
        judged = [one for one in self.configurations if one.mean is not None]
        kinds = {one.measure for one in judged}
        kind = next((name for name in VALIDATIONS if name in kinds), None)
        same = [one for one in judged if one.measure == kind]
        return tuple([one for one in same if one.state == "finished"] or same)

    @property
    def best(self) -> Configuration | None:
        """The candidate with the lowest mean; None if no configuration was judged."""
        return self.candidates[0] if self.candidates else None


def read_report(run: Folder) -> Report:
    """Read the groups of a sweep, finished or not.

    Raises:
        ValueError: if the folder is not that of a sweep; if a sweep.json is not as `sweep` writes
            it.
    """
    groups = [files for files in files_of_members(run) if files.name.startswith("group_")]
    if not groups:
        rule = "`run` must be the folder of a sweep, which holds group_000"
        raise ValueError(f"{rule}; got run = {str(run)!r}.")
    runs: list[SweepRun] = []
    waiting = []
    for files in groups:
        found = _finished(run / files.name) if RESULT in files.names else _unfinished(files)
        runs += found
        if not found:
            waiting.append(files.name)
    return report_of(runs, waiting)


def report_of(runs: Sequence[SweepRun], waiting: Sequence[str] = ()) -> Report:
    """Average over seeds, and sort: first what can be the best, at the end what is not finite."""
    flat = [_fields(one.config) for one in runs]
    names = dict.fromkeys(name for one in flat for name in one)
    fields = tuple(
        name
        for name in names
        if name != "seed" and len({json.dumps(one.get(name)) for one in flat}) > 1
    )
    same: dict[str, list[SweepRun]] = {}
    for one in runs:
        key = json.dumps(one.config | {"seed": None}, sort_keys=True)
        same.setdefault(key, []).append(one)
    configurations = sorted((_averaged(each, fields) for each in same.values()), key=_rank)
    return Report(
        tuple(configurations), tuple(sorted(runs, key=_rank_of_run)), fields, tuple(waiting)
    )


def within_spread(report: Report) -> tuple[Configuration, ...]:
    """The candidates whose mean lies above the best one's by no more than the larger spread.

    Without a spread, which one seed does not have, none can be told.
    """
    if report.best is None or report.best.mean is None:
        return ()
    best, found = report.best, []
    for one in report.candidates[1:]:
        spreads = [spread for spread in (best.spread, one.spread) if spread is not None]
        assert one.mean is not None
        if spreads and one.mean - report.best.mean <= max(spreads):
            found.append(one)
    return tuple(found)


def named_values(configuration: Configuration) -> str:
    """The fields that vary with their values, as `--set` takes them."""
    words = (f"{name}={shown_value(value)}" for name, value in configuration.values.items())
    return " ".join(words) or "the only configuration"


def shown_value(value: Any) -> str:
    """A value of a field in as few characters as give it back: a bare word, or JSON."""
    if isinstance(value, float) and float(short := f"{value:g}") == value:
        return short
    return value if isinstance(value, str) else json.dumps(value)


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def _finished(folder: Folder) -> list[SweepRun]:
    return [
        SweepRun(
            folder.name,
            number,
            to_json(row.config),
            row.step,
            "finished" if row.finished else "not finite",
            row.validation if row.finished else None,
            metric_name(row.measure),
        )
        for number, row in enumerate(read_results(folder))
    ]


def _unfinished(files: MemberFiles) -> list[SweepRun]:
    """The runs of a group that has a checkpoint; nothing else says what they are."""
    record = _object(files.record or b"")
    config = record.get("config")
    configs = config.get("configs") if isinstance(config, dict) else None
    if not isinstance(configs, list):
        return []
    lines = [line for line in files.log.splitlines() if b'"validation' in line]
    last = next((found for line in reversed(lines) if (found := _object(line))), {})
    step = int(last.get("step", 0))
    found = []
    for number, one in enumerate(configs):
        names = [name for name in VALIDATIONS if f"{name}/{number}" in last]
        value = last[f"{names[0]}/{number}"] if names else None
        state: RunState = "not finite" if last and value is None else "unfinished"
        made = min(step, one["num_steps"])
        measure = names[0] if names else None
        found.append(SweepRun(files.name, number, one, made, state, value, measure))
    return found


def _object(text: bytes) -> dict[str, Any]:
    """The object in a line or a file; {} if it is cut, as it may be while it is written."""
    try:
        found = parse_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= _fields(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _averaged(runs: Sequence[SweepRun], fields: Sequence[str]) -> Configuration:
    state = _ORDER[max(_ORDER.index(one.state) for one in runs)]
    values = [one.validation for one in runs if one.validation is not None]
    judged = len(values) == len(runs)
    first, flat = min(runs, key=lambda one: one.config["seed"]), _fields(runs[0].config)
    return Configuration(
        first.config,
        {name: flat.get(name) for name in fields},
        tuple(sorted(one.config["seed"] for one in runs)),
        min(one.step for one in runs),
        state,
        statistics.fmean(values) if judged else None,
        statistics.stdev(values) if judged and len(values) > 1 else None,
        first.measure,
    )


def _place(state: RunState, measure: str | None, value: float | None) -> tuple[int, int, float]:
    kind = VALIDATIONS.index(measure) if measure in VALIDATIONS else len(VALIDATIONS)
    return kind, _ORDER.index(state), math.inf if value is None else value


def _rank(one: Configuration) -> tuple[int, int, float]:
    return _place(one.state, one.measure, one.mean)


def _rank_of_run(one: SweepRun) -> tuple[int, int, float]:
    return _place(one.state, one.measure, one.validation)
