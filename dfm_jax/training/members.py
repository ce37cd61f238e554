"""A member of a run, `RUN/expert_003` or `RUN/dense`: its data, its network, its record.

config.json      its config and data; for the record, versions and the path of the data
tokens/          its documents as tokens, if they stay on the disk
metrics.jsonl    one line for each logged step
200/ 400/ …      checkpoints
"""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dfm_jax.checks import check_count, require
from dfm_jax.data.columns import Columns
from dfm_jax.data.manifest import read_manifest
from dfm_jax.data.tokens import (
    Tokenizer,
    TokenSet,
    byte_tokenizer,
    encode_texts,
    held_out_sides,
    load_tokenizer,
    map_tokens,
    named_texts_in,
)
from dfm_jax.interfaces import Task
from dfm_jax.json_text import read_json
from dfm_jax.storage.folders import Folder, write_whole
from dfm_jax.training.checkpoint import checkpoint_steps, set_aside
from dfm_jax.training.config import (
    MAX_COUNT,
    TrainConfig,
    check_objective,
    differences_until,
    from_json,
    lengthening_hint,
    to_json,
)
from dfm_jax.training.conversation_rows import Places
from dfm_jax.training.digests import CheckpointError
from dfm_jax.training.examples import Examples, MemberData
from dfm_jax.training.state import TrainState, init_state, make_optimizer, state_options
from dfm_jax.training.tasks import task_of

CONFIG, TOKENS = "config.json", "tokens"
TEXT_ONLY = "text_only"  # of the data: they have pictures, which were left out
_IDENTITY = ("config", "data", "init")


class _Data(NamedTuple):
    """The part of the record of `load_member_data` that identifies a member's data."""

    tokenizer: str
    train_documents: int
    train_tokens: int
    train_sha256: str
    held_out_documents: int
    held_out_tokens: int
    held_out_sha256: str


class _Written(NamedTuple):
    """The content of config.json."""

    config: dict[str, Any]
    data: dict[str, Any]
    source: str
    versions: dict[str, str]
    init: str | None = None  # of parameters that were not drawn: their digest, and their place
    init_source: str | None = None
    places: dict[str, str] | None = None  # of data with pictures: `conversation_rows.Places`


def member_folder(run: Folder, expert: int | None) -> Folder:
    """`RUN/expert_003`, or `RUN/dense` if there is no expert."""
    if expert is not None:
        check_count("expert", expert, at_least=0)
    return run / ("dense" if expert is None else f"expert_{expert:03d}")


def member_data_path(data: Path, expert: int | None) -> Path:
    """The path of a member's documents.

    For expert k it is `DATA/expert_k/rows.jsonl`, or that folder if it holds text. For the dense
    model it is `DATA/dense.jsonl`, or DATA itself, which is a folder of text or a file.

    Raises:
        ValueError: if the data do not exist, or have no such expert.
    """
    if expert is None:
        return _rows_or_folder(data, data, "dense.jsonl")
    folder = data / member_folder(data, expert).name
    require(data.is_dir(), "`data` must be a folder that exists", data)
    if not folder.is_dir():
        rule = f"`expert` must have the folder {folder.name} in {data}"
        raise ValueError(f"{rule}; got expert = {expert}.")
    return _rows_or_folder(folder, data, f"{folder.name}/rows.jsonl")


def _rows_or_folder(folder: Path, data: Path, name: str) -> Path:
    """The file of rows, if it exists or the manifest of the data names it; else the folder."""
    named = (read_manifest(data) or {"files": ()})["files"]
    return data / name if (data / name).is_file() or name in named else folder


def tokenizer_of(
    config: TrainConfig, path: Path | None, *, recorded: str | None = None, padded: bool = False
) -> Tokenizer:
    """The tokenizer: bytes, or that of a tokenizer.json.

    Pretrained networks are often `padded`: V is larger than the number of tokens.

    Raises:
        ValueError: if it does not have V tokens, or at most V if the network is padded; if it is
            not the one that was recorded with a run.
    """
    pieces = byte_tokenizer() if path is None else load_tokenizer(path)
    if recorded is not None and (found := tokenizer_name(path)) != recorded:
        raise ValueError(
            f"`tokenizer` must be {recorded}, the tokenizer of the run; got tokenizer = {found}."
        )
    if padded:
        rule = f"`model.num_tokens` must be at least {pieces.num_tokens}, as in the tokenizer"
        require(config.model.num_tokens >= pieces.num_tokens, rule, config.model.num_tokens)
        return pieces
    masks = config.model.states - config.model.num_tokens
    rule = f"`model.num_tokens` must be {pieces.num_tokens}, as in the tokenizer"
    if masks and config.task is None:  # the two change together
        rule += f", and `model.num_states` must be {pieces.num_tokens + masks}"
    require(config.model.num_tokens == pieces.num_tokens, rule, config.model.num_tokens)
    return pieces


