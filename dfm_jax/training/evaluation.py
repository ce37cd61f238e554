"""The losses of trained members on documents, with intervals over documents."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dfm_jax.checks import check_count, require
from dfm_jax.data.columns import Columns
from dfm_jax.data.tokens import TokenSet, encode_texts, named_texts_in
from dfm_jax.interfaces import Losses, Measure, Task
from dfm_jax.models import Params
from dfm_jax.models.lora import merged
from dfm_jax.storage.folders import Folder
from dfm_jax.training.batches import Batch
from dfm_jax.training.checkpoint import best_step, checkpoint_steps, read_checkpoint
from dfm_jax.training.config import (
    TrainConfig,
    differences,
    from_json,
    shape_of,
    without_adapters,
)
from dfm_jax.training.conversation_rows import (
    Places,
    conversation_examples,
    conversation_held_out,
    tokenizer_digest,
    usual_places,
)
from dfm_jax.training.digests import CheckpointError, mended_by_training
from dfm_jax.training.distributed import sharded_evaluation
from dfm_jax.training.ensemble import Ensemble, Expert, check_ensemble, checkpoint_folder
from dfm_jax.training.examples import DocumentLosses, HeldOut, document_rows, examples_of
from dfm_jax.training.members import (
    TEXT_ONLY,
    TOKENS,
    identity_of,
    load_member_data,
    member_folder,
    read_member,
    state_template,
    tokenizer_of,
)
from dfm_jax.training.memory import check_parameters_fit
from dfm_jax.training.state import TrainState
from dfm_jax.training.step import batch_size_of, make_evaluation
from dfm_jax.training.tasks import task_of
from dfm_jax.types import Array, Key


def evaluated(
    state: TrainState,
    config: TrainConfig,
    documents: TokenSet | HeldOut,
    key: Key | None = None,
    *,
    mesh: Mesh | None = None,
    task: Task | None = None,
) -> DocumentLosses:
    """The loss of a state on each document; documents are cut into independent windows.

    If an average of the parameters is kept, it is evaluated. If the loss of the task is random, one
    draw per window estimates it, the same for the same key. A state on a `mesh` is evaluated there,
    see `sharded_evaluation`.
    """
    if isinstance(documents, TokenSet):
        documents = document_rows(documents, config, None)
    task = task_of(config) if task is None else task
    return documents.by_document(*_row_losses(state, task, documents, key, mesh))


def _row_losses(
    state: TrainState, task: Task, rows: HeldOut, key: Key | None, mesh: Mesh | None
) -> tuple[np.ndarray, np.ndarray]:
    """The nats and counts of every row."""
    params: Params = state.params if state.ema is None else state.ema
    evaluation = _compiled_evaluation(task.losses, mesh)
    key = jax.random.key(0) if key is None else key
    found = []
    for number, batch in enumerate(rows.batches):
        drawn = (jax.random.fold_in(key, number * batch_size_of(batch)),) if task.draws else ()
        found.append(evaluation(params, batch, *drawn))
    losses = jax.tree.map(lambda *parts: np.concatenate(parts), *jax.device_get(found))
    return losses.nats, losses.counts


def token_losses(
    params: Params, config: TrainConfig, documents: TokenSet, *, batch_size: int = 64
) -> np.ndarray:
    """−log p̂(x^i | x^{<i}) of every token, in nats: [M], float32.   [A4]

    Documents are cut into windows from their beginnings; a token's prefix begins with its window.

    Raises:
        ValueError: if the objective is not autoregressive, or there is no token.
    """
    rule = "`config.objective` must be autoregressive, because only then each token has a loss"
    require(config.objective == "autoregressive", rule, config.objective)
    shape = dataclasses.replace(shape_of(config), batch_size=batch_size, num_micro_batches=1)
    losses = _compiled_losses(shape)
    found = [
        np.asarray(losses(params, batch))[np.asarray(batch.valid)]
        for batch in document_rows(documents, shape, None).batches
    ]
    return np.concatenate(found)  # windows cover the documents, in order


@cache  # a run evaluates often
def _compiled_evaluation(losses: Callable[..., Losses], mesh: Mesh | None) -> Any:
    evaluation = make_evaluation(losses)
    return jax.jit(evaluation) if mesh is None else sharded_evaluation(evaluation, mesh)


@cache
def _compiled_losses(shape: TrainConfig) -> Any:
    loss_function = task_of(shape).losses

    def nats(params: Params, batch: Batch) -> Array:
        return jax.vmap(lambda row: loss_function(params, row, None).nats)(batch)

    return jax.jit(nats)


class Evaluation(NamedTuple):
    """Mean losses per token and per byte, in nats, with the half widths of 95 % intervals."""

    step: int
    num_documents: int
    per_token: tuple[float, float]
    per_byte: tuple[float, float]
    measure: Measure  # exact: −log p; bound: an upper bound on it, the mean of draws
    num_draws: int  # the draws of each window; 0 if the loss is exact
    draw_error: float | None  # standard error per token, of the draws alone; None of fewer than 2


class Trained(NamedTuple):
    """A member that was read: its config, its state, and the step of the state.

    Adapters of low rank are merged into their kernels, and the config is that of such a network.
    """

    config: TrainConfig
    state: TrainState
    step: int


def members_of(run: Folder, expert: int | None = None) -> list[Folder]:
    """The members of a run that have a checkpoint, sorted by name; with `expert`, only this one.

    Raises:
        CheckpointError: if there is none.
    """
    if expert is not None:
        return [member_folder(run, expert)]
    found = sorted(path for path in run.glob("*") if path.is_dir() and checkpoint_steps(path))
    if not found:
        raise CheckpointError(f"{run}: no member with a checkpoint is there.")
    return found


def load_member(member: Folder, *, best: bool = False) -> Trained:
    """Load the last checkpoint of a member, or its best, verified.

    Raises:
        CheckpointError: if there is none; if it is damaged, since no other one is taken instead.
    """
    record = read_member(member)
    config = from_json(TrainConfig, record["config"])
    if config.task is None:
        check_parameters_fit(config.model)
    steps = checkpoint_steps(member)
    if not steps:
        raise CheckpointError(f"{member}: no checkpoint is there.")
    step = best_step(member) if best else steps[-1]
    if step is None:
        raise CheckpointError(f"{member}: no checkpoint was evaluated, so none is best.")
    with mended_by_training():
        state = read_checkpoint(
            member / str(step), state_template(config), config=identity_of(record)
        )
    return Trained(*_without_adapters(config, state), step)


def _without_adapters(config: TrainConfig, state: TrainState) -> tuple[TrainConfig, TrainState]:
    """The config and the state of the same network, whose adapters are merged into its kernels."""
    if not config.lora.adapts:
        return config, state
    params = merged(state.params, config.lora)
    average = None if state.ema is None else merged(state.ema, config.lora)
    return without_adapters(config), state._replace(params=params, ema=average)


def evaluate_member(
    member: Folder,
    *,
    data: Path | None = None,
    tokenizer: Path | None = None,
    best: bool = False,
    columns: Columns | None = None,
    num_draws: int = 8,
) -> Evaluation:
    """The mean loss on the documents that the member held out, or on all of `data`.

    The loss of a masked network is the mean of `num_draws` draws of its bound for each window. Its
    interval is over documents and draws; `draw_error` is only over draws.

    `columns` counts the columns of rows that are not read, and says whether pictures in `data` are
    left out. Pictures of held-out documents are left out if they were left out in training.

    Raises:
        ValueError: if there is no document, or the data of the run have changed.
    """
    check_count("num_draws", num_draws)
    trained, columns = load_member(member, best=best), Columns() if columns is None else columns
    rows, num_bytes = held_out_rows(member, data=data, tokenizer=tokenizer, columns=columns)
    task = task_of(trained.config)
    keys = list(jax.random.split(jax.random.key(0), num_draws)) if task.draws else [None]
    drawn = [evaluated(trained.state, trained.config, rows, key) for key in keys]
    counts = drawn[0].counts
    totals = np.array([one.nats.sum() for one in drawn]) / counts.sum()
    nats = np.mean([one.nats for one in drawn], axis=0)
    error = float(totals.std(ddof=1) / math.sqrt(len(totals))) if len(totals) > 1 else None
    return Evaluation(
        trained.step,
        int((counts > 0).sum()),
        ratio_with_interval(nats, counts),
        _none if num_bytes is None else ratio_with_interval(nats, num_bytes),
        task.measure,
        num_draws if task.draws else 0,
        error,
    )


def evaluate_ensemble(
    run: Folder,
    ensemble: Ensemble,
    *,
    data: Path | None = None,
    tokenizer: Path | None = None,
    columns: Columns | None = None,
) -> Evaluation:
    """The mean loss of the mixture on all documents that its experts held out, or on all of `data`.

        −log q̂(x) = −log Σ_k w_k q̂_k(x),  x a window   [D1, D7]

    Within a window this is the Bayes gate that begins at w and is updated token by token. Windows
    are independent of each other, as for a member.

    Raises:
        ValueError: if `can_be_judged` is False.
    """
    check_ensemble(run, ensemble)
    rule = "The losses of every expert must be exactly −log p(x), because a mixture weighs by them"
    require(can_be_judged(ensemble), rule, False, name="exact")
    columns = Columns() if columns is None else columns
    experts = [load_expert(run, expert) for expert in ensemble.experts]
    members = [run / expert.name for expert in ensemble.experts]
    first = experts[0][0]
    asked = members if data is None else members[:1]
    read = partial(held_out_rows, data=data, tokenizer=tokenizer, columns=columns, config=first)
    parts = [read(member) for member in asked]
    nats, counts, sizes = [], [], []
    for rows, num_bytes in parts:
        each = [_row_losses(state, task_of(one), rows, None, None) for one, state in experts]
        joint = ensemble.log_weights[:, None] - np.stack([one.astype(float) for one, _ in each])
        found = rows.by_document(-np.logaddexp.reduce(joint, axis=0), each[0][1])
        nats.append(found.nats)
        counts.append(found.counts)
        sizes.append(num_bytes)
    total, count = np.concatenate(nats), np.concatenate(counts)
    known = [size for size in sizes if size is not None]
    per_byte = _none
    if len(known) == len(sizes):
        per_byte = ratio_with_interval(total, np.concatenate(known))
    step = max(expert.step for expert in ensemble.experts)
    per_token = ratio_with_interval(total, count)
    return Evaluation(step, int((count > 0).sum()), per_token, per_byte, "exact", 0, None)


def can_be_judged(ensemble: Ensemble) -> bool:
    """Whether all experts give likelihoods; a mixture of random bounds is not a bound."""
    configs = [from_json(TrainConfig, one.config.get("config")) for one in ensemble.experts]
    return all(task_of(config).measure == "exact" for config in configs)


_none = (math.nan, math.nan)  # of what is no text there is no loss per byte


def load_expert(run: Folder, expert: Expert) -> tuple[TrainConfig, TrainState]:
    """Load the checkpoint of an ensemble's expert, verified; as `load_member`."""
    config = from_json(TrainConfig, expert.config.get("config"))
    if config.task is None:
        check_parameters_fit(config.model)
    path = checkpoint_folder(run, expert)
    state = read_checkpoint(path, state_template(config), config=expert.config)
    return _without_adapters(config, state)


