"""The command compare-runs: the dense model and the experts of a run on the same held-out rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dfm_jax.cli.arguments import KeepBuffers, RunFolder

NUMBERS, PAGE = "comparison.json", "comparison.html"


@dataclass(frozen=True, kw_only=True)
class CompareRuns:
    """Compare the experts of a run with its dense model on the same held-out rows, by every gate.

    The numbers are nats per byte, or per token where the data are no text. Differences are paired
    by document and have bootstrap intervals over documents. The verdict is equivalent, better,
    worse or undecided; equivalence is shown by two one-sided tests within --margin. The account
    splits each difference exactly: the experts' own loss, the cost of not knowing the part, the
    gate, and what keeping only the best experts costs. Tokens and FLOPs of the training stand side
    by side, with a warning if they differ by more than 1 %.

    The command prints tables, and writes comparison.json and the page comparison.html, which needs
    no network. The experts are those of `ensemble.json`, or else all of the run.

    For example:

        python -m dfm_jax compare-runs --run run

        python -m dfm_jax compare-runs --run run --margin 0.005 --checkpoint best --out compared

        python -m dfm_jax compare-runs --run experts --dense-run dense --data routed
    """

    folder: RunFolder
    """The folder of the run, which may lie on an object store."""
    dense_run: str | None = None
    """The folder of the run that holds the dense model, if it is another one."""
    data: Path | None = None
    """Compare on all rows of this folder, which `partition` or `route` wrote; without it, on the
    documents that were held out."""
    tokenizer: Path | None = None
    """The tokenizer.json file of the run, if it had one."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint to read; best is the one of the lowest validation loss among those kept. An
    ensemble names its checkpoints itself."""
    margin: float = 0.01
    """The smallest difference that matters, in nats per byte (or token): state it before you
    look."""
    level: float = 0.95
    """The level of the intervals and of the verdict."""
    alpha: float = 0.01
    """The share of fixed share, a Bayes gate that forgets."""
    prefix: int = 16
    """The number of tokens after which the gate `prefix` is kept as it is."""
    draws: int = 10_000
    """The number of draws of the bootstrap."""
    seed: int = 0
    """The seed of the bootstrap."""
    text_only: bool = False
    """Read only the text of rows in --data that have pictures."""
    out: Path | None = None
    """The folder for comparison.json and comparison.html; by default the folder of the run."""
    keep_buffers: KeepBuffers = True

    def run(self) -> int:
        """Compare, print, and write both files."""
        from dfm_jax.checks import require
        from dfm_jax.comparison.page import comparison_page
        from dfm_jax.storage.folders import run_folder, write_whole
        from dfm_jax.training.run_comparison import ComparisonOptions, compare_run

        good = self.out is None or self.out.is_dir() or not self.out.exists()
        require(good, "`out` must be a folder, not a file", self.out)
        found = compare_run(
            self.folder,
            dense_run=None if self.dense_run is None else run_folder(self.dense_run),
            data=self.data,
            tokenizer=self.tokenizer,
            best=self.checkpoint == "best",
            text_only=self.text_only,
            options=ComparisonOptions(
                margin=self.margin,
                level=self.level,
                alpha=self.alpha,
                prefix=self.prefix,
                num_draws=self.draws,
                seed=self.seed,
            ),
        )
        print("\n".join(comparison_lines(found)))
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
        out = self.folder if self.out is None else self.out
        write_whole(out / NUMBERS, json.dumps(found, indent=1, allow_nan=False) + "\n")
        write_whole(out / PAGE, comparison_page(found))
        print(f"\nwritten: {out / NUMBERS}, {out / PAGE}")
        return 0


def comparison_lines(found: Mapping[str, Any]) -> list[str]:
    """The verdict, and the tables of gates, of the account, of groups and of the training."""
    from dfm_jax.comparison import report

    lines = [report.heading(found), *report.verdict_sentences(found)]
    unit = f"nats per {found['unit']}"
    lines += ["", f"Each gate, {unit}; experts: how many are run for a token"]
    lines += _table(report.gate_table(found))
    lines += ["", f"Where each difference comes from, {unit}; {report.residual_text(found)}"]
    lines += _table(report.account_table(found))
    for kind in report.kinds_of(found):
        lines += ["", f"The ensemble by {kind}, {unit}", *_table(report.group_table(found, kind))]
    lines += ["", "What the training cost", *_table(report.training_table(found))]
    return lines


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in rows
    ]