def tokenizer_name(path: Path | None) -> str:
    """`bytes`, or the SHA-256 of a tokenizer.json: equal V does not mean equal tokens."""
    return "bytes" if path is None else f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def load_member_data(
    path: Path,
    config: TrainConfig,
    tokenizer: Path | None,
    *,
    tokens: Path | None = None,
    recorded: str | None = None,
    padded: bool = False,
    columns: Columns | None = None,
) -> MemberData:
    """Read, split and encode the documents of a member, into memory or the folder `tokens`.

    `recorded` and `padded` are as in `tokenizer_of`. `columns` counts the columns of rows that are
    not read, and says whether pictures are left out.

    Raises:
        ValueError: if the tokenizer does not have V tokens, or is not the one that was recorded; if
            there is nothing to read.
    """
    columns = Columns() if columns is None else columns
    pieces = tokenizer_of(config, tokenizer, recorded=recorded, padded=padded)
    name = tokenizer_name(tokenizer)
    if tokens is None:
        named = list(named_texts_in(path, columns))
        held = held_out_sides([text for _, text in named], config.held_out)
        sets = _encoded_side(named, held, False, pieces), _encoded_side(named, held, True, pieces)
    else:
        sets = map_tokens(path, tokens, pieces, name=name, share=config.held_out, columns=columns)
    description: dict[str, Any] = {"tokenizer": name}
    description |= {TEXT_ONLY: True} if columns.pictures else {}
    for name, part in zip(("train", "held_out"), sets, strict=True):
        description |= {
            f"{name}_documents": len(part.num_bytes),
            f"{name}_tokens": len(part.tokens),
            f"{name}_sha256": part.digest,
        }
    return MemberData(*sets, pieces, description, tokens is not None)


def _encoded_side(
    named: Sequence[tuple[str, str]], held: Sequence[bool], side: bool, pieces: Tokenizer
) -> TokenSet:
    kept = [one for one, is_held in zip(named, held, strict=True) if is_held == side]
    return encode_texts([text for _, text in kept], pieces, names=[name for name, _ in kept])


def state_template(config: TrainConfig, task: Task | None = None) -> TrainState:
    """The shapes of a state, found without computing one."""
    task = task_of(config) if task is None else task
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    options = state_options(config)
    return jax.eval_shape(lambda: init_state(jax.random.key(0), task, optimizer, **options))


def member_record(
    config: TrainConfig, data: MemberData | Examples, *, init: str | None = None
) -> dict[str, Any]:
    """Everything that a member is a function of; it is stored in every checkpoint.

    `init` is the digest of the parameters from which it starts, if they are not drawn.
    """
    started = {} if init is None else {"init": init}
    return {"config": to_json(config), "data": dict(data.description)} | started


def identity_of(record: dict[str, Any]) -> dict[str, Any]:
    """The part of the content of config.json that `member_record` gave."""
    return {name: record[name] for name in _IDENTITY if record.get(name) is not None}


def check_member(folder: Folder, record: dict[str, Any]) -> None:
    """Check that checkpoints in the folder, if any, have this record: see `differences_until`.

    Raises:
        CheckpointError: if they belong to another run; the message names the first field that
            differs.
    """
    # A start that saved nothing may have left a config.json: it binds nobody.
    steps = checkpoint_steps(folder)
    if not (folder / CONFIG).is_file() or not (steps or set_aside(folder)):
        return
    known, made = identity_of(read_member(folder)), max(steps, default=MAX_COUNT)
    for field, here, there in differences_until(made, record, known):
        raise CheckpointError(
            f"{folder}: `{field}` must be {there!r}, as in the run of this folder; got {field} = "
            f"{here!r}.{lengthening_hint(field, here, there)}"
        )


def write_member(
    folder: Folder,
    record: dict[str, Any],
    source: Path,
    *,
    init_source: str | None = None,
    places: Places | None = None,
) -> None:
    """Write `config.json` before the first checkpoint, and not before there is something to save.

    If there are checkpoints, they have the same record, see `check_member`. Then only the config is
    written, if the run is made longer.
    """
    if (folder / CONFIG).is_file() and checkpoint_steps(folder):
        full = read_member(folder)
        if full["config"] == record["config"]:
            return
        full |= {"config": record["config"]}
    else:
        versions = {name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")}
        full = record | {"source": str(source.absolute()), "versions": versions}
        full |= {} if init_source is None else {"init_source": init_source}
        if places is not None:
            known = {name: path for name, path in places._asdict().items() if path is not None}
            full["places"] = {name: str(path.absolute()) for name, path in known.items()}
    write_whole(folder / CONFIG, json.dumps(full, indent=1) + "\n")


def read_member(folder: Folder) -> dict[str, Any]:
    """Read the `config.json` of a member.

    Raises:
        CheckpointError: if there is none, or it does not have the form that `write_member` writes.
    """
    path = folder / CONFIG
    if not path.is_file():
        why = "Nothing was trained here."
        if (folder / "sweep.json").is_file():
            why = "A sweep was run here. Take a config from sweep.json, and train it."
        raise CheckpointError(f"{folder}: no {CONFIG} is there. {why}")
    try:
        record = from_json(_Written, read_json(path), where=CONFIG)
        config = from_json(TrainConfig, record.config)
        check_objective(config)
        if config.task is None:  # else the data are whatever its task reads
            known = {name: record.data.get(name) for name in _Data._fields}
            from_json(_Data, known, where=f"{CONFIG}.data")
    except ValueError as error:
        rule = f"{path} must be the config of a member"
        raise CheckpointError(f"{rule}; got another content: {error}") from error
    return {name: value for name, value in record._asdict().items() if value is not None}
