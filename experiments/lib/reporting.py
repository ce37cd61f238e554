"""What every study hands over: verdicts, a result file with versions, a line per measurement."""

import functools
import json
import operator
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

_RELATIONS = {"≤": operator.le, "≥": operator.ge}


@dataclass(frozen=True)
class Verdict:
    """One claim: a measured number against the bound stated before the run."""

    claim: str
    statement: str  # its label in EQUATIONS.md
    value: float
    relation: Literal["≤", "≥"]
    bound: float

    @property
    def passed(self) -> bool:
        """A NaN is a failure: it is neither above nor below."""
        return bool(_RELATIONS[self.relation](self.value, self.bound))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Python's version and those of installed packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def write_result(
    folder: Path,
    *,
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    seeds: Iterable[int],
    rows: Iterable[Mapping[str, Any]],
    summary: Mapping[str, Any],
    verdicts: Iterable[Verdict],
) -> Path:
    """Write `result.json`; the caller's mappings must hold what JSON can."""
    path = folder / "result.json"
    result = {
        "config": config,
        "versions": versions,
        "seeds": list(seeds),
        "rows": list(rows),
        "summary": summary,
        "verdicts": [asdict(verdict) | {"passed": verdict.passed} for verdict in verdicts],
    }
    path.write_text(f"{_opened(result, _opened)}\n", encoding="utf-8")
    return path


def _opened(value: Any, inner: Callable[[Any], str] | None = None) -> str:
    """JSON with an entry a line, so that a row is a line, and a change of it a change of a line."""
    written = inner or functools.partial(json.dumps, ensure_ascii=False)
    if isinstance(value, Mapping):
        lines = [f"{json.dumps(name)}: {written(entry)}" for name, entry in value.items()]
        return "{\n" + ",\n".join(lines) + "\n}"
    return "[\n" + ",\n".join(map(written, value)) + "\n]"


def write_metrics(folder: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write `metrics.jsonl`, one measurement per line."""
    path = folder / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def print_verdicts(console: Console, verdicts: Iterable[Verdict]) -> None:
    """The claims, one a line, and whether each holds."""
    table = Table("claim", "statement", "measured", "bound", "", title="Verdicts")
    for verdict in verdicts:
        table.add_row(
            verdict.claim,
            verdict.statement,
            f"{verdict.value:.3g}",
            f"{verdict.relation} {verdict.bound:.3g}",
            "[green]holds[/]" if verdict.passed else "[bold red]FAILS[/]",
        )
    console.print(table)
