"""The rows on which the dense model and the experts of a run are compared, and whose they are.

They are the rows that the dense model held out. Whether a document is held out depends only on its
content, so the experts have held out the same ones between them, and each document belongs to the
part of the expert that has it.
"""

import hashlib
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dfm_jax.checks import require
from dfm_jax.data.columns import Columns
from dfm_jax.data.records import read_records
from dfm_jax.data.tokens import is_held_out, text_of
from dfm_jax.storage.folders import Folder
from dfm_jax.training.config import TrainConfig, from_json
from dfm_jax.training.evaluation import held_out_rows
from dfm_jax.training.examples import HeldOut
from dfm_jax.training.members import member_data_path, read_member
from dfm_jax.training.state import TrainState
from dfm_jax.training.step import batch_size_of
from dfm_jax.training.tasks import task_of

_FIELDS = ("domain", "source")  # of a row, that name what it comes from
_FOLDER = "folder"  # of a row whose id is a path: the first part of it
_MOST_GROUPS = 40
# What two models must share, so that a token is the same thing to both.
_SHARED = (
    ("data", "tokenizer"),
    ("config", "objective"),
    ("config", "num_positions"),
    ("config", "model", "num_tokens"),
    ("config", "model", "num_states"),
)


class ComparedRows(NamedTuple):
    """Rows of D documents, and what is known of each document."""

    rows: HeldOut
    num_bytes: np.ndarray | None  # [D]; None if the data are no text
    part: np.ndarray  # [D] which of the experts has it
    groups: Mapping[str, tuple[str, ...]]  # by kind, the label of each document


def check_comparable(dense: Folder, experts: Sequence[Folder]) -> None:
    """Check that a token, a window and a loss are the same thing to all models.

    Raises:
        ValueError: if an expert has another tokenizer, objective, length or number of tokens; if
            the losses are not exactly −log p̂.
    """
    ours = read_member(dense)
    check_exact(from_json(TrainConfig, ours["config"]))
    for expert in experts:
        theirs = read_member(expert)
        for path in _SHARED:
            here, there = _at(ours, path), _at(theirs, path)
            name = path[-1]
            if here != there:
                raise ValueError(
                    f"The dense model and the experts must have the same `{'.'.join(path)}`; got "
                    f"{name} = {here!r} for {dense} and {there!r} for {expert}."
                )


def compared_rows(
    dense: Folder,
    experts: Sequence[Folder],
    *,
    data: Path | None = None,
    tokenizer: Path | None = None,
    text_only: bool = False,
) -> ComparedRows:
    """The rows that the dense model held out, or all rows of `data`.

    Args:
        dense: The folder of the dense model.
        experts: The folders of the experts, whose names end in their numbers.
        data: A folder that `partition` or `route` wrote, all of whose rows are taken.
        tokenizer: The tokenizer.json file of the run, if it had one.
        text_only: Whether to read only the text of rows in `data` that have pictures.

    Raises:
        ValueError: if nothing was held out; if the experts have not the documents of the dense
            model; if the data of the run have changed.
    """
    if data is None:
        for member in (dense, *experts):
            config = read_member(member)["config"]
            share, own = config["held_out"], config.get("task") is not None
            rule = f"`held_out` of {member} must be above 0, because it is judged on what it"
            then = "Train with another share, or give other rows with `data`."
            require(own or share > 0, f"{rule} held out", share, name="held_out", then=then)

    def read(member: Folder, expert: int | None) -> tuple[HeldOut, np.ndarray | None]:
        source = None if data is None else member_data_path(data, expert)
        columns = Columns(text_only=text_only)
        return held_out_rows(member, data=source, tokenizer=tokenizer, columns=columns)

    rows, num_bytes = read(dense, None)
    theirs = []
    for expert in experts:
        number = int(expert.name.rpartition("_")[2])
        empty = data is not None and _is_empty(member_data_path(data, number))
        theirs.append([] if empty else document_digests(read(expert, number)[0]))
    part = parts_of(document_digests(rows), theirs)
    groups: Mapping[str, tuple[str, ...]] = {}
    if num_bytes is not None:
        record = read_member(dense)
        source = Path(record["source"]) if data is None else member_data_path(data, None)
        share = record["config"]["held_out"] if data is None else None
        groups = document_groups(source, share)
    return ComparedRows(rows, num_bytes, part, groups)