def held_out_rows(
    member: Folder,
    *,
    data: Path | None = None,
    tokenizer: Path | None = None,
    columns: Columns | None = None,
    config: TrainConfig | None = None,
) -> tuple[HeldOut, np.ndarray | None]:
    """The rows that a member held out, or all of `data`, and the bytes of each document, if known.

    The config is that of the member, unless another one is given, which then cuts the rows.

    Raises:
        ValueError: if the data of the run have changed.
    """
    columns = Columns() if columns is None else columns
    if config is None:
        config = from_json(TrainConfig, read_member(member)["config"])
    record, read_examples = read_member(member), task_of(config).read_examples
    source = Path(record["source"])
    if config.pictures is not None and config.task is None:
        return _judged_conversations(member, config, data, tokenizer), None
    if read_examples is not None:
        rule = "`data` must not be given, because the task reads its own data"
        require(data is None, rule, data)
        found = examples_of(read_examples(config, source), config)
        _check_same(member, source, found.description, record["data"])
        if found.held_out is None:
            rule = (
                f"`held_out` of the task's data must not be empty, because {member} is judged on it"
            )
            raise ValueError(f"{rule}; got held_out = None.")
        return found.held_out(None), None
    told = {"recorded": record["data"]["tokenizer"], "padded": "init" in record}
    if data is None:
        columns.text_only |= record["data"].get(TEXT_ONLY, False)
        kept = member / TOKENS if isinstance(member, Path) else None
        kept = kept if kept is not None and kept.is_dir() else None
        read = load_member_data(source, config, tokenizer, tokens=kept, columns=columns, **told)
        _check_same(member, source, read.description, record["data"])
        documents = read.held_out
    else:
        pieces = tokenizer_of(config, tokenizer, **told)
        names, texts = zip(*named_texts_in(data, columns), strict=True)
        documents = encode_texts(texts, pieces, names=names)
    return document_rows(documents, config, None), documents.num_bytes


