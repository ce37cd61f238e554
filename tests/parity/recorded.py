"""What the peers gave: written to a fixture, or with `--check` compared with what stands there."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def record(fixture: Path, found: dict[str, Any], *, tolerance: float = 1e-6) -> None:
    """Write the fixture; with `--check` on the command line, compare it, and exit with 1 or 0.

    The tolerance is for two versions of a peer, or two machines.
    """
    if "--check" not in sys.argv[1:]:
        fixture.write_text(json.dumps(found) + "\n")
        return
    kept, again = json.loads(fixture.read_text()), json.loads(json.dumps(found))
    apart = list(differences(kept, again, tolerance))
    print(f"{fixture.name}: {kept['versions']} then, {again['versions']} now")
    for line in apart[:20]:
        print(f"  {line}")
    print(f"  {len(apart)} differences above {tolerance:g}")
    sys.exit(bool(apart))


def differences(kept: Any, again: Any, tolerance: float, at: str = "") -> Iterator[str]:
    """Where two values of JSON differ; the versions of the peers may."""
    if isinstance(kept, dict) and isinstance(again, dict):
        for name in kept.keys() | again.keys():
            if (at, name) != ("", "versions") and name != "transformers_version":
                yield from differences(kept.get(name), again.get(name), tolerance, f"{at}/{name}")
    elif isinstance(kept, list) and isinstance(again, list) and len(kept) == len(again):
        for i, (one, other) in enumerate(zip(kept, again, strict=True)):
            yield from differences(one, other, tolerance, f"{at}/{i}")
    elif isinstance(kept, float) and isinstance(again, float):
        if not math.isclose(kept, again, rel_tol=tolerance, abs_tol=tolerance):
            yield f"{at}: {kept} then, {again} now"
    elif kept != again:
        yield f"{at}: {kept!r} then, {again!r} now"
