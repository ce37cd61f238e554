"""What every public function of the mathematics returns, kept before a change and compared after.

The examples are those of `test_contracts.FUNCTIONS`, one inside each domain and one on its border,
in float64 and float32. `write OUT.npz` keeps inputs and outputs; `compare BEFORE.npz` evaluates
this tree on the kept inputs, and says of each function whether its outputs are equal to the bit,
within 1e-6, different, or missing, and why. A table `--renames` has a line `old new` for each
function that moved (`experts.mix_velocities mixture.mix`) and each argument
(`objectives.step_loss.log_posterior logits`). The status is 1 if anything is different or missing.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from test_contracts import FUNCTIONS, caller, draw, on_jax

CLOSE = 1e-6


def both_dtypes(value: Callable[[type], Any]) -> dict[str, Any]:
    """As the contracts are called: strictly in float64, and in float32 by default."""
    single = value(np.float32)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        return {"float32": single, "float64": value(np.float64)}


def outputs(name: str, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """All leaves of its value, by dtype and number."""
    values = both_dtypes(lambda dtype: jax.device_get(caller(name)(on_jax(arrays, dtype))))
    return {
        f"{dtype}/{number}": np.asarray(leaf)
        for dtype, value in values.items()
        for number, leaf in enumerate(jax.tree.leaves(value))
    }


def write(out: Path) -> None:
    """Keys: `FUNCTION/inside/in/ARGUMENT` and `FUNCTION/inside/out/float64/0`."""
    kept = {}
    for name, entry in FUNCTIONS.items():
        for place in ("inside", "border") if entry.border else ("inside",):
            arrays = draw(name, 0, border=place == "border")
            leaves = {key: jax.tree.leaves(value) for key, value in arrays.items()}
            for key, (first, *others) in leaves.items():  # others: of a gate's state, if it lives
                kept[f"{name}/{place}/in/{key}"] = first
                kept |= {f"{name}/{place}/in/{key}/{i}": leaf for i, leaf in enumerate(others)}
            for key, leaf in outputs(name, arrays).items():
                kept[f"{name}/{place}/out/{key}"] = leaf
    np.savez_compressed(out, **kept)
    print(f"{len(FUNCTIONS)} functions in {out}")


def verdict(before: dict[str, np.ndarray], renames: dict[str, str], old: str, place: str) -> str:
    """Of one function at one place."""
    new = renames.get(old, old)
    if new not in FUNCTIONS:
        return f"missing: no {new}"
    arrays = draw(new, 0)
    start = f"{old}/{place}/in/"
    for path in (path for path in before if path.startswith(start)):
        key, *rest = path.removeprefix(start).split("/")
        key_now = renames.get(f"{old}.{key}", key)
        if not rest:  # into the tree that the argument is, of which it is the first leaf
            others = [before[p] for p in before if p.startswith(f"{path}/")]
            tree = jax.tree.structure(arrays.get(key_now, before[path]))
            arrays[key_now] = jax.tree.unflatten(tree, [before[path], *others])
    try:
        found = outputs(new, arrays)
    except (TypeError, ValueError) as error:
        return f"missing: {str(error).splitlines()[0][:160]}"
    start = f"{old}/{place}/out/"
    kept = {p.removeprefix(start): leaf for p, leaf in before.items() if p.startswith(start)}
    if {k: (v.shape, v.dtype) for k, v in kept.items()} != {
        k: (v.shape, v.dtype) for k, v in found.items()
    }:
        return "different: other shapes or dtypes"
    if all(kept[key].tobytes() == found[key].tobytes() for key in kept):
        return "to the bit"
    away = {key: gap(kept[key], found[key]) for key in kept}
    worst = max(away, key=away.__getitem__)
    close = away[worst] <= CLOSE
    return f"{'within 1e-6' if close else 'different'}: {away[worst]:.1e} in {worst}"


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """The largest relative difference; ∞ where one alone is NaN or infinite."""
    a, b = a.astype(float), b.astype(float)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        away = np.abs(a - b) / np.maximum(np.maximum(np.abs(a), np.abs(b)), 1e-300)
    return float(np.max(np.where(same, 0.0, np.nan_to_num(away, nan=np.inf)), initial=0.0))


def compare(before: Path, renames: dict[str, str]) -> int:
    """A line for each function and place, then the counts."""
    with np.load(before) as file:
        kept = dict(file)
    counts = Counter()
    for old, place in dict.fromkeys(tuple(path.split("/")[:2]) for path in kept):
        said = verdict(kept, renames, old, place)
        counts[said.split(":")[0]] += 1
        print(f"{old:<45} {place:<7} {said}")
    print(", ".join(f"{count} {word}" for word, count in sorted(counts.items())))
    return int(bool(counts["different"] + counts["missing"]))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("write", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--renames", type=Path, help="a line `old new` each")
    args = parser.parse_args()
    if args.what == "write":
        write(args.file)
        return 0
    lines = args.renames.read_text("utf-8").splitlines() if args.renames else []
    return compare(args.file, dict(line.split() for line in lines if line.strip()))


if __name__ == "__main__":
    sys.exit(main())