def _judged_conversations(
    member: Folder, config: TrainConfig, data: Path | None, tokenizer: Path | None
) -> HeldOut:
    """The rows that a member held out, or all rows of `data`, whose pictures lie beside them.

    Raises:
        ValueError: if the data of the run have changed; if the tokenizer is another one.
    """
    record = read_member(member)
    source, known = Path(record["source"]), record.get("places", {})
    places = Places(**{name: Path(path) for name, path in known.items()})
    if tokenizer is not None:
        places = places._replace(tokenizer=tokenizer)
    named, found = record["data"]["tokenizer"], tokenizer_digest(places.tokenizer)
    rule = f"`tokenizer` must be {named}, the tokenizer of the run"
    require(found == named, rule, found, name="tokenizer")
    if data is not None:
        places = usual_places(data, member, places.tokenizer, pixels=places.pixels)
        return conversation_held_out(data, config, places)
    read = conversation_examples(source, config, places)
    _check_same(member, source, read.description, record["data"])
    rule = f"`held_out` must be above 0, because {member} is judged on what it held out"
    require(read.held_out is not None, rule, config.held_out)
    assert read.held_out is not None
    return read.held_out(None)


def _check_same(
    member: Folder, source: Path, found: Mapping[str, Any], recorded: Mapping[str, Any]
) -> None:
    for field, here, there in differences(dict(found), dict(recorded)):
        raise ValueError(
            f"`{field}` of {source} must be {there!r}, as when {member} was trained; got {field} = "
            f"{here!r}."
        )


def ratio_with_interval(totals: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Σ y / Σ n over documents, and the half width of its 95 % interval.

        1.96 √(D / (D − 1) Σ (y_d − r n_d)²) / Σ n

    Documents are independent; their tokens are not. The width is NaN if there is one document, or
    the ratio is not finite. Source: Cochran, Sampling Techniques.
    """
    kept = sizes > 0
    y, n = totals[kept].astype(float), sizes[kept].astype(float)
    ratio = y.sum() / n.sum()
    if len(y) < 2 or not math.isfinite(ratio):
        return float(ratio), math.nan
    scale = math.sqrt(len(y) / (len(y) - 1) * np.sum((y - ratio * n) ** 2))
    return float(ratio), 1.96 * scale / float(n.sum())
