"""What every study writes: verdicts, a result file with versions, a line per measurement."""

import functools
import json
import operator
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from dfm_jax.checks import require
from dfm_jax.durable import write_file

_RELATIONS = {"≤": operator.le, "≥": operator.ge}


@dataclass(frozen=True)
class Verdict:
    """One claim: a measured number and the bound that was stated before the run."""

    claim: str
    statement: str  # its label in EQUATIONS.md
    value: float
    relation: Literal["≤", "≥"]
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the claim holds; a NaN is a failure."""
        return bool(_RELATIONS[self.relation](self.value, self.bound))


def conclude(
    console: Console,
    config: Any,
    *,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    seeds: Iterable[int] | None = None,
    records: Iterable[Mapping[str, Any]] | None = None,
    versions: Mapping[str, str] | None = None,
    pictures: Iterable[Path] = (),
    shown_as: Mapping[str, str] | None = None,
    tables: Callable[[], None] | None = None,
) -> bool:
    """Write the results of a study, print them, and return whether every claim holds.

    Args:
        console: The console on which to print.
        config: The config of the study; the results go to the folder `config.out`.
        rows: One row per measurement, as the tables show it.
        summary: Results that belong to no row.
        verdicts: The claims.
        seeds: The seeds that were measured; by default the `seed` of each row.
        records: The raw measurements, for `metrics.jsonl`; by default the rows.
        versions: The versions of the programs; by default those of jax and numpy.
        pictures: The files that were drawn.
        shown_as: Values of the config that differ in `result.json`, such as the path of a Python.
        tables: A function that prints the tables of the study.
    """
    result, metrics = write_files(
        config,
        rows=rows,
        summary=summary,
        verdicts=verdicts,
        seeds=seeds,
        records=records,
        versions=versions,
        shown_as=shown_as,
    )
    if tables is not None:
        tables()
    print_verdicts(console, verdicts)
    paths = [*(("picture", one) for one in pictures), ("numbers", result), ("measured", metrics)]
    for what, path in paths:
        console.print(f"{what}: {path}", highlight=False, soft_wrap=True)
    return all(verdict.passed for verdict in verdicts)


def write_files(
    config: Any,
    *,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    seeds: Iterable[int] | None = None,
    records: Iterable[Mapping[str, Any]] | None = None,
    versions: Mapping[str, str] | None = None,
    shown_as: Mapping[str, str] | None = None,
) -> tuple[Path, Path]:
    """Write `result.json` and `metrics.jsonl` to `config.out`; the arguments are `conclude`'s."""
    config.out.mkdir(parents=True, exist_ok=True)
    metrics = write_metrics(config.out, rows if records is None else records)
    result = write_result(
        config.out,
        config=_plain(asdict(config)) | dict(shown_as or {}),
        versions=installed(("jax", "jaxlib", "numpy")) if versions is None else versions,
        seeds=[row["seed"] for row in rows] if seeds is None else seeds,
        rows=rows,
        summary=summary,
        verdicts=verdicts,
    )
    return result, metrics


def _plain(value: Any) -> Any:
    """A path by its name; of several values each."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def draw_differences(
    path: Path,
    differences: Mapping[str, Sequence[float]],
    margin: float,
    unit: str = "nats per token",
) -> Path:
    """A box of each variant's differences over seeds, and the margin that calls them equal."""
    figure, axes = plt.subplots(figsize=(5, 1 + 0.5 * len(differences)), layout="constrained")
    axes.axvspan(-margin, margin, color="0.9")
    axes.boxplot(
        list(differences.values()), tick_labels=list(differences), orientation="horizontal"
    )
    axes.set_xlabel(f"difference, {unit}")
    figure.savefig(path)
    plt.close(figure)
    return path


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Python's version and those of installed packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def installed_in(peers_python: str, packages: Sequence[str]) -> dict[str, str]:
    """The versions of packages in another environment.

    Raises:
        ValueError: if one of them is missing.
    """
    program = (
        "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    )
    command = [peers_python, "-c", program, *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    *others, last = packages
    names = f"{', '.join(others)} and {last}" if others else last
    said = (done.stderr.strip().splitlines() or [""])[-1]
    rule = f"`peers_python` must be a Python with {names}"
    require(done.returncode == 0, rule, peers_python, then=f"It said: {said}")
    return dict(zip(packages, done.stdout.split(), strict=True))


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
    write_file(path, f"{_opened(result, _opened)}\n")  # whole, or as it was before
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
