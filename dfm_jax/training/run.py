"""From a config and a folder of text to a trained member."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax

from dfm_jax.checks import require
from dfm_jax.training.batches import Batches, document_windows, mapped_windows, stream_windows
from dfm_jax.training.config import TrainConfig, Watch, hyperparameters, shape_of
from dfm_jax.training.evaluation import evaluated
from dfm_jax.training.loop import Outcome, Run, keyed_run, train
from dfm_jax.training.members import (
    TOKENS,
    MemberData,
    load_member_data,
    member_data_path,
    member_folder,
    network_and_terms,
    record_member,
)
from dfm_jax.training.reading import read_ahead
from dfm_jax.training.state import (
    TrainState,
    init_state,
    make_optimiser,
    with_hyperparameters,
)
from dfm_jax.training.step import TrainStep, make_train_step
from dfm_jax.training.stopping import StopRequest
from dfm_jax.types import Array, Key


def train_member(
    config: TrainConfig,
    data: Path,
    run: Path,
    *,
    expert: int | None = None,
    tokenizer: Path | None = None,
    watch: Watch | None = None,
    stop: StopRequest | None = None,
    tensorboard: bool = False,
    on_disk: bool = False,
) -> Outcome:
    """Train a member to its end, or to a signal, from wherever it is; see `loop.train`.

    With `on_disk` the tokens stay on the disk, in the member's folder, and are read ahead: for data
    that outgrow memory. The batches are the same, and so is what comes out.

    Raises:
        CheckpointError: if the folder holds a run of another config or other data.
        NonFiniteError: see `loop.train`.
    """
    watch = Watch() if watch is None else watch
    folder, source = member_folder(run, expert), member_data_path(data, expert)
    tokens = folder / TOKENS if on_disk else None
    documents = load_member_data(source, config, tokenizer, tokens=tokens)
    record = record_member(folder, config, documents, source)
    member = make_run(config, documents, watch)
    return train(member, folder, config=record, watch=watch, stop=stop, tensorboard=tensorboard)


def make_run(config: TrainConfig, data: MemberData, watch: Watch) -> Run:
    """The run of a config on its data, as pure functions.

    Runs of one shape, see `shape_of`, share what was compiled.
    """
    init_key, batch_key, step_key, evaluation_key = run_keys(config.seed)
    init_from, step = _compiled(shape_of(config))
    values = hyperparameters(config)

    def init() -> TrainState:
        return init_from(jax.random.clone(init_key), values)  # for the shapes, then for the values

    def evaluate(state: TrainState) -> dict[str, float]:
        documents = evaluated(
            state, config, data.held_out, evaluation_key, limit=watch.evaluation_windows
        )
        return {"validation": float(documents.nats.sum() / documents.counts.sum())}

    return keyed_run(
        init,
        step,
        windows_of(config, data),
        batch_key,
        step_key,
        num_steps=config.num_steps,
        evaluate=evaluate if config.held_out > 0 else None,
    )


def run_keys(seed: int) -> Key:
    """Of the parameters, the batches, the steps and the evaluation. [4]"""
    return jax.random.split(jax.random.key(seed), 4)


def windows_of(config: TrainConfig, data: MemberData) -> Batches:
    """The batches of a config, from its data.

    Raises:
        ValueError: if a stream is asked for of tokens that stay on the disk.
    """
    size, length, train = config.batch_size, config.num_positions, data.train
    if data.mapped:
        rule = "`config.windows` must be documents for tokens that stay on the disk"
        require(config.windows == "documents", rule, config.windows)
        return read_ahead(mapped_windows(train.tokens, train.offsets, length, size))
    if config.windows == "stream":
        return stream_windows(train.tokens, length, size)
    return document_windows(train.tokens, train.offsets, length, size)


def init_and_step(
    shape: TrainConfig,
) -> tuple[Callable[[Key, Mapping[str, Array]], TrainState], TrainStep]:
    """(key, hyperparameters) → state, and the step, of all configs of that shape; not compiled."""
    network, terms_of = network_and_terms(shape)
    optimiser = make_optimiser(shape.optimiser, shape.num_steps)
    step = make_train_step(
        terms_of, optimiser, num_micro_batches=shape.num_micro_batches, ema_decay=shape.ema_decay
    )

    def init(key: Key, values: Mapping[str, Array]) -> TrainState:
        state = init_state(key, network, optimiser, ema=shape.ema_decay is not None)
        return with_hyperparameters(state, **values)

    return init, step


@cache  # members that one process trains share what was compiled
def _compiled(shape: TrainConfig) -> tuple[Any, Any]:
    init, step = init_and_step(shape)
    return jax.jit(init), jax.jit(step, donate_argnums=0)
