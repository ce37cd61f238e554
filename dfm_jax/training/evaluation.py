"""What a trained member pays for documents, with an interval over them."""

import dataclasses
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dfm_jax.checks import check_count, require
from dfm_jax.data.columns import Columns
from dfm_jax.data.tokens import TokenSet, encode_texts, named_texts_in
from dfm_jax.models import Params
from dfm_jax.training.batches import Batch, cut_windows, document_pieces
from dfm_jax.training.checkpoint import read_checkpoint
from dfm_jax.training.config import TrainConfig, differences, from_json, shape_of
from dfm_jax.training.digests import CheckpointError, mended_by_training
from dfm_jax.training.measures import Measure, measure_of
from dfm_jax.training.members import (
    TEXT_ONLY,
    TOKENS,
    load_member_data,
    member_folder,
    network_and_terms,
    read_member,
    state_template,
    tokenizer_of,
)
from dfm_jax.training.memory import check_parameters_fit
from dfm_jax.training.retention import best_step, checkpoint_steps
from dfm_jax.training.spreading import spread_evaluation
from dfm_jax.training.state import TrainState
from dfm_jax.training.step import make_evaluation
from dfm_jax.types import Array, Key


class DocumentLosses(NamedTuple):
    """Per document: nats, and the tokens that they were paid for."""

    nats: np.ndarray  # [D], float64
    counts: np.ndarray  # [D], int64


def evaluated(
    state: TrainState,
    config: TrainConfig,
    documents: TokenSet,
    key: Key | None = None,
    *,
    limit: int | None = None,
    mesh: Mesh | None = None,
) -> DocumentLosses:
    """What a state pays for each document, cut into windows that know nothing of each other.

    The average of the parameters is judged where one is kept. Of more than `limit` windows, those
    at even distances are measured. The masked objective is estimated with one draw a window, the
    same for the same key. A state that lies on a `mesh` is judged there, see `spread_evaluation`.
    """
    windows = judged_windows(documents, config, limit)
    params: Params = state.params if state.ema is None else state.ema
    evaluation = _compiled_evaluation(shape_of(config), mesh)
    key = jax.random.key(0) if key is None else key
    rows = []
    for number, batch in enumerate(windows.batches):
        drawn = (jax.random.fold_in(key, number * config.batch_size),)
        rows.append(evaluation(params, batch, *(drawn if config.objective == "masked" else ())))
    nats, counts = (np.concatenate(x) for x in zip(*jax.device_get(rows), strict=True))
    return windows.by_document(nats, counts)


def token_losses(
    params: Params, config: TrainConfig, documents: TokenSet, *, batch_size: int = 64
) -> np.ndarray:
    """−log p̂(x^i | x^{<i}) of every token, in nats: [M], float32.   [A4]

    Documents are cut into windows from their beginnings; a token's prefix is that of its window.

    Raises:
        ValueError: if the objective is not autoregressive, or there is no token.
    """
    rule = "`config.objective` must be autoregressive for the loss of a token"
    require(config.objective == "autoregressive", rule, config.objective)
    shape = dataclasses.replace(shape_of(config), batch_size=batch_size, num_micro_batches=1)
    losses = _compiled_losses(shape)
    found = [
        np.asarray(losses(params, batch))[np.asarray(batch.valid)]
        for batch in judged_windows(documents, shape, None).batches
    ]
    return np.concatenate(found)  # windows cover the documents, in order


class Windows(NamedTuple):
    """What a state is judged by: batches, the last one filled up, and where their rows are from."""

    batches: list[Batch]
    document: np.ndarray  # [W] of each window
    num_documents: int

    def by_document(self, nats: np.ndarray, counts: np.ndarray) -> DocumentLosses:
        """Of what the rows of all batches lose: [≥ W]."""
        num = len(self.document)
        return DocumentLosses(
            np.bincount(self.document, nats[:num].astype(np.float64), self.num_documents),
            np.bincount(self.document, counts[:num], self.num_documents).astype(np.int64),
        )


def judged_windows(documents: TokenSet, config: TrainConfig, limit: int | None) -> Windows:
    """The windows of documents; of more than `limit`, those at even distances.

    Raises:
        ValueError: if the documents hold no token.
    """
    pieces = document_pieces(documents.offsets, config.num_positions)
    require(len(pieces) > 0, "the documents must hold a token; their number", len(pieces))
    if limit is not None and len(pieces) > limit:
        pieces = pieces[np.linspace(0, len(pieces) - 1, limit).round().astype(int)]
    size = config.batch_size
    padded = np.concatenate([pieces, np.zeros((-len(pieces) % size, 2), np.int64)])
    batches = [
        cut_windows(documents.tokens, padded[i : i + size], config.num_positions)
        for i in range(0, len(padded), size)
    ]
    document = np.searchsorted(documents.offsets, pieces[:, 0], side="right") - 1
    return Windows(batches, document, len(documents.offsets) - 1)


@cache  # a run evaluates often
def _compiled_evaluation(shape: TrainConfig, mesh: Mesh | None) -> Any:
    evaluation = make_evaluation(network_and_terms(shape)[1])
    return jax.jit(evaluation) if mesh is None else spread_evaluation(evaluation, mesh)


