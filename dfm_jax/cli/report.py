"""The command report: it prints what a sweep found, and writes its best config and pictures."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfm_jax.cli.arguments import RunFolder

if TYPE_CHECKING:
    from dfm_jax.training.report import Configuration
    from dfm_jax.training.report import Report as Found


@dataclass(frozen=True, kw_only=True)
class Report:
    """Print what a sweep found, also while it goes on: the best configuration, and all runs sorted.

    A configuration is the runs that differ only in their seed. Its validation is their mean, in
    nats per token, and its spread is their standard deviation. Another configuration lies within
    the spread if its mean is above the best one by no more than the larger spread of the two. All
    groups of the sweep are read. If some configurations are finished, the best is one of these. A
    configuration with a run that met a number that is not finite comes last, and is never the best.

    For example:

        python -m dfm_jax report --run sweep

        python -m dfm_jax report --run sweep --best best.json --out pictures

        python -m dfm_jax report --run sweep --out pictures
        --fields optimizer.learning_rate model.width
    """

    folder: RunFolder
    """The folder of the sweep, which may lie on an object store."""
    best: Path | None = None
    """Write the best config to this file, which `train --config` takes."""
    out: Path | None = None
    """Write pictures (extra `plots`) and runs.csv into this folder."""
    fields: tuple[str, str] | None = None
    """The two fields of the heat map; by default those along which the mean moves most."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> int:
        """Read, print, and write what is asked for."""
        from dfm_jax.checks import require
        from dfm_jax.durable import write_file
        from dfm_jax.training.report import read_report
        from dfm_jax.training.report_pictures import check_pictures, write_pictures

        rule = "`fields` must be given together with `out`"
        require(self.fields is None or self.out is not None, rule, self.fields)
        report = read_report(self.folder)
        if self.out is not None:
            check_pictures(report, self.fields)
        print(_json_text(report) if self.json else "\n".join(report_lines(self.folder, report)))
        if self.best is not None:
            found = report.best
            rule = "`run` must hold a run that was judged, or there is no best one"
            require(found is not None, rule, str(self.folder))
            assert found is not None
            self.best.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.best, json.dumps(found.config, indent=1) + "\n")
        written = [] if self.best is None else [self.best]
        if self.out is not None:
            written += write_pictures(report, self.out, self.fields)
            write_file(self.out / "runs.csv", _csv_text(report))
            written.append(self.out / "runs.csv")
        if written and not self.json:
            print("\nwritten: " + ", ".join(map(str, written)))
        return 0


def report_lines(run: RunFolder, report: "Found") -> list[str]:
    """The words about the best, the table of configurations, and that of all runs."""
    from dfm_jax.training.report import shown_value

    several = any(len(one.seeds) > 1 for one in report.configurations)
    groups = len({one.group for one in report.runs})
    runs, configurations = _counted(len(report.runs), "run"), len(report.configurations)
    kinds = _counted(configurations, "configuration")
    lines = [f"{run}: {runs} of {kinds} in {_counted(groups, 'group')}"]
    if report.waiting:
        lines.append(f"Nothing is saved yet: {', '.join(report.waiting)}.")
    lines += best_lines(report)
    if several:
        heading = [*report.fields, "seeds", "step", "validation", "spread", ""]
        table = [
            [
                *(shown_value(one.values[name]) for name in report.fields),
                str(len(one.seeds)),
                f"{one.step:,}",
                _loss(one.mean, one.measure),
                "" if one.spread is None else f"{one.spread:.4f}",
                "" if one.state == "finished" else one.state,
            ]
            for one in report.configurations
        ]
        lines += ["", *_table([heading, *table])]
    heading = ["group", "run", *report.fields, "seed", "step", "validation", ""]
    rows = [
        [
            one.group,
            str(one.number),
            *(shown_value(_value(one.config, name)) for name in report.fields),
            str(one.config["seed"]),
            f"{one.step:,}",
            _loss(one.validation, one.measure),
            "" if one.state == "finished" else one.state,
        ]
        for one in report.runs
    ]
    return [*lines, "", *_table([heading, *rows])]


def best_lines(report: "Found") -> list[str]:
    """The best configuration in words, and whether it can be told from the next."""
    from dfm_jax.training.report import named_values, within_spread

    best, candidates = report.best, report.candidates
    if best is None:
        return ["No run was judged yet, so there is no best one."]
    seeds = len(best.seeds)
    spread = "" if best.spread is None else f", spread {best.spread:.4f}"
    mean = "" if seeds == 1 else f", the mean of {seeds} seeds{spread}"
    lines = [f"best: {named_values(best)}: {_loss(best.mean, best.measure)} nats per token{mean}"]
    if best.state != "finished":
        lines.append(f"None is finished; this is the best so far, at step {best.step:,}.")
    equal = within_spread(report)
    if equal:
        verb = "is" if len(equal) == 1 else "are"
        names = "; ".join(named_values(one) for one in equal[:5])
        more = f"; and {len(equal) - 5} more" if len(equal) > 5 else ""
        lines.append(f"Within the spread {verb} {_counted(len(equal), 'other')}: {names}{more}.")
    elif len(candidates) > 1:
        following = candidates[1]
        assert following.mean is not None
        assert best.mean is not None
        above = f"The next lies {following.mean - best.mean:.4f} above it"
        if best.spread is None and following.spread is None:
            lines.append(f"{above}. With one seed each, this may be chance.")
        else:
            lines.append(f"{above}, which is more than the spread of either.")
    left = sum(one.measure not in (best.measure, None) for one in report.configurations)
    if left:
        lines.append(
            f"{_counted(left, 'configuration')} with another kind of validation cannot be compared "
            "with it (≤: an upper bound)."
        )
    unfinished = sum(one.state == "unfinished" for one in report.configurations)
    if unfinished and best.state == "finished":
        lines.append(f"Not compared: {_counted(unfinished, 'configuration')}, not finished.")
    if "held_out" in report.fields:
        lines.append("`held_out` varies, so the runs were judged on different documents.")
    return lines


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}" + "s" * (number != 1)


def _loss(value: float | None, measure: str | None) -> str:
    if value is None:
        return ""
    return f"{'≤ ' * (measure == 'validation_bound')}{value:.4f}"


def _value(config: dict[str, Any], name: str) -> Any:
    found: Any = config
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns flush right, the last one flush left, because it holds words."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [*(c.rjust(w) for c, w in zip(row[:-1], widths[:-1], strict=True)), row[-1]]
        ).rstrip()
        for row in rows
    ]


def _json_text(report: "Found") -> str:
    def of(one: "Configuration | None") -> dict[str, Any] | None:
        return None if one is None else one._asdict()

    found = {
        "best": of(report.best),
        "configurations": [of(one) for one in report.configurations],
        "runs": [one._asdict() for one in report.runs],
        "waiting": report.waiting,
    }
    return json.dumps(found, indent=1)


def _csv_text(report: "Found") -> str:
    """One line for each run, sorted, with the fields that vary."""
    from dfm_jax.training.report import shown_value

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        ["group", "run", *report.fields, "seed", "step", "state", "measure", "validation"]
    )
    for one in report.runs:
        values = [shown_value(_value(one.config, name)) for name in report.fields]
        seed, loss = one.config["seed"], "" if one.validation is None else repr(one.validation)
        rows.writerow(
            [one.group, one.number, *values, seed, one.step, one.state, one.measure, loss]
        )
    return text.getvalue()
