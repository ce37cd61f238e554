"""The refusals of `exact`, by argument, rule and value."""

from itertools import pairwise

import numpy as np

MAX_STATES = 20_000
"""Most sequences that are ever listed."""
MAX_DENSE_STATES = 512
"""Most sequences x_0 of a dense coupling [Z0, Z1]."""
MAX_KERNEL_STATES = 1_024
"""Most sequences of a dense generator or kernel [Z, Z]."""
MAX_BYTES = 2**30
"""Most bytes of one array."""
SUM_TOLERANCE = 1e-6
"""How far from 1 a distribution may sum: float32 passes, a forgotten normalization does not."""
SIGN_TOLERANCE = 1e-12
"""How far below 0 rounding may take a probability, as in 1 − Σ_k r_k."""
RATE_TOLERANCE = 1e-9
"""How far from 0 the values of a velocity may sum, relative to its largest entry if above 1."""


class RefusedError(ValueError):
    """An input that enumeration refuses: no distribution, a wrong shape, not finite, too large."""


def check_size(shape: tuple[int, ...], what: str) -> None:
    """Refuse a float64 array of more than `MAX_BYTES`; the message has the size in bytes."""
    size = 8
    for length in shape:
        size *= length
    if size > MAX_BYTES:
        raise RefusedError(
            f"{what} must fit in {MAX_BYTES:,} bytes; got shape = {list(shape)}, which would take "
            f"{size:,}."
        )


def check_number(name: str, count: int) -> None:
    """Refuse what is no whole number from 1 on."""
    if not isinstance(count, int | np.integer) or isinstance(count, bool) or count < 1:
        rule = f"`{name}` must be a whole number from 1 on"
        raise RefusedError(f"{rule}; got {name} = {count!r}.")


def check_states(num_states: int, num_positions: int, limit: int = MAX_STATES) -> int:
    """The number of sequences Z = S^N; above `limit` it is refused, with the bytes of the list."""
    for name, count in (("num_states", num_states), ("num_positions", num_positions)):
        if count < 1:
            raise RefusedError(f"`{name}` must be at least 1; got {name} = {count}.")
    total = int(num_states) ** int(num_positions)
    if total > limit:
        raise RefusedError(
            f"`num_states ** num_positions` must be at most {limit:,}; got num_states ** "
            f"num_positions = {total:,}. A list of all would take {8 * total * num_positions:,} "
            "bytes."
        )
    return total


def check_square(num_rows: int, what: str) -> None:
    """Refuse a dense [Z, Z] array of more than `MAX_KERNEL_STATES` states, with its bytes."""
    if num_rows > MAX_KERNEL_STATES:
        raise RefusedError(
            f"{what} must have at most {MAX_KERNEL_STATES:,} states; got states = {num_rows:,}, "
            f"which would take {8 * num_rows**2:,} bytes."
        )


def check_real(name: str, array: np.ndarray) -> np.ndarray:
    """The array in float64; complex values are refused and never reduced to their real part."""
    array = np.asarray(array)
    if array.dtype.kind == "c":
        raise RefusedError(f"`{name}` must be real; got {name}.dtype = {array.dtype}.")
    return np.asarray(array, dtype=np.float64)


def check_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse a shape other than the expected one."""
    if array.shape != tuple(shape):
        rule = f"`{name}` must have shape {list(shape)}"
        raise RefusedError(f"{rule}; got {name}.shape = {list(array.shape)}.")


def check_measure(name: str, measure: np.ndarray) -> np.ndarray:
    """The array in float64; entries that are infinite, NaN or clearly negative are refused."""
    measure = check_real(name, measure)
    # Two numbers judge a good array, which nearly all are: a NaN is least and largest of any.
    least = np.minimum.reduce(measure, axis=None, initial=np.inf)
    if not (least > -np.inf and np.maximum.reduce(measure, axis=None, initial=-np.inf) < np.inf):
        raise RefusedError(
            f"`{name}` must be finite and not empty; got {name}.shape = {list(measure.shape)}, "
            f"with {int(np.sum(~np.isfinite(measure)))} entries that are NaN or infinite."
        )
    if least < -SIGN_TOLERANCE:
        raise RefusedError(f"`{name}` must be non-negative; got min {name} = {least}.")
    return measure


def check_distributions(name: str, rows: np.ndarray, *, or_zero: bool = False) -> np.ndarray:
    """Rows (last axis) in float64, each a distribution or, with `or_zero`, all 0; else refused."""
    rows = check_real(name, rows)
    if rows.size and np.minimum.reduce(rows, axis=None) >= 0.0:  # nearly all rows are good ones
        sums = np.add.reduce(rows, axis=-1)  # one that is not finite is in a sum that is not
        good = np.abs(sums - 1.0) <= SUM_TOLERANCE
        if np.logical_and.reduce(good | (sums == 0.0) if or_zero else good, axis=None):
            return rows
    rows = check_measure(name, rows)
    sums = np.add.reduce(rows, axis=-1)
    wrong = np.abs(sums - 1.0) > SUM_TOLERANCE
    if or_zero:
        wrong &= (rows != 0.0).any(axis=-1)
    if wrong.any():
        worst = np.ravel(sums)[np.argmax(np.abs(np.ravel(sums) - 1.0) * np.ravel(wrong))]
        raise RefusedError(f"`{name}` must sum to 1 along its last axis; got a sum = {worst}.")
    return rows


def check_distribution(
    name: str, probs: np.ndarray, num_states: int, num_positions: int
) -> np.ndarray:
    """A flat distribution on S^N sequences in float64."""
    total = check_states(num_states, num_positions)
    probs = check_distributions(name, probs)
    check_shape(name, probs, (total,))
    return probs


def check_positions(name: str, positions: tuple[int, ...], num_positions: int) -> tuple[int, ...]:
    """Positions as a strictly increasing tuple within [0, N)."""
    positions = tuple(int(i) for i in positions)
    rising = all(i < j for i, j in pairwise(positions))
    if not rising or any(not 0 <= i < num_positions for i in positions):
        raise RefusedError(
            f"`{name}` must be strictly increasing in [0, {num_positions}); got {name} = "
            f"{positions}."
        )
    return positions
