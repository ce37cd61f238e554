"""The proofs' own definitions beside the functions of the package, on the same random spaces.

    python -m dfm_jax.theory.proofs.tie

A theorem speaks of definitions in Coq; users call functions in jax. For each label, `ties` computes
both: the definition in exact rationals, as Coq extracts it, and the function in float64. Where the
theorem is an equation, both of its sides are computed exactly too, and must be equal.
"""

import sys
from collections.abc import Container

import numpy as np

from dfm_jax.theory.proofs import ties_of_experts as ties_of_experts  # each adds to TIES and SIDES
from dfm_jax.theory.proofs import ties_of_flows as ties_of_flows
from dfm_jax.theory.proofs import ties_of_steps as ties_of_steps
from dfm_jax.theory.proofs.extracted import Definitions
from dfm_jax.theory.proofs.spaces import TIES, TOLERANCE, Row, Space, floats
from dfm_jax.theory.runs import Run


def ties(
    num_spaces: int = 3,
    *,
    seed: int = 0,
    labels: Container[str] | None = None,
    definitions: Definitions | None = None,
) -> list[Row]:
    """The largest gap of every tie, or of those of some labels, over random spaces."""
    run, definitions = Run(), definitions or Definitions.load()
    spaces = [Space(seed + n, definitions, run) for n in range(num_spaces)]
    rows = []
    for label, definition, function, values in TIES:
        if labels is not None and label not in labels:
            continue
        gaps = [0.0]
        for space in spaces:
            exact, computed = values(space)
            exact = floats(exact)
            if exact.shape != computed.shape:
                raise ValueError(f"{label}: shapes {exact.shape} and {computed.shape} differ.")
            gaps.append(float(np.max(np.abs(exact - computed))))
        rows.append(Row(label, definition, function, max(gaps)))
    return rows


def main() -> int:
    """Print the table of ties; the exit status is 1 if a gap is too large."""
    rows = ties()
    for row in rows:
        print(f"{row.label:4} {row.definition:36} {row.function:40} {row.gap:.1e}")
    return int(any(row.gap > TOLERANCE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
