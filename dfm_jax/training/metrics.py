"""metrics.jsonl: one line for each logged step; a resumed run removes the lines it will repeat.

The name of a validation loss says what it is. A left-to-right network gives −log p̂ itself. A
masked network gives an upper bound on it [L5], an expectation over masks that draws estimate. The
two must not be compared as equals: the second is noisy, and too large by an unknown amount.
"""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfm_jax.durable import write_file
from dfm_jax.interfaces import Measure
from dfm_jax.json_text import parse_json, read_json_lines
from dfm_jax.json_types import as_type
from dfm_jax.storage.folders import Folder
from dfm_jax.training.trackers import Tracker, described


class MetricsLog:
    """Lines `{"step": …, …}` in the order of steps; a tracker is told each of them.

    `begin(step)` removes all lines after that step, and a line that a kill cut short. If `flush` is
    called before every checkpoint, no line is lost and none occurs twice. Each line is in the file
    at once, so that others can read it while the run goes on.

    The log comes first: what a tracker raises is told once, and the tracker is told the next line.
    `close` says how many lines it missed.
    """

    def __init__(
        self,
        path: Path,
        *,
        tracker: Tracker | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Log to `path`; `say` prints a message for the user, by default to stderr."""
        self.path, self.tracker = path, tracker
        self._say = (lambda text: print(text, file=sys.stderr)) if say is None else say
        self._file: Any = None
        self._told = self._missed = 0

    def begin(self, step: int) -> None:
        """Open the log of a run that continues from `step`.

        Raises:
            ValueError: if a line up to that step has no end, or is not JSON.
        """
        write_file(self.path, b"".join(_lines_until(self.path, step)))
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def write(self, step: int, **values: float) -> None:
        """Append a line, and tell the tracker.

        Raises:
            ValueError: if a value is not finite, because JSON has no such number.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"`{name}` must be finite; got {name} = {value} at step {step}.")
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self.tracker is None:
            return
        self._told += 1
        try:
            self.tracker(step, values)
        except Exception as error:
            self._missed += 1
            if self._missed == 1:
                self._say(
                    f"{self.path.parent}: the tracker failed at step {step}, and the run goes on: "
                    f"{described(error)}"
                )

    def flush(self) -> None:
        """Force the lines that were written to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush, and close the file."""
        if self._file is not None:
            self.flush()
            self._file.close()
        if self._missed > 1:
            self._say(
                f"{self.path.parent}: the tracker missed {self._missed} of {self._told} lines; "
                f"{self.path.name} has them all."
            )


def read_metrics(path: Folder) -> list[dict[str, float]]:
    """The lines of a log.

    Raises:
        ValueError: if a line is not a JSON object of numbers; a kill may have cut the last one.
    """
    rows = list(read_json_lines(path))
    for number, row in rows:
        as_type(dict[str, float], row, f"{path}, line {number}")
    return [row for _, row in rows]


def _lines_until(path: Path, step: int) -> list[bytes]:
    kept: list[bytes] = []
    lines = path.read_bytes().splitlines(keepends=True) if step > 0 and path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            whole = as_type(int, parse_json(line)["step"], "step") if line.endswith(b"\n") else None
        except (ValueError, KeyError, TypeError):
            whole = None
        if whole is None:
            if number == len(lines):
                break  # cut by a kill, after the last flush
            rule = "the line must be a JSON object with a whole number `step`"
            raise ValueError(f"{path}, line {number}: {rule}; got {line[:80]!r}.")
        if whole > step:
            break
        kept.append(line)
    return kept


METRICS: dict[Measure, str] = {  # in metrics.jsonl and checkpoints
    "exact": "validation",
    "bound": "validation_bound",
    "loss": "validation_loss",
}


def metric_name(measure: Measure) -> str:
    """The name of a validation loss among the metrics."""
    return METRICS[measure]


def measure_words(measure: Measure, num_draws: int, error: float | None) -> str:
    """The words for a loss in a table; the standard error is over draws, per token."""
    if measure == "exact":
        return "exact −log p"
    if measure == "loss":
        return "the loss, neither −log p nor a bound on it"
    draws = "1 draw" if num_draws == 1 else f"{num_draws} draws"
    told = "" if error is None else f", s.e. of them {error:.4f}/token"
    return f"upper bound on −log p, {draws} a window{told}"