@cache
def _compiled_losses(shape: TrainConfig) -> Any:
    _, loss_function = network_and_terms(shape)

    def nats(params: Params, batch: Batch) -> Array:
        return jax.vmap(lambda row: loss_function(params, row, None).nats)(batch)

    return jax.jit(nats)


class Evaluation(NamedTuple):
    """Means over tokens and over bytes, in nats, each with the half width of its 95 % interval."""

    step: int
    num_documents: int
    per_token: tuple[float, float]
    per_byte: tuple[float, float]
    measure: Measure  # exact: −log p; bound: an upper bound on it, the mean of draws
    num_draws: int  # of each window; of what is exact none is drawn
    draw_error: float | None  # standard error per token, of the draws alone; None of fewer than 2


class Trained(NamedTuple):
    """A member that has been read: its config, its state, the step of it."""

    config: TrainConfig
    state: TrainState
    step: int


def members_of(run: Path, expert: int | None = None) -> list[Path]:
    """The members of a run that have a checkpoint, by name; or the one asked for.

    Raises:
        CheckpointError: if there is none.
    """
    if expert is not None:
        return [member_folder(run, expert)]
    found = sorted(path for path in run.glob("*") if path.is_dir() and checkpoint_steps(path))
    if not found:
        raise CheckpointError(f"{run}: no member with a checkpoint is here.")
    return found


def load_member(member: Path, *, best: bool = False) -> Trained:
    """The last checkpoint of a member, or its best, verified.

    Raises:
        CheckpointError: if there is none, or it is damaged: then nothing else is taken instead.
    """
    record = read_member(member)
    config = from_json(TrainConfig, record["config"])
    check_parameters_fit(config.model)
    steps = checkpoint_steps(member)
    if not steps:
        raise CheckpointError(f"{member}: there is no checkpoint.")
    step = best_step(member) if best else steps[-1]
    if step is None:
        raise CheckpointError(f"{member}: no checkpoint was evaluated, so none is best.")
    config_of = {name: record[name] for name in ("config", "data")}
    with mended_by_training():
        state = read_checkpoint(member / str(step), state_template(config), config=config_of)
    return Trained(config, state, step)


def evaluate_member(
    member: Path,
    *,
    data: Path | None = None,
    tokenizer: Path | None = None,
    best: bool = False,
    columns: Columns | None = None,
    num_draws: int = 8,
) -> Evaluation:
    """Mean loss on the documents that the member held out, or on all of `data`.

    A masked network is judged by the mean of `num_draws` draws of its bound for each window; its
    interval is over documents and draws, `draw_error` over draws.

    `columns` counts what is not read of rows, and says whether the pictures of `data` are left out;
    those of the documents held out are if they were in training.

    Raises:
        ValueError: if there is no document, or the data of the run are no longer as they were.
    """
    trained = load_member(member, best=best)
    record = read_member(member)
    named = record["data"]["tokenizer"]
    columns = Columns() if columns is None else columns
    if data is None:
        columns.text_only |= record["data"].get(TEXT_ONLY, False)
        kept = member / TOKENS if (member / TOKENS).is_dir() else None
        source, config = Path(record["source"]), trained.config
        found = load_member_data(
            source, config, tokenizer, tokens=kept, recorded=named, columns=columns
        )
        for field, here, there in differences(found.description, record["data"]):
            raise ValueError(
                f"{source} is no longer what {member} was trained on; `{field}` is {here!r}, and "
                f"was {there!r}."
            )
        documents = found.held_out
    else:
        pieces = tokenizer_of(trained.config, tokenizer, recorded=named)
        names, texts = zip(*named_texts_in(data, columns), strict=True)
        documents = encode_texts(texts, pieces, names=names)
    check_count("num_draws", num_draws)
    measure = measure_of(trained.config)
    keys = [None]  # of what is exact nothing is drawn
    if measure == "bound":
        keys = list(jax.random.split(jax.random.key(0), num_draws))
    drawn = [evaluated(trained.state, trained.config, documents, key) for key in keys]
    counts = drawn[0].counts
    totals = np.array([one.nats.sum() for one in drawn]) / counts.sum()
    nats = np.mean([one.nats for one in drawn], axis=0)
    error = float(totals.std(ddof=1) / math.sqrt(len(totals))) if len(totals) > 1 else None
    return Evaluation(
        trained.step,
        int((counts > 0).sum()),
        ratio_with_interval(nats, counts),
        ratio_with_interval(nats, documents.num_bytes),
        measure,
        num_draws if measure == "bound" else 0,
        error,
    )


def ratio_with_interval(totals: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Σ y / Σ n over documents, and the half width of its 95 % interval; NaN for one document.

        1.96 √(D / (D − 1) Σ (y_d − r n_d)²) / Σ n

    Documents are what is independent; their tokens are not. Source: Cochran, Sampling Techniques.
    """
    kept = sizes > 0
    y, n = totals[kept].astype(float), sizes[kept].astype(float)
    ratio = y.sum() / n.sum()
    if len(y) < 2:
        return float(ratio), math.nan
    spread = math.sqrt(len(y) / (len(y) - 1) * np.sum((y - ratio * n) ** 2))
    return float(ratio), 1.96 * spread / float(n.sum())
