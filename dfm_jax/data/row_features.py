"""Features that a user brings: from a file, one a row, or several, or none."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dfm_jax.checks import check_interval, require
from dfm_jax.data.npy_file import is_npz, read_npy_file, read_npz_file
from dfm_jax.types import typed

_CHUNK = 2**14  # rows of features at a time
_SHOWN = 5  # rows named in a refusal
_NONE = np.empty(0, np.int64)


class RowFeatures(NamedTuple):
    """Features of some rows of a data set."""

    features: Float[np.ndarray, "R D"]
    rows: Int[np.ndarray, " R"]  # which row of the data set each is of; none comes twice
    num_averaged: int  # rows whose feature is the mean of several
    zero: Int[np.ndarray, " Z"]  # rows without: it is zero, or one of those averaged is
    num_constant: int  # rows whose feature is one number, D times: a direction, but a strange one


@typed
def read_features(path: Path | str, *, num_rows: int) -> RowFeatures:
    """Features that a user brings for a data set of `num_rows` rows, as float32.

    An `.npy` file holds [num_rows, D]: feature i is of row i. An `.npz` file holds `features`
    [R, D] and `rows` [R], integers in [0, num_rows): rows may be left out, and come in any order. A
    row that is named several times, once for each of its images, has the mean. Nothing is
    unpickled, and float16 is widened.

    A zero is what encoders leave of a picture that they could not read: it is no feature, and its
    row is one without. So is a row that has a zero among several.

    Raises:
        ValueError: if the file is not of this form or damaged, a value is not finite in float32,
            or the rows do not fit the data set.
    """
    features, rows = _read_arrays(Path(path))
    name = f"`features` in {path}"
    require(features.ndim == 2, f"{name} must have two axes, rows and features", features.shape)
    require(features.shape[1] > 0, f"{name} must have a column", features.shape)
    floating = np.issubdtype(features.dtype, np.floating)
    void = features.dtype.kind == "V"  # what NumPy knows no name of
    hint = " (bfloat16? an .npy file keeps it without its name: write float32)" if void else ""
    require(floating, f"{name} must hold floating-point numbers", f"{features.dtype}{hint}")
    with np.errstate(over="ignore"):  # it becomes infinite, and is refused
        features = features.astype(np.float32, order="C", copy=False)
    finite = np.concatenate(
        [np.ones(0, bool), *(np.isfinite(part).all(axis=1) for part in _chunks(features))]
    )
    _check_none(f"{name} must be finite in every row", np.flatnonzero(~finite))
    if rows is None:
        require(len(features) == num_rows, f"{name} must have {num_rows} rows", len(features))
        return _with_directions(RowFeatures(features, np.arange(num_rows), 0, _NONE, 0))
    name = f"`rows` in {path}"
    integer = rows.ndim == 1 and np.issubdtype(rows.dtype, np.integer)
    require(integer, f"{name} must be a list of integers", f"{rows.dtype} {rows.shape}")
    require(len(rows) == len(features), f"{name} must be {len(features)} numbers", len(rows))
    check_interval(f"rows in {path}", rows, 0, num_rows, ends="[)")
    kept = _with_directions(RowFeatures(features, rows.astype(np.int64), 0, _NONE, 0))
    averaged = _averaged(kept.features, kept.rows)
    return _with_directions(averaged._replace(zero=kept.zero))  # opposites cancel


def _with_directions(found: RowFeatures) -> RowFeatures:
    """Without the rows that have a zero; what is constant is counted."""
    features = found.features
    ends = [np.stack([part.min(axis=1), part.max(axis=1)]) for part in _chunks(features)]
    low, high = np.concatenate([np.empty((2, 0), np.float32), *ends], axis=1)
    lost = np.unique(found.rows[(low == 0) & (high == 0)])
    several = features.shape[1] > 1
    constant = int(((low == high) & (low != 0)).sum()) if several else 0
    if not lost.size:
        return found._replace(num_constant=constant)
    kept = np.flatnonzero(~np.isin(found.rows, lost))
    features = _moved_up(features, kept)
    zero = np.union1d(found.zero, lost)
    return RowFeatures(features, found.rows[kept], found.num_averaged, zero, constant)


def _moved_up(features: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The rows `kept`, which ascend, without a second array."""
    for start in range(0, kept.size, _CHUNK):  # kept[i] ≥ i: nothing that is to come is written on
        moved = kept[start : start + _CHUNK]
        features[start : start + moved.size] = features[moved]
    return features[: kept.size]


def _averaged(features: np.ndarray, rows: np.ndarray) -> RowFeatures:
    """One feature a row, in the order in which rows are first named; without a second array."""
    order = np.argsort(rows, kind="stable")
    begins = np.flatnonzero(np.diff(rows[order], prepend=-1))
    times = np.diff(begins, append=rows.size)
    if not (times > 1).any():
        return RowFeatures(features, rows, 0, _NONE, 0)
    for begin, count in zip(begins[times > 1], times[times > 1], strict=True):
        several = np.sort(order[begin : begin + count])
        features[several[0]] = features[several].mean(axis=0, dtype=np.float64)
    kept = np.sort(order[begins])
    return RowFeatures(_moved_up(features, kept), rows[kept], int((times > 1).sum()), _NONE, 0)


def _chunks(features: np.ndarray) -> Iterable[np.ndarray]:
    return (features[start : start + _CHUNK] for start in range(0, len(features), _CHUNK))


def _check_none(rule: str, rows: np.ndarray) -> None:
    """`rows` break the rule: the refusal names the first of them."""
    if rows.size:
        more = f", … ({rows.size} in all)" if rows.size > _SHOWN else ""
        raise ValueError(f"{rule}; not so {', '.join(map(str, rows[:_SHOWN]))}{more}.")


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        if not is_npz(path):
            return read_npy_file(path), None
        arrays = read_npz_file(path, ("features", "rows"))
    except OSError:
        raise
    except Exception as error:  # damage can surface anywhere, as anything
        raise ValueError(
            f"`path` must be an .npy or .npz file of numbers; {path} is not: {error}"
        ) from error
    for name in ("features", "rows"):
        require(name in arrays, f"{path} must hold `features` and `rows`", list(arrays))
    return arrays["features"], arrays["rows"]
