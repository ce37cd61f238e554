"""The commands verify and equations: they check the theory and print its ledger as a page."""

import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dfm_jax.cli.arguments import KeepBuffers

if TYPE_CHECKING:
    from dfm_jax.theory import Row


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Verify every statement of the theory by enumeration; the exit status is 1 if one fails.

    For example:

        python -m dfm_jax verify

        python -m dfm_jax verify --labels D4 D7 --instances 1000 --seed 3

        python -m dfm_jax verify --precision float32 --devices 8 --json verify.json

        python -m dfm_jax verify --labels X1 --modules my_statement
    """

    labels: tuple[str, ...] = ()
    """The labels of the statements to verify, such as D4 D7; by default all of the theory, or
    all that --modules define."""
    modules: tuple[str, ...] = ()
    """Your own Python modules that define statements, named as in an import; the working folder is
    searched first."""
    seed: int = 0
    """The seed of the random cases."""
    instances: int = 240
    """The number of random cases for each statement."""
    V: int = 2
    """The number V of data tokens; with a mask there is one more state."""
    N: int = 3
    """The number N of positions."""
    K: int = 3
    """The number K of experts."""
    devices: int = 1
    """The number of devices over which the cases are mapped; on a CPU they are virtual."""
    processes: int | None = None
    """The number of processes that share the statements; by default one for each processor, and at
    most one for eight statements."""
    precision: Literal["float64", "float32"] = "float64"
    """The precision: float64 on the host CPU, or float32 on the default device."""
    shapes: Literal["default", "all"] = "default"
    """The shapes of the cases; `all` adds four more shapes."""
    json: Path | None = None
    """A file to which the rows are written."""
    keep_buffers: KeepBuffers = True

    def run(self) -> int:
        """Print one line for each statement when it is verified."""
        import jax
        from tqdm import tqdm

        from dfm_jax.checks import check_count
        from dfm_jax.theory import LEDGER, Shape, import_statements, verify

        if self.json is not None:  # before the work, not after it
            _writable(self.json)
        check_count("devices", self.devices, at_most=1024)  # XLA makes whatever it is told to
        if self.devices > 1:  # of the host; an accelerator has as many as it has
            jax.config.update("jax_num_cpu_devices", self.devices)
        if self.modules and str(Path.cwd()) not in sys.path:  # it is, for `python -m`
            sys.path.insert(0, str(Path.cwd()))
        entered = import_statements(self.modules)
        labels = self.labels or entered
        start, rows = time.perf_counter(), []
        judged = verify(
            labels,
            seed=self.seed,
            instances=self.instances,
            shape=Shape(self.V, self.N, self.K),
            shapes=self.shapes,
            precision=self.precision,
            num_devices=self.devices,
            num_processes=self._num_processes(len(labels) or len(LEDGER)),
        )
        bar = tqdm(total=len(labels) or len(LEDGER), leave=False, unit="statement", disable=None)
        for row in judged:
            if not rows:
                tqdm.write(_line(*_HEADINGS), file=sys.stdout)
            rows.append(row)
            bar.update()
            tqdm.write(_show(row), file=sys.stdout)
        bar.close()
        failed = [_why(row) for row in rows if not row.passed]
        seconds = time.perf_counter() - start
        if failed:
            verdict = f"FAILED: {', '.join(failed)}"
        elif rows[0].falsifier_instances:
            verdict = "all hold, and every falsifier fails"
        else:
            verdict = "all hold; no falsifier was judged, for nothing breaks where V, N or K is 1"
        statements = "1 statement" if len(rows) == 1 else f"{len(rows)} statements"
        with_proof = sum(bool(row.proof) for row in rows)
        how = f"{with_proof} of them proved in Coq, {self.precision}, {seconds:.0f} s"
        print(f"\n{statements}, {how}: {verdict}.")
        if self.json is not None:
            self.json.write_text(json.dumps([_jsonable(row) for row in rows], indent=1) + "\n")
        return 1 if failed else 0

    def _num_processes(self, num_statements: int) -> int:
        """To start a process takes as long as a statement or two."""
        if self.processes is not None:
            return self.processes
        usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
        return max(1, min(len(usable), num_statements // 8))


@dataclass(frozen=True, kw_only=True)
class Equations:
    """Write the equation ledger as a page.

    For example:

        python -m dfm_jax equations --out EQUATIONS.md
    """

    out: Path | None = None
    """The file to write; by default the page is printed."""

    def run(self) -> int:
        """Print or write the page."""
        from dfm_jax.theory import equations

        if self.out is None:
            print(equations(), end="")
        else:
            _writable(self.out)
            self.out.write_text(equations(), "utf-8")
        return 0


def _writable(path: Path) -> None:
    """Make the file's folder and open the file, so that a bad path ends before the work begins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()


def _why(row: "Row") -> str:
    """Why a row failed: its residual is too large, or its falsifier's is too small."""
    if not row.residual <= row.tolerance:
        return f"{row.label} (residual {row.residual:.1e}, at most {row.tolerance:.0e})"
    return f"{row.label} (its falsifier misses a generic case by {row.falsifier:.1e} only)"


_HEADINGS = ("", "statement", "kind", "residual", "tolerance", "falsifier", "cases", "", "proof")


def _line(label, words, kind, residual, tolerance, falsifier, cases, verdict, proof) -> str:
    words = words if len(words) <= 66 else words[:65] + "…"
    return (
        f"{label:<4}{words:<67}{kind:<11}{residual:>9}{tolerance:>10}{falsifier:>10}"
        f"{cases:>6} {verdict:<2}{proof}".rstrip()
    )


def _show(row: "Row") -> str:
    return _line(
        row.label,
        row.statement,
        row.kind,
        f"{row.residual:.1e}",
        f"{row.tolerance:.1e}",
        f"{row.falsifier:.1e}",
        str(row.instances),
        "✓" if row.passed else "✗ FAILED ",
        row.proof,
    )


def _jsonable(row: "Row") -> dict:
    """Infinite and undefined numbers are null: JSON has none."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row._asdict().items()
    }