def document_digests(rows: HeldOut) -> list[bytes]:
    """A digest of each document, of all arrays of its rows."""
    found = [hashlib.sha256() for _ in range(rows.num_documents)]
    first = 0
    for batch in rows.batches:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
        size = batch_size_of(batch)
        for row, document in enumerate(rows.document[first : first + size].tolist()):
            for leaf in leaves:
                found[document].update(np.ascontiguousarray(leaf[row]).tobytes())
        first += size
    return [one.digest() for one in found]


def parts_of(documents: Sequence[bytes], of_experts: Sequence[Sequence[bytes]]) -> np.ndarray:
    """The expert of each document, [D], by their digests; equal documents are taken in turn.

    Raises:
        ValueError: unless the experts have exactly these documents.
    """
    where: dict[bytes, deque[int]] = defaultdict(deque)
    for k, theirs in enumerate(of_experts):
        for digest in theirs:
            where[digest].append(k)
    part = [where[digest].popleft() if where.get(digest) else -1 for digest in documents]
    missed, more = part.count(-1), sum(map(len, where.values()))
    if missed or more:
        raise ValueError(
            "The experts and the dense model must have held out the same documents, or they are "
            f"runs of different data; got {missed:,} of its {len(documents):,} documents that no "
            f"expert has, and {more:,} of theirs that it has not."
        )
    return np.array(part, int)


def document_groups(source: Path, held_out: float | None) -> dict[str, tuple[str, ...]]:
    """What each document comes from, by kind: `domain`, `source`, or the folder in its id.

    A kind is left out if a document has no label, or if there are fewer than 2 labels or more than
    40. The documents are those with a hash below `held_out`, or all of them.
    """
    if not source.is_dir() and source.suffix not in (".json", ".jsonl"):
        return {}
    labels: dict[str, list[Any]] = {name: [] for name in (*_FIELDS, _FOLDER)}
    columns = Columns(text_only=True)
    for record in read_records(source):
        text = text_of(source, record, columns)
        if held_out is not None and not is_held_out(text, held_out):
            continue
        for name in _FIELDS:
            labels[name].append(record.fields.get(name))
        folder, slash, _ = str(record.fields.get("id", "")).partition("/")
        labels[_FOLDER].append(folder if slash else None)
    return {
        kind: tuple(found)
        for kind, found in labels.items()
        if all(isinstance(label, str) for label in found) and 2 <= len(set(found)) <= _MOST_GROUPS
    }


class TokenLogProbs(NamedTuple):
    """log p̂ of each token that counts, and how many of them each row has."""

    log_probs: np.ndarray  # [M] float64, in nats, row after row
    counts: np.ndarray  # [W]


def token_log_probs(state: TrainState, config: TrainConfig, rows: HeldOut) -> TokenLogProbs:
    """log p̂(x^i | x^{<i}) of every token of every row that counts.   [A4]

    If an average of the parameters is kept, it is evaluated. Models of one shape share a compiled
    program.

    Raises:
        ValueError: if the losses of the task are not exactly −log p̂.
    """
    check_exact(config)
    task = task_of(config)
    params = state.params if state.ema is None else state.ema
    losses = _compiled(task.losses)
    found = jax.device_get([losses(params, batch) for batch in rows.batches])
    nats, counts = (
        np.concatenate(parts)[: len(rows.document)] for parts in zip(*found, strict=True)
    )
    return TokenLogProbs(-nats[counts].astype(np.float64), counts.sum(axis=1))


def check_exact(config: TrainConfig) -> None:
    """Check that the losses of a model are exactly −log p̂, and no bound on it."""
    measure = task_of(config).measure
    rule = "The losses of every model must be exactly −log p(x), because gates weigh by them"
    require(measure == "exact", rule, measure, name="measure")


@cache
def _compiled(losses: Any) -> Any:
    def of_batch(params: Any, batch: Any) -> tuple[Any, Any]:
        found = jax.vmap(lambda row: losses(params, row, None))(batch)
        return found.nats, found.counts

    return jax.jit(of_batch)


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _at(record: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        record = record.get(name) if isinstance(record, dict) else None
    return record
