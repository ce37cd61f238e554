"""What a first pass over the rows learns: the load of each, and whose id is not its own."""

import hashlib
import json
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dfm_jax.checks import check_interval, require
from dfm_jax.data.columns import Columns
from dfm_jax.data.npy_file import read_npy_file
from dfm_jax.data.records import conversation_bytes, read_records

_SHOWN = 5  # rows named in a refusal


class Survey(NamedTuple):
    """Of all the rows, whether they have a feature or not."""

    loads: np.ndarray  # [R], the bytes of the conversations, or the user's weights
    num_repeated_ids: int
    num_without_id: int
    unused: dict[str, int]  # the rows of each column but `id` and `conversations`


def survey(input: Path, weights: Path | None, unique_ids: bool) -> Survey:
    """The first pass. An id is known by 63 bits of its hash: 10⁷ of them collide once in 10⁵.

    Raises:
        ValueError: if a row is not a conversation, the weights are not as `read_weights` wants
            them, or an id is missing or repeated under `unique_ids`.
    """
    loads, ids, columns = array("q"), array("Q"), Columns(text_only=True)
    for record in read_records(input):
        try:
            loads.append(conversation_bytes(record))
        except ValueError as error:
            raise ValueError(f"{input}, line {record.line}: {error}") from error
        columns.add(input, record, "conversations")
        name = record.fields.get("id")
        text = json.dumps(name, sort_keys=True).encode()
        digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
        ids.append(0 if name is None else digest | 1)
    hashes = np.array(ids, np.uint64)
    repeats = np.ones(hashes.size, bool)
    repeats[np.unique(hashes, return_index=True)[1]] = False  # the first of each
    repeated, without = np.flatnonzero(repeats & (hashes > 0)), np.flatnonzero(hashes == 0)
    if unique_ids:
        for rows, what in ((repeated, "have that of an earlier row"), (without, "have none")):
            if rows.size:
                more = f", … ({rows.size} in all)" if rows.size > _SHOWN else ""
                shown = ", ".join(map(str, rows[:_SHOWN])) + more
                raise ValueError(f"each row of {input} must have its own `id`; {what}: {shown}.")
    own = np.array(loads, np.int64) if weights is None else read_weights(weights, len(loads))
    return Survey(own, repeated.size, without.size, dict(columns.unused))


def read_weights(path: Path, num_rows: int) -> np.ndarray:
    """The load of each row that a user brings, an `.npy` file; nothing is unpickled.

    Raises:
        ValueError: if it is not a list of `num_rows` numbers, or one is negative or not finite.
    """
    try:
        weights = read_npy_file(path)
    except OSError:
        raise
    except Exception as error:  # damage can surface anywhere, as anything
        rule = f"`weights` must be an .npy file of numbers; {path} is not: {error}"
        raise ValueError(rule) from error
    name = f"`weights` in {path}"
    number = weights.dtype.kind in "iuf"
    require(number, f"{name} must be one array of numbers", str(weights.dtype))
    require(weights.shape == (num_rows,), f"{name} must be {num_rows} numbers", weights.shape)
    check_interval(f"weights in {path}", weights, 0, np.inf, ends="[)")
    return weights
