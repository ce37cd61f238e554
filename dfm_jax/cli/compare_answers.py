"""The command compare-answers: one table over benchmarks, the dense model against the experts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dfm_jax.cli.arguments import KeepBuffers
from dfm_jax.durable import write_file

if TYPE_CHECKING:
    from dfm_jax.scoring.sides import Difference

Benchmark = Literal[
    "vqa",
    "textvqa",
    "gqa",
    "ai2d",
    "scienceqa",
    "docvqa",
    "infovqa",
    "chartqa",
    "refcoco",
    "pope",
    "mme",
]


@dataclass(frozen=True, kw_only=True)
class CompareAnswers:
    """Compare the answers of the dense model and of the experts, in one table over benchmarks.

    Both answered the same questions, which are paired by their ids. Each row has the score of each
    side in points (out of 100; of MME out of 200 for each subtask), the difference experts − dense
    with its t interval over questions, and a verdict about the experts: equivalent (a difference of
    the margin or more is rejected by two one-sided t tests), better, worse or undecided.

    The four lists have one entry for each row of the table. The files are those of `score`.

    For example:

        python -m dfm_jax compare-answers --benchmarks gqa pope --questions gqa.jsonl pope.jsonl
        --dense gqa.dense.jsonl pope.dense.jsonl --experts gqa.experts.jsonl pope.experts.jsonl
        --margin 1 --json table.json
    """

    benchmarks: tuple[Benchmark, ...]
    """The benchmark of each row; one may come several times, with other questions."""
    questions: tuple[Path, ...]
    """The questions of each row: JSONL, as for `score`."""
    dense: tuple[Path, ...]
    """The answers of the dense model to each: JSONL, as `answer` writes them."""
    experts: tuple[Path, ...]
    """The answers of the experts to each."""
    margin: float = 1.0
    """The smallest difference that matters, in points out of 100, stated before the run."""
    level: float = 0.95
    """The level of the intervals; the tests of equivalence are made at 1 − level."""
    box_scale: Literal["pixels", "0-1", "0-1000"] | None = None
    """The unit of the boxes in the answers to RefCOCO."""
    json: Path | None = None
    """A file to which the table is written as JSON too."""
    keep_buffers: KeepBuffers = True

    def run(self) -> int:
        """Print the table, and write it if --json is given."""
        from dfm_jax.checks import require

        count = len(self.benchmarks)
        for name in ("questions", "dense", "experts"):
            given = len(getattr(self, name))
            rule = f"`{name}` must name a file for each of the {count} benchmarks"
            require(given == count, rule, given, name=f"number of {name}")
        rows = [self._row(place) for place in range(count)]
        names = [path.stem for path in self.questions]
        print("\n".join(table(names, rows, level=self.level)))
        if self.json is not None:
            records = [
                {"name": name} | row.as_record() for name, row in zip(names, rows, strict=True)
            ]
            found = {"level": self.level, "margin": self.margin, "rows": records}
            write_file(self.json, json.dumps(found, indent=1) + "\n")
        return 0

    def _row(self, place: int) -> "Difference":
        from dfm_jax.scoring import merge_predictions, read_questions
        from dfm_jax.scoring.sides import difference

        name = self.benchmarks[place]
        questions = read_questions(self.questions[place], name)
        dense, experts = (
            merge_predictions(questions, [paths[place]]).texts
            for paths in (self.dense, self.experts)
        )
        return difference(
            name,
            questions,
            dense=dense,
            experts=experts,
            margin=self.margin,
            level=self.level,
            box_scale=self.box_scale if name == "refcoco" else None,
        )


def table(names: list[str], rows: "list[Difference]", *, level: float) -> list[str]:
    """The lines of the table, under a header."""
    width = max([len("questions of"), *map(len, names)])
    interval = f"{100 * level:g} % interval"
    head = f"{'questions of':<{width}}  {'score':<26}{'questions':>10}{'dense':>10}{'experts':>10}"
    lines = [f"{head}{'difference':>12}  {interval:<20}{'margin':>8}  verdict"]
    for name, row in zip(names, rows, strict=True):
        ends = f"[{row.low:+.2f}, {row.high:+.2f}]"
        lines.append(
            f"{name:<{width}}  {f'{row.benchmark} {row.score}':<26}{row.questions:>10,}"
            f"{row.dense:>10.2f}{row.experts:>10.2f}{row.difference:>+12.2f}  {ends:<20}"
            f"{row.margin:>8g}  {row.verdict}"
        )
    return lines
